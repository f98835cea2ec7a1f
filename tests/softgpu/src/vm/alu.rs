//! Instructions that touch registers only.

use super::warp::{Lanes32, Lanes64, Registers, each_lane, lanes};
use super::{approx, convert, float, integer, round};
use crate::ptx::inst::*;

/// Executes `op` in the lanes of `mask`; false if it is not one of registers alone. `worst` is as in
/// [`super::Options::worst_approx`].
#[cfg(target_arch = "x86_64")]
pub(super) fn execute(regs: &mut Registers, op: &Op, mask: u32, worst: bool) -> bool {
    #[target_feature(enable = "avx2,fma")]
    fn with_avx2(regs: &mut Registers, op: &Op, mask: u32, worst: bool) -> bool {
        body(regs, op, mask, worst)
    }
    if std::arch::is_x86_feature_detected!("avx2") && std::arch::is_x86_feature_detected!("fma") {
        // SAFETY: the processor has both features, as just found.
        unsafe { with_avx2(regs, op, mask, worst) }
    } else {
        body(regs, op, mask, worst)
    }
}

/// As above, for processors whose baseline is enough.
#[cfg(not(target_arch = "x86_64"))]
pub(super) fn execute(regs: &mut Registers, op: &Op, mask: u32, worst: bool) -> bool {
    body(regs, op, mask, worst)
}

#[inline(always)]
fn body(regs: &mut Registers, op: &Op, mask: u32, worst: bool) -> bool {
    match *op {
        Op::Nop | Op::Fence => {}
        Op::Mov { d, a } => mov(regs, d, a, mask),
        Op::Int { op, ty, d, s, n } if !ty.wide() => {
            let [a, b, c] = s.map(|s| &regs.r32[s as usize]);
            let out = integer::narrow(op, ty, a, b, c);
            let defined = regs.all32(&s[..n as usize]);
            regs.write32(d, mask, &out, defined);
        }
        Op::Int { op, ty, d, s, n } => {
            let [a, b, c] = s.map(|s| &regs.r64[s as usize]);
            let out = integer::wide(op, ty, a, b, c);
            let defined = regs.all64(&s[..n as usize]);
            regs.write64(d, mask, &out, defined);
        }
        Op::Shift { left, ty, d, a, by } if !ty.wide() => {
            let out =
                integer::shift_narrow(left, ty, &regs.r32[a as usize], &regs.r32[by as usize]);
            let defined = regs.all32(&[a, by]);
            regs.write32(d, mask, &out, defined);
        }
        Op::Shift { left, ty, d, a, by } => {
            let out = integer::shift_wide(left, ty, &regs.r64[a as usize], &regs.r32[by as usize]);
            let defined = regs.all64(&[a]) & regs.all32(&[by]);
            regs.write64(d, mask, &out, defined);
        }
        Op::Wide { ty, d, a, b, c } => wide(regs, ty, d, [a, b], c, mask),
        Op::F32 {
            op,
            round,
            ftz,
            sat,
            d,
            s,
            n,
        } => {
            let out = float::single(op, round, ftz, sat, s.map(|s| &regs.r32[s as usize]));
            let defined = regs.all32(&s[..n as usize]);
            regs.write32(d, mask, &out, defined);
        }
        Op::F64 { op, round, d, s, n } => {
            let out = float::double(op, round, s.map(|s| &regs.r64[s as usize]));
            let defined = regs.all64(&s[..n as usize]);
            regs.write64(d, mask, &out, defined);
        }
        Op::Setp {
            ty,
            cmp,
            d,
            d2,
            a,
            b,
            with,
        } => set_predicate(regs, (ty, cmp), (d, d2), (a, b), with, mask),
        Op::Selp {
            d,
            a,
            b,
            p,
            inverted,
        } => select(regs, d, a, b, (p, inverted), mask),
        Op::Cvt(cvt) => conversion(regs, &cvt, mask),
        Op::PredLogic { op, d, a, b } => {
            let (x, y) = (regs.preds[a as usize], regs.preds[b as usize]);
            let value = logic(op, x, y);
            let defined = regs.def_preds[a as usize] & regs.def_preds[b as usize];
            regs.write_pred(d, mask, value, defined);
        }
        Op::PredNot { d, a } => {
            let (value, defined) = (!regs.preds[a as usize], regs.def_preds[a as usize]);
            regs.write_pred(d, mask, value, defined);
        }
        Op::Activemask { d } => regs.write32(d, mask, &[mask; 32], mask),
        Op::Bits {
            op: BitOp::Lop3(table),
            d,
            s,
            n,
        } => {
            let [a, b, c] = s.map(|s| &regs.r32[s as usize]);
            let out = each_lane(|i| integer::bits(BitOp::Lop3(table), a[i], b[i], c[i]));
            let defined = regs.all32(&s[..n as usize]);
            regs.write32(d, mask, &out, defined);
        }
        _ => return by_lane(regs, op, mask, worst),
    }
    true
}

#[inline(always)]
fn logic(op: BoolOp, x: u32, y: u32) -> u32 {
    match op {
        BoolOp::And => x & y,
        BoolOp::Or => x | y,
        BoolOp::Xor => x ^ y,
    }
}

#[inline(always)]
fn mov(regs: &mut Registers, d: Reg, a: Reg, mask: u32) {
    let defined = regs.defined(a);
    match d.class {
        Class::Pred => {
            let value = regs.preds[a.slot as usize];
            regs.write_pred(d.slot, mask, value, defined);
        }
        Class::B16 | Class::B32 => {
            let value = regs.r32[a.slot as usize];
            regs.write32(d.slot, mask, &value, defined);
        }
        Class::B64 => {
            let value = regs.r64[a.slot as usize];
            regs.write64(d.slot, mask, &value, defined);
        }
    }
}

#[inline(always)]
fn wide(regs: &mut Registers, ty: IntTy, d: Slot, [a, b]: [Slot; 2], c: Option<Slot>, mask: u32) {
    let defined = regs.all32(&[a, b]);
    let (a, b) = (&regs.r32[a as usize], &regs.r32[b as usize]);
    if matches!(ty, IntTy::S16 | IntTy::U16) {
        let out: Lanes32 = each_lane(|i| {
            let product = match ty {
                IntTy::S16 => (i32::from(a[i] as i16) * i32::from(b[i] as i16)) as u32,
                _ => (a[i] & 0xffff) * (b[i] & 0xffff),
            };
            product.wrapping_add(c.map_or(0, |c| regs.r32[c as usize][i]))
        });
        let defined = defined & c.map_or(u32::MAX, |c| regs.all32(&[c]));
        regs.write32(d, mask, &out, defined);
        return;
    }
    let mut out: Lanes64 = if ty == IntTy::S32 {
        each_lane(|i| (i64::from(a[i] as i32) * i64::from(b[i] as i32)) as u64)
    } else {
        each_lane(|i| u64::from(a[i]) * u64::from(b[i]))
    };
    let mut defined = defined;
    if let Some(c) = c {
        for (out, c) in out.iter_mut().zip(&regs.r64[c as usize]) {
            *out = out.wrapping_add(*c);
        }
        defined &= regs.all64(&[c]);
    }
    regs.write64(d, mask, &out, defined);
}

/// One bit per lane where `f` holds.
#[inline(always)]
fn ballot(f: impl Fn(usize) -> bool) -> u32 {
    let mut holds = [0u32; 32];
    for (lane, bit) in holds.iter_mut().enumerate() {
        *bit = u32::from(f(lane)) << lane;
    }
    holds.iter().fold(0, |all, bit| all | bit)
}

#[inline(always)]
fn comparison(regs: &Registers, ty: CmpTy, cmp: Cmp, a: Slot, b: Slot) -> (u32, u32) {
    let (a, b) = (a as usize, b as usize);
    let narrow = regs.def32.get(a).unwrap_or(&0) & regs.def32.get(b).unwrap_or(&0);
    let flush = |x: u32, ftz: bool| {
        if ftz && x & 0x7f80_0000 == 0 {
            x & 0x8000_0000
        } else {
            x
        }
    };
    macro_rules! by {
        ($file:ident, $defined:ident, $get:expr) => {{
            let (x, y, get) = (&regs.$file[a], &regs.$file[b], $get);
            // The comparison is chosen outside the loop over lanes, for the commonest at least.
            let bits = match cmp {
                Cmp::Lt => ballot(|i| get(x[i]) < get(y[i])),
                Cmp::Ge => ballot(|i| get(x[i]) >= get(y[i])),
                Cmp::Gt => ballot(|i| get(x[i]) > get(y[i])),
                Cmp::Eq => ballot(|i| get(x[i]) == get(y[i])),
                _ => ballot(|i| float::compare(cmp, get(x[i]), get(y[i]))),
            };
            (bits, regs.$defined[a] & regs.$defined[b])
        }};
    }
    match ty {
        CmpTy::Int(IntTy::S16) => by!(r32, def32, |x: u32| x as i16),
        CmpTy::Int(IntTy::U16) => by!(r32, def32, |x: u32| x as u16),
        CmpTy::Int(IntTy::S32) => by!(r32, def32, |x: u32| x as i32),
        CmpTy::Int(IntTy::U32) => by!(r32, def32, |x: u32| x),
        CmpTy::Int(IntTy::S64) => by!(r64, def64, |x: u64| x as i64),
        CmpTy::Int(IntTy::U64) => by!(r64, def64, |x: u64| x),
        CmpTy::F32 { ftz } => by!(r32, def32, |x: u32| f32::from_bits(flush(x, ftz))),
        CmpTy::F64 => by!(r64, def64, f64::from_bits),
        CmpTy::F16 | CmpTy::Bf16 => {
            let (x, y) = (&regs.r32[a], &regs.r32[b]);
            let get = |bits: u32| round::from_half(bits as u16, ty == CmpTy::Bf16);
            (
                ballot(|i| float::compare(cmp, get(x[i]), get(y[i]))),
                narrow,
            )
        }
    }
}

#[inline(always)]
fn set_predicate(
    regs: &mut Registers,
    (ty, cmp): (CmpTy, Cmp),
    (d, d2): (Slot, Option<Slot>),
    (a, b): (Slot, Slot),
    with: Option<(BoolOp, Slot, bool)>,
    mask: u32,
) {
    let (mut holds, mut defined) = comparison(regs, ty, cmp, a, b);
    let mut fails = !holds;
    if let Some((op, p, inverted)) = with {
        let p_value = regs.preds[p as usize] ^ if inverted { u32::MAX } else { 0 };
        holds = logic(op, holds, p_value);
        fails = logic(op, fails, p_value);
        defined &= regs.def_preds[p as usize];
    }
    regs.write_pred(d, mask, holds, defined);
    if let Some(d2) = d2 {
        regs.write_pred(d2, mask, fails, defined);
    }
}

#[inline(always)]
fn select(regs: &mut Registers, d: Reg, a: Reg, b: Reg, (p, inverted): (Slot, bool), mask: u32) {
    let take_a = regs.preds[p as usize] ^ if inverted { u32::MAX } else { 0 };
    // Only the chosen side needs a value.
    let chosen = regs.defined(a) & take_a | regs.defined(b) & !take_a;
    let defined = regs.def_preds[p as usize] & chosen;
    if d.class == Class::B64 {
        let (x, y) = (&regs.r64[a.slot as usize], &regs.r64[b.slot as usize]);
        let out: Lanes64 = each_lane(|i| if take_a >> i & 1 == 1 { x[i] } else { y[i] });
        regs.write64(d.slot, mask, &out, defined);
    } else {
        let (x, y) = (&regs.r32[a.slot as usize], &regs.r32[b.slot as usize]);
        let out: Lanes32 = each_lane(|i| if take_a >> i & 1 == 1 { x[i] } else { y[i] });
        regs.write32(d.slot, mask, &out, defined);
    }
}

#[inline(always)]
fn conversion(regs: &mut Registers, cvt: &Convert, mask: u32) {
    let defined = regs.defined(cvt.a);
    let a = cvt.a.slot as usize;
    match (cvt.from, cvt.to, cvt.d.class, cvt.a.class) {
        // The commonest, as loops that become vector code.
        (Ty::U32, Ty::U64 | Ty::S64, Class::B64, Class::B32) => {
            let x = &regs.r32[a];
            let out = each_lane(|i| u64::from(x[i]));
            regs.write64(cvt.d.slot, mask, &out, defined);
        }
        (Ty::S32, Ty::U64 | Ty::S64, Class::B64, Class::B32) => {
            let x = &regs.r32[a];
            let out = each_lane(|i| i64::from(x[i] as i32) as u64);
            regs.write64(cvt.d.slot, mask, &out, defined);
        }
        (Ty::U64 | Ty::S64, Ty::U32 | Ty::S32, Class::B32, Class::B64) if !cvt.sat => {
            let x = &regs.r64[a];
            let out = each_lane(|i| x[i] as u32);
            regs.write32(cvt.d.slot, mask, &out, defined);
        }
        (Ty::S32, Ty::F32, ..) if cvt.round == Round::Nearest && !cvt.sat => {
            let x = &regs.r32[a];
            let out = each_lane(|i| (x[i] as i32 as f32).to_bits());
            regs.write32(cvt.d.slot, mask, &out, defined);
        }
        (Ty::U32, Ty::F32, ..) if cvt.round == Round::Nearest && !cvt.sat => {
            let x = &regs.r32[a];
            let out = each_lane(|i| (x[i] as f32).to_bits());
            regs.write32(cvt.d.slot, mask, &out, defined);
        }
        _ => {
            for lane in lanes(mask) {
                let value = convert::convert(regs.get(cvt.a, lane), cvt);
                regs.set(cvt.d, lane, value);
            }
            regs.define(cvt.d, mask, defined);
        }
    }
}

/// The rarer instructions, one lane after another.
#[inline(never)]
fn by_lane(regs: &mut Registers, op: &Op, mask: u32, worst: bool) -> bool {
    let r32 = |slot: Slot| Reg {
        class: Class::B32,
        slot,
    };
    let r64 = |slot: Slot| Reg {
        class: Class::B64,
        slot,
    };
    let pred = |slot: Slot| Reg {
        class: Class::Pred,
        slot,
    };
    // The destination, the sources, and the value of one lane.
    macro_rules! each {
        ($d:expr, [$($s:expr),*], $value:expr) => {{
            let (d, sources) = ($d, [$($s),*]);
            let value = $value;
            for lane in lanes(mask) {
                let operands = sources.map(|s| regs.get(s, lane));
                regs.set(d, lane, value(operands));
            }
            let defined = sources.iter().fold(u32::MAX, |all, s| all & regs.defined(*s));
            regs.define(d, mask, defined);
        }};
    }
    match *op {
        Op::Approx {
            op,
            ftz,
            sat,
            d,
            a,
            b,
        } => each!(r32(d), [r32(a), r32(b)], |[a, b]: [u64; 2]| {
            let x = approx::single(
                op,
                f32::from_bits(a as u32),
                f32::from_bits(b as u32),
                ftz,
                worst,
            );
            let x = if sat {
                if x > 0.0 { x.min(1.0) } else { 0.0 }
            } else {
                x
            };
            u64::from(x.to_bits())
        }),
        Op::Approx64 { op, gross, d, a } => each!(r64(d), [r64(a)], |[a]: [u64; 1]| {
            approx::double(op, f64::from_bits(a), gross, worst).to_bits()
        }),
        Op::Half {
            op,
            bf16,
            pair,
            ftz,
            relu,
            d,
            s,
            n,
        } => {
            let sources = [0, 1, 2].map(|i| r32(s[if i < n as usize { i } else { 0 }]));
            let [a, b, c] = sources;
            each!(r32(d), [a, b, c], |s: [u64; 3]| {
                u64::from(float::half(op, bf16, pair, ftz, relu, s.map(|x| x as u32)))
            });
        }
        Op::Count { op, wide, d, a } => {
            let (a, bits) = if wide { (r64(a), 64) } else { (r32(a), 32) };
            each!(r32(d), [a], |[a]: [u64; 1]| u64::from(integer::count(
                op, a, bits
            )));
        }
        Op::Bits { op, d, s, n } => {
            let c = r32(s[if n == 3 { 2 } else { 1 }]);
            each!(r32(d), [r32(s[0]), r32(s[1]), c], |[a, b, c]: [u64; 3]| {
                u64::from(integer::bits(op, a as u32, b as u32, c as u32))
            });
        }
        Op::Bfe { ty, d, a, pos, len } => {
            let (d, a, bits) = if ty.wide() {
                (r64(d), r64(a), 64)
            } else {
                (r32(d), r32(a), 32)
            };
            let signed = matches!(ty, IntTy::S32 | IntTy::S64);
            each!(d, [a, r32(pos), r32(len)], |[a, pos, len]: [u64; 3]| {
                integer::extract(a, pos as u32, len as u32, bits, signed)
            });
        }
        Op::Bfi {
            wide,
            d,
            a,
            b,
            pos,
            len,
        } => {
            let reg = if wide { r64 } else { r32 };
            let bits = if wide { 64 } else { 32 };
            each!(
                reg(d),
                [reg(a), reg(b), r32(pos), r32(len)],
                |[a, b, pos, len]: [u64; 4]| {
                    integer::insert(a, b, pos as u32, len as u32, bits)
                }
            );
        }
        Op::Testp { op, wide, d, a } => {
            let a = if wide { r64(a) } else { r32(a) };
            each!(pred(d), [a], |[a]: [u64; 1]| {
                let x = if wide {
                    f64::from_bits(a)
                } else {
                    f64::from(f32::from_bits(a as u32))
                };
                let subnormal = if wide {
                    x.is_subnormal()
                } else {
                    f32::from_bits(a as u32).is_subnormal()
                };
                u64::from(match op {
                    TestOp::Finite => x.is_finite(),
                    TestOp::Infinite => x.is_infinite(),
                    TestOp::Number => !x.is_nan(),
                    TestOp::NotANumber => x.is_nan(),
                    TestOp::Normal => x.is_finite() && x != 0.0 && !subnormal,
                    TestOp::Subnormal => subnormal,
                })
            });
        }
        Op::Set {
            ty,
            cmp,
            float,
            d,
            a,
            b,
        } => {
            let (holds, defined) = comparison(regs, ty, cmp, a, b);
            let yes = if float { 1f32.to_bits() } else { u32::MAX };
            let out = each_lane(|i| if holds >> i & 1 == 1 { yes } else { 0 });
            regs.write32(d, mask, &out, defined);
        }
        Op::CvtPair {
            to,
            round,
            relu,
            d,
            a,
            b,
        } => each!(r32(d), [r32(a), r32(b)], |[a, b]: [u64; 2]| {
            let [upper, lower] = [a, b].map(|bits| {
                let half = round::to_half(
                    f64::from(f32::from_bits(bits as u32)),
                    to == Ty::Bf16,
                    round,
                );
                let negative = half & 0x8000 != 0;
                u64::from(if relu && negative { 0 } else { half })
            });
            upper << 16 | lower
        }),
        Op::Pack { d, parts, n } => {
            let parts = &parts[..n as usize];
            let width = bits_of(d) / u32::from(n);
            let mut defined = u32::MAX;
            for part in parts.iter().flatten() {
                defined &= regs.defined(*part);
            }
            for lane in lanes(mask) {
                let value = parts
                    .iter()
                    .flatten()
                    .rev()
                    .fold(0, |all, part| all << width | regs.get(*part, lane));
                regs.set(d, lane, value);
            }
            regs.define(d, mask, defined);
        }
        Op::Unpack { a, parts, n } => {
            let width = bits_of(a) / u32::from(n);
            let defined = regs.defined(a);
            // A part may be the register that is taken apart.
            let values: Lanes64 = each_lane(|lane| regs.get(a, lane));
            for (index, part) in parts[..n as usize].iter().enumerate() {
                let Some(part) = part else { continue };
                for lane in lanes(mask) {
                    regs.set(*part, lane, values[lane] >> (index as u32 * width));
                }
                regs.define(*part, mask, defined);
            }
        }
        Op::Carry {
            op,
            ty,
            carry_in,
            carry_out,
            d,
            s,
            n,
        } => {
            let reg = if ty.wide() { r64 } else { r32 };
            with_carry(
                regs,
                (op, ty.wide()),
                carry_in,
                carry_out,
                reg(d),
                &s.map(reg)[..n as usize],
                mask,
            );
        }
        Op::Window {
            space,
            to_generic,
            d,
            a,
        } => {
            let base = match space {
                Space::Shared => super::memory::SHARED_WINDOW,
                Space::Local => super::memory::LOCAL_WINDOW,
                Space::Global | Space::Param | Space::Generic => 0,
            };
            each!(d, [a], |[a]: [u64; 1]| if to_generic {
                a.wrapping_add(base)
            } else {
                a.wrapping_sub(base)
            });
        }
        Op::IsSpace { space, d, a } => each!(pred(d), [r64(a)], |[a]: [u64; 1]| {
            u64::from(super::place::space_of(a) == space)
        }),
        _ => return false,
    }
    true
}

fn bits_of(reg: Reg) -> u32 {
    match reg.class {
        Class::B64 => 64,
        Class::B32 => 32,
        _ => 16,
    }
}

fn with_carry(
    regs: &mut Registers,
    (op, wide): (IntOp, bool),
    carry_in: bool,
    carry_out: bool,
    d: Reg,
    s: &[Reg],
    mask: u32,
) {
    let bits = if wide { 64 } else { 32 };
    let modulus = 1u128 << bits;
    let defined = s.iter().fold(u32::MAX, |all, s| all & regs.defined(*s));
    for lane in lanes(mask) {
        let carry = u128::from(carry_in && regs.carry >> lane & 1 == 1);
        let get = |i: usize| u128::from(regs.get(s[i], lane));
        // The carry of a subtraction is its borrow.
        let (sum, flag) = match op {
            IntOp::Sub => {
                let sum = get(0) + 2 * modulus - get(1) - carry;
                (sum % modulus, sum < 2 * modulus)
            }
            _ => {
                let sum = carry
                    + match op {
                        IntOp::Add => get(0) + get(1),
                        IntOp::MadLo => get(0) * get(1) % modulus + get(2),
                        _ => get(0) * get(1) / modulus + get(2),
                    };
                (sum % modulus, sum >= modulus)
            }
        };
        regs.set(d, lane, sum as u64);
        if carry_out {
            regs.carry = regs.carry & !(1 << lane) | u32::from(flag) << lane;
        }
    }
    regs.define(d, mask, defined);
}
