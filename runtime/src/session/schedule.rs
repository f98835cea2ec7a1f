//! The learning rate as a function of the step.

use std::f64::consts::PI;

use serde::{Deserialize, Serialize};

/// How the learning rate changes: a linear warm-up, then constant or along half a cosine.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Schedule {
    /// The highest learning rate, which the warm-up ends with.
    pub peak: f64,
    /// The number of steps of the warm-up. Step `n` (from 1) of them uses `n / warmup` of the peak, so
    /// that no step is spent on a learning rate of 0.
    pub warmup: u64,
    /// What follows.
    pub decay: Decay,
}

/// What follows the warm-up.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase", deny_unknown_fields)]
pub enum Decay {
    /// The peak for all steps.
    Constant,
    /// From the peak to `floor` along half a cosine (I. Loshchilov, F. Hutter: SGDR, ICLR 2017,
    /// formula 5, without restarts; `CosineAnnealingLR`): the step after the warm-up still uses the peak,
    /// and those after step `total` the floor.
    Cosine {
        /// The number of the last step, the warm-up included.
        total: u64,
        /// The learning rate that is left.
        floor: f64,
    },
}

impl Schedule {
    /// The same learning rate for all steps.
    pub fn constant(peak: f64) -> Self {
        Schedule {
            peak,
            warmup: 0,
            decay: Decay::Constant,
        }
    }

    /// The learning rate of a step, of which the first is 1.
    pub fn learning_rate(&self, step: u64) -> f64 {
        let step = step.max(1);
        if step <= self.warmup {
            return self.peak * (step as f64 / self.warmup as f64);
        }
        match self.decay {
            Decay::Constant => self.peak,
            Decay::Cosine { total, floor } => {
                let done = (step - self.warmup - 1) as f64;
                let all = total.saturating_sub(self.warmup).max(1) as f64;
                let part = (done / all).min(1.0);
                floor + (self.peak - floor) * 0.5 * (1.0 + (PI * part).cos())
            }
        }
    }
}
