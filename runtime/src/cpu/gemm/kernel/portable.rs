//! Kernels in plain Rust, which the compiler vectorises for the instruction set that it compiles for.

use super::{Job, Kernel, Kernels};
use crate::cpu::gemm::element::Accumulator;

/// Four rows of eight fill the sixteen 128-bit registers of x86-64 by half, eight those of AArch64.
const NR: usize = 8;

/// The kernel for `R` rows.
///
/// # Safety
///
/// As [`Kernel`].
unsafe fn tile<T: Accumulator, const R: usize, const PACKED: bool>(job: &Job<T>) {
    let a_stride = if PACKED {
        job.a_depth_stride
    } else {
        job.a_row_stride
    };
    let mut sums = [[T::ZERO; NR]; R];
    for p in 0..job.k {
        // SAFETY: the right operand has `k` groups of `NR` elements.
        let b = unsafe { job.b.add(p * job.b_stride).cast::<[T; NR]>().read() };
        for (row, sums) in sums.iter_mut().enumerate() {
            let at = if PACKED {
                p * a_stride + row
            } else {
                row * a_stride + p
            };
            // SAFETY: the left operand has an element for every row of the tile and every `p`.
            let a = unsafe { *job.a.add(at) };
            for (sum, &b) in sums.iter_mut().zip(&b) {
                *sum = a.multiply_add(b, *sum);
            }
        }
    }
    for (row, sums) in sums.iter().enumerate() {
        for (col, &sum) in sums.iter().enumerate().take(job.cols) {
            let mut value = sum.times(job.alpha);
            // SAFETY: the element lies in the tile, to which the caller has exclusive access.
            let place = unsafe { &mut *job.c.add(row * job.c_stride + col) };
            if job.beta != T::ZERO {
                value = job.beta.multiply_add(*place, value);
            }
            *place = value;
        }
    }
}

/// Kernels for any type, one row at a time: for products whose speed does not matter.
pub fn rows_apart<T: Accumulator>() -> &'static Kernels<T> {
    const {
        &Kernels {
            name: "rows apart",
            nr: NR,
            packed: &[tile::<T, 1, true> as Kernel<T>],
            unpacked: &[tile::<T, 1, false> as Kernel<T>],
            interleave: None,
        }
    }
}

macro_rules! kernels {
    ($name:ident, $type:ty, $($rows:literal)*) => {
        /// The kernels.
        pub static $name: Kernels<$type> = Kernels {
            name: "portable",
            nr: NR,
            packed: const { &[$(tile::<$type, $rows, true> as Kernel<$type>),*] },
            unpacked: const { &[$(tile::<$type, $rows, false> as Kernel<$type>),*] },
            interleave: None,
        };
    };
}

#[cfg(not(target_arch = "aarch64"))]
kernels!(F32, f32, 1 2 3 4);
#[cfg(not(target_arch = "aarch64"))]
kernels!(F64, f64, 1 2 3 4);
#[cfg(target_arch = "aarch64")]
kernels!(F32, f32, 1 2 3 4 5 6 7 8);
#[cfg(target_arch = "aarch64")]
kernels!(F64, f64, 1 2 3 4 5 6 7 8);
