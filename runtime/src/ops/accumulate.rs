//! Sums kept in a buffer from step to step.

use super::{Family, Op};
use crate::lower::{Lowering, Refusal};
use crate::program::Source;
use velora_graph::ir::Node;
use velora_graph::shapes::DataType;

/// The operators, and how they are lowered.
pub const FAMILY: Family = Family {
    operators: &[
        ("com.microsoft", "InPlaceAccumulator"),
        ("com.microsoft", "InPlaceAccumulatorV2"),
    ],
    lower,
};

/// Adds a tensor to a buffer, or starts the buffer's sum anew.
///
/// Inputs: the buffer, the tensor that is added (of the buffer's shape), and a flag (one `bool`) where
/// the rule has one. Outputs: the sum, whose bytes are the buffer's (`Source::Update`) or other ones, and
/// optionally a `bool` that becomes true. A sum that is not wanted has no place to lie: the first output
/// is always there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Accumulate {
    /// The sum is buffer + tensor.
    Add,
    /// The same, but the tensor alone where the flag is set.
    Overwrite,
    /// The same, but the buffer alone where the flag is not set.
    Gated,
}

impl Accumulate {
    /// The word that profiles and listings use.
    pub fn name(&self) -> &'static str {
        "Accumulate"
    }

    /// Pairs of output and input: the output may be written over the input.
    pub fn in_place(&self) -> Vec<(usize, usize)> {
        vec![(0, 0)]
    }
}

fn lower(lowering: &mut Lowering<'_>, node: &Node) -> Result<(), Refusal> {
    let buffer = lowering.input(node, 0)?;
    let value = lowering.input(node, 1)?;
    let flag = lowering.optional_input(node, 2)?;
    let (sum, added) = (lowering.ty(buffer), lowering.ty(value));
    let widens = sum.data_type == DataType::FLOAT
        && matches!(added.data_type, DataType::FLOAT16 | DataType::BFLOAT16);
    if sum.shape != added.shape || !sum.data_type.is_float() {
        return Err(Refusal(format!(
            "the buffer is {sum} and the tensor {added}: expected floating-point numbers of one shape"
        )));
    }
    if sum.data_type != added.data_type && !widens {
        return Err(Refusal(format!(
            "the buffer is {sum} and the tensor {added}: expected the buffer's type or a narrower one"
        )));
    }
    if let Some(flag) = flag {
        let ty = lowering.ty(flag);
        if ty.data_type != DataType::BOOL || ty.elements() != 1 {
            return Err(Refusal(format!("the flag is {ty}: expected one bool")));
        }
    }
    let second = node.op() == "InPlaceAccumulatorV2";
    // The second version has the sum as an optional second output, the first as its only one.
    let wanted = lowering.output(node, usize::from(second))?;
    let updated = match second {
        true => lowering.output(node, 0)?,
        false => None,
    };
    let total = wanted.unwrap_or_else(|| lowering.temporary("sum", sum));
    // A constant keeps its bytes: the sum gets others.
    let root = lowering.program.root(buffer);
    if !matches!(lowering.program.value(root).source, Source::Constant(_)) {
        lowering.program.values[total.index()].source = Source::Update(buffer);
    }
    let op = match (flag, second) {
        (None, _) => Accumulate::Add,
        (Some(_), true) => Accumulate::Overwrite,
        (Some(_), false) => Accumulate::Gated,
    };
    let inputs = vec![Some(buffer), Some(value), flag];
    lowering.emit(Op::Accumulate(op), inputs, vec![Some(total), updated]);
    Ok(())
}
