//! Turns the statements of a kernel, and of the functions it calls, into instructions.

use super::Kernel;
use super::inst::*;
use super::module::{Decoded, layout};
use super::operands::{Callee, Decoder, Place, RED_ZONE, place, round_up};
use super::syntax::{Arg, RawFunction, RawVar, Statement};

impl<'a> Decoder<'a> {
    pub(super) fn kernel(&mut self, entry: &'a RawFunction<'a>) -> Decoded<Kernel> {
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
    pub(super) fn function(&mut self, function: &'a RawFunction<'a>) -> Decoded<()> {
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
}
