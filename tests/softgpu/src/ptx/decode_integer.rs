//! Integer arithmetic, bits, and predicates.

use super::decode_ops::{Mods, class_of, expect, int_ty};
use super::inst::*;
use super::module::{Decoded, number};
use super::operands::Decoder;
use super::syntax::Arg;

const PERMUTE: [(&str, BitOp); 6] = [
    ("f4e", BitOp::PrmtF4e),
    ("b4e", BitOp::PrmtB4e),
    ("rc8", BitOp::PrmtRc8),
    ("ecl", BitOp::PrmtEcl),
    ("ecr", BitOp::PrmtEcr),
    ("rc16", BitOp::PrmtRc16),
];

impl<'a> Decoder<'a> {
    fn int(&mut self, op: IntOp, ty: IntTy, args: &[Arg<'a>], n: usize) -> Decoded<Op> {
        expect(args, n + 1)?;
        let class = class_of(ty);
        Ok(Op::Int {
            op,
            ty,
            d: self.dest_of(&args[0], class)?,
            s: self.sources(&args[1..], class)?,
            n: n as u8,
        })
    }

    pub(super) fn integer(
        &mut self,
        base: &str,
        ty: IntTy,
        mods: &mut Mods<'a>,
        args: &'a [Arg<'a>],
    ) -> Decoded<Op> {
        if mods.take("wide") {
            return self.wide(base, ty, args);
        }
        let (high, low) = (mods.take("hi"), mods.take("lo"));
        if mods.take("cc") {
            let op = match (base, high) {
                ("add", _) => IntOp::Add,
                ("sub", _) => IntOp::Sub,
                ("mad", false) => IntOp::MadLo,
                ("mad", true) => IntOp::MadHi,
                _ => return Err("unsupported carry".into()),
            };
            return self.with_carry(op, ty, false, true, args);
        }
        if matches!(base, "mul" | "mad") && !high && !low {
            return Err(format!("{base} without .lo, .hi or .wide"));
        }
        let saturated = mods.take("sat");
        let (op, n) = match (base, high) {
            ("add", _) => (if saturated { IntOp::AddSat } else { IntOp::Add }, 2),
            ("sub", _) => (if saturated { IntOp::SubSat } else { IntOp::Sub }, 2),
            ("mul", false) => (IntOp::Mul, 2),
            ("mul", true) => (IntOp::MulHi, 2),
            ("mad", false) => (IntOp::MadLo, 3),
            ("mad", true) => (IntOp::MadHi, 3),
            ("div", _) => (IntOp::Div, 2),
            ("min", _) => (IntOp::Min, 2),
            ("max", _) => (IntOp::Max, 2),
            ("neg", _) => (IntOp::Neg, 1),
            ("abs", _) => (IntOp::Abs, 1),
            _ => return Err(format!("unsupported: {base} of integers")),
        };
        if saturated && (!matches!(base, "add" | "sub") || ty != IntTy::S32) {
            return Err("unsupported saturation".into());
        }
        self.int(op, ty, args, n)
    }

    fn wide(&mut self, base: &str, ty: IntTy, args: &[Arg<'a>]) -> Decoded<Op> {
        let n = if base == "mad" { 3 } else { 2 };
        expect(args, n + 1)?;
        let result = match class_of(ty) {
            Class::B16 => Class::B32,
            Class::B32 => Class::B64,
            _ => return Err("unsupported: a product of 128 bits".into()),
        };
        let s = self.sources(&args[1..3], class_of(ty))?;
        let c = if n == 3 {
            Some(self.source_of(&args[3], result)?)
        } else {
            None
        };
        Ok(Op::Wide {
            ty,
            d: self.dest_of(&args[0], result)?,
            a: s[0],
            b: s[1],
            c,
        })
    }

    pub(super) fn carry(
        &mut self,
        base: &str,
        mods: &mut Mods<'a>,
        args: &'a [Arg<'a>],
    ) -> Decoded<Op> {
        let ty = int_ty(mods.list.pop().ok_or("a type is missing")?)?;
        let high = mods.take("hi");
        mods.take("lo");
        let carry_out = mods.take("cc");
        let op = match (base, high) {
            ("addc", _) => IntOp::Add,
            ("subc", _) => IntOp::Sub,
            (_, false) => IntOp::MadLo,
            (_, true) => IntOp::MadHi,
        };
        self.with_carry(op, ty, true, carry_out, args)
    }

    fn with_carry(
        &mut self,
        op: IntOp,
        ty: IntTy,
        carry_in: bool,
        carry_out: bool,
        args: &[Arg<'a>],
    ) -> Decoded<Op> {
        let ty = match ty {
            IntTy::S32 | IntTy::U32 => IntTy::U32,
            IntTy::S64 | IntTy::U64 => IntTy::U64,
            _ => return Err("unsupported carry of 16 bits".into()),
        };
        let n = args.len().saturating_sub(1);
        expect(
            args,
            if matches!(op, IntOp::Add | IntOp::Sub) {
                3
            } else {
                4
            },
        )?;
        let class = class_of(ty);
        let (d, s) = (
            self.dest_of(&args[0], class)?,
            self.sources(&args[1..], class)?,
        );
        Ok(Op::Carry {
            op,
            ty,
            carry_in,
            carry_out,
            d,
            s,
            n: n as u8,
        })
    }

    pub(super) fn bitwise(
        &mut self,
        base: &str,
        mods: &mut Mods<'a>,
        args: &'a [Arg<'a>],
    ) -> Decoded<Op> {
        let ty = mods.list.pop().ok_or("a type is missing")?;
        if ty == "pred" {
            return self.pred_logic(base, args);
        }
        let ty = int_ty(ty)?;
        let (op, n) = match base {
            "rem" => (IntOp::Rem, 2),
            "not" => (IntOp::Not, 1),
            "cnot" => (IntOp::CNot, 1),
            "and" => (IntOp::And, 2),
            "or" => (IntOp::Or, 2),
            "xor" => (IntOp::Xor, 2),
            "sad" => (IntOp::Sad, 3),
            "brev" => (IntOp::Brev, 1),
            "mul24" if mods.take("lo") => (IntOp::Mul24, 2),
            "slct" if ty == IntTy::S32 && matches!(mods.next()?, "s32" | "u32" | "b32" | "f32") => {
                (IntOp::Slct, 3)
            }
            _ => return Err(format!("unsupported form of {base}")),
        };
        self.int(op, ty, args, n)
    }

    fn pred_logic(&mut self, base: &str, args: &[Arg<'a>]) -> Decoded<Op> {
        if base == "not" {
            expect(args, 2)?;
            let (a, inverted) = self.read_pred(&args[1])?;
            if inverted {
                return Err("unsupported: an inverted operand".into());
            }
            return Ok(Op::PredNot {
                d: self.dest_of(&args[0], Class::Pred)?,
                a,
            });
        }
        let op = match base {
            "and" => BoolOp::And,
            "or" => BoolOp::Or,
            "xor" => BoolOp::Xor,
            _ => return Err(format!("unsupported: {base} of predicates")),
        };
        expect(args, 3)?;
        let ((a, x), (b, y)) = (self.read_pred(&args[1])?, self.read_pred(&args[2])?);
        if x || y {
            return Err("unsupported: an inverted operand".into());
        }
        Ok(Op::PredLogic {
            op,
            d: self.dest_of(&args[0], Class::Pred)?,
            a,
            b,
        })
    }

    pub(super) fn shift(
        &mut self,
        base: &str,
        mods: &mut Mods<'a>,
        args: &[Arg<'a>],
    ) -> Decoded<Op> {
        let ty = int_ty(mods.next()?)?;
        expect(args, 3)?;
        let (d, a) = (
            self.dest_of(&args[0], class_of(ty))?,
            self.source_of(&args[1], class_of(ty))?,
        );
        Ok(Op::Shift {
            left: base == "shl",
            ty,
            d,
            a,
            by: self.source_of(&args[2], Class::B32)?,
        })
    }

    pub(super) fn count(
        &mut self,
        base: &str,
        mods: &mut Mods<'a>,
        args: &[Arg<'a>],
    ) -> Decoded<Op> {
        let shift = mods.take("shiftamt");
        let ty = int_ty(mods.next()?)?;
        expect(args, 2)?;
        let op = match base {
            "popc" => CountOp::Popc,
            "clz" => CountOp::Clz,
            _ => CountOp::Bfind {
                signed: matches!(ty, IntTy::S32 | IntTy::S64),
                shift,
            },
        };
        let d = self.dest_of(&args[0], Class::B32)?;
        Ok(Op::Count {
            op,
            wide: ty.wide(),
            d,
            a: self.source_of(&args[1], class_of(ty))?,
        })
    }

    pub(super) fn field(
        &mut self,
        base: &str,
        mods: &mut Mods<'a>,
        args: &[Arg<'a>],
    ) -> Decoded<Op> {
        let ty = int_ty(mods.next()?)?;
        let class = class_of(ty);
        if class == Class::B16 {
            return Err("unsupported: a field of 16 bits".into());
        }
        let insert = base == "bfi";
        expect(args, if insert { 5 } else { 4 })?;
        let (d, a) = (
            self.dest_of(&args[0], class)?,
            self.source_of(&args[1], class)?,
        );
        let b = if insert {
            self.source_of(&args[2], class)?
        } else {
            0
        };
        let rest = &args[args.len() - 2..];
        let (pos, len) = (
            self.source_of(&rest[0], Class::B32)?,
            self.source_of(&rest[1], Class::B32)?,
        );
        Ok(if insert {
            Op::Bfi {
                wide: ty.wide(),
                d,
                a,
                b,
                pos,
                len,
            }
        } else {
            Op::Bfe { ty, d, a, pos, len }
        })
    }

    pub(super) fn bits(
        &mut self,
        base: &str,
        mods: &mut Mods<'a>,
        args: &[Arg<'a>],
    ) -> Decoded<Op> {
        if !mods.take("b32") {
            return Err(format!("{base} of another type than b32"));
        }
        let clamp = mods.take("clamp");
        let wrap = mods.take("wrap");
        let mut n = 3;
        let op = match base {
            "prmt" => mods.choose(&PERMUTE).unwrap_or(BitOp::Prmt),
            "shf" if clamp == wrap => return Err("shf without .wrap or .clamp".into()),
            "shf" if mods.take("l") => BitOp::ShfLeft { clamp },
            "shf" if mods.take("r") => BitOp::ShfRight { clamp },
            "lop3" => {
                expect(args, 5)?;
                let Arg::Word(table) = args[4] else {
                    return Err("unsupported table".into());
                };
                BitOp::Lop3(number(table)? as u8)
            }
            "bmsk" => {
                n = 2;
                BitOp::Bmsk { clamp }
            }
            _ => return Err(format!("unsupported form of {base}")),
        };
        if base != "lop3" {
            expect(args, n + 1)?;
        }
        let (d, s) = (
            self.dest_of(&args[0], Class::B32)?,
            self.sources(&args[1..=n], Class::B32)?,
        );
        Ok(Op::Bits {
            op,
            d,
            s,
            n: n as u8,
        })
    }
}
