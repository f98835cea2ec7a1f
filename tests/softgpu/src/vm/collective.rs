//! Operations of several lanes of a warp: shuffles, votes, reductions, and the warp's barrier.

use super::warp::{Group, Lanes32, Wait, Warp, lanes};
use super::{Check, Machine};
use crate::ptx::inst::{Class, Collective, Inst, Op, ReduxOp, Reg, ShflMode, VoteOp};

impl Machine<'_> {
    /// Lanes of `group` come to the warp operation `inst`. Those that have all whom their masks name beside
    /// them execute it; they and the ones left waiting are put among the warp's groups. Where `forced`, nobody
    /// else will come.
    pub(super) fn meet(
        &mut self,
        warp: &mut Warp,
        group: Group,
        inst: &Inst,
        forced: bool,
    ) -> bool {
        let Op::Collective {
            what,
            mask: mask_slot,
        } = inst.op
        else {
            return false;
        };
        let defined = warp.regs.def32[mask_slot as usize];
        self.need(
            warp,
            group.mask,
            defined,
            inst.line,
            "who takes part in a warp operation",
        );
        let masks = warp.regs.r32[mask_slot as usize];
        let mut left = group.mask;
        let mut done = 0;
        while left != 0 {
            let named = masks[left.trailing_zeros() as usize];
            let alike = lanes(left)
                .filter(|l| masks[*l] == named)
                .fold(0, |all, l| all | 1 << l);
            left &= !alike;
            let outside = alike & !named;
            if outside != 0 {
                let lane = outside.trailing_zeros() as usize;
                let what = format!("lane {lane} is not in its own mask 0x{named:08x}");
                self.find(Check::OwnMask, inst.line, warp, lane, &what);
            }
            let expected = named & warp.lanes & !warp.exited;
            if expected & !alike != 0 && !forced {
                continue;
            }
            self.absent(warp, what, alike, named, inst.line);
            self.cooperate(warp, what, alike, named, inst.line);
            done |= alike;
        }
        let Group {
            pc, mask, stack, ..
        } = group;
        if done != 0 {
            self.instrs += u64::from(done.count_ones());
            let stack = stack.clone();
            warp.groups.push(Group {
                pc: pc + 1,
                mask: done,
                stack,
                wait: Wait::Nothing,
            });
        }
        if mask & !done != 0 {
            warp.groups.push(Group {
                pc,
                mask: mask & !done,
                stack,
                wait: Wait::Warp,
            });
        }
        done != 0
    }

    /// Notes lanes that `named` asks for and that are not among `present`.
    fn absent(&mut self, warp: &Warp, what: Collective, present: u32, named: u32, line: u32) {
        let mut missing = named & warp.lanes & !present;
        // The barrier of a warp is for those that have not exited.
        if what == Collective::BarWarp {
            missing &= !warp.exited;
        }
        if missing != 0 {
            let exited = missing & warp.exited;
            let lane = present.trailing_zeros() as usize;
            let what = format!(
                "a warp operation of lanes 0x{named:08x}, of which 0x{exited:08x} have exited and 0x{:08x} never come",
                missing & !exited
            );
            self.find(Check::AbsentLane, line, warp, lane, &what);
        }
    }

    fn cooperate(
        &mut self,
        warp: &mut Warp,
        what: Collective,
        lanes_in: u32,
        named: u32,
        line: u32,
    ) {
        let orders = what == Collective::BarWarp || self.options.shuffles_order;
        if orders && warp.touched {
            let time = self.tick(line, warp);
            if lanes_in == warp.lanes {
                warp.synchronise_all(self.run, time);
            } else {
                warp.synchronise(lanes_in, self.run, time);
            }
        }
        match what {
            Collective::BarWarp => {}
            Collective::Shfl {
                mode,
                d,
                p,
                a,
                b,
                c,
            } => {
                let controls = warp.regs.def32[b as usize] & warp.regs.def32[c as usize];
                self.need(warp, lanes_in, controls, line, "the source of a shuffle");
                let (values, amounts, clamps) = (
                    warp.regs.r32[a as usize],
                    warp.regs.r32[b as usize],
                    warp.regs.r32[c as usize],
                );
                let defined = warp.regs.def32[a as usize];
                let (mut out, mut inside, mut out_defined) = ([0; 32], 0, 0);
                for lane in lanes(lanes_in) {
                    let (source, within) = source(mode, lane as u32, amounts[lane], clamps[lane]);
                    let takes_part = lanes_in & named & 1 << source != 0;
                    if !takes_part {
                        let what =
                            format!("a shuffle reads lane {source}, which does not take part");
                        self.find(Check::ShuffleSource, line, warp, lane, &what);
                    }
                    out[lane] = values[source as usize];
                    inside |= u32::from(within) << lane;
                    // What comes from a lane that takes no part is told once, here.
                    out_defined |= (defined >> source & 1 | u32::from(!takes_part)) << lane;
                }
                warp.regs.write32(d, lanes_in, &out, out_defined);
                if let Some(p) = p {
                    warp.regs.write_pred(p, lanes_in, inside, u32::MAX);
                }
            }
            Collective::Vote { op, d, a, inverted } => {
                let defined = warp.regs.def_preds[a as usize];
                let all_defined = if lanes_in & !defined == 0 {
                    u32::MAX
                } else {
                    0
                };
                let value = warp.regs.preds[a as usize] ^ if inverted { u32::MAX } else { 0 };
                let votes = value & lanes_in;
                let yes = match op {
                    VoteOp::All => votes == lanes_in,
                    VoteOp::Any => votes != 0,
                    VoteOp::Uni => votes == 0 || votes == lanes_in,
                    VoteOp::Ballot => {
                        return warp.regs.write32(d, lanes_in, &[votes; 32], all_defined);
                    }
                };
                warp.regs
                    .write_pred(d, lanes_in, if yes { u32::MAX } else { 0 }, all_defined);
            }
            Collective::Redux { op, d, a } => {
                let value = reduce(op, &warp.regs.r32[a as usize], lanes_in);
                let all_defined = if lanes_in & !warp.regs.def32[a as usize] == 0 {
                    u32::MAX
                } else {
                    0
                };
                warp.regs.write32(d, lanes_in, &[value; 32], all_defined);
            }
            Collective::MatchAny { d, a } => {
                let values: [u64; 32] = std::array::from_fn(|lane| warp.regs.get(a, lane));
                let same = |lane: usize| {
                    lanes(lanes_in)
                        .filter(|l| values[*l] == values[lane])
                        .fold(0, |all, l| all | 1 << l)
                };
                let defined = warp.regs.defined(a);
                let out: Lanes32 = std::array::from_fn(same);
                warp.regs.write32(d, lanes_in, &out, defined);
            }
            Collective::MatchAll { d, p, a } => {
                let first = warp.regs.get(a, lanes_in.trailing_zeros() as usize);
                let same = lanes(lanes_in).all(|lane| warp.regs.get(a, lane) == first);
                let defined = warp.regs.defined(a);
                warp.regs
                    .write32(d, lanes_in, &[if same { lanes_in } else { 0 }; 32], defined);
                if let Some(slot) = p {
                    let reg = Reg {
                        class: Class::Pred,
                        slot,
                    };
                    for lane in lanes(lanes_in) {
                        warp.regs.set(reg, lane, u64::from(same));
                    }
                    warp.regs.define(reg, lanes_in, defined);
                }
            }
        }
    }
}

/// The lane that a shuffle reads, and whether it is within the segment; if not, a lane reads itself.
fn source(mode: ShflMode, lane: u32, amount: u32, clamp: u32) -> (u32, bool) {
    let amount = amount & 31;
    let segment = clamp >> 8 & 31;
    let limit = clamp & 31;
    let last = lane & segment | limit & !segment;
    let first = lane & segment;
    let (source, within) = match mode {
        ShflMode::Up => (
            lane.wrapping_sub(amount),
            lane as i32 - amount as i32 >= last as i32,
        ),
        ShflMode::Down => (lane + amount, lane + amount <= last),
        ShflMode::Bfly => (lane ^ amount, lane ^ amount <= last),
        ShflMode::Idx => {
            let source = first | amount & !segment;
            (source, source <= last)
        }
    };
    if within {
        (source, true)
    } else {
        (lane, false)
    }
}

fn reduce(op: ReduxOp, values: &Lanes32, mask: u32) -> u32 {
    let values = lanes(mask).map(|lane| values[lane]);
    let signed = |x: u32| x as i32;
    match op {
        ReduxOp::Add => values.fold(0, u32::wrapping_add),
        ReduxOp::MinU => values.min().unwrap_or(0),
        ReduxOp::MaxU => values.max().unwrap_or(0),
        ReduxOp::MinS => values.min_by_key(|x| signed(*x)).unwrap_or(0),
        ReduxOp::MaxS => values.max_by_key(|x| signed(*x)).unwrap_or(0),
        ReduxOp::And => values.fold(u32::MAX, |all, x| all & x),
        ReduxOp::Or => values.fold(0, |all, x| all | x),
        ReduxOp::Xor => values.fold(0, |all, x| all ^ x),
    }
}
