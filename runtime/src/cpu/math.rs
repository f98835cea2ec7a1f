//! Functions of `f32` without tables and branches, which the compiler turns into vector code.

/// `e^x`, within 2 units in the last place; subnormal results included.
#[inline(always)]
pub(crate) fn exp(x: f32) -> f32 {
    // e^x = 2^n · e^r with n the nearest integer to x / ln 2, so |r| <= ln 2 / 2. Comparisons of this
    // form keep a NaN.
    let x = if x < -104.0 { -104.0 } else { x };
    let x = if x > 89.0 { 89.0 } else { x };
    // Adding 1.5 · 2^23 leaves the nearest integer in the low bits.
    const ROUND: f32 = 12_582_912.0;
    let shifted = x * std::f32::consts::LOG2_E + ROUND;
    let n = shifted - ROUND;
    // ln 2 in two parts; n times the first one is exact.
    let r = (x - n * 0.693_359_4) - n * -2.121_944_4e-4;
    // Cephes' minimax polynomial for (e^r - 1 - r) / r².
    let p = 1.987_569_1e-4;
    let p = p * r + 1.398_199_9e-3;
    let p = p * r + 8.333_452e-3;
    let p = p * r + 4.166_579_6e-2;
    let p = p * r + 1.666_666_5e-1;
    let p = p * r + 5.000_000_1e-1;
    let power = p * (r * r) + r + 1.0;
    // 2^n in two factors, since n reaches from -150 to 128.
    let n = (shifted.to_bits() as i32).wrapping_sub(ROUND.to_bits() as i32);
    let half = n >> 1;
    let two = |n: i32| f32::from_bits((n.wrapping_add(127) << 23) as u32);
    power * two(half) * two(n.wrapping_sub(half))
}

#[cfg(test)]
mod tests {
    use super::exp;

    #[test]
    fn exp_is_within_two_units_in_the_last_place() {
        let mut x = -104.5f32;
        while x < 89.0 {
            let exact = f64::from(x).exp();
            let unit = f64::from(f32::EPSILON) * exact.max(f64::from(f32::MIN_POSITIVE));
            let error = (f64::from(exp(x)) - exact).abs();
            assert!(error <= 1.5 * unit || exact > f64::from(f32::MAX), "{x}");
            x += 0.001_37;
        }
        assert_eq!(exp(0.0), 1.0);
        assert_eq!(exp(f32::NEG_INFINITY), 0.0);
        assert_eq!(exp(f32::INFINITY), f32::INFINITY);
        assert!(exp(f32::NAN).is_nan());
    }
}
