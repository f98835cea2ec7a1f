//! FLORA: Adafactor with a first moment that is compressed by random projections.

use super::super::{CHUNK, Step};
use super::{Cut, OptimizerError};
use crate::cpu::gemm::{Bias, Matrix, MatrixMut, Problem, gemm, workspace_len};
use crate::cpu::rows::vectorize;
use crate::random;
use crate::session::gradient::sum_of_squares;
use pulp::Arch;
use rayon::prelude::*;

/// Added to the squares of gradients: the first epsilon of Adafactor.
const EPSILON: f64 = 1e-30;
/// The mean of the squares keeps 1 − t⁻⁰·⁸ of itself in step t.
const DECAY_RATE: f64 = -0.8;
/// The greatest root mean square of an update, before the learning rate.
const THRESHOLD: f64 = 1.0;
/// Columns whose squares are summed up together: four cache lines.
const COLUMNS: usize = 64;
/// Random numbers that one thread draws at a time.
const DRAWS: usize = 1 << 10;
/// Each projection has this many places of its parameter's stream to itself: more than it has elements.
const STREAM_STRIDE: u64 = 1 << 40;

/// Floats of scratch: a compressed gradient, a projection, the product of two projections, and the workspace
/// of the matrix products.
pub(super) fn scratch(cut: &Cut) -> usize {
    cut.len() + cut.projector_len() + cut.rank * cut.rank + workspace(cut)
}

fn workspace(cut: &Cut) -> usize {
    let others = [overlap_problem(cut), transfer_problem(cut)];
    let others = others.map(|problem| workspace_len::<f32>(problem, 1));
    cut.workspace().max(others[0]).max(others[1])
}

/// A_new A_oldᵀ.
fn overlap_problem(cut: &Cut) -> Problem {
    Problem {
        m: cut.rank,
        n: cut.rank,
        k: cut.smaller(),
    }
}

/// A compressed matrix times that.
fn transfer_problem(cut: &Cut) -> Problem {
    let [m, n] = cut.compressed();
    Problem { m, n, k: cut.rank }
}

/// FLORA's numbers of one step, computed in double precision and rounded once;
/// [`super::Optimizer::Flora`] says what they mean.
pub(super) struct Flora {
    number: u64,
    update_period: u64,
    seed: u64,
    learning_rate: f64,
    /// What the gradient is multiplied with.
    scale: f32,
    /// What the first moment keeps of itself, and one less that.
    beta: f32,
    fresh: f32,
    /// What the mean of the squares keeps, and one less that.
    kept_square: f32,
    fresh_square: f32,
    /// What the parameter keeps of itself: 1 less the decay.
    keep: f32,
}

impl Flora {
    pub fn new(step: &Step, update_period: u64, beta: f64, weight_decay: f64, seed: u64) -> Self {
        let number = step.number.max(1);
        let fresh_square = (number as f64).powf(DECAY_RATE);
        Flora {
            number,
            update_period: update_period.max(1),
            seed,
            learning_rate: step.learning_rate,
            scale: step.gradient_scale,
            beta: beta as f32,
            fresh: (1.0 - beta) as f32,
            kept_square: (1.0 - fresh_square) as f32,
            fresh_square: fresh_square as f32,
            keep: (1.0 - step.learning_rate * weight_decay) as f32,
        }
    }

    /// A matrix whose first moment M is compressed. With A the projection of this step, for m < n, and U the
    /// gradient over the roots of its mean squares:
    ///
    /// - W = (1 − η decay) W − η clip((1 − β) U + β Aᵀ M);
    /// - at steps K, 2K, …: A' is drawn, and M becomes A' Aᵀ M; otherwise A' is A;
    /// - M = β M + (1 − β) A' U.
    ///
    /// Drawn again where they are needed, projections take room for one at a time; the second of a step in
    /// which they change goes where the gradient was.
    pub fn projected(
        &self,
        cut: &Cut,
        name: &str,
        weight: &mut [f32],
        gradient: &mut [f32],
        [mean, row, column]: [&mut [f32]; 3],
        scratch: &mut [f32],
    ) -> Result<(), OptimizerError> {
        let (small, scratch) = scratch.split_at_mut(cut.len());
        let (projection, scratch) = scratch.split_at_mut(cut.projector_len());
        let (overlap, workspace) = scratch.split_at_mut(cut.rank * cut.rank);
        let stream = random::stream("FLORA's projection", name.as_bytes());
        let draw = |number: u64, to: &mut [f32]| {
            let first = number.wrapping_mul(STREAM_STRIDE);
            normals(self.seed, stream, first, 1.0 / (cut.rank as f64).sqrt(), to);
        };
        let now = (self.number - 1) / self.update_period;
        let next = self.number / self.update_period;

        self.whiten(cut.columns, gradient, row, column);
        draw(next, projection);
        cut.down(1.0, projection, gradient, small, workspace)?;
        if next != now {
            draw(now, projection);
        }
        cut.up(self.beta, projection, mean, self.fresh, gradient, workspace)?;
        self.descend(weight, gradient);
        if next == now {
            combine(self.beta, mean, self.fresh, small);
            return Ok(());
        }
        // Spent, and no smaller than a projection.
        let renewed = &mut gradient[..cut.projector_len()];
        draw(next, renewed);
        let (a, b) = [&*renewed, &*projection]
            .map(|p| Matrix::row_major(p, cut.smaller()))
            .into();
        gemm(
            overlap_problem(cut),
            1.0,
            a,
            b.transposed(),
            0.0,
            MatrixMut::row_major(overlap, cut.rank),
            Bias::None,
            workspace,
        )?;
        let overlap = Matrix::row_major(overlap, cut.rank);
        let compressed = Matrix::row_major(mean, cut.compressed()[1]);
        let (a, b) = match cut.left() {
            true => (overlap, compressed),
            false => (compressed, overlap.transposed()),
        };
        gemm(
            transfer_problem(cut),
            self.beta,
            a,
            b,
            self.fresh,
            MatrixMut::row_major(small, cut.compressed()[1]),
            Bias::None,
            workspace,
        )?;
        mean.copy_from_slice(small);
        Ok(())
    }

    /// A matrix with its whole first moment: M = β M + (1 − β) U, W = (1 − η decay) W − η clip(M).
    pub fn matrix(
        &self,
        columns: usize,
        weight: &mut [f32],
        gradient: &mut [f32],
        mean: &mut [f32],
        row: &mut [f32],
        column: &mut [f32],
    ) {
        self.whiten(columns, gradient, row, column);
        combine(self.beta, mean, self.fresh, gradient);
        self.descend(weight, mean);
    }

    /// Anything else: the same with V = (1 − t⁻⁰·⁸) V + t⁻⁰·⁸ (G² + ε) and U = G / √V.
    pub fn vector(
        &self,
        weight: &mut [f32],
        gradient: &[f32],
        mean: &mut [f32],
        square: &mut [f32],
    ) {
        let arch = Arch::new();
        let chunks = (
            gradient.par_chunks(CHUNK),
            mean.par_chunks_mut(CHUNK),
            square.par_chunks_mut(CHUNK),
        );
        chunks.into_par_iter().for_each(|(g, m, v)| {
            vectorize(
                arch,
                #[inline(always)]
                |(g, m, v): (&[f32], &mut [f32], &mut [f32])| {
                    for ((g, m), v) in g.iter().zip(m).zip(v) {
                        let g = g * self.scale;
                        *v = self.kept_square * *v + self.fresh_square * (g * g + EPSILON as f32);
                        *m = self.beta * *m + self.fresh * (g / v.sqrt());
                    }
                },
                (g, m, v),
            );
        });
        self.descend(weight, mean);
    }

    /// Brings the means of the squares up to date, r_i over each row and c_j over each column of G² + ε, and
    /// puts U in the place of the gradient: U_ij = G_ij / √(r_i c_j / r̄), with r̄ the mean of r.
    fn whiten(&self, columns: usize, gradient: &mut [f32], row: &mut [f32], column: &mut [f32]) {
        let arch = Arch::new();
        let rows = row.len();
        let squared = f64::from(self.scale) * f64::from(self.scale);
        let renew = |kept: &mut f32, squares: f64, count: usize| {
            let mean = squares * squared / count as f64 + EPSILON;
            *kept = self.kept_square * *kept + self.fresh_square * mean as f32;
        };
        let lines = (row.par_iter_mut(), gradient.par_chunks(columns));
        let lines = lines.into_par_iter().with_min_len(grain(columns));
        lines.for_each(|(kept, line)| renew(kept, sum_of_squares(line), columns));
        let whole = &*gradient;
        let blocks = column.par_chunks_mut(COLUMNS).enumerate();
        blocks.for_each(|(number, kept)| {
            let sums = vectorize(
                arch,
                #[inline(always)]
                |(whole, first, count): (&[f32], usize, usize)| {
                    let mut sums = [0f64; COLUMNS];
                    for line in whole.chunks_exact(columns) {
                        for (sum, &g) in sums.iter_mut().zip(&line[first..first + count]) {
                            *sum += f64::from(g) * f64::from(g);
                        }
                    }
                    sums
                },
                (whole, number * COLUMNS, kept.len()),
            );
            for (kept, squares) in kept.iter_mut().zip(sums) {
                renew(kept, squares, rows);
            }
        });
        let mean = row.iter().map(|&r| f64::from(r)).sum::<f64>() / rows as f64;
        let column = &*column;
        let lines = (row.par_iter(), gradient.par_chunks_mut(columns));
        let lines = lines.into_par_iter().with_min_len(grain(columns));
        lines.for_each(|(&r, line)| {
            let factor = f64::from(self.scale) * (mean / f64::from(r)).sqrt();
            vectorize(
                arch,
                #[inline(always)]
                |(line, column, factor): (&mut [f32], &[f32], f32)| {
                    for (u, c) in line.iter_mut().zip(column) {
                        *u = *u * factor / c.sqrt();
                    }
                },
                (line, column, factor as f32),
            );
        });
    }

    /// W = (1 − η decay) W − η U / max(1, rms(U) / threshold).
    fn descend(&self, weight: &mut [f32], update: &[f32]) {
        let rms = (sum_of_squares(update) / update.len() as f64).sqrt();
        // Not `max`, which would hide what is no number.
        let over = match rms / THRESHOLD {
            over if over <= 1.0 => 1.0,
            over => over,
        };
        let along = (-self.learning_rate / over) as f32;
        combine(self.keep, weight, along, update);
    }
}

/// `to` = `keep` · `to` + `along` · `from`, rounded after each operation.
fn combine(keep: f32, to: &mut [f32], along: f32, from: &[f32]) {
    let arch = Arch::new();
    let chunks = (to.par_chunks_mut(CHUNK), from.par_chunks(CHUNK));
    chunks.into_par_iter().for_each(|(to, from)| {
        vectorize(
            arch,
            #[inline(always)]
            |(to, from): (&mut [f32], &[f32])| {
                for (to, from) in to.iter_mut().zip(from) {
                    *to = *to * keep + along * from;
                }
            },
            (to, from),
        );
    });
}

/// Rows that one thread takes at a time.
fn grain(columns: usize) -> usize {
    CHUNK.div_ceil(columns.max(1))
}

/// Numbers from a normal distribution, those of a stream from `first` on, which is even.
fn normals(seed: u64, stream: u64, first: u64, deviation: f64, to: &mut [f32]) {
    let pieces = to.par_chunks_mut(DRAWS).enumerate();
    pieces.for_each(|(number, piece)| {
        let first = first.wrapping_add((number * DRAWS) as u64) / 2;
        for (pair, to) in (first..).zip(piece.chunks_mut(2)) {
            let drawn = random::normal_pair(seed, stream, pair);
            for (to, drawn) in to.iter_mut().zip(drawn) {
                *to = (drawn * deviation) as f32;
            }
        }
    });
}
