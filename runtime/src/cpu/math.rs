//! Elementary functions in 32-bit floating point that compile to vector code.
//!
//! Straight-line code without tables or fused multiply-add, so that the bits are the same on every
//! machine and at every position of a vector. What needs more precision inside is done in 64 bits, which
//! leaves little but the final rounding. Errors are measured by the tests.

use std::f64::consts::{FRAC_2_PI, LN_2, LOG2_E};

/// Adding it rounds a number of less than 2²² to an integer, which is then in the lowest bits.
const ROUND_F32: f32 = 12_582_912.0;

/// The same for 64 bits and numbers of less than 2⁵¹.
const ROUND_F64: f64 = 6_755_399_441_055_744.0;

/// The exponential.
///
/// Cody and Waite's reduction to |r| ≤ ½ log 2, then a polynomial with the coefficients of Cephes' `expf`.
#[inline(always)]
pub fn exp(x: f32) -> f32 {
    // Below it the exponential is 0. It is not computed there: results that are no normal numbers cost a
    // processor a hundred times as much, and half of the scores of attention are minus infinity.
    let tiny = x < -104.0;
    // NaN passes both bounds.
    let x = if x > 89.0 { 89.0 } else { x };
    let x = if tiny { 0.0 } else { x };
    let shifted = x * std::f32::consts::LOG2_E + ROUND_F32;
    let n = shifted - ROUND_F32;
    let r = x - n * 0.693_359_4;
    let r = r - n * -2.121_944_4e-4;
    let mut p = 1.987_569_1e-4;
    p = p * r + 1.398_199_9e-3;
    p = p * r + 8.333_452e-3;
    p = p * r + 4.166_579_6e-2;
    p = p * r + 1.666_666_5e-1;
    p = p * r + 5e-1;
    let value = (p * r) * r + r + 1.0;
    // In two halves: the power of two alone may be no normal number.
    let k = (shifted.to_bits() as i32).wrapping_sub(ROUND_F32.to_bits() as i32);
    let half = k >> 1;
    let value = value * power_of_two(half) * power_of_two(k.wrapping_sub(half));
    if tiny { 0.0 } else { value }
}

#[inline(always)]
fn power_of_two(k: i32) -> f32 {
    f32::from_bits((k.wrapping_add(127) as u32).wrapping_shl(23))
}

/// `1 / (1 + exp(-x))`.
#[inline(always)]
pub fn sigmoid(x: f32) -> f32 {
    // Of -|x|, so that nothing overflows.
    let e = exp(-x.abs());
    let above = if x < 0.0 { e } else { 1.0 };
    above / (1.0 + e)
}

/// The hyperbolic tangent; the polynomial near 0 has the coefficients of Cephes' `tanhf`.
#[inline(always)]
pub fn tanh(x: f32) -> f32 {
    let z = x * x;
    let mut p = -5.704_988_7e-3;
    p = p * z + 2.063_909e-2;
    p = p * z - 5.373_971_6e-2;
    p = p * z + 1.333_144_2e-1;
    p = p * z - 3.333_328e-1;
    let near = (p * z) * x + x;
    let size = x.abs();
    let far = 1.0 - 2.0 / (exp(2.0 * size) + 1.0);
    let value = if size < 0.625 { near } else { far.copysign(x) };
    // The polynomial loses the sign of 0.
    if x.is_nan() || x == 0.0 { x } else { value }
}

/// The error function.
///
/// The polynomials are those of Norbert Juffa's `erff`: in x near 0, and of `log(1 - erf(x))` beyond.
#[inline(always)]
pub fn erf(x: f32) -> f32 {
    let size = x.abs();
    let square = x * x;
    let mut far = -1.728_534_7e-5 * size + 3.831_979_7e-4;
    let step = -3.883_964_4e-3 * size + 2.425_462_2e-2;
    far = far * square + step;
    far = far * size - 1.067_778_8e-1;
    far = far * size - 6.348_469e-1;
    far = far * size - 1.287_175_1e-1;
    far = far * size - size;
    // Beyond 4 it is 1; the polynomial there is of no use.
    let far = if size > 4.0 { -20.0 } else { far };
    let far = (1.0 - exp(far)).copysign(x);
    let mut near = -5.967_617e-4;
    near = near * square + 4.991_194e-3;
    near = near * square - 2.676_813_5e-2;
    near = near * square + 1.128_199_2e-1;
    near = near * square - 3.761_253_4e-1;
    near = near * square + 1.283_791_7e-1;
    let near = near * x + x;
    let value = if size > 0.927_734_4 { far } else { near };
    if x.is_nan() { x } else { value }
}

/// The logarithm to base 2 of a positive normal number, to about 2⁻³⁸.
#[inline(always)]
fn log2_positive(x: f64) -> f64 {
    // Of √½ and above: the remaining factor lies between √½ and √2.
    const LOWEST: u64 = 0x3fe6_a09e_667f_3bcd;
    let bits = x.to_bits();
    let over = bits.wrapping_sub(LOWEST);
    let exponent = ((over >> 32) as i32) >> 20;
    let m = f64::from_bits(bits.wrapping_sub(over & 0xfff0_0000_0000_0000));
    2.0 * LOG2_E * artanh((m - 1.0) / (m + 1.0)) + f64::from(exponent)
}

/// The inverse hyperbolic tangent for |s| ≤ 1/3.
#[inline(always)]
fn artanh(s: f64) -> f64 {
    let z = s * s;
    let mut p = 1.0 / 23.0;
    p = p * z + 1.0 / 21.0;
    p = p * z + 1.0 / 19.0;
    p = p * z + 1.0 / 17.0;
    p = p * z + 1.0 / 15.0;
    p = p * z + 1.0 / 13.0;
    p = p * z + 1.0 / 11.0;
    p = p * z + 1.0 / 9.0;
    p = p * z + 1.0 / 7.0;
    p = p * z + 1.0 / 5.0;
    p = p * z + 1.0 / 3.0;
    s + s * (z * p)
}

/// Two to a power, for |x| ≤ 1000.
#[inline(always)]
fn exp2_bounded(x: f64) -> f64 {
    let x = if x > 1000.0 { 1000.0 } else { x };
    let x = if x < -1000.0 { -1000.0 } else { x };
    let shifted = x + ROUND_F64;
    let r = (x - (shifted - ROUND_F64)) * LN_2;
    // Taylor's series for |r| ≤ ½ log 2.
    let mut p = 1.0 / 3_628_800.0;
    p = p * r + 1.0 / 362_880.0;
    p = p * r + 1.0 / 40_320.0;
    p = p * r + 1.0 / 5_040.0;
    p = p * r + 1.0 / 720.0;
    p = p * r + 1.0 / 120.0;
    p = p * r + 1.0 / 24.0;
    p = p * r + 1.0 / 6.0;
    p = p * r + 0.5;
    p = p * r + 1.0;
    p = p * r + 1.0;
    let k = shifted.to_bits().wrapping_sub(ROUND_F64.to_bits());
    p * f64::from_bits(k.wrapping_add(1023) << 52)
}

/// The natural logarithm.
#[inline(always)]
pub fn log(x: f32) -> f32 {
    let value = (log2_positive(f64::from(x)) * LN_2) as f32;
    let value = if x == f32::INFINITY { x } else { value };
    let value = if x == 0.0 { f32::NEG_INFINITY } else { value };
    if x < 0.0 || x.is_nan() {
        f32::NAN
    } else {
        value
    }
}

/// `log(1 + exp(x))`.
#[inline(always)]
pub fn softplus(x: f32) -> f32 {
    let wide = f64::from(x);
    let e = exp2_bounded(-wide.abs() * LOG2_E);
    let above = if x > 0.0 { wide } else { 0.0 };
    let value = (above + 2.0 * artanh(e / (2.0 + e))) as f32;
    if x.is_nan() { x } else { value }
}

/// x to the power of y.
#[inline(always)]
pub fn pow(x: f32, y: f32) -> f32 {
    let size = x.abs();
    let mut logarithm = log2_positive(f64::from(size));
    logarithm = if size == 0.0 {
        f64::NEG_INFINITY
    } else {
        logarithm
    };
    logarithm = if size == f32::INFINITY {
        f64::INFINITY
    } else {
        logarithm
    };
    logarithm = if size.is_nan() { f64::NAN } else { logarithm };
    let product = f64::from(y) * logarithm;
    // An infinite power of ±1 is 1.
    let product = if size == 1.0 && !y.is_nan() {
        0.0
    } else {
        product
    };
    let power = exp2_bounded(product);
    let power = if product.is_nan() { f64::NAN } else { power } as f32;
    let half = y * 0.5;
    let whole = y.floor() == y;
    let odd = whole && half.floor() != half;
    let signed = if odd && x.is_sign_negative() {
        -power
    } else {
        power
    };
    let imaginary = x < 0.0 && size != f32::INFINITY && !whole;
    let value = if imaginary { f32::NAN } else { signed };
    if y == 0.0 || x == 1.0 { 1.0 } else { value }
}

/// Beyond this size, [`sin`], [`cos`] and [`tan`] are not to be used.
pub const TRIGONOMETRIC_LIMIT: f32 = 1_048_576.0;

/// Sine and cosine of a number up to [`TRIGONOMETRIC_LIMIT`], with the polynomials of FreeBSD's msun.
#[inline(always)]
fn sin_cos(x: f64) -> (f64, f64) {
    // π/2 in two parts: the product of the first with an integer below 2²⁰ is exact.
    const HIGH: f64 = 1.570_796_326_734_125_6;
    const LOW: f64 = 6.077_100_506_506_192e-11;
    let shifted = x * FRAC_2_PI + ROUND_F64;
    let n = shifted - ROUND_F64;
    let quadrant = shifted.to_bits();
    let r = (x - n * HIGH) - n * LOW;
    let z = r * r;
    let mut s = 1.589_690_995_211_55e-10;
    s = s * z - 2.505_076_025_340_686_3e-8;
    s = s * z + 2.755_731_370_707_006_8e-6;
    s = s * z - 1.984_126_982_985_795e-4;
    s = s * z + 8.333_333_333_322_49e-3;
    s = s * z - 1.666_666_666_666_663_2e-1;
    let s = (s * z) * r + r;
    let mut c = -1.135_964_755_778_819_5e-11;
    c = c * z + 2.087_572_321_298_175e-9;
    c = c * z - 2.755_731_435_139_066_3e-7;
    c = c * z + 2.480_158_728_947_673e-5;
    c = c * z - 1.388_888_888_887_411e-3;
    c = c * z + 4.166_666_666_666_66e-2;
    let c = (c * z) * z - 0.5 * z + 1.0;
    let swapped = quadrant & 1 != 0;
    let (sin, cos) = if swapped { (c, s) } else { (s, c) };
    let sin = if quadrant & 2 != 0 { -sin } else { sin };
    let cos = if quadrant.wrapping_add(1) & 2 != 0 {
        -cos
    } else {
        cos
    };
    (sin, cos)
}

/// The sine of a number up to [`TRIGONOMETRIC_LIMIT`].
#[inline(always)]
pub fn sin(x: f32) -> f32 {
    let value = sin_cos(f64::from(x)).0 as f32;
    // The reduction loses the sign of 0.
    if x == 0.0 { x } else { value }
}

/// The cosine of a number up to [`TRIGONOMETRIC_LIMIT`].
#[inline(always)]
pub fn cos(x: f32) -> f32 {
    sin_cos(f64::from(x)).1 as f32
}

/// The tangent of a number up to [`TRIGONOMETRIC_LIMIT`].
#[inline(always)]
pub fn tan(x: f32) -> f32 {
    let (sin, cos) = sin_cos(f64::from(x));
    let value = (sin / cos) as f32;
    if x == 0.0 { x } else { value }
}

/// The error function in 64 bits, one number at a time.
pub fn erf_f64(x: f64) -> f64 {
    let size = x.abs();
    if x.is_nan() {
        return x;
    }
    if size > 6.0 {
        return 1f64.copysign(x);
    }
    // 2/√π exp(-x²) Σ 2ⁿ x²ⁿ⁺¹ / (2n+1)!!: all terms have one sign.
    let square = 2.0 * size * size;
    let (mut term, mut sum, mut divisor) = (size, size, 1.0);
    while term > sum * 1e-17 {
        divisor += 2.0;
        term *= square / divisor;
        sum += term;
    }
    (std::f64::consts::FRAC_2_SQRT_PI * (-size * size).exp() * sum).copysign(x)
}
