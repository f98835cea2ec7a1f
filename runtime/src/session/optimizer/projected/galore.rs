//! GaLore: Adam in the space of a gradient's first singular vectors.

use super::super::Step;
use super::super::full::Adam;
use super::{Cut, OptimizerError, subspace};

/// GaLore's numbers for one matrix; [`super::Optimizer::GaLore`] says what they mean.
pub(super) struct GaLore {
    pub cut: Cut,
    pub update_period: u64,
    pub scale: f64,
    pub betas: [f64; 2],
    pub epsilon: f64,
    pub weight_decay: f64,
}

/// Floats of scratch: a compressed gradient, and the workspace of the products.
pub(super) fn scratch(cut: &Cut) -> usize {
    cut.len() + cut.workspace()
}

impl GaLore {
    /// With G the gradient times its scale, in steps 1, 1 + T, 1 + 2T, … P anew; then, for m < n,
    ///
    /// - L = P G; M += (1 − β₁)(L − M); V = β₂ V + (1 − β₂) L²;
    /// - N = M / (√V / √(1 − β₂ᵗ) + ε);
    /// - W = (1 − η decay) W − η scale / (1 − β₁ᵗ) Pᵀ N.
    ///
    /// The moments stay what they are when P changes, as in the authors' program. A positive factor of the
    /// gradient changes no singular vector: P is found without it.
    pub fn update(
        &self,
        step: &Step,
        weight: &mut [f32],
        gradient: &[f32],
        [projector, mean, square]: [&mut [f32]; 3],
        scratch: &mut [f32],
    ) -> Result<(), OptimizerError> {
        let cut = &self.cut;
        let since = step.number.saturating_sub(1);
        if since.is_multiple_of(self.update_period.max(1)) {
            subspace::leading(cut, gradient, projector)?;
        }
        let (small, workspace) = scratch.split_at_mut(cut.len());
        cut.down(step.gradient_scale, projector, gradient, small, workspace)?;
        let adam = Adam::new(step, self.betas, self.epsilon, 0.0, self.weight_decay);
        adam.direction(small, mean, square);
        let along = (f64::from(adam.step) * self.scale) as f32;
        cut.up(along, projector, small, adam.keep, weight, workspace)
    }
}
