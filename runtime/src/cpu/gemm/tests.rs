//! The product against sums in `f64`, and what it promises about bits.
#![allow(clippy::unwrap_used)]

use half::{bf16, f16};

use super::kernel::{self, Kernels};
use super::tile::TileMut;
use super::*;

/// Numbers in [-1, 1), the same on every run.
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> f64 {
        self.0 = self
            .0
            .wrapping_mul(6364136223846793005)
            .wrapping_add(1442695040888963407);
        (self.0 >> 33) as f64 / (1u64 << 30) as f64 - 1.0
    }

    fn vec<E: Test>(&mut self, len: usize) -> Vec<E> {
        (0..len).map(|_| E::from_f64(self.next())).collect()
    }
}

/// The element types, as numbers.
trait Test: Element {
    /// Half the distance between one and the next number.
    const EPSILON: f64;
    fn from_f64(value: f64) -> Self;
    fn to_f64(self) -> f64;
}

macro_rules! test_element {
    ($($type:ty, $epsilon:expr, $from:expr, $to:expr;)*) => {$(
        impl Test for $type {
            const EPSILON: f64 = $epsilon;
            fn from_f64(value: f64) -> Self {
                $from(value)
            }
            fn to_f64(self) -> f64 {
                $to(self)
            }
        }
    )*};
}

test_element! {
    f32, f32::EPSILON as f64 / 2.0, |v| v as f32, f64::from;
    f64, f64::EPSILON / 2.0, |v| v, |v| v;
    f16, f16::EPSILON.to_f64_const() / 2.0, f16::from_f64, f16::to_f64;
    bf16, bf16::EPSILON.to_f64_const() / 2.0, bf16::from_f64, bf16::to_f64;
}

/// How a matrix lies in memory.
#[derive(Clone, Copy, Debug)]
enum Layout {
    Rows,
    Cols,
    Scattered,
}

const LAYOUTS: [Layout; 3] = [Layout::Rows, Layout::Cols, Layout::Scattered];

impl Layout {
    /// Offset and strides, with gaps, and the number of elements.
    fn of(self, rows: usize, cols: usize) -> (usize, usize, usize, usize) {
        let (row_stride, col_stride) = match self {
            Layout::Rows => (cols + 3, 1),
            Layout::Cols => (1, rows + 5),
            Layout::Scattered => (2 * cols + 1, 2),
        };
        let last = rows.saturating_sub(1) * row_stride + cols.saturating_sub(1) * col_stride;
        (7, row_stride, col_stride, 7 + last + 1)
    }
}

struct Operand<E> {
    data: Vec<E>,
    offset: usize,
    row_stride: usize,
    col_stride: usize,
}

impl<E: Test> Operand<E> {
    fn new(layout: Layout, rows: usize, cols: usize, numbers: &mut Numbers) -> Self {
        let (offset, row_stride, col_stride, len) = layout.of(rows, cols);
        Operand {
            data: numbers.vec(len),
            offset,
            row_stride,
            col_stride,
        }
    }

    fn view(&self) -> Matrix<'_, E> {
        let Operand {
            offset,
            row_stride,
            col_stride,
            ..
        } = *self;
        Matrix {
            data: &self.data,
            offset,
            row_stride,
            col_stride,
        }
    }

    fn view_mut(&mut self) -> MatrixMut<'_, E> {
        let Operand {
            offset,
            row_stride,
            col_stride,
            ..
        } = *self;
        MatrixMut {
            data: &mut self.data,
            offset,
            row_stride,
            col_stride,
        }
    }

    fn get(&self, row: usize, col: usize) -> f64 {
        self.data[self.offset + row * self.row_stride + col * self.col_stride].to_f64()
    }
}

#[derive(Clone, Copy, Debug)]
struct Factors {
    alpha: f64,
    beta: f64,
    bias: usize,
}

/// Computes one product and compares every element with the sum in `f64`. The bound is that of a sum in any
/// order, `(k + 4) eps` times the sum of the magnitudes (Higham, "Accuracy and Stability of Numerical
/// Algorithms", section 3.1), and the rounding of the stored result.
fn check<A, B, C>(problem: Problem, layouts: [Layout; 3], factors: Factors)
where
    A: Test,
    B: Test + Element<Acc = A::Acc>,
    C: Test + Element<Acc = A::Acc>,
    A::Acc: Test,
{
    let Problem { m, n, k } = problem;
    let mut numbers = Numbers((m * 31 + n * 17 + k) as u64);
    let a = Operand::<A>::new(layouts[0], m, k, &mut numbers);
    let b = Operand::<B>::new(layouts[1], k, n, &mut numbers);
    let mut c = Operand::<C>::new(layouts[2], m, n, &mut numbers);
    let bias_numbers: Vec<A::Acc> = numbers.vec(m.max(n));
    let bias = match factors.bias {
        0 => Bias::None,
        1 => Bias::PerColumn(&bias_numbers[..n]),
        _ => Bias::PerRow(&bias_numbers[..m]),
    };
    let before = Operand {
        data: c.data.clone(),
        ..c
    };
    if factors.beta == 0.0 {
        // What is overwritten must not be read.
        for row in 0..m {
            for col in 0..n {
                let at = c.offset + row * c.row_stride + col * c.col_stride;
                c.data[at] = C::from_f64(f64::NAN);
            }
        }
    }
    let mut workspace = vec![A::Acc::from_f64(f64::NAN); workspace_len::<C>(problem, 1)];
    let (alpha, beta) = (
        A::Acc::from_f64(factors.alpha),
        A::Acc::from_f64(factors.beta),
    );
    gemm(
        problem,
        alpha,
        a.view(),
        b.view(),
        beta,
        c.view_mut(),
        bias,
        &mut workspace,
    )
    .unwrap();
    let mut written = 0;
    for row in 0..m {
        for col in 0..n {
            let (mut sum, mut magnitude) = (0.0, 0.0);
            for p in 0..k {
                let term = a.get(row, p) * b.get(p, col);
                sum += term;
                magnitude += term.abs();
            }
            let old = if factors.beta == 0.0 {
                0.0
            } else {
                factors.beta * before.get(row, col)
            };
            let added = match factors.bias {
                0 => 0.0,
                1 => bias_numbers[col].to_f64(),
                _ => bias_numbers[row].to_f64(),
            };
            let expected = factors.alpha * sum + old + added;
            let magnitude = factors.alpha.abs() * magnitude + old.abs() + added.abs();
            let bound = (k as f64 + 4.0) * A::Acc::EPSILON * magnitude
                + 1.01 * C::EPSILON * expected.abs()
                // The smallest step of half precision.
                + if C::EPSILON > 1e-4 { 1e-7 } else { 0.0 };
            let found = c.get(row, col);
            assert!(
                (found - expected).abs() <= bound,
                "{problem:?} {layouts:?} {factors:?} at {row}, {col}: {found} and not {expected} ({bound:e})"
            );
            written += 1;
        }
    }
    // Nothing else was touched.
    let now: Vec<f64> = c.data.iter().map(|c| c.to_f64()).collect();
    let mut same = 0;
    for (at, (now, before)) in now.iter().zip(&before.data).enumerate() {
        let at = at as isize - c.offset as isize;
        let inside = at >= 0 && {
            let (at, rs, cs) = (at as usize, c.row_stride, c.col_stride);
            let (row, col) = if cs == 1 {
                (at / rs, at % rs)
            } else {
                (at % cs / rs, at / cs)
            };
            row < m && col < n
        };
        if !inside {
            assert_eq!(
                *now,
                before.to_f64(),
                "{problem:?} {layouts:?}: wrote outside the result"
            );
            same += 1;
        }
    }
    assert_eq!(written + same, c.data.len());
}

const SIZES: &[(usize, usize, usize)] = &[
    (1, 1, 1),
    (1, 1, 1000),
    (1, 67, 33),
    (1, 700, 801),
    (67, 1, 33),
    (700, 1, 801),
    (5, 7, 3),
    (13, 31, 17),
    (14, 32, 16),
    (15, 33, 385),
    (24, 96, 1537),
    (29, 65, 770),
    (130, 47, 129),
    (171, 330, 65),
    (3, 4, 0),
];

#[test]
fn every_layout_matches_the_sums_in_f64() {
    let plain = Factors {
        alpha: 1.0,
        beta: 0.0,
        bias: 0,
    };
    for &(m, n, k) in SIZES {
        for a in LAYOUTS {
            for b in LAYOUTS {
                for c in [Layout::Rows, Layout::Cols] {
                    check::<f32, f32, f32>(Problem { m, n, k }, [a, b, c], plain);
                    check::<f64, f64, f64>(Problem { m, n, k }, [a, b, c], plain);
                }
            }
        }
    }
}

#[test]
fn factors_and_bias_match_the_sums_in_f64() {
    for &(m, n, k) in SIZES {
        for (alpha, beta) in [(1.0, 1.0), (-0.75, 0.0), (2.5, 0.375)] {
            for bias in 0..3 {
                for c in [Layout::Rows, Layout::Cols] {
                    let layouts = [Layout::Rows, Layout::Cols, c];
                    let factors = Factors { alpha, beta, bias };
                    check::<f32, f32, f32>(Problem { m, n, k }, layouts, factors);
                    check::<f64, f64, f64>(Problem { m, n, k }, layouts, factors);
                    check::<bf16, bf16, bf16>(Problem { m, n, k }, layouts, factors);
                }
            }
        }
    }
}

#[test]
fn half_precision_is_summed_in_f32() {
    let factors = Factors {
        alpha: 1.0,
        beta: 0.5,
        bias: 1,
    };
    for &(m, n, k) in SIZES {
        for a in LAYOUTS {
            for b in LAYOUTS {
                let layouts = [a, b, Layout::Rows];
                check::<f16, f16, f16>(Problem { m, n, k }, layouts, factors);
                check::<bf16, f32, f16>(Problem { m, n, k }, layouts, factors);
                check::<f16, bf16, f32>(Problem { m, n, k }, layouts, factors);
            }
        }
    }
}

#[test]
fn several_blocks_in_every_direction() {
    let factors = Factors {
        alpha: 1.0,
        beta: 1.0,
        bias: 1,
    };
    for (m, n, k) in [(3001, 40, 800), (40, 3001, 800)] {
        check::<f32, f32, f32>(
            Problem { m, n, k },
            [Layout::Rows, Layout::Rows, Layout::Rows],
            factors,
        );
        check::<bf16, bf16, bf16>(
            Problem { m, n, k },
            [Layout::Cols, Layout::Cols, Layout::Rows],
            factors,
        );
    }
}

fn with_kernels(
    kernels: &'static Kernels<f32>,
    problem: Problem,
    a: &[f32],
    b: &[f32],
) -> Vec<f32> {
    let Problem { m, n, k } = problem;
    let blocking = Blocking::new(kernels, problem, false);
    let mut c = vec![f32::NAN; m * n];
    let mut scratch = vec![f32::NAN; blocking.scratch()];
    Product {
        kernels,
        blocking,
        problem,
        a: Matrix::row_major(a, k),
        b: Matrix::row_major(b, n),
        alpha: 1.0,
        beta: 0.0,
        bias: Bias::None,
    }
    .run(TileMut::dense(&mut c, m, n).unwrap(), &mut scratch);
    c
}

#[test]
fn every_instruction_set_of_this_machine() {
    for &(m, n, k) in SIZES {
        let mut numbers = Numbers(3);
        let (a, b): (Vec<f32>, Vec<f32>) = (numbers.vec(m * k), numbers.vec(k * n));
        for kernels in kernel::all_f32() {
            let c = with_kernels(kernels, Problem { m, n, k }, &a, &b);
            for row in 0..m {
                for col in 0..n {
                    let terms =
                        (0..k).map(|p| f64::from(a[row * k + p]) * f64::from(b[p * n + col]));
                    let (sum, magnitude) = terms.fold((0.0, 0.0), |(sum, magnitude), t| {
                        (sum + t, magnitude + t.abs())
                    });
                    let error = (f64::from(c[row * n + col]) - sum).abs();
                    let bound = (k as f64 + 4.0) * <f32 as Test>::EPSILON * magnitude;
                    assert!(
                        error <= bound,
                        "{} {m} {n} {k} at {row}, {col}",
                        kernels.name
                    );
                }
            }
        }
    }
}

#[test]
fn the_number_of_threads_does_not_show() {
    for (m, n, k) in [
        (24, 768, 2048),
        (29, 31, 5000),
        (300, 500, 700),
        (1, 5000, 900),
        (900, 1, 5000),
    ] {
        let mut numbers = Numbers(5);
        let (a, b): (Vec<f32>, Vec<f32>) = (numbers.vec(m * k), numbers.vec(k * n));
        let problem = Problem { m, n, k };
        let results: Vec<Vec<u32>> = [1, 2, 3]
            .map(|threads| {
                let pool = rayon::ThreadPoolBuilder::new()
                    .num_threads(threads)
                    .build()
                    .unwrap();
                let mut c = vec![0.0f32; m * n];
                let mut workspace = vec![f32::NAN; workspace_len::<f32>(problem, 1)];
                pool.install(|| {
                    let (a, b) = (
                        Matrix::row_major(&a, m).transposed(),
                        Matrix::row_major(&b, n),
                    );
                    let c = MatrixMut::row_major(&mut c, n);
                    gemm(problem, 1.0, a, b, 0.0, c, Bias::None, &mut workspace).unwrap();
                });
                c.into_iter().map(f32::to_bits).collect()
            })
            .into();
        assert!(
            results[0] == results[1] && results[0] == results[2],
            "{problem:?}"
        );
    }
}

#[test]
fn heads_of_attention_are_their_single_products() {
    // Queries [batch, length, heads, depth] by keys, and the result where the next product wants it.
    let (count, heads, length, depth) = (2, 3, 37, 20);
    let mut numbers = Numbers(9);
    let len = count * length * heads * depth;
    let (q, keys): (Vec<f32>, Vec<f32>) = (numbers.vec(len), numbers.vec(len));
    let problem = Problem {
        m: length,
        n: length,
        k: depth,
    };
    let stride = heads * depth;
    let batch = [
        BatchDim {
            len: count,
            a: length * stride,
            b: length * stride,
            c: heads * length * length,
        },
        BatchDim {
            len: heads,
            a: depth,
            b: depth,
            c: length,
        },
    ];
    let view = |data, offset| Matrix {
        data,
        offset,
        row_stride: stride,
        col_stride: 1,
    };
    let row_stride = heads * length;
    let mut all = vec![f32::NAN; count * heads * length * length];
    let mut workspace = vec![f32::NAN; workspace_len::<f32>(problem, count * heads)];
    let to = MatrixMut {
        data: &mut all,
        offset: 0,
        row_stride,
        col_stride: 1,
    };
    let (a, b) = (view(&q, 0), view(&keys, 0).transposed());
    gemm_batched(
        problem,
        &batch,
        0.5,
        a,
        b,
        0.0,
        to,
        Bias::None,
        &mut workspace,
    )
    .unwrap();
    for i in 0..count {
        for head in 0..heads {
            let at = i * length * stride + head * depth;
            let mut one = vec![f32::NAN; length * length];
            let to = MatrixMut::row_major(&mut one, length);
            let (a, b) = (view(&q, at), view(&keys, at).transposed());
            gemm(problem, 0.5, a, b, 0.0, to, Bias::None, &mut workspace).unwrap();
            for row in 0..length {
                let at = i * heads * length * length + row * row_stride + head * length;
                assert_eq!(all[at..at + length], one[row * length..][..length]);
            }
        }
    }
}

#[test]
fn what_cannot_be_computed_is_refused() {
    let problem = Problem { m: 4, n: 5, k: 6 };
    let (a, b, mut c) = (vec![0.0f32; 24], vec![0.0f32; 30], vec![0.0f32; 20]);
    let mut workspace = vec![0.0f32; workspace_len::<f32>(problem, 1)];
    let mut run = |a: &[f32],
                   a_stride,
                   c_strides: (usize, usize),
                   bias: &[f32],
                   batch: &[BatchDim],
                   short| {
        let a = Matrix {
            row_stride: a_stride,
            ..Matrix::row_major(a, 6)
        };
        let (row_stride, col_stride) = c_strides;
        let c = MatrixMut {
            data: &mut c,
            offset: 0,
            row_stride,
            col_stride,
        };
        let b = Matrix::row_major(&b, 5);
        let bias = Bias::PerColumn(bias);
        let len = workspace.len() - short;
        gemm_batched(
            problem,
            batch,
            1.0,
            a,
            b,
            0.0,
            c,
            bias,
            &mut workspace[..len],
        )
    };
    let bias = [0.0; 5];
    run(&a, 6, (5, 1), &bias, &[], 0).unwrap();
    let refused = |result: Result<(), GemmError>| result.unwrap_err().to_string();
    assert!(refused(run(&a[1..], 6, (5, 1), &bias, &[], 0)).contains("the left operand"));
    assert!(refused(run(&a, usize::MAX, (5, 1), &bias, &[], 0)).contains("the left operand"));
    assert!(refused(run(&a, 6, (6, 1), &bias, &[], 0)).contains("the result"));
    assert!(refused(run(&a, 6, (4, 1), &bias, &[], 0)).contains("overlap"));
    assert!(refused(run(&a, 6, (10, 2), &bias, &[], 0)).contains("contiguous"));
    assert!(refused(run(&a, 6, (5, 1), &bias[1..], &[], 0)).contains("bias of 4"));
    assert!(refused(run(&a, 6, (5, 1), &bias, &[], 100)).contains("workspace"));
    let shared = [BatchDim {
        len: 2,
        a: 0,
        b: 0,
        c: 0,
    }];
    assert!(refused(run(&a, 6, (5, 1), &bias, &shared, 0)).contains("overlap"));
    let dim = BatchDim {
        len: 1,
        a: 0,
        b: 0,
        c: 0,
    };
    assert!(refused(run(&a, 6, (5, 1), &bias, &[dim; 7], 0)).contains("7 dimensions"));
}
