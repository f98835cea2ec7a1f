//! Mnemonics and their modifiers, and the instructions that compare, convert, move and branch. Each mnemonic
//! takes the modifiers it knows; one that is left over refuses the text.

use super::inst::*;
use super::module::Decoded;
use super::operands::Decoder;
use super::syntax::{Arg, RawInst};

/// The parts of a mnemonic after its first.
pub(super) struct Mods<'a> {
    pub(super) list: Vec<&'a str>,
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
    pub(super) fn round(&mut self) -> Round {
        let choices = [
            ("rn", Round::Nearest),
            ("rz", Round::Zero),
            ("rm", Round::Down),
            ("rp", Round::Up),
        ];
        self.choose(&choices).unwrap_or(Round::Nearest)
    }
}

pub(super) fn int_ty(name: &str) -> Decoded<IntTy> {
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
    pub(super) fn sources(&mut self, args: &[Arg<'a>], class: Class) -> Decoded<[Slot; 3]> {
        let mut slots = [0; 3];
        for (slot, arg) in slots.iter_mut().zip(args) {
            *slot = self.source_of(arg, class)?;
        }
        Ok(slots)
    }

    fn arithmetic(&mut self, base: &str, mods: &mut Mods<'a>, args: &'a [Arg<'a>]) -> Decoded<Op> {
        let ty = mods.list.pop().ok_or("a type is missing")?;
        match ty {
            "f32" | "f64" | "f16" | "bf16" | "f16x2" | "bf16x2" => self.float(base, ty, mods, args),
            _ => self.integer(base, int_ty(ty)?, mods, args),
        }
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
