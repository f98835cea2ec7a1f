//! Updates from a gradient of the parameter's own size.

use super::{CHUNK, Step};
use crate::cpu::rows::vectorize;
use pulp::Arch;
use rayon::prelude::*;

/// The numbers of one step of gradient descent, rounded once.
#[derive(Clone, Copy)]
pub(super) struct Sgd {
    pub scale: f32,
    pub decay: f32,
    pub momentum: f32,
    /// The learning rate, negative.
    pub step: f32,
}

impl Sgd {
    pub fn new(step: &Step, momentum: f64, decay: f64) -> Self {
        Sgd {
            scale: step.gradient_scale,
            decay: decay as f32,
            momentum: momentum as f32,
            step: -step.learning_rate as f32,
        }
    }

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

    pub fn plain(self, parameter: &mut [f32], gradient: &[f32]) {
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

    pub fn directed<const NESTEROV: bool>(
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
pub(super) struct Adam {
    pub scale: f32,
    /// The decay that is added to the gradient.
    pub decay: f32,
    /// What the parameter keeps of itself: 1 less the decoupled decay.
    pub keep: f32,
    /// One less the first beta.
    pub fresh_mean: f32,
    pub beta2: f32,
    /// One less the second beta.
    pub fresh_square: f32,
    /// The root of the second bias correction.
    pub root: f32,
    pub epsilon: f32,
    /// The learning rate over the first bias correction, negative.
    pub step: f32,
}

impl Adam {
    pub fn new(step: &Step, betas: [f64; 2], epsilon: f64, decay: f64, decoupled: f64) -> Self {
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

    /// Updates the moments, and puts the mean over the root of the mean square, m / (√v / root + ε), in the place
    /// of the gradient, which has its scale already.
    pub fn direction(self, gradient: &mut [f32], mean: &mut [f32], square: &mut [f32]) {
        let arch = Arch::new();
        let chunks = (
            gradient.par_chunks_mut(CHUNK),
            mean.par_chunks_mut(CHUNK),
            square.par_chunks_mut(CHUNK),
        );
        chunks.into_par_iter().for_each(|(g, m, v)| {
            vectorize(
                arch,
                #[inline(always)]
                |(g, m, v): (&mut [f32], &mut [f32], &mut [f32])| {
                    for ((g, m), v) in g.iter_mut().zip(m).zip(v) {
                        *m += self.fresh_mean * (*g - *m);
                        *v = self.beta2 * *v + self.fresh_square * (*g * *g);
                        *g = *m / (v.sqrt() / self.root + self.epsilon);
                    }
                },
                (g, m, v),
            );
        });
    }

    pub fn update<const DECAY: bool>(
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
