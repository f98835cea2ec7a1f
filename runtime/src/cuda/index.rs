//! What reads or writes at places given by a tensor.

use super::encode::{Call, Sink, Unsupported};
use crate::ops::index::Index;
use crate::tensor::TensorType;

/// Bytes of scratch.
pub fn workspace(
    _op: &Index,
    _inputs: &[Option<&TensorType>],
    _outputs: &[Option<&TensorType>],
) -> usize {
    0
}

/// Puts an operation into a sink.
///
/// # Errors
/// [`Unsupported`] where there is no kernel.
pub fn encode(_op: &Index, _call: &Call<'_>, _sink: &mut Sink<'_>) -> Result<(), Unsupported> {
    Err(Unsupported("there is no kernel yet".to_owned()))
}
