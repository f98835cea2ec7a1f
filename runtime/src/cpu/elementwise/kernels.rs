//! Loops over tiles: one per instruction and class, compiled for several instruction sets.

use super::super::math;
use crate::ops::elementwise::{Binary, Class, Comparison, Instruction, Operator, Unary};
use bytemuck::{cast_slice, cast_slice_mut};
use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};
use pulp::Arch;
use velora_graph::shapes::DataType;

/// The most elements of a tile.
pub const TILE: usize = 512;

/// `out[i] = f(a[i])`.
macro_rules! map1 {
    ($arch:expr, $a:expr, $out:expr, $t:ty => $r:ty, |$x:ident| $value:expr) => {{
        struct Loop<'a> {
            a: &'a [$t],
            out: &'a mut [$r],
        }
        impl pulp::WithSimd for Loop<'_> {
            type Output = ();
            #[inline(always)]
            fn with_simd<S: pulp::Simd>(self, _simd: S) {
                for (out, &$x) in self.out.iter_mut().zip(self.a) {
                    *out = $value;
                }
            }
        }
        $arch.dispatch(Loop {
            a: cast_slice($a),
            out: cast_slice_mut($out),
        })
    }};
}

/// `out[i] = f(a[i], b[i])`.
macro_rules! map2 {
    ($arch:expr, $a:expr, $b:expr, $out:expr, $t:ty => $r:ty, |$x:ident, $y:ident| $value:expr) => {{
        struct Loop<'a> {
            a: &'a [$t],
            b: &'a [$t],
            out: &'a mut [$r],
        }
        impl pulp::WithSimd for Loop<'_> {
            type Output = ();
            #[inline(always)]
            fn with_simd<S: pulp::Simd>(self, _simd: S) {
                for ((out, &$x), &$y) in self.out.iter_mut().zip(self.a).zip(self.b) {
                    *out = $value;
                }
            }
        }
        $arch.dispatch(Loop {
            a: cast_slice($a),
            b: cast_slice($b),
            out: cast_slice_mut($out),
        })
    }};
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
        Operator::Convert => convert(arch, class, instruction.class(), a, out),
        Operator::Select => {
            select(arch, instruction.class(), operands, out);
            return;
        }
        Operator::Unary(op) => match class {
            Class::F32 => unary_f32(arch, op, a, out),
            Class::F64 => unary_f64(arch, op, a, out),
            Class::I64 => unary_i64(arch, op, a, out),
            Class::U64 => unary_u64(arch, op, a, out),
            Class::Bool => map1!(arch, a, out, u8 => u8, |x| u8::from(x == 0)),
        },
        Operator::Binary(op) => match class {
            Class::F32 => binary_f32(arch, op, a, b, out),
            Class::F64 => binary_f64(arch, op, a, b, out),
            Class::I64 => binary_i64(arch, op, instruction.ty, a, b, out),
            Class::U64 => binary_u64(arch, op, a, b, out),
            Class::Bool => binary_bool(arch, op, a, b, out),
        },
        Operator::Compare(op) => compare(arch, op, class, a, b, out),
    }
    let _ = c;
    narrow(arch, instruction.ty, out);
}

/// Rounds or wraps results to a type that is narrower than its class.
fn narrow(arch: Arch, ty: DataType, out: &mut [u8]) {
    /// In place.
    macro_rules! wrap {
        ($t:ty) => {{
            struct Loop<'a>(&'a mut [i64]);
            impl pulp::WithSimd for Loop<'_> {
                type Output = ();
                #[inline(always)]
                fn with_simd<S: pulp::Simd>(self, _simd: S) {
                    for x in self.0.iter_mut() {
                        *x = i64::from(*x as $t);
                    }
                }
            }
            arch.dispatch(Loop(cast_slice_mut(out)))
        }};
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

fn convert(arch: Arch, from: Class, to: Class, a: &[u8], out: &mut [u8]) {
    match (from, to) {
        (Class::F32, Class::F32)
        | (Class::F64, Class::F64)
        | (Class::I64 | Class::U64, Class::I64 | Class::U64) => out.copy_from_slice(a),
        (Class::Bool, Class::Bool) => map1!(arch, a, out, u8 => u8, |x| u8::from(x != 0)),
        (Class::F32, Class::F64) => map1!(arch, a, out, f32 => f64, |x| f64::from(x)),
        (Class::F32, Class::I64) => map1!(arch, a, out, f32 => i64, |x| x as i64),
        (Class::F32, Class::U64) => map1!(arch, a, out, f32 => u64, |x| x as u64),
        (Class::F32, Class::Bool) => map1!(arch, a, out, f32 => u8, |x| u8::from(x != 0.0)),
        (Class::F64, Class::F32) => map1!(arch, a, out, f64 => f32, |x| x as f32),
        (Class::F64, Class::I64) => map1!(arch, a, out, f64 => i64, |x| x as i64),
        (Class::F64, Class::U64) => map1!(arch, a, out, f64 => u64, |x| x as u64),
        (Class::F64, Class::Bool) => map1!(arch, a, out, f64 => u8, |x| u8::from(x != 0.0)),
        (Class::I64, Class::F32) => map1!(arch, a, out, i64 => f32, |x| x as f32),
        (Class::I64, Class::F64) => map1!(arch, a, out, i64 => f64, |x| x as f64),
        (Class::U64, Class::F32) => map1!(arch, a, out, u64 => f32, |x| x as f32),
        (Class::U64, Class::F64) => map1!(arch, a, out, u64 => f64, |x| x as f64),
        (Class::I64 | Class::U64, Class::Bool) => {
            map1!(arch, a, out, u64 => u8, |x| u8::from(x != 0));
        }
        (Class::Bool, Class::F32) => {
            map1!(arch, a, out, u8 => f32, |x| f32::from(u8::from(x != 0)))
        }
        (Class::Bool, Class::F64) => {
            map1!(arch, a, out, u8 => f64, |x| f64::from(u8::from(x != 0)))
        }
        (Class::Bool, Class::I64 | Class::U64) => {
            map1!(arch, a, out, u8 => u64, |x| u64::from(x != 0));
        }
    }
}

fn select(arch: Arch, class: Class, operands: [&[u8]; 3], out: &mut [u8]) {
    macro_rules! select {
        ($t:ty) => {{
            struct Loop<'a> {
                condition: &'a [u8],
                a: &'a [$t],
                b: &'a [$t],
                out: &'a mut [$t],
            }
            impl pulp::WithSimd for Loop<'_> {
                type Output = ();
                #[inline(always)]
                fn with_simd<S: pulp::Simd>(self, _simd: S) {
                    let operands = self.condition.iter().zip(self.a).zip(self.b);
                    for (out, ((&condition, &a), &b)) in self.out.iter_mut().zip(operands) {
                        *out = if condition != 0 { a } else { b };
                    }
                }
            }
            arch.dispatch(Loop {
                condition: operands[0],
                a: cast_slice(operands[1]),
                b: cast_slice(operands[2]),
                out: cast_slice_mut(out),
            })
        }};
    }
    match class.bytes() {
        1 => select!(u8),
        4 => select!(u32),
        _ => select!(u64),
    }
}

fn compare(arch: Arch, op: Comparison, class: Class, a: &[u8], b: &[u8], out: &mut [u8]) {
    macro_rules! compare {
        ($t:ty) => {
            match op {
                Comparison::Equal => map2!(arch, a, b, out, $t => u8, |x, y| u8::from(x == y)),
                Comparison::Less => map2!(arch, a, b, out, $t => u8, |x, y| u8::from(x < y)),
                Comparison::LessOrEqual => {
                    map2!(arch, a, b, out, $t => u8, |x, y| u8::from(x <= y));
                }
            }
        };
    }
    match class {
        Class::F32 => compare!(f32),
        Class::F64 => compare!(f64),
        Class::I64 => compare!(i64),
        Class::U64 => compare!(u64),
        Class::Bool => match op {
            Comparison::Equal => {
                map2!(arch, a, b, out, u8 => u8, |x, y| u8::from((x != 0) == (y != 0)));
            }
            Comparison::Less => {
                map2!(arch, a, b, out, u8 => u8, |x, y| u8::from((x == 0) & (y != 0)));
            }
            Comparison::LessOrEqual => {
                map2!(arch, a, b, out, u8 => u8, |x, y| u8::from((x == 0) | (y != 0)));
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
            map1!(arch, a, out, f32 => f32, |$x| $value)
        };
    }
    match op {
        Unary::Neg => map!(|x| -x),
        Unary::Abs => map!(|x| x.abs()),
        Unary::Sign => map!(|x| sign!(f32, x)),
        Unary::Sqrt => map!(|x| x.sqrt()),
        Unary::Reciprocal => map!(|x| 1.0 / x),
        Unary::Exp => map!(|x| math::exp(x)),
        Unary::Log => map!(|x| math::log(x)),
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
        Unary::Tanh => map!(|x| math::tanh(x)),
        Unary::Sigmoid => map!(|x| math::sigmoid(x)),
        Unary::Softplus => map!(|x| math::softplus(x)),
        Unary::Erf => map!(|x| math::erf(x)),
        Unary::Floor => map!(|x| x.floor()),
        Unary::Ceil => map!(|x| x.ceil()),
        Unary::Round => map!(|x| x.round_ties_even()),
        Unary::IsNan => map1!(arch, a, out, f32 => u8, |x| u8::from(x.is_nan())),
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

fn unary_f64(arch: Arch, op: Unary, a: &[u8], out: &mut [u8]) {
    macro_rules! map {
        (|$x:ident| $value:expr) => {
            map1!(arch, a, out, f64 => f64, |$x| $value)
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
        Unary::IsNan => map1!(arch, a, out, f64 => u8, |x| u8::from(x.is_nan())),
        _ => {
            let function = rare(op);
            let out: &mut [f64] = cast_slice_mut(out);
            for (out, &x) in out.iter_mut().zip(cast_slice::<u8, f64>(a)) {
                *out = function(x);
            }
        }
    }
}

fn unary_i64(arch: Arch, op: Unary, a: &[u8], out: &mut [u8]) {
    match op {
        Unary::Neg => map1!(arch, a, out, i64 => i64, |x| x.wrapping_neg()),
        Unary::Abs => map1!(arch, a, out, i64 => i64, |x| x.wrapping_abs()),
        Unary::Sign => map1!(arch, a, out, i64 => i64, |x| x.signum()),
        Unary::Not => map1!(arch, a, out, i64 => i64, |x| !x),
        // Lowering lets no other pass.
        _ => out.copy_from_slice(a),
    }
}

fn unary_u64(arch: Arch, op: Unary, a: &[u8], out: &mut [u8]) {
    match op {
        Unary::Neg => map1!(arch, a, out, u64 => u64, |x| x.wrapping_neg()),
        Unary::Sign => map1!(arch, a, out, u64 => u64, |x| u64::from(x != 0)),
        Unary::Not => map1!(arch, a, out, u64 => u64, |x| !x),
        // The absolute value; lowering lets no other pass.
        _ => out.copy_from_slice(a),
    }
}

/// The binary operators of real numbers.
macro_rules! real {
    ($arch:expr, $op:expr, $a:expr, $b:expr, $out:expr, $t:ty, $pow:expr) => {
        match $op {
            Binary::Add => map2!($arch, $a, $b, $out, $t => $t, |x, y| x + y),
            Binary::Sub => map2!($arch, $a, $b, $out, $t => $t, |x, y| x - y),
            Binary::Mul => map2!($arch, $a, $b, $out, $t => $t, |x, y| x * y),
            Binary::Div => map2!($arch, $a, $b, $out, $t => $t, |x, y| x / y),
            Binary::Rem => map2!($arch, $a, $b, $out, $t => $t, |x, y| x % y),
            Binary::Mod => map2!($arch, $a, $b, $out, $t => $t, |x, y| {
                let rest = x % y;
                if rest != 0.0 && (rest < 0.0) != (y < 0.0) { rest + y } else { rest }
            }),
            Binary::Pow => map2!($arch, $a, $b, $out, $t => $t, |x, y| $pow(x, y)),
            // A NaN on the left is taken, one on the right is never the greater or the lesser.
            Binary::Min => map2!($arch, $a, $b, $out, $t => $t, |x, y| {
                if x < y || x.is_nan() { x } else { y }
            }),
            Binary::Max => map2!($arch, $a, $b, $out, $t => $t, |x, y| {
                if x > y || x.is_nan() { x } else { y }
            }),
            // Lowering lets no operator on bits pass.
            Binary::And | Binary::Or | Binary::Xor | Binary::ShiftLeft | Binary::ShiftRight => {
                $out.copy_from_slice($a);
            }
        }
    };
}

fn binary_f32(arch: Arch, op: Binary, a: &[u8], b: &[u8], out: &mut [u8]) {
    real!(arch, op, a, b, out, f32, math::pow);
}

fn binary_f64(arch: Arch, op: Binary, a: &[u8], b: &[u8], out: &mut [u8]) {
    real!(arch, op, a, b, out, f64, f64::powf);
}

fn binary_i64(arch: Arch, op: Binary, ty: DataType, a: &[u8], b: &[u8], out: &mut [u8]) {
    // Shifts by the width or more give 0.
    let bits = ty.bits().unwrap_or(64);
    macro_rules! map {
        (|$x:ident, $y:ident| $value:expr) => {
            map2!(arch, a, b, out, i64 => i64, |$x, $y| $value)
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

fn binary_u64(arch: Arch, op: Binary, a: &[u8], b: &[u8], out: &mut [u8]) {
    macro_rules! map {
        (|$x:ident, $y:ident| $value:expr) => {
            map2!(arch, a, b, out, u64 => u64, |$x, $y| $value)
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

fn binary_bool(arch: Arch, op: Binary, a: &[u8], b: &[u8], out: &mut [u8]) {
    match op {
        Binary::And => map2!(arch, a, b, out, u8 => u8, |x, y| u8::from((x != 0) & (y != 0))),
        Binary::Or => map2!(arch, a, b, out, u8 => u8, |x, y| u8::from((x != 0) | (y != 0))),
        // Exclusive disjunction; lowering lets no other pass.
        _ => map2!(arch, a, b, out, u8 => u8, |x, y| u8::from((x != 0) ^ (y != 0))),
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
