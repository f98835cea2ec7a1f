//! What draws random numbers.

use super::encode::{Call, Sink, Unsupported};
use crate::ops::random::Random;

/// Puts an operation into a sink.
///
/// # Errors
/// [`Unsupported`] where there is no kernel.
pub fn encode(_op: &Random, _call: &Call<'_>, _sink: &mut Sink<'_>) -> Result<(), Unsupported> {
    Err(Unsupported("there is no kernel yet".to_owned()))
}
