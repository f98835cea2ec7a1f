//! Optimisers that run outside the graph: SGD with momentum, Adam and AdamW, as PyTorch defines them.
//!
//! [`Optimizer::update`] passes over memory once, in chunks whose borders depend on the length only, and
//! computes each element alone, with additions, multiplications, divisions and square roots that are
//! rounded one by one. The bits are therefore the same for any number of threads and on any processor.

use crate::cpu::rows::vectorize;
use pulp::Arch;
use rayon::prelude::*;
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
}

impl Optimizer {
    /// The names of the tensors of state that each parameter has, of its own shape and zero at first.
    pub fn state(&self) -> &'static [&'static str] {
        match self {
            Optimizer::Sgd { momentum, .. } if *momentum == 0.0 => &[],
            Optimizer::Sgd { .. } => &["momentum_buffer"],
            Optimizer::Adam { .. } | Optimizer::AdamW { .. } => &["exp_avg", "exp_avg_sq"],
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
        }
    }

    /// Updates one parameter and its state.
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
        let names = self.state();
        if state.len() != names.len() {
            return Err(OptimizerError::States {
                found: state.len(),
                expected: names.len(),
            });
        }
        for (name, tensor) in names.iter().zip(state.iter()) {
            length(name, tensor.len())?;
        }

        match (*self, state) {
            (
                Optimizer::Sgd {
                    momentum,
                    nesterov,
                    weight_decay,
                },
                state,
            ) => {
                let sgd = Sgd {
                    scale: step.gradient_scale,
                    decay: weight_decay as f32,
                    momentum: momentum as f32,
                    step: -step.learning_rate as f32,
                };
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
            // The number of tensors was compared above.
            _ => {}
        }
        Ok(())
    }
}

#[derive(Clone, Copy)]
struct Sgd {
    scale: f32,
    decay: f32,
    momentum: f32,
    /// The learning rate, negative.
    step: f32,
}

impl Sgd {
    /// The gradient that counts. Without decay nothing is added, not even the zero that an infinite
    /// parameter would turn into NaN.
    #[inline(always)]
    fn gradient(self, w: f32, g: f32) -> f32 {
        let g = g * self.scale;
        if self.decay == 0.0 {
            g
        } else {
            g + self.decay * w
        }
    }

    fn plain(self, parameter: &mut [f32], gradient: &[f32]) {
        let arch = Arch::new();
        let chunks = (parameter.par_chunks_mut(CHUNK), gradient.par_chunks(CHUNK));
        chunks.into_par_iter().for_each(|(w, g)| {
            vectorize(
                arch,
                #[inline(always)]
                |(w, g): (&mut [f32], &[f32])| {
                    for (w, g) in w.iter_mut().zip(g) {
                        *w += self.step * self.gradient(*w, *g);
                    }
                },
                (w, g),
            );
        });
    }

    fn directed<const NESTEROV: bool>(
        self,
        parameter: &mut [f32],
        gradient: &[f32],
        direction: &mut [f32],
    ) {
        let arch = Arch::new();
        let chunks = (
            parameter.par_chunks_mut(CHUNK),
            gradient.par_chunks(CHUNK),
            direction.par_chunks_mut(CHUNK),
        );
        chunks.into_par_iter().for_each(|(w, g, d)| {
            vectorize(
                arch,
                #[inline(always)]
                |(w, g, d): (&mut [f32], &[f32], &mut [f32])| {
                    for ((w, g), d) in w.iter_mut().zip(g).zip(d) {
                        let g = self.gradient(*w, *g);
                        *d = self.momentum * *d + g;
                        let along = if NESTEROV { g + self.momentum * *d } else { *d };
                        *w += self.step * along;
                    }
                },
                (w, g, d),
            );
        });
    }
}

/// Adam's numbers of one step, computed in double precision and rounded once.
#[derive(Clone, Copy)]
struct Adam {
    scale: f32,
    /// The decay that is added to the gradient.
    decay: f32,
    /// What the parameter keeps of itself: 1 less the decoupled decay.
    keep: f32,
    /// One less the first beta.
    fresh_mean: f32,
    beta2: f32,
    /// One less the second beta.
    fresh_square: f32,
    /// The root of the second bias correction.
    root: f32,
    epsilon: f32,
    /// The learning rate over the first bias correction, negative.
    step: f32,
}

impl Adam {
    fn new(step: &Step, betas: [f64; 2], epsilon: f64, decay: f64, decoupled: f64) -> Self {
        let number = step.number.max(1) as f64;
        let correction = betas.map(|beta| 1.0 - beta.powf(number));
        Adam {
            scale: step.gradient_scale,
            decay: decay as f32,
            keep: (1.0 - step.learning_rate * decoupled) as f32,
            fresh_mean: (1.0 - betas[0]) as f32,
            beta2: betas[1] as f32,
            fresh_square: (1.0 - betas[1]) as f32,
            root: correction[1].sqrt() as f32,
            epsilon: epsilon as f32,
            step: (-step.learning_rate / correction[0]) as f32,
        }
    }

    fn update<const DECAY: bool>(
        self,
        parameter: &mut [f32],
        gradient: &[f32],
        mean: &mut [f32],
        square: &mut [f32],
    ) {
        let arch = Arch::new();
        let chunks = (
            parameter.par_chunks_mut(CHUNK),
            gradient.par_chunks(CHUNK),
            mean.par_chunks_mut(CHUNK),
            square.par_chunks_mut(CHUNK),
        );
        chunks.into_par_iter().for_each(|(w, g, m, v)| {
            vectorize(
                arch,
                #[inline(always)]
                |(w, g, m, v): (&mut [f32], &[f32], &mut [f32], &mut [f32])| {
                    for (((w, g), m), v) in w.iter_mut().zip(g).zip(m).zip(v) {
                        let mut g = g * self.scale;
                        if DECAY {
                            g += self.decay * *w;
                        }
                        *m += self.fresh_mean * (g - *m);
                        *v = self.beta2 * *v + self.fresh_square * (g * g);
                        let size = v.sqrt() / self.root + self.epsilon;
                        *w = *w * self.keep + self.step * (*m / size);
                    }
                },
                (w, g, m, v),
            );
        });
    }
}
