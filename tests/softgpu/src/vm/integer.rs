//! Integer arithmetic on all lanes at once.

use super::warp::{Lanes32, Lanes64, each_lane};
use crate::ptx::inst::{BitOp, CountOp, IntOp, IntTy};

/// An integer type in lanes of its register file.
trait Int: Copy + Ord {
    type Lane: Copy + Default;
    const BITS: u32;
    fn get(lane: Self::Lane) -> Self;
    fn put(self) -> Self::Lane;
    fn wide(self) -> i128;
    fn cut(wide: i128) -> Self;
    fn add(self, other: Self) -> Self;
    fn sub(self, other: Self) -> Self;
    fn mul(self, other: Self) -> Self;
    fn mul_high(self, other: Self) -> Self;
    fn div(self, other: Self) -> Self;
    fn rem(self, other: Self) -> Self;
    fn and(self, other: Self) -> Self;
    fn or(self, other: Self) -> Self;
    fn xor(self, other: Self) -> Self;
    fn not(self) -> Self;
    fn reverse(self) -> Self;
    fn shift_left(self, by: u32) -> Self;
    fn shift_right(self, by: u32) -> Self;
}

macro_rules! int {
    ($ty:ty, $lane:ty, $unsigned:ty, $double:ty) => {
        impl Int for $ty {
            type Lane = $lane;
            const BITS: u32 = <$ty>::BITS;
            #[inline(always)]
            fn get(lane: $lane) -> $ty {
                lane as $ty
            }
            #[inline(always)]
            fn put(self) -> $lane {
                self as $unsigned as $lane
            }
            #[inline(always)]
            fn wide(self) -> i128 {
                self as i128
            }
            #[inline(always)]
            fn cut(wide: i128) -> $ty {
                wide as $ty
            }
            #[inline(always)]
            fn add(self, other: $ty) -> $ty {
                self.wrapping_add(other)
            }
            #[inline(always)]
            fn sub(self, other: $ty) -> $ty {
                self.wrapping_sub(other)
            }
            #[inline(always)]
            fn mul(self, other: $ty) -> $ty {
                self.wrapping_mul(other)
            }
            #[inline(always)]
            fn mul_high(self, other: $ty) -> $ty {
                ((self as $double * other as $double) >> <$ty>::BITS) as $ty
            }
            // Devices give all ones for a quotient by zero, and the dividend for the remainder.
            #[inline(always)]
            fn div(self, other: $ty) -> $ty {
                if other == 0 {
                    <$unsigned>::MAX as $ty
                } else {
                    self.wrapping_div(other)
                }
            }
            #[inline(always)]
            fn rem(self, other: $ty) -> $ty {
                if other == 0 {
                    self
                } else {
                    self.wrapping_rem(other)
                }
            }
            #[inline(always)]
            fn and(self, other: $ty) -> $ty {
                self & other
            }
            #[inline(always)]
            fn or(self, other: $ty) -> $ty {
                self | other
            }
            #[inline(always)]
            fn xor(self, other: $ty) -> $ty {
                self ^ other
            }
            #[inline(always)]
            fn not(self) -> $ty {
                !self
            }
            #[inline(always)]
            fn reverse(self) -> $ty {
                self.reverse_bits()
            }
            #[inline(always)]
            fn shift_left(self, by: u32) -> $ty {
                if by >= <$ty>::BITS { 0 } else { self << by }
            }
            // Amounts beyond the width leave the sign, or nothing.
            #[inline(always)]
            fn shift_right(self, by: u32) -> $ty {
                let last = self >> (by.min(<$ty>::BITS - 1));
                if by >= <$ty>::BITS && <$ty>::MIN == 0 {
                    0
                } else {
                    last
                }
            }
        }
    };
}
int!(i16, u32, u16, i32);
int!(u16, u32, u16, u32);
int!(i32, u32, u32, i64);
int!(u32, u32, u32, u64);
int!(i64, u64, u64, i128);
int!(u64, u64, u64, u128);

type Row<T> = [<T as Int>::Lane; 32];

#[inline(always)]
fn map1<T: Int>(a: &Row<T>, f: impl Fn(T) -> T) -> Row<T> {
    each_lane(|i| f(T::get(a[i])).put())
}

#[inline(always)]
fn map2<T: Int>(a: &Row<T>, b: &Row<T>, f: impl Fn(T, T) -> T) -> Row<T> {
    each_lane(|i| f(T::get(a[i]), T::get(b[i])).put())
}

#[inline(always)]
fn map3<T: Int>(a: &Row<T>, b: &Row<T>, c: &Row<T>, f: impl Fn(T, T, T) -> T) -> Row<T> {
    each_lane(|i| f(T::get(a[i]), T::get(b[i]), T::get(c[i])).put())
}

#[inline(always)]
fn compute<T: Int>(op: IntOp, a: &Row<T>, b: &Row<T>, c: &Row<T>) -> Row<T> {
    let zero = T::cut(0);
    let bounds = |x: i128| T::cut(x.clamp(i128::from(i32::MIN), i128::from(i32::MAX)));
    match op {
        IntOp::Add => map2(a, b, T::add),
        IntOp::Sub => map2(a, b, T::sub),
        IntOp::AddSat => map2(a, b, |x: T, y| bounds(x.wide() + y.wide())),
        IntOp::SubSat => map2(a, b, |x: T, y| bounds(x.wide() - y.wide())),
        IntOp::Mul => map2(a, b, T::mul),
        IntOp::MulHi => map2(a, b, T::mul_high),
        IntOp::MadLo => map3(a, b, c, |x: T, y, z| x.mul(y).add(z)),
        IntOp::MadHi => map3(a, b, c, |x: T, y, z| x.mul_high(y).add(z)),
        IntOp::Mul24 => map2(a, b, |x: T, y| low24(x).mul(low24(y))),
        IntOp::Div => map2(a, b, T::div),
        IntOp::Rem => map2(a, b, T::rem),
        IntOp::Min => map2(a, b, |x: T, y| if x < y { x } else { y }),
        IntOp::Max => map2(a, b, |x: T, y| if x > y { x } else { y }),
        IntOp::Neg => map1(a, |x: T| zero.sub(x)),
        IntOp::Abs => map1(a, |x: T| if x < zero { zero.sub(x) } else { x }),
        IntOp::Not => map1(a, T::not),
        IntOp::CNot => map1(a, |x: T| T::cut(i128::from(x == zero))),
        IntOp::And => map2(a, b, T::and),
        IntOp::Or => map2(a, b, T::or),
        IntOp::Xor => map2(a, b, T::xor),
        IntOp::Sad => map3(a, b, c, |x: T, y, z| {
            z.add(if x < y { y.sub(x) } else { x.sub(y) })
        }),
        IntOp::Brev => map1(a, T::reverse),
        IntOp::Slct => map3(
            a,
            b,
            c,
            |x: T, y, z| if z.wide() as i32 >= 0 { x } else { y },
        ),
    }
}

/// The low 24 bits, with the sign of a signed type.
#[inline(always)]
fn low24<T: Int>(x: T) -> T {
    x.shift_left(T::BITS.saturating_sub(24))
        .shift_right(T::BITS.saturating_sub(24))
}

/// An operation in the 32-bit file.
#[inline(always)]
pub(super) fn narrow(op: IntOp, ty: IntTy, a: &Lanes32, b: &Lanes32, c: &Lanes32) -> Lanes32 {
    match ty {
        IntTy::S16 => compute::<i16>(op, a, b, c),
        IntTy::U16 => compute::<u16>(op, a, b, c),
        IntTy::S32 => compute::<i32>(op, a, b, c),
        _ => compute::<u32>(op, a, b, c),
    }
}

/// An operation in the 64-bit file.
#[inline(always)]
pub(super) fn wide(op: IntOp, ty: IntTy, a: &Lanes64, b: &Lanes64, c: &Lanes64) -> Lanes64 {
    if ty == IntTy::S64 {
        compute::<i64>(op, a, b, c)
    } else {
        compute::<u64>(op, a, b, c)
    }
}

#[inline(always)]
fn shift<T: Int>(left: bool, a: &Row<T>, by: &Lanes32) -> Row<T> {
    if left {
        each_lane(|i| T::get(a[i]).shift_left(by[i]).put())
    } else {
        each_lane(|i| T::get(a[i]).shift_right(by[i]).put())
    }
}

/// A shift in the 32-bit file.
#[inline(always)]
pub(super) fn shift_narrow(left: bool, ty: IntTy, a: &Lanes32, by: &Lanes32) -> Lanes32 {
    match ty {
        IntTy::S16 => shift::<i16>(left, a, by),
        IntTy::U16 => shift::<u16>(left, a, by),
        IntTy::S32 => shift::<i32>(left, a, by),
        _ => shift::<u32>(left, a, by),
    }
}

/// A shift in the 64-bit file.
#[inline(always)]
pub(super) fn shift_wide(left: bool, ty: IntTy, a: &Lanes64, by: &Lanes32) -> Lanes64 {
    if ty == IntTy::S64 {
        shift::<i64>(left, a, by)
    } else {
        shift::<u64>(left, a, by)
    }
}

/// Counts bits of values that have 32 or 64 of them.
#[inline(always)]
pub(super) fn count(op: CountOp, value: u64, bits: u32) -> u32 {
    match op {
        CountOp::Popc => value.count_ones(),
        CountOp::Clz => value.leading_zeros() - (64 - bits),
        CountOp::Bfind { signed, shift } => {
            let negative = signed && value >> (bits - 1) & 1 == 1;
            let flipped = if negative {
                !value << (64 - bits) >> (64 - bits)
            } else {
                value
            };
            let zeros = flipped.leading_zeros() - (64 - bits);
            if zeros == bits {
                u32::MAX
            } else if shift {
                zeros
            } else {
                bits - 1 - zeros
            }
        }
    }
}

/// A field of `len` bits from `pos`, at most `bits` wide.
pub(super) fn extract(value: u64, pos: u32, len: u32, bits: u32, signed: bool) -> u64 {
    let (pos, len) = (pos & 0xff, len & 0xff);
    let top = (pos + len).saturating_sub(1).min(bits - 1);
    let sign = signed && len > 0 && value >> top & 1 == 1;
    let mut field = if pos >= 64 { 0 } else { value >> pos };
    let kept = if pos >= bits { 0 } else { len.min(bits - pos) };
    if kept < 64 {
        field &= (1 << kept) - 1;
        if sign {
            field |= u64::MAX << kept;
        }
    }
    if bits == 64 {
        field
    } else {
        field & 0xffff_ffff
    }
}

/// `b` with `len` of its bits from `pos` replaced by those of `a`.
pub(super) fn insert(a: u64, b: u64, pos: u32, len: u32, bits: u32) -> u64 {
    let (pos, len) = (pos & 0xff, len & 0xff);
    if pos >= bits || len == 0 {
        return b;
    }
    let len = len.min(bits - pos);
    let ones = if len >= 64 { u64::MAX } else { (1 << len) - 1 };
    b & !(ones << pos) | (a & ones) << pos
}

fn permute(a: u32, b: u32, selector: impl Fn(u32) -> u32) -> u32 {
    let bytes = u64::from(b) << 32 | u64::from(a);
    (0..4).fold(0, |result, i| {
        let select = selector(i);
        let byte = (bytes >> (8 * (select & 7))) as u8;
        // Bit 3 asks for the byte's sign instead of the byte.
        let byte = if select & 8 != 0 {
            ((byte as i8) >> 7) as u8
        } else {
            byte
        };
        result | u32::from(byte) << (8 * i)
    })
}

/// A 32-bit operation on bits.
#[inline(always)]
pub(super) fn bits(op: BitOp, a: u32, b: u32, c: u32) -> u32 {
    let n = c & 3;
    let double = u64::from(b) << 32 | u64::from(a);
    let amount = |clamp: bool| if clamp { c.min(32) } else { c & 31 };
    match op {
        BitOp::Prmt => permute(a, b, |i| c >> (4 * i) & 15),
        BitOp::PrmtF4e => permute(a, b, |i| n + i),
        BitOp::PrmtB4e => permute(a, b, |i| (n.wrapping_sub(i)) & 7),
        BitOp::PrmtRc8 => permute(a, b, |_| n),
        BitOp::PrmtEcl => permute(a, b, |i| i.max(n)),
        BitOp::PrmtEcr => permute(a, b, |i| i.min(n)),
        BitOp::PrmtRc16 => permute(a, b, |i| (n & 1) * 2 + (i & 1)),
        BitOp::ShfLeft { clamp } => ((double << amount(clamp)) >> 32) as u32,
        BitOp::ShfRight { clamp } => (double >> amount(clamp)) as u32,
        BitOp::Lop3(table) => {
            let mut result = 0;
            for row in 0..8 {
                if table >> row & 1 == 1 {
                    let x = if row & 4 != 0 { a } else { !a };
                    let y = if row & 2 != 0 { b } else { !b };
                    let z = if row & 1 != 0 { c } else { !c };
                    result |= x & y & z;
                }
            }
            result
        }
        BitOp::Bmsk { clamp } => {
            let (pos, len) = if clamp {
                (a.min(32), b.min(32))
            } else {
                (a & 31, b & 31)
            };
            let ones = |n: u32| if n >= 32 { u32::MAX } else { (1 << n) - 1 };
            if pos >= 32 {
                0
            } else {
                ones((pos + len).min(32)) & !ones(pos)
            }
        }
    }
}
