//! Element-wise expressions: an interpreter that carries for every value what implementations may get.
//!
//! Where a comparison, a rounding to integers or a conversion lies within the error of its operand, the
//! outcome is not decided, and both are admitted.

use super::ball::{Ball, Format};
use super::bounds::{Allowed, Case};
use super::functions;
use crate::cpu::apart::{integers, reals};
use crate::ops::elementwise::{
    Binary, Class, Comparison, Expression, Instruction, Load, Operator, Unary,
};
use rayon::prelude::*;
use velora_graph::shapes::DataType;

/// What a value may be.
#[derive(Clone, Copy, Debug)]
enum Value {
    /// A real number.
    Real(Ball),
    /// An integer or a truth value from one to another.
    Whole(i128, i128),
}

/// The elements of a load.
enum Elements {
    Real(Vec<f64>),
    Whole(Vec<i128>),
}

/// What the outputs of an expression may be.
///
/// # Errors
/// Where an operand is missing.
pub(super) fn allowed(case: &Case<'_>, expression: &Expression) -> Result<Vec<Allowed>, String> {
    let mut loads = Vec::with_capacity(expression.loads.len());
    for load in &expression.loads {
        let input = case.input(load.input)?;
        // A load has the type that it sees, which may be another one of the same width.
        loads.push(match load.ty.is_float() {
            true => Elements::Real(reals(load.ty, input.bytes())),
            false => Elements::Whole(integers(load.ty, input.bytes())),
        });
    }
    let elements = expression.elements();
    let stores = expression.stores.len();
    let mut found = vec![Ball::ZERO; elements * stores];
    if stores > 0 {
        found
            .par_chunks_mut(stores * 256)
            .enumerate()
            .for_each(|(part, found)| {
                let mut values = Vec::with_capacity(expression.code.len());
                for (number, found) in found.chunks_mut(stores).enumerate() {
                    element(expression, &loads, part * 256 + number, &mut values);
                    for (found, &store) in found.iter_mut().zip(&expression.stores) {
                        *found = stored(values[usize::from(store)]);
                    }
                }
            });
    }
    let of_store = |store: usize| found.iter().skip(store).step_by(stores.max(1)).copied();
    Ok({ 0..stores }
        .map(|store| Allowed::Near(of_store(store).collect()))
        .collect())
}

/// A ball of radius 0 is compared with the CPU's element, so the middle of a large integer need not be exact.
fn stored(value: Value) -> Ball {
    match value {
        Value::Real(ball) => ball,
        Value::Whole(low, high) if low == high => Ball::exact(low as f64),
        Value::Whole(low, high) => Ball::between(low as f64, high as f64),
    }
}

/// Evaluates everything for an element.
fn element(expression: &Expression, loads: &[Elements], number: usize, values: &mut Vec<Value>) {
    values.clear();
    for instruction in &expression.code {
        let value = match instruction.operator {
            Operator::Load(load) => {
                let place = usize::from(load);
                let at = position(&expression.shape, &expression.loads[place], number);
                match &loads[place] {
                    Elements::Real(numbers) => Value::Real(Ball::exact(numbers[at])),
                    Elements::Whole(numbers) => Value::Whole(numbers[at], numbers[at]),
                }
            }
            Operator::Immediate(bits) => immediate(instruction.class(), bits),
            _ => {
                let argument = |place: usize| values[usize::from(instruction.arguments[place])];
                evaluate(instruction, argument)
            }
        };
        values.push(value);
    }
}

/// Where a load reads for an element.
fn position(shape: &[usize], load: &Load, mut number: usize) -> usize {
    let mut at = load.offset;
    for (&size, &stride) in shape.iter().zip(&load.strides).rev() {
        at += number % size * stride;
        number /= size;
    }
    at
}

fn immediate(class: Class, bits: u64) -> Value {
    match class {
        Class::F32 => Value::Real(Ball::exact(f32::from_bits(bits as u32).into())),
        Class::F64 => Value::Real(Ball::exact(f64::from_bits(bits))),
        Class::I64 => known(i128::from(bits as i64)),
        Class::U64 => known(bits.into()),
        Class::Bool => known(i128::from(bits as u8 != 0)),
    }
}

fn known(number: i128) -> Value {
    Value::Whole(number, number)
}

fn evaluate(instruction: &Instruction, argument: impl Fn(usize) -> Value) -> Value {
    let ty = instruction.ty;
    match instruction.operator {
        Operator::Load(_) | Operator::Immediate(_) => argument(0),
        Operator::Convert => convert(ty, instruction.class(), argument(0)),
        Operator::Select => match argument(0) {
            Value::Whole(low, high) if low == high => argument(if low != 0 { 1 } else { 2 }),
            _ => either(argument(1), argument(2)),
        },
        Operator::Unary(Unary::IsNan) => match argument(0) {
            Value::Real(ball) if ball.is_exact() => known(i128::from(ball.mid.is_nan())),
            Value::Real(ball) if ball.rad.is_finite() => known(0),
            Value::Real(_) => Value::Whole(0, 1),
            Value::Whole(..) => known(0),
        },
        Operator::Unary(function) => match argument(0) {
            Value::Real(x) => {
                let value = functions::unary(function, x, Format::computing(ty));
                Value::Real(narrowed(ty, value))
            }
            Value::Whole(low, high) => whole_unary(function, ty, low, high),
        },
        Operator::Binary(function) => match (argument(0), argument(1)) {
            (Value::Real(x), Value::Real(y)) => {
                let value = functions::binary(function, x, y, Format::computing(ty));
                Value::Real(narrowed(ty, value))
            }
            (Value::Whole(a, b), Value::Whole(c, d)) => whole_binary(function, ty, (a, b), (c, d)),
            _ => anything(ty),
        },
        Operator::Compare(comparison) => {
            let truth = match (argument(0), argument(1)) {
                (Value::Real(x), Value::Real(y)) => compare(comparison, x, y),
                (Value::Whole(a, b), Value::Whole(c, d)) => {
                    compare_whole(comparison, (a, b), (c, d))
                }
                _ => None,
            };
            match truth {
                Some(truth) => known(truth.into()),
                None => Value::Whole(0, 1),
            }
        }
    }
}

/// A result of 32 bits in a type of 16.
fn narrowed(ty: DataType, value: Ball) -> Ball {
    match ty {
        DataType::FLOAT16 | DataType::BFLOAT16 => match Format::of(ty) {
            Some(format) => value.rounded(format),
            None => value,
        },
        _ => value,
    }
}

fn either(a: Value, b: Value) -> Value {
    match (a, b) {
        (Value::Real(x), Value::Real(y)) => Value::Real(x.hull(y)),
        (Value::Whole(a, b), Value::Whole(c, d)) => Value::Whole(a.min(c), b.max(d)),
        _ => Value::Real(Ball::UNKNOWN),
    }
}

/// The least and the greatest number of a type.
fn range(ty: DataType) -> (i128, i128) {
    match ty.0 {
        2 => (0, u8::MAX.into()),
        3 => (i8::MIN.into(), i8::MAX.into()),
        4 => (0, u16::MAX.into()),
        5 => (i16::MIN.into(), i16::MAX.into()),
        6 => (i32::MIN.into(), i32::MAX.into()),
        9 => (0, 1),
        12 => (0, u32::MAX.into()),
        13 => (0, u64::MAX.into()),
        _ => (i64::MIN.into(), i64::MAX.into()),
    }
}

fn anything(ty: DataType) -> Value {
    match ty.is_float() {
        true => Value::Real(Ball::UNKNOWN),
        false => {
            let (low, high) = range(ty);
            Value::Whole(low, high)
        }
    }
}

/// Integers from one to another, wrapped into a type.
fn wrapped(ty: DataType, low: i128, high: i128) -> Value {
    let (least, greatest) = range(ty);
    if low == high {
        return known(low.wrapping_sub(least).rem_euclid(greatest - least + 1) + least);
    }
    match least <= low && high <= greatest {
        true => Value::Whole(low, high),
        false => Value::Whole(least, greatest),
    }
}

fn convert(ty: DataType, class: Class, value: Value) -> Value {
    match (class, value) {
        (Class::F64, Value::Real(_)) => value,
        (Class::F32, Value::Real(x)) => {
            // What is 32 bits already keeps its value: there is no telling here, so it is rounded again.
            let is_single = x.is_exact() && (x.mid as f32 as f64 == x.mid || x.mid.is_nan());
            let single = if is_single { x } else { x.rounded(Format::F32) };
            Value::Real(exactly_narrowed(ty, single))
        }
        (Class::F32 | Class::F64, Value::Whole(low, high)) => {
            let ball = stored(Value::Whole(low, high));
            let format = Format::computing(ty);
            let wide = low.abs().max(high.abs()) >= 1 << 24;
            let ball = if wide { ball.rounded(format) } else { ball };
            Value::Real(exactly_narrowed(ty, ball))
        }
        (Class::Bool, Value::Real(x)) => match compare(Comparison::Equal, x, Ball::ZERO) {
            Some(zero) => known(i128::from(!zero)),
            None => Value::Whole(0, 1),
        },
        (Class::Bool, Value::Whole(low, high)) => match (low, high) {
            (0, 0) => known(0),
            _ if low > 0 || high < 0 || low == high => known(1),
            _ => Value::Whole(0, 1),
        },
        (Class::I64, Value::Real(x)) => truncated(ty, x, i64::MIN.into(), i64::MAX.into()),
        (Class::U64, Value::Real(x)) => truncated(ty, x, 0, u64::MAX.into()),
        (Class::I64 | Class::U64, Value::Whole(low, high)) => wrapped(ty, low, high),
    }
}

/// A number of 32 bits in the type; one that the type has keeps its value.
fn exactly_narrowed(ty: DataType, value: Ball) -> Ball {
    let kept = value.is_exact()
        && match ty {
            DataType::FLOAT16 => half::f16::from_f64(value.mid).to_f64() == value.mid,
            DataType::BFLOAT16 => half::bf16::from_f64(value.mid).to_f64() == value.mid,
            _ => true,
        };
    if kept { value } else { narrowed(ty, value) }
}

/// Real numbers cut to integers: toward zero, the ends of the range beyond it, 0 for no number.
fn truncated(ty: DataType, x: Ball, least: i128, greatest: i128) -> Value {
    if !x.rad.is_finite() {
        return anything(ty);
    }
    let cut = |x: f64| (x as i128).clamp(least, greatest);
    wrapped(ty, cut(x.low()), cut(x.high()))
}

/// The outcome of a comparison where it is the same for all numbers of the balls.
fn compare(comparison: Comparison, x: Ball, y: Ball) -> Option<bool> {
    if x.is_exact() && y.is_exact() {
        return Some(match comparison {
            Comparison::Equal => x.mid == y.mid,
            Comparison::Less => x.mid < y.mid,
            Comparison::LessOrEqual => x.mid <= y.mid,
        });
    }
    let below = x.high() < y.low();
    let above = x.low() > y.high();
    match comparison {
        Comparison::Equal if below || above => Some(false),
        Comparison::Less | Comparison::LessOrEqual if below => Some(true),
        Comparison::Less | Comparison::LessOrEqual if above => Some(false),
        _ => None,
    }
}

fn compare_whole(
    comparison: Comparison,
    (a, b): (i128, i128),
    (c, d): (i128, i128),
) -> Option<bool> {
    if a == b && c == d {
        return Some(match comparison {
            Comparison::Equal => a == c,
            Comparison::Less => a < c,
            Comparison::LessOrEqual => a <= c,
        });
    }
    match comparison {
        Comparison::Equal if b < c || a > d => Some(false),
        Comparison::Less | Comparison::LessOrEqual if b < c => Some(true),
        Comparison::Less | Comparison::LessOrEqual if a > d => Some(false),
        _ => None,
    }
}

fn whole_unary(function: Unary, ty: DataType, low: i128, high: i128) -> Value {
    if low != high {
        return match (function, ty) {
            (Unary::Not, DataType::BOOL) => Value::Whole(1 - high, 1 - low),
            _ => anything(ty),
        };
    }
    let result = match function {
        Unary::Neg => -low,
        Unary::Abs => low.abs(),
        Unary::Sign => low.signum(),
        Unary::Not if ty == DataType::BOOL => 1 - low,
        Unary::Not => !low,
        _ => low,
    };
    wrapped(ty, result, result)
}

fn whole_binary(
    function: Binary,
    ty: DataType,
    (a, b): (i128, i128),
    (c, d): (i128, i128),
) -> Value {
    if a == b && c == d {
        let result = whole(function, ty, a, c);
        return wrapped(ty, result, result);
    }
    match function {
        Binary::Add => wrapped(ty, a + c, b + d),
        Binary::Sub => wrapped(ty, a - d, b - c),
        Binary::Min => Value::Whole(a.min(c), b.min(d)),
        Binary::Max => Value::Whole(a.max(c), b.max(d)),
        Binary::And if ty == DataType::BOOL => Value::Whole(a & c, b & d),
        Binary::Or if ty == DataType::BOOL => Value::Whole(a | c, b | d),
        _ => anything(ty),
    }
}

/// A function of two integers, to be wrapped.
fn whole(function: Binary, ty: DataType, a: i128, c: i128) -> i128 {
    let bits = i128::from(ty.bits().unwrap_or(64));
    match function {
        Binary::Add => a + c,
        Binary::Sub => a - c,
        Binary::Mul => a.wrapping_mul(c),
        Binary::Div if c == 0 => 0,
        Binary::Div => a / c,
        Binary::Rem | Binary::Mod if c == 0 => 0,
        Binary::Rem => a % c,
        Binary::Mod => {
            let rest = a % c;
            match rest != 0 && (rest < 0) != (c < 0) {
                true => rest + c,
                false => rest,
            }
        }
        Binary::Pow if c >= 0 => whole_power(a, c),
        Binary::Pow => match a {
            1 => 1,
            -1 if c % 2 == 0 => 1,
            -1 => -1,
            _ => 0,
        },
        Binary::Min => a.min(c),
        Binary::Max => a.max(c),
        Binary::And => a & c,
        Binary::Or => a | c,
        Binary::Xor => a ^ c,
        Binary::ShiftLeft | Binary::ShiftRight if !(0..bits).contains(&c) => 0,
        Binary::ShiftLeft => (a as u128).wrapping_shl(c as u32) as i128,
        Binary::ShiftRight => a >> c,
    }
}

/// A power, right in its lower 64 bits.
fn whole_power(mut base: i128, mut exponent: i128) -> i128 {
    let mut power = 1i128;
    while exponent > 0 {
        if exponent & 1 != 0 {
            power = power.wrapping_mul(base);
        }
        base = base.wrapping_mul(base);
        exponent >>= 1;
    }
    power
}
