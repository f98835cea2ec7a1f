//! Element-wise operators with broadcasting, casts among them.

mod kernels;
mod load;
mod tile;

use super::Machine;
use super::memory::Call;
use crate::backend::StepContext;
use crate::ops::elementwise::Elementwise;
use crate::tensor::TensorType;

/// Bytes of scratch that an operation needs.
pub fn workspace(
    op: &Elementwise,
    _machine: &Machine,
    _inputs: &[Option<&TensorType>],
    _outputs: &[Option<&TensorType>],
) -> usize {
    match op {
        Elementwise::Expression(_) => 0,
    }
}

/// Executes an operation; the error says what is wrong with the data.
pub fn execute(op: &Elementwise, _context: &StepContext, call: Call<'_>) -> Result<(), String> {
    match op {
        Elementwise::Expression(expression) => tile::execute(expression, call),
    }
}
