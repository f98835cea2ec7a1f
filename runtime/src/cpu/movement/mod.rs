//! What moves, repeats or cuts elements, and makes constant ones.

mod copy;

use super::Machine;
use super::memory::{Call, Data, Input, Output};
use super::rows::for_chunks;
use crate::backend::StepContext;
use crate::ops::movement::{Movement, Range, Trilu};
use crate::tensor::TensorType;
use bytemuck::Pod;
use half::{bf16, f16};
use velora_graph::shapes::DataType;

/// Elements below which a piece of work stays on one thread.
pub(in crate::cpu) const GRAIN: usize = 1 << 15;

/// Bytes of scratch that an operation needs.
pub fn workspace(
    _op: &Movement,
    _machine: &Machine,
    _inputs: &[Option<&TensorType>],
    _outputs: &[Option<&TensorType>],
) -> usize {
    0
}

/// Executes an operation; the error says what is wrong with the data.
pub fn execute(op: &Movement, _context: &StepContext, mut call: Call<'_>) -> Result<(), String> {
    match op {
        Movement::Copy(op) => copy::copy(op, &mut call),
        Movement::Trilu(op) => {
            let ([Some(input), diagonal, ..], [Some(output), ..]) =
                (&call.inputs, &mut call.outputs)
            else {
                return Err(missing());
            };
            let given = diagonal.map(|d| d.elements::<i64>().first().copied().unwrap_or(0));
            let diagonal = op.diagonal.or(given).unwrap_or(0);
            match output.ty.data_type.bits() {
                Some(8) => triangle::<u8>(op, diagonal, input, output),
                Some(16) => triangle::<u16>(op, diagonal, input, output),
                Some(32) => triangle::<u32>(op, diagonal, input, output),
                _ => triangle::<u64>(op, diagonal, input, output),
            }
            Ok(())
        }
        Movement::Range(op) => match &mut call.outputs[0] {
            Some(output) => range(op, output),
            None => Err(missing()),
        },
    }
}

/// What an operation without one of its operands says.
pub(in crate::cpu) fn missing() -> String {
    "an operand is missing".to_owned()
}

fn triangle<T: Pod + Send + Sync>(
    op: &Trilu,
    diagonal: i64,
    input: &Input<'_>,
    output: &mut Output<'_>,
) {
    let columns = op.columns;
    if columns == 0 || op.rows == 0 {
        return;
    }
    let source = match input.data {
        Data::Shared(_) => Some(input.elements::<T>()),
        Data::InOutput(_) => None,
    };
    for_chunks(output.elements::<T>(), columns, GRAIN, &|number, row| {
        if let Some(source) = source {
            row.copy_from_slice(&source[number * columns..][..columns]);
        }
        // The first column on the diagonal, and the one behind it.
        let first = ((number % op.rows) as i64).saturating_add(diagonal);
        let clamp = |place: i64| place.clamp(0, columns as i64) as usize;
        match op.upper {
            true => row[..clamp(first)].fill(T::zeroed()),
            false => row[clamp(first.saturating_add(1))..].fill(T::zeroed()),
        }
    });
}

fn range(op: &Range, output: &mut Output<'_>) -> Result<(), String> {
    match (*op, output.ty.data_type) {
        (Range::Integers { start, step }, data_type) => {
            let element = |i: usize| start.wrapping_add(step.wrapping_mul(i as i64));
            match data_type {
                DataType::INT64 => sequence(output, element),
                DataType::INT32 => sequence(output, |i| element(i) as i32),
                DataType(5) => sequence(output, |i| element(i) as i16),
                _ => return Err("a sequence of another type".to_owned()),
            }
        }
        (Range::Floats { start, step }, data_type) => {
            let element = |i: usize| start + step * i as f64;
            match data_type {
                DataType::FLOAT => sequence(output, |i| element(i) as f32),
                DataType::DOUBLE => sequence(output, element),
                DataType::FLOAT16 => sequence(output, |i| f16::from_f64(element(i))),
                DataType::BFLOAT16 => sequence(output, |i| bf16::from_f64(element(i))),
                _ => return Err("a sequence of another type".to_owned()),
            }
        }
    }
    Ok(())
}

fn sequence<T: Pod + Send>(output: &mut Output<'_>, element: impl Fn(usize) -> T + Sync) {
    for_chunks(output.elements::<T>(), GRAIN, GRAIN, &|number, chunk| {
        for (place, to) in (number * GRAIN..).zip(chunk) {
            *to = element(place);
        }
    });
}
