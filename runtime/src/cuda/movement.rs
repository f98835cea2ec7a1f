//! What moves, repeats or cuts elements, and makes constant ones.

use super::encode::{Call, Sink, Unsupported};
use crate::ops::movement::Movement;

/// Puts an operation into a sink.
///
/// # Errors
/// [`Unsupported`] where there is no kernel.
pub fn encode(_op: &Movement, _call: &Call<'_>, _sink: &mut Sink<'_>) -> Result<(), Unsupported> {
    Err(Unsupported("there is no kernel yet".to_owned()))
}
