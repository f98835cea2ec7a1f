//! Conversions between scalar types.

use super::round::{from_half, round_f32, to_half};
use crate::ptx::inst::{Convert, Round, Ty};

/// Sign- or zero-extends the low bits of `bits` that a value of type `ty` has.
pub(super) fn extend(bits: u64, ty: Ty) -> u64 {
    let unused = 64 - 8 * ty.size() as u32;
    if ty.signed() {
        ((bits << unused) as i64 >> unused) as u64
    } else {
        bits << unused >> unused
    }
}

fn integral(x: f64, round: Round) -> f64 {
    match round {
        Round::Nearest => x.round_ties_even(),
        Round::Zero => x.trunc(),
        Round::Down => x.floor(),
        Round::Up => x.ceil(),
    }
}

/// The least and the greatest value of an integer type.
fn range(ty: Ty) -> (i128, i128) {
    let bits = 8 * ty.size() as u32;
    if ty.signed() {
        (-(1 << (bits - 1)), (1 << (bits - 1)) - 1)
    } else {
        (0, (1 << bits) - 1)
    }
}

/// The value of a float of any format, exactly.
fn value(bits: u64, ty: Ty, ftz: bool) -> f64 {
    match ty {
        Ty::F16 => from_half(bits as u16, false),
        Ty::Bf16 => from_half(bits as u16, true),
        Ty::F32 => {
            let x = f32::from_bits(bits as u32);
            f64::from(if ftz && x.is_subnormal() {
                0f32.copysign(x)
            } else {
                x
            })
        }
        _ => f64::from_bits(bits),
    }
}

/// `high + low` as a float of type `to`, in bits.
fn encode(high: f64, low: f64, cvt: &Convert) -> u64 {
    let high = if cvt.sat {
        if high.is_nan() {
            0.0
        } else {
            high.clamp(0.0, 1.0) + 0.0
        }
    } else {
        high
    };
    match cvt.to {
        Ty::F16 | Ty::Bf16 => u64::from(to_half(high, cvt.to == Ty::Bf16, cvt.round)),
        Ty::F32 if high.is_nan() => 0x7fff_ffff,
        Ty::F32 => {
            let x = round_f32(high, low, cvt.round);
            u64::from(
                (if cvt.ftz && x.is_subnormal() {
                    0f32.copysign(x)
                } else {
                    x
                })
                .to_bits(),
            )
        }
        _ => {
            let away = match cvt.round {
                Round::Down => low < 0.0,
                Round::Up => false,
                Round::Zero => low != 0.0 && (low < 0.0) != (high < 0.0),
                Round::Nearest => false,
            };
            let nearest = match cvt.round {
                Round::Up if low > 0.0 => high.next_up(),
                _ if away && (high > 0.0 || cvt.round == Round::Down) => high.next_down(),
                _ if away => high.next_up(),
                _ => high,
            };
            nearest.to_bits()
        }
    }
}

/// Converts the low bits of `bits`; the result is extended to 64 bits if it is an integer.
pub(super) fn convert(bits: u64, cvt: &Convert) -> u64 {
    if cvt.from.float() {
        let x = value(bits, cvt.from, cvt.ftz);
        if cvt.to.float() {
            let x = if cvt.integral {
                integral(x, cvt.round)
            } else {
                x
            };
            return encode(x, 0.0, cvt);
        }
        let (least, greatest) = range(cvt.to);
        // NaN becomes 0 in this cast, and what is out of range the nearest that is in it.
        return (integral(x, cvt.round) as i128).clamp(least, greatest) as u64;
    }
    let wide = extend(bits, cvt.from);
    let x = if cvt.from.signed() {
        i128::from(wide as i64)
    } else {
        i128::from(wide)
    };
    if cvt.to.float() {
        let high = x as f64;
        return encode(high, (x - high as i128) as f64, cvt);
    }
    let (least, greatest) = range(cvt.to);
    let x = if cvt.sat { x.clamp(least, greatest) } else { x };
    extend(x as u64, cvt.to)
}
