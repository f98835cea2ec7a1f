//! The global norm of gradients, and what updates parameters.
//!
//! A parameter with a factored gradient is swept once, and nothing of its size is made beside it.

use super::Cuda;
use super::compile::Unit;
use super::control::{Control, NUMBERS, PARTIALS};
use super::driver::{DeviceError, Replay, Stream};
use super::encode::{Arguments, BLOCK, Sink, Unsupported};
use super::prepared::{Order, enqueue, located, resolve};
use crate::backend::Fault;
use crate::plan::{Operand, Plan, TrainedOperands};
use crate::program::Factor;
use crate::session::optimizer::{Optimizer, Step};
use bytemuck::{Pod, Zeroable};
use std::borrow::Cow;

/// The kernels.
pub const UNIT: Unit = Unit {
    name: "optimizer.cu",
    text: Cow::Borrowed(include_str!("optimizer.cu")),
};

/// `Cut` of the kernels.
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
struct Cut {
    features: u64,
    outputs: u64,
    groups: u64,
    size: u64,
    last: u32,
    shared: u32,
}

impl Cut {
    fn new(factor: &Factor<Operand>) -> Self {
        let size = factor.features.div_ceil(factor.groups.max(1));
        Cut {
            features: factor.features as u64,
            outputs: factor.outputs as u64,
            groups: factor.groups as u64,
            size: size as u64,
            last: u32::from(factor.features_last),
            shared: u32::from(factor.direction.ty.elements() == size),
        }
    }
}

/// `Numbers` of the kernels.
#[derive(Clone, Copy, Debug, Default)]
struct Numbers {
    scale: f32,
    decay: f32,
    momentum: f32,
    step: f32,
    keep: f32,
    fresh_mean: f32,
    beta2: f32,
    fresh_square: f32,
    root: f32,
    epsilon: f32,
}

/// What an optimiser needs of a step, computed in double precision and rounded once, as on the CPU.
pub fn numbers(optimizer: &Optimizer, step: &Step) -> [f32; NUMBERS] {
    let scale = step.gradient_scale;
    let numbers = match *optimizer {
        Optimizer::Sgd {
            momentum,
            weight_decay,
            ..
        } => Numbers {
            scale,
            decay: weight_decay as f32,
            momentum: momentum as f32,
            step: -step.learning_rate as f32,
            ..Numbers::default()
        },
        Optimizer::Adam {
            betas,
            epsilon,
            weight_decay,
        }
        | Optimizer::AdamW {
            betas,
            epsilon,
            weight_decay,
        } => {
            let number = step.number.max(1) as f64;
            let correction = betas.map(|beta| 1.0 - beta.powf(number));
            let decoupled = matches!(optimizer, Optimizer::AdamW { .. });
            let (added, kept) = match decoupled {
                true => (0.0, 1.0 - step.learning_rate * weight_decay),
                false => (weight_decay, 1.0),
            };
            Numbers {
                scale,
                decay: added as f32,
                keep: kept as f32,
                fresh_mean: (1.0 - betas[0]) as f32,
                beta2: betas[1] as f32,
                fresh_square: (1.0 - betas[1]) as f32,
                root: correction[1].sqrt() as f32,
                epsilon: epsilon as f32,
                step: (-step.learning_rate / correction[0]) as f32,
                ..Numbers::default()
            }
        }
        // There are no kernels for them: `parameter` refuses.
        Optimizer::GaLore { .. } | Optimizer::Flora { .. } => Numbers::default(),
    };
    let mut all = [0.0; NUMBERS];
    let Numbers {
        scale,
        decay,
        momentum,
        step,
        keep,
        fresh_mean,
        beta2,
        fresh_square,
        root,
        epsilon,
    } = numbers;
    let given = [
        scale,
        decay,
        momentum,
        step,
        keep,
        fresh_mean,
        beta2,
        fresh_square,
        root,
        epsilon,
    ];
    all[..given.len()].copy_from_slice(&given);
    all
}

/// Adds the squares of all gradients of a plan to the sum in the control block.
///
/// # Errors
/// Never, so far.
pub fn norm(
    plan: &Plan,
    block: u64,
    control: &Control,
    sink: &mut Sink<'_>,
) -> Result<(), DeviceError> {
    let partials = control.partial_sums();
    for trained in &plan.trained {
        let gradient = located(plan, &trained.gradient, block);
        let elements = gradient.ty.elements();
        if elements == 0 {
            continue;
        }
        let blocks = match &trained.factor {
            None => {
                let blocks = elements.div_ceil(4 * BLOCK as usize).min(PARTIALS) as u32;
                let arguments = Arguments::new()
                    .address(gradient.address)
                    .size(elements)
                    .address(partials);
                sink.launch(&UNIT, "partial_squares", blocks, BLOCK, arguments);
                blocks
            }
            Some(factor) => {
                let direction = located(plan, &factor.direction, block);
                let blocks = factor.groups.min(PARTIALS) as u32;
                let arguments = Arguments::new()
                    .address(gradient.address)
                    .address(direction.address)
                    .structure(&Cut::new(factor))
                    .address(partials);
                sink.launch(&UNIT, "partial_factored_squares", blocks, BLOCK, arguments);
                blocks
            }
        };
        let arguments = Arguments::new()
            .address(partials)
            .u32(blocks)
            .address(control.squares());
        sink.launch(&UNIT, "add_squares", 1, BLOCK, arguments);
    }
    Ok(())
}

/// An optimiser over a plan's parameters.
pub struct Update {
    // Dropped before the functions that it refers to.
    replay: Option<Replay>,
    optimizer: Optimizer,
    orders: Vec<Order>,
}

impl Update {
    /// Compiles what an optimiser needs.
    ///
    /// # Errors
    /// [`Fault`] where the plan is for another optimiser, or the device fails.
    pub fn new(
        cuda: &Cuda,
        plan: &Plan,
        optimizer: &Optimizer,
        block: u64,
        control: &Control,
    ) -> Result<Self, Fault> {
        let mut sink = Sink::new(cuda.context.facts(), control.context(), control.report());
        for trained in &plan.trained {
            parameter(plan, trained, optimizer, block, control, &mut sink).map_err(
                |Unsupported(message)| Fault::Data {
                    node: plan.buffer(trained.parameter.buffer).name.clone(),
                    op: "update",
                    message,
                },
            )?;
        }
        let orders = resolve(cuda, sink.finish().0).map_err(|error| cuda.fault(error))?;
        Ok(Update {
            replay: None,
            optimizer: *optimizer,
            orders,
        })
    }

    /// Whether it was made for that optimiser.
    pub fn is_for(&self, optimizer: &Optimizer) -> bool {
        self.optimizer == *optimizer
    }

    /// Enqueues the update.
    ///
    /// # Errors
    /// [`DeviceError`] where the device fails.
    pub fn launch(&mut self, cuda: &Cuda, stream: &Stream) -> Result<(), DeviceError> {
        let orders = &self.orders;
        if orders.is_empty() {
            return Ok(());
        }
        let replay = match &mut self.replay {
            Some(replay) => replay,
            none => none.insert(stream.capture(|| enqueue(orders, cuda, stream))?),
        };
        replay.launch(stream)
    }
}

/// The update of one parameter.
fn parameter(
    plan: &Plan,
    trained: &TrainedOperands,
    optimizer: &Optimizer,
    block: u64,
    control: &Control,
    sink: &mut Sink<'_>,
) -> Result<(), Unsupported> {
    let at = |operand| located(plan, operand, block);
    let parameter = at(&trained.parameter);
    let gradient = at(&trained.gradient);
    if optimizer.rank().is_some() {
        let name = optimizer.name();
        return Err(Unsupported(format!("{name} runs on the CPU only")));
    }
    let names = optimizer.state();
    let states: Vec<u64> = trained
        .state
        .iter()
        .map(|state| at(state).address)
        .collect();
    let elements = parameter.ty.elements();
    if states.len() != names.len() {
        return Err(Unsupported(format!(
            "{} tensors of optimiser state were planned, expected {}",
            states.len(),
            names.len()
        )));
    }
    if elements == 0 {
        return Ok(());
    }
    let state = |number: usize| states.get(number).copied().unwrap_or(0);
    let Some(factor) = &trained.factor else {
        let kernel = match optimizer {
            Optimizer::Sgd { nesterov: true, .. } if !states.is_empty() => "nesterov",
            Optimizer::Sgd { .. } if !states.is_empty() => "momentum",
            Optimizer::Sgd { .. } => "sgd",
            _ => "adam",
        };
        let arguments = Arguments::new()
            .address(control.numbers())
            .address(parameter.address)
            .address(gradient.address)
            .address(state(0))
            .address(state(1))
            .size(elements);
        let blocks = sink.blocks(elements, 4 * BLOCK as usize);
        sink.launch(&UNIT, kernel, blocks, BLOCK, arguments);
        return Ok(());
    };
    optimizer
        .check_factored()
        .map_err(|error| Unsupported(error.to_string()))?;
    let small = gradient.ty.elements();
    let (kernel, x, y) = match optimizer {
        Optimizer::Sgd { nesterov, .. } if !states.is_empty() => {
            let arguments = Arguments::new()
                .address(control.numbers())
                .address(gradient.address)
                .address(state(0))
                .size(small);
            let blocks = sink.blocks(small, BLOCK as usize);
            sink.launch(&UNIT, "momentum_state", blocks, BLOCK, arguments);
            match nesterov {
                true => ("factored_nesterov", gradient.address, state(0)),
                false => ("factored_momentum", state(0), state(0)),
            }
        }
        Optimizer::Sgd { .. } => ("factored_sgd", gradient.address, gradient.address),
        _ => {
            let arguments = Arguments::new()
                .address(control.numbers())
                .address(gradient.address)
                .address(state(0))
                .address(state(1))
                .size(small);
            let blocks = sink.blocks(small, BLOCK as usize);
            sink.launch(&UNIT, "adam_state", blocks, BLOCK, arguments);
            ("factored_adam", state(0), state(1))
        }
    };
    let rows = match factor.features_last {
        true => factor.outputs,
        false => factor.features,
    };
    let arguments = Arguments::new()
        .address(control.numbers())
        .address(parameter.address)
        .address(at(&factor.direction).address)
        .address(x)
        .address(y)
        .structure(&Cut::new(factor));
    let blocks = sink.blocks(rows, 1);
    sink.launch(&UNIT, kernel, blocks, BLOCK, arguments);
    Ok(())
}
