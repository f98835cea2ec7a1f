//! The state of decoding a kernel, and what names in it stand for.

use super::Module;
use super::inst::*;
use super::module::{Decoded, layout, number};
use super::syntax::{Arg, File, RawFunction, RawVar};
use std::collections::HashMap;
use std::sync::Arc;

/// Bytes that nothing may touch, between the arrays of shared and of local memory.
pub(super) const RED_ZONE: usize = 64;

/// What a name other than a register's stands for.
#[derive(Clone, Copy, Debug)]
pub(super) enum Place {
    /// Index of a module's variable.
    Variable(u32),
    /// Offset in shared memory.
    Shared(u64),
    /// The start of dynamic shared memory, known once all of it is laid out.
    DynamicShared,
    /// Offset in local memory.
    Local(u64),
    /// Offset in the kernel's parameters.
    Param(u32),
}

/// Where a decoded function starts, and where its parameters and results lie in local memory.
#[derive(Clone, Debug)]
pub(super) struct Callee<'a> {
    pub(super) name: &'a str,
    pub(super) start: Option<u32>,
    pub(super) params: Vec<(usize, usize)>,
    pub(super) returns: Vec<(usize, usize)>,
}

/// Decodes one kernel.
pub(super) struct Decoder<'a> {
    pub(super) file: &'a File<'a>,
    pub(super) functions: &'a HashMap<&'a str, &'a RawFunction<'a>>,
    pub(super) module: Arc<Module>,
    pub(super) code: Vec<Inst>,
    pub(super) slots32: Vec<Slot32>,
    pub(super) slots64: Vec<Slot64>,
    pub(super) preds: Vec<SlotPred>,
    pub(super) constants32: HashMap<Slot32, Slot>,
    pub(super) constants64: HashMap<Slot64, Slot>,
    /// Names of registers, by scope.
    pub(super) registers: Vec<HashMap<String, Reg>>,
    /// Families `%r<n>`, by scope: their kind and number.
    pub(super) families: Vec<HashMap<&'a str, (Class, u32)>>,
    pub(super) places: Vec<HashMap<&'a str, Place>>,
    pub(super) sizes: HashMap<&'a str, (usize, usize)>,
    pub(super) labels: HashMap<&'a str, u32>,
    /// Instructions whose targets are yet to be found.
    pub(super) branches: Vec<(usize, &'a str, u32)>,
    pub(super) pending_tables: Vec<(usize, Vec<&'a str>, u32)>,
    pub(super) table_names: HashMap<&'a str, u32>,
    pub(super) tables: Vec<Vec<u32>>,
    pub(super) calls: Vec<(usize, usize)>,
    pub(super) done: Vec<Callee<'a>>,
    /// Functions being decoded, to find recursion.
    pub(super) active: Vec<&'a str>,
    pub(super) edges: Vec<(&'a str, &'a str)>,
    pub(super) shared: Vec<(usize, usize)>,
    pub(super) shared_names: HashMap<&'a str, Place>,
    pub(super) shared_bytes: usize,
    pub(super) uses_dynamic: bool,
    pub(super) dynamic_slots: Vec<(Slot, i64)>,
    pub(super) local: Vec<(usize, usize)>,
    pub(super) params: Vec<(usize, usize)>,
    pub(super) in_entry: bool,
    pub(super) line: u32,
}

pub(super) fn round_up(offset: usize, align: usize) -> usize {
    offset.next_multiple_of(align.max(1))
}

/// Lays `size` bytes out behind the last of `zones`, leaving a red zone.
pub(super) fn place(zones: &mut Vec<(usize, usize)>, size: usize, align: usize) -> usize {
    let end = zones.last().map_or(0, |(at, n)| at + n + RED_ZONE);
    let at = round_up(end, align);
    zones.push((at, size));
    at
}

impl<'a> Decoder<'a> {
    pub(super) fn new(
        file: &'a File<'a>,
        functions: &'a HashMap<&'a str, &'a RawFunction<'a>>,
        module: Arc<Module>,
    ) -> Self {
        Decoder {
            file,
            functions,
            module,
            code: Vec::new(),
            slots32: Vec::new(),
            slots64: Vec::new(),
            preds: Vec::new(),
            constants32: HashMap::new(),
            constants64: HashMap::new(),
            registers: Vec::new(),
            families: Vec::new(),
            places: Vec::new(),
            sizes: HashMap::new(),
            labels: HashMap::new(),
            branches: Vec::new(),
            pending_tables: Vec::new(),
            table_names: HashMap::new(),
            tables: Vec::new(),
            calls: Vec::new(),
            done: Vec::new(),
            active: Vec::new(),
            edges: Vec::new(),
            shared: Vec::new(),
            shared_names: HashMap::new(),
            shared_bytes: 0,
            uses_dynamic: false,
            dynamic_slots: Vec::new(),
            local: Vec::new(),
            params: Vec::new(),
            in_entry: true,
            line: 0,
        }
    }

    pub(super) fn open(&mut self) {
        self.registers.push(HashMap::new());
        self.families.push(HashMap::new());
        self.places.push(HashMap::new());
    }

    pub(super) fn close(&mut self) {
        self.registers.pop();
        self.families.pop();
        self.places.pop();
    }

    pub(super) fn bind(&mut self, name: &'a str, place: Place) {
        if let Some(scope) = self.places.last_mut() {
            scope.insert(name, place);
        }
    }

    pub(super) fn declare(&mut self, ty: &str, name: &'a str, count: Option<u32>) -> Decoded<()> {
        let class = match ty {
            "pred" => Class::Pred,
            "b16" | "u16" | "s16" | "f16" => Class::B16,
            "b32" | "u32" | "s32" | "f32" | "f16x2" => Class::B32,
            "b64" | "u64" | "s64" | "f64" => Class::B64,
            _ => return Err(format!("unsupported type of register {ty}")),
        };
        match count {
            Some(count) => {
                if let Some(scope) = self.families.last_mut() {
                    scope.insert(name, (class, count));
                }
            }
            None => {
                let reg = self.new_register(class);
                if let Some(scope) = self.registers.last_mut() {
                    scope.insert(name.to_owned(), reg);
                }
            }
        }
        Ok(())
    }

    fn new_register(&mut self, class: Class) -> Reg {
        let slot = match class {
            Class::Pred => {
                self.preds.push(SlotPred::Register);
                self.preds.len() - 1
            }
            Class::B16 | Class::B32 => {
                self.slots32.push(Slot32::Register);
                self.slots32.len() - 1
            }
            Class::B64 => {
                self.slots64.push(Slot64::Register);
                self.slots64.len() - 1
            }
        };
        Reg {
            class,
            slot: slot as Slot,
        }
    }

    /// The register `name`, from the innermost scope that declares it.
    pub(super) fn register(&mut self, name: &str) -> Decoded<Reg> {
        let digits = name.len() - name.trim_end_matches(|c: char| c.is_ascii_digit()).len();
        let (stem, index) = name.split_at(name.len() - digits);
        for depth in (0..self.registers.len()).rev() {
            if let Some(reg) = self.registers[depth].get(name) {
                return Ok(*reg);
            }
            if let Some((class, count)) = self.families[depth].get(stem).copied()
                && index.parse::<u32>().is_ok_and(|i| i < count)
            {
                let reg = self.new_register(class);
                self.registers[depth].insert(name.to_owned(), reg);
                return Ok(reg);
            }
        }
        Err(format!("unknown register {name}"))
    }

    pub(super) fn local_variable(&mut self, var: &'a RawVar<'a>) -> Decoded<()> {
        let (size, align) = layout(var)?;
        match var.space {
            ".shared" => {
                let at = self.place_shared(size, align);
                self.bind(var.name, Place::Shared(at));
            }
            _ => {
                let at = place(&mut self.local, size, align);
                self.sizes.insert(var.name, (at, size));
                self.bind(var.name, Place::Local(at as u64));
            }
        }
        Ok(())
    }

    fn place_shared(&mut self, size: usize, align: usize) -> u64 {
        self.shared_bytes = round_up(self.shared_bytes, align) + size;
        place(&mut self.shared, size, align) as u64
    }

    /// What `name` stands for; module-level shared variables get their place on first use.
    pub(super) fn lookup(&mut self, name: &str) -> Option<Place> {
        if let Some(place) = self.places.iter().rev().find_map(|scope| scope.get(name)) {
            return Some(*place);
        }
        if let Some(index) = self.module.variables.iter().position(|v| v.name == name) {
            return Some(Place::Variable(index as u32));
        }
        if let Some(place) = self.shared_names.get(name) {
            return Some(*place);
        }
        let file = self.file;
        let var = file
            .vars
            .iter()
            .find(|v| v.space == ".shared" && v.name == name)?;
        let (size, align) = layout(var).ok()?;
        let place = if var.count == 0 {
            self.uses_dynamic = true;
            Place::DynamicShared
        } else {
            Place::Shared(self.place_shared(size, align))
        };
        self.shared_names.insert(var.name, place);
        Some(place)
    }

    fn slot32(&mut self, what: Slot32) -> Slot {
        *self.constants32.entry(what).or_insert_with(|| {
            self.slots32.push(what);
            self.slots32.len() as Slot - 1
        })
    }

    fn slot64(&mut self, what: Slot64) -> Slot {
        *self.constants64.entry(what).or_insert_with(|| {
            self.slots64.push(what);
            self.slots64.len() as Slot - 1
        })
    }

    fn constant(&mut self, class: Class, value: u64) -> Reg {
        let slot = match class {
            Class::B16 => self.slot32(Slot32::Constant(value as u32 & 0xffff)),
            Class::B32 => self.slot32(Slot32::Constant(value as u32)),
            Class::B64 => self.slot64(Slot64::Constant(value)),
            Class::Pred => {
                self.preds.push(SlotPred::Constant(value != 0));
                self.preds.len() as Slot - 1
            }
        };
        Reg { class, slot }
    }

    /// The address that a name and an offset stand for, as a slot of the 64-bit file.
    pub(super) fn address_of(&mut self, name: &str, offset: i64) -> Decoded<Slot> {
        match self.lookup(name).ok_or(format!("unknown name {name}"))? {
            Place::Variable(index) => Ok(self.slot64(Slot64::Variable(index, offset))),
            Place::Shared(at) | Place::Local(at) => {
                Ok(self.slot64(Slot64::Constant(at.wrapping_add(offset as u64))))
            }
            Place::DynamicShared => {
                self.slots64.push(Slot64::Register);
                let slot = self.slots64.len() as Slot - 1;
                self.dynamic_slots.push((slot, offset));
                Ok(slot)
            }
            // Only loads of parameters may use it.
            Place::Param(at) => {
                let at = i64::from(at) + offset;
                Ok(self.slot64(Slot64::Constant(at as u64)))
            }
        }
    }

    fn special(&mut self, name: &str) -> Option<Decoded<Slot>> {
        let (stem, axis) = match name.split_once('.') {
            Some((stem, "x")) => (stem, 0),
            Some((stem, "y")) => (stem, 1),
            Some((stem, "z")) => (stem, 2),
            Some(_) => return Some(Err(format!("unsupported special register {name}"))),
            None => (name, 3),
        };
        let special = match (stem, axis) {
            ("%tid", 0..3) => Special::Tid(axis),
            ("%ntid", 0..3) => Special::Ntid(axis),
            ("%ctaid", 0..3) => Special::Ctaid(axis),
            ("%nctaid", 0..3) => Special::Nctaid(axis),
            ("%laneid", 3) => Special::Laneid,
            ("%warpid", 3) => Special::Warpid,
            ("%nwarpid", 3) => Special::Nwarpid,
            ("WARP_SZ", 3) => Special::Warpsize,
            ("%lanemask_eq", 3) => Special::LanemaskEq,
            ("%lanemask_lt", 3) => Special::LanemaskLt,
            ("%lanemask_le", 3) => Special::LanemaskLe,
            ("%lanemask_gt", 3) => Special::LanemaskGt,
            ("%lanemask_ge", 3) => Special::LanemaskGe,
            ("%dynamic_smem_size", 3) => Special::DynamicShared,
            _ => return None,
        };
        Some(Ok(self.slot32(Slot32::Special(special))))
    }

    /// A source operand; numbers become constants of `class`.
    pub(super) fn source(&mut self, arg: &Arg<'a>, class: Class) -> Decoded<Reg> {
        match arg {
            Arg::Minus(word) => {
                let value = number(word)?.wrapping_neg();
                Ok(self.constant(class, value))
            }
            Arg::Word(word) if word.as_bytes()[0].is_ascii_digit() => {
                let value = number(word)?;
                Ok(self.constant(class, value))
            }
            Arg::Word(word) => {
                if let Some(slot) = self.special(word) {
                    return Ok(Reg {
                        class: Class::B32,
                        slot: slot?,
                    });
                }
                if let Ok(reg) = self.register(word) {
                    return Ok(reg);
                }
                if word.starts_with('%') {
                    return Err(format!("unsupported special register {word}"));
                }
                let slot = self.address_of(word, 0)?;
                Ok(Reg {
                    class: Class::B64,
                    slot,
                })
            }
            Arg::Offset(name, offset) => {
                let slot = self.address_of(name, *offset)?;
                Ok(Reg {
                    class: Class::B64,
                    slot,
                })
            }
            _ => Err("unsupported operand".into()),
        }
    }

    /// A source operand that must be in registers of `class`.
    pub(super) fn source_of(&mut self, arg: &Arg<'a>, class: Class) -> Decoded<Slot> {
        let reg = self.source(arg, class)?;
        let same = reg.class == class;
        if same {
            Ok(reg.slot)
        } else {
            Err(format!(
                "an operand of {:?} where {class:?} is needed",
                reg.class
            ))
        }
    }

    /// A destination that must be a register of `class`.
    pub(super) fn dest_of(&mut self, arg: &Arg<'a>, class: Class) -> Decoded<Slot> {
        let reg = self.dest(arg)?.ok_or("a result that is dropped")?;
        if reg.class == class {
            Ok(reg.slot)
        } else {
            Err(format!("a result of {class:?} in a {:?}", reg.class))
        }
    }

    /// A destination; `None` for `_`.
    pub(super) fn dest(&mut self, arg: &Arg<'a>) -> Decoded<Option<Reg>> {
        match arg {
            Arg::Word("_") => Ok(None),
            Arg::Word(word) => self.register(word).map(Some),
            _ => Err("unsupported destination".into()),
        }
    }

    /// A predicate register, by name.
    pub(super) fn pred(&mut self, name: &str) -> Decoded<Slot> {
        let reg = self.register(name)?;
        if reg.class == Class::Pred {
            Ok(reg.slot)
        } else {
            Err(format!("{name} is no predicate"))
        }
    }

    /// A predicate that is read, and whether inverted.
    pub(super) fn read_pred(&mut self, arg: &Arg<'a>) -> Decoded<(Slot, bool)> {
        match arg {
            Arg::Not(name) => Ok((self.pred(name)?, true)),
            Arg::Word("0" | "1" | "-1") | Arg::Minus("1") => {
                Ok((self.source(arg, Class::Pred)?.slot, false))
            }
            Arg::Word(name) => Ok((self.pred(name)?, false)),
            _ => Err("expected a predicate".into()),
        }
    }
}
