//! Sums kept in a buffer from step to step.

use super::Machine;
use super::memory::{Call, Data, Input, Output};
use super::movement::{GRAIN, missing};
use super::rows::for_chunks;
use crate::backend::StepContext;
use crate::ops::accumulate::Accumulate;
use crate::tensor::TensorType;
use bytemuck::Pod;
use half::{bf16, f16};
use velora_graph::shapes::DataType;

/// Bytes of scratch that an operation needs.
pub fn workspace(
    _op: &Accumulate,
    _machine: &Machine,
    _inputs: &[Option<&TensorType>],
    _outputs: &[Option<&TensorType>],
) -> usize {
    0
}

/// Executes an operation; the error says what is wrong with the data.
pub fn execute(op: &Accumulate, _context: &StepContext, mut call: Call<'_>) -> Result<(), String> {
    let [Some(buffer), Some(value), flag, ..] = &call.inputs else {
        return Err(missing());
    };
    let [Some(sum), updated, ..] = &mut call.outputs else {
        return Err(missing());
    };
    let flag = flag.is_some_and(|flag| flag.elements::<u8>().first().is_some_and(|&set| set != 0));
    let rule = match (op, flag) {
        (Accumulate::Overwrite, true) => Rule::Value,
        (Accumulate::Gated, false) => Rule::Buffer,
        _ => Rule::Sum,
    };
    match (sum.ty.data_type, value.ty.data_type) {
        (DataType::FLOAT, DataType::FLOAT) => {
            add(rule, buffer, value, sum, |a: f32, b: f32| a + b, |b| b)
        }
        (DataType::FLOAT, DataType::FLOAT16) => {
            add(
                rule,
                buffer,
                value,
                sum,
                |a: f32, b: f16| a + b.to_f32(),
                f16::to_f32,
            );
        }
        (DataType::FLOAT, DataType::BFLOAT16) => {
            add(
                rule,
                buffer,
                value,
                sum,
                |a: f32, b: bf16| a + b.to_f32(),
                bf16::to_f32,
            );
        }
        (DataType::DOUBLE, DataType::DOUBLE) => {
            add(rule, buffer, value, sum, |a: f64, b: f64| a + b, |b| b);
        }
        (DataType::FLOAT16, DataType::FLOAT16) => {
            add(
                rule,
                buffer,
                value,
                sum,
                |a: f16, b: f16| f16::from_f32(a.to_f32() + b.to_f32()),
                |b| b,
            );
        }
        (DataType::BFLOAT16, DataType::BFLOAT16) => {
            add(
                rule,
                buffer,
                value,
                sum,
                |a: bf16, b: bf16| bf16::from_f32(a.to_f32() + b.to_f32()),
                |b| b,
            );
        }
        _ => return Err(format!("cannot add {} to {}", value.ty, sum.ty)),
    }
    if let Some(updated) = updated {
        updated.bytes.fill(1);
    }
    Ok(())
}

/// What the sum becomes.
#[derive(Clone, Copy)]
enum Rule {
    Sum,
    Value,
    Buffer,
}

fn add<T: Pod + Send + Sync, V: Pod + Send + Sync>(
    rule: Rule,
    buffer: &Input<'_>,
    value: &Input<'_>,
    sum: &mut Output<'_>,
    plus: impl Fn(T, V) -> T + Sync,
    widen: impl Fn(V) -> T + Sync,
) {
    let other = match buffer.data {
        Data::Shared(_) => Some(buffer.elements::<T>()),
        Data::InOutput(_) => None,
    };
    let sum = sum.elements::<T>();
    // Where the tensor lies in the output as well, it is the buffer: x + x.
    let value = match value.data {
        Data::Shared(_) => Some(value.elements::<V>()),
        Data::InOutput(_) => None,
    };
    for_chunks(sum, GRAIN, GRAIN, &|number, sum| {
        let start = number * GRAIN;
        let span = start..start + sum.len();
        if let (Some(other), Rule::Sum | Rule::Buffer) = (other, rule) {
            sum.copy_from_slice(&other[span.clone()]);
        }
        match (rule, value) {
            (Rule::Buffer, _) | (Rule::Value, None) => {}
            (Rule::Value, Some(value)) => {
                for (sum, &value) in sum.iter_mut().zip(&value[span]) {
                    *sum = widen(value);
                }
            }
            (Rule::Sum, Some(value)) => {
                for (sum, &value) in sum.iter_mut().zip(&value[span]) {
                    *sum = plus(*sum, value);
                }
            }
            (Rule::Sum, None) => {
                for sum in sum {
                    // Both operands are one tensor, so both have its type.
                    let value: V = bytemuck::cast(*sum);
                    *sum = plus(*sum, value);
                }
            }
        }
    });
}
