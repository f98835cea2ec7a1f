//! Matrix products for cuBLASLt's stand-in: operations like any other, with the order of streams, captures
//! and all checks of memory.

use super::Driver;
use super::codes::{Code, Outcome};
use super::product::{Operand, Real, encode, sums};
use super::races::Op;
use crate::matmul::{BIAS, F64, Matmul, Matrix, ROW, size_of};
use crate::touched::{Touch, normalise, overlap};
use std::ops::Range;

const THE_BIAS: &str = "the bias";

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
    pub(super) fn index(&self, batch: usize, row: usize, col: usize) -> usize {
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
        let (lines, len) = self.lines();
        if lines == 0 || len == 0 {
            return 0;
        }
        let steps = |count: u64, step: i64| count.saturating_mul(step as u64);
        let last = steps(self.batch.max(1) as u64 - 1, self.stride)
            .saturating_add(steps(lines - 1, self.ld))
            .saturating_add(len);
        last.saturating_mul(size_of(self.kind) as u64) as usize
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
            inputs.push((THE_BIAS, self.bias_matrix()));
        }
        inputs
    }
}

impl Driver {
    /// Bounds of all operands, and that the output is none of the inputs.
    pub(super) fn validate_matmul(&mut self, call: &Matmul) -> Outcome<()> {
        self.range(call.d.at, call.d.span(), "D of a matrix product")?;
        let output = call.d.ranges();
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

    /// Copies of all operands, the product of them, and D back.
    fn multiply<T: Real>(&mut self, call: &Matmul) {
        let inputs = call.inputs();
        let mut input = |name: &str| {
            let found = inputs.iter().find(|(other, _)| *other == name);
            found.map(|(_, matrix)| {
                let bytes = self.bytes(matrix.at, matrix.span()).0;
                Operand::<T>::new(matrix, &bytes, call.compute)
            })
        };
        let (a, b, c, bias) = (input("A"), input("B"), input("C"), input(THE_BIAS));
        let (mut bytes, mut valid) = self.bytes(call.d.at, call.d.span());
        let (m, n) = (call.d.rows as usize, call.d.cols as usize);
        let (alpha, beta) = (T::from_f64(call.alpha), T::from_f64(call.beta));
        let size = size_of(call.d.kind);
        for batch in 0..call.d.batch.max(1) as usize {
            let sums = match (&a, &b) {
                (Some(a), Some(b)) => {
                    let left = a.rows(batch, call.transpose_a, m);
                    let right = b.rows(batch, call.transpose_b, call.depth());
                    sums(&left, &right, m, n)
                }
                _ => vec![T::default(); m * n],
            };
            for (index, &sum) in sums.iter().enumerate() {
                let (i, j) = (index / n, index % n);
                let mut value = alpha * sum;
                if let Some(c) = &c {
                    value = value + beta * c.get(batch, i, j);
                }
                if let Some(bias) = &bias {
                    value = value + bias.get(batch, i, 0);
                }
                let at = call.d.index(batch, i, j) * size;
                encode(call.d.kind, value.to_f64(), &mut bytes[at..at + size]);
                valid[at..at + size].fill(1);
            }
        }
        self.set_bytes(call.d.at, &bytes, Some(&valid));
    }
}

#[cfg(test)]
// Lists of one range are meant as such.
#[allow(clippy::single_range_in_vec_init)]
mod tests {
    use super::*;
    use crate::matmul::F32;

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
