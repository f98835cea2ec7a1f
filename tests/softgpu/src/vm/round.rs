//! Rounding as IEEE 754 and the PTX manual define it, where the processor's own arithmetic does not offer it:
//! directed rounding, and the 16-bit formats.

use crate::ptx::inst::{FloatOp, Round};

/// A binary format: bits of the significand, and the least exponent of normal numbers.
#[derive(Clone, Copy, Debug)]
pub(super) struct Format {
    precision: i32,
    least: i32,
    largest: f64,
}

pub(super) const F16: Format = Format {
    precision: 11,
    least: -14,
    largest: 65504.0,
};
pub(super) const BF16: Format = Format {
    precision: 8,
    least: -126,
    largest: 3.3895313892515355e38,
};

fn power(exponent: i32) -> f64 {
    f64::from_bits(((1023 + exponent) as u64) << 52)
}

/// Rounds `high + low` to `format`. `low` may be any number of the right sign that is smaller than half of the
/// last bit of `high`: it only says on which side of `high` the exact value lies.
pub(super) fn round_to(high: f64, low: f64, format: Format, round: Round) -> f64 {
    if high == 0.0 || !high.is_finite() {
        return high;
    }
    let magnitude = high.abs();
    let inward = low != 0.0 && (low < 0.0) != (high < 0.0);
    let mut exponent = ((magnitude.to_bits() >> 52) as i32 - 1023).max(-1022);
    if inward && magnitude.to_bits() << 12 == 0 {
        exponent -= 1;
    }
    let quantum = exponent.max(format.least) - (format.precision - 1);
    // The scaling is exact, in two steps so that neither leaves the range of f64.
    let scaled = magnitude * power(-quantum / 2) * power(-quantum - -quantum / 2);
    // It is below 2^54 and not negative.
    let mut whole = scaled as u64 as f64;
    let fraction = scaled - whole;
    let outward = low != 0.0 && !inward;
    // Above, at or below the middle between two neighbours, and whether exact.
    let (beyond_half, half, exact) = if fraction == 0.0 && inward {
        whole -= 1.0;
        (true, false, false)
    } else {
        let half = fraction == 0.5 && low == 0.0;
        let beyond = fraction > 0.5 || (fraction == 0.5 && outward);
        (beyond, half, fraction == 0.0 && low == 0.0)
    };
    let negative = high < 0.0;
    let away = match round {
        Round::Nearest => beyond_half || (half && whole as u64 & 1 == 1),
        Round::Zero => false,
        Round::Down => negative && !exact,
        Round::Up => !negative && !exact,
    };
    if away {
        whole += 1.0;
    }
    let mut result = whole * power(quantum / 2) * power(quantum - quantum / 2);
    if result > format.largest {
        let infinite = match round {
            Round::Nearest => true,
            Round::Zero => false,
            Round::Down => negative,
            Round::Up => !negative,
        };
        result = if infinite {
            f64::INFINITY
        } else {
            format.largest
        };
    }
    if negative { -result } else { result }
}

/// `high + low` as an f32; `low` as in [`round_to`].
#[inline(always)]
pub(super) fn round_f32(high: f64, low: f64, round: Round) -> f32 {
    let nearest = high as f32;
    let rounded = f64::from(nearest);
    // The nearest float is on the wrong side of the exact value, or on the right one.
    let above = rounded > high || (rounded == high && low < 0.0);
    let below = rounded < high || (rounded == high && low > 0.0);
    let (down, up) = match round {
        Round::Nearest => (false, false),
        Round::Zero => (above && high > 0.0, below && high < 0.0),
        Round::Down => (above, false),
        Round::Up => (false, below),
    };
    if down {
        nearest.next_down()
    } else if up {
        nearest.next_up()
    } else {
        nearest
    }
}

/// The sum, and what rounding it lost.
#[inline(always)]
fn two_sum(a: f64, b: f64) -> (f64, f64) {
    let sum = a + b;
    let virtual_b = sum - a;
    (sum, (a - (sum - virtual_b)) + (b - virtual_b))
}

/// An exact zero that arises from a difference is negative when rounding down.
#[inline(always)]
fn signed_zero(sum: f64, a: f64, b: f64, round: Round) -> f64 {
    if sum == 0.0 && round == Round::Down && (a.is_sign_negative() || b.is_sign_negative()) {
        -0.0
    } else {
        sum
    }
}

/// An operation on numbers with at most 24 bits, as a sum of two: the exact result, or one on the same side of
/// every number with at most 24 bits.
#[inline(always)]
fn exact(op: FloatOp, a: f64, b: f64, c: f64) -> (f64, f64) {
    let (high, low) = match op {
        FloatOp::Add => two_sum(a, b),
        FloatOp::Sub => two_sum(a, -b),
        FloatOp::Mul => (a * b, 0.0),
        FloatOp::Fma => two_sum(a * b, c),
        FloatOp::Div => {
            let q = a / b;
            let rest = (-q).mul_add(b, a);
            (q, if b < 0.0 { -rest } else { rest })
        }
        FloatOp::Rcp => {
            let q = 1.0 / a;
            let rest = (-q).mul_add(a, 1.0);
            (q, if a < 0.0 { -rest } else { rest })
        }
        FloatOp::Sqrt => {
            let root = a.sqrt();
            (root, (-root).mul_add(root, a))
        }
        _ => (a, 0.0),
    };
    (high, if low.is_finite() { low } else { 0.0 })
}

/// The sign of an exact zero, which rounding down makes negative where a difference gives it.
#[inline(always)]
fn zero_of(op: FloatOp, result: f64, a: f64, b: f64, c: f64, round: Round) -> f64 {
    match op {
        FloatOp::Add => signed_zero(result, a, b, round),
        FloatOp::Sub => signed_zero(result, a, -b, round),
        FloatOp::Fma => signed_zero(result, a * b, c, round),
        _ => result,
    }
}

/// An operation on f32, rounded in any direction.
#[inline(always)]
pub(super) fn single(op: FloatOp, a: f32, b: f32, c: f32, round: Round) -> f32 {
    let (a, b, c) = (f64::from(a), f64::from(b), f64::from(c));
    let (high, low) = exact(op, a, b, c);
    if high == 0.0 && low == 0.0 {
        return zero_of(op, high, a, b, c, round) as f32;
    }
    round_f32(high, low, round)
}

/// An operation on numbers of a 16-bit format, correctly rounded to that format.
pub(super) fn narrow(op: FloatOp, a: f64, b: f64, c: f64, format: Format, round: Round) -> f64 {
    let (high, low) = exact(op, a, b, c);
    zero_of(op, round_to(high, low, format, round), a, b, c, round)
}

/// `nearest`, which lost `rest` to rounding, rounded in direction `round` instead.
fn redirect(nearest: f64, rest: f64, round: Round) -> f64 {
    let toward_zero = |x: f64| if x > 0.0 { x.next_down() } else { x.next_up() };
    if nearest.is_infinite() {
        // The operands are finite, so the exact value is, too.
        return match round {
            Round::Zero => toward_zero(nearest),
            Round::Down if nearest > 0.0 => f64::MAX,
            Round::Up if nearest < 0.0 => f64::MIN,
            _ => nearest,
        };
    }
    match round {
        Round::Down if rest < 0.0 => nearest.next_down(),
        Round::Up if rest > 0.0 => nearest.next_up(),
        Round::Zero if nearest != 0.0 && rest != 0.0 && (rest < 0.0) == (nearest > 0.0) => {
            toward_zero(nearest)
        }
        _ => nearest,
    }
}

/// An operation on f64 in a direction other than nearest. Results below 2^-1022 + 106 bits may round the other
/// way, because what rounding lost is then not representable.
pub(super) fn double(op: FloatOp, a: f64, b: f64, c: f64, round: Round) -> f64 {
    let finite =
        |result: f64, operands: &[f64]| result.is_nan() || operands.iter().any(|x| !x.is_finite());
    match op {
        FloatOp::Add | FloatOp::Sub => {
            let b = if op == FloatOp::Sub { -b } else { b };
            let (sum, rest) = two_sum(a, b);
            if finite(sum, &[a, b]) {
                sum
            } else {
                signed_zero(redirect(sum, rest, round), a, b, round)
            }
        }
        FloatOp::Mul => {
            let product = a * b;
            if finite(product, &[a, b]) {
                product
            } else {
                redirect(product, a.mul_add(b, -product), round)
            }
        }
        FloatOp::Div | FloatOp::Rcp => {
            let (a, b) = if op == FloatOp::Rcp { (1.0, a) } else { (a, b) };
            let q = a / b;
            if b == 0.0 || finite(q, &[a, b]) {
                return q;
            }
            let rest = (-q).mul_add(b, a);
            redirect(q, if b < 0.0 { -rest } else { rest }, round)
        }
        FloatOp::Sqrt => {
            let root = a.sqrt();
            if finite(root, &[a]) {
                root
            } else {
                redirect(root, (-root).mul_add(root, a), round)
            }
        }
        _ => {
            let nearest = a.mul_add(b, c);
            if finite(nearest, &[a, b, c]) {
                return nearest;
            }
            // The error of a fused multiply-add as a sum of two numbers (Boldo and Muller 2005).
            let product = a * b;
            let product_rest = a.mul_add(b, -product);
            let (alpha, z) = two_sum(c, product_rest);
            let (beta, beta_rest) = two_sum(product, alpha);
            let gamma = (beta - nearest) + beta_rest;
            signed_zero(redirect(nearest, gamma + z, round), product, c, round)
        }
    }
}

/// The value of an f16.
pub(super) fn from_f16(bits: u16) -> f64 {
    let sign = if bits & 0x8000 != 0 { -1.0 } else { 1.0 };
    let (exponent, fraction) = (i32::from(bits >> 10 & 31), f64::from(bits & 0x3ff));
    match exponent {
        0 => sign * fraction * power(-24),
        31 if fraction == 0.0 => sign * f64::INFINITY,
        31 => f64::NAN,
        _ => sign * (1024.0 + fraction) * power(exponent - 25),
    }
}

/// The value of a bf16.
pub(super) fn from_bf16(bits: u16) -> f64 {
    f64::from(f32::from_bits(u32::from(bits) << 16))
}

/// The bits of a number that an f16 can hold.
fn f16_bits(x: f64) -> u16 {
    if x.is_nan() {
        return 0x7fff;
    }
    let sign = if x.is_sign_negative() { 0x8000 } else { 0 };
    let magnitude = x.abs();
    if magnitude.is_infinite() {
        return sign | 0x7c00;
    }
    if magnitude < power(-14) {
        return sign | (magnitude * power(24)) as u16;
    }
    let exponent = (magnitude.to_bits() >> 52) as i32 - 1023;
    let fraction = (magnitude.to_bits() >> 42 & 0x3ff) as u16;
    sign | ((exponent + 15) as u16) << 10 | fraction
}

/// The bits of `x`, rounded to a 16-bit format.
pub(super) fn to_half(x: f64, bf16: bool, round: Round) -> u16 {
    if x.is_nan() {
        return 0x7fff;
    }
    if bf16 {
        let rounded = round_to(x, 0.0, BF16, round);
        ((rounded as f32).to_bits() >> 16) as u16
    } else {
        f16_bits(round_to(x, 0.0, F16, round))
    }
}

/// The value of a 16-bit float.
pub(super) fn from_half(bits: u16, bf16: bool) -> f64 {
    if bf16 {
        from_bf16(bits)
    } else {
        from_f16(bits)
    }
}
