//! Optimisers that run outside the graph: SGD with momentum, Adam and AdamW, as PyTorch defines them, and
//! [GaLore](Optimizer::GaLore) and [FLORA](Optimizer::Flora), which compress the gradients of matrices.
//!
//! [`Optimizer::update`] passes over memory once, in chunks whose borders depend on the length only, and
//! computes each element alone, with additions, multiplications, divisions and square roots that are
//! rounded one by one. The bits are therefore the same for any number of threads and on any processor.
//! [`Optimizer::update_factored`] does the same from a gradient that is a direction times a small tensor,
//! and keeps state of the size of the small tensor. [`Optimizer::update_shaped`] is for all optimisers, and the
//! only one for those that compress.

mod factored;
mod full;
mod projected;

pub use factored::Factor;
pub use projected::{Parameter, State};

use crate::cpu::gemm::GemmError;
use factored::Momentum;
use full::{Adam, Sgd};
use serde::{Deserialize, Serialize};

/// Elements that one thread takes at a time: 64 KiB of each tensor.
pub(super) const CHUNK: usize = 1 << 14;

/// An optimiser with its settings; the learning rate comes from a [`super::schedule::Schedule`].
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase", deny_unknown_fields)]
pub enum Optimizer {
    /// Stochastic gradient descent, `torch.optim.SGD` with dampening 0.
    Sgd {
        /// What remains of the last direction; 0 needs no state.
        momentum: f64,
        /// Looks ahead along the direction (Nesterov).
        nesterov: bool,
        /// Added to the gradient, times the parameter.
        weight_decay: f64,
    },
    /// D. P. Kingma, J. Ba: Adam, a method for stochastic optimization (ICLR 2015); `torch.optim.Adam`.
    Adam {
        /// What remains of the mean gradient and of the mean square.
        betas: [f64; 2],
        /// Added to the root of the mean square.
        epsilon: f64,
        /// Added to the gradient, times the parameter.
        weight_decay: f64,
    },
    /// I. Loshchilov, F. Hutter: Decoupled weight decay regularization (ICLR 2019);
    /// `torch.optim.AdamW`.
    AdamW {
        /// What remains of the mean gradient and of the mean square.
        betas: [f64; 2],
        /// Added to the root of the mean square.
        epsilon: f64,
        /// Times the learning rate, what the parameter loses in each step.
        weight_decay: f64,
    },
    /// J. Zhao et al.: GaLore, memory-efficient LLM training by gradient low-rank projection (ICML 2024,
    /// arXiv 2403.03507), with AdamW; the authors' `galore-torch` with its default kind of projection.
    ///
    /// The gradient of a matrix is projected along its smaller side onto its own first singular vectors, Adam
    /// works in that space, and what it makes is projected back. What is no matrix, has a side of at most
    /// `rank`, or is not to be projected gets plain AdamW. Otherwise than there, decay comes before the update
    /// and epsilon is added after the bias correction, as in `torch.optim.AdamW`.
    GaLore {
        /// R, the number of singular vectors.
        rank: u64,
        /// T: they are those of the gradients of steps 1, 1 + T, 1 + 2T, …
        update_period: u64,
        /// What updates of projected matrices are multiplied with, beside the learning rate.
        scale: f64,
        /// What remains of the mean gradient and of the mean square.
        betas: [f64; 2],
        /// Added to the root of the mean square.
        epsilon: f64,
        /// Times the learning rate, what the parameter loses in each step.
        weight_decay: f64,
    },
    /// Y. Hao, Y. Cao, L. Mou: FLORA, low-rank adapters are secretly gradient compressors (ICML 2024,
    /// arXiv 2402.03293); the authors' `flora-opt`.
    ///
    /// N. Shazeer, M. Stern: Adafactor (ICML 2018) with a first moment that is compressed along the smaller
    /// side of a matrix by a random projection, which is drawn from a seed and never kept. Mean squares are
    /// kept by row and by column of each matrix; what is no matrix has them whole, and a whole first moment,
    /// as have matrices with a side of at most `rank` and those that are not to be projected.
    ///
    /// Of the settings of `flora-opt` these are taken: no `relative_step`, since the learning rate is given;
    /// no `scale_parameter` (its default there), so that the learning rate is the root mean square of a step
    /// as it is of Adam's, and not that of a parameter times it; `decay_rate` −0.8, `clip_threshold` 1, and
    /// 1e-30 added to squares, its defaults; `beta1` has none there that compresses. Matrices with one side
    /// more than four times the other, which it leaves out as embeddings, are compressed as others are.
    Flora {
        /// R, the rows of a projection.
        rank: u64,
        /// K: a projection is drawn anew at steps K, 2K, …
        update_period: u64,
        /// What remains of the first moment.
        beta: f64,
        /// Times the learning rate, what the parameter loses in each step.
        weight_decay: f64,
        /// Of the projections.
        seed: u64,
    },
}

/// What changes from step to step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Step {
    /// The number of this step, from 1: the bias correction needs it.
    pub number: u64,
    /// The learning rate.
    pub learning_rate: f64,
    /// What the gradient is multiplied with before all else: the reciprocal of the number of
    /// accumulated gradients, and the coefficient of clipping.
    pub gradient_scale: f32,
}

/// Why an update did not happen, or a setting is not accepted.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum OptimizerError {
    /// A setting outside its range.
    #[error("{setting} is {found}, expected {expected}")]
    Setting {
        /// The setting's name.
        setting: &'static str,
        /// Its value.
        found: f64,
        /// The range.
        expected: &'static str,
    },
    /// Slices of different lengths.
    #[error("{what} has {found} elements, but the parameter has {expected}")]
    Length {
        /// Which tensor.
        what: &'static str,
        /// Its length.
        found: usize,
        /// The parameter's.
        expected: usize,
    },
    /// Too many or too few tensors of state.
    #[error("{found} tensors of optimiser state were given, expected {expected}")]
    States {
        /// How many were given.
        found: usize,
        /// How many the optimiser has.
        expected: usize,
    },
    /// A slice that has not the length that a [`Factor`] gives it.
    #[error("{what} has {found} elements, but its factor says {expected}")]
    FactoredLength {
        /// Which tensor.
        what: &'static str,
        /// Its length.
        found: usize,
        /// The length by the factor.
        expected: usize,
    },
    /// A [`Factor`] that no tensor can have.
    #[error("{groups} groups of {features} features, {outputs} outputs: {reason}")]
    Layout {
        /// The groups.
        groups: usize,
        /// The features that are cut into groups.
        features: usize,
        /// The outputs.
        outputs: usize,
        /// What is wrong.
        reason: &'static str,
    },
    /// State that does not factor, because the parameter's decay enters it.
    #[error(
        "weight decay {weight_decay} is added to the gradient, so its mean is not the direction times a \
         smaller mean: use adamw, or no weight decay"
    )]
    CoupledDecay {
        /// The decay.
        weight_decay: f64,
    },
    /// A factored gradient for an optimiser that compresses whole ones.
    #[error(
        "{optimizer} compresses gradients itself, and needs them whole: rewrite the graph without \
         --gradients factored, or use adamw"
    )]
    Whole {
        /// The optimiser.
        optimizer: &'static str,
    },
    /// An optimiser that compresses, called without what it needs for that.
    #[error("{optimizer} updates by the shapes of parameters, which were not given")]
    Shapeless {
        /// The optimiser.
        optimizer: &'static str,
    },
    /// A gradient without singular vectors.
    #[error(
        "the gradient is no number somewhere, so that it has no singular vectors; try a lower learning rate"
    )]
    NotFinite,
    /// A product that the sizes do not allow.
    #[error(transparent)]
    Product(#[from] GemmError),
}

impl Optimizer {
    /// The name, as options and checkpoints have it.
    pub fn name(&self) -> &'static str {
        match self {
            Optimizer::Sgd { .. } => "sgd",
            Optimizer::Adam { .. } => "adam",
            Optimizer::AdamW { .. } => "adamw",
            Optimizer::GaLore { .. } => "galore",
            Optimizer::Flora { .. } => "flora",
        }
    }

    /// The names of the tensors of state that parameters have, zero at first. With SGD, Adam and AdamW each
    /// parameter has all of them, of its own shape; otherwise [`Optimizer::layout`] says which, and of what
    /// shapes.
    pub fn state(&self) -> &'static [&'static str] {
        match self {
            Optimizer::Sgd { momentum, .. } if *momentum == 0.0 => &[],
            Optimizer::Sgd { .. } => &["momentum_buffer"],
            Optimizer::Adam { .. } | Optimizer::AdamW { .. } => &["exp_avg", "exp_avg_sq"],
            Optimizer::GaLore { .. } => &["projector", "exp_avg", "exp_avg_sq"],
            Optimizer::Flora { .. } => {
                &["exp_avg", "exp_avg_sq", "exp_avg_sq_row", "exp_avg_sq_col"]
            }
        }
    }

    /// Whether the settings lie in their ranges.
    pub fn check(&self) -> Result<(), OptimizerError> {
        let within = |setting, found: f64, valid: bool, expected| match valid {
            true => Ok(()),
            false => Err(OptimizerError::Setting {
                setting,
                found,
                expected,
            }),
        };
        let fraction = |setting, x: f64| {
            let valid = (0.0..1.0).contains(&x);
            within(setting, x, valid, "at least 0 and below 1")
        };
        let amount = |setting, x: f64| {
            let valid = x >= 0.0 && x.is_finite();
            within(setting, x, valid, "a number of at least 0")
        };
        let count = |setting, n: u64| within(setting, n as f64, n > 0, "at least 1");
        match *self {
            Optimizer::Sgd {
                momentum,
                nesterov,
                weight_decay,
            } => {
                amount("momentum", momentum)?;
                let valid = !nesterov || momentum > 0.0;
                within("momentum", momentum, valid, "more than 0 with Nesterov")?;
                amount("weight decay", weight_decay)
            }
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
                fraction("the first beta", betas[0])?;
                fraction("the second beta", betas[1])?;
                amount("epsilon", epsilon)?;
                amount("weight decay", weight_decay)
            }
            Optimizer::GaLore {
                rank,
                update_period,
                scale,
                betas,
                epsilon,
                weight_decay,
            } => {
                count("the rank", rank)?;
                count("the update period", update_period)?;
                amount("the projection scale", scale)?;
                let rest = Optimizer::AdamW {
                    betas,
                    epsilon,
                    weight_decay,
                };
                rest.check()
            }
            Optimizer::Flora {
                rank,
                update_period,
                beta,
                weight_decay,
                seed: _,
            } => {
                count("the rank", rank)?;
                count("the update period", update_period)?;
                fraction("the first beta", beta)?;
                amount("weight decay", weight_decay)
            }
        }
    }

    /// Whether there are as many tensors of state as there should be, each of the right length.
    fn check_state(
        &self,
        state: &[&mut [f32]],
        length: impl Fn(&'static str, usize) -> Result<(), OptimizerError>,
    ) -> Result<(), OptimizerError> {
        let names = self.state();
        if state.len() != names.len() {
            return Err(OptimizerError::States {
                found: state.len(),
                expected: names.len(),
            });
        }
        let mut tensors = names.iter().zip(state);
        tensors.try_for_each(|(name, tensor)| length(name, tensor.len()))
    }

    /// Updates one parameter and its state; optimisers that compress have
    /// [`Optimizer::update_shaped`] only.
    ///
    /// `state` has the tensors of [`Optimizer::state`], in that order. Allocates nothing when called
    /// within the pool of rayon that is to do the work.
    pub fn update(
        &self,
        step: &Step,
        parameter: &mut [f32],
        gradient: &[f32],
        state: &mut [&mut [f32]],
    ) -> Result<(), OptimizerError> {
        let expected = parameter.len();
        let length = |what, found| match found == expected {
            true => Ok(()),
            false => Err(OptimizerError::Length {
                what,
                found,
                expected,
            }),
        };
        length("the gradient", gradient.len())?;
        self.check_state(state, length)?;

        match (*self, state) {
            (
                Optimizer::Sgd {
                    momentum,
                    nesterov,
                    weight_decay,
                },
                state,
            ) => {
                let sgd = Sgd::new(step, momentum, weight_decay);
                match (state, nesterov) {
                    ([direction, ..], false) => {
                        sgd.directed::<false>(parameter, gradient, direction)
                    }
                    ([direction, ..], true) => sgd.directed::<true>(parameter, gradient, direction),
                    ([], _) => sgd.plain(parameter, gradient),
                }
            }
            (
                Optimizer::Adam {
                    betas,
                    epsilon,
                    weight_decay,
                },
                [mean, square],
            ) => {
                let adam = Adam::new(step, betas, epsilon, weight_decay, 0.0);
                match weight_decay == 0.0 {
                    true => adam.update::<false>(parameter, gradient, mean, square),
                    false => adam.update::<true>(parameter, gradient, mean, square),
                }
            }
            (
                Optimizer::AdamW {
                    betas,
                    epsilon,
                    weight_decay,
                },
                [mean, square],
            ) => Adam::new(step, betas, epsilon, 0.0, weight_decay)
                .update::<false>(parameter, gradient, mean, square),
            (Optimizer::GaLore { .. } | Optimizer::Flora { .. }, _) => {
                let optimizer = self.name();
                return Err(OptimizerError::Shapeless { optimizer });
            }
            // The number of tensors was compared above.
            _ => {}
        }
        Ok(())
    }

    /// Whether the state of this optimiser factors: whether, with a direction v that stays, all that the
    /// optimiser keeps of gradients v ⊗ P is v or v² times a tensor of P's shape.
    ///
    /// Decay that is added to the gradient makes the mean v ⊗ m + Σ decay·W, which is no such product:
    /// [`OptimizerError::CoupledDecay`]. Where there is no state, there is none that would have to factor.
    /// Optimisers that compress gradients need whole ones: [`OptimizerError::Whole`].
    pub fn check_factored(&self) -> Result<(), OptimizerError> {
        match *self {
            Optimizer::Sgd { weight_decay, .. } | Optimizer::Adam { weight_decay, .. }
                if weight_decay != 0.0 && !self.state().is_empty() =>
            {
                Err(OptimizerError::CoupledDecay { weight_decay })
            }
            Optimizer::GaLore { .. } | Optimizer::Flora { .. } => {
                let optimizer = self.name();
                Err(OptimizerError::Whole { optimizer })
            }
            _ => Ok(()),
        }
    }

    /// Updates one parameter W whose gradient is v ⊗ P, and its state: [`Optimizer::update`] for the
    /// expanded gradient, but for roundings, without anything of W's size beside W.
    ///
    /// [`Factor`] says which elements of W, of v (its direction) and of P (`gradient`) belong together.
    /// `state` has the tensors of [`Optimizer::state`], in that order, of P's shape, zero at first: m_P
    /// stands for the mean v ⊗ m_P, s_P for the mean square v² ⊗ s_P. With p = P · `gradient_scale` and
    /// the learning rate η:
    ///
    /// - without state: W −= η (v p + decay W);
    /// - momentum: d = μ d + p, then W −= η v d; with Nesterov W −= η v (p + μ d);
    /// - Adam: m += (1 − β₁)(p − m), s = β₂ s + (1 − β₂) p², then
    ///   W = keep W − η̂ v m / (|v| √s / r + ε), where keep is 1 − η decay, and η̂ and r are η and 1 with
    ///   the bias corrections.
    ///
    /// The state of all groups is updated, also of those that hold no feature. W is swept once. Allocates
    /// nothing when called within the pool of rayon that is to do the work.
    ///
    /// Errors are those of [`Optimizer::check_factored`], a factor that does not fit itself, and lengths
    /// that it does not fit; nothing is written then.
    pub fn update_factored(
        &self,
        step: &Step,
        parameter: &mut [f32],
        factor: &Factor<'_>,
        gradient: &[f32],
        state: &mut [&mut [f32]],
    ) -> Result<(), OptimizerError> {
        self.check_factored()?;
        factor.check(parameter.len(), gradient.len())?;
        self.check_state(state, |name, found| {
            factored::length(name, found, gradient.len())
        })?;

        match (*self, state) {
            (
                Optimizer::Sgd {
                    momentum,
                    nesterov,
                    weight_decay,
                },
                state,
            ) => {
                let sgd = Sgd::new(step, momentum, weight_decay);
                match (state, nesterov) {
                    ([direction, ..], false) => {
                        sgd.factored_momentum(gradient, direction);
                        factored::sweep(Momentum(sgd), factor, direction, direction, parameter);
                    }
                    ([direction, ..], true) => {
                        sgd.factored_momentum(gradient, direction);
                        factored::sweep(sgd, factor, gradient, direction, parameter);
                    }
                    ([], _) => factored::sweep(sgd, factor, gradient, gradient, parameter),
                }
            }
            (
                Optimizer::Adam {
                    betas,
                    epsilon,
                    weight_decay: _,
                },
                [mean, square],
            ) => {
                let adam = Adam::new(step, betas, epsilon, 0.0, 0.0);
                adam.factored_means(gradient, mean, square);
                factored::sweep(adam, factor, mean, square, parameter);
            }
            (
                Optimizer::AdamW {
                    betas,
                    epsilon,
                    weight_decay,
                },
                [mean, square],
            ) => {
                let adam = Adam::new(step, betas, epsilon, 0.0, weight_decay);
                adam.factored_means(gradient, mean, square);
                factored::sweep(adam, factor, mean, square, parameter);
            }
            // The number of tensors was compared above.
            _ => {}
        }
        Ok(())
    }
}
