//! Numbers from integers and scales.

use super::encode::{Call, Sink, Unsupported};
use crate::ops::dequantize::Dequantize;

/// Puts an operation into a sink.
///
/// # Errors
/// [`Unsupported`] where there is no kernel.
pub fn encode(_op: &Dequantize, _call: &Call<'_>, _sink: &mut Sink<'_>) -> Result<(), Unsupported> {
    Err(Unsupported("there is no kernel yet".to_owned()))
}
