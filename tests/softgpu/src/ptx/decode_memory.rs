//! Memory, and what lanes and threads do together.

use super::decode_ops::{Mods, expect, scalar};
use super::inst::*;
use super::module::Decoded;
use super::operands::{Decoder, Place};
use super::syntax::Arg;

/// Modifiers that say how to cache, which changes nothing here.
const CACHING: [(&str, ()); 12] = [
    ("ca", ()),
    ("cg", ()),
    ("cs", ()),
    ("cv", ()),
    ("lu", ()),
    ("wb", ()),
    ("wt", ()),
    ("weak", ()),
    ("L1::no_allocate", ()),
    ("L1::evict_last", ()),
    ("L2::128B", ()),
    ("L2::256B", ()),
];
/// Orders that make an access strong.
const ORDERS: [(&str, ()); 5] = [
    ("volatile", ()),
    ("relaxed", ()),
    ("acquire", ()),
    ("release", ()),
    ("acq_rel", ()),
];
const SCOPES: [(&str, ()); 4] = [("cta", ()), ("gpu", ()), ("sys", ()), ("cluster", ())];
const SPACES: [(&str, Space); 5] = [
    ("global", Space::Global),
    ("const", Space::Global),
    ("shared", Space::Shared),
    ("shared::cta", Space::Shared),
    ("local", Space::Local),
];

impl<'a> Decoder<'a> {
    pub(super) fn memory(
        &mut self,
        base: &str,
        mods: &mut Mods<'a>,
        args: &'a [Arg<'a>],
    ) -> Decoded<Op> {
        match base {
            "ld" => self.load(mods, args),
            "st" => self.store(mods, args),
            "atom" | "red" => self.atomic(base == "red", mods, args),
            "cvta" => {
                let to_generic = !mods.take("to");
                let space = mods.choose(&SPACES).ok_or("unsupported space")?;
                mods.choose(&[("u64", ()), ("u32", ())]);
                expect(args, 2)?;
                let d = self.dest(&args[0])?.ok_or("a result that is dropped")?;
                let a = self.source(&args[1], d.class)?;
                if a.class != Class::B64 || d.class != Class::B64 {
                    return Err("unsupported width of an address".into());
                }
                Ok(Op::Window {
                    space,
                    to_generic,
                    d,
                    a,
                })
            }
            "isspacep" => {
                let space = mods.choose(&SPACES).ok_or("unsupported space")?;
                expect(args, 2)?;
                let d = self.dest_of(&args[0], Class::Pred)?;
                Ok(Op::IsSpace {
                    space,
                    d,
                    a: self.source_of(&args[1], Class::B64)?,
                })
            }
            _ => Err(format!("unsupported instruction {base}")),
        }
    }

    /// The base register and offset of an address; a name becomes a constant.
    fn address(&mut self, arg: &Arg<'a>) -> Decoded<(Reg, i64)> {
        let Arg::Address(base, offset) = arg else {
            return Err("expected an address".into());
        };
        if let Ok(reg) = self.register(base) {
            return match reg.class {
                Class::B32 | Class::B64 => Ok((reg, *offset)),
                _ => Err("an address in a narrow register".into()),
            };
        }
        if base.as_bytes()[0].is_ascii_digit() {
            return Err("unsupported: an absolute address".into());
        }
        let slot = self.address_of(base, *offset)?;
        Ok((
            Reg {
                class: Class::B64,
                slot,
            },
            0,
        ))
    }

    fn vector(&mut self, arg: &Arg<'a>, ty: Ty, write: bool) -> Decoded<([Option<Reg>; 8], u8)> {
        let mut regs = [None; 8];
        let single = std::slice::from_ref(arg);
        let list = match arg {
            Arg::Vector(list) => list.as_slice(),
            _ => single,
        };
        if list.len() > 8 {
            return Err("a vector of more than 8 elements".into());
        }
        for (reg, arg) in regs.iter_mut().zip(list) {
            *reg = if write {
                self.dest(arg)?
            } else {
                Some(self.source(arg, ty.class())?)
            };
            let narrow = match (reg, ty.class()) {
                (None, _) => false,
                (Some(reg), Class::B64) => reg.class != Class::B64,
                (Some(reg), Class::B32) => !matches!(reg.class, Class::B32 | Class::B64),
                (Some(reg), _) => reg.class == Class::Pred,
            };
            if narrow {
                return Err("a register narrower than its type".into());
            }
        }
        Ok((regs, list.len() as u8))
    }

    /// What loads and stores share: strength, space, and the type.
    fn access(&mut self, mods: &mut Mods<'a>) -> Decoded<(bool, Space, bool, Ty, u8)> {
        let strong = mods.choose(&ORDERS).is_some();
        if strong {
            mods.choose(&SCOPES);
        }
        let param = mods.take("param");
        mods.take("param::func");
        let space = mods.choose(&SPACES).unwrap_or(Space::Generic);
        while mods.choose(&CACHING).is_some() {}
        let count = mods.choose(&[("v2", 2), ("v4", 4), ("v8", 8)]).unwrap_or(1);
        // `.nc` may precede the type.
        Ok((strong, space, param, scalar_last(mods)?, count))
    }

    fn load(&mut self, mods: &mut Mods<'a>, args: &'a [Arg<'a>]) -> Decoded<Op> {
        let read_only = mods.take("nc");
        let (strong, mut space, param, ty, n) = self.access(mods)?;
        expect(args, 2)?;
        let (regs, count) = self.vector(&args[0], ty, true)?;
        if count != n {
            return Err("a vector of another length".into());
        }
        if param {
            let Arg::Address(name, offset) = args[1] else {
                return Err("expected an address".into());
            };
            match self.lookup(name) {
                Some(Place::Param(at)) => {
                    return Ok(Op::LdParam {
                        ty,
                        count,
                        regs,
                        offset: (i64::from(at) + offset) as u32,
                    });
                }
                Some(Place::Local(_)) => space = Space::Local,
                _ => {
                    let (base, offset) = self.address(&args[1])?;
                    return Ok(Op::LdParamAt {
                        ty,
                        count,
                        regs,
                        base,
                        offset,
                    });
                }
            }
        }
        let (base, offset) = self.address(&args[1])?;
        Ok(Op::Ld(Transfer {
            space,
            ty,
            count,
            regs,
            base,
            offset,
            read_only,
            strong,
        }))
    }

    fn store(&mut self, mods: &mut Mods<'a>, args: &'a [Arg<'a>]) -> Decoded<Op> {
        let (strong, mut space, param, ty, n) = self.access(mods)?;
        expect(args, 2)?;
        if param {
            space = Space::Local;
        }
        let (base, offset) = self.address(&args[0])?;
        let (regs, count) = self.vector(&args[1], ty, false)?;
        if count != n {
            return Err("a vector of another length".into());
        }
        Ok(Op::St(Transfer {
            space,
            ty,
            count,
            regs,
            base,
            offset,
            read_only: false,
            strong,
        }))
    }

    fn atomic(&mut self, red: bool, mods: &mut Mods<'a>, args: &'a [Arg<'a>]) -> Decoded<Op> {
        mods.choose(&ORDERS);
        mods.choose(&SCOPES);
        let space = mods.choose(&SPACES).unwrap_or(Space::Generic);
        let choices = [
            ("add", AtomOp::Add),
            ("min", AtomOp::Min),
            ("max", AtomOp::Max),
            ("and", AtomOp::And),
            ("or", AtomOp::Or),
            ("xor", AtomOp::Xor),
            ("exch", AtomOp::Exch),
            ("cas", AtomOp::Cas),
            ("inc", AtomOp::Inc),
            ("dec", AtomOp::Dec),
        ];
        let op = mods
            .choose(&choices)
            .ok_or("unsupported atomic operation")?;
        let ty = scalar_last(mods)?;
        if !matches!(
            ty,
            Ty::U32 | Ty::S32 | Ty::U64 | Ty::S64 | Ty::F32 | Ty::F64
        ) || (ty.float() && op != AtomOp::Add)
            || (matches!(op, AtomOp::Inc | AtomOp::Dec) && ty != Ty::U32)
        {
            return Err("unsupported type of an atomic operation".into());
        }
        let swaps = op == AtomOp::Cas;
        expect(args, 3 + usize::from(swaps) - usize::from(red))?;
        let d = if red { None } else { self.dest(&args[0])? };
        let args = if red { args } else { &args[1..] };
        let (base, offset) = self.address(&args[0])?;
        let class = ty.class();
        let value = Reg {
            class,
            slot: self.source_of(&args[1], class)?,
        };
        let swap = if swaps {
            Some(Reg {
                class,
                slot: self.source_of(&args[2], class)?,
            })
        } else {
            None
        };
        if d.is_some_and(|d| d.class != class) {
            return Err("a result of another width".into());
        }
        Ok(Op::Atom(Atomic {
            space,
            op,
            ty,
            d,
            base,
            offset,
            value,
            swap,
        }))
    }

    pub(super) fn cooperate(
        &mut self,
        base: &str,
        mods: &mut Mods<'a>,
        args: &'a [Arg<'a>],
    ) -> Decoded<Op> {
        match base {
            "activemask" => {
                mods.take("b32");
                expect(args, 1)?;
                Ok(Op::Activemask {
                    d: self.dest_of(&args[0], Class::B32)?,
                })
            }
            "bar" if mods.take("warp") => {
                mods.take("sync");
                expect(args, 1)?;
                Ok(Op::Collective {
                    what: Collective::BarWarp,
                    mask: self.source_of(&args[0], Class::B32)?,
                })
            }
            "bar" | "barrier" => self.barrier(mods, args),
            "shfl" => self.shuffle(mods, args),
            _ if !mods.take("sync") => Err(format!("{base} without .sync")),
            "vote" => {
                let choices = [
                    ("all", VoteOp::All),
                    ("any", VoteOp::Any),
                    ("uni", VoteOp::Uni),
                    ("ballot", VoteOp::Ballot),
                ];
                let op = mods.choose(&choices).ok_or("unsupported vote")?;
                mods.choose(&[("pred", ()), ("b32", ())]);
                expect(args, 3)?;
                let class = if op == VoteOp::Ballot {
                    Class::B32
                } else {
                    Class::Pred
                };
                let d = self.dest_of(&args[0], class)?;
                let (a, inverted) = self.read_pred(&args[1])?;
                let mask = self.source_of(&args[2], Class::B32)?;
                Ok(Op::Collective {
                    what: Collective::Vote { op, d, a, inverted },
                    mask,
                })
            }
            "redux" => self.redux(mods, args),
            _ => self.matching(mods, args),
        }
    }

    fn barrier(&mut self, mods: &mut Mods<'a>, args: &'a [Arg<'a>]) -> Decoded<Op> {
        // `aligned` promises that whole warps arrive, which the checks ask for anyway.
        mods.choose(&[("cta", ())]);
        mods.take("aligned");
        if mods.take("sync") {
            expect(args, 1).map_err(|_| "unsupported: a barrier for part of the block")?;
            return Ok(Op::Bar {
                id: self.barrier_id(&args[0])?,
                reduce: BarReduce::None,
            });
        }
        if !mods.take("red") {
            return Err("unsupported barrier".into());
        }
        let kind = mods
            .choose(&[("and", 0), ("or", 1), ("popc", 2)])
            .ok_or("unsupported barrier")?;
        mods.choose(&[("pred", ()), ("u32", ())]);
        expect(args, 3).map_err(|_| "unsupported: a barrier for part of the block")?;
        let id = self.barrier_id(&args[1])?;
        let d = self.dest_of(&args[0], if kind == 2 { Class::B32 } else { Class::Pred })?;
        let (a, inverted) = self.read_pred(&args[2])?;
        let reduce = match kind {
            0 => BarReduce::And { d, a, inverted },
            1 => BarReduce::Or { d, a, inverted },
            _ => BarReduce::Popc { d, a, inverted },
        };
        Ok(Op::Bar { id, reduce })
    }

    fn barrier_id(&mut self, arg: &Arg<'a>) -> Decoded<u8> {
        match arg {
            Arg::Word(word) if word.parse::<u8>().is_ok_and(|n| n < 16) => {
                Ok(word.parse().unwrap_or(0))
            }
            _ => Err("unsupported: a barrier by register".into()),
        }
    }

    fn shuffle(&mut self, mods: &mut Mods<'a>, args: &'a [Arg<'a>]) -> Decoded<Op> {
        if !mods.take("sync") {
            return Err("shfl without .sync".into());
        }
        let choices = [
            ("up", ShflMode::Up),
            ("down", ShflMode::Down),
            ("bfly", ShflMode::Bfly),
            ("idx", ShflMode::Idx),
        ];
        let mode = mods.choose(&choices).ok_or("unsupported shuffle")?;
        mods.take("b32");
        expect(args, 5)?;
        let (d, p) = match args[0] {
            Arg::Pair(d, p) => (
                self.dest_of(&Arg::Word(d), Class::B32)?,
                Some(self.pred(p)?),
            ),
            _ => (self.dest_of(&args[0], Class::B32)?, None),
        };
        let mut slots = [0; 4];
        for (slot, arg) in slots.iter_mut().zip(&args[1..]) {
            *slot = self.source_of(arg, Class::B32)?;
        }
        let [a, b, c, mask] = slots;
        Ok(Op::Collective {
            what: Collective::Shfl {
                mode,
                d,
                p,
                a,
                b,
                c,
            },
            mask,
        })
    }

    fn redux(&mut self, mods: &mut Mods<'a>, args: &'a [Arg<'a>]) -> Decoded<Op> {
        let signed = mods.take("s32");
        mods.choose(&[("u32", ()), ("b32", ())]);
        let choices = [
            ("add", ReduxOp::Add),
            ("min", if signed { ReduxOp::MinS } else { ReduxOp::MinU }),
            ("max", if signed { ReduxOp::MaxS } else { ReduxOp::MaxU }),
            ("and", ReduxOp::And),
            ("or", ReduxOp::Or),
            ("xor", ReduxOp::Xor),
        ];
        let op = mods.choose(&choices).ok_or("unsupported reduction")?;
        expect(args, 3)?;
        let (d, a) = (
            self.dest_of(&args[0], Class::B32)?,
            self.source_of(&args[1], Class::B32)?,
        );
        Ok(Op::Collective {
            what: Collective::Redux { op, d, a },
            mask: self.source_of(&args[2], Class::B32)?,
        })
    }

    fn matching(&mut self, mods: &mut Mods<'a>, args: &'a [Arg<'a>]) -> Decoded<Op> {
        let any = mods.take("any");
        if !any && !mods.take("all") {
            return Err("unsupported match".into());
        }
        let class = if mods.take("b64") {
            Class::B64
        } else {
            Class::B32
        };
        mods.take("b32");
        expect(args, 3)?;
        let a = Reg {
            class,
            slot: self.source_of(&args[1], class)?,
        };
        let mask = self.source_of(&args[2], Class::B32)?;
        let what = match args[0] {
            Arg::Pair(d, p) if !any => Collective::MatchAll {
                d: self.dest_of(&Arg::Word(d), Class::B32)?,
                p: Some(self.pred(p)?),
                a,
            },
            _ if any => Collective::MatchAny {
                d: self.dest_of(&args[0], Class::B32)?,
                a,
            },
            _ => Collective::MatchAll {
                d: self.dest_of(&args[0], Class::B32)?,
                p: None,
                a,
            },
        };
        Ok(Op::Collective { what, mask })
    }
}

/// The type, which is the only modifier left.
fn scalar_last(mods: &mut Mods<'_>) -> Decoded<Ty> {
    let ty = scalar(mods.next()?)?;
    Ok(ty)
}
