//! Loops over tiles: one per instruction and class, compiled for several instruction sets.

use super::super::math;
use super::super::rows::vectorize;
use crate::ops::elementwise::{Binary, Class, Comparison, Instruction, Operator, Unary};
use bytemuck::{Pod, cast_slice, cast_slice_mut};
use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};
use pulp::Arch;
use velora_graph::shapes::DataType;

/// The most elements of a tile.
pub const TILE: usize = 1024;

/// `out[i] = f(a[i])`, compiled for several instruction sets.
///
/// For what is hot in training alone: code for every machine takes long to compile.
macro_rules! vector1 {
    ($arch:expr, $a:expr, $out:expr, |$x:ident| $value:expr) => {
        vectorize(
            $arch,
            #[inline(always)]
            |(a, out)| {
                loop1(
                    a,
                    out,
                    #[inline(always)]
                    |$x: f32| -> f32 { $value },
                )
            },
            ($a, $out),
        )
    };
}

/// `out[i] = f(a[i], b[i])` of 32-bit numbers, compiled for several instruction sets.
macro_rules! vector2 {
    ($arch:expr, $a:expr, $b:expr, $out:expr, $r:ty, |$x:ident, $y:ident| $value:expr) => {
        vectorize(
            $arch,
            #[inline(always)]
            |(a, b, out)| {
                loop2(
                    a,
                    b,
                    out,
                    #[inline(always)]
                    |$x: f32, $y: f32| -> $r { $value },
                )
            },
            ($a, $b, $out),
        )
    };
}

/// `out[i] = f(a[i])`.
#[inline(always)]
fn loop1<T: Pod, R: Pod>(a: &[u8], out: &mut [u8], f: impl Fn(T) -> R) {
    let out = cast_slice_mut::<u8, R>(out);
    for (out, &x) in out.iter_mut().zip(cast_slice::<u8, T>(a)) {
        *out = f(x);
    }
}

/// `out[i] = f(a[i], b[i])`.
#[inline(always)]
fn loop2<T: Pod, R: Pod>(a: &[u8], b: &[u8], out: &mut [u8], f: impl Fn(T, T) -> R) {
    let out = cast_slice_mut::<u8, R>(out);
    let operands = cast_slice::<u8, T>(a).iter().zip(cast_slice::<u8, T>(b));
    for (out, (&x, &y)) in out.iter_mut().zip(operands) {
        *out = f(x, y);
    }
}

/// `out[i] = f(a[i])`, compiled once.
#[inline(never)]
fn map1<T: Pod, R: Pod>(a: &[u8], out: &mut [u8], f: impl Fn(T) -> R) {
    loop1(a, out, f);
}

/// `out[i] = f(a[i], b[i])`, compiled once.
#[inline(never)]
fn map2<T: Pod, R: Pod>(a: &[u8], b: &[u8], out: &mut [u8], f: impl Fn(T, T) -> R) {
    loop2(a, b, out, f);
}

/// Executes an instruction on a tile: operands and result as bytes of their classes.
///
/// `class` is that of the operands; of the second where the first is a condition.
pub fn execute(
    arch: Arch,
    instruction: &Instruction,
    class: Class,
    operands: [&[u8]; 3],
    out: &mut [u8],
) {
    let [a, b, c] = operands;
    match instruction.operator {
        // Made before the code runs.
        Operator::Load(_) | Operator::Immediate(_) => return,
        Operator::Convert => convert(class, instruction.class(), a, out),
        Operator::Select => {
            select(arch, instruction.class(), operands, out);
            return;
        }
        Operator::Unary(op) => match class {
            Class::F32 => unary_f32(arch, op, a, out),
            Class::F64 => unary_f64(op, a, out),
            Class::I64 => unary_i64(op, a, out),
            Class::U64 => unary_u64(op, a, out),
            Class::Bool => map1(a, out, |x: u8| -> u8 { u8::from(x == 0) }),
        },
        Operator::Binary(op) => match class {
            Class::F32 => binary_f32(arch, op, a, b, out),
            Class::F64 => binary_f64(op, a, b, out),
            Class::I64 => binary_i64(op, instruction.ty, a, b, out),
            Class::U64 => binary_u64(op, a, b, out),
            Class::Bool => binary_bool(op, a, b, out),
        },
        Operator::Compare(op) => compare(arch, op, class, a, b, out),
    }
    let _ = c;
    narrow(instruction.ty, out);
}

/// Rounds or wraps results to a type that is narrower than its class.
fn narrow(ty: DataType, out: &mut [u8]) {
    /// In place.
    macro_rules! wrap {
        ($t:ty) => {
            for x in cast_slice_mut::<u8, i64>(out) {
                *x = i64::from(*x as $t);
            }
        };
    }
    match ty.0 {
        2 => wrap!(u8),
        3 => wrap!(i8),
        4 => wrap!(u16),
        5 => wrap!(i16),
        6 => wrap!(i32),
        12 => wrap!(u32),
        10 => {
            let out: &mut [f32] = cast_slice_mut(out);
            let mut narrow = [f16::ZERO; TILE];
            for part in out.chunks_mut(TILE) {
                let narrow = &mut narrow[..part.len()];
                narrow.convert_from_f32_slice(part);
                narrow.convert_to_f32_slice(part);
            }
        }
        16 => {
            let out: &mut [f32] = cast_slice_mut(out);
            for x in out {
                *x = bf16::from_f32(*x).to_f32();
            }
        }
        _ => {}
    }
}

fn convert(from: Class, to: Class, a: &[u8], out: &mut [u8]) {
    match (from, to) {
        (Class::F32, Class::F32)
        | (Class::F64, Class::F64)
        | (Class::I64 | Class::U64, Class::I64 | Class::U64) => out.copy_from_slice(a),
        (Class::Bool, Class::Bool) => map1(a, out, |x: u8| -> u8 { u8::from(x != 0) }),
        (Class::F32, Class::F64) => map1(a, out, |x: f32| -> f64 { f64::from(x) }),
        (Class::F32, Class::I64) => map1(a, out, |x: f32| -> i64 { x as i64 }),
        (Class::F32, Class::U64) => map1(a, out, |x: f32| -> u64 { x as u64 }),
        (Class::F32, Class::Bool) => map1(a, out, |x: f32| -> u8 { u8::from(x != 0.0) }),
        (Class::F64, Class::F32) => map1(a, out, |x: f64| -> f32 { x as f32 }),
        (Class::F64, Class::I64) => map1(a, out, |x: f64| -> i64 { x as i64 }),
        (Class::F64, Class::U64) => map1(a, out, |x: f64| -> u64 { x as u64 }),
        (Class::F64, Class::Bool) => map1(a, out, |x: f64| -> u8 { u8::from(x != 0.0) }),
        (Class::I64, Class::F32) => map1(a, out, |x: i64| -> f32 { x as f32 }),
        (Class::I64, Class::F64) => map1(a, out, |x: i64| -> f64 { x as f64 }),
        (Class::U64, Class::F32) => map1(a, out, |x: u64| -> f32 { x as f32 }),
        (Class::U64, Class::F64) => map1(a, out, |x: u64| -> f64 { x as f64 }),
        (Class::I64 | Class::U64, Class::Bool) => {
            map1(a, out, |x: u64| -> u8 { u8::from(x != 0) });
        }
        (Class::Bool, Class::F32) => map1(a, out, |x: u8| -> f32 { f32::from(u8::from(x != 0)) }),
        (Class::Bool, Class::F64) => map1(a, out, |x: u8| -> f64 { f64::from(u8::from(x != 0)) }),
        (Class::Bool, Class::I64 | Class::U64) => {
            map1(a, out, |x: u8| -> u64 { u64::from(x != 0) });
        }
    }
}

fn select(arch: Arch, class: Class, operands: [&[u8]; 3], out: &mut [u8]) {
    match class.bytes() {
        1 => select_of::<u8>(operands, out),
        4 => vectorize(
            arch,
            #[inline(always)]
            |(operands, out)| select_of::<u32>(operands, out),
            (operands, out),
        ),
        _ => select_of::<u64>(operands, out),
    }
}

#[inline(always)]
fn select_of<T: Pod>([condition, a, b]: [&[u8]; 3], out: &mut [u8]) {
    let (a, b) = (cast_slice::<u8, T>(a), cast_slice::<u8, T>(b));
    let operands = condition.iter().zip(a).zip(b);
    for (out, ((&condition, &a), &b)) in cast_slice_mut::<u8, T>(out).iter_mut().zip(operands) {
        *out = if condition != 0 { a } else { b };
    }
}

fn compare(arch: Arch, op: Comparison, class: Class, a: &[u8], b: &[u8], out: &mut [u8]) {
    macro_rules! compare {
        ($t:ty) => {
            match op {
                Comparison::Equal => map2(a, b, out, |x: $t, y: $t| -> u8 { u8::from(x == y) }),
                Comparison::Less => map2(a, b, out, |x: $t, y: $t| -> u8 { u8::from(x < y) }),
                Comparison::LessOrEqual => {
                    map2(a, b, out, |x: $t, y: $t| -> u8 { u8::from(x <= y) });
                }
            }
        };
    }
    match class {
        Class::F32 => match op {
            Comparison::Equal => vector2!(arch, a, b, out, u8, |x, y| u8::from(x == y)),
            Comparison::Less => vector2!(arch, a, b, out, u8, |x, y| u8::from(x < y)),
            Comparison::LessOrEqual => vector2!(arch, a, b, out, u8, |x, y| u8::from(x <= y)),
        },
        Class::F64 => compare!(f64),
        Class::I64 => compare!(i64),
        Class::U64 => compare!(u64),
        Class::Bool => match op {
            Comparison::Equal => {
                map2(a, b, out, |x: u8, y: u8| -> u8 {
                    u8::from((x != 0) == (y != 0))
                });
            }
            Comparison::Less => {
                map2(a, b, out, |x: u8, y: u8| -> u8 {
                    u8::from((x == 0) & (y != 0))
                });
            }
            Comparison::LessOrEqual => {
                map2(a, b, out, |x: u8, y: u8| -> u8 {
                    u8::from((x == 0) | (y != 0))
                });
            }
        },
    }
}

/// -1, 0 or 1 with the sign of zeros and NaN kept out of it: 0 for ±0, NaN for NaN.
macro_rules! sign {
    ($t:ty, $x:ident) => {
        if $x > 0.0 {
            1.0
        } else if $x < 0.0 {
            -1.0
        } else if $x == 0.0 {
            0.0
        } else {
            <$t>::NAN
        }
    };
}

fn unary_f32(arch: Arch, op: Unary, a: &[u8], out: &mut [u8]) {
    macro_rules! map {
        (|$x:ident| $value:expr) => {
            map1(a, out, |$x: f32| -> f32 { $value })
        };
    }
    match op {
        Unary::Neg => vector1!(arch, a, out, |x| -x),
        Unary::Abs => vector1!(arch, a, out, |x| x.abs()),
        Unary::Sqrt => vector1!(arch, a, out, |x| x.sqrt()),
        Unary::Reciprocal => vector1!(arch, a, out, |x| 1.0 / x),
        Unary::Exp => vector1!(arch, a, out, |x| math::exp(x)),
        Unary::Log => vector1!(arch, a, out, |x| math::log(x)),
        Unary::Tanh => vector1!(arch, a, out, |x| math::tanh(x)),
        Unary::Sigmoid => vector1!(arch, a, out, |x| math::sigmoid(x)),
        Unary::Softplus => vector1!(arch, a, out, |x| math::softplus(x)),
        Unary::Erf => vector1!(arch, a, out, |x| math::erf(x)),
        Unary::Sign => map!(|x| sign!(f32, x)),
        Unary::Sin => {
            map!(|x| math::sin(x));
            far(a, out, f64::sin);
        }
        Unary::Cos => {
            map!(|x| math::cos(x));
            far(a, out, f64::cos);
        }
        Unary::Tan => {
            map!(|x| math::tan(x));
            far(a, out, f64::tan);
        }
        Unary::Floor => map!(|x| x.floor()),
        Unary::Ceil => map!(|x| x.ceil()),
        Unary::Round => map!(|x| x.round_ties_even()),
        Unary::IsNan => map1(a, out, |x: f32| -> u8 { u8::from(x.is_nan()) }),
        // One by one: nothing that is trained uses them.
        Unary::Asin
        | Unary::Acos
        | Unary::Atan
        | Unary::Sinh
        | Unary::Cosh
        | Unary::Asinh
        | Unary::Acosh
        | Unary::Atanh => {
            let function = rare(op);
            let out: &mut [f32] = cast_slice_mut(out);
            for (out, &x) in out.iter_mut().zip(cast_slice::<u8, f32>(a)) {
                *out = function(f64::from(x)) as f32;
            }
        }
        // No operator asks for the bits of real numbers.
        Unary::Not => out.copy_from_slice(a),
    }
}

/// Angles too large for the vectorised reduction, one by one.
fn far(a: &[u8], out: &mut [u8], function: fn(f64) -> f64) {
    let out: &mut [f32] = cast_slice_mut(out);
    for (out, &x) in out.iter_mut().zip(cast_slice::<u8, f32>(a)) {
        if x.abs() > math::TRIGONOMETRIC_LIMIT {
            *out = function(f64::from(x)) as f32;
        }
    }
}

fn rare(op: Unary) -> fn(f64) -> f64 {
    match op {
        Unary::Asin => f64::asin,
        Unary::Acos => f64::acos,
        Unary::Atan => f64::atan,
        Unary::Sinh => f64::sinh,
        Unary::Cosh => f64::cosh,
        Unary::Asinh => f64::asinh,
        Unary::Acosh => f64::acosh,
        Unary::Atanh => f64::atanh,
        Unary::Exp => f64::exp,
        Unary::Log => f64::ln,
        Unary::Sin => f64::sin,
        Unary::Cos => f64::cos,
        Unary::Tan => f64::tan,
        Unary::Tanh => f64::tanh,
        Unary::Erf => math::erf_f64,
        Unary::Sigmoid => |x| {
            let e = (-x.abs()).exp();
            (if x < 0.0 { e } else { 1.0 }) / (1.0 + e)
        },
        Unary::Softplus => |x| {
            if x.is_nan() {
                x
            } else {
                x.max(0.0) + (-x.abs()).exp().ln_1p()
            }
        },
        _ => |x| x,
    }
}

fn unary_f64(op: Unary, a: &[u8], out: &mut [u8]) {
    macro_rules! map {
        (|$x:ident| $value:expr) => {
            map1(a, out, |$x: f64| -> f64 { $value })
        };
    }
    match op {
        Unary::Neg => map!(|x| -x),
        Unary::Abs => map!(|x| x.abs()),
        Unary::Sign => map!(|x| sign!(f64, x)),
        Unary::Sqrt => map!(|x| x.sqrt()),
        Unary::Reciprocal => map!(|x| 1.0 / x),
        Unary::Floor => map!(|x| x.floor()),
        Unary::Ceil => map!(|x| x.ceil()),
        Unary::Round => map!(|x| x.round_ties_even()),
        Unary::IsNan => map1(a, out, |x: f64| -> u8 { u8::from(x.is_nan()) }),
        _ => {
            let function = rare(op);
            let out: &mut [f64] = cast_slice_mut(out);
            for (out, &x) in out.iter_mut().zip(cast_slice::<u8, f64>(a)) {
                *out = function(x);
            }
        }
    }
}

fn unary_i64(op: Unary, a: &[u8], out: &mut [u8]) {
    match op {
        Unary::Neg => map1(a, out, |x: i64| -> i64 { x.wrapping_neg() }),
        Unary::Abs => map1(a, out, |x: i64| -> i64 { x.wrapping_abs() }),
        Unary::Sign => map1(a, out, |x: i64| -> i64 { x.signum() }),
        Unary::Not => map1(a, out, |x: i64| -> i64 { !x }),
        // Lowering lets no other pass.
        _ => out.copy_from_slice(a),
    }
}

fn unary_u64(op: Unary, a: &[u8], out: &mut [u8]) {
    match op {
        Unary::Neg => map1(a, out, |x: u64| -> u64 { x.wrapping_neg() }),
        Unary::Sign => map1(a, out, |x: u64| -> u64 { u64::from(x != 0) }),
        Unary::Not => map1(a, out, |x: u64| -> u64 { !x }),
        // The absolute value; lowering lets no other pass.
        _ => out.copy_from_slice(a),
    }
}

/// The lesser one: a NaN on the left is taken, one on the right never is.
#[inline(always)]
fn min<T: PartialOrd>(x: T, y: T) -> T {
    // A NaN differs from itself.
    #[expect(clippy::eq_op, reason = "asks for NaN")]
    if x < y || x != x { x } else { y }
}

/// The greater one: a NaN on the left is taken, one on the right never is.
#[inline(always)]
fn max<T: PartialOrd>(x: T, y: T) -> T {
    #[expect(clippy::eq_op, reason = "asks for NaN")]
    if x > y || x != x { x } else { y }
}

/// The remainder that has the sign of the divisor.
macro_rules! modulo {
    ($x:expr, $y:expr) => {{
        let rest = $x % $y;
        if rest != 0.0 && (rest < 0.0) != ($y < 0.0) {
            rest + $y
        } else {
            rest
        }
    }};
}

fn binary_f32(arch: Arch, op: Binary, a: &[u8], b: &[u8], out: &mut [u8]) {
    match op {
        Binary::Add => vector2!(arch, a, b, out, f32, |x, y| x + y),
        Binary::Sub => vector2!(arch, a, b, out, f32, |x, y| x - y),
        Binary::Mul => vector2!(arch, a, b, out, f32, |x, y| x * y),
        Binary::Div => vector2!(arch, a, b, out, f32, |x, y| x / y),
        Binary::Pow => vector2!(arch, a, b, out, f32, |x, y| math::pow(x, y)),
        Binary::Min => vector2!(arch, a, b, out, f32, |x, y| min(x, y)),
        Binary::Max => vector2!(arch, a, b, out, f32, |x, y| max(x, y)),
        Binary::Rem => map2(a, b, out, |x: f32, y: f32| x % y),
        Binary::Mod => map2(a, b, out, |x: f32, y: f32| modulo!(x, y)),
        // Lowering lets no operator on bits pass.
        Binary::And | Binary::Or | Binary::Xor | Binary::ShiftLeft | Binary::ShiftRight => {
            out.copy_from_slice(a);
        }
    }
}

fn binary_f64(op: Binary, a: &[u8], b: &[u8], out: &mut [u8]) {
    match op {
        Binary::Add => map2(a, b, out, |x: f64, y: f64| x + y),
        Binary::Sub => map2(a, b, out, |x: f64, y: f64| x - y),
        Binary::Mul => map2(a, b, out, |x: f64, y: f64| x * y),
        Binary::Div => map2(a, b, out, |x: f64, y: f64| x / y),
        Binary::Pow => map2(a, b, out, f64::powf),
        Binary::Min => map2(a, b, out, min::<f64>),
        Binary::Max => map2(a, b, out, max::<f64>),
        Binary::Rem => map2(a, b, out, |x: f64, y: f64| x % y),
        Binary::Mod => map2(a, b, out, |x: f64, y: f64| modulo!(x, y)),
        // Lowering lets no operator on bits pass.
        Binary::And | Binary::Or | Binary::Xor | Binary::ShiftLeft | Binary::ShiftRight => {
            out.copy_from_slice(a);
        }
    }
}

fn binary_i64(op: Binary, ty: DataType, a: &[u8], b: &[u8], out: &mut [u8]) {
    // Shifts by the width or more give 0.
    let bits = ty.bits().unwrap_or(64);
    macro_rules! map {
        (|$x:ident, $y:ident| $value:expr) => {
            map2(a, b, out, |$x: i64, $y: i64| -> i64 { $value })
        };
    }
    match op {
        Binary::Add => map!(|x, y| x.wrapping_add(y)),
        Binary::Sub => map!(|x, y| x.wrapping_sub(y)),
        Binary::Mul => map!(|x, y| x.wrapping_mul(y)),
        Binary::Div => map!(|x, y| if y == 0 { 0 } else { x.wrapping_div(y) }),
        Binary::Rem => map!(|x, y| if y == 0 { 0 } else { x.wrapping_rem(y) }),
        Binary::Mod => map!(|x, y| if y == 0 {
            0
        } else {
            let rest = x.wrapping_rem(y);
            if rest != 0 && (rest < 0) != (y < 0) {
                rest + y
            } else {
                rest
            }
        }),
        Binary::Pow => map!(|x, y| integer_power(x, y)),
        Binary::Min => map!(|x, y| if x < y { x } else { y }),
        Binary::Max => map!(|x, y| if x > y { x } else { y }),
        Binary::And => map!(|x, y| x & y),
        Binary::Or => map!(|x, y| x | y),
        Binary::Xor => map!(|x, y| x ^ y),
        Binary::ShiftLeft | Binary::ShiftRight => {
            let out: &mut [i64] = cast_slice_mut(out);
            let operands = cast_slice::<u8, i64>(a)
                .iter()
                .zip(cast_slice::<u8, i64>(b));
            for (out, (&x, &y)) in out.iter_mut().zip(operands) {
                *out = match (op, (0..bits).contains(&y)) {
                    (_, false) => 0,
                    (Binary::ShiftLeft, _) => x << y,
                    _ => x >> y,
                };
            }
        }
    }
}

fn binary_u64(op: Binary, a: &[u8], b: &[u8], out: &mut [u8]) {
    macro_rules! map {
        (|$x:ident, $y:ident| $value:expr) => {
            map2(a, b, out, |$x: u64, $y: u64| -> u64 { $value })
        };
    }
    match op {
        Binary::Add => map!(|x, y| x.wrapping_add(y)),
        Binary::Sub => map!(|x, y| x.wrapping_sub(y)),
        Binary::Mul => map!(|x, y| x.wrapping_mul(y)),
        Binary::Div => map!(|x, y| x.checked_div(y).unwrap_or(0)),
        Binary::Rem | Binary::Mod => map!(|x, y| x.checked_rem(y).unwrap_or(0)),
        Binary::Pow => map!(|x, y| wrapping_power(x, y)),
        Binary::Min => map!(|x, y| if x < y { x } else { y }),
        Binary::Max => map!(|x, y| if x > y { x } else { y }),
        Binary::And => map!(|x, y| x & y),
        Binary::Or => map!(|x, y| x | y),
        Binary::Xor => map!(|x, y| x ^ y),
        Binary::ShiftLeft => map!(|x, y| if y < 64 { x << y } else { 0 }),
        Binary::ShiftRight => map!(|x, y| if y < 64 { x >> y } else { 0 }),
    }
}

fn binary_bool(op: Binary, a: &[u8], b: &[u8], out: &mut [u8]) {
    match op {
        Binary::And => map2(a, b, out, |x: u8, y: u8| -> u8 {
            u8::from((x != 0) & (y != 0))
        }),
        Binary::Or => map2(a, b, out, |x: u8, y: u8| -> u8 {
            u8::from((x != 0) | (y != 0))
        }),
        // Exclusive disjunction; lowering lets no other pass.
        _ => map2(a, b, out, |x: u8, y: u8| -> u8 {
            u8::from((x != 0) ^ (y != 0))
        }),
    }
}

fn wrapping_power(mut x: u64, mut y: u64) -> u64 {
    let mut power = 1u64;
    while y != 0 {
        if y & 1 != 0 {
            power = power.wrapping_mul(x);
        }
        x = x.wrapping_mul(x);
        y >>= 1;
    }
    power
}

fn integer_power(x: i64, y: i64) -> i64 {
    match (x, y) {
        (_, 0..) => wrapping_power(x as u64, y as u64) as i64,
        (1, _) => 1,
        (-1, _) if y % 2 == 0 => 1,
        (-1, _) => -1,
        _ => 0,
    }
}
