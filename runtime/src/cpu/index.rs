//! What reads or writes at places given by a tensor.

use super::Machine;
use super::memory::Call;
use crate::backend::StepContext;
use crate::ops::index::Index;
use crate::tensor::TensorType;

/// Bytes of scratch that an operation needs.
pub fn workspace(
    op: &Index,
    _machine: &Machine,
    _inputs: &[Option<&TensorType>],
    _outputs: &[Option<&TensorType>],
) -> usize {
    match *op {}
}

/// Executes an operation; the error says what is wrong with the data.
pub fn execute(op: &Index, _context: &StepContext, _call: Call<'_>) -> Result<(), String> {
    match *op {}
}
