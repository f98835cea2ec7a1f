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
            let mut sums = [[$zero(); 2]; R];
            let mut step = |p: usize| {
                let group = b.wrapping_add(p * b_stride);
                let mut right = [$zero(); 2];
                for (v, right) in right.iter_mut().enumerate() {
                    // SAFETY: the right operand has `k` groups of two vectors.
                    *right = unsafe { $load(group.add(v * $lanes)) };
                }
                for (row, sums) in sums.iter_mut().enumerate() {
                    let at = if PACKED { p * a_stride + row } else { row * a_stride + p };
                    // SAFETY: the left operand has an element for every row of the tile and every `p`.
                    let left = $splat(unsafe { *a.add(at) });
                    for (sum, &right) in sums.iter_mut().zip(&right) {
                        *sum = $fmadd(left, right, *sum);
                    }
                }
            };
            let mut p = 0;
            while p + 4 <= k {
                step(p);
                step(p + 1);
                step(p + 2);
                step(p + 3);
                p += 4;
            }
            while p < k {
                step(p);
                p += 1;
            }
            let (alpha, beta) = ($splat(job.alpha), $splat(job.beta));
            for (row, sums) in sums.iter().enumerate() {
                let place = job.c.wrapping_add(row * job.c_stride);
                if job.cols == NR {
                    for (v, &sum) in sums.iter().enumerate() {
                        let value = $mul(sum, alpha);
                        // SAFETY: the row has `NR` columns.
                        unsafe {
                            let place = place.add(v * $lanes);
                            let value = if job.beta == 0.0 {
                                value
                            } else {
                                $fmadd(beta, $load(place), value)
                            };
                            $store(place, value);
                        }
                    }
                } else {
                    let mut local = [0.0; NR];
                    for (v, &sum) in sums.iter().enumerate() {
                        // SAFETY: the array has two vectors.
                        unsafe { $store(local.as_mut_ptr().add(v * $lanes), $mul(sum, alpha)) };
                    }
                    for (col, &value) in local.iter().enumerate().take(job.cols) {
                        // SAFETY: the column exists.
                        let place = unsafe { &mut *place.add(col) };
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
