//! The singular vectors of a gradient along its smaller side.

use super::{Cut, OptimizerError};
use crate::cpu::gemm::{Bias, Matrix, MatrixMut, Problem, gemm, workspace_len};
use crate::session::directions::leading_eigenvectors;

/// Entries along the larger side that are converted to 64 bits at a time: nothing of the gradient's size is
/// made.
const BLOCK: usize = 256;

/// Puts the first R singular vectors of a gradient along its smaller side into the rows of `projector`, those
/// of the largest singular values first: unit vectors, orthogonal to each other, of which the entry of
/// largest magnitude is positive.
///
/// They are the eigenvectors of G Gᵀ or Gᵀ G, in 64 bits: exact but for roundings of 64-bit arithmetic. Which
/// vectors are meant is not determined where singular values are equal.
///
/// # Errors
/// [`OptimizerError::NotFinite`] where an entry is no number; nothing is written then.
pub(super) fn leading(
    cut: &Cut,
    gradient: &[f32],
    projector: &mut [f32],
) -> Result<(), OptimizerError> {
    let gram = gram(cut, gradient)?;
    // Squares of 32-bit numbers do not overflow in 64 bits: what is not finite was not before.
    if !gram.iter().all(|entry| entry.is_finite()) {
        return Err(OptimizerError::NotFinite);
    }
    let mut vectors = Vec::with_capacity(cut.projector_len());
    leading_eigenvectors(&gram, cut.smaller(), cut.rank, &mut vectors);
    for (to, from) in projector.iter_mut().zip(vectors) {
        *to = from as f32;
    }
    Ok(())
}

/// G Gᵀ or Gᵀ G, `[s, s]`.
fn gram(cut: &Cut, gradient: &[f32]) -> Result<Vec<f64>, OptimizerError> {
    let (size, larger) = (cut.smaller(), cut.rows.max(cut.columns));
    let mut gram = vec![0.0; size * size];
    let mut block = vec![0f64; size * BLOCK.min(larger)];
    let problem = |k| Problem {
        m: size,
        n: size,
        k,
    };
    // What a shorter last block needs may be more than of a whole one: the blocking depends on the sizes.
    let lengths = [BLOCK.min(larger), (larger % BLOCK).max(1)];
    let lengths = lengths.map(|k| workspace_len::<f64>(problem(k), 1));
    let mut workspace = vec![0.0; lengths[0].max(lengths[1])];
    for first in (0..larger).step_by(BLOCK) {
        let length = BLOCK.min(larger - first);
        // [s, length] with the rows smaller, otherwise [length, s].
        let block = &mut block[..size * length];
        match cut.left() {
            true => {
                let rows = gradient.chunks_exact(cut.columns);
                for (to, row) in block.chunks_exact_mut(length).zip(rows) {
                    widen(to, &row[first..first + length]);
                }
            }
            false => widen(block, &gradient[first * size..(first + length) * size]),
        }
        let (a, b) = match cut.left() {
            true => {
                let block = Matrix::row_major(block, length);
                (block, block.transposed())
            }
            false => {
                let block = Matrix::row_major(block, size);
                (block.transposed(), block)
            }
        };
        let to = MatrixMut::row_major(&mut gram, size);
        let beta = if first == 0 { 0.0 } else { 1.0 };
        gemm(
            problem(length),
            1.0,
            a,
            b,
            beta,
            to,
            Bias::None,
            &mut workspace,
        )?;
    }
    Ok(gram)
}

fn widen(to: &mut [f64], from: &[f32]) {
    for (to, from) in to.iter_mut().zip(from) {
        *to = f64::from(*from);
    }
}
