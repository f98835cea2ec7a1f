//! One-hot rows, and the greatest or least elements of lines.

use super::compile::Unit;
use super::division::{Divider, narrow};
use super::encode::{Arguments, BLOCK, Call, Sink, Unsupported, address};
use super::index::number;
use super::movement::width;
use crate::ops::index::{OneHot, TopK};
use std::borrow::Cow;

/// The kernels.
pub const UNIT: Unit = Unit {
    name: "select.cu",
    text: Cow::Borrowed(include_str!("select.cu")),
};

/// Lines up to this size take one warp each.
const SHORT: usize = 1024;

/// One element differs in every row.
///
/// # Errors
/// [`Unsupported`] where there is no kernel.
pub(super) fn one_hot(
    op: &OneHot,
    call: &Call<'_>,
    sink: &mut Sink<'_>,
) -> Result<(), Unsupported> {
    let (indices, values, output) = (call.input(0)?, call.input(1)?, call.output(0)?);
    number(indices.ty.data_type)?;
    let bytes = width(output.ty.data_type)?;
    let count = narrow(output.ty.elements())?;
    let arguments = Arguments::new()
        .address(indices.address)
        .u32(indices.ty.data_type.0.unsigned_abs())
        .address(values.address)
        .address(output.address)
        .structure(&Divider::new(op.depth)?)
        .structure(&Divider::new(op.inner)?)
        .u32(count);
    let blocks = sink.blocks(count as usize, BLOCK as usize);
    sink.launch(&UNIT, format!("one_hot_{bytes}"), blocks, BLOCK, arguments);
    Ok(())
}

/// The greatest or least elements of lines.
///
/// # Errors
/// [`Unsupported`] where there is no kernel.
pub(super) fn top_k(op: &TopK, call: &Call<'_>, sink: &mut Sink<'_>) -> Result<(), Unsupported> {
    let input = call.input(0)?;
    let lines = op.outer * op.inner;
    if op.k == 0 || op.size == 0 {
        return Ok(());
    }
    let arguments = Arguments::new()
        .address(input.address)
        .address(address(call.optional_output(0)))
        .address(address(call.optional_output(1)))
        .size(lines)
        .u32(narrow(op.size)?)
        .size(op.inner)
        .u32(narrow(op.k)?)
        .u32(u32::from(op.largest));
    let block = if op.size <= SHORT { 32 } else { BLOCK };
    let blocks = sink.blocks(lines, 1);
    let kernel = format!("top_{}", number(input.ty.data_type)?);
    sink.launch(&UNIT, kernel, blocks, block, arguments);
    Ok(())
}
