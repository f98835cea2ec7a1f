//! Elementary functions of balls.
//!
//! A function that rises or falls all the way takes the ends of a ball to the ends of the result. To that the
//! error of the implementation is added: the greatest one that CUDA's programming guide documents for the
//! function in any of its versions (a difference from the rounded result, so half a unit in the last place
//! more), or that the tests of `cpu::math` allow where that is more. A unit in the last place is at most two
//! units of [`Format`].

use super::ball::{Ball, Format};
use crate::cpu::math;
use crate::ops::elementwise::{Binary, Unary};
use std::f64::consts::{FRAC_PI_2, PI};

/// Units of error of the exponential function.
pub const EXP: f64 = 5.0;
/// Units of error of the logarithm.
pub const LOG: f64 = 3.0;
/// Units of error of 1 / √x, which a device may have an instruction for.
pub const INVERSE_ROOT: f64 = 5.0;
/// Units of error of a power.
pub const POWER: f64 = 17.0;

/// Units of error of a function, its result's rounding included.
fn units(function: Unary) -> f64 {
    match function {
        Unary::Exp => EXP,
        Unary::Log => LOG,
        Unary::Sqrt | Unary::Reciprocal => 1.0,
        Unary::Tan | Unary::Asin | Unary::Acosh => 9.0,
        Unary::Acos | Unary::Sinh | Unary::Asinh | Unary::Atanh => 7.0,
        Unary::Sin | Unary::Cos | Unary::Atan | Unary::Cosh | Unary::Tanh | Unary::Erf => 5.0,
        // With e = exp(-|x|), 5 units off: e / (1 + e) has those of e twice at most, less than one of the sum
        // and that of the quotient.
        Unary::Sigmoid => 12.0,
        // max(x, 0) + log(1 + e): the logarithm has the 5 units of e at most, 3 of its own, and the sum one.
        Unary::Softplus => 9.0,
        _ => 0.0,
    }
}

/// A function of a ball, rounded to a format.
pub fn unary(function: Unary, x: Ball, format: Format) -> Ball {
    let value = exact(function, x);
    match units(function) {
        0.0 => value,
        // Everybody knows the exponential of minus infinity, and the root of -1.
        _ if !x.mid.is_finite() && x.is_exact() => value,
        _ if value.is_exact() && !value.mid.is_finite() => value,
        units => value.rounded_by(units, format),
    }
}

fn exact(function: Unary, x: Ball) -> Ball {
    let infinity = f64::INFINITY;
    let rising = |f: fn(f64) -> f64| monotone(f, x, -infinity, infinity);
    match function {
        Unary::Neg => x.negated(),
        Unary::Abs => {
            let mid = x.mid.abs();
            Ball::around(mid, x.rad)
        }
        Unary::Sign => step(sign, x),
        Unary::Sqrt => monotone(f64::sqrt, x, 0.0, infinity),
        Unary::Reciprocal => Ball::exact(1.0).over(x),
        Unary::Exp => rising(f64::exp),
        Unary::Log => monotone(f64::ln, x, 0.0, infinity),
        // Slopes of at most 1.
        Unary::Sin => Ball::around(x.mid.sin(), x.rad.min(2.0)),
        Unary::Cos => Ball::around(x.mid.cos(), x.rad.min(2.0)),
        Unary::Tan => {
            let branch = |x: f64| ((x + FRAC_PI_2) / PI).floor();
            match branch(x.low()) == branch(x.high()) || x.is_exact() {
                true => rising(f64::tan),
                false => Ball::UNKNOWN,
            }
        }
        Unary::Asin => monotone(f64::asin, x, -1.0, 1.0),
        Unary::Acos => monotone(f64::acos, x, -1.0, 1.0),
        Unary::Atan => rising(f64::atan),
        Unary::Sinh => rising(f64::sinh),
        Unary::Cosh => {
            let size = x.mid.abs();
            let (low, high) = ((size - x.rad).max(0.0), size + x.rad);
            let mid = size.cosh();
            Ball::around(mid, (high.cosh() - mid).max(mid - low.cosh()))
        }
        Unary::Tanh => rising(f64::tanh),
        Unary::Asinh => rising(f64::asinh),
        Unary::Acosh => monotone(f64::acosh, x, 1.0, infinity),
        Unary::Atanh => monotone(f64::atanh, x, -1.0, 1.0),
        Unary::Sigmoid => rising(sigmoid),
        Unary::Softplus => rising(softplus),
        Unary::Erf => rising(math::erf_f64),
        Unary::Floor => step(f64::floor, x),
        Unary::Ceil => step(f64::ceil, x),
        Unary::Round => step(f64::round_ties_even, x),
        // No real numbers: the interpreter answers these.
        Unary::Not | Unary::IsNan => x,
    }
}

/// A function that only rises, or only falls, between two numbers, and is not defined beyond.
fn monotone(f: fn(f64) -> f64, x: Ball, lowest: f64, highest: f64) -> Ball {
    let mid = f(x.mid);
    if x.is_exact() {
        return Ball::exact(mid);
    }
    if x.low() < lowest || x.high() > highest {
        return Ball::UNKNOWN;
    }
    let (first, last) = (f(x.low()), f(x.high()));
    Ball::around(mid, (first - mid).abs().max((last - mid).abs()))
}

/// A function that rises in steps: where a ball has a step, the numbers on both sides of it and no others.
fn step(f: fn(f64) -> f64, x: Ball) -> Ball {
    match x.is_exact() || !x.rad.is_finite() {
        true => Ball::around(f(x.mid), x.rad),
        false => Ball::between(f(x.low()), f(x.high())),
    }
}

fn sign(x: f64) -> f64 {
    if x == 0.0 || x.is_nan() {
        x
    } else {
        x.signum()
    }
}

fn sigmoid(x: f64) -> f64 {
    let e = (-x.abs()).exp();
    (if x < 0.0 { e } else { 1.0 }) / (1.0 + e)
}

fn softplus(x: f64) -> f64 {
    if x.is_nan() {
        return x;
    }
    x.max(0.0) + (-x.abs()).exp().ln_1p()
}

/// A function of two balls, rounded to a format.
pub fn binary(function: Binary, x: Ball, y: Ball, format: Format) -> Ball {
    match function {
        Binary::Add => x.plus(y).rounded(format),
        Binary::Sub => x.minus(y).rounded(format),
        Binary::Mul => x.times(y).rounded(format),
        Binary::Div => x.over(y).rounded(format),
        Binary::Pow => power(x, y).rounded_by(POWER, format),
        Binary::Min => extreme(x, y, |a, b| if a < b || a.is_nan() { a } else { b }),
        Binary::Max => extreme(x, y, |a, b| if a > b || a.is_nan() { a } else { b }),
        Binary::Rem => remainder(x, y, |a, b| a % b),
        Binary::Mod => {
            let modulo = |a: f64, b: f64| {
                let rest = a % b;
                match rest != 0.0 && (rest < 0.0) != (b < 0.0) {
                    true => rest + b,
                    false => rest,
                }
            };
            remainder(x, y, modulo).rounded(format)
        }
        // Real numbers have no bits.
        Binary::And | Binary::Or | Binary::Xor | Binary::ShiftLeft | Binary::ShiftRight => {
            Ball::UNKNOWN
        }
    }
}

fn extreme(x: Ball, y: Ball, of: fn(f64, f64) -> f64) -> Ball {
    let mid = of(x.mid, y.mid);
    if x.is_exact() && y.is_exact() {
        return Ball::exact(mid);
    }
    if x.mid.is_nan() || y.mid.is_nan() {
        return Ball::UNKNOWN;
    }
    let (low, high) = (of(x.low(), y.low()), of(x.high(), y.high()));
    Ball::around(mid, (high - mid).max(mid - low))
}

/// A remainder: it jumps where the quotient becomes another integer.
fn remainder(x: Ball, y: Ball, of: fn(f64, f64) -> f64) -> Ball {
    let mid = of(x.mid, y.mid);
    if x.is_exact() && y.is_exact() {
        return Ball::exact(mid);
    }
    let places = [x.low() / y.mid, x.high() / y.mid].map(f64::floor);
    if y.is_exact() && places[0] == places[1] {
        return Ball::around(mid, x.rad);
    }
    Ball::around(0.0, y.size())
}

/// Powers; of a ball that has negative numbers only where the exponent is one integer.
fn power(x: Ball, y: Ball) -> Ball {
    let mid = x.mid.powf(y.mid);
    if x.is_exact() && y.is_exact() {
        return Ball::exact(mid);
    }
    if x.low() > 0.0 {
        // In each of both it rises or falls all the way: the extremes are in the corners.
        let corner = |x: f64, y: f64| (x.powf(y) - mid).abs();
        let low = corner(x.low(), y.low()).max(corner(x.low(), y.high()));
        let high = corner(x.high(), y.low()).max(corner(x.high(), y.high()));
        return Ball::around(mid, low.max(high));
    }
    if y.is_exact() && y.mid.fract() == 0.0 && y.mid >= 1.0 {
        // The steepest slope.
        let slope = y.mid * x.size().powf(y.mid - 1.0);
        return Ball::around(mid, slope * x.rad);
    }
    Ball::UNKNOWN
}
