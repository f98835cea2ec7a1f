//! Sums kept in a buffer from step to step.

use super::encode::{Arguments, BLOCK, Call, Sink, Unsupported, address};
use super::source::{Source, element_bytes, float, type_name};
use crate::ops::accumulate::Accumulate;

/// The kernel.
pub const SOURCE: Source = Source {
    name: "accumulate",
    file: "accumulate.cu",
};

/// Puts an operation into a sink.
///
/// # Errors
/// [`Unsupported`] where there is no kernel.
pub fn encode(op: &Accumulate, call: &Call<'_>, sink: &mut Sink<'_>) -> Result<(), Unsupported> {
    let (buffer, value, sum) = (call.input(0)?, call.input(1)?, call.output(0)?);
    let (kept, added) = (float(buffer)?, float(value)?);
    let pack = 16 / element_bytes(kept).max(element_bytes(added));
    let unit = SOURCE.with(&[
        ("Element", type_name(kept)?),
        ("Added", type_name(added)?),
        ("PACK", &pack.to_string()),
    ]);
    let rule = match op {
        Accumulate::Add => 0,
        Accumulate::Overwrite => 1,
        Accumulate::Gated => 2,
    };
    let elements = sum.ty.elements();
    let arguments = Arguments::new()
        .address(buffer.address)
        .address(value.address)
        .address(address(call.optional_input(2)))
        .address(sum.address)
        .size(elements)
        .u32(rule);
    let blocks = sink.blocks(elements, pack * BLOCK as usize);
    sink.launch(&unit, "accumulate", blocks, BLOCK, arguments);
    if let Some(updated) = call.optional_output(1) {
        sink.fill(updated.address, 1, updated.ty.bytes());
    }
    Ok(())
}
