//! The element types of the operands and the type in which their products are summed.

use half::{bf16, f16};

use super::kernel::{self, Kernels};
use super::tile::TileMut;

/// A type in which products are summed: `f32` or `f64`.
pub trait Accumulator: Element<Acc = Self> + PartialEq {
    /// Zero.
    const ZERO: Self;
    /// One.
    const ONE: Self;

    /// `self * factor + term`, rounded as the portable kernel rounds it.
    fn multiply_add(self, factor: Self, term: Self) -> Self;

    /// The sum.
    fn plus(self, other: Self) -> Self;

    /// The product.
    fn times(self, other: Self) -> Self;

    /// The kernels for this machine.
    #[doc(hidden)]
    fn kernels() -> &'static Kernels<Self>;
}

/// A type in which an operand of the product is stored: `f32`, `f64`, `f16` or `bf16`.
pub trait Element: Copy + Send + Sync + 'static {
    /// The type in which products of these elements are summed.
    type Acc: Accumulator;

    /// The element as an accumulator; exact.
    fn to_acc(self) -> Self::Acc;

    /// The element nearest to an accumulator.
    fn from_acc(value: Self::Acc) -> Self;

    /// The tile itself where its elements are accumulators, so that sums can be kept in it.
    #[doc(hidden)]
    fn accumulators(tile: TileMut<'_, Self>) -> Result<TileMut<'_, Self::Acc>, TileMut<'_, Self>>;

    /// The elements themselves where they are accumulators.
    #[doc(hidden)]
    fn as_accumulators(elements: &[Self]) -> Option<&[Self::Acc]>;
}

macro_rules! accumulator {
    ($type:ty, $kernels:path) => {
        impl Element for $type {
            type Acc = $type;

            #[inline(always)]
            fn to_acc(self) -> $type {
                self
            }

            #[inline(always)]
            fn from_acc(value: $type) -> $type {
                value
            }

            fn accumulators(
                tile: TileMut<'_, $type>,
            ) -> Result<TileMut<'_, $type>, TileMut<'_, $type>> {
                Ok(tile)
            }

            #[inline(always)]
            fn as_accumulators(elements: &[$type]) -> Option<&[$type]> {
                Some(elements)
            }
        }

        impl Accumulator for $type {
            const ZERO: $type = 0.0;
            const ONE: $type = 1.0;

            #[inline(always)]
            fn multiply_add(self, factor: $type, term: $type) -> $type {
                // Without such an instruction `mul_add` is a call of the C library.
                if cfg!(any(target_feature = "fma", target_arch = "aarch64")) {
                    self.mul_add(factor, term)
                } else {
                    self * factor + term
                }
            }

            #[inline(always)]
            fn plus(self, other: $type) -> $type {
                self + other
            }

            #[inline(always)]
            fn times(self, other: $type) -> $type {
                self * other
            }

            fn kernels() -> &'static Kernels<$type> {
                $kernels()
            }
        }
    };
}

accumulator!(f32, kernel::f32);
accumulator!(f64, kernel::f64);

macro_rules! half_precision {
    ($type:ty) => {
        impl Element for $type {
            type Acc = f32;

            #[inline(always)]
            fn to_acc(self) -> f32 {
                self.to_f32()
            }

            #[inline(always)]
            fn from_acc(value: f32) -> $type {
                <$type>::from_f32(value)
            }

            fn accumulators(
                tile: TileMut<'_, $type>,
            ) -> Result<TileMut<'_, f32>, TileMut<'_, $type>> {
                Err(tile)
            }

            #[inline(always)]
            fn as_accumulators(_: &[$type]) -> Option<&[f32]> {
                None
            }
        }
    };
}

half_precision!(f16);
half_precision!(bf16);
