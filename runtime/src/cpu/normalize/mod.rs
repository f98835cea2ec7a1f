//! Softmax and normalisations, with their gradients.

mod batch;
mod layer;
mod softmax;

use super::Machine;
use super::memory::Call;
use super::number::with_float;
use crate::backend::StepContext;
use crate::ops::normalize::Normalize;
use crate::tensor::TensorType;

/// Bytes of scratch that an operation needs.
pub fn workspace(
    op: &Normalize,
    _machine: &Machine,
    _inputs: &[Option<&TensorType>],
    _outputs: &[Option<&TensorType>],
) -> usize {
    match op {
        Normalize::LayerGrad(op) => layer::grad_workspace(op),
        _ => 0,
    }
}

/// Executes an operation; the error says what is wrong with the data.
pub fn execute(op: &Normalize, _context: &StepContext, mut call: Call<'_>) -> Result<(), String> {
    let Some(first) = &call.inputs[0] else {
        return Err("the first input is missing".to_owned());
    };
    with_float!(first.ty.data_type, T => match op {
        Normalize::Softmax(op) => softmax::forward::<T>(op, &mut call),
        Normalize::SoftmaxGrad(op) => softmax::grad::<T>(op, &mut call),
        Normalize::Layer(op) => layer::forward::<T>(op, &mut call),
        Normalize::LayerGrad(op) => layer::grad::<T>(op, &mut call),
        Normalize::Batch(op) => batch::forward::<T>(op, &mut call),
        Normalize::BatchGrad(op) => batch::grad::<T>(op, &mut call),
    })
}
