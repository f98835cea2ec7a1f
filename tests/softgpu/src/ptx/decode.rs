//! Resolves names and turns the statements of a kernel and of the functions it calls into instructions.

use super::inst::{Class, Inst, Op, Reg, Slot, Slot32, Slot64, SlotPred, Special};
use super::syntax::{Arg, File, Init, RawFunction, RawVar, Statement};
use super::{Kernel, Module, Variable};
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Bytes that nothing may touch, between the arrays of shared and of local memory.
const RED_ZONE: usize = 64;

pub(super) type Decoded<T> = Result<T, String>;

fn element_size(ty: &str) -> Decoded<usize> {
    Ok(match ty {
        "b8" | "u8" | "s8" => 1,
        "b16" | "u16" | "s16" | "f16" | "bf16" => 2,
        "b32" | "u32" | "s32" | "f32" => 4,
        "b64" | "u64" | "s64" | "f64" => 8,
        _ => return Err(format!("unsupported type {ty}")),
    })
}

/// Size and alignment in bytes.
fn layout(var: &RawVar) -> Decoded<(usize, usize)> {
    let element = element_size(var.ty)?;
    Ok((element * var.count, var.align.max(element)))
}

/// A number as written, as bits of 64.
pub(super) fn number(word: &str) -> Decoded<u64> {
    let bad = |_| format!("bad number {word}");
    if let Some(hex) = word
        .strip_prefix("0f")
        .or(word.strip_prefix("0F"))
        .or(word.strip_prefix("0d"))
        .or(word.strip_prefix("0D"))
    {
        return u64::from_str_radix(hex, 16).map_err(bad);
    }
    let digits = word.trim_end_matches('U');
    match digits.strip_prefix("0x") {
        Some(hex) => u64::from_str_radix(hex, 16).map_err(bad),
        None => digits.parse().map_err(bad),
    }
}

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

/// Decodes all kernels of a file.
pub(super) fn module(text: &str, source_lines: Vec<u32>, file: &File) -> Decoded<Vec<Kernel>> {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    let mut module = Module {
        id: NEXT.fetch_add(1, Ordering::Relaxed),
        variables: Vec::new(),
        lines: text.lines().map(str::to_owned).collect(),
        source_lines,
    };
    let stored: Vec<&RawVar> = file.vars.iter().filter(|v| v.space != ".shared").collect();
    for var in &stored {
        let variable = variable(var, &stored).map_err(|e| format!("line {}: {e}", var.line))?;
        module.variables.push(variable);
    }
    let module = Arc::new(module);
    let functions: HashMap<&str, &RawFunction> = file
        .functions
        .iter()
        .filter(|f| !f.entry && !f.body.is_empty())
        .map(|f| (f.name, f))
        .collect();
    // Functions that no kernel calls are decoded, too, so that what is unsupported never passes unseen.
    let mut called = Vec::new();
    let mut kernels = Vec::new();
    for entry in file.functions.iter().filter(|f| f.entry) {
        let mut decoder = Decoder::new(file, &functions, module.clone());
        kernels.push(decoder.kernel(entry)?);
        called.extend(decoder.done.iter().map(|d| d.name));
    }
    for function in functions.values().filter(|f| !called.contains(&f.name)) {
        Decoder::new(file, &functions, module.clone()).function(function)?;
    }
    Ok(kernels)
}

fn variable(var: &RawVar, all: &[&RawVar]) -> Decoded<Variable> {
    let (size, _) = layout(var)?;
    let element = element_size(var.ty)?;
    let mut bytes = vec![0; size];
    let mut addresses = Vec::new();
    for (index, init) in var.init.iter().enumerate() {
        let at = index * element;
        let place = bytes
            .get_mut(at..at + element)
            .ok_or("an initialiser longer than its variable")?;
        match init {
            Init::Number(word, negative) => {
                let value = number(word)?;
                let value = if *negative {
                    value.wrapping_neg()
                } else {
                    value
                };
                place.copy_from_slice(&value.to_le_bytes()[..element]);
            }
            Init::Symbol(name) => {
                let target = all.iter().position(|v| v.name == *name);
                let target = target.ok_or(format!(
                    "unsupported: the address of {name} in an initialiser"
                ))?;
                if element != 8 {
                    return Err("an address in less than 8 bytes".into());
                }
                addresses.push((at, target));
            }
        }
    }
    Ok(Variable {
        name: var.name.to_owned(),
        bytes,
        constant: var.space == ".const",
        addresses,
    })
}

/// Where a decoded function starts, and where its parameters and results lie in local memory.
#[derive(Clone, Debug)]
pub(super) struct Callee<'a> {
    pub(super) name: &'a str,
    start: Option<u32>,
    params: Vec<(usize, usize)>,
    returns: Vec<(usize, usize)>,
}

/// Decodes one kernel.
pub(super) struct Decoder<'a> {
    file: &'a File<'a>,
    functions: &'a HashMap<&'a str, &'a RawFunction<'a>>,
    module: Arc<Module>,
    pub(super) code: Vec<Inst>,
    slots32: Vec<Slot32>,
    slots64: Vec<Slot64>,
    preds: Vec<SlotPred>,
    constants32: HashMap<Slot32, Slot>,
    constants64: HashMap<Slot64, Slot>,
    /// Names of registers, by scope.
    registers: Vec<HashMap<String, Reg>>,
    /// Families `%r<n>`, by scope: their kind and number.
    families: Vec<HashMap<&'a str, (Class, u32)>>,
    places: Vec<HashMap<&'a str, Place>>,
    sizes: HashMap<&'a str, (usize, usize)>,
    labels: HashMap<&'a str, u32>,
    /// Instructions whose targets are yet to be found.
    branches: Vec<(usize, &'a str, u32)>,
    pending_tables: Vec<(usize, Vec<&'a str>, u32)>,
    table_names: HashMap<&'a str, u32>,
    tables: Vec<Vec<u32>>,
    calls: Vec<(usize, usize)>,
    pub(super) done: Vec<Callee<'a>>,
    /// Functions being decoded, to find recursion.
    active: Vec<&'a str>,
    edges: Vec<(&'a str, &'a str)>,
    shared: Vec<(usize, usize)>,
    shared_names: HashMap<&'a str, Place>,
    shared_bytes: usize,
    uses_dynamic: bool,
    dynamic_slots: Vec<(Slot, i64)>,
    local: Vec<(usize, usize)>,
    params: Vec<(usize, usize)>,
    pub(super) in_entry: bool,
    pub(super) line: u32,
}

fn round_up(offset: usize, align: usize) -> usize {
    offset.next_multiple_of(align.max(1))
}

/// Lays `size` bytes out behind the last of `zones`, leaving a red zone.
fn place(zones: &mut Vec<(usize, usize)>, size: usize, align: usize) -> usize {
    let end = zones.last().map_or(0, |(at, n)| at + n + RED_ZONE);
    let at = round_up(end, align);
    zones.push((at, size));
    at
}

impl<'a> Decoder<'a> {
    fn new(
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

    fn kernel(&mut self, entry: &'a RawFunction<'a>) -> Decoded<Kernel> {
        self.open();
        let mut offset = 0;
        for param in &entry.params {
            let (size, align) = layout(param)?;
            offset = round_up(offset, align);
            self.bind(param.name, Place::Param(offset as u32));
            self.params.push((offset, size));
            offset += size;
        }
        self.in_entry = true;
        self.statements(entry)?;
        self.close();
        // Called functions follow; each is decoded once, and may call others.
        let mut next = 0;
        while next < self.done.len() {
            let name = self.done[next].name;
            let function = self
                .functions
                .get(name)
                .ok_or(format!("{name} has no body"))?;
            self.done[next].start = Some(self.code.len() as u32);
            self.decode_callee(function, next)?;
            next += 1;
        }
        self.refuse_recursion()?;
        for (at, callee) in std::mem::take(&mut self.calls) {
            let target = self.done[callee].start.ok_or("a call of nothing")?;
            self.code[at].op = Op::Call { target };
        }
        let dynamic_at = round_up(
            self.shared.last().map_or(0, |(at, n)| at + n + RED_ZONE),
            128,
        );
        for (slot, offset) in &self.dynamic_slots {
            self.slots64[*slot as usize] = Slot64::Constant((dynamic_at as i64 + offset) as u64);
        }
        Ok(Kernel {
            name: entry.name.to_owned(),
            params: std::mem::take(&mut self.params),
            param_bytes: offset,
            shared_bytes: self.shared_bytes,
            threads: entry.threads,
            code: std::mem::take(&mut self.code),
            slots32: std::mem::take(&mut self.slots32),
            slots64: std::mem::take(&mut self.slots64),
            preds: std::mem::take(&mut self.preds),
            shared: std::mem::take(&mut self.shared),
            dynamic_at,
            uses_dynamic: self.uses_dynamic,
            local_bytes: self.local.last().map_or(0, |(at, n)| round_up(at + n, 16)),
            local: std::mem::take(&mut self.local),
            tables: std::mem::take(&mut self.tables),
            module: self.module.clone(),
        })
    }

    /// Decodes a function that no kernel calls, for its errors only.
    fn function(&mut self, function: &'a RawFunction<'a>) -> Decoded<()> {
        let index = self.callee(function.name)?;
        self.decode_callee(function, index)
    }

    fn decode_callee(&mut self, function: &'a RawFunction<'a>, index: usize) -> Decoded<()> {
        self.open();
        let callee = self.done[index].clone();
        let formals = function
            .params
            .iter()
            .zip(&callee.params)
            .chain(function.returns.iter().zip(&callee.returns));
        for (formal, (at, _)) in formals {
            self.bind(formal.name, Place::Local(*at as u64));
        }
        self.in_entry = false;
        self.statements(function)?;
        self.close();
        Ok(())
    }

    /// The index of the function `name` among those to decode.
    fn callee(&mut self, name: &'a str) -> Decoded<usize> {
        if let Some(index) = self.done.iter().position(|d| d.name == name) {
            return Ok(index);
        }
        let function = *self
            .functions
            .get(name)
            .ok_or(format!("unsupported: a call of {name}, which has no body"))?;
        let mut zones = |list: &[RawVar]| -> Decoded<Vec<(usize, usize)>> {
            list.iter()
                .map(|var| {
                    layout(var).map(|(size, align)| (place(&mut self.local, size, align), size))
                })
                .collect()
        };
        let params = zones(&function.params)?;
        let returns = zones(&function.returns)?;
        self.done.push(Callee {
            name: function.name,
            start: None,
            params,
            returns,
        });
        Ok(self.done.len() - 1)
    }

    /// Registers and local memory exist once per function, so a function must not be active twice.
    fn refuse_recursion(&self) -> Decoded<()> {
        for callee in &self.done {
            let mut reached = vec![callee.name];
            let mut next = 0;
            while next < reached.len() {
                for (from, to) in &self.edges {
                    if *from == reached[next] {
                        if *to == callee.name {
                            return Err(format!("unsupported: {to} is recursive"));
                        }
                        if !reached.contains(to) {
                            reached.push(to);
                        }
                    }
                }
                next += 1;
            }
        }
        Ok(())
    }

    /// Emits a call: arguments are copied to where the callee reads them, results back.
    pub(super) fn call(
        &mut self,
        name: &'a str,
        results: &[Arg<'a>],
        arguments: &[Arg<'a>],
    ) -> Decoded<Vec<Op>> {
        let index = self.callee(name)?;
        let current = self.active.last().copied().unwrap_or("");
        self.edges.push((current, name));
        let callee = self.done[index].clone();
        let mut ops = self.copies(arguments, &callee.params, true)?;
        self.calls.push((self.code.len() + ops.len(), index));
        ops.push(Op::Nop);
        ops.extend(self.copies(results, &callee.returns, false)?);
        Ok(ops)
    }

    fn copies(
        &mut self,
        actual: &[Arg<'a>],
        formal: &[(usize, usize)],
        to_formal: bool,
    ) -> Decoded<Vec<Op>> {
        if actual.len() != formal.len() {
            return Err("a call with another number of arguments".into());
        }
        let mut ops = Vec::new();
        for (arg, (at, bytes)) in actual.iter().zip(formal) {
            let Arg::Word(name) = arg else {
                return Err("unsupported argument of a call".into());
            };
            let Some(Place::Local(offset)) = self.lookup(name) else {
                return Err(format!("unknown argument {name}"));
            };
            let (here, there, bytes) = (offset as u32, *at as u32, *bytes as u32);
            let (to, from) = if to_formal {
                (there, here)
            } else {
                (here, there)
            };
            ops.push(Op::CopyLocal { to, from, bytes });
        }
        Ok(ops)
    }

    fn open(&mut self) {
        self.registers.push(HashMap::new());
        self.families.push(HashMap::new());
        self.places.push(HashMap::new());
    }

    fn close(&mut self) {
        self.registers.pop();
        self.families.pop();
        self.places.pop();
    }

    fn bind(&mut self, name: &'a str, place: Place) {
        if let Some(scope) = self.places.last_mut() {
            scope.insert(name, place);
        }
    }

    fn statements(&mut self, function: &'a RawFunction<'a>) -> Decoded<()> {
        self.labels.clear();
        self.table_names.clear();
        self.active.push(function.name);
        for (line, statement) in &function.body {
            self.line = *line;
            self.statement(statement).map_err(|e| {
                let text = self
                    .module
                    .lines
                    .get(*line as usize - 1)
                    .map_or("", |l| l.trim());
                format!("line {line}: {e}: {text}")
            })?;
        }
        // Falling off the end leaves, as `ret` does.
        self.emit(None, Op::Ret);
        for (at, label, line) in std::mem::take(&mut self.branches) {
            let target = *self
                .labels
                .get(label)
                .ok_or(format!("line {line}: unknown label {label}"))?;
            self.code[at].op = Op::Bra { target };
        }
        for (table, labels, line) in std::mem::take(&mut self.pending_tables) {
            for label in labels {
                let target = *self
                    .labels
                    .get(label)
                    .ok_or(format!("line {line}: unknown label {label}"))?;
                self.tables[table].push(target);
            }
        }
        self.active.pop();
        Ok(())
    }

    fn statement(&mut self, statement: &'a Statement<'a>) -> Decoded<()> {
        match statement {
            Statement::Open => self.open(),
            Statement::Close => self.close(),
            Statement::Label(name) => {
                self.labels.insert(name, self.code.len() as u32);
            }
            Statement::Targets(name, labels) => {
                let table = self.tables.len();
                self.tables.push(Vec::new());
                self.table_names.insert(name, table as u32);
                self.pending_tables.push((table, labels.clone(), self.line));
            }
            Statement::Regs(ty, name, count) => self.declare(ty, name, *count)?,
            Statement::Var(var) => self.local_variable(var)?,
            Statement::Inst(raw) => {
                let guard = match raw.guard {
                    Some((name, inverted)) => Some((self.pred(name)?, inverted)),
                    None => None,
                };
                for op in self.instruction(raw)? {
                    self.emit(guard, op);
                }
            }
        }
        Ok(())
    }

    pub(super) fn emit(&mut self, guard: Option<(Slot, bool)>, op: Op) {
        self.code.push(Inst {
            op,
            guard,
            line: self.line,
        });
    }

    /// Notes that the next instruction branches to `label`.
    pub(super) fn branch(&mut self, label: &'a str) -> Op {
        self.branches.push((self.code.len(), label, self.line));
        Op::Nop
    }

    pub(super) fn table(&self, name: &str) -> Decoded<u32> {
        self.table_names
            .get(name)
            .copied()
            .ok_or(format!("unknown table {name}"))
    }

    fn declare(&mut self, ty: &str, name: &'a str, count: Option<u32>) -> Decoded<()> {
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

    fn local_variable(&mut self, var: &'a RawVar<'a>) -> Decoded<()> {
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
            Place::Param(_) => Err("unsupported: the address of a parameter".into()),
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
