//! Softmax and normalisations, with their gradients.

mod batch;
mod layer;
mod softmax;

pub use batch::SOURCE as BATCH;
pub use layer::SOURCE as LAYER;
pub use softmax::SOURCE as SOFTMAX;

use super::encode::{Call, Sink, Unsupported};
use crate::ops::normalize::Normalize;
use crate::tensor::TensorType;

/// Bytes of scratch.
pub fn workspace(
    op: &Normalize,
    inputs: &[Option<&TensorType>],
    _outputs: &[Option<&TensorType>],
) -> usize {
    match op {
        Normalize::LayerGrad(op) => layer::grad_workspace(op, inputs),
        Normalize::Batch(op) => batch::workspace(op),
        Normalize::BatchGrad(op) => batch::grad_workspace(op),
        Normalize::Softmax(_) | Normalize::SoftmaxGrad(_) | Normalize::Layer(_) => 0,
    }
}

/// Puts an operation into a sink.
///
/// # Errors
/// [`Unsupported`] where there is no kernel.
pub fn encode(op: &Normalize, call: &Call<'_>, sink: &mut Sink<'_>) -> Result<(), Unsupported> {
    match op {
        Normalize::Softmax(op) => softmax::encode(op, call, sink),
        Normalize::SoftmaxGrad(op) => softmax::encode_grad(op, call, sink),
        Normalize::Layer(op) => layer::encode(op, call, sink),
        Normalize::LayerGrad(op) => layer::encode_grad(op, call, sink),
        Normalize::Batch(op) => batch::encode(op, call, sink),
        Normalize::BatchGrad(op) => batch::encode_grad(op, call, sink),
    }
}
