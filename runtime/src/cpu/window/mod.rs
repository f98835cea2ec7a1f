//! Convolutions and pooling, with their gradients.

mod columns;
mod conv;
mod pool;

use super::Machine;
use super::memory::Call;
use crate::backend::StepContext;
use crate::ops::window::Window;
use crate::tensor::TensorType;
use velora_graph::shapes::DataType;

/// Work below which threads cost more than they give, in elements.
const PARALLEL: usize = 1 << 15;

/// Bytes of scratch that an operation needs.
pub fn workspace(
    op: &Window,
    machine: &Machine,
    inputs: &[Option<&TensorType>],
    _outputs: &[Option<&TensorType>],
) -> usize {
    let double = matches!(inputs, [Some(ty), ..] if ty.data_type == DataType::DOUBLE);
    let elements = match (op, double) {
        (Window::Conv(conv) | Window::ConvInput(conv), false) => {
            conv::scratch::<f32>(conv, machine)
        }
        (Window::Conv(conv) | Window::ConvInput(conv), true) => conv::scratch::<f64>(conv, machine),
        (Window::ConvWeight(conv), false) => conv::weight_scratch::<f32>(conv),
        (Window::ConvWeight(conv), true) => conv::weight_scratch::<f64>(conv),
        _ => 0,
    };
    elements.saturating_mul(if double { 8 } else { 4 })
}

/// Executes an operation; the error says what is wrong with the data.
pub fn execute(op: &Window, _context: &StepContext, call: Call<'_>) -> Result<(), String> {
    let Some(input) = &call.inputs[0] else {
        return Err("an operand is missing".to_owned());
    };
    match (op, input.ty.data_type) {
        (Window::Pool(pool), data_type) => pool::execute(pool, data_type, call),
        (_, DataType::FLOAT) => real::<f32>(op, call),
        (_, DataType::DOUBLE) => real::<f64>(op, call),
        _ => Err(format!("{} of {}", op.name(), input.ty)),
    }
}

fn real<T: super::product::Real>(op: &Window, call: Call<'_>) -> Result<(), String> {
    match op {
        Window::Conv(conv) => conv::forward::<T>(conv, call),
        Window::ConvInput(conv) => conv::input::<T>(conv, call),
        Window::ConvWeight(conv) => conv::weight::<T>(conv, call),
        Window::ChannelSum {
            batch,
            channels,
            positions,
        } => conv::channel_sum::<T>(*batch, *channels, *positions, call),
        Window::MaxGrad {
            size, positions, ..
        } => pool::max_grad::<T>(*size, *positions, call),
        Window::AverageGrad(pool) => pool::average_grad::<T>(pool, call),
        Window::Pool(_) => Ok(()),
    }
}
