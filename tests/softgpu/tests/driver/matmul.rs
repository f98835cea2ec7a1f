//! Matrix products through cuBLASLt's stand-in.

use crate::bench::{Bench, code};
use cudarc::cublaslt::result::{self as lt, CublasError};
use cudarc::cublaslt::sys;
use cudarc::cublaslt::sys::cublasComputeType_t as Compute;
use cudarc::cublaslt::sys::cublasLtMatmulDescAttributes_t as Attribute;
use cudarc::cublaslt::sys::cublasLtMatrixLayoutAttribute_t as Layout;
use cudarc::cublaslt::sys::cudaDataType_t as Kind;
use cudarc::driver::sys::CUstream;
use half::{bf16, f16};
use softgpu::Fault;
use std::ffi::c_void;

/// A matrix of a product.
#[derive(Clone, Copy)]
struct Matrix {
    at: u64,
    rows: u64,
    cols: u64,
    ld: i64,
    row_order: bool,
    batch: i32,
    stride: i64,
}

impl Matrix {
    fn new(at: u64, rows: u64, cols: u64) -> Self {
        Self {
            at,
            rows,
            cols,
            ld: rows as i64,
            row_order: false,
            batch: 1,
            stride: 0,
        }
    }

    /// The same matrix in row order.
    fn by_rows(self) -> Self {
        Self {
            ld: self.cols as i64,
            row_order: true,
            ..self
        }
    }

    fn times(self, batch: i32, stride: i64) -> Self {
        Self {
            batch,
            stride,
            ..self
        }
    }
}

/// A product, as a caller of cuBLASLt sets it up.
#[derive(Clone, Copy)]
struct Product {
    a: Matrix,
    b: Matrix,
    c: Matrix,
    d: Matrix,
    transpose: [bool; 2],
    inputs: Kind,
    outputs: Kind,
    compute: Compute,
    scale: Kind,
    scales: [f64; 2],
    epilogue: i32,
    bias: u64,
    /// What the preference says.
    allowed: usize,
    alignment: u32,
}

impl Product {
    /// D = A B in f32, without workspace.
    fn new(a: Matrix, b: Matrix, d: Matrix) -> Self {
        Self {
            a,
            b,
            c: d,
            d,
            transpose: [false, false],
            inputs: Kind::CUDA_R_32F,
            outputs: Kind::CUDA_R_32F,
            compute: Compute::CUBLAS_COMPUTE_32F,
            scale: Kind::CUDA_R_32F,
            scales: [1.0, 0.0],
            epilogue: 1,
            bias: 0,
            allowed: 0,
            alignment: 4,
        }
    }
}

/// The descriptors of a product, for as long as it is looked at.
struct Setup {
    handle: sys::cublasLtHandle_t,
    descriptor: sys::cublasLtMatmulDesc_t,
    layouts: Vec<sys::cublasLtMatrixLayout_t>,
    preference: sys::cublasLtMatmulPreference_t,
}

fn value<T>(value: &T) -> (*const c_void, usize) {
    (std::ptr::from_ref(value).cast(), size_of::<T>())
}

impl Setup {
    fn new(product: &Product) -> Self {
        let handle = lt::create_handle().expect("a handle");
        let descriptor =
            lt::create_matmul_desc(product.compute, product.scale).expect("a descriptor");
        let set = |attribute, (at, len)| {
            // SAFETY: the value lives during the call, and the descriptor is live.
            unsafe { lt::set_matmul_desc_attribute(descriptor, attribute, at, len) }
                .expect("an attribute");
        };
        let transpose = product.transpose.map(i32::from);
        set(Attribute::CUBLASLT_MATMUL_DESC_TRANSA, value(&transpose[0]));
        set(Attribute::CUBLASLT_MATMUL_DESC_TRANSB, value(&transpose[1]));
        set(
            Attribute::CUBLASLT_MATMUL_DESC_EPILOGUE,
            value(&product.epilogue),
        );
        set(
            Attribute::CUBLASLT_MATMUL_DESC_BIAS_POINTER,
            value(&product.bias),
        );
        let matrices = [product.a, product.b, product.c, product.d];
        let layouts = matrices.iter().enumerate().map(|(index, matrix)| {
            let kind = if index < 2 {
                product.inputs
            } else {
                product.outputs
            };
            let layout = lt::create_matrix_layout(kind, matrix.rows, matrix.cols, matrix.ld)
                .expect("a layout");
            let set = |attribute, (at, len)| {
                // SAFETY: the value lives during the call, and the layout is live.
                unsafe { lt::set_matrix_layout_attribute(layout, attribute, at, len) }
                    .expect("an attribute");
            };
            set(
                Layout::CUBLASLT_MATRIX_LAYOUT_ORDER,
                value(&i32::from(matrix.row_order)),
            );
            set(
                Layout::CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT,
                value(&matrix.batch),
            );
            set(
                Layout::CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET,
                value(&matrix.stride),
            );
            layout
        });
        let layouts = layouts.collect();
        let preference = lt::create_matmul_pref().expect("a preference");
        let set = |attribute, (at, len)| {
            // SAFETY: the value lives during the call, and the preference is live.
            unsafe { lt::set_matmul_pref_attribute(preference, attribute, at, len) }
                .expect("an attribute");
        };
        use sys::cublasLtMatmulPreferenceAttributes_t as Preference;
        set(
            Preference::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES,
            value(&product.allowed),
        );
        set(
            Preference::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES,
            value(&product.alignment),
        );
        set(
            Preference::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES,
            value(&product.alignment),
        );
        set(
            Preference::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES,
            value(&product.alignment),
        );
        set(
            Preference::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES,
            value(&product.alignment),
        );
        Self {
            handle,
            descriptor,
            layouts,
            preference,
        }
    }

    fn heuristic(&self) -> Result<sys::cublasLtMatmulHeuristicResult_t, CublasError> {
        let [a, b, c, d] = self.layouts[..] else {
            panic!("four layouts")
        };
        // SAFETY: all are live.
        unsafe {
            lt::get_matmul_algo_heuristic(self.handle, self.descriptor, a, b, c, d, self.preference)
        }
    }

    /// A status.
    fn run(
        &self,
        product: &Product,
        algorithm: &sys::cublasLtMatmulAlgo_t,
        workspace: (u64, usize),
        stream: CUstream,
    ) -> u32 {
        let [a, b, c, d] = self.layouts[..] else {
            panic!("four layouts")
        };
        let singles = product.scales.map(|scale| scale as f32);
        let double = product.scale == Kind::CUDA_R_64F;
        let scale = |index: usize| {
            if double {
                value(&product.scales[index]).0
            } else {
                value(&singles[index]).0
            }
        };
        // SAFETY: all are live; the library checks the rest.
        let result = unsafe {
            lt::matmul(
                self.handle,
                self.descriptor,
                scale(0),
                scale(1),
                product.a.at as *const c_void,
                a,
                product.b.at as *const c_void,
                b,
                product.c.at as *const c_void,
                c,
                product.d.at as *mut c_void,
                d,
                algorithm,
                workspace.0 as *mut c_void,
                workspace.1,
                stream.cast(),
            )
        };
        result.map_or_else(|error| error.0 as u32, |()| 0)
    }
}

impl Drop for Setup {
    fn drop(&mut self) {
        // SAFETY: each is live, and destroyed once.
        unsafe {
            for &layout in &self.layouts {
                lt::destroy_matrix_layout(layout).expect("a live layout");
            }
            lt::destroy_matmul_desc(self.descriptor).expect("a live descriptor");
            lt::destroy_matmul_pref(self.preference).expect("a live preference");
            lt::destroy_handle(self.handle).expect("a live handle");
        }
    }
}

/// Chooses an algorithm and runs it, with no more workspace than it asks for.
fn run(bench: &Bench, product: &Product, stream: CUstream) -> u32 {
    let setup = Setup::new(product);
    let choice = match setup.heuristic() {
        Ok(choice) => choice,
        Err(error) => return error.0 as u32,
    };
    let workspace = if choice.workspaceSize > 0 {
        bench.floats(choice.workspaceSize / 4)
    } else {
        0
    };
    setup.run(
        product,
        &choice.algo,
        (workspace, choice.workspaceSize),
        stream,
    )
}

/// Numbers in [-1, 1), the same each time.
fn numbers(count: usize, seed: u32) -> Vec<f32> {
    let mut state = seed.wrapping_mul(2_654_435_761).wrapping_add(12345);
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..count).map(|_| next()).collect()
}

/// A block with these bytes.
fn block(bench: &Bench, bytes: &[u8]) -> u64 {
    let at = bench.floats(bytes.len().div_ceil(4));
    // SAFETY: the slice has as many bytes.
    let copied = unsafe { cudarc::driver::result::memcpy_htod_sync(at, bytes) };
    assert_eq!(code(copied), 0);
    // A copy from pageable memory may return before it is over.
    assert_eq!(code(cudarc::driver::result::ctx::synchronize()), 0);
    at
}

fn floats(bench: &Bench, values: &[f32]) -> u64 {
    block(
        bench,
        &values
            .iter()
            .flat_map(|value| value.to_le_bytes())
            .collect::<Vec<u8>>(),
    )
}

/// Element (row, column) of a matrix.
fn element(values: &[f32], matrix: &Matrix, batch: usize, row: usize, col: usize) -> f64 {
    let (line, at) = if matrix.row_order {
        (row, col)
    } else {
        (col, row)
    };
    values[batch * matrix.stride as usize + line * matrix.ld as usize + at].into()
}

/// Checks D against the product in f64, with the bound of f32 sums of k terms: k ulps of the sum of |a||b|,
/// and one of each later operation.
#[track_caller]
fn check(bench: &Bench, product: &Product, a: &[f32], b: &[f32], before: &[f32], bias: &[f32]) {
    let d = &product.d;
    let (lines, _) = if d.row_order {
        (d.rows, d.cols)
    } else {
        (d.cols, d.rows)
    };
    let len = (d.batch as usize - 1) * d.stride as usize + lines as usize * d.ld as usize;
    let found = bench.read(d.at, len);
    let k = (if product.transpose[0] {
        product.a.rows
    } else {
        product.a.cols
    }) as usize;
    for batch in 0..d.batch as usize {
        for i in 0..d.rows as usize {
            for j in 0..d.cols as usize {
                let (mut sum, mut size) = (0f64, 0f64);
                for l in 0..k {
                    let (row, col) = if product.transpose[0] { (l, i) } else { (i, l) };
                    let x = element(a, &product.a, batch, row, col);
                    let (row, col) = if product.transpose[1] { (j, l) } else { (l, j) };
                    let term = x * element(b, &product.b, batch, row, col);
                    sum += term;
                    size += term.abs();
                }
                let [alpha, beta] = product.scales;
                let old = if beta == 0.0 {
                    0.0
                } else {
                    beta * element(before, &product.c, batch, i, j)
                };
                let extra = if bias.is_empty() { 0.0 } else { bias[i].into() };
                let expected = alpha * sum + old + extra;
                let bound = (k as f64 + 4.0)
                    * (alpha.abs() * size + old.abs() + extra.abs())
                    * f64::from(f32::EPSILON);
                let got = element(&found, d, batch, i, j);
                assert!(
                    (got - expected).abs() <= bound,
                    "({batch}, {i}, {j}): {got} instead of {expected} ± {bound}"
                );
            }
        }
    }
}

#[test]
fn products_are_right_in_all_orders_and_transposes() {
    let bench = Bench::new();
    let stream = bench.stream();
    let (m, n, k) = (5, 7, 11);
    let (a, b, old) = (numbers(m * k, 1), numbers(k * n, 2), numbers(m * n, 3));
    for bits in 0..32 {
        let bit = |at: u32| bits >> at & 1 == 1;
        let [m, n, k] = [m, n, k].map(|size| size as u64);
        let mut left = if bit(0) {
            Matrix::new(floats(&bench, &a), k, m)
        } else {
            Matrix::new(floats(&bench, &a), m, k)
        };
        let mut right = if bit(1) {
            Matrix::new(floats(&bench, &b), n, k)
        } else {
            Matrix::new(floats(&bench, &b), k, n)
        };
        let mut out = Matrix::new(floats(&bench, &old), m, n);
        if bit(2) {
            left = left.by_rows();
        }
        if bit(3) {
            right = right.by_rows();
        }
        if bit(4) {
            out = out.by_rows();
        }
        let transpose = [bit(0), bit(1)];
        let product = Product {
            transpose,
            scales: [1.5, -0.5],
            ..Product::new(left, right, out)
        };
        assert_eq!(run(&bench, &product, stream), 0);
        check(&bench, &product, &a, &b, &old, &[]);
        bench.no_report();
    }
}

#[test]
fn products_are_right_in_batches_with_gaps_and_bias() {
    let bench = Bench::new();
    let stream = bench.stream();
    let (a, b, bias) = (numbers(200, 1), numbers(200, 2), numbers(3, 3));
    // Lines longer than the matrices, and one B for all.
    let left = Matrix {
        ld: 6,
        ..Matrix::new(floats(&bench, &a), 3, 4)
    }
    .times(2, 31);
    let right = Matrix {
        ld: 5,
        ..Matrix::new(floats(&bench, &b), 4, 2)
    }
    .times(2, 0);
    let before = numbers(40, 4);
    let out = Matrix {
        ld: 4,
        ..Matrix::new(floats(&bench, &before), 3, 2)
    }
    .times(2, 10);
    let bias_at = floats(&bench, &bias);
    let product = Product {
        epilogue: 4,
        bias: bias_at,
        ..Product::new(left, right, out)
    };
    assert_eq!(run(&bench, &product, stream), 0);
    check(&bench, &product, &a, &b, &before, &bias);
    // What lies between lines and matrices is left alone.
    let after = bench.read(out.at, 40);
    assert_eq!(
        [after[3], after[8], after[9]],
        [before[3], before[8], before[9]]
    );
    bench.no_report();
}

#[test]
fn a_product_of_depth_zero_scales_c() {
    let bench = Bench::new();
    let (stream, old) = (bench.stream(), numbers(4, 1));
    let (empty, d) = (floats(&bench, &[0.0; 4]), floats(&bench, &old));
    let left = Matrix::new(empty, 2, 0);
    let right = Matrix {
        ld: 1,
        ..Matrix::new(empty, 0, 2)
    };
    let product = Product {
        scales: [1.0, 0.5],
        ..Product::new(left, right, Matrix::new(d, 2, 2))
    };
    assert_eq!(run(&bench, &product, stream), 0);
    assert_eq!(
        bench.read(d, 4),
        old.iter().map(|value| 0.5 * value).collect::<Vec<f32>>()
    );
    bench.no_report();
}

#[test]
fn half_types_are_accumulated_in_single() {
    let bench = Bench::new();
    let stream = bench.stream();
    // 2048 + 1 is not an f16, and 256 + 1 no bf16: sums in these types would stay.
    let ones: Vec<f32> = vec![1.0; 4096];
    for (kind, bytes) in [
        (
            Kind::CUDA_R_16F,
            ones.iter()
                .flat_map(|&one| f16::from_f32(one).to_le_bytes())
                .collect::<Vec<u8>>(),
        ),
        (
            Kind::CUDA_R_16BF,
            ones.iter()
                .flat_map(|&one| bf16::from_f32(one).to_le_bytes())
                .collect(),
        ),
    ] {
        let (a, d) = (block(&bench, &bytes), bench.floats(1));
        let product = Product::new(
            Matrix::new(a, 1, 4096),
            Matrix::new(a, 4096, 1),
            Matrix::new(d, 1, 1),
        );
        let single = Product {
            inputs: kind,
            alignment: 2,
            ..product
        };
        assert_eq!(run(&bench, &single, stream), 0);
        assert_eq!(bench.read(d, 1), [4096.0]);
        let half = Product {
            outputs: kind,
            ..single
        };
        assert_eq!(run(&bench, &half, stream), 0);
        let bits = bench.read_bytes(d, 2);
        let found = match kind {
            Kind::CUDA_R_16F => f16::from_le_bytes([bits[0], bits[1]]).to_f32(),
            _ => bf16::from_le_bytes([bits[0], bits[1]]).to_f32(),
        };
        assert_eq!(found, 4096.0);
    }
    bench.no_report();
}

#[test]
fn fast_types_lose_bits_and_doubles_do_not() {
    let bench = Bench::new();
    let stream = bench.stream();
    let value = 1.0 + 2f32.powi(-12);
    let (a, one, d) = (
        floats(&bench, &[value]),
        floats(&bench, &[1.0]),
        bench.floats(1),
    );
    let product = Product::new(
        Matrix::new(a, 1, 1),
        Matrix::new(one, 1, 1),
        Matrix::new(d, 1, 1),
    );
    assert_eq!(run(&bench, &product, stream), 0);
    assert_eq!(bench.read(d, 1), [value]);
    let fast = Product {
        compute: Compute::CUBLAS_COMPUTE_32F_FAST_TF32,
        ..product
    };
    assert_eq!(run(&bench, &fast, stream), 0);
    assert_eq!(bench.read(d, 1), [1.0]);

    let value = 1.0 + 2f64.powi(-50);
    let (a, one, d) = (
        block(&bench, &value.to_le_bytes()),
        block(&bench, &1f64.to_le_bytes()),
        bench.floats(2),
    );
    let product = Product::new(
        Matrix::new(a, 1, 1),
        Matrix::new(one, 1, 1),
        Matrix::new(d, 1, 1),
    );
    let double = Kind::CUDA_R_64F;
    let compute = Compute::CUBLAS_COMPUTE_64F;
    let product = Product {
        inputs: double,
        outputs: double,
        scale: double,
        compute,
        scales: [0.5, 0.0],
        alignment: 8,
        ..product
    };
    assert_eq!(run(&bench, &product, stream), 0);
    assert_eq!(bench.read_bytes(d, 8), (0.5 * value).to_le_bytes());
    bench.no_report();
}

/// A product of 4 x 4 x 4 with room around, and its memory.
fn small(bench: &Bench) -> Product {
    let at = |seed| floats(bench, &numbers(64, seed));
    let square = |seed| Matrix::new(at(seed), 4, 4);
    Product::new(square(1), square(2), square(3))
}

#[test]
fn malformed_problems_have_no_algorithm() {
    let bench = Bench::new();
    let (stream, good) = (bench.stream(), small(&bench));
    let (double, half) = (Kind::CUDA_R_64F, Kind::CUDA_R_16F);
    let bad = [
        (
            Product {
                a: Matrix { ld: 3, ..good.a },
                ..good
            },
            "the leading dimension of A is 3, less than 4",
        ),
        (
            Product {
                d: Matrix { ld: 2, ..good.d },
                ..good
            },
            "the leading dimension of D is 2",
        ),
        (
            Product {
                b: Matrix { rows: 3, ..good.b },
                ..good
            },
            "shapes disagree",
        ),
        (
            Product {
                c: Matrix { cols: 3, ..good.c },
                ..good
            },
            "shapes disagree",
        ),
        (
            Product {
                a: good.a.times(2, 16),
                ..good
            },
            "batch counts",
        ),
        (
            Product {
                a: good.a.times(2, 16),
                b: good.b.times(2, 16),
                c: good.c.times(2, 8),
                d: good.d.times(2, 8),
                ..good
            },
            "matrices of D overlap",
        ),
        (
            Product {
                inputs: double,
                ..good
            },
            "the types of A, B, C, D",
        ),
        (
            Product {
                outputs: half,
                ..good
            },
            "the types of A, B, C, D",
        ),
        (
            Product {
                scale: double,
                ..good
            },
            "scale type 1",
        ),
        (
            Product {
                compute: Compute::CUBLAS_COMPUTE_16F,
                ..good
            },
            "compute type 64",
        ),
        (
            Product {
                epilogue: 32,
                ..good
            },
            "epilogue 32",
        ),
        (
            Product {
                epilogue: 4,
                ..good
            },
            "its address is not set",
        ),
    ];
    for (product, says) in bad {
        assert_eq!(run(&bench, &product, stream), 15, "{says}");
        bench.one_report(says);
    }
    assert_eq!(run(&bench, &good, stream), 0);
    bench.no_report();
}

#[test]
fn the_output_is_not_an_input() {
    let bench = Bench::new();
    let (stream, good) = (bench.stream(), small(&bench));
    let over_a = Product {
        c: good.a,
        d: good.a,
        ..good
    };
    assert_eq!(run(&bench, &over_a, stream), 7);
    bench.one_report("D of a matrix product overlaps A");
    let within_b = Matrix {
        at: good.b.at + 32,
        ..good.d
    };
    let over_b = Product {
        c: within_b,
        d: within_b,
        ..good
    };
    assert_eq!(run(&bench, &over_b, stream), 7);
    bench.one_report("D of a matrix product overlaps B");
    // C may be D, but only as the same matrix; without beta it is not read at all.
    let shifted = Matrix {
        at: good.d.at + 16,
        ..good.d
    };
    let moved = Product { c: shifted, ..good };
    assert_eq!(run(&bench, &moved, stream), 0);
    assert_eq!(
        run(
            &bench,
            &Product {
                scales: [1.0, 1.0],
                ..good
            },
            stream
        ),
        0
    );
    bench.no_report();
    assert_eq!(
        run(
            &bench,
            &Product {
                scales: [1.0, 1.0],
                ..moved
            },
            stream
        ),
        7
    );
    bench.one_report("D of a matrix product overlaps C");
    let other_lines = Matrix { ld: 5, ..good.d };
    assert_eq!(
        run(
            &bench,
            &Product {
                scales: [1.0, 1.0],
                c: other_lines,
                ..good
            },
            stream
        ),
        7
    );
    bench.one_report("D of a matrix product overlaps C");
    let nothing = Matrix { at: 0, ..good.d };
    assert_eq!(
        run(
            &bench,
            &Product {
                scales: [1.0, 1.0],
                c: nothing,
                ..good
            },
            stream
        ),
        7
    );
    bench.one_report("C is null");
    assert_eq!(run(&bench, &Product { c: nothing, ..good }, stream), 0);
    bench.no_report();
    // Columns of one buffer may be input and output, if they are different ones.
    let (left, right) = (
        Matrix { ld: 8, ..good.a },
        Matrix {
            ld: 8,
            at: good.a.at + 16,
            ..good.a
        },
    );
    assert_eq!(
        run(
            &bench,
            &Product {
                a: left,
                c: right,
                d: right,
                ..good
            },
            stream
        ),
        0
    );
    bench.no_report();
}

#[test]
fn operands_are_inside_of_their_memory_and_have_values() {
    let bench = Bench::new();
    let (stream, good) = (bench.stream(), small(&bench));
    let beyond = Product {
        a: Matrix { ld: 21, ..good.a },
        ..good
    };
    assert_eq!(run(&bench, &beyond, stream), 7);
    bench.one_report("A of a matrix product: 268 bytes at offset 0");
    assert!(bench.gpu.undefine(good.b.at + 60, 4));
    assert_eq!(run(&bench, &good, stream), 0);
    bench.one_report("B has no value at byte 60");
    let fresh = Matrix {
        at: bench.floats(16),
        ..good.d
    };
    let product = Product {
        b: good.a,
        c: fresh,
        d: fresh,
        ..good
    };
    assert_eq!(run(&bench, &product, stream), 0);
    bench.no_report();
    let fresh = Matrix {
        at: bench.floats(16),
        ..good.d
    };
    let product = Product {
        b: good.a,
        c: fresh,
        d: fresh,
        scales: [1.0, 1.0],
        ..good
    };
    assert_eq!(run(&bench, &product, stream), 0);
    bench.one_report("C has no value at byte 0");
}

#[test]
fn algorithms_are_for_one_problem_and_its_alignment() {
    let bench = Bench::new();
    let (stream, good) = (bench.stream(), small(&bench));
    let smaller = Product {
        a: Matrix { cols: 3, ..good.a },
        b: Matrix { rows: 3, ..good.b },
        ..good
    };
    let (setup, other) = (Setup::new(&good), Setup::new(&smaller));
    let choice = other.heuristic().expect("an algorithm");
    assert_eq!(setup.run(&good, &choice.algo, (0, 0), stream), 7);
    bench.one_report("chosen for another problem");
    let turned = Product {
        transpose: [true, false],
        ..good
    };
    let choice = Setup::new(&turned).heuristic().expect("an algorithm");
    assert_eq!(setup.run(&good, &choice.algo, (0, 0), stream), 7);
    bench.one_report("chosen for another problem");
    let unknown = sys::cublasLtMatmulAlgo_t { data: [7; 8] };
    assert_eq!(setup.run(&good, &unknown, (0, 0), stream), 7);
    bench.one_report("not made by the heuristic");

    let moved = Product {
        a: Matrix {
            at: good.a.at + 16,
            ..good.a
        },
        alignment: 256,
        ..good
    };
    assert_eq!(run(&bench, &moved, stream), 7);
    bench.one_report("chosen for multiples of 256");
    assert_eq!(
        run(
            &bench,
            &Product {
                alignment: 16,
                ..moved
            },
            stream
        ),
        0
    );
    bench.no_report();
    let odd = Product {
        a: Matrix {
            at: good.a.at + 2,
            ..good.a
        },
        ..good
    };
    assert_eq!(run(&bench, &odd, stream), 7);
    bench.one_report("not at a multiple of its elements' 4 bytes");
}

#[test]
fn workspace_is_large_enough_aligned_and_lost() {
    let bench = Bench::new();
    let stream = bench.stream();
    let a = floats(&bench, &numbers(4 * 512, 1));
    let d = bench.floats(16);
    let product = Product::new(
        Matrix::new(a, 4, 512),
        Matrix {
            ld: 512,
            ..Matrix::new(a, 512, 4)
        },
        Matrix::new(d, 4, 4),
    );
    // Nothing allowed, nothing needed.
    assert_eq!(
        Setup::new(&product)
            .heuristic()
            .expect("an algorithm")
            .workspaceSize,
        0
    );
    let product = Product {
        allowed: 1 << 20,
        ..product
    };
    let setup = Setup::new(&product);
    let choice = setup.heuristic().expect("an algorithm");
    assert_eq!(choice.workspaceSize, 2 << 16);
    let room = floats(&bench, &vec![1.0; (3 << 16) / 4]);
    let with = |at, len| setup.run(&product, &choice.algo, (at, len), stream);
    assert_eq!(with(room, (2 << 16) - 1), 7);
    bench.one_report("needs 131072 bytes of workspace, not 131071");
    assert_eq!(with(room + 8, 2 << 16), 7);
    bench.one_report("not at a multiple of 16");
    assert_eq!(with(room, 4 << 16), 7);
    bench.one_report("the workspace of a matrix product: 262144 bytes");
    let inside = Product {
        c: Matrix {
            at: room,
            ..product.c
        },
        d: Matrix {
            at: room,
            ..product.d
        },
        ..product
    };
    assert_eq!(setup.run(&inside, &choice.algo, (room, 2 << 16), stream), 7);
    bench.one_report("the workspace of a matrix product overlaps D");
    assert_eq!(with(room, 2 << 16), 0);
    bench.no_report();
    // All of it that was offered is as good as uninitialised.
    assert_eq!(bench.read(room + (2 << 16), 1), [1.0]);
    bench.no_report();
    bench.read(room + (2 << 16) - 4, 1);
    bench.one_report("without a value");
}

#[test]
fn products_are_in_the_order_of_streams() {
    let bench = Bench::new();
    let (one, two, event) = (bench.stream(), bench.stream(), bench.event());
    let good = small(&bench);
    assert_eq!(code(cudarc::driver::result::ctx::synchronize()), 0);
    assert_eq!(bench.fill(one, good.a.at, 1.0, 16), 0);
    assert_eq!(run(&bench, &good, two), 0);
    bench.one_report("stream race: the product of 4 x 4 on stream 2 and kernel fill on stream 1");
    assert_eq!(code(cudarc::driver::result::ctx::synchronize()), 0);
    assert_eq!(bench.fill(one, good.a.at, 1.0, 16), 0);
    assert_eq!(bench.record(event, one), 0);
    assert_eq!(bench.wait(two, event), 0);
    assert_eq!(run(&bench, &good, two), 0);
    bench.no_report();
    assert_eq!(bench.twice(one, good.b.at + 64, good.d.at, 4), 0);
    bench.one_report("the first reads, the second writes");
}

#[test]
fn products_are_captured() {
    let bench = Bench::new();
    let stream = bench.stream();
    let mut good = small(&bench);
    let old = bench.read(good.d.at, 16);
    assert_eq!(bench.begin(stream), 0);
    good.scales = [0.0, 2.0];
    assert_eq!(run(&bench, &good, stream), 0);
    good.scales = [0.0, 7.0];
    let exec = bench.instantiate(bench.end(stream).expect("a graph"));
    assert_eq!(bench.read(good.d.at, 16), old);
    for launches in 1..3 {
        assert_eq!(bench.replay(exec, stream), 0);
        let expected: Vec<f32> = old
            .iter()
            .map(|value| value * 2f32.powi(launches))
            .collect();
        assert_eq!(bench.read(good.d.at, 16), expected);
    }
    bench.no_report();
    assert_eq!(good.scales[1], 7.0);
    assert_eq!(bench.free(good.a.at), 0);
    assert_eq!(bench.replay(exec, stream), 0);
    bench.one_report("stale graph: the product of 4 x 4");
}

#[test]
fn products_fail_when_asked_to() {
    let bench = Bench::new();
    let (stream, good) = (bench.stream(), small(&bench));
    bench.gpu.inject(Fault::Call("cublasLtMatmul", 2, 14));
    assert_eq!([0, 14, 0].map(|_| run(&bench, &good, stream)), [0, 14, 0]);
    bench.gpu.inject(Fault::Launch(1));
    assert_eq!(run(&bench, &good, stream), 0);
    assert_eq!(bench.synchronize(stream), 719);
    bench.no_report();
}

#[test]
fn objects_die_once_and_are_counted() {
    let bench = Bench::new();
    let good = small(&bench);
    let before = bench.gpu.leaks();
    let setup = Setup::new(&good);
    assert!(
        bench.gpu.leaks().contains(&"4 matrix layouts".to_string()),
        "{:?}",
        bench.gpu.leaks()
    );
    let layout = setup.layouts[0];
    drop(setup);
    assert_eq!(bench.gpu.leaks(), before);
    // SAFETY: the library checks handles.
    let again = unsafe { lt::destroy_matrix_layout(layout) };
    assert_eq!(again.map_or_else(|error| error.0 as u32, |()| 0), 7);
    bench.one_report("does not exist");
    bench.gpu.calls()["cublasLtMatrixLayoutDestroy"]
        .checked_sub(5)
        .expect("five calls");
}
