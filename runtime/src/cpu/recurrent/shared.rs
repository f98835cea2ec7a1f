//! What the kernels of recurrent layers share.

use crate::cpu::memory::Input;
use crate::cpu::product::Real;
use crate::cpu::rows::{RowsMut, for_blocks, for_chunks};
use crate::ops::recurrent::Activation;

/// Gate elements of a step from which its rows are shared out among the threads.
pub(super) const PARALLEL: usize = 1 << 12;

/// A sequence of a step: its number, and its rows of three matrices.
pub(super) type Row<'r, T> = (usize, ((&'r mut [T], &'r mut [T]), &'r mut [T]));

/// The elements of an operand, none where it is absent.
pub(super) fn optional<'m, T: Real>(input: &Option<Input<'m>>) -> Option<&'m [T]> {
    input.as_ref().map(|input| input.elements())
}

/// The elements of an operand that the lowering gave.
pub(super) fn required<'m, T: Real>(input: &Option<Input<'m>>) -> Result<&'m [T], String> {
    optional(input).ok_or_else(|| "an operand is missing".to_owned())
}

/// Cuts scratch into parts.
pub(super) fn take<'s, T>(scratch: &mut &'s mut [T], count: usize) -> &'s mut [T] {
    let (part, rest) = std::mem::take(scratch).split_at_mut(count);
    *scratch = rest;
    part
}

/// Calls a function for the rows of a step, side by side: its number, and its rows of three matrices,
/// which come with the lengths of their rows.
pub(super) fn for_rows<T: Real>(
    first: (&mut [T], usize),
    second: (&mut [T], usize),
    third: (&mut [T], usize),
    row: &(impl Fn(usize, &mut [T], &mut [T], &mut [T]) + Sync),
) {
    let rows = first.0.len().div_ceil(first.1.max(1));
    let third = (!third.0.is_empty()).then(|| RowsMut::new(third.0, third.1));
    let written = (
        RowsMut::new(first.0, first.1),
        RowsMut::new(second.0, second.1),
        third,
    );
    for_blocks(0..rows, 1, written, &|range, (first, second, third)| {
        let third = third.map_or(&mut [][..], |third| third.elements);
        row(range.start, first.elements, second.elements, third);
    });
}

/// Applies an activation to all elements.
pub(super) fn apply_all<T: Real>(activation: Activation, elements: &mut [T]) {
    pulp::Arch::new().dispatch(All {
        activation,
        elements,
    });
}

/// The loop of [`apply_all`], compiled for several instruction sets.
struct All<'e, T> {
    activation: Activation,
    elements: &'e mut [T],
}

impl<T: Real> pulp::NullaryFnOnce for All<'_, T> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        // The usual ones in loops of their own.
        match self.activation {
            Activation::Sigmoid => {
                for x in self.elements {
                    *x = x.sigmoid();
                }
            }
            Activation::Tanh => {
                for x in self.elements {
                    *x = x.tanh();
                }
            }
            other => {
                for x in self.elements {
                    *x = apply(other, *x);
                }
            }
        }
    }
}

#[inline(always)]
fn apply<T: Real>(activation: Activation, x: T) -> T {
    let number = |n: f32| T::from_f64(f64::from(n));
    let least = T::lesser;
    let greatest = T::greater;
    match activation {
        Activation::Sigmoid => x.sigmoid(),
        Activation::Tanh => x.tanh(),
        Activation::Relu => greatest(x, T::ZERO),
        Activation::Affine(a, b) => number(a) * x + number(b),
        Activation::LeakyRelu(a) if x < T::ZERO => number(a) * x,
        Activation::LeakyRelu(_) => x,
        Activation::ThresholdedRelu(a) if x < number(a) => T::ZERO,
        Activation::ThresholdedRelu(_) => x,
        Activation::ScaledTanh(a, b) => number(a) * (number(b) * x).tanh(),
        Activation::HardSigmoid(a, b) => {
            greatest(least(number(a) * x + number(b), T::ONE), T::ZERO)
        }
        Activation::Elu(a) if x < T::ZERO => number(a) * (x.exp() - T::ONE),
        Activation::Elu(_) => x,
        Activation::Softsign => x / (T::ONE + greatest(x, -x)),
        // Written so that no exponential overflows.
        Activation::Softplus => {
            let size = greatest(x, -x);
            greatest(x, T::ZERO) + size.softplus_of_negative()
        }
    }
}

/// Sums the rows of a matrix of `columns` columns, in order and in 64 bits.
pub(super) fn column_sums<T: Real>(matrix: &[T], columns: usize, sums: &mut [T]) {
    const WIDE: usize = 64;
    for_chunks(sums, WIDE, 1, &|part, to| {
        let mut totals = [T::Total::default(); WIDE];
        for row in matrix.chunks(columns.max(1)) {
            for (total, element) in totals.iter_mut().zip(&row[part * WIDE..][..to.len()]) {
                *total = element.added_to(*total);
            }
        }
        for (to, total) in to.iter_mut().zip(totals) {
            *to = T::of_total(total);
        }
    });
}
