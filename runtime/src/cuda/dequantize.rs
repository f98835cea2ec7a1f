//! Numbers from integers and scales.

use super::encode::{Arguments, BLOCK, Call, Sink, Unsupported, address};
use super::source::{Divisor, Source, no_kernel, type_name};
use crate::ops::dequantize::{Dequantize, Scales};
use bytemuck::{Pod, Zeroable};
use velora_graph::shapes::DataType;

/// The kernel.
pub const SOURCE: Source = Source {
    name: "dequantize",
    file: "dequantize.cu",
};

/// Elements of a thread.
const EIGHT: usize = 8;

/// `Pattern` of the kernel.
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
struct Pattern {
    inner: Divisor,
    size: Divisor,
    block: Divisor,
    blocks: u64,
    by_block: u64,
}

impl Pattern {
    fn new(op: &Dequantize) -> Self {
        let block = match op.scales {
            Scales::Axis => 1,
            Scales::Blocks(block) => block.max(1),
        };
        Pattern {
            inner: Divisor::new(op.inner),
            size: Divisor::new(op.size),
            block: Divisor::new(block),
            blocks: op.size.div_ceil(block) as u64,
            by_block: u64::from(op.scales != Scales::Axis),
        }
    }
}

/// Whether eight elements, counted from the first one, always share a scale.
fn shares(op: &Dequantize) -> bool {
    match op.scales {
        Scales::Axis => op.size == 1 || op.inner.is_multiple_of(EIGHT),
        Scales::Blocks(block) => {
            op.inner == 1 && block.is_multiple_of(EIGHT) && op.size.is_multiple_of(EIGHT)
        }
    }
}

/// Puts an operation into a sink.
///
/// # Errors
/// [`Unsupported`] where there is no kernel.
pub fn encode(op: &Dequantize, call: &Call<'_>, sink: &mut Sink<'_>) -> Result<(), Unsupported> {
    let (x, scales, y) = (call.input(0)?, call.input(1)?, call.output(0)?);
    let (integer, bits, sign) = match x.ty.data_type {
        DataType::UINT4 => ("u8", 4, 0),
        DataType::INT4 => ("u8", 4, 8),
        ty @ (DataType::UINT8 | DataType::INT8) => (type_name(ty)?, 8, 0),
        ty @ DataType(4 | 5) => (type_name(ty)?, 16, 0),
        ty @ DataType::INT32 => (type_name(ty)?, 32, 0),
        other => {
            return Err(Unsupported(format!(
                "integers of {other} have no kernel here"
            )));
        }
    };
    for operand in [scales, y] {
        if !matches!(
            operand.ty.data_type,
            DataType::FLOAT | DataType::FLOAT16 | DataType::BFLOAT16
        ) {
            return Err(no_kernel(operand.ty.data_type));
        }
    }
    let unit = SOURCE.with(&[
        ("Integer", integer),
        ("BITS", &format!("{bits}")),
        ("SIGN", &format!("{sign}")),
        ("Scale", type_name(scales.ty.data_type)?),
        ("Element", type_name(y.ty.data_type)?),
    ]);
    let elements = y.ty.elements();
    let arguments = Arguments::new()
        .address(x.address)
        .address(scales.address)
        .address(address(call.optional_input(2)))
        .address(y.address)
        .size(elements)
        .structure(&Pattern::new(op))
        .u32(u32::from(shares(op)));
    let blocks = sink.blocks(elements, EIGHT * BLOCK as usize);
    sink.launch(&unit, "dequantize", blocks, BLOCK, arguments);
    Ok(())
}
