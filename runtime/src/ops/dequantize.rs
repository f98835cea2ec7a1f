//! Numbers from integers and scales: `DequantizeLinear`.

use super::{Family, Op};
use crate::lower::{Lowering, Refusal};
use crate::program::TensorId;
use crate::tensor::TensorType;
use velora_graph::ir::Node;
use velora_graph::shapes::DataType;

/// The operators, and how they are lowered.
pub const FAMILY: Family = Family {
    operators: &[("", "DequantizeLinear")],
    lower,
};

/// `(x - zero point) * scale`, in `f32`, rounded to the output's type.
///
/// Inputs: x, which is [outer, size, inner] of integers of 4, 8, 16 or 32 bits; the scales (`f32` or of 16
/// bits); the zero points, of the type of x, as many as scales, which may be absent. Output: as many
/// numbers as x has, in `f32` or 16 bits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dequantize {
    /// The product of the sizes before the axis.
    pub outer: usize,
    /// The size of the axis along which scales differ.
    pub size: usize,
    /// The product of the sizes behind it.
    pub inner: usize,
    /// How scales lie along the axis.
    pub scales: Scales,
}

/// How many scales there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scales {
    /// One by position on the axis.
    Axis,
    /// So many positions on the axis (fewer in the last block) share one, at least 1; each position on the
    /// other axes has its own: [outer, ⌈size / block⌉, inner].
    Blocks(usize),
}

impl Dequantize {
    /// The number of scales.
    pub fn count(&self) -> usize {
        match self.scales {
            Scales::Axis => self.size,
            Scales::Blocks(block) => self.outer * self.size.div_ceil(block.max(1)) * self.inner,
        }
    }
}

fn is_quantized(data_type: DataType) -> bool {
    // 4 and 5 are uint16 and int16.
    matches!(
        data_type,
        DataType::INT8 | DataType::UINT8 | DataType::INT32 | DataType(4 | 5)
    ) || data_type.is_int4()
}

fn is_number(data_type: DataType) -> bool {
    matches!(
        data_type,
        DataType::FLOAT | DataType::FLOAT16 | DataType::BFLOAT16
    )
}

fn lower(lowering: &mut Lowering<'_>, node: &Node) -> Result<(), Refusal> {
    let x = lowering.input(node, 0)?;
    let ty = lowering.ty(x);
    if !is_quantized(ty.data_type) {
        return Err(Refusal(format!(
            "the input is {ty}: expected int4, uint4, int8, uint8, int16, uint16 or int32"
        )));
    }
    let scales = lowering.input(node, 1)?;
    let of_scales = lowering.ty(scales);
    if !is_number(of_scales.data_type) {
        return Err(Refusal(format!(
            "the scale is {of_scales}: expected float, float16 or bfloat16"
        )));
    }
    let op = geometry(lowering.opset(""), node, &ty, &of_scales)?;
    let zeros = zero_points(lowering, node, &ty, &of_scales)?;
    let output = lowering.required_output(node, 0)?;
    let found = lowering.ty(output);
    if found.shape != ty.shape || !is_number(found.data_type) {
        return Err(Refusal(format!(
            "the output is {found}: expected float, float16 or bfloat16 in the shape of {ty}"
        )));
    }
    lowering.emit(
        Op::Dequantize(op),
        vec![Some(x), Some(scales), zeros],
        vec![Some(output)],
    );
    Ok(())
}

/// Finds which scale is whose, and refuses scales of another shape.
fn geometry(
    opset: i64,
    node: &Node,
    ty: &TensorType,
    scales: &TensorType,
) -> Result<Dequantize, Refusal> {
    let block = node.int("block_size", 0);
    if block < 0 || (block > 0 && opset < 21) {
        return Err(Refusal(format!(
            "block_size {block}: expected 0, or from operator set 21 on a size"
        )));
    }
    if block == 0 && matches!(scales.shape[..], [] | [1]) {
        return Ok(Dequantize {
            outer: 1,
            size: 1,
            inner: ty.elements(),
            scales: Scales::Axis,
        });
    }
    if opset < 13 {
        return Err(Refusal(format!(
            "the scale is {scales}: expected a scalar before operator set 13"
        )));
    }
    let axis = node.int("axis", 1);
    let axis = ty
        .axis(axis)
        .ok_or_else(|| Refusal(format!("axis {axis} is none of {ty}")))?;
    let size = ty.shape[axis];
    let (expected, kind) = match usize::try_from(block) {
        Ok(0) => (vec![size], Scales::Axis),
        // A larger block than the axis is one block; so is one that exceeds any size.
        block => {
            let block = block.unwrap_or(usize::MAX).min(size.max(1));
            let mut shape = ty.shape.clone();
            shape[axis] = size.div_ceil(block);
            (shape, Scales::Blocks(block))
        }
    };
    if scales.shape != expected {
        let expected = TensorType::new(scales.data_type, expected);
        return Err(Refusal(format!(
            "the scale of {ty} along axis {axis} with block_size {block} is {scales}: expected {expected}"
        )));
    }
    // Sizes behind or before an empty axis may have any product; nothing is computed then.
    let product = |sizes: &[usize]| sizes.iter().fold(1usize, |n, &size| n.saturating_mul(size));
    let empty = ty.shape.contains(&0);
    Ok(Dequantize {
        outer: if empty { 0 } else { product(&ty.shape[..axis]) },
        size,
        inner: if empty {
            0
        } else {
            product(&ty.shape[axis + 1..])
        },
        scales: kind,
    })
}

/// The zero points; absent where all are known to be 0, which subtracting changes nothing.
fn zero_points(
    lowering: &mut Lowering<'_>,
    node: &Node,
    ty: &TensorType,
    scales: &TensorType,
) -> Result<Option<TensorId>, Refusal> {
    let Some(zeros) = lowering.optional_input(node, 2)? else {
        return Ok(None);
    };
    let found = lowering.ty(zeros);
    let expected = TensorType::new(ty.data_type, scales.shape.clone());
    // One number is one number, with an axis or without.
    let single = [&found, &expected]
        .iter()
        .all(|ty| matches!(ty.shape[..], [] | [1]));
    if found.data_type != expected.data_type || (found.shape != expected.shape && !single) {
        return Err(Refusal(format!(
            "the zero point is {found}: expected {expected}, as the input and the scale are"
        )));
    }
    let known = lowering.constant_input(node, 2)?;
    if known.is_some_and(|tensor| tensor.bytes.iter().all(|&byte| byte == 0)) {
        return Ok(None);
    }
    if ty.data_type == DataType::INT32 {
        return Err(Refusal::new(
            "int32 with a zero point that may differ from 0: the operator has none for it",
        ));
    }
    Ok(Some(zeros))
}
