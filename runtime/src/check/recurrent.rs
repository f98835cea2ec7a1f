//! Recurrent layers: the CPU's kernels themselves, computing in sums of balls.
//!
//! So bounds follow every path through time. They are coarse where a sequence is long: balls know nothing of
//! errors that cancel, so that they may grow from step to step where real errors do not. Near the kink of a
//! leaky, thresholded or exponential linear unit, a ball follows the branch of its middle.

use super::ball::{Ball, Format};
use super::bounds::{Allowed, Case};
use super::functions::unary;
use crate::cpu::apart::Held;
use crate::cpu::gemm::{Accumulator, Element, Kernels, TileMut, rows_apart};
use crate::cpu::memory::{Call, Data, Input, Memory, Output};
use crate::cpu::product::Real;
use crate::cpu::recurrent;
use crate::ops::elementwise::Unary;
use crate::ops::recurrent::Recurrent;
use crate::tensor::TensorType;
use bytemuck::{Pod, Zeroable};
use std::cmp::Ordering;
use std::ops::{Add, AddAssign, Div, Mul, Neg, Sub};
use velora_graph::shapes::DataType;

/// A sum of balls that may go on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Pod, Zeroable)]
#[repr(C)]
struct Summed {
    mid: f64,
    /// The radii of the terms.
    rad: f64,
    /// The sizes of the terms.
    size: f64,
    /// The number of terms.
    count: f64,
}

impl Summed {
    /// A sum of one term.
    fn of(ball: Ball) -> Self {
        let mut sum = Summed {
            mid: ball.mid,
            rad: ball.rad,
            size: ball.size(),
            count: 1.0,
        };
        if ball == Ball::ZERO {
            // Adding 0 rounds nothing.
            sum.count = 0.0;
        }
        sum
    }

    /// The sum in any order of additions in 32 bits.
    fn ball(self) -> Ball {
        let rounding = Format::F32.gamma((self.count - 1.0).max(0.0)) * self.size;
        match self.size == 0.0 {
            true => Ball::exact(self.mid),
            false => Ball::around(self.mid, self.rad + rounding),
        }
    }

    fn rounded(ball: Ball) -> Self {
        Summed::of(ball.rounded(Format::F32))
    }

    fn function(self, function: Unary) -> Self {
        Summed::of(unary(function, self.ball(), Format::F32))
    }
}

impl PartialOrd for Summed {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        self.mid.partial_cmp(&other.mid)
    }
}

impl Add for Summed {
    type Output = Self;
    fn add(self, other: Self) -> Self {
        Summed {
            mid: self.mid + other.mid,
            rad: self.rad + other.rad,
            size: self.size + other.size,
            count: self.count + other.count,
        }
    }
}

impl AddAssign for Summed {
    fn add_assign(&mut self, other: Self) {
        *self = *self + other;
    }
}

impl Neg for Summed {
    type Output = Self;
    fn neg(self) -> Self {
        Summed {
            mid: -self.mid,
            ..self
        }
    }
}

impl Sub for Summed {
    type Output = Self;
    fn sub(self, other: Self) -> Self {
        self + -other
    }
}

impl Mul for Summed {
    type Output = Self;
    fn mul(self, other: Self) -> Self {
        // A factor 1 leaves a sum open.
        if self == Self::ONE {
            return other;
        }
        if other == Self::ONE {
            return self;
        }
        Summed::rounded(self.ball().times(other.ball()))
    }
}

impl Div for Summed {
    type Output = Self;
    fn div(self, other: Self) -> Self {
        Summed::rounded(self.ball().over(other.ball()))
    }
}

impl Element for Summed {
    type Acc = Self;

    fn to_acc(self) -> Self {
        self
    }

    fn from_acc(value: Self) -> Self {
        value
    }

    fn accumulators(tile: TileMut<'_, Self>) -> Result<TileMut<'_, Self>, TileMut<'_, Self>> {
        Ok(tile)
    }

    fn as_accumulators(elements: &[Self]) -> Option<&[Self]> {
        Some(elements)
    }
}

impl Accumulator for Summed {
    const ZERO: Self = Summed {
        mid: 0.0,
        rad: 0.0,
        size: 0.0,
        count: 0.0,
    };
    const ONE: Self = Summed {
        mid: 1.0,
        rad: 0.0,
        size: 1.0,
        count: 1.0,
    };

    fn multiply_add(self, factor: Self, term: Self) -> Self {
        self * factor + term
    }

    fn plus(self, other: Self) -> Self {
        self + other
    }

    fn times(self, other: Self) -> Self {
        self * other
    }

    fn kernels() -> &'static Kernels<Self> {
        rows_apart()
    }
}

impl Real for Summed {
    type Total = Self;

    fn from_f64(number: f64) -> Self {
        Summed::of(Ball::exact(number))
    }

    fn to_f64(self) -> f64 {
        self.mid
    }

    fn added_to(self, total: Self) -> Self {
        total + self
    }

    fn of_total(total: Self) -> Self {
        Summed::rounded(total.ball())
    }

    fn lesser(self, other: Self) -> Self {
        -(-self).greater(-other)
    }

    fn greater(self, other: Self) -> Self {
        let (a, b) = (self.ball(), other.ball());
        if a.low() >= b.high() {
            return self;
        }
        if b.low() >= a.high() {
            return other;
        }
        let (low, high) = (a.low().max(b.low()), a.high().max(b.high()));
        Summed::of(Ball::between(low, high))
    }

    fn softplus_of_negative(self) -> Self {
        // log(1 + e^-x) is the softplus of -x.
        (-self).function(Unary::Softplus)
    }

    fn exp(self) -> Self {
        self.function(Unary::Exp)
    }

    fn tanh(self) -> Self {
        self.function(Unary::Tanh)
    }

    fn sigmoid(self) -> Self {
        self.function(Unary::Sigmoid)
    }
}

/// What the outputs may be: the kernels' results, where every element is a sum of balls.
///
/// # Errors
/// Where an operand is missing, or there is no memory.
pub(super) fn allowed(case: &Case<'_>, op: &Recurrent) -> Result<Vec<Allowed>, String> {
    let no_memory = || "there is no memory to check it".to_owned();
    let inputs = (case.inputs.iter())
        .map(|input| input.as_ref().map(widened).transpose())
        .collect::<Result<Vec<_>, _>>()?;
    let bytes = |ty: &TensorType| ty.elements() * size_of::<Summed>();
    let written: Vec<_> = case.outputs.iter().map(Option::as_ref).collect();
    let workspace = recurrent::scratch::<Summed>(op, &written) * size_of::<Summed>();
    let mut scratch = Memory::new(workspace).ok_or_else(no_memory)?;
    let mut outputs = Vec::with_capacity(case.outputs.len());
    for ty in case.outputs {
        let bytes = ty.as_ref().map_or(0, bytes);
        outputs.push(Memory::new(bytes).ok_or_else(no_memory)?);
    }
    let mut call = Call {
        inputs: std::array::from_fn(|_| None),
        outputs: std::array::from_fn(|_| None),
        workspace: &mut scratch.bytes_mut()[..workspace],
    };
    for ((to, memory), input) in call.inputs.iter_mut().zip(&inputs).zip(case.inputs) {
        if let (Some((memory, bytes)), Some(input)) = (memory, input) {
            *to = Some(Input {
                ty: &input.ty,
                data: Data::Shared(&memory.bytes()[..*bytes]),
            });
        }
    }
    for ((to, memory), ty) in call.outputs.iter_mut().zip(&mut outputs).zip(case.outputs) {
        *to = ty.as_ref().map(|ty| Output {
            ty,
            bytes: &mut memory.bytes_mut()[..bytes(ty)],
        });
    }
    recurrent::real::<Summed>(op, call)?;
    let each = outputs.iter().zip(case.outputs).map(|(memory, ty)| {
        let Some(ty) = ty else {
            return Allowed::Same;
        };
        // Radii are multiples of the unit of 32 bits, to first order; twice that has all other orders.
        let factor = match ty.data_type {
            DataType::DOUBLE => 2.0 * Format::F64.unit / Format::F32.unit,
            _ => 1.0,
        };
        let sums: &[Summed] = bytemuck::cast_slice(&memory.bytes()[..bytes(ty)]);
        let ball = |sum: &Summed| {
            let ball = sum.ball();
            Ball::around(ball.mid, ball.rad * factor)
        };
        Allowed::Near(sums.iter().map(ball).collect())
    });
    Ok(each.collect())
}

/// An input of real numbers as sums of one term, and its bytes; integers as they are.
fn widened(input: &Held) -> Result<(Memory, usize), String> {
    let numbers = input.to_f64();
    let count = match input.ty.data_type.is_float() {
        true => numbers.len() * size_of::<Summed>(),
        false => input.bytes().len(),
    };
    let mut memory = Memory::new(count).ok_or("there is no memory to check it")?;
    let bytes = &mut memory.bytes_mut()[..count];
    if input.ty.data_type.is_float() {
        let sums: &mut [Summed] = bytemuck::cast_slice_mut(bytes);
        for (sum, number) in sums.iter_mut().zip(numbers) {
            *sum = Summed::of(Ball::exact(number));
        }
    } else {
        bytes.copy_from_slice(input.bytes());
    }
    Ok((memory, count))
}
