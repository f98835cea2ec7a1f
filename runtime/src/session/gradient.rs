//! Gradients between the backward pass and the optimiser: accumulation, the global norm, clipping.
//!
//! Sums are taken in chunks whose borders depend on the lengths only, and added up in a fixed order: the
//! bits are the same for any number of threads. Nothing is allocated within a pool of rayon.

use pulp::Arch;
use rayon::prelude::*;

use super::optimizer::CHUNK;
use crate::cpu::rows::vectorize;

/// Partial sums in flight within a chunk: enough for two vectors of AVX-512.
const LANES: usize = 16;

/// Adds a gradient to the sum of those of the batch's earlier parts; of unequal lengths, the shorter
/// counts.
pub fn accumulate(sum: &mut [f32], gradient: &[f32]) {
    let arch = Arch::new();
    let chunks = (sum.par_chunks_mut(CHUNK), gradient.par_chunks(CHUNK));
    chunks.into_par_iter().for_each(|(sum, gradient)| {
        vectorize(
            arch,
            #[inline(always)]
            |(sum, gradient): (&mut [f32], &[f32])| {
                for (sum, g) in sum.iter_mut().zip(gradient) {
                    *sum += g;
                }
            },
            (sum, gradient),
        );
    });
}

/// The sum of the squares, in double precision.
pub fn sum_of_squares(gradient: &[f32]) -> f64 {
    if gradient.len() <= CHUNK {
        return chunk(gradient);
    }
    let chunks = gradient.len().div_ceil(CHUNK);
    // Within the slice: half of more than one chunk.
    let (left, right) = gradient.split_at(chunks / 2 * CHUNK);
    let (left, right) = rayon::join(|| sum_of_squares(left), || sum_of_squares(right));
    left + right
}

fn chunk(gradient: &[f32]) -> f64 {
    vectorize(
        Arch::new(),
        #[inline(always)]
        |gradient: &[f32]| {
            let mut sums = [0f64; LANES];
            let (whole, rest) = gradient.as_chunks::<LANES>();
            for lanes in whole {
                for (sum, &g) in sums.iter_mut().zip(lanes) {
                    *sum += f64::from(g) * f64::from(g);
                }
            }
            for (sum, &g) in sums.iter_mut().zip(rest) {
                *sum += f64::from(g) * f64::from(g);
            }
            sums.iter().sum()
        },
        gradient,
    )
}

/// The Euclidean norm of all gradients together, in the order given.
pub fn global_norm<'a>(gradients: impl IntoIterator<Item = &'a [f32]>) -> f64 {
    let sums = gradients.into_iter().map(sum_of_squares);
    sums.sum::<f64>().sqrt()
}

/// What gradients are multiplied with so that their norm is at most `limit`; at most 1.
///
/// The formula of `torch.nn.utils.clip_grad_norm_`, with its 1e-6 against a division by zero. A norm
/// that is not a number makes a coefficient that is none; an infinite one makes 0, and infinite elements
/// times 0 are no numbers.
pub fn clip_coefficient(norm: f64, limit: f64) -> f64 {
    let coefficient = limit / (norm + 1e-6);
    // Not `min`, which would turn NaN into 1.
    if coefficient > 1.0 { 1.0 } else { coefficient }
}
