//! Atomic updates.

use super::place::{Place, read_bytes};
use super::shadow::Access;
use super::warp::Warp;
use super::{At, Check, Machine, convert};
use crate::ptx::inst::{AtomOp, Atomic, Space, Ty};

impl Machine<'_> {
    pub(super) fn atomic(&mut self, warp: &mut Warp, at: At, atomic: &Atomic, mask: u32) {
        self.need(
            warp,
            mask,
            warp.regs.defined(atomic.base),
            at.line,
            "an address",
        );
        for reg in [Some(atomic.value), atomic.swap].into_iter().flatten() {
            self.need(
                warp,
                mask,
                warp.regs.defined(reg),
                at.line,
                "what is stored",
            );
        }
        let mut addresses = self.addresses(warp, atomic.base, atomic.offset);
        let size = atomic.ty.size();
        warp.touched = true;
        for (space, mask) in self.resolve(atomic.space, mask, &mut addresses) {
            for turn in 0..32 {
                let lane = if self.options.seed & 2 != 0 {
                    31 - turn
                } else {
                    turn
                };
                if mask >> lane & 1 == 0 {
                    continue;
                }
                // It reads what is there, so that must be initialised.
                let place = (space, atomic.ty, true);
                let found = self.locate(warp, at, place, lane, addresses[lane], size);
                let Some(place) = found else {
                    if self.stop {
                        return;
                    }
                    continue;
                };
                if space == Space::Global {
                    self.report.stores += 1;
                    self.report.bytes_read += size as u64;
                    self.report.bytes_written += size as u64;
                    if let Place::Global(index, _) = place
                        && self.regions[index].constant
                    {
                        self.find(
                            Check::ConstantWrite,
                            at.line,
                            warp,
                            lane,
                            "a write of constant memory",
                        );
                    }
                }
                self.order(warp, lane, place, size, Access::Atomic, at.line);
                let old = read_bytes(self.bytes(warp, place), size);
                let value = warp.regs.get(atomic.value, lane);
                let swap = atomic.swap.map_or(0, |s| warp.regs.get(s, lane));
                let new = update(atomic.op, atomic.ty, old, value, swap);
                self.put(warp, place, &new.to_le_bytes()[..size]);
                if let Some(d) = atomic.d {
                    warp.regs.set(d, lane, old);
                }
            }
        }
        if let Some(d) = atomic.d {
            warp.regs.define(d, mask, u32::MAX);
        }
    }
}

fn update(op: AtomOp, ty: Ty, old: u64, value: u64, swap: u64) -> u64 {
    let (x, y) = (
        convert::extend(old, ty) as i64,
        convert::extend(value, ty) as i64,
    );
    let less = if ty.signed() {
        x < y
    } else {
        (x as u64) < y as u64
    };
    match (op, ty) {
        (AtomOp::Add, Ty::F32) => {
            let sum = f32::from_bits(old as u32) + f32::from_bits(value as u32);
            u64::from(if sum.is_nan() {
                0x7fff_ffff
            } else {
                sum.to_bits()
            })
        }
        (AtomOp::Add, Ty::F64) => (f64::from_bits(old) + f64::from_bits(value)).to_bits(),
        (AtomOp::Add, _) => old.wrapping_add(value),
        (AtomOp::Min, _) => {
            if less {
                old
            } else {
                value
            }
        }
        (AtomOp::Max, _) => {
            if less {
                value
            } else {
                old
            }
        }
        (AtomOp::And, _) => old & value,
        (AtomOp::Or, _) => old | value,
        (AtomOp::Xor, _) => old ^ value,
        (AtomOp::Exch, _) => value,
        (AtomOp::Cas, _) => {
            if old == value {
                swap
            } else {
                old
            }
        }
        (AtomOp::Inc, _) => {
            if old >= value {
                0
            } else {
                old + 1
            }
        }
        (AtomOp::Dec, _) => {
            if old == 0 || old > value {
                value
            } else {
                old - 1
            }
        }
    }
}
