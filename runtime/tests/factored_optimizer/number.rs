//! Numbers that the formulas are evaluated with.

use std::ops::{Add, Div, Mul, Sub};

/// A kind of numbers.
pub trait Real:
    Copy + Add<Output = Self> + Sub<Output = Self> + Mul<Output = Self> + Div<Output = Self>
{
    /// A number that is given in single precision.
    fn exact(x: f32) -> Self;
    /// A setting, which kernels round to single precision.
    fn setting(x: f64) -> Self;
    fn sqrt(self) -> Self;
    fn abs(self) -> Self;
    /// `self + part (to − self)`, for a part from 0 to 1.
    fn toward(self, to: Self, part: Self) -> Self {
        self + part * (to - self)
    }
    fn value(self) -> f64;
}

/// What a kernel in single precision computes, operation by operation.
impl Real for f32 {
    fn exact(x: f32) -> Self {
        x
    }
    fn setting(x: f64) -> Self {
        x as f32
    }
    fn sqrt(self) -> Self {
        self.sqrt()
    }
    fn abs(self) -> Self {
        self.abs()
    }
    fn value(self) -> f64 {
        self.into()
    }
}

/// The formula itself.
impl Real for f64 {
    fn exact(x: f32) -> Self {
        x.into()
    }
    fn setting(x: f64) -> Self {
        x
    }
    fn sqrt(self) -> Self {
        self.sqrt()
    }
    fn abs(self) -> Self {
        self.abs()
    }
    fn value(self) -> f64 {
        self
    }
}

/// The unit of rounding in single precision, 2⁻²⁴. The excess is for the roundings of values and bounds,
/// which are themselves evaluated in double precision, with 2⁻⁵³.
const UNIT: f64 = (1.0 + 1.0 / (1u64 << 20) as f64) / (1u64 << 24) as f64;

/// Half of the least positive number of single precision, 2⁻¹⁵⁰: the error of products, quotients and
/// settings below the normal numbers. Sums there are exact.
fn least() -> f64 {
    2f64.powi(-150)
}

/// A value, and how far from it the same operations in single precision can be.
///
/// Each operation passes on the errors of its operands, amplified as the operation does it, and adds that
/// of its own rounding: a unit times the largest that its result can be. With x̂ for what is computed,
/// |x̂ − x| ≤ `error`.
#[derive(Clone, Copy, Debug)]
pub struct Bounded {
    pub value: f64,
    pub error: f64,
}

impl Bounded {
    /// With the rounding of a result whose operands are off by so much that it is off by `error`.
    fn rounded(value: f64, error: f64, underflow: f64) -> Self {
        let error = error + UNIT * (value.abs() + error) + underflow;
        Bounded { value, error }
    }
}

impl Add for Bounded {
    type Output = Self;
    fn add(self, other: Self) -> Self {
        Bounded::rounded(self.value + other.value, self.error + other.error, 0.0)
    }
}

impl Sub for Bounded {
    type Output = Self;
    fn sub(self, other: Self) -> Self {
        Bounded::rounded(self.value - other.value, self.error + other.error, 0.0)
    }
}

impl Mul for Bounded {
    type Output = Self;
    /// âb̂ − ab = (â − a) b + a (b̂ − b) + (â − a)(b̂ − b).
    fn mul(self, other: Self) -> Self {
        let (a, b) = (self, other);
        let error = a.error * b.value.abs() + a.value.abs() * b.error + a.error * b.error;
        Bounded::rounded(a.value * b.value, error, least())
    }
}

impl Div for Bounded {
    type Output = Self;
    /// â/b̂ − a/b = ((â − a) b − a (b̂ − b)) / (b b̂), where |b̂| is at least |b| less its error.
    fn div(self, other: Self) -> Self {
        let (a, b) = (self, other);
        let nearest = b.value.abs() - b.error;
        if nearest <= 0.0 {
            let (value, error) = (a.value / b.value, f64::INFINITY);
            return Bounded { value, error };
        }
        let error = (a.error * b.value.abs() + a.value.abs() * b.error) / (b.value.abs() * nearest);
        Bounded::rounded(a.value / b.value, error, least())
    }
}

impl Real for Bounded {
    fn exact(x: f32) -> Self {
        let (value, error) = (x.into(), 0.0);
        Bounded { value, error }
    }

    fn setting(x: f64) -> Self {
        Bounded::rounded(x, 0.0, least())
    }

    /// |√â − √a| = |â − a| / (√â + √a), at most the error over √a, and at most the root of the error.
    fn sqrt(self) -> Self {
        let root = self.value.sqrt();
        let error = match root > 0.0 {
            true => (self.error / root).min(self.error.sqrt()),
            false => self.error.sqrt(),
        };
        Bounded::rounded(root, error, 0.0)
    }

    fn abs(self) -> Self {
        let (value, error) = (self.value.abs(), self.error);
        Bounded { value, error }
    }

    /// As one operation: the errors of `self` in both places are the same one, so that it shrinks to
    /// 1 − part, where two errors would grow to 1 + part.
    ///
    /// m̂' − m' = (1 − f̂)(m̂ − m) + f̂ (ĝ − g) + (f̂ − f)(g − m) + f̂ δ₁ + δ₂ + δ₃, with the roundings δ₁ of the
    /// difference, δ₂ of the product, and δ₃ of the sum.
    fn toward(self, to: Self, part: Self) -> Self {
        let (m, g, f) = (self, to, part);
        let distance = (g.value - m.value).abs();
        let farthest = distance + g.error + m.error;
        let most = f.value + f.error;
        let difference = UNIT * farthest;
        let product = UNIT * most * (farthest + difference) + least();
        let error = (1.0 - f.value + f.error) * m.error
            + most * g.error
            + f.error * distance
            + most * difference
            + product;
        Bounded::rounded(m.value + f.value * (g.value - m.value), error, 0.0)
    }

    fn value(self) -> f64 {
        self.value
    }
}
