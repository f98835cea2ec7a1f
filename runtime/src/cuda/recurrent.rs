//! Recurrent layers, with their gradients.

use super::encode::{Call, Sink, Unsupported};
use super::lt::Lt;
use crate::ops::recurrent::Recurrent;
use crate::tensor::TensorType;

/// Bytes of scratch.
pub fn workspace(
    _op: &Recurrent,
    _lt: &Lt,
    _inputs: &[Option<&TensorType>],
    _outputs: &[Option<&TensorType>],
) -> usize {
    0
}

/// Puts an operation into a sink.
///
/// # Errors
/// [`Unsupported`] where there is no kernel.
pub fn encode(_op: &Recurrent, _call: &Call<'_>, _sink: &mut Sink<'_>) -> Result<(), Unsupported> {
    Err(Unsupported("there is no kernel yet".to_owned()))
}
