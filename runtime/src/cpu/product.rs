//! Matrix products on slices, for kernels that are made of several.

use super::gemm::{self, Accumulator, Bias, MatrixMut, Problem};
use super::math;
use bytemuck::Pod;
use std::ops::{Add, AddAssign, Div, Mul, Neg, Sub};

/// An element type that layers compute in: `f32` or `f64`.
pub trait Real:
    Pod
    + Accumulator
    + PartialOrd
    + Add<Output = Self>
    + Sub<Output = Self>
    + Mul<Output = Self>
    + Div<Output = Self>
    + Neg<Output = Self>
    + AddAssign
{
    /// The nearest element.
    fn from_f64(number: f64) -> Self;

    /// The element as a wider number.
    fn to_f64(self) -> f64;

    /// What long sums are kept in.
    type Total: Copy + Default;

    /// A sum and one more element.
    fn added_to(self, total: Self::Total) -> Self::Total;

    /// A sum as an element.
    fn of_total(total: Self::Total) -> Self;

    /// The lesser of two numbers; the second one where one is no number.
    fn lesser(self, other: Self) -> Self {
        if self < other { self } else { other }
    }

    /// The greater of two numbers; the second one where one is no number.
    fn greater(self, other: Self) -> Self {
        if self > other { self } else { other }
    }

    /// `log(1 + e^-x)` for x of at least 0.
    fn softplus_of_negative(self) -> Self {
        Self::from_f64((-self.to_f64()).exp().ln_1p())
    }

    /// The exponential function.
    fn exp(self) -> Self;

    /// The hyperbolic tangent.
    fn tanh(self) -> Self;

    /// `1 / (1 + e^-x)`
    fn sigmoid(self) -> Self;
}

macro_rules! real {
    ($type:ty, $exp:expr, $tanh:expr, $sigmoid:expr) => {
        impl Real for $type {
            #[inline(always)]
            fn from_f64(number: f64) -> $type {
                number as $type
            }

            #[inline(always)]
            fn to_f64(self) -> f64 {
                f64::from(self)
            }

            type Total = f64;

            #[inline(always)]
            fn added_to(self, total: f64) -> f64 {
                total + f64::from(self)
            }

            #[inline(always)]
            fn of_total(total: f64) -> $type {
                total as $type
            }

            #[inline(always)]
            fn exp(self) -> $type {
                $exp(self)
            }

            #[inline(always)]
            fn tanh(self) -> $type {
                $tanh(self)
            }

            #[inline(always)]
            fn sigmoid(self) -> $type {
                $sigmoid(self)
            }
        }
    };
}

real!(f32, math::exp, math::tanh, math::sigmoid);
real!(f64, f64::exp, f64::tanh, |x: f64| 1.0 / (1.0 + (-x).exp()));

pub use super::gemm::Matrix;

/// A matrix whose rows are dense and lie `stride` elements apart.
pub fn rows<T>(data: &[T], stride: usize) -> Matrix<'_, T> {
    Matrix::row_major(data, stride)
}

/// Elements of scratch that [`multiply`] needs.
pub fn scratch<T: Real>(sizes: Problem) -> usize {
    gemm::workspace_len::<T>(sizes, 1)
}

/// `C = A · B`, or `C += A · B`; the rows of C are dense and lie `stride` elements apart.
///
/// # Errors
/// Where an operand is too short for its sizes.
pub fn multiply<T: Real>(
    sizes: Problem,
    a: Matrix<'_, T>,
    b: Matrix<'_, T>,
    add: bool,
    c: &mut [T],
    stride: usize,
    scratch: &mut [T],
) -> Result<(), String> {
    let beta = if add { T::ONE } else { T::ZERO };
    let c = MatrixMut::row_major(c, stride);
    gemm::gemm(sizes, T::ONE, a, b, beta, c, Bias::None, scratch).map_err(|e| e.to_string())
}
