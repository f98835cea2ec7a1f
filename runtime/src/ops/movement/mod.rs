//! What moves, repeats or cuts elements, and makes constant ones.
//!
//! Nearly all of it is copies of boxes between strided layouts ([`copy`]), whatever the elements are.

pub mod copy;
mod make;
mod pieces;
mod rearrange;
mod scattered;

use super::{Family, Op};
use crate::lower::{Lowering, Refusal};
use crate::program::TensorId;
use crate::tensor::{Tensor, TensorType};
use copy::{Copy, Part};
use velora_graph::ir::Node;

/// The operators, and how they are lowered.
pub const FAMILY: Family = Family {
    operators: &[
        ("", "Transpose"),
        ("", "Tile"),
        ("", "DepthToSpace"),
        ("", "SpaceToDepth"),
        ("", "Concat"),
        ("com.microsoft", "ConcatTraining"),
        ("", "Split"),
        ("com.microsoft", "SplitTraining"),
        ("", "Slice"),
        ("com.microsoft", "SliceGrad"),
        ("", "Pad"),
        ("com.microsoft", "Pad"),
        ("", "Trilu"),
        ("com.microsoft", "Trilu"),
        ("", "Range"),
        ("com.microsoft", "Range"),
        ("", "ConstantOfShape"),
        ("", "Constant"),
        ("", "EyeLike"),
        ("", "Shape"),
        ("", "Size"),
    ],
    lower,
};

/// Larger tensors of known elements are computed in the step: they would occupy memory all along.
const MAX_CONSTANT_BYTES: usize = 64 << 10;

/// An operation of the family.
#[derive(Clone, Debug, PartialEq)]
pub enum Movement {
    /// Copies boxes of elements from inputs to outputs.
    Copy(Copy),
    /// Keeps one triangle of every matrix and zeroes the rest.
    ///
    /// Inputs: the matrices, and the diagonal (an `int64` scalar) where it is not known.
    Trilu(Trilu),
    /// An arithmetic sequence. No inputs.
    Range(Range),
}

/// Parameters of [`Movement::Trilu`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trilu {
    /// Keeps what lies on and above the diagonal; else what lies on and below it.
    pub upper: bool,
    /// The diagonal: 0 is the main one, larger ones lie above it.
    pub diagonal: Option<i64>,
    /// Rows of a matrix.
    pub rows: usize,
    /// Columns of a matrix.
    pub columns: usize,
}

/// Parameters of [`Movement::Range`]: element `i` is `start + i · step`, in the output's type.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Range {
    /// A sequence of integers.
    Integers {
        /// The first one.
        start: i64,
        /// From one to the next.
        step: i64,
    },
    /// A sequence of floating-point numbers.
    Floats {
        /// The first one.
        start: f64,
        /// From one to the next.
        step: f64,
    },
}

impl Movement {
    /// The word that profiles and listings use.
    pub fn name(&self) -> &'static str {
        match self {
            Movement::Copy(_) => "Copy",
            Movement::Trilu(_) => "Trilu",
            Movement::Range(_) => "Range",
        }
    }

    /// Pairs of output and input: the output may be written over the input.
    pub fn in_place(&self) -> Vec<(usize, usize)> {
        match self {
            Movement::Trilu(_) => vec![(0, 0)],
            Movement::Copy(_) | Movement::Range(_) => Vec::new(),
        }
    }
}

fn lower(lowering: &mut Lowering<'_>, node: &Node) -> Result<(), Refusal> {
    match node.op() {
        "Transpose" => rearrange::transpose(lowering, node),
        "Tile" => rearrange::tile(lowering, node),
        "DepthToSpace" => rearrange::depth_to_space(lowering, node),
        "SpaceToDepth" => rearrange::space_to_depth(lowering, node),
        "Concat" | "ConcatTraining" => pieces::concat(lowering, node),
        "Split" | "SplitTraining" => pieces::split(lowering, node),
        "Slice" => pieces::slice(lowering, node),
        "SliceGrad" => pieces::slice_grad(lowering, node),
        "Pad" => pieces::pad(lowering, node),
        "Trilu" => make::trilu(lowering, node),
        "Range" => make::range(lowering, node),
        "ConstantOfShape" => make::constant_of_shape(lowering, node),
        "Constant" => make::constant(lowering, node),
        "EyeLike" => make::eye_like(lowering, node),
        "Shape" => make::shape(lowering, node),
        "Size" => make::size(lowering, node),
        other => Err(Refusal(format!("{other} has no lowering"))),
    }
}

/// The bytes of an element, where kernels that only move elements can move it.
pub(crate) fn width(ty: &TensorType) -> Result<usize, Refusal> {
    match ty.data_type.bits() {
        Some(bits @ (8 | 16 | 32 | 64)) => Ok(bits as usize / 8),
        _ => Err(Refusal(format!(
            "elements of {ty} cannot be moved: expected 1, 2, 4 or 8 bytes each"
        ))),
    }
}

/// Refuses an output that inference gave another shape than the operator's definition.
fn expect_shape(ty: &TensorType, shape: &[usize]) -> Result<(), Refusal> {
    if ty.shape == shape {
        return Ok(());
    }
    let expected = TensorType::new(ty.data_type, shape);
    Err(Refusal(format!("the output is {ty}: expected {expected}")))
}

/// Adds the copy that makes an output of a node from one tensor; a view where nothing moves.
///
/// `parts` read input 0 and write output 0.
fn copied(
    lowering: &mut Lowering<'_>,
    node: &Node,
    slot: usize,
    source: TensorId,
    shape: &[usize],
    parts: Vec<Part>,
) -> Result<(), Refusal> {
    if !lowering.wants(node, slot) {
        return Ok(());
    }
    let elements = (shape.iter()).fold(1usize, |n, &size| n.saturating_mul(size));
    let whole = elements == lowering.ty(source).elements() && parts.iter().all(Part::is_straight);
    if parts.len() <= 1 && whole {
        return lowering.view(node, slot, source);
    }
    let Some(output) = lowering.output(node, slot)? else {
        return Ok(());
    };
    let ty = lowering.ty(output);
    expect_shape(&ty, shape)?;
    width(&ty)?;
    let copy = Op::Movement(Movement::Copy(Copy { parts }));
    lowering.emit(copy, vec![Some(source)], vec![Some(output)]);
    Ok(())
}

/// Makes an output of a node a constant.
fn known(
    lowering: &mut Lowering<'_>,
    node: &Node,
    slot: usize,
    tensor: Tensor,
) -> Result<(), Refusal> {
    if !lowering.wants(node, slot) {
        return Ok(());
    }
    let name = format!("{}/constant", node.op());
    let id = lowering.constant(name, tensor);
    lowering.view(node, slot, id)
}
