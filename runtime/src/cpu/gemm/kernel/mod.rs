//! The micro-kernels: a tile of at most `mr` by `nr` elements of the product, in registers.
//!
//! An element of the result is one chain of (fused) multiply-adds over the inner dimension whatever the
//! size of the tile, so how a product is cut into tiles does not show in its bits.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod portable;

pub use portable::rows_apart;

/// What a kernel computes: `c = alpha * a b + beta * c` on one tile.
pub struct Job<T> {
    /// The length of the sums.
    pub k: usize,
    /// The left operand: the first element of the first row of the tile.
    pub a: *const T,
    /// Elements between the rows of the left operand; those of a packed one lie side by side.
    pub a_row_stride: usize,
    /// Elements between the groups of a packed left operand, of which there is one for each of the `k` terms;
    /// the elements of a row of an unpacked one lie side by side.
    pub a_depth_stride: usize,
    /// The right operand: `k` groups of `nr` elements.
    pub b: *const T,
    /// Elements between the groups of the right operand.
    pub b_stride: usize,
    /// The tile of the result.
    pub c: *mut T,
    /// Elements between the rows of the result.
    pub c_stride: usize,
    /// The columns of the tile, at most `nr`.
    pub cols: usize,
    /// The factor of the product.
    pub alpha: T,
    /// The factor of what the tile holds; the tile is not read if it is zero.
    pub beta: T,
}

/// A micro-kernel for a fixed number of rows.
///
/// # Safety
///
/// The operands of the job are readable and the tile writable at all places that its fields describe, the
/// right operand also in the columns that the tile lacks, and the instructions of the kernel exist here.
pub type Kernel<T> = unsafe fn(&Job<T>);

/// Interleaves: `destination[p * width + lane] = source[lane * stride + p]` for `p < k`, `lane < lanes`.
///
/// # Safety
///
/// `lanes <= width`, both places are readable or writable in full, and the instructions exist here.
pub type Interleave<T> = unsafe fn(
    source: *const T,
    stride: usize,
    lanes: usize,
    k: usize,
    destination: *mut T,
    width: usize,
);

/// The kernels of one instruction set.
pub struct Kernels<T: 'static> {
    /// The name of the instruction set.
    pub name: &'static str,
    /// The columns of a full tile.
    pub nr: usize,
    /// For each number of rows from 1 on, the kernel for a left operand in groups of elements, one of each row.
    pub packed: &'static [Kernel<T>],
    /// The same for a left operand whose rows are contiguous.
    pub unpacked: &'static [Kernel<T>],
    /// A fast way to pack an operand against the order in which it lies.
    pub interleave: Option<Interleave<T>>,
}

impl<T> Kernels<T> {
    /// The rows of a full tile.
    pub fn mr(&self) -> usize {
        self.packed.len()
    }
}

/// The kernels for `f32` on this machine.
pub fn f32() -> &'static Kernels<f32> {
    #[cfg(target_arch = "x86_64")]
    {
        if std::arch::is_x86_feature_detected!("avx512f") {
            return &avx512::F32;
        }
        if std::arch::is_x86_feature_detected!("avx2") && std::arch::is_x86_feature_detected!("fma")
        {
            return &avx2::F32;
        }
    }
    &portable::F32
}

/// The kernels for `f64` on this machine.
pub fn f64() -> &'static Kernels<f64> {
    #[cfg(target_arch = "x86_64")]
    {
        // None for AVX-512: layers in 64 bits are rare, and its many kernels take long to compile.
        if std::arch::is_x86_feature_detected!("avx2") && std::arch::is_x86_feature_detected!("fma")
        {
            return &avx2::F64;
        }
    }
    &portable::F64
}

/// All kernels for `f32` that run on this machine, for tests.
#[cfg(test)]
pub fn all_f32() -> Vec<&'static Kernels<f32>> {
    let mut all = vec![&portable::F32];
    #[cfg(target_arch = "x86_64")]
    {
        if std::arch::is_x86_feature_detected!("avx2") && std::arch::is_x86_feature_detected!("fma")
        {
            all.push(&avx2::F32);
        }
        if std::arch::is_x86_feature_detected!("avx512f") {
            all.push(&avx512::F32);
        }
    }
    all
}
