//! Runs the warps of a block: which lanes go on, where they part and meet, and the block's barriers.

use super::warp::{Group, Wait, Warp, lanes};
use super::{At, Check, Machine, alu, shadow};
use crate::ptx::inst::{BarReduce, Inst, Op};

impl Machine<'_> {
    /// Runs one block, `self.ctaid`, to its end.
    pub(super) fn block(&mut self, warps: &mut [Warp]) {
        self.run += 1;
        self.first_run = self.run;
        self.clock = 1;
        self.block_time = 1;
        self.shared.start();
        for warp in warps.iter_mut() {
            warp.start(self.kernel, self.ctaid, self.run);
        }
        loop {
            for turn in 0..warps.len() {
                let index = if self.options.seed & 2 != 0 {
                    warps.len() - 1 - turn
                } else {
                    turn
                };
                self.warp(&mut warps[index]);
                if self.stop {
                    return;
                }
            }
            // What is left waits at a barrier.
            if warps.iter().all(|w| w.groups.is_empty()) {
                return;
            }
            self.barrier(warps);
        }
    }

    /// Runs a warp until all its lanes wait for others of the block, or have exited.
    fn warp(&mut self, warp: &mut Warp) {
        while !self.stop {
            match next_group(warp) {
                Some(group) => self.group(warp, group),
                None if self.resolve_waits(warp) => {}
                None => return,
            }
        }
    }

    /// Lets lanes that wait in warp operations go on; false if there are none.
    fn resolve_waits(&mut self, warp: &mut Warp) -> bool {
        merge_waiting(warp);
        let waiting: Vec<Group> = warp
            .groups
            .extract_if(.., |g| g.wait == Wait::Warp)
            .collect();
        if waiting.is_empty() {
            return false;
        }
        let mut progress = false;
        let mut stuck = None;
        for group in waiting {
            let inst = self.kernel.code[group.pc as usize];
            let before = warp.groups.len();
            if self.meet(warp, group, &inst, false) {
                progress = true;
            } else {
                stuck = Some(before);
            }
        }
        // Nobody else will come: the operation goes on with those who are there, once that is noted.
        if !progress && let Some(index) = stuck {
            let group = warp.groups.swap_remove(index);
            let inst = self.kernel.code[group.pc as usize];
            self.meet(warp, group, &inst, true);
        }
        true
    }

    /// Executes instructions of `group` until it waits, parts, or comes to where other lanes are.
    fn group(&mut self, warp: &mut Warp, mut group: Group) {
        let kernel = self.kernel;
        let limit = warp
            .groups
            .iter()
            .filter(|g| g.wait == Wait::Nothing)
            .map(|g| g.pc)
            .min()
            .unwrap_or(u32::MAX);
        loop {
            let pc = group.pc as usize;
            let inst = &kernel.code[pc];
            warp.steps += 1;
            if warp.steps > self.options.max_steps {
                let lane = group.mask.trailing_zeros() as usize;
                let what = format!(
                    "more than {} instructions: an endless loop?",
                    self.options.max_steps
                );
                self.find(Check::EndlessLoop, inst.line, warp, lane, &what);
                self.stop = true;
                return;
            }
            let mut mask = group.mask;
            if let Some((slot, inverted)) = inst.guard {
                let defined = warp.regs.def_preds[slot as usize];
                self.need(warp, mask, defined, inst.line, "a branch");
                let value = warp.regs.preds[slot as usize];
                mask &= if inverted { !value } else { value };
            }
            if mask != 0 {
                let plain = alu::execute(&mut warp.regs, &inst.op, mask, self.options.worst_approx)
                    || self.memory(
                        warp,
                        At {
                            pc,
                            line: inst.line,
                        },
                        &inst.op,
                        mask,
                    );
                if !plain {
                    match self.control(warp, group, inst, mask) {
                        Some(same) => group = same,
                        None => return,
                    }
                } else {
                    self.instrs += u64::from(mask.count_ones());
                    group.pc += 1;
                }
                if self.stop {
                    return;
                }
            } else {
                group.pc += 1;
            }
            if group.pc >= limit {
                warp.groups.push(group);
                return;
            }
        }
    }

    /// Executes an instruction that says where lanes go. Returns the group if it stays whole and runs on.
    fn control(
        &mut self,
        warp: &mut Warp,
        mut group: Group,
        inst: &Inst,
        mask: u32,
    ) -> Option<Group> {
        if let Op::Collective { .. } = inst.op {
            let rest = self.part(warp, &group, mask);
            group.mask = mask;
            self.meet(warp, group, inst, false);
            debug_assert!(rest || !warp.groups.is_empty());
            return None;
        }
        self.instrs += u64::from(mask.count_ones());
        let whole = mask == group.mask;
        match inst.op {
            Op::Bra { target } if whole => {
                group.pc = target;
                return Some(group);
            }
            Op::Bra { target } => {
                self.part(warp, &group, mask);
                warp.groups.push(Group {
                    pc: target,
                    mask,
                    ..group
                });
            }
            Op::BrxIdx { table, index } => {
                self.part(warp, &group, mask);
                let defined = warp.regs.def32[index as usize];
                self.need(warp, mask, defined, inst.line, "a branch");
                let targets = &self.kernel.tables[table as usize];
                let choices = warp.regs.r32[index as usize];
                for lane in lanes(mask) {
                    let Some(target) = targets.get(choices[lane] as usize) else {
                        let what = format!(
                            "an indexed branch to entry {} of {}",
                            choices[lane],
                            targets.len()
                        );
                        self.find(Check::OutOfBounds, inst.line, warp, lane, &what);
                        self.stop = true;
                        return None;
                    };
                    warp.groups.push(Group {
                        pc: *target,
                        mask: 1 << lane,
                        ..group.clone()
                    });
                }
            }
            Op::Call { target } => {
                self.part(warp, &group, mask);
                group.stack.push(group.pc + 1);
                warp.groups.push(Group {
                    pc: target,
                    mask,
                    ..group
                });
            }
            Op::Ret if !group.stack.is_empty() => {
                self.part(warp, &group, mask);
                let pc = group.stack.pop().unwrap_or(0);
                warp.groups.push(Group { pc, mask, ..group });
            }
            Op::Ret | Op::Exit => {
                self.part(warp, &group, mask);
                warp.exited |= mask;
            }
            Op::Bar { .. } => {
                self.part(warp, &group, mask);
                warp.groups.push(Group {
                    mask,
                    wait: Wait::Block,
                    ..group
                });
            }
            // Only a trap is left.
            _ => {
                let lane = mask.trailing_zeros() as usize;
                self.find(
                    Check::OutOfBounds,
                    inst.line,
                    warp,
                    lane,
                    "the kernel trapped",
                );
                self.stop = true;
            }
        }
        None
    }

    /// Lets the lanes of `group` outside `mask` go on behind the instruction; whether there are any.
    fn part(&mut self, warp: &mut Warp, group: &Group, mask: u32) -> bool {
        let rest = group.mask & !mask;
        if rest != 0 {
            warp.groups.push(Group {
                pc: group.pc + 1,
                mask: rest,
                ..group.clone()
            });
        }
        rest != 0
    }

    /// All threads that are left wait at barriers: checks that it is one, and lets them go on.
    fn barrier(&mut self, warps: &mut [Warp]) {
        let Some((at, pc)) = warps
            .iter()
            .position(|w| !w.groups.is_empty())
            .map(|i| (i, warps[i].groups[0].pc))
        else {
            return;
        };
        let inst = self.kernel.code[pc as usize];
        let lane = warps[at].groups[0].mask.trailing_zeros() as usize;
        let exited: u32 = warps.iter().map(|w| w.exited.count_ones()).sum();
        if exited > 0 {
            let what =
                format!("a barrier that {exited} threads of the block left out: they have exited");
            self.find(Check::ExitedAtBarrier, inst.line, &warps[at], lane, &what);
        }
        for warp in warps.iter() {
            if let Some(other) = warp.groups.iter().find(|g| g.pc != pc) {
                let other_line = self.kernel.code[other.pc as usize].line;
                let what = format!(
                    "barrier divergence: other threads of the block wait at ptx {}",
                    inst.line
                );
                let lane = other.mask.trailing_zeros() as usize;
                self.find(Check::BarrierDivergence, other_line, warp, lane, &what);
                break;
            }
        }
        if let Op::Bar { reduce, .. } = inst.op {
            self.reduce(warps, reduce, inst.line);
        }
        self.clock += 1;
        if self.clock >= shadow::MAX_TIME / 2 {
            // All accesses so far are ordered; the times begin anew under a new number.
            self.run += 1;
            self.clock = 1;
        }
        self.block_time = self.clock;
        for warp in warps.iter_mut() {
            warp.synchronise_all(self.run, self.clock);
            for group in &mut warp.groups {
                group.wait = Wait::Nothing;
                group.pc += 1;
            }
        }
    }

    fn reduce(&mut self, warps: &mut [Warp], reduce: BarReduce, line: u32) {
        let (a, inverted) = match reduce {
            BarReduce::None => return,
            BarReduce::And { a, inverted, .. } | BarReduce::Or { a, inverted, .. } => (a, inverted),
            BarReduce::Popc { a, inverted, .. } => (a, inverted),
        };
        let (mut number, mut threads) = (0, 0);
        for warp in warps.iter() {
            let present = warp.groups.iter().fold(0, |all, g| all | g.mask);
            self.need(
                warp,
                present,
                warp.regs.def_preds[a as usize],
                line,
                "a reduction",
            );
            let value = warp.regs.preds[a as usize] ^ if inverted { u32::MAX } else { 0 };
            number += (value & present).count_ones();
            threads += present.count_ones();
        }
        for warp in warps.iter_mut() {
            let present = warp.groups.iter().fold(0, |all, g| all | g.mask);
            let all = |holds: bool| if holds { u32::MAX } else { 0 };
            match reduce {
                BarReduce::And { d, .. } => {
                    warp.regs
                        .write_pred(d, present, all(number == threads), u32::MAX)
                }
                BarReduce::Or { d, .. } => {
                    warp.regs.write_pred(d, present, all(number > 0), u32::MAX)
                }
                BarReduce::Popc { d, .. } => warp.regs.write32(d, present, &[number; 32], u32::MAX),
                BarReduce::None => {}
            }
        }
    }
}

/// Takes the lanes that are least far, all that are at the same instruction together.
fn next_group(warp: &mut Warp) -> Option<Group> {
    let runs = |g: &Group| g.wait == Wait::Nothing;
    let index = (0..warp.groups.len())
        .filter(|i| runs(&warp.groups[*i]))
        .min_by_key(|i| warp.groups[*i].pc)?;
    let mut group = warp.groups.swap_remove(index);
    if !warp.groups.is_empty() {
        warp.groups.retain(|other| {
            let same = runs(other) && other.pc == group.pc && other.stack == group.stack;
            if same {
                group.mask |= other.mask;
            }
            !same
        });
    }
    Some(group)
}

/// Joins groups that wait at the same warp operation.
fn merge_waiting(warp: &mut Warp) {
    let mut merged: Vec<Group> = Vec::new();
    for group in warp.groups.drain(..) {
        let same = |g: &&mut Group| {
            g.wait == Wait::Warp
                && group.wait == Wait::Warp
                && g.pc == group.pc
                && g.stack == group.stack
        };
        match merged.iter_mut().find(same) {
            Some(other) => other.mask |= group.mask,
            None => merged.push(group),
        }
    }
    warp.groups = merged;
}
