//! The approximations of the special-function unit. Devices compute them less exactly than a processor would,
//! and the bounds below are all that the PTX manual and the CUDA guide promise, so results here err by a
//! pseudo-random amount within them. Results that are exact stay so. Devices may be better, so a test that passes
//! here says nothing about what a certain device computes, bit for bit.

use crate::ptx::inst::ApproxOp;

/// A number from -1 to 1 that depends on the operation and operand alone.
fn noise(op: ApproxOp, bits: u64) -> f64 {
    let mut x = bits ^ ((op as u64 + 1) << 56);
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    (x >> 11) as f64 / (1u64 << 52) as f64 - 1.0
}

fn flush(x: f32) -> f32 {
    if x.is_subnormal() {
        0f32.copysign(x)
    } else {
        x
    }
}

/// Half the distance between floats next to `x`: what rounding to nearest may add to an error.
fn half_ulp(x: f64) -> f64 {
    let y = (x as f32).abs();
    if y.is_infinite() {
        0.0
    } else {
        (f64::from(y.next_up()) - f64::from(y)) / 2.0
    }
}

/// `exact`, moved by at most `bound` in all, the last rounding included.
fn within(exact: f64, bound: f64, noise: f64) -> f32 {
    let rounded = exact as f32;
    if f64::from(rounded) == exact || !rounded.is_finite() {
        return rounded;
    }
    let room = bound - half_ulp(exact);
    if room <= 0.0 {
        rounded
    } else {
        (exact + noise * room) as f32
    }
}

/// 2 to the power `x`.
fn pow2(x: f64) -> f64 {
    x.exp2()
}

/// An approximate operation on f32. `worst` lets it err as far as is documented.
pub(super) fn single(op: ApproxOp, a: f32, b: f32, ftz: bool, worst: bool) -> f32 {
    let (a, b) = if ftz { (flush(a), flush(b)) } else { (a, b) };
    let x = f64::from(a);
    let bits = u64::from(a.to_bits()) | u64::from(b.to_bits()) << 24;
    let noise = if worst { noise(op, bits) } else { 0.0 };
    let ulps = |exact: f64, n: f64| within(exact, 2.0 * n * half_ulp(exact), noise);
    let result = match op {
        ApproxOp::Rcp => ulps(1.0 / x, 1.0),
        ApproxOp::Sqrt => within(x.sqrt(), x.sqrt() * pow2(-23.0), noise),
        ApproxOp::Rsqrt => within(1.0 / x.sqrt(), pow2(-22.9) / x.sqrt(), noise),
        ApproxOp::Ex2 => ulps(pow2(x), 2.0),
        // Close to 1 the logarithm is small and its error absolute.
        ApproxOp::Lg2 if x > 0.5 && x < 2.0 => within(x.log2(), pow2(-22.0), noise),
        ApproxOp::Lg2 => ulps(x.log2(), 2.0),
        ApproxOp::Sin | ApproxOp::Cos => {
            let exact = if op == ApproxOp::Sin {
                x.sin()
            } else {
                x.cos()
            };
            let near = x.abs() <= 2.0 * std::f64::consts::PI;
            within(exact, pow2(if near { -20.5 } else { -14.7 }), noise).clamp(-1.0, 1.0)
        }
        ApproxOp::Tanh => within(x.tanh(), x.tanh().abs() * pow2(-11.0), noise).clamp(-1.0, 1.0),
        // The divisor's reciprocal is flushed to zero beyond 2^126.
        ApproxOp::Div if b.is_finite() && b.abs() > 8.507_059e37 => {
            if a.is_infinite() {
                f32::NAN
            } else {
                0f32.copysign(a * b.signum())
            }
        }
        ApproxOp::Div | ApproxOp::DivFull => ulps(x / f64::from(b), 2.0),
    };
    let result = if ftz { flush(result) } else { result };
    if result.is_nan() {
        f32::from_bits(0x7fff_ffff)
    } else {
        result
    }
}

/// An approximate operation on f64. `gross` ones read and give the upper 32 bits only.
pub(super) fn double(op: ApproxOp, a: f64, gross: bool, worst: bool) -> f64 {
    let upper = |x: f64| f64::from_bits(x.to_bits() & 0xffff_ffff_0000_0000);
    let flush = |x: f64| {
        if x.is_subnormal() {
            0f64.copysign(x)
        } else {
            x
        }
    };
    let x = if gross { flush(upper(a)) } else { a };
    let exact = if op == ApproxOp::Rcp {
        1.0 / x
    } else {
        1.0 / x.sqrt()
    };
    if exact.is_nan() {
        return f64::from_bits(0x7fff_ffff_0000_0000);
    }
    if !gross || !exact.is_finite() {
        return exact;
    }
    let down = upper(flush(exact));
    let inexact = down != exact && down != 0.0;
    // Either neighbour with 20 bits is within one unit of the last of them.
    let up = inexact && worst && noise(op, x.to_bits()) > 0.0;
    if up {
        f64::from_bits(down.to_bits() + (1 << 32))
    } else {
        down
    }
}
