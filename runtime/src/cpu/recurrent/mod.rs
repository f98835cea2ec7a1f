//! Recurrent layers, with their gradients.
//!
//! The input's part of the gates is one product over all steps; a step adds the state's part.

mod forward;
mod gru_grad;
mod lstm_grad;
mod shared;

use super::Machine;
use super::memory::Call;
use super::product::Real;
use crate::backend::StepContext;
use crate::ops::recurrent::Recurrent;
use crate::tensor::TensorType;
use velora_graph::shapes::DataType;

/// Bytes of scratch that an operation needs.
pub fn workspace(
    op: &Recurrent,
    _machine: &Machine,
    inputs: &[Option<&TensorType>],
    outputs: &[Option<&TensorType>],
) -> usize {
    match inputs {
        [Some(ty), ..] if ty.data_type == DataType::DOUBLE => {
            scratch::<f64>(op, outputs).saturating_mul(8)
        }
        _ => scratch::<f32>(op, outputs).saturating_mul(4),
    }
}

/// Elements of scratch.
pub(crate) fn scratch<T: Real>(op: &Recurrent, outputs: &[Option<&TensorType>]) -> usize {
    match op {
        Recurrent::Forward(layer) => {
            forward::scratch::<T>(layer, matches!(outputs.get(4), Some(Some(_))))
        }
        Recurrent::LstmGrad(sizes) => lstm_grad::scratch::<T>(*sizes),
        Recurrent::GruGrad { sizes, .. } => gru_grad::scratch::<T>(*sizes),
    }
}

/// Executes an operation; the error says what is wrong with the data.
pub fn execute(op: &Recurrent, _context: &StepContext, call: Call<'_>) -> Result<(), String> {
    match &call.inputs[0] {
        Some(input) if input.ty.data_type == DataType::DOUBLE => real::<f64>(op, call),
        Some(_) => real::<f32>(op, call),
        None => Err("an operand is missing".to_owned()),
    }
}

/// Executes an operation on elements of a type that layers compute in, whatever the operands' types say.
pub(crate) fn real<T: Real>(op: &Recurrent, call: Call<'_>) -> Result<(), String> {
    match op {
        Recurrent::Forward(layer) => forward::execute::<T>(layer, call),
        Recurrent::LstmGrad(sizes) => lstm_grad::execute::<T>(*sizes, call),
        Recurrent::GruGrad {
            sizes,
            linear_before_reset,
        } => gru_grad::execute::<T>(*sizes, *linear_before_reset, call),
    }
}
