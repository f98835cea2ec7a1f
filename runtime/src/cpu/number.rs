//! Element types, and how kernels compute with them.

use bytemuck::Pod;
use half::{bf16, f16};

/// A type of elements in memory.
pub(crate) trait Number: Pod + Send + Sync {
    /// What it is computed with.
    type Lane: Lane;
    /// Whether the lane is the stored type, so that storing a result loses nothing.
    const EXACT: bool;
    /// Whether kernels are compiled for every machine's vectors.
    const VECTOR: bool = false;
    /// Loads an element.
    fn lane(self) -> Self::Lane;
    /// Rounds to an element.
    fn narrow(lane: Self::Lane) -> Self;
}

/// A type that kernels compute with; sums of many elements are kept in the wide type.
pub(crate) trait Lane: Copy + Send + Sync + PartialOrd + Default {
    /// The type of long sums.
    type Wide: Lane<Wide = Self::Wide> + Pod;
    /// One.
    const ONE: Self;
    /// Below or equal to all other numbers.
    const LOWEST: Self;
    /// Above or equal to all other numbers.
    const HIGHEST: Self;
    /// The sum; integers wrap around.
    fn add(self, other: Self) -> Self;
    /// The product; integers wrap around.
    fn mul(self, other: Self) -> Self;
    /// The absolute value.
    fn abs(self) -> Self;
    /// Widens.
    fn wide(self) -> Self::Wide;
    /// Rounds.
    fn narrow(wide: Self::Wide) -> Self;
    /// As a number whose logarithm can be taken.
    fn to_f64(self) -> f64;
    /// Rounds, integers towards zero.
    fn from_f64(number: f64) -> Self;
    /// Divides by a count; integers towards zero, and 0 by 0 is 0.
    fn over(self, count: usize) -> Self;
}

/// A floating-point lane.
pub(crate) trait Float: Lane<Wide = f64> {
    /// The difference.
    fn sub(self, other: Self) -> Self;
    /// `e^self`.
    fn exp(self) -> Self;
}

macro_rules! float_lane {
    ($type:ty, $exp:expr) => {
        impl Lane for $type {
            type Wide = f64;
            const ONE: Self = 1.0;
            const LOWEST: Self = <$type>::NEG_INFINITY;
            const HIGHEST: Self = <$type>::INFINITY;
            #[inline(always)]
            fn add(self, other: Self) -> Self {
                self + other
            }
            #[inline(always)]
            fn mul(self, other: Self) -> Self {
                self * other
            }
            #[inline(always)]
            fn abs(self) -> Self {
                self.abs()
            }
            #[inline(always)]
            fn wide(self) -> f64 {
                self.into()
            }
            #[inline(always)]
            fn narrow(wide: f64) -> Self {
                wide as $type
            }
            #[inline(always)]
            fn to_f64(self) -> f64 {
                self.into()
            }
            #[inline(always)]
            fn from_f64(number: f64) -> Self {
                number as $type
            }
            #[inline(always)]
            fn over(self, count: usize) -> Self {
                self / count as $type
            }
        }
        impl Float for $type {
            #[inline(always)]
            fn sub(self, other: Self) -> Self {
                self - other
            }
            #[inline(always)]
            fn exp(self) -> Self {
                $exp(self)
            }
        }
    };
}

float_lane!(f32, super::math::exp);
float_lane!(f64, f64::exp);

impl Lane for i64 {
    type Wide = i64;
    const ONE: Self = 1;
    const LOWEST: Self = i64::MIN;
    const HIGHEST: Self = i64::MAX;
    #[inline(always)]
    fn add(self, other: Self) -> Self {
        self.wrapping_add(other)
    }
    #[inline(always)]
    fn mul(self, other: Self) -> Self {
        self.wrapping_mul(other)
    }
    #[inline(always)]
    fn abs(self) -> Self {
        self.wrapping_abs()
    }
    #[inline(always)]
    fn wide(self) -> i64 {
        self
    }
    #[inline(always)]
    fn narrow(wide: i64) -> Self {
        wide
    }
    #[inline(always)]
    fn to_f64(self) -> f64 {
        self as f64
    }
    #[inline(always)]
    fn from_f64(number: f64) -> Self {
        number as i64
    }
    #[inline(always)]
    fn over(self, count: usize) -> Self {
        self.checked_div(count as i64).unwrap_or(0)
    }
}

macro_rules! exact {
    ($($type:ty: $vector:literal),*) => {$(
        impl Number for $type {
            type Lane = $type;
            const EXACT: bool = true;
            const VECTOR: bool = $vector;
            #[inline(always)]
            fn lane(self) -> $type {
                self
            }
            #[inline(always)]
            fn narrow(lane: $type) -> $type {
                lane
            }
        }
    )*};
}

exact!(f32: true, f64: false, i64: false);

macro_rules! half {
    ($($type:ty: $to:expr, $from:expr);*) => {$(
        impl Number for $type {
            type Lane = f32;
            const EXACT: bool = false;
            #[inline(always)]
            fn lane(self) -> f32 {
                $to(self)
            }
            #[inline(always)]
            fn narrow(lane: f32) -> $type {
                $from(lane)
            }
        }
    )*};
}

half!(f16: f16_to_f32, f16_from_f32; bf16: bf16::to_f32, bf16::from_f32);

/// Not inlined: the conversion asks what the machine has, and is long where it lacks one.
#[inline(never)]
fn f16_to_f32(x: f16) -> f32 {
    x.to_f32()
}

#[inline(never)]
fn f16_from_f32(x: f32) -> f16 {
    f16::from_f32(x)
}

macro_rules! integer {
    ($($type:ty),*) => {$(
        impl Number for $type {
            type Lane = i64;
            const EXACT: bool = false;
            #[inline(always)]
            fn lane(self) -> i64 {
                self as i64
            }
            #[inline(always)]
            fn narrow(lane: i64) -> $type {
                // Wraps around as the type itself would; the ends of the range, for the extremes of
                // nothing.
                match lane {
                    i64::MIN => <$type>::MIN,
                    i64::MAX => <$type>::MAX,
                    lane => lane as $type,
                }
            }
        }
    )*};
}

integer!(i8, i32, u8);

/// Runs a piece of code with a type named for the element type; refuses others with a sentence.
macro_rules! with_type {
    ($data_type:expr, $name:ident in [$($constant:ident = $type:ty),*] => $body:expr) => {
        match $data_type {
            $($crate::cpu::number::types::$constant => {
                type $name = $type;
                $body
            })*
            other => Err(format!("elements of type {} have no kernel here", other.0)),
        }
    };
}

/// The same for the floating-point types.
macro_rules! with_float {
    ($data_type:expr, $name:ident => $body:expr) => {
        $crate::cpu::number::with_type!($data_type, $name in [
            FLOAT = f32, DOUBLE = f64, FLOAT16 = half::f16, BFLOAT16 = half::bf16
        ] => $body)
    };
}

pub(crate) use {with_float, with_type};

/// Names of element types, as patterns.
pub(crate) mod types {
    use velora_graph::shapes::DataType;
    pub(crate) const FLOAT: DataType = DataType::FLOAT;
    pub(crate) const DOUBLE: DataType = DataType::DOUBLE;
    pub(crate) const FLOAT16: DataType = DataType::FLOAT16;
    pub(crate) const BFLOAT16: DataType = DataType::BFLOAT16;
    pub(crate) const INT8: DataType = DataType::INT8;
    pub(crate) const INT32: DataType = DataType::INT32;
    pub(crate) const INT64: DataType = DataType::INT64;
    pub(crate) const UINT8: DataType = DataType::UINT8;
    pub(crate) const BOOL: DataType = DataType::BOOL;
}
