//! What the optimiser's kernels cost: the update of a parameter, and the norm of its gradient.

use super::{Cost, Storage, elements};
use crate::plan::{Operand, TrainedOperands};
use crate::session::optimizer::Optimizer;

/// Operations by element: those on the gradient and the state, and those on the weight.
struct Formula {
    state: u64,
    weight: u64,
}

/// Of the formulas of [`Optimizer::update`] and [`Optimizer::update_factored`]; the gradient has a factor.
fn formula(optimizer: &Optimizer, factored: bool) -> Formula {
    let decays = |decay: f64| 2 * u64::from(decay != 0.0);
    // What makes v ⊗ P of P, in the weight's sweep.
    let spread = u64::from(factored);
    match *optimizer {
        Optimizer::Sgd {
            momentum,
            nesterov,
            weight_decay,
        } => {
            // d = μ d + g, and with Nesterov g + μ d.
            let direction = 2 * u64::from(momentum != 0.0) + 2 * u64::from(nesterov);
            Formula {
                state: 1 + direction,
                // w += η d, with decay added to the gradient before.
                weight: 2 + decays(weight_decay) + spread,
            }
        }
        Optimizer::Adam { weight_decay, .. } => {
            let mut formula = adam(factored);
            formula.weight += decays(weight_decay);
            formula
        }
        Optimizer::AdamW { .. } => adam(factored),
    }
}

/// The mean is m + (1 − β₁)(g − m), the mean square β₂ s + (1 − β₂) g²: 1 + 3 + 4 operations with the
/// gradient's factor. The weight is w keep + η m / (√s / r + ε): 7. Factored, √s / r is of the state's size,
/// and the weight is w keep + η v m / (|v| s + ε): 8.
fn adam(factored: bool) -> Formula {
    match factored {
        false => Formula {
            state: 8,
            weight: 7,
        },
        true => Formula {
            state: 8 + 2,
            weight: 8,
        },
    }
}

/// What the update of a trained parameter costs: parameter and state are read and written, the gradient is
/// read. Of a factored gradient that is P and its direction, and the state has P's size.
///
/// The state that counts is what the optimiser keeps, whether or not the plan has places for it.
pub fn update(trained: &TrainedOperands, optimizer: &Optimizer, storage: Storage) -> Cost {
    let bytes = |operand: &Operand| storage.bytes(operand.ty.data_type, elements(&operand.ty));
    let state = optimizer.state().len() as u64 * bytes(&trained.gradient);
    let kept = bytes(&trained.parameter) + state;
    let factor = trained.factor.as_ref();
    let formula = formula(optimizer, factor.is_some());
    Cost {
        read: kept + bytes(&trained.gradient) + factor.map_or(0, |factor| bytes(&factor.direction)),
        written: kept,
        flops: formula.state * elements(&trained.gradient.ty)
            + formula.weight * elements(&trained.parameter.ty),
    }
}

/// What a parameter's part of the norm of all gradients costs: a square and a sum by element; of a factored
/// gradient, of P and of its direction.
pub fn gradient_norm(trained: &TrainedOperands, storage: Storage) -> Cost {
    let direction = trained.factor.as_ref().map(|factor| &factor.direction);
    let read = [&trained.gradient].into_iter().chain(direction);
    let part = |operand: &Operand| Cost {
        read: storage.bytes(operand.ty.data_type, elements(&operand.ty)),
        written: 0,
        flops: 2 * elements(&operand.ty),
    };
    read.map(part).sum()
}
