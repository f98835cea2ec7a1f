//! Arithmetic, comparisons, conversions and control flow. Each mnemonic takes the modifiers it knows; one that
//! is left over refuses the text.

use super::decode::{Decoded, Decoder};
use super::inst::*;
use super::syntax::{Arg, RawInst};

/// The parts of a mnemonic after its first.
pub(super) struct Mods<'a> {
    list: Vec<&'a str>,
}

impl<'a> Mods<'a> {
    pub(super) fn take(&mut self, name: &str) -> bool {
        match self.list.iter().position(|m| *m == name) {
            Some(at) => {
                self.list.remove(at);
                true
            }
            None => false,
        }
    }

    /// The first of `choices` that is present.
    pub(super) fn choose<T: Copy>(&mut self, choices: &[(&str, T)]) -> Option<T> {
        choices
            .iter()
            .find(|(name, _)| self.take(name))
            .map(|(_, value)| *value)
    }

    /// The next modifier.
    pub(super) fn next(&mut self) -> Decoded<&'a str> {
        if self.list.is_empty() {
            Err("a modifier is missing".into())
        } else {
            Ok(self.list.remove(0))
        }
    }

    pub(super) fn end(self) -> Decoded<()> {
        match self.list.first() {
            None => Ok(()),
            Some(other) => Err(format!("unsupported modifier .{other}")),
        }
    }

    /// One direction of rounding, nearest where none is given.
    fn round(&mut self) -> Round {
        let choices = [
            ("rn", Round::Nearest),
            ("rz", Round::Zero),
            ("rm", Round::Down),
            ("rp", Round::Up),
        ];
        self.choose(&choices).unwrap_or(Round::Nearest)
    }
}

fn int_ty(name: &str) -> Decoded<IntTy> {
    Ok(match name {
        "s16" => IntTy::S16,
        "u16" | "b16" => IntTy::U16,
        "s32" => IntTy::S32,
        "u32" | "b32" => IntTy::U32,
        "s64" => IntTy::S64,
        "u64" | "b64" => IntTy::U64,
        _ => return Err(format!("unsupported type .{name}")),
    })
}

pub(super) fn class_of(ty: IntTy) -> Class {
    match ty {
        IntTy::S16 | IntTy::U16 => Class::B16,
        IntTy::S32 | IntTy::U32 => Class::B32,
        IntTy::S64 | IntTy::U64 => Class::B64,
    }
}

pub(super) fn scalar(name: &str) -> Decoded<Ty> {
    Ok(match name {
        "u8" | "b8" => Ty::U8,
        "s8" => Ty::S8,
        "u16" | "b16" => Ty::U16,
        "s16" => Ty::S16,
        "u32" | "b32" => Ty::U32,
        "s32" => Ty::S32,
        "u64" | "b64" => Ty::U64,
        "s64" => Ty::S64,
        "f16" => Ty::F16,
        "bf16" => Ty::Bf16,
        "f32" => Ty::F32,
        "f64" => Ty::F64,
        _ => return Err(format!("unsupported type .{name}")),
    })
}

pub(super) fn expect(args: &[Arg], n: usize) -> Decoded<()> {
    if args.len() == n {
        Ok(())
    } else {
        Err(format!("{} operands where {n} are needed", args.len()))
    }
}

impl<'a> Decoder<'a> {
    /// The operations of one statement.
    pub(super) fn instruction(&mut self, raw: &'a RawInst<'a>) -> Decoded<Vec<Op>> {
        let mut parts = raw.mnemonic.split('.');
        let base = parts.next().unwrap_or("");
        let mut mods = Mods {
            list: parts.collect(),
        };
        let args = &raw.args;
        let op = match base {
            "call" => {
                mods.take("uni");
                mods.end()?;
                return self.call_statement(args);
            }
            "add" | "sub" | "mul" | "mad" | "fma" | "div" | "min" | "max" | "neg" | "abs" => {
                self.arithmetic(base, &mut mods, args)?
            }
            "addc" | "subc" | "madc" => self.carry(base, &mut mods, args)?,
            "rem" | "not" | "cnot" | "and" | "or" | "xor" | "sad" | "brev" | "slct" | "mul24" => {
                self.bitwise(base, &mut mods, args)?
            }
            "shl" | "shr" => self.shift(base, &mut mods, args)?,
            "popc" | "clz" | "bfind" => self.count(base, &mut mods, args)?,
            "bfe" | "bfi" => self.field(base, &mut mods, args)?,
            "prmt" | "shf" | "lop3" | "bmsk" => self.bits(base, &mut mods, args)?,
            "sqrt" | "rcp" | "rsqrt" | "ex2" | "lg2" | "sin" | "cos" | "tanh" => {
                self.special_function(base, &mut mods, args)?
            }
            "copysign" => self.copysign(&mut mods, args)?,
            "testp" => self.testp(&mut mods, args)?,
            "setp" | "set" => self.compare(base, &mut mods, args)?,
            "selp" => self.selp(&mut mods, args)?,
            "cvt" => self.convert(&mut mods, args)?,
            "mov" => self.mov(&mut mods, args)?,
            "ld" | "ldu" | "st" | "atom" | "red" | "cvta" | "isspacep" => {
                self.memory(base, &mut mods, args)?
            }
            "shfl" | "vote" | "redux" | "match" | "activemask" | "bar" | "barrier" => {
                self.cooperate(base, &mut mods, args)?
            }
            "membar" | "fence" => {
                // One order of all memory operations holds here, so every fence is met.
                while mods.choose(&FENCES).is_some() {}
                Op::Fence
            }
            "bra" => {
                mods.take("uni");
                match args.first() {
                    Some(Arg::Word(label)) => self.branch(label),
                    _ => return Err("unsupported target".into()),
                }
            }
            "brx" => {
                mods.take("uni");
                mods.take("idx");
                expect(args, 2)?;
                let Arg::Word(table) = args[1] else {
                    return Err("unsupported table".into());
                };
                Op::BrxIdx {
                    table: self.table(table)?,
                    index: self.source_of(&args[0], Class::B32)?,
                }
            }
            "ret" => {
                mods.take("uni");
                Op::Ret
            }
            "exit" => Op::Exit,
            "trap" => Op::Trap,
            "nanosleep" => {
                mods.take("u32");
                Op::Nop
            }
            _ => return Err(format!("unsupported instruction {base}")),
        };
        mods.end()?;
        Ok(vec![op])
    }

    fn call_statement(&mut self, args: &'a [Arg<'a>]) -> Decoded<Vec<Op>> {
        let (results, rest): (&[Arg], _) = match args {
            [Arg::List(results), rest @ ..] => (results, rest),
            _ => (&[], args),
        };
        match rest {
            [Arg::Word(name), Arg::List(arguments)] => self.call(name, results, arguments),
            [Arg::Word(name)] => self.call(name, results, &[]),
            _ => Err("unsupported: a call through a function pointer".into()),
        }
    }

    /// Operand slots of one class.
    fn sources(&mut self, args: &[Arg<'a>], class: Class) -> Decoded<[Slot; 3]> {
        let mut slots = [0; 3];
        for (slot, arg) in slots.iter_mut().zip(args) {
            *slot = self.source_of(arg, class)?;
        }
        Ok(slots)
    }

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

    fn arithmetic(&mut self, base: &str, mods: &mut Mods<'a>, args: &'a [Arg<'a>]) -> Decoded<Op> {
        let ty = mods.list.pop().ok_or("a type is missing")?;
        match ty {
            "f32" | "f64" | "f16" | "bf16" | "f16x2" | "bf16x2" => self.float(base, ty, mods, args),
            _ => self.integer(base, int_ty(ty)?, mods, args),
        }
    }

    fn integer(
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

    fn carry(&mut self, base: &str, mods: &mut Mods<'a>, args: &'a [Arg<'a>]) -> Decoded<Op> {
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

    fn float(
        &mut self,
        base: &str,
        ty: &str,
        mods: &mut Mods<'a>,
        args: &'a [Arg<'a>],
    ) -> Decoded<Op> {
        let nan = mods.take("NaN");
        let op = match base {
            "add" => FloatOp::Add,
            "sub" => FloatOp::Sub,
            "mul" => FloatOp::Mul,
            // `mad` of floats is `fma` on every device since sm_20.
            "fma" | "mad" => FloatOp::Fma,
            "div" if mods.take("approx") => return self.approx(ApproxOp::Div, ty, mods, args),
            "div" if mods.take("full") => return self.approx(ApproxOp::DivFull, ty, mods, args),
            "div" => FloatOp::Div,
            "min" if nan => FloatOp::MinNan,
            "max" if nan => FloatOp::MaxNan,
            "min" => FloatOp::Min,
            "max" => FloatOp::Max,
            "neg" => FloatOp::Neg,
            _ => FloatOp::Abs,
        };
        let n = match op {
            FloatOp::Fma => 3,
            FloatOp::Neg | FloatOp::Abs => 1,
            _ => 2,
        };
        self.float_op(op, ty, n, mods, args)
    }

    fn float_op(
        &mut self,
        op: FloatOp,
        ty: &str,
        n: usize,
        mods: &mut Mods<'a>,
        args: &[Arg<'a>],
    ) -> Decoded<Op> {
        expect(args, n + 1)?;
        let (round, ftz, sat) = (mods.round(), mods.take("ftz"), mods.take("sat"));
        let class = match ty {
            "f64" => Class::B64,
            "f16" | "bf16" => Class::B16,
            _ => Class::B32,
        };
        let (d, s, n) = (
            self.dest_of(&args[0], class)?,
            self.sources(&args[1..], class)?,
            n as u8,
        );
        match ty {
            "f32" => Ok(Op::F32 {
                op,
                round,
                ftz,
                sat,
                d,
                s,
                n,
            }),
            "f64" if ftz || sat => Err("unsupported modifier of f64".into()),
            "f64" => Ok(Op::F64 { op, round, d, s, n }),
            _ => {
                let relu = mods.take("relu");
                if round != Round::Nearest || sat || matches!(op, FloatOp::Div | FloatOp::CopySign)
                {
                    return Err("unsupported operation on 16-bit floats".into());
                }
                Ok(Op::Half {
                    op,
                    bf16: ty.starts_with('b'),
                    pair: ty.ends_with("x2"),
                    ftz,
                    relu,
                    d,
                    s,
                    n,
                })
            }
        }
    }

    fn special_function(
        &mut self,
        base: &str,
        mods: &mut Mods<'a>,
        args: &'a [Arg<'a>],
    ) -> Decoded<Op> {
        let ty = mods.list.pop().ok_or("a type is missing")?;
        let op = match base {
            "sqrt" => ApproxOp::Sqrt,
            "rcp" => ApproxOp::Rcp,
            "rsqrt" => ApproxOp::Rsqrt,
            "ex2" => ApproxOp::Ex2,
            "lg2" => ApproxOp::Lg2,
            "sin" => ApproxOp::Sin,
            "cos" => ApproxOp::Cos,
            _ => ApproxOp::Tanh,
        };
        if mods.take("approx") {
            return self.approx(op, ty, mods, args);
        }
        match op {
            ApproxOp::Sqrt => self.float_op(FloatOp::Sqrt, ty, 1, mods, args),
            ApproxOp::Rcp => self.float_op(FloatOp::Rcp, ty, 1, mods, args),
            _ => Err(format!("{base} without .approx")),
        }
    }

    fn approx(
        &mut self,
        op: ApproxOp,
        ty: &str,
        mods: &mut Mods<'a>,
        args: &[Arg<'a>],
    ) -> Decoded<Op> {
        let (ftz, sat) = (mods.take("ftz"), mods.take("sat"));
        let n = if matches!(op, ApproxOp::Div | ApproxOp::DivFull) {
            2
        } else {
            1
        };
        expect(args, n + 1)?;
        match ty {
            "f32" => {
                let (d, s) = (
                    self.dest_of(&args[0], Class::B32)?,
                    self.sources(&args[1..], Class::B32)?,
                );
                Ok(Op::Approx {
                    op,
                    ftz,
                    sat,
                    d,
                    a: s[0],
                    b: if n == 2 { s[1] } else { s[0] },
                })
            }
            "f64" if matches!(op, ApproxOp::Rcp | ApproxOp::Rsqrt) && !sat => {
                let (d, s) = (
                    self.dest_of(&args[0], Class::B64)?,
                    self.sources(&args[1..], Class::B64)?,
                );
                Ok(Op::Approx64 {
                    op,
                    gross: ftz,
                    d,
                    a: s[0],
                })
            }
            _ => Err(format!("unsupported approximation of {ty}")),
        }
    }

    fn copysign(&mut self, mods: &mut Mods<'a>, args: &'a [Arg<'a>]) -> Decoded<Op> {
        match mods.next()? {
            ty @ ("f32" | "f64") => self.float_op(FloatOp::CopySign, ty, 2, mods, args),
            other => Err(format!("unsupported type .{other}")),
        }
    }

    fn testp(&mut self, mods: &mut Mods<'a>, args: &[Arg<'a>]) -> Decoded<Op> {
        let choices = [
            ("finite", TestOp::Finite),
            ("infinite", TestOp::Infinite),
            ("number", TestOp::Number),
            ("notanumber", TestOp::NotANumber),
            ("normal", TestOp::Normal),
            ("subnormal", TestOp::Subnormal),
        ];
        let op = mods.choose(&choices).ok_or("a kind of number is missing")?;
        let wide = mods.next()? == "f64";
        expect(args, 2)?;
        let d = self.dest_of(&args[0], Class::Pred)?;
        Ok(Op::Testp {
            op,
            wide,
            d,
            a: self.source_of(&args[1], if wide { Class::B64 } else { Class::B32 })?,
        })
    }

    fn bitwise(&mut self, base: &str, mods: &mut Mods<'a>, args: &'a [Arg<'a>]) -> Decoded<Op> {
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

    fn shift(&mut self, base: &str, mods: &mut Mods<'a>, args: &[Arg<'a>]) -> Decoded<Op> {
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

    fn count(&mut self, base: &str, mods: &mut Mods<'a>, args: &[Arg<'a>]) -> Decoded<Op> {
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

    fn field(&mut self, base: &str, mods: &mut Mods<'a>, args: &[Arg<'a>]) -> Decoded<Op> {
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

    fn bits(&mut self, base: &str, mods: &mut Mods<'a>, args: &[Arg<'a>]) -> Decoded<Op> {
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
                BitOp::Lop3(super::decode::number(table)? as u8)
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

    fn compare(&mut self, base: &str, mods: &mut Mods<'a>, args: &[Arg<'a>]) -> Decoded<Op> {
        let name = mods.next()?;
        let unsigned_name = matches!(name, "lo" | "ls" | "hi" | "hs");
        let cmp = compare_op(name)?;
        let bool_op = mods.choose(&[
            ("and", BoolOp::And),
            ("or", BoolOp::Or),
            ("xor", BoolOp::Xor),
        ]);
        let ftz = mods.take("ftz");
        let result = if base == "set" {
            Some(mods.next()?)
        } else {
            None
        };
        let (ty, class) = match mods.next()? {
            "f32" => (CmpTy::F32 { ftz }, Class::B32),
            "f64" => (CmpTy::F64, Class::B64),
            "f16" => (CmpTy::F16, Class::B16),
            "bf16" => (CmpTy::Bf16, Class::B16),
            other => {
                let ty = int_ty(other)?;
                (CmpTy::Int(ty), class_of(ty))
            }
        };
        let is_int = matches!(ty, CmpTy::Int(_));
        let float_only = !matches!(
            cmp,
            Cmp::Eq | Cmp::Ne | Cmp::Lt | Cmp::Le | Cmp::Gt | Cmp::Ge
        );
        if (is_int && float_only) || (!is_int && unsigned_name) {
            return Err("a comparison its type does not have".into());
        }
        if let Some(result) = result {
            expect(args, 3)?;
            if bool_op.is_some() || !matches!(result, "u32" | "s32" | "f32") {
                return Err("unsupported form of set".into());
            }
            let (a, b) = (
                self.source_of(&args[1], class)?,
                self.source_of(&args[2], class)?,
            );
            let d = self.dest_of(&args[0], Class::B32)?;
            return Ok(Op::Set {
                ty,
                cmp,
                float: result == "f32",
                d,
                a,
                b,
            });
        }
        expect(args, if bool_op.is_some() { 4 } else { 3 })?;
        let (a, b) = (
            self.source_of(&args[1], class)?,
            self.source_of(&args[2], class)?,
        );
        let with = match bool_op {
            Some(op) => {
                let (p, inverted) = self.read_pred(&args[3])?;
                Some((op, p, inverted))
            }
            None => None,
        };
        let (d, d2) = match args[0] {
            Arg::Pair(d, d2) => (
                self.pred(d)?,
                if d2 == "_" {
                    None
                } else {
                    Some(self.pred(d2)?)
                },
            ),
            _ => (self.dest_of(&args[0], Class::Pred)?, None),
        };
        Ok(Op::Setp {
            ty,
            cmp,
            d,
            d2,
            a,
            b,
            with,
        })
    }

    fn selp(&mut self, mods: &mut Mods<'a>, args: &[Arg<'a>]) -> Decoded<Op> {
        let class = scalar(mods.next()?)?.class();
        expect(args, 4)?;
        let d = Reg {
            class,
            slot: self.dest_of(&args[0], class)?,
        };
        let (a, b) = (
            self.source_of(&args[1], class)?,
            self.source_of(&args[2], class)?,
        );
        let (p, inverted) = self.read_pred(&args[3])?;
        Ok(Op::Selp {
            d,
            a: Reg { class, slot: a },
            b: Reg { class, slot: b },
            p,
            inverted,
        })
    }

    fn convert(&mut self, mods: &mut Mods<'a>, args: &[Arg<'a>]) -> Decoded<Op> {
        let from = mods.list.pop().ok_or("a type is missing")?;
        let to = mods.list.pop().ok_or("a type is missing")?;
        let (ftz, sat, relu) = (mods.take("ftz"), mods.take("sat"), mods.take("relu"));
        let integral = [
            ("rni", Round::Nearest),
            ("rzi", Round::Zero),
            ("rmi", Round::Down),
            ("rpi", Round::Up),
        ];
        let (round, integral) = match mods.choose(&integral) {
            Some(round) => (round, true),
            None => (mods.round(), false),
        };
        let from = scalar(from)?;
        if let Some(element) = to.strip_suffix("x2") {
            let to = scalar(element)?;
            expect(args, 3)?;
            if from != Ty::F32 || !matches!(to, Ty::F16 | Ty::Bf16) || ftz || sat || integral {
                return Err("unsupported conversion".into());
            }
            let s = self.sources(&args[1..], Class::B32)?;
            return Ok(Op::CvtPair {
                to,
                round,
                relu,
                d: self.dest_of(&args[0], Class::B32)?,
                a: s[0],
                b: s[1],
            });
        }
        let to = scalar(to)?;
        expect(args, 2)?;
        if relu {
            return Err("unsupported modifier .relu".into());
        }
        if from.float() && !to.float() && !integral {
            return Err("a conversion to an integer without its rounding".into());
        }
        // Source and destination may be registers wider than the type.
        let a = self.source(&args[1], from.class())?;
        let d = self.dest(&args[0])?.ok_or("a result that is dropped")?;
        let (wide_a, wide_d) = (
            class_bits(a.class) >= class_bits(from.class()),
            class_bits(d.class) >= class_bits(to.class()),
        );
        if !wide_a
            || !wide_d
            || (from.float() && a.class != from.class())
            || (to.float() && d.class != to.class())
        {
            return Err("a register of another width than its type".into());
        }
        Ok(Op::Cvt(Convert {
            to,
            from,
            round,
            integral,
            ftz,
            sat,
            d,
            a,
        }))
    }

    fn mov(&mut self, mods: &mut Mods<'a>, args: &[Arg<'a>]) -> Decoded<Op> {
        let ty = mods.next()?;
        expect(args, 2)?;
        if ty == "pred" {
            let (a, inverted) = self.read_pred(&args[1])?;
            if inverted {
                return Err("unsupported: an inverted operand".into());
            }
            let d = Reg {
                class: Class::Pred,
                slot: self.dest_of(&args[0], Class::Pred)?,
            };
            return Ok(Op::Mov {
                d,
                a: Reg {
                    class: Class::Pred,
                    slot: a,
                },
            });
        }
        let class = scalar(ty)?.class();
        match (&args[0], &args[1]) {
            (Arg::Vector(parts), _) => {
                let a = Reg {
                    class,
                    slot: self.source_of(&args[1], class)?,
                };
                let (parts, n) = self.parts(parts, class, true)?;
                Ok(Op::Unpack { a, parts, n })
            }
            (_, Arg::Vector(parts)) => {
                let d = Reg {
                    class,
                    slot: self.dest_of(&args[0], class)?,
                };
                let (parts, n) = self.parts(parts, class, false)?;
                Ok(Op::Pack { d, parts, n })
            }
            _ => {
                let d = Reg {
                    class,
                    slot: self.dest_of(&args[0], class)?,
                };
                Ok(Op::Mov {
                    d,
                    a: Reg {
                        class,
                        slot: self.source_of(&args[1], class)?,
                    },
                })
            }
        }
    }

    fn parts(
        &mut self,
        list: &[Arg<'a>],
        class: Class,
        write: bool,
    ) -> Decoded<([Option<Reg>; 4], u8)> {
        let part = match class_bits(class) / list.len().max(1) as u32 {
            32 => Class::B32,
            16 => Class::B16,
            _ => return Err("unsupported width of parts".into()),
        };
        let mut regs = [None; 4];
        for (reg, arg) in regs.iter_mut().zip(list) {
            *reg = if write {
                self.dest(arg)?
            } else {
                Some(self.source(arg, part)?)
            };
            if reg.is_some_and(|r| r.class != part) {
                return Err("a part of another width".into());
            }
        }
        Ok((regs, list.len() as u8))
    }
}

const FENCES: [(&str, ()); 11] = [
    ("cta", ()),
    ("gl", ()),
    ("sys", ()),
    ("gpu", ()),
    ("sc", ()),
    ("acq_rel", ()),
    ("acquire", ()),
    ("release", ()),
    ("level", ()),
    ("cluster", ()),
    ("proxy", ()),
];

const PERMUTE: [(&str, BitOp); 6] = [
    ("f4e", BitOp::PrmtF4e),
    ("b4e", BitOp::PrmtB4e),
    ("rc8", BitOp::PrmtRc8),
    ("ecl", BitOp::PrmtEcl),
    ("ecr", BitOp::PrmtEcr),
    ("rc16", BitOp::PrmtRc16),
];

fn class_bits(class: Class) -> u32 {
    match class {
        Class::Pred => 1,
        Class::B16 => 16,
        Class::B32 => 32,
        Class::B64 => 64,
    }
}

fn compare_op(name: &str) -> Decoded<Cmp> {
    Ok(match name {
        "eq" => Cmp::Eq,
        "ne" => Cmp::Ne,
        "lt" | "lo" => Cmp::Lt,
        "le" | "ls" => Cmp::Le,
        "gt" | "hi" => Cmp::Gt,
        "ge" | "hs" => Cmp::Ge,
        "equ" => Cmp::Equ,
        "neu" => Cmp::Neu,
        "ltu" => Cmp::Ltu,
        "leu" => Cmp::Leu,
        "gtu" => Cmp::Gtu,
        "geu" => Cmp::Geu,
        "num" => Cmp::Num,
        "nan" => Cmp::Nan,
        _ => return Err(format!("unsupported comparison .{name}")),
    })
}
