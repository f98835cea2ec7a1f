//! What the optimiser's kernels cost: the update of a parameter, and the norm of its gradient.

use super::{Cost, Storage, elements};
use crate::plan::{Operand, TrainedOperands};
use crate::session::optimizer::Optimizer;
use velora_graph::shapes::DataType;

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
        // Where they compress nothing; `Optimizer::check_factored` refuses factors.
        Optimizer::AdamW { .. } | Optimizer::GaLore { .. } => adam(factored),
        // (1 − t⁻⁰·⁸) V + t⁻⁰·⁸ (G² + ε), U, M, the root mean square of M, and the weight.
        Optimizer::Flora { .. } => Formula {
            state: 1 + 5 + 2 + 3 + 2,
            weight: 3,
        },
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
/// The state that counts is what the optimiser keeps, whether or not the plan has places for it. Of optimisers
/// that compress, the update is one in which no projection changes.
pub fn update(trained: &TrainedOperands, optimizer: &Optimizer, storage: Storage) -> Cost {
    if optimizer.rank().is_some()
        && let &[rows, columns] = &trained.parameter.ty.shape[..]
    {
        let sizes = [rows, columns].map(|size| size as u64);
        let compressed = trained.projected && optimizer.projects(&[rows, columns]);
        match optimizer {
            Optimizer::GaLore { rank, .. } if compressed => return galore(sizes, *rank, storage),
            Optimizer::Flora { rank, .. } => {
                let rank = compressed.then_some(*rank);
                return flora(sizes, rank, storage);
            }
            _ => {}
        }
    }
    let bytes = |operand: &Operand| storage.bytes(operand.ty.data_type, elements(&operand.ty));
    let shape = &trained.parameter.ty.shape;
    let state = optimizer.layout(shape, false).len() as u64 * bytes(&trained.gradient);
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

/// GaLore of a matrix that is compressed: L = P G; the moments, and N in the place of L; W keep + η Pᵀ N.
fn galore([rows, columns]: [u64; 2], rank: u64, storage: Storage) -> Cost {
    let bytes = |count: u64| storage.bytes(DataType::FLOAT, count);
    let (whole, small) = (rows * columns, rank * rows.max(columns));
    let projector = rank * rows.min(columns);
    let down = Cost {
        read: bytes(whole) + bytes(projector),
        written: bytes(small),
        flops: 2 * rank * whole + small,
    };
    let moments = Cost {
        read: 3 * bytes(small),
        written: 3 * bytes(small),
        flops: (3 + 4 + 4) * small,
    };
    let up = Cost {
        read: bytes(whole) + bytes(projector) + bytes(small),
        written: bytes(whole),
        flops: 2 * rank * whole + 3 * whole,
    };
    [down, moments, up].into_iter().sum()
}

/// FLORA of a matrix: the gradient's squares by row and by column, then U in its place, which is compressed
/// and becomes the update; its root mean square; the weight; the compressed moment. What is not compressed
/// has a whole moment in the place of the update. Drawing a projection writes it, and takes no operations
/// that are counted here: they are mostly of whole numbers.
fn flora([rows, columns]: [u64; 2], rank: Option<u64>, storage: Storage) -> Cost {
    let bytes = |count: u64| storage.bytes(DataType::FLOAT, count);
    let whole = rows * columns;
    let sides = bytes(rows) + bytes(columns);
    let squares = Cost {
        read: 2 * bytes(whole) + sides,
        written: sides,
        flops: 4 * whole + 5 * (rows + columns),
    };
    let whiten = Cost {
        read: bytes(whole) + sides,
        written: bytes(whole),
        flops: 3 * whole + 4 * rows,
    };
    let descend = Cost {
        read: 3 * bytes(whole),
        written: bytes(whole),
        flops: (2 + 3) * whole,
    };
    let moment = match rank {
        None => Cost {
            read: 2 * bytes(whole),
            written: bytes(whole),
            flops: 3 * whole,
        },
        Some(rank) => {
            let (small, projection) = (rank * rows.max(columns), rank * rows.min(columns));
            Cost {
                // U down, the moment up and added to U, and both compressed ones together.
                read: 2 * bytes(whole) + 2 * bytes(projection) + 3 * bytes(small),
                written: bytes(whole) + bytes(projection) + 2 * bytes(small),
                flops: 4 * rank * whole + 3 * whole + 3 * small,
            }
        }
    };
    [squares, whiten, descend, moment].into_iter().sum()
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
