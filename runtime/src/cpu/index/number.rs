//! Types that elements can be combined in.

use crate::ops::index::Reduction;
use bytemuck::Pod;
use half::{bf16, f16};

/// A number, and the wider one that long sums are formed in.
pub(super) trait Number: Pod + Send + Sync {
    /// What sums are formed in.
    type Wide: Copy;
    fn widen(self) -> Self::Wide;
    fn narrow(wide: Self::Wide) -> Self;
    fn plus(a: Self::Wide, b: Self::Wide) -> Self::Wide;
    /// An element after an update.
    fn combine(self, update: Self, reduction: Reduction) -> Self;
    /// The order of elements; of floating-point numbers, NaN is the largest.
    fn order(&self, other: &Self) -> std::cmp::Ordering;
}

macro_rules! floats {
    ($($float:ty: $widen:expr, $narrow:expr;)*) => {$(
        impl Number for $float {
            type Wide = f64;
            #[inline]
            fn widen(self) -> f64 {
                $widen(self)
            }
            #[inline]
            fn narrow(wide: f64) -> Self {
                $narrow(wide)
            }
            #[inline]
            fn plus(a: f64, b: f64) -> f64 {
                a + b
            }
            #[inline]
            fn combine(self, update: Self, reduction: Reduction) -> Self {
                let (a, b) = (self.widen(), update.widen());
                match reduction {
                    Reduction::Replace => update,
                    // Of two numbers, the sum and the product in double precision round to what the
                    // type itself gives.
                    Reduction::Add => Self::narrow(a + b),
                    Reduction::Mul => Self::narrow(a * b),
                    // NaN stays, wherever it is.
                    Reduction::Max => if b > a || b.is_nan() { update } else { self },
                    Reduction::Min => if b < a || b.is_nan() { update } else { self },
                }
            }
            fn order(&self, other: &Self) -> std::cmp::Ordering {
                let (a, b) = (self.widen(), other.widen());
                a.partial_cmp(&b).unwrap_or_else(|| a.is_nan().cmp(&b.is_nan()))
            }
        }
    )*};
}

floats! {
    f32: f64::from, |wide| wide as f32;
    f64: |wide| wide, |wide| wide;
    f16: f16::to_f64, f16::from_f64;
    bf16: bf16::to_f64, bf16::from_f64;
}

macro_rules! integers {
    ($($int:ty),*) => {$(
        impl Number for $int {
            type Wide = $int;
            #[inline]
            fn widen(self) -> Self {
                self
            }
            #[inline]
            fn narrow(wide: Self) -> Self {
                wide
            }
            #[inline]
            fn plus(a: Self, b: Self) -> Self {
                a.wrapping_add(b)
            }
            #[inline]
            fn combine(self, update: Self, reduction: Reduction) -> Self {
                match reduction {
                    Reduction::Replace => update,
                    Reduction::Add => self.wrapping_add(update),
                    Reduction::Mul => self.wrapping_mul(update),
                    Reduction::Max => self.max(update),
                    Reduction::Min => self.min(update),
                }
            }
            fn order(&self, other: &Self) -> std::cmp::Ordering {
                self.cmp(other)
            }
        }
    )*};
}

integers!(i8, i16, i32, i64, u8, u16, u32, u64);

/// Calls a generic function with the number type of a tensor's elements.
macro_rules! with_number {
    ($data_type:expr, $function:ident::<_ $(, $more:ty)*>($($argument:expr),* $(,)?)) => {
        match $data_type.0 {
            1 => $function::<f32 $(, $more)*>($($argument),*),
            11 => $function::<f64 $(, $more)*>($($argument),*),
            10 => $function::<half::f16 $(, $more)*>($($argument),*),
            16 => $function::<half::bf16 $(, $more)*>($($argument),*),
            3 => $function::<i8 $(, $more)*>($($argument),*),
            5 => $function::<i16 $(, $more)*>($($argument),*),
            6 => $function::<i32 $(, $more)*>($($argument),*),
            7 => $function::<i64 $(, $more)*>($($argument),*),
            2 | 9 => $function::<u8 $(, $more)*>($($argument),*),
            4 => $function::<u16 $(, $more)*>($($argument),*),
            12 => $function::<u32 $(, $more)*>($($argument),*),
            13 => $function::<u64 $(, $more)*>($($argument),*),
            _ => Err("elements of this type cannot be combined".to_owned()),
        }
    };
}
pub(super) use with_number;
