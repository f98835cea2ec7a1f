//! The arithmetic of matrix products.

use crate::matmul::{BF16, F16, F32, F64, FAST_TF32, Matrix};
use half::{bf16, f16};
use std::ops::{Add, Mul};

/// What products are accumulated in.
pub(super) trait Real: Copy + Default + Add<Output = Self> + Mul<Output = Self> {
    fn from_f64(value: f64) -> Self;
    fn to_f64(self) -> f64;
}

impl Real for f32 {
    fn from_f64(value: f64) -> Self {
        value as f32
    }
    fn to_f64(self) -> f64 {
        self.into()
    }
}

impl Real for f64 {
    fn from_f64(value: f64) -> Self {
        value
    }
    fn to_f64(self) -> f64 {
        self
    }
}

/// A value as the tensor cores take it: 10 bits of mantissa, rounded to nearest, ties to even.
fn tf32(value: f32) -> f32 {
    let bits = value.to_bits();
    if !value.is_finite() {
        return value;
    }
    f32::from_bits(bits.wrapping_add(0xfff + (bits >> 13 & 1)) & !0x1fff)
}

/// The elements of an operand, each exact, or rounded to TF32.
pub(super) struct Operand<'a, T> {
    matrix: &'a Matrix,
    values: Vec<T>,
}

impl<'a, T: Real> Operand<'a, T> {
    /// From all bytes between the first element and the last.
    pub(super) fn new(matrix: &'a Matrix, bytes: &[u8], compute: i32) -> Self {
        let single = |value: f32| {
            T::from_f64(
                if compute == FAST_TF32 {
                    tf32(value)
                } else {
                    value
                }
                .into(),
            )
        };
        let values = match matrix.kind {
            F64 => decode(bytes, |chunk| T::from_f64(f64::from_le_bytes(chunk))),
            F32 => decode(bytes, |chunk| single(f32::from_le_bytes(chunk))),
            F16 => decode(bytes, |chunk| single(f16::from_le_bytes(chunk).to_f32())),
            _ => decode(bytes, |chunk| single(bf16::from_le_bytes(chunk).to_f32())),
        };
        Self { matrix, values }
    }

    /// One element.
    pub(super) fn get(&self, batch: usize, row: usize, col: usize) -> T {
        self.values[self.matrix.index(batch, row, col)]
    }

    /// A matrix of the batch, transposed or not, with `rows` rows, in row order and without gaps.
    pub(super) fn rows(&self, batch: usize, transpose: bool, rows: usize) -> Vec<T> {
        let cols = (self.matrix.rows * self.matrix.cols) as usize / rows.max(1);
        let mut packed = vec![T::default(); rows * cols];
        let first = self.matrix.index(batch, 0, 0);
        let (down, right) = if transpose {
            ((0, 1), (1, 0))
        } else {
            ((1, 0), (0, 1))
        };
        let step = |(row, col)| self.matrix.index(batch, row, col) - first;
        let (down, right) = (step(down), step(right));
        // By tiles, so that neither side is walked across its lines for long.
        for (top, left) in (0..rows)
            .step_by(TILE)
            .flat_map(|top| (0..cols).step_by(TILE).map(move |left| (top, left)))
        {
            for i in top..rows.min(top + TILE) {
                for j in left..cols.min(left + TILE) {
                    packed[i * cols + j] = self.values[first + i * down + j * right];
                }
            }
        }
        packed
    }
}

/// Side of a tile in elements.
const TILE: usize = 16;

fn decode<T, const N: usize>(bytes: &[u8], value: impl Fn([u8; N]) -> T) -> Vec<T> {
    bytes
        .as_chunks::<N>()
        .0
        .iter()
        .map(|&chunk| value(chunk))
        .collect()
}

/// An element, rounded to nearest once, from an f32 (or f64, for f64).
pub(super) fn encode(kind: i32, value: f64, to: &mut [u8]) {
    match kind {
        F64 => to.copy_from_slice(&value.to_le_bytes()),
        F32 => to.copy_from_slice(&(value as f32).to_le_bytes()),
        F16 => to.copy_from_slice(&f16::from_f32(value as f32).to_le_bytes()),
        BF16 => to.copy_from_slice(&bf16::from_f32(value as f32).to_le_bytes()),
        _ => {}
    }
}

/// The product of two matrices in row order; each sum in the order of its terms.
pub(super) fn sums<T: Real>(left: &[T], right: &[T], m: usize, n: usize) -> Vec<T> {
    let mut out = vec![T::default(); m * n];
    let k = left.len().checked_div(m).unwrap_or(0);
    for (i, row) in out.chunks_exact_mut(n.max(1)).enumerate() {
        for l in 0..k {
            let factor = left[i * k + l];
            for (sum, &value) in row.iter_mut().zip(&right[l * n..(l + 1) * n]) {
                *sum = *sum + factor * value;
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tf32_rounds_to_nearest_even() {
        let ulp = 2f32.powi(-10);
        assert_eq!(tf32(1.0 + ulp), 1.0 + ulp);
        assert_eq!(tf32(1.0 + 0.5 * ulp), 1.0);
        assert_eq!(tf32(1.0 + 1.5 * ulp), 1.0 + 2.0 * ulp);
        assert_eq!(tf32(-(1.0 + 0.75 * ulp)), -(1.0 + ulp));
        assert!(tf32(f32::NAN).is_nan());
    }
}
