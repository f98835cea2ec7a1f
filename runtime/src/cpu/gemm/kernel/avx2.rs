//! Kernels for AVX2 with FMA: up to six rows of two vectors, 12 of the 16 registers.

use std::arch::x86_64::*;

use super::{Job, Kernel, Kernels};

macro_rules! kernel {
    (
        $tile:ident, $dispatch:ident, $name:ident, $type:ty, $vector:ty, $lanes:literal,
        $zero:ident, $load:ident, $splat:ident, $mul:ident, $fmadd:ident, $store:ident
    ) => {
        /// The kernel for `R` rows.
        ///
        /// # Safety
        ///
        /// As [`Kernel`].
        #[target_feature(enable = "avx2,fma")]
        #[inline]
        unsafe fn $tile<const R: usize, const PACKED: bool>(job: &Job<$type>) {
            const NR: usize = 2 * $lanes;
            let (k, a, b, b_stride) = (job.k, job.a, job.b, job.b_stride);
            let a_stride = if PACKED { job.a_depth_stride } else { job.a_row_stride };
            for row in 0..R {
                // The result is needed only after the sums: it comes meanwhile. Prefetches cannot fault.
                let row = job.c.wrapping_add(row * job.c_stride);
                _mm_prefetch::<_MM_HINT_T0>(row.cast());
            }
            // A loop that is not unrolled would reach the sums through an address, and they would live in
            // memory rather than in registers: 31 instead of 84 GF/s on Zen 3. Hence a loop for each task,
            // with a body of a line or two and borders that are constants.
            let mut sums = [[$zero(); 2]; R];
            for p in 0..k {
                let group = b.wrapping_add(p * b_stride);
                // SAFETY: the right operand has `k` groups of two vectors.
                let right = unsafe { [$load(group), $load(group.add($lanes))] };
                for row in 0..R {
                    let at = if PACKED { p * a_stride + row } else { row * a_stride + p };
                    // SAFETY: the left operand has an element for every row of the tile and every `p`.
                    let left = $splat(unsafe { *a.add(at) });
                    sums[row][0] = $fmadd(left, right[0], sums[row][0]);
                    sums[row][1] = $fmadd(left, right[1], sums[row][1]);
                }
            }
            let (alpha, beta) = ($splat(job.alpha), $splat(job.beta));
            for row in 0..R {
                sums[row] = [$mul(sums[row][0], alpha), $mul(sums[row][1], alpha)];
            }
            if job.cols == NR && job.beta == 0.0 {
                for row in 0..R {
                    // SAFETY: the row has `NR` columns.
                    unsafe {
                        let place = job.c.add(row * job.c_stride);
                        $store(place, sums[row][0]);
                        $store(place.add($lanes), sums[row][1]);
                    }
                }
            } else if job.cols == NR {
                for row in 0..R {
                    // SAFETY: the row has `NR` columns.
                    unsafe {
                        let place = job.c.add(row * job.c_stride);
                        let second = place.add($lanes);
                        $store(place, $fmadd(beta, $load(place), sums[row][0]));
                        $store(second, $fmadd(beta, $load(second), sums[row][1]));
                    }
                }
            } else {
                let mut local = [[0.0; NR]; R];
                for row in 0..R {
                    let place = local[row].as_mut_ptr();
                    // SAFETY: a row of the array has two vectors.
                    unsafe {
                        $store(place, sums[row][0]);
                        $store(place.add($lanes), sums[row][1]);
                    }
                }
                for (row, local) in local.iter().enumerate() {
                    for (col, &value) in local.iter().enumerate().take(job.cols) {
                        // SAFETY: the element lies in the tile.
                        let place = unsafe { &mut *job.c.add(row * job.c_stride + col) };
                        *place =
                            if job.beta == 0.0 { value } else { job.beta.mul_add(*place, value) };
                    }
                }
            }
        }

        /// The kernel for `R` rows.
        ///
        /// # Safety
        ///
        /// As [`Kernel`].
        unsafe fn $dispatch<const R: usize, const PACKED: bool>(job: &Job<$type>) {
            // SAFETY: the caller's promise.
            unsafe { $tile::<R, PACKED>(job) }
        }

        /// The kernels.
        pub static $name: Kernels<$type> = Kernels {
            name: "AVX2",
            nr: 2 * $lanes,
            packed: kernel!(table $type, $dispatch, true, 1 2 3 4 5 6),
            unpacked: kernel!(table $type, $dispatch, false, 1 2 3 4 5 6),
            interleave: None,
        };
    };
    (table $type:ty, $dispatch:ident, $packed:literal, $($rows:literal)*) => {
        const { &[$($dispatch::<$rows, $packed> as Kernel<$type>),*] }
    };
}

kernel!(
    tile_f32,
    dispatch_f32,
    F32,
    f32,
    __m256,
    8,
    _mm256_setzero_ps,
    _mm256_loadu_ps,
    _mm256_set1_ps,
    _mm256_mul_ps,
    _mm256_fmadd_ps,
    _mm256_storeu_ps
);
kernel!(
    tile_f64,
    dispatch_f64,
    F64,
    f64,
    __m256d,
    4,
    _mm256_setzero_pd,
    _mm256_loadu_pd,
    _mm256_set1_pd,
    _mm256_mul_pd,
    _mm256_fmadd_pd,
    _mm256_storeu_pd
);
