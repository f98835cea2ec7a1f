//! What a product asks for, whether it makes sense, and the algorithm for it.

use crate::matmul::{BF16, BIAS, F16, F32, F64, FAST_TF32, Matrix, ROW};
use crate::objects::{Descriptor, Preference};
use std::hash::{DefaultHasher, Hash, Hasher};

/// `CUBLAS_COMPUTE_32F` and its pedantic form.
const COMPUTE_32F: [i32; 2] = [68, 69];
/// `CUBLAS_COMPUTE_64F` and its pedantic form.
const COMPUTE_64F: [i32; 2] = [70, 71];
/// Marks bytes that this library wrote.
const MAGIC: u64 = 0x736f_6674_6c74_0001;

/// `cublasLtMatmulAlgo_t`: 64 bytes, opaque to callers.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Algorithm {
    magic: u64,
    problem: u64,
    /// Bytes of workspace that it needs.
    pub(crate) workspace: u64,
    /// What the addresses of A and B, C and D are multiples of.
    alignment: [u32; 4],
    rest: [u64; 3],
}

/// A product without its addresses.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Problem {
    pub(crate) how: Descriptor,
    pub(crate) a: Matrix,
    pub(crate) b: Matrix,
    pub(crate) c: Matrix,
    pub(crate) d: Matrix,
}

/// Rows and columns of op(matrix).
fn shape(matrix: &Matrix, transpose: i32) -> (u64, u64) {
    if transpose == 0 {
        (matrix.rows, matrix.cols)
    } else {
        (matrix.cols, matrix.rows)
    }
}

impl Problem {
    fn depth(&self) -> u64 {
        shape(&self.a, self.how.transpose_a).1
    }

    /// Why no algorithm can do this.
    pub(crate) fn fault(&self) -> Option<String> {
        self.types()
            .or_else(|| self.shapes())
            .or_else(|| self.lines())
    }

    fn types(&self) -> Option<String> {
        let Descriptor {
            compute,
            scale,
            pointer_mode,
            epilogue,
            bias,
            ..
        } = self.how;
        let kinds = [self.a.kind, self.b.kind, self.c.kind, self.d.kind];
        let double = COMPUTE_64F.contains(&compute);
        if !double && !COMPUTE_32F.contains(&compute) && compute != FAST_TF32 {
            return Some(format!("compute type {compute} is not supported"));
        }
        if scale != if double { F64 } else { F32 } {
            return Some(format!(
                "scale type {scale} does not go with compute type {compute}"
            ));
        }
        let fits = if double {
            kinds == [F64; 4]
        } else if compute == FAST_TF32 {
            kinds == [F32; 4]
        } else {
            let small = kinds[0] == F16 || kinds[0] == BF16;
            kinds[0] == kinds[1]
                && kinds[2] == kinds[3]
                && (kinds[0] == F32 || small)
                && (kinds[3] == F32 || kinds[3] == kinds[0])
        };
        if !fits {
            return Some(format!(
                "the types of A, B, C, D {kinds:?} do not go with compute type {compute}"
            ));
        }
        if pointer_mode != 0 {
            return Some("scales in device memory are not supported".to_string());
        }
        if epilogue != 1 && epilogue != BIAS {
            return Some(format!("epilogue {epilogue} is not supported"));
        }
        if epilogue == BIAS && bias == 0 {
            return Some("a bias is asked for, but its address is not set".to_string());
        }
        if epilogue == BIAS && self.how.bias_kind != -1 && self.how.bias_kind != self.d.kind {
            return Some(format!(
                "a bias of type {} on D of type {}",
                self.how.bias_kind, self.d.kind
            ));
        }
        None
    }

    fn shapes(&self) -> Option<String> {
        let Descriptor {
            transpose_a,
            transpose_b,
            transpose_c,
            ..
        } = self.how;
        if ![transpose_a, transpose_b]
            .iter()
            .all(|value| (0..=2).contains(value))
            || transpose_c != 0
        {
            return Some(format!(
                "transposes {transpose_a}, {transpose_b}, {transpose_c} are not supported"
            ));
        }
        let (m, k) = shape(&self.a, transpose_a);
        let (k2, n) = shape(&self.b, transpose_b);
        let (c, d) = (shape(&self.c, 0), shape(&self.d, 0));
        if k != k2 || d != (m, n) || c != d {
            return Some(format!(
                "shapes disagree: {m} x {k} times {k2} x {n}, C {c:?}, D {d:?}"
            ));
        }
        if m == 0 || n == 0 {
            return Some("D is empty".to_string());
        }
        let batches = [self.a.batch, self.b.batch, self.c.batch, self.d.batch];
        if batches[0] < 1 || batches.iter().any(|&batch| batch != batches[0]) {
            return Some(format!("batch counts of A, B, C, D disagree: {batches:?}"));
        }
        None
    }

    fn lines(&self) -> Option<String> {
        for (name, matrix) in [
            ("A", &self.a),
            ("B", &self.b),
            ("C", &self.c),
            ("D", &self.d),
        ] {
            let Matrix {
                order,
                rows,
                cols,
                ld,
                stride,
                batch,
                ..
            } = *matrix;
            if order != 0 && order != ROW {
                return Some(format!("{name} has order {order}, which is not supported"));
            }
            let (lines, len) = if order == ROW {
                (rows, cols)
            } else {
                (cols, rows)
            };
            if ld < 1 || (ld as u64) < len {
                return Some(format!(
                    "the leading dimension of {name} is {ld}, less than {len}"
                ));
            }
            if stride < 0 {
                return Some(format!("{name} has a negative batch stride"));
            }
            let extent = (lines.saturating_sub(1)) * ld as u64 + len;
            if name == "D" && batch > 1 && (stride as u64) < extent {
                return Some(format!(
                    "matrices of D overlap: batch stride {stride}, {extent} elements each"
                ));
            }
        }
        None
    }

    fn key(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        for Matrix {
            kind,
            order,
            rows,
            cols,
            ld,
            stride,
            batch,
            ..
        } in [self.a, self.b, self.c, self.d]
        {
            (kind, order, rows, cols, ld, stride, batch).hash(&mut hasher);
        }
        let how = self.how;
        (
            how.compute,
            how.scale,
            how.transpose_a,
            how.transpose_b,
            how.epilogue,
        )
            .hash(&mut hasher);
        hasher.finish()
    }

    /// An algorithm: deep products get one that wants workspace, 64 KiB for each 256 of depth up to 1 MiB, if
    /// the preference allows for it.
    pub(crate) fn choose(&self, preference: &Preference) -> Algorithm {
        let wanted = (self.depth() / 256).min(16) << 16;
        let workspace = if wanted <= preference.workspace {
            wanted
        } else {
            0
        };
        let (problem, alignment) = (self.key(), preference.alignment);
        Algorithm {
            magic: MAGIC,
            problem,
            workspace,
            alignment,
            rest: [0; 3],
        }
    }
}

impl Algorithm {
    /// Why it cannot be used for a problem at these addresses of A, B, C, D.
    pub(crate) fn fault(&self, problem: &Problem, at: [u64; 4]) -> Option<String> {
        if self.magic != MAGIC {
            return Some("the algorithm was not made by the heuristic".to_string());
        }
        if self.problem != problem.key() {
            return Some("the algorithm was chosen for another problem".to_string());
        }
        let names = ["A", "B", "C", "D"];
        let off = (0..4).find(|&i| {
            self.alignment[i] > 0 && !at[i].is_multiple_of(u64::from(self.alignment[i]))
        })?;
        Some(format!(
            "{} is at {:#x}, but the algorithm was chosen for multiples of {}",
            names[off], at[off], self.alignment[off]
        ))
    }
}

const _: () = assert!(size_of::<Algorithm>() == 64);
