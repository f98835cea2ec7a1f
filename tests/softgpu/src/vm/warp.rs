//! A warp: the registers of its lanes, where each of them is, and what it knows of the others' accesses.

use super::shadow::{self, Observer};
use crate::ptx::Kernel;
use crate::ptx::inst::{Class, Reg, Slot, Slot32, Slot64, SlotPred, Special};

/// One value per lane.
pub(super) type Lanes32 = [u32; 32];
pub(super) type Lanes64 = [u64; 32];

/// What lanes wait for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Wait {
    Nothing,
    /// The other lanes of a warp operation.
    Warp,
    /// The other threads of the block.
    Block,
}

/// Lanes at the same instruction, with the same callers.
#[derive(Clone, Debug)]
pub(super) struct Group {
    pub(super) pc: u32,
    pub(super) mask: u32,
    pub(super) stack: Vec<u32>,
    pub(super) wait: Wait,
}

/// Registers, structure of arrays; a slot of each file is one value per lane.
#[derive(Default)]
pub(super) struct Registers {
    pub(super) r32: Vec<Lanes32>,
    pub(super) r64: Vec<Lanes64>,
    pub(super) preds: Vec<u32>,
    /// Lanes in which each register has a value.
    pub(super) def32: Vec<u32>,
    pub(super) def64: Vec<u32>,
    pub(super) def_preds: Vec<u32>,
    /// The carry flag of each lane.
    pub(super) carry: u32,
}

#[derive(Default)]
pub(super) struct Warp {
    pub(super) regs: Registers,
    /// Its number in the block.
    pub(super) index: u32,
    /// Lanes that exist; the last warp of a block may have fewer than 32.
    pub(super) lanes: u32,
    pub(super) exited: u32,
    pub(super) groups: Vec<Group>,
    pub(super) steps: u64,
    /// Records of the lanes' accesses as of now.
    pub(super) me: Lanes64,
    times: Lanes32,
    warp_time: u32,
    /// Only after warp operations of some lanes: the times each lane (first index) knows of.
    known: Option<Box<[Lanes32; 32]>>,
    /// Whether memory was accessed since the last synchronisation.
    pub(super) touched: bool,
    pub(super) local: Vec<u8>,
    pub(super) local_valid: Vec<u8>,
    /// Validity of a fresh thread's local memory.
    local_template: Vec<u8>,
}

/// The shape and place of what runs, for special registers.
pub(super) struct Frame {
    pub(super) block: [u32; 3],
    pub(super) grid: [u32; 3],
    pub(super) dynamic: u32,
}

impl Warp {
    /// A warp of `threads` in all, with constants in place.
    pub(super) fn new(
        kernel: &Kernel,
        index: u32,
        threads: u32,
        variables: &[u64],
        frame: &Frame,
    ) -> Warp {
        let in_warp = (threads - index * 32).min(32);
        let mut warp = Warp {
            index,
            lanes: u32::MAX >> (32 - in_warp),
            ..Warp::default()
        };
        for slot in &kernel.slots64 {
            warp.regs.r64.push(match slot {
                Slot64::Register => [0; 32],
                Slot64::Constant(value) => [*value; 32],
                Slot64::Variable(index, offset) => {
                    [variables[*index as usize].wrapping_add_signed(*offset); 32]
                }
            });
        }
        for slot in &kernel.slots32 {
            warp.regs.r32.push(match slot {
                Slot32::Register => [0; 32],
                Slot32::Constant(value) => [*value; 32],
                Slot32::Special(special) => warp.special(*special, threads, frame),
            });
        }
        let all = |constant: bool| if constant { u32::MAX } else { 0 };
        warp.regs.preds = kernel
            .preds
            .iter()
            .map(|p| all(*p == SlotPred::Constant(true)))
            .collect();
        warp.local_template = vec![super::INVALID_ZONE; kernel.local_bytes];
        for (at, bytes) in &kernel.local {
            warp.local_template[*at..at + bytes].fill(0);
        }
        warp.local = vec![0; kernel.local_bytes * 32];
        warp
    }

    fn special(&self, special: Special, threads: u32, frame: &Frame) -> Lanes32 {
        let first = self.index * 32;
        std::array::from_fn(|lane| {
            let lane = lane as u32;
            let thread = thread_index(first + lane, frame.block);
            match special {
                Special::Tid(axis) => thread[axis as usize],
                Special::Ntid(axis) => frame.block[axis as usize],
                Special::Ctaid(_) => 0,
                Special::Nctaid(axis) => frame.grid[axis as usize],
                Special::Laneid => lane,
                Special::Warpid => self.index,
                Special::Nwarpid => threads.div_ceil(32),
                Special::Warpsize => 32,
                Special::LanemaskEq => 1 << lane,
                Special::LanemaskLt => (1 << lane) - 1,
                Special::LanemaskLe => u32::MAX >> (31 - lane),
                Special::LanemaskGt => !(u32::MAX >> (31 - lane)),
                Special::LanemaskGe => u32::MAX << lane,
                Special::DynamicShared => frame.dynamic,
            }
        })
    }

    /// Puts all lanes at the start of `kernel`, as block `ctaid`, whose accesses are recorded as `run`.
    pub(super) fn start(&mut self, kernel: &Kernel, ctaid: [u32; 3], run: u32) {
        for (values, slot) in self.regs.r32.iter_mut().zip(&kernel.slots32) {
            if let Slot32::Special(Special::Ctaid(axis)) = slot {
                *values = [ctaid[*axis as usize]; 32];
            }
        }
        let fresh = |is_register: bool| if is_register { 0 } else { u32::MAX };
        let regs = &mut self.regs;
        regs.def32 = kernel
            .slots32
            .iter()
            .map(|s| fresh(*s == Slot32::Register))
            .collect();
        regs.def64 = kernel
            .slots64
            .iter()
            .map(|s| fresh(*s == Slot64::Register))
            .collect();
        regs.def_preds = kernel
            .preds
            .iter()
            .map(|s| fresh(*s == SlotPred::Register))
            .collect();
        regs.carry = 0;
        self.exited = 0;
        self.steps = 0;
        self.groups.clear();
        self.groups.push(Group {
            pc: 0,
            mask: self.lanes,
            stack: Vec::new(),
            wait: Wait::Nothing,
        });
        self.local_valid.clear();
        for _ in 0..32 {
            self.local_valid.extend_from_slice(&self.local_template);
        }
        self.synchronise_all(run, 1);
    }

    /// Orders all accesses of the warp so far before all that follow, as of `time`.
    pub(super) fn synchronise_all(&mut self, run: u32, time: u32) {
        self.times = [time; 32];
        self.warp_time = time;
        self.known = None;
        self.touched = false;
        for lane in 0..32 {
            self.me[lane] = shadow::record(run, self.index * 32 + lane as u32, time);
        }
    }

    /// Orders the accesses of the lanes in `mask` so far before all of theirs that follow, as of `time`.
    pub(super) fn synchronise(&mut self, mask: u32, run: u32, time: u32) {
        let base = self.warp_time;
        let known = self.known.get_or_insert_with(|| Box::new([[base; 32]; 32]));
        let mut joined = [0; 32];
        for lane in lanes(mask) {
            for (all, own) in joined.iter_mut().zip(&known[lane]) {
                *all = (*all).max(*own);
            }
        }
        for lane in lanes(mask) {
            joined[lane] = time;
        }
        for lane in lanes(mask) {
            known[lane] = joined;
            self.times[lane] = time;
            self.me[lane] = shadow::record(run, self.index * 32 + lane as u32, time);
        }
    }

    /// Whether all lanes took part in the same synchronisations.
    pub(super) fn all_know_the_same(&self) -> bool {
        self.known.is_none()
    }

    /// What `lane` knows of the order of accesses.
    pub(super) fn observer(
        &self,
        lane: usize,
        first: u64,
        first_run: u32,
        block_time: u32,
    ) -> Observer<'_> {
        Observer {
            me: self.me[lane],
            first,
            first_run,
            block_time,
            warp_time: self.warp_time,
            known: self.known.as_ref().map(|k| &k[lane]),
        }
    }
}

/// The indices of a thread in its block.
pub(super) fn thread_index(linear: u32, block: [u32; 3]) -> [u32; 3] {
    [
        linear % block[0],
        linear / block[0] % block[1],
        linear / (block[0] * block[1]),
    ]
}

/// One value per lane. Unlike `std::array::from_fn` this is part of its caller, and so compiled for the
/// processor that the caller is compiled for.
#[inline(always)]
pub(super) fn each_lane<T: Copy + Default>(f: impl Fn(usize) -> T) -> [T; 32] {
    let mut values = [T::default(); 32];
    for (lane, value) in values.iter_mut().enumerate() {
        *value = f(lane);
    }
    values
}

/// The lanes in `mask`, ascending.
#[inline]
pub(super) fn lanes(mask: u32) -> impl Iterator<Item = usize> {
    let mut left = mask;
    std::iter::from_fn(move || {
        if left == 0 {
            return None;
        }
        let lane = left.trailing_zeros() as usize;
        left &= left - 1;
        Some(lane)
    })
}

impl Registers {
    /// Lanes in which `reg` has a value.
    #[inline(always)]
    pub(super) fn defined(&self, reg: Reg) -> u32 {
        match reg.class {
            Class::Pred => self.def_preds[reg.slot as usize],
            Class::B16 | Class::B32 => self.def32[reg.slot as usize],
            Class::B64 => self.def64[reg.slot as usize],
        }
    }

    /// Says in which of the lanes in `mask` a register of `class` has a value.
    #[inline(always)]
    pub(super) fn define(&mut self, reg: Reg, mask: u32, defined: u32) {
        let lanes = match reg.class {
            Class::Pred => &mut self.def_preds[reg.slot as usize],
            Class::B16 | Class::B32 => &mut self.def32[reg.slot as usize],
            Class::B64 => &mut self.def64[reg.slot as usize],
        };
        *lanes = *lanes & !mask | defined & mask;
    }

    /// One lane's value, zero-extended.
    #[inline(always)]
    pub(super) fn get(&self, reg: Reg, lane: usize) -> u64 {
        match reg.class {
            Class::Pred => u64::from(self.preds[reg.slot as usize] >> lane & 1),
            Class::B16 | Class::B32 => u64::from(self.r32[reg.slot as usize][lane]),
            Class::B64 => self.r64[reg.slot as usize][lane],
        }
    }

    /// Sets one lane's value, cut to the width of the register.
    #[inline(always)]
    pub(super) fn set(&mut self, reg: Reg, lane: usize, value: u64) {
        match reg.class {
            Class::Pred => {
                let bits = &mut self.preds[reg.slot as usize];
                *bits = *bits & !(1 << lane) | u32::from(value & 1 == 1) << lane;
            }
            Class::B16 => self.r32[reg.slot as usize][lane] = value as u32 & 0xffff,
            Class::B32 => self.r32[reg.slot as usize][lane] = value as u32,
            Class::B64 => self.r64[reg.slot as usize][lane] = value,
        }
    }

    /// Sets the lanes in `mask` of a 32-bit register.
    #[inline(always)]
    pub(super) fn write32(&mut self, d: Slot, mask: u32, values: &Lanes32, defined: u32) {
        let target = &mut self.r32[d as usize];
        if mask == u32::MAX {
            *target = *values;
        } else {
            for lane in 0..32 {
                let take = (mask >> lane & 1).wrapping_neg();
                target[lane] = values[lane] & take | target[lane] & !take;
            }
        }
        let lanes = &mut self.def32[d as usize];
        *lanes = *lanes & !mask | defined & mask;
    }

    /// Sets the lanes in `mask` of a 64-bit register.
    #[inline(always)]
    pub(super) fn write64(&mut self, d: Slot, mask: u32, values: &Lanes64, defined: u32) {
        let target = &mut self.r64[d as usize];
        if mask == u32::MAX {
            *target = *values;
        } else {
            for lane in 0..32 {
                let take = u64::from(mask >> lane & 1).wrapping_neg();
                target[lane] = values[lane] & take | target[lane] & !take;
            }
        }
        let lanes = &mut self.def64[d as usize];
        *lanes = *lanes & !mask | defined & mask;
    }

    /// Sets the lanes in `mask` of a predicate.
    #[inline(always)]
    pub(super) fn write_pred(&mut self, d: Slot, mask: u32, values: u32, defined: u32) {
        let target = &mut self.preds[d as usize];
        *target = *target & !mask | values & mask;
        let lanes = &mut self.def_preds[d as usize];
        *lanes = *lanes & !mask | defined & mask;
    }

    /// Lanes in which all the given 32-bit slots have a value.
    #[inline(always)]
    pub(super) fn all32(&self, slots: &[Slot]) -> u32 {
        slots
            .iter()
            .fold(u32::MAX, |all, s| all & self.def32[*s as usize])
    }

    /// Lanes in which all the given 64-bit slots have a value.
    #[inline(always)]
    pub(super) fn all64(&self, slots: &[Slot]) -> u32 {
        slots
            .iter()
            .fold(u32::MAX, |all, s| all & self.def64[*s as usize])
    }
}
