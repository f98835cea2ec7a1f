//! A matrix product as cuBLASLt's stand-in hands it to the driver's. Both compile this file: they are two
//! libraries, and this is the layout that crosses between them.

/// `CUDA_R_32F`.
pub(crate) const F32: i32 = 0;
/// `CUDA_R_64F`.
pub(crate) const F64: i32 = 1;
/// `CUDA_R_16F`.
pub(crate) const F16: i32 = 2;
/// `CUDA_R_16BF`.
pub(crate) const BF16: i32 = 14;
/// `CUBLASLT_ORDER_ROW`; column order is 0.
pub(crate) const ROW: i32 = 1;
/// `CUBLAS_COMPUTE_32F_FAST_TF32`.
pub(crate) const FAST_TF32: i32 = 77;
/// `CUBLASLT_EPILOGUE_BIAS`.
pub(crate) const BIAS: i32 = 4;

/// Bytes of an element.
pub(crate) fn size_of(kind: i32) -> usize {
    match kind {
        F64 => 8,
        F32 => 4,
        _ => 2,
    }
}

/// A matrix in device memory.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Matrix {
    /// Address of its first element.
    pub(crate) at: u64,
    /// Elements, `cudaDataType`.
    pub(crate) kind: i32,
    /// `cublasLtOrder_t`.
    pub(crate) order: i32,
    pub(crate) rows: u64,
    pub(crate) cols: u64,
    /// Elements from one column (row, in row order) to the next.
    pub(crate) ld: i64,
    /// Elements from one matrix of a batch to the next.
    pub(crate) stride: i64,
    pub(crate) batch: i32,
}

/// D = α · op(A) · op(B) + β · C (+ bias on each row).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Matmul {
    pub(crate) a: Matrix,
    pub(crate) b: Matrix,
    pub(crate) c: Matrix,
    pub(crate) d: Matrix,
    pub(crate) transpose_a: bool,
    pub(crate) transpose_b: bool,
    /// `cublasComputeType_t`.
    pub(crate) compute: i32,
    /// `cublasLtEpilogue_t`.
    pub(crate) epilogue: i32,
    /// Address of as many elements as D has rows.
    pub(crate) bias: u64,
    pub(crate) bias_kind: i32,
    /// Elements from the bias of one matrix of a batch to the next.
    pub(crate) bias_stride: i64,
    pub(crate) alpha: f64,
    pub(crate) beta: f64,
    pub(crate) workspace: u64,
    pub(crate) workspace_len: u64,
}
