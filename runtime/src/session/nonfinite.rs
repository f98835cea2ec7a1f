//! What made the loss infinite or no number.

use crate::backend::Observer;
use crate::plan::Step;
use crate::tensor::TensorView;
use std::fmt;
use std::time::Instant;
use thiserror::Error;
use velora_graph::shapes::DataType;

/// Infinity or no number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found {
    /// No number.
    NotANumber,
    /// An infinity.
    Infinity,
}

impl fmt::Display for Found {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Found::NotANumber => "NaN",
            Found::Infinity => "infinity",
        })
    }
}

/// The loss is no finite number.
#[derive(Clone, Debug, PartialEq, Error)]
#[error("step {step}: the loss is {loss}; {place}; try a lower learning rate, or --clip")]
pub struct NonFinite {
    /// The step.
    pub step: u64,
    /// The loss.
    pub loss: f64,
    /// The first tensor that went wrong, in words.
    pub place: String,
}

impl NonFinite {
    /// A parameter that an update made so.
    pub fn parameter(step: u64, loss: f64, name: &str, found: Found) -> Self {
        NonFinite {
            step,
            loss,
            place: format!("parameter '{name}' has {found} since the update before this step"),
        }
    }
}

/// The worst of what a tensor holds, `None` where all numbers are finite.
pub fn found(tensor: TensorView<'_>) -> Option<Found> {
    /// By the bits of the exponent and of the fraction, for any float format.
    fn classify(bits: u64, exponent: u64, fraction: u64) -> Option<Found> {
        (bits & exponent == exponent).then_some(match bits & fraction {
            0 => Found::Infinity,
            _ => Found::NotANumber,
        })
    }
    let (bytes, exponent, fraction) = match tensor.data_type {
        DataType::FLOAT => (4, 0x7f80_0000, 0x007f_ffff),
        DataType::DOUBLE => (8, 0x7ff0_0000_0000_0000, 0x000f_ffff_ffff_ffff),
        DataType::FLOAT16 => (2, 0x7c00, 0x03ff),
        DataType::BFLOAT16 => (2, 0x7f80, 0x007f),
        _ => return None,
    };
    let mut worst = None;
    for element in tensor.bytes.chunks_exact(bytes) {
        let mut bits = [0; 8];
        bits[..bytes].copy_from_slice(element);
        match classify(u64::from_le_bytes(bits), exponent, fraction) {
            Some(Found::NotANumber) => return Some(Found::NotANumber),
            Some(Found::Infinity) => worst = Some(Found::Infinity),
            None => {}
        }
    }
    worst
}

/// Watches an execution for the first tensor that is not finite.
///
/// Infinities can be meant (masks), so the first tensor with NaN is what counts; only where there is none,
/// the first with an infinity.
#[derive(Debug, Default)]
pub struct Search {
    not_a_number: Option<String>,
    infinity: Option<String>,
}

impl Observer for Search {
    fn finished(
        &mut self,
        _number: usize,
        step: &Step,
        _times: (Instant, Instant),
        written: &mut dyn Iterator<Item = (usize, &[u8])>,
    ) {
        for (output, bytes) in written {
            let Some(operand) = step.outputs.get(output).and_then(Option::as_ref) else {
                continue;
            };
            let tensor = TensorView {
                data_type: operand.ty.data_type,
                shape: &operand.ty.shape,
                bytes,
            };
            let place = match found(tensor) {
                Some(Found::NotANumber) => &mut self.not_a_number,
                Some(Found::Infinity) => &mut self.infinity,
                None => continue,
            };
            place.get_or_insert_with(|| {
                let op = step.op.name();
                format!(
                    "output {output} of node '{}' ({op}), {}",
                    step.node, operand.ty
                )
            });
        }
    }
}

impl Search {
    /// What was found.
    pub fn outcome(self, step: u64, loss: f64, complete: bool) -> NonFinite {
        let place = match (self.not_a_number, self.infinity) {
            (Some(place), _) => format!("the first tensor with NaN is {place}"),
            (None, Some(place)) => format!("the first tensor with an infinity is {place}"),
            (None, None) if complete => {
                "executed again, no tensor has NaN or an infinity".to_owned()
            }
            (None, None) => "the step could not be executed again".to_owned(),
        };
        NonFinite { step, loss, place }
    }
}
