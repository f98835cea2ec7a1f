//! Floating-point arithmetic on all lanes at once.

use super::round;
use super::warp::{Lanes32, Lanes64, each_lane};
use crate::ptx::inst::{Cmp, FloatOp, Round};

/// What f32 operations give for NaN.
const NAN: u32 = 0x7fff_ffff;

#[inline(always)]
fn flush(x: u32, ftz: bool) -> u32 {
    if ftz && x & 0x7f80_0000 == 0 {
        x & 0x8000_0000
    } else {
        x
    }
}

#[inline(always)]
fn finish(x: f32, ftz: bool, sat: bool) -> u32 {
    // Not `clamp`: NaN becomes 0, and -0 becomes +0.
    let x = if sat {
        if x > 0.0 {
            if x < 1.0 { x } else { 1.0 }
        } else {
            0.0
        }
    } else {
        x
    };
    if x.is_nan() {
        NAN
    } else {
        flush(x.to_bits(), ftz)
    }
}

#[inline(always)]
fn arithmetic(s: [&Lanes32; 3], ftz: bool, sat: bool, f: impl Fn(f32, f32, f32) -> f32) -> Lanes32 {
    let [a, b, c] = s;
    if ftz || sat {
        return each_lane(|i| {
            let get = |x: u32| f32::from_bits(flush(x, ftz));
            finish(f(get(a[i]), get(b[i]), get(c[i])), ftz, sat)
        });
    }
    each_lane(|i| {
        finish(
            f(
                f32::from_bits(a[i]),
                f32::from_bits(b[i]),
                f32::from_bits(c[i]),
            ),
            false,
            false,
        )
    })
}

/// The lesser (or greater) of two numbers, as bits; -0 is less than +0. NaN only where both are, or where
/// either is and `nan` asks for it.
#[inline(always)]
fn extreme(a: u32, b: u32, greater: bool, nan: bool) -> u32 {
    let (x, y) = (f32::from_bits(a), f32::from_bits(b));
    if x.is_nan() || y.is_nan() {
        let other = if x.is_nan() { b } else { a };
        return if nan || (x.is_nan() && y.is_nan()) {
            NAN
        } else {
            other
        };
    }
    if x == y {
        return if greater { a & b } else { a | b };
    }
    if (x > y) == greater { a } else { b }
}

/// An operation on f32.
#[inline(always)]
pub(super) fn single(op: FloatOp, round: Round, ftz: bool, sat: bool, s: [&Lanes32; 3]) -> Lanes32 {
    let [a, b, _] = s;
    let unary =
        |f: fn(u32) -> u32| -> Lanes32 { each_lane(|i| finish_bits(f(flush(a[i], ftz)), sat)) };
    match op {
        FloatOp::Neg => unary(|x| x ^ 0x8000_0000),
        FloatOp::Abs => unary(|x| x & 0x7fff_ffff),
        // Takes the sign of its first operand.
        FloatOp::CopySign => each_lane(|i| a[i] & 0x8000_0000 | b[i] & 0x7fff_ffff),
        FloatOp::Min | FloatOp::Max | FloatOp::MinNan | FloatOp::MaxNan => {
            let greater = matches!(op, FloatOp::Max | FloatOp::MaxNan);
            let nan = matches!(op, FloatOp::MinNan | FloatOp::MaxNan);
            each_lane(|i| extreme(flush(a[i], ftz), flush(b[i], ftz), greater, nan))
        }
        _ if round != Round::Nearest => directed(op, round, ftz, sat, s),
        FloatOp::Add => arithmetic(s, ftz, sat, |x, y, _| x + y),
        FloatOp::Sub => arithmetic(s, ftz, sat, |x, y, _| x - y),
        FloatOp::Mul => arithmetic(s, ftz, sat, |x, y, _| x * y),
        FloatOp::Fma => arithmetic(s, ftz, sat, f32::mul_add),
        FloatOp::Div => arithmetic(s, ftz, sat, |x, y, _| x / y),
        FloatOp::Sqrt => arithmetic(s, ftz, sat, |x, _, _| x.sqrt()),
        FloatOp::Rcp => arithmetic(s, ftz, sat, |x, _, _| 1.0 / x),
    }
}

#[inline(always)]
fn finish_bits(x: u32, sat: bool) -> u32 {
    if sat {
        finish(f32::from_bits(x), false, true)
    } else {
        x
    }
}

#[inline(always)]
fn directed(op: FloatOp, round: Round, ftz: bool, sat: bool, s: [&Lanes32; 3]) -> Lanes32 {
    // The commonest of them, in exponentials, becomes vector code.
    if op == FloatOp::Fma && round == Round::Down {
        return arithmetic(s, ftz, sat, |x, y, z| {
            round::single(FloatOp::Fma, x, y, z, Round::Down)
        });
    }
    arithmetic(s, ftz, sat, |x, y, z| round::single(op, x, y, z, round))
}

/// An operation on f64.
#[inline(always)]
pub(super) fn double(op: FloatOp, round: Round, s: [&Lanes64; 3]) -> Lanes64 {
    let [a, b, c] = s;
    let get = f64::from_bits;
    match op {
        FloatOp::Neg => each_lane(|i| a[i] ^ 1 << 63),
        FloatOp::Abs => each_lane(|i| a[i] & !(1 << 63)),
        FloatOp::CopySign => each_lane(|i| a[i] & 1 << 63 | b[i] & !(1 << 63)),
        FloatOp::Min | FloatOp::MinNan => each_lane(|i| extreme_double(a[i], b[i], false)),
        FloatOp::Max | FloatOp::MaxNan => each_lane(|i| extreme_double(a[i], b[i], true)),
        _ if round != Round::Nearest => {
            each_lane(|i| round::double(op, get(a[i]), get(b[i]), get(c[i]), round).to_bits())
        }
        FloatOp::Add => each_lane(|i| (get(a[i]) + get(b[i])).to_bits()),
        FloatOp::Sub => each_lane(|i| (get(a[i]) - get(b[i])).to_bits()),
        FloatOp::Mul => each_lane(|i| (get(a[i]) * get(b[i])).to_bits()),
        FloatOp::Fma => each_lane(|i| get(a[i]).mul_add(get(b[i]), get(c[i])).to_bits()),
        FloatOp::Div => each_lane(|i| (get(a[i]) / get(b[i])).to_bits()),
        FloatOp::Sqrt => each_lane(|i| get(a[i]).sqrt().to_bits()),
        FloatOp::Rcp => each_lane(|i| (1.0 / get(a[i])).to_bits()),
    }
}

#[inline(always)]
fn extreme_double(a: u64, b: u64, greater: bool) -> u64 {
    let (x, y) = (f64::from_bits(a), f64::from_bits(b));
    if x.is_nan() {
        return if y.is_nan() { 0x7fff_ffff_ffff_ffff } else { b };
    }
    if y.is_nan() {
        return a;
    }
    if x == y {
        return if greater { a & b } else { a | b };
    }
    if (x > y) == greater { a } else { b }
}

/// An operation on 16-bit floats, one or two in each lane.
pub(super) fn half(op: FloatOp, bf16: bool, pair: bool, ftz: bool, relu: bool, s: [u32; 3]) -> u32 {
    let element = |shift: u32| {
        let get = |x: u32| {
            let bits = (x >> shift) as u16;
            // `.ftz` exists for f16 only; bf16 keeps subnormal numbers.
            if ftz && !bf16 && bits & 0x7c00 == 0 {
                bits & 0x8000
            } else {
                bits
            }
        };
        let [a, b, c] = s.map(get);
        let [x, y, z] = [a, b, c].map(|bits| round::from_half(bits, bf16));
        let result = match op {
            FloatOp::Neg => a ^ 0x8000,
            FloatOp::Abs => a & 0x7fff,
            FloatOp::Min | FloatOp::Max | FloatOp::MinNan | FloatOp::MaxNan => {
                let greater = matches!(op, FloatOp::Max | FloatOp::MaxNan);
                let nan = matches!(op, FloatOp::MinNan | FloatOp::MaxNan);
                let bits = extreme((x as f32).to_bits(), (y as f32).to_bits(), greater, nan);
                round::to_half(f64::from(f32::from_bits(bits)), bf16, Round::Nearest)
            }
            _ => {
                let format = if bf16 { round::BF16 } else { round::F16 };
                round::to_half(
                    round::narrow(op, x, y, z, format, Round::Nearest),
                    bf16,
                    Round::Nearest,
                )
            }
        };
        let exponent = if bf16 { 0x7f80 } else { 0x7c00 };
        let result = if ftz && !bf16 && result & exponent == 0 {
            result & 0x8000
        } else {
            result
        };
        // Negative numbers become +0, NaN stays.
        let negative = result & 0x8000 != 0 && result & 0x7fff <= exponent;
        u32::from(if relu && negative { 0 } else { result }) << shift
    };
    if pair {
        element(0) | element(16)
    } else {
        element(0)
    }
}

/// A comparison of floats.
#[inline(always)]
pub(super) fn compare<T: PartialOrd>(cmp: Cmp, a: T, b: T) -> bool {
    let order = a.partial_cmp(&b);
    let unordered = order.is_none();
    match cmp {
        Cmp::Eq => a == b,
        Cmp::Ne => !unordered && a != b,
        Cmp::Lt => a < b,
        Cmp::Le => a <= b,
        Cmp::Gt => a > b,
        Cmp::Ge => a >= b,
        Cmp::Equ => unordered || a == b,
        Cmp::Neu => unordered || a != b,
        Cmp::Ltu => unordered || a < b,
        Cmp::Leu => unordered || a <= b,
        Cmp::Gtu => unordered || a > b,
        Cmp::Geu => unordered || a >= b,
        Cmp::Num => !unordered,
        Cmp::Nan => unordered,
    }
}
