//! Gradients between the backward pass and the optimiser: the global norm, clipping.
//!
//! Sums are taken in chunks whose borders depend on the lengths only, and added up in a fixed order: the
//! bits are the same for any number of threads. Nothing is allocated within a pool of rayon.

use pulp::Arch;
use std::ops::Range;

use super::optimizer::{CHUNK, Factor};
use crate::cpu::rows::vectorize;

/// Partial sums in flight within a chunk: enough for two vectors of AVX-512.
const LANES: usize = 16;

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

/// ‖v ⊗ P‖², the sum of the squares of a factored gradient, in double precision:
/// Σ_g ‖v(g)‖² Σ_o P², over the entries of v that count in each group.
///
/// `gradient` is P. What no feature belongs to does not count, not even as zero times infinity. Where the
/// factor does not fit itself or P, the sum is not a number: a step with such a norm is not taken.
pub fn factored_sum_of_squares(factor: &Factor<'_>, gradient: &[f32]) -> f64 {
    if !factor.fits(gradient.len()) {
        return f64::NAN;
    }
    // Without outputs there may be any number of groups.
    if gradient.is_empty() {
        return 0.0;
    }
    match factor.features_last {
        false => group_rows(factor, gradient, 0..factor.occupied()),
        true => {
            let tiles = (0..factor.occupied()).step_by(LANES);
            let tiles = tiles.map(|first| {
                let last = factor.occupied().min(first + LANES);
                let mut norms = [0f64; LANES];
                for (norm, group) in norms.iter_mut().zip(first..last) {
                    *norm = sum_of_squares(factor.group(group));
                }
                group_columns(gradient, factor.groups, first..last, &norms)
            });
            tiles.sum()
        }
    }
}

/// Of groups whose rows of P lie one after the other.
fn group_rows(factor: &Factor<'_>, gradient: &[f32], groups: Range<usize>) -> f64 {
    let outputs = factor.outputs;
    if groups.len() > 1 && groups.len() * outputs > CHUNK {
        let middle = groups.start + groups.len() / 2;
        let (first, others) = rayon::join(
            || group_rows(factor, gradient, groups.start..middle),
            || group_rows(factor, gradient, middle..groups.end),
        );
        return first + others;
    }
    let terms = groups.map(|group| {
        let row = &gradient[group * outputs..(group + 1) * outputs];
        sum_of_squares(factor.group(group)) * sum_of_squares(row)
    });
    terms.sum()
}

/// Of some groups, at most [`LANES`], that are columns of P, given their ‖v(g)‖².
fn group_columns(
    gradient: &[f32],
    groups: usize,
    columns: Range<usize>,
    norms: &[f64; LANES],
) -> f64 {
    let rows = gradient.len() / groups;
    if rows > 1 && rows * columns.len() > CHUNK {
        let (first, others) = gradient.split_at(rows / 2 * groups);
        let (first, others) = rayon::join(
            || group_columns(first, groups, columns.clone(), norms),
            || group_columns(others, groups, columns.clone(), norms),
        );
        return first + others;
    }
    let sums = vectorize(
        Arch::new(),
        #[inline(always)]
        |gradient: &[f32]| {
            let mut sums = [0f64; LANES];
            for row in gradient.chunks_exact(groups) {
                for (sum, &g) in sums.iter_mut().zip(&row[columns.clone()]) {
                    *sum += f64::from(g) * f64::from(g);
                }
            }
            sums
        },
        gradient,
    );
    let terms = norms[..columns.len()].iter().zip(&sums);
    terms.map(|(norm, sum)| norm * sum).sum()
}

/// The Euclidean norm of all gradients together, from the sums of their squares in the order given.
pub fn global_norm(squares: impl IntoIterator<Item = f64>) -> f64 {
    squares.into_iter().sum::<f64>().sqrt()
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
