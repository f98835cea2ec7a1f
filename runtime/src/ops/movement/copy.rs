//! Copies of boxes between strided layouts.

use crate::lower::Refusal;

/// The most axes of a box after neighbours are merged; kernels keep their state in small arrays.
pub const MAX_AXES: usize = 8;

/// Copies boxes of elements from inputs to outputs. The boxes of one output do not overlap, or a later
/// one is meant to be seen; an output may keep elements that no box covers.
#[derive(Clone, Debug, PartialEq)]
pub struct Copy {
    /// What is copied where, in order.
    pub parts: Vec<Part>,
}

/// Where the elements of a box come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// An input, by its position.
    Input(usize),
    /// All are the first element of that input.
    Scalar(usize),
    /// All are this element, of whose bytes as many count as an element of the output has.
    Element([u8; 8]),
}

/// An axis of a box.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Axis {
    /// How many elements.
    pub size: usize,
    /// The step from one to the next in the input, in elements; 0 repeats an element.
    pub from: isize,
    /// The step in the output, in elements.
    pub to: usize,
}

/// The copy of one box.
#[derive(Clone, Debug, PartialEq)]
pub struct Part {
    /// What is read.
    pub origin: Origin,
    /// Which output is written.
    pub output: usize,
    /// The axes, longest step in the output first; neighbours that are one axis in both layouts are
    /// merged, and there are at most [`MAX_AXES`].
    pub axes: Vec<Axis>,
    /// The box's first element in the input.
    pub from: usize,
    /// The box's first element in the output.
    pub to: usize,
}

impl Part {
    /// A part with its axes in normal form; `None` where there is nothing to copy.
    ///
    /// `axes` must lie within both tensors, and in the output be nested as those of a box of a
    /// row-major tensor are: the step of an axis is at least the extent of all axes with smaller ones.
    ///
    /// # Errors
    /// [`Refusal`] where more than [`MAX_AXES`] are left.
    pub fn new(
        origin: Origin,
        output: usize,
        axes: impl IntoIterator<Item = Axis>,
        from: usize,
        to: usize,
    ) -> Result<Option<Self>, Refusal> {
        let mut all: Vec<Axis> = axes.into_iter().filter(|axis| axis.size != 1).collect();
        if all.iter().any(|axis| axis.size == 0) {
            return Ok(None);
        }
        all.sort_by_key(|axis| std::cmp::Reverse(axis.to));
        let mut axes: Vec<Axis> = Vec::with_capacity(all.len());
        for axis in all {
            let size = axis.size as isize;
            match axes.last_mut() {
                Some(outer)
                    if outer.from == axis.from.wrapping_mul(size)
                        && outer.to == axis.to.wrapping_mul(axis.size) =>
                {
                    *outer = Axis {
                        size: outer.size.saturating_mul(axis.size),
                        ..axis
                    };
                }
                _ => axes.push(axis),
            }
        }
        if axes.len() > MAX_AXES {
            return Err(Refusal(format!(
                "{} axes move independently: expected at most {MAX_AXES}",
                axes.len()
            )));
        }
        Ok(Some(Part {
            origin,
            output,
            axes,
            from,
            to,
        }))
    }

    /// Fills elements of the output that lie side by side.
    pub fn fill(element: [u8; 8], elements: usize) -> Self {
        Part {
            origin: Origin::Element(element),
            output: 0,
            axes: vec![Axis {
                size: elements,
                from: 0,
                to: 1,
            }],
            from: 0,
            to: 0,
        }
    }

    /// The elements of the box.
    pub fn elements(&self) -> usize {
        self.axes.iter().map(|axis| axis.size).product()
    }

    /// Whether elements keep their positions.
    pub fn is_straight(&self) -> bool {
        let straight = match self.axes[..] {
            [] => true,
            [axis] => (axis.from, axis.to) == (1, 1),
            _ => false,
        };
        straight && matches!(self.origin, Origin::Input(_)) && (self.from, self.to) == (0, 0)
    }
}
