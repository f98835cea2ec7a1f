//! What draws random numbers.

use super::Machine;
use super::memory::Call;
use crate::backend::StepContext;
use crate::ops::random::Random;
use crate::tensor::TensorType;

/// Bytes of scratch that an operation needs.
pub fn workspace(
    op: &Random,
    _machine: &Machine,
    _inputs: &[Option<&TensorType>],
    _outputs: &[Option<&TensorType>],
) -> usize {
    match *op {}
}

/// Executes an operation; the error says what is wrong with the data.
pub fn execute(op: &Random, _context: &StepContext, _call: Call<'_>) -> Result<(), String> {
    match *op {}
}
