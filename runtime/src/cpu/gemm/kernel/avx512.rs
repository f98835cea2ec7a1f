//! Kernels for AVX-512: up to fourteen rows of two vectors, 28 of the 32 registers.

use std::arch::x86_64::*;

use super::{Job, Kernel, Kernels};

/// How far ahead of the sums the right operand is fetched, in groups.
const AHEAD: usize = 16;

macro_rules! kernel {
    (
        $tile:ident, $dispatch:ident, $name:ident, $type:ty, $vector:ty, $mask:ty, $lanes:literal,
        $zero:ident, $load:ident, $mask_load:ident, $splat:ident, $mul:ident, $fmadd:ident,
        $store:ident, $mask_store:ident, $interleave:expr
    ) => {
        /// The kernel for `R` rows of `V` vectors.
        ///
        /// # Safety
        ///
        /// As [`Kernel`], with at most `V` vectors of columns.
        #[target_feature(enable = "avx512f")]
        #[inline]
        unsafe fn $tile<const R: usize, const V: usize, const PACKED: bool>(job: &Job<$type>) {
            let (k, a, b, b_stride) = (job.k, job.a, job.b, job.b_stride);
            let a_stride = if PACKED { job.a_depth_stride } else { job.a_row_stride };
            for row in 0..R {
                // The result is needed only after the sums: it comes meanwhile. Prefetches cannot fault.
                let row = job.c.wrapping_add(row * job.c_stride);
                _mm_prefetch::<_MM_HINT_T0>(row.cast());
                _mm_prefetch::<_MM_HINT_T0>(row.wrapping_add(job.cols - 1).cast());
            }
            let mut sums = [[$zero(); V]; R];
            let mut step = |p: usize| {
                let ahead = b.wrapping_add((p + AHEAD) * b_stride);
                _mm_prefetch::<_MM_HINT_T0>(ahead.cast());
                _mm_prefetch::<_MM_HINT_T0>(ahead.wrapping_add($lanes).cast());
                let mut right = [$zero(); V];
                for (v, right) in right.iter_mut().enumerate() {
                    // SAFETY: the right operand has `k` groups of two vectors.
                    *right = unsafe { $load(b.add(p * b_stride + v * $lanes)) };
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
                for (v, &sum) in sums.iter().enumerate() {
                    let value = $mul(sum, alpha);
                    let left = job.cols - v * $lanes;
                    let mask: $mask = if left >= $lanes { !0 } else { (1 << left) - 1 };
                    // SAFETY: where the mask has a bit there is an element of the tile.
                    unsafe {
                        let place = job.c.add(row * job.c_stride + v * $lanes);
                        if mask == !0 {
                            let value = if job.beta == 0.0 {
                                value
                            } else {
                                $fmadd(beta, $load(place), value)
                            };
                            $store(place, value);
                        } else {
                            let value = if job.beta == 0.0 {
                                value
                            } else {
                                $fmadd(beta, $mask_load(mask, place), value)
                            };
                            $mask_store(place, mask, value);
                        }
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
            // SAFETY: the caller's promise; one vector is enough for these columns.
            unsafe {
                if job.cols > $lanes {
                    $tile::<R, 2, PACKED>(job)
                } else {
                    $tile::<R, 1, PACKED>(job)
                }
            }
        }

        kernel!(table $name $type, $dispatch, $lanes, $interleave,
            1 2 3 4 5 6 7 8 9 10 11 12 13 14);
    };
    (table $name:ident $type:ty, $dispatch:ident, $lanes:literal, $interleave:expr, $($rows:literal)*) => {
        /// The kernels.
        pub static $name: Kernels<$type> = Kernels {
            name: "AVX-512",
            nr: 2 * $lanes,
            packed: const { &[$($dispatch::<$rows, true> as Kernel<$type>),*] },
            unpacked: const { &[$($dispatch::<$rows, false> as Kernel<$type>),*] },
            interleave: $interleave,
        };
    };
}

kernel!(
    tile_f32,
    dispatch_f32,
    F32,
    f32,
    __m512,
    u16,
    16,
    _mm512_setzero_ps,
    _mm512_loadu_ps,
    _mm512_maskz_loadu_ps,
    _mm512_set1_ps,
    _mm512_mul_ps,
    _mm512_fmadd_ps,
    _mm512_storeu_ps,
    _mm512_mask_storeu_ps,
    Some(interleave)
);
/// Transposes sixteen vectors of sixteen elements.
#[target_feature(enable = "avx512f")]
#[inline]
fn transpose(r: [__m512; 16]) -> [__m512; 16] {
    let mut t = [_mm512_setzero_ps(); 16];
    // Pairs of rows, then groups of four: afterwards `s[4 g + c]` holds in its 128-bit lane `l` the column
    // `4 l + c` of the rows `4 g..4 g + 4`.
    for i in 0..8 {
        t[2 * i] = _mm512_unpacklo_ps(r[2 * i], r[2 * i + 1]);
        t[2 * i + 1] = _mm512_unpackhi_ps(r[2 * i], r[2 * i + 1]);
    }
    let mut s = [_mm512_setzero_ps(); 16];
    for g in 0..4 {
        for half in 0..2 {
            // Not `map`: what the standard library calls is not compiled for these instructions.
            let first = _mm512_castps_pd(t[4 * g + half]);
            let second = _mm512_castps_pd(t[4 * g + 2 + half]);
            let at = 4 * g + 2 * half;
            s[at] = _mm512_castpd_ps(_mm512_unpacklo_pd(first, second));
            s[at + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(first, second));
        }
    }
    // A transposition of the 4 by 4 matrix of 128-bit lanes for each `c`.
    let mut out = [_mm512_setzero_ps(); 16];
    for c in 0..4 {
        let even01 = _mm512_shuffle_f32x4::<0b10_00_10_00>(s[c], s[4 + c]);
        let odd01 = _mm512_shuffle_f32x4::<0b11_01_11_01>(s[c], s[4 + c]);
        let even23 = _mm512_shuffle_f32x4::<0b10_00_10_00>(s[8 + c], s[12 + c]);
        let odd23 = _mm512_shuffle_f32x4::<0b11_01_11_01>(s[8 + c], s[12 + c]);
        out[c] = _mm512_shuffle_f32x4::<0b10_00_10_00>(even01, even23);
        out[8 + c] = _mm512_shuffle_f32x4::<0b11_01_11_01>(even01, even23);
        out[4 + c] = _mm512_shuffle_f32x4::<0b10_00_10_00>(odd01, odd23);
        out[12 + c] = _mm512_shuffle_f32x4::<0b11_01_11_01>(odd01, odd23);
    }
    out
}

/// Interleaves `f32` elements sixteen by sixteen.
///
/// # Safety
///
/// As [`super::Interleave`].
unsafe fn interleave(
    source: *const f32,
    stride: usize,
    lanes: usize,
    k: usize,
    destination: *mut f32,
    width: usize,
) {
    // SAFETY: the caller's promise.
    unsafe { interleave_blocks(source, stride, lanes, k, destination, width) }
}

/// See [`interleave`].
///
/// # Safety
///
/// As [`super::Interleave`].
#[target_feature(enable = "avx512f")]
unsafe fn interleave_blocks(
    source: *const f32,
    stride: usize,
    lanes: usize,
    k: usize,
    destination: *mut f32,
    width: usize,
) {
    for p in (0..k).step_by(16) {
        let depth = (k - p).min(16);
        let read: u16 = if depth == 16 { !0 } else { (1 << depth) - 1 };
        for lane in (0..lanes).step_by(16) {
            let here = (lanes - lane).min(16);
            let write: u16 = if here == 16 { !0 } else { (1 << here) - 1 };
            let mut block = [_mm512_setzero_ps(); 16];
            for (i, row) in block.iter_mut().enumerate() {
                if i < here {
                    // SAFETY: the lane exists, and the mask leaves out what lies behind its end.
                    *row =
                        unsafe { _mm512_maskz_loadu_ps(read, source.add((lane + i) * stride + p)) };
                }
            }
            for (i, &group) in transpose(block).iter().enumerate() {
                if i < depth {
                    // SAFETY: the group exists, and the mask leaves out the lanes that do not.
                    unsafe {
                        let place = destination.add((p + i) * width + lane);
                        if write == !0 {
                            _mm512_storeu_ps(place, group);
                        } else {
                            _mm512_mask_storeu_ps(place, write, group);
                        }
                    }
                }
            }
        }
    }
}
