//! Matrix products for cuBLASLt's stand-in: operations like any other, with the order of streams, captures
//! and all checks of memory.

use super::Driver;
use super::codes::{Code, Outcome};
use super::races::Op;
use crate::matmul::{BF16, BIAS, F16, F32, F64, FAST_TF32, Matmul, Matrix, ROW, size_of};
use crate::touched::{Touch, normalise, overlap};
use half::{bf16, f16};
use std::ops::{Add, Mul, Range};

/// What products are accumulated in.
trait Real: Copy + Default + Add<Output = Self> + Mul<Output = Self> {
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

/// All elements of a buffer; exact.
fn decode(kind: i32, bytes: &[u8]) -> Vec<f64> {
    fn each<const N: usize>(bytes: &[u8], value: fn([u8; N]) -> f64) -> Vec<f64> {
        bytes
            .as_chunks::<N>()
            .0
            .iter()
            .map(|&chunk| value(chunk))
            .collect()
    }
    match kind {
        F64 => each(bytes, f64::from_le_bytes),
        F32 => each(bytes, |chunk| f32::from_le_bytes(chunk).into()),
        F16 => each(bytes, |chunk| f16::from_le_bytes(chunk).into()),
        _ => each(bytes, |chunk| bf16::from_le_bytes(chunk).into()),
    }
}

/// An element, rounded to nearest once, from an f32 (or f64, for f64).
fn encode(kind: i32, value: f64) -> ([u8; 8], usize) {
    let mut bytes = [0; 8];
    match kind {
        F64 => bytes = value.to_le_bytes(),
        F32 => bytes[..4].copy_from_slice(&(value as f32).to_le_bytes()),
        F16 => bytes[..2].copy_from_slice(&f16::from_f32(value as f32).to_le_bytes()),
        BF16 => bytes[..2].copy_from_slice(&bf16::from_f32(value as f32).to_le_bytes()),
        _ => {}
    }
    (bytes, size_of(kind))
}

impl Matrix {
    /// Contiguous lines (columns, or rows in row order), and elements of each.
    fn lines(&self) -> (u64, u64) {
        if self.order == ROW {
            (self.rows, self.cols)
        } else {
            (self.cols, self.rows)
        }
    }

    /// Element (row, column) of a matrix of the batch, counted from the first element of all.
    fn index(&self, batch: usize, row: usize, col: usize) -> usize {
        let (line, at) = if self.order == ROW {
            (row, col)
        } else {
            (col, row)
        };
        (batch as i64 * self.stride) as usize + line * self.ld as usize + at
    }

    /// Addresses of all elements.
    fn ranges(&self) -> Vec<Range<u64>> {
        let (lines, len) = self.lines();
        let size = size_of(self.kind) as u64;
        let mut found = Vec::new();
        for batch in 0..self.batch.max(1) as u64 {
            for line in 0..lines {
                let first = self.at + (batch * self.stride as u64 + line * self.ld as u64) * size;
                found.push(first..first + len * size);
            }
        }
        normalise(&mut found);
        found
    }

    /// Bytes from the first element to the end of the last.
    fn span(&self) -> usize {
        self.ranges()
            .last()
            .map_or(0, |range| (range.end - self.at) as usize)
    }
}

impl Matmul {
    fn depth(&self) -> usize {
        (if self.transpose_a {
            self.a.rows
        } else {
            self.a.cols
        }) as usize
    }

    fn biased(&self) -> bool {
        self.epilogue & BIAS != 0
    }

    /// The bias as a matrix of one column.
    fn bias_matrix(&self) -> Matrix {
        let (rows, cols, order) = (self.d.rows, 1, 0);
        let (batch, stride) = if self.bias_stride > 0 {
            (self.d.batch, self.bias_stride)
        } else {
            (1, 0)
        };
        Matrix {
            at: self.bias,
            kind: self.bias_kind,
            order,
            rows,
            cols,
            ld: rows as i64,
            stride,
            batch,
        }
    }

    /// What is read, with the names for reports.
    fn inputs(&self) -> Vec<(&'static str, Matrix)> {
        let mut inputs = Vec::new();
        if self.depth() > 0 && self.alpha != 0.0 {
            inputs.extend([("A", self.a), ("B", self.b)]);
        }
        if self.beta != 0.0 {
            inputs.push(("C", self.c));
        }
        if self.biased() {
            inputs.push(("the bias", self.bias_matrix()));
        }
        inputs
    }
}

impl Driver {
    /// Bounds of all operands, and that the output is none of the inputs.
    pub(super) fn validate_matmul(&mut self, call: &Matmul) -> Outcome<()> {
        let output = call.d.ranges();
        self.range(call.d.at, call.d.span(), "D of a matrix product")?;
        for (name, matrix) in call.inputs() {
            self.range(
                matrix.at,
                matrix.span(),
                &format!("{name} of a matrix product"),
            )?;
            let same = name == "C" && matrix.at == call.d.at && matrix.ranges() == output;
            if !same && overlap(&matrix.ranges(), &output).is_some() {
                self.report(format!("D of a matrix product overlaps {name}"));
                return Err(Code::INVALID_VALUE);
            }
        }
        if call.workspace_len > 0 {
            let len = call.workspace_len;
            self.range(
                call.workspace,
                len as usize,
                "the workspace of a matrix product",
            )?;
            let scratch = call.workspace..call.workspace + len;
            let operands = call.inputs().into_iter().chain([("D", call.d)]);
            for (name, matrix) in operands {
                if overlap(&matrix.ranges(), std::slice::from_ref(&scratch)).is_some() {
                    self.report(format!("the workspace of a matrix product overlaps {name}"));
                    return Err(Code::INVALID_VALUE);
                }
            }
        }
        Ok(())
    }

    pub(super) fn run_matmul(&mut self, call: &Matmul, op: &Op) {
        self.counts.products += 1;
        let mut touches = Vec::new();
        for (name, matrix) in call.inputs() {
            let undefined = matrix.ranges().into_iter().find_map(|range| {
                self.undefined(range.start, (range.end - range.start) as usize)
                    .map(|at| range.start - matrix.at + at as u64)
            });
            if let Some(at) = undefined {
                self.report(format!("{}: {name} has no value at byte {at}", op.what));
            }
            touches.push(self.touch_of(&matrix, false));
        }
        if call.workspace_len > 0 {
            self.scribble(call.workspace, call.workspace_len as usize);
            let base = self.block_at(call.workspace).unwrap_or(call.workspace);
            touches.push(Touch::write(
                base,
                call.workspace,
                call.workspace_len as usize,
            ));
        }
        touches.push(self.touch_of(&call.d, true));
        if call.d.kind == F64 {
            self.multiply::<f64>(call)
        } else {
            self.multiply::<f32>(call)
        }
        self.touch(op, touches);
    }

    /// What is in a workspace afterwards is nobody's.
    fn scribble(&mut self, at: u64, len: usize) {
        self.set_bytes(at, &vec![0xa7; len], Some(&vec![0; len]));
    }

    fn touch_of(&self, matrix: &Matrix, wrote: bool) -> Touch {
        let base = self.block_at(matrix.at).unwrap_or(matrix.at);
        let (reads, writes) = if wrote {
            (Vec::new(), matrix.ranges())
        } else {
            (matrix.ranges(), Vec::new())
        };
        Touch {
            base,
            reads,
            writes,
        }
    }

    fn elements(&mut self, matrix: &Matrix) -> Vec<f64> {
        let (bytes, _) = self.bytes(matrix.at, matrix.span());
        decode(matrix.kind, &bytes)
    }

    fn multiply<T: Real>(&mut self, call: &Matmul) {
        let (m, n, k) = (call.d.rows as usize, call.d.cols as usize, call.depth());
        let round = |value: f64| {
            let value = if call.compute == FAST_TF32 {
                tf32(value as f32).into()
            } else {
                value
            };
            T::from_f64(value)
        };
        let used = k > 0 && call.alpha != 0.0;
        let a = if used {
            self.elements(&call.a)
        } else {
            Vec::new()
        };
        let b = if used {
            self.elements(&call.b)
        } else {
            Vec::new()
        };
        let c = if call.beta != 0.0 {
            self.elements(&call.c)
        } else {
            Vec::new()
        };
        let bias = if call.biased() {
            self.elements(&call.bias_matrix())
        } else {
            Vec::new()
        };
        let (alpha, beta) = (T::from_f64(call.alpha), T::from_f64(call.beta));
        for batch in 0..call.d.batch.max(1) as usize {
            let mut left = vec![T::default(); if used { m * k } else { 0 }];
            let mut right = vec![T::default(); if used { k * n } else { 0 }];
            for (i, row) in left.chunks_exact_mut(k.max(1)).enumerate() {
                for (l, value) in row.iter_mut().enumerate() {
                    let (row, col) = if call.transpose_a { (l, i) } else { (i, l) };
                    *value = round(a[call.a.index(batch, row, col)]);
                }
            }
            for (l, row) in right.chunks_exact_mut(n).enumerate() {
                for (j, value) in row.iter_mut().enumerate() {
                    let (row, col) = if call.transpose_b { (j, l) } else { (l, j) };
                    *value = round(b[call.b.index(batch, row, col)]);
                }
            }
            let sums = sums(&left, &right, m, n);
            for i in 0..m {
                for j in 0..n {
                    let mut value = alpha * sums[i * n + j];
                    if !c.is_empty() {
                        value = value + beta * T::from_f64(c[call.c.index(batch, i, j)]);
                    }
                    if !bias.is_empty() {
                        value = value + T::from_f64(bias[call.bias_matrix().index(batch, i, 0)]);
                    }
                    let (bytes, size) = encode(call.d.kind, value.to_f64());
                    let at = call.d.at + (call.d.index(batch, i, j) * size) as u64;
                    self.set_bytes(at, &bytes[..size], None);
                }
            }
        }
    }
}

/// The product of two matrices in row order; each sum in the order of its terms.
fn sums<T: Real>(left: &[T], right: &[T], m: usize, n: usize) -> Vec<T> {
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
// Lists of one range are meant as such.
#[allow(clippy::single_range_in_vec_init)]
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

    #[test]
    fn batches_with_stride_zero_are_one_matrix() {
        let matrix = Matrix {
            at: 100,
            kind: F32,
            order: 0,
            rows: 2,
            cols: 2,
            ld: 4,
            stride: 0,
            batch: 3,
        };
        assert_eq!(matrix.ranges(), [100..108, 116..124]);
        assert_eq!(matrix.span(), 24);
    }
}
