//! Loads, stores and atomic updates, with their checks.

use super::memory::{LOCAL_WINDOW, SHARED_WINDOW, WINDOW_BYTES};
use super::shadow::{Access, Shadow};
use super::warp::{Lanes64, Warp, lanes};
use super::{Check, INVALID_ZONE, Machine, convert};
use crate::ptx::Kernel;
use crate::ptx::inst::{AtomOp, Atomic, Class, Op, Reg, Space, Transfer, Ty};

/// The shared memory of a block.
pub(super) struct Shared {
    data: Vec<u8>,
    valid: Vec<u8>,
    shadow: Shadow,
    template: Vec<u8>,
}

impl Shared {
    pub(super) fn new(kernel: &Kernel, dynamic: usize) -> Shared {
        let end = kernel.shared.last().map_or(0, |(at, n)| at + n);
        let bytes = if kernel.uses_dynamic {
            kernel.dynamic_at + dynamic
        } else {
            end
        };
        let mut template = vec![INVALID_ZONE; bytes];
        for (at, n) in &kernel.shared {
            template[*at..at + n].fill(0);
        }
        if kernel.uses_dynamic {
            template[kernel.dynamic_at..].fill(0);
        }
        Shared {
            data: vec![0; bytes],
            valid: Vec::new(),
            shadow: Shadow::default(),
            template,
        }
    }

    pub(super) fn start(&mut self) {
        self.valid.clear();
        self.valid.extend_from_slice(&self.template);
    }
}

/// Which space a generic address is in.
pub(super) fn space_of(address: u64) -> Space {
    if address.wrapping_sub(SHARED_WINDOW) < WINDOW_BYTES {
        Space::Shared
    } else if address.wrapping_sub(LOCAL_WINDOW) < WINDOW_BYTES {
        Space::Local
    } else {
        Space::Global
    }
}

/// A place found in memory.
#[derive(Clone, Copy)]
enum Place {
    Shared(usize),
    /// Index among the allocations, and offset.
    Global(usize, usize),
    /// Offset in the local memory of the warp.
    Local(usize),
}

#[inline(always)]
fn read_bytes(data: &[u8], size: usize) -> u64 {
    let mut bytes = [0; 8];
    bytes[..size].copy_from_slice(&data[..size]);
    u64::from_le_bytes(bytes)
}

impl<'a> Machine<'a> {
    #[inline(always)]
    fn addresses(&self, warp: &Warp, base: Reg, offset: i64) -> Lanes64 {
        if base.class == Class::B64 {
            let base = &warp.regs.r64[base.slot as usize];
            std::array::from_fn(|i| base[i].wrapping_add_signed(offset))
        } else {
            let base = &warp.regs.r32[base.slot as usize];
            std::array::from_fn(|i| u64::from(base[i]).wrapping_add_signed(offset))
        }
    }

    /// Splits generic addresses by space: masks of lanes, with addresses within their space.
    fn resolve(&self, space: Space, mask: u32, addresses: &mut Lanes64) -> [(Space, u32); 3] {
        let mut split = [(Space::Global, 0), (Space::Shared, 0), (Space::Local, 0)];
        if space != Space::Generic {
            split[0] = (space, mask);
            return split;
        }
        for lane in lanes(mask) {
            let (index, base) = match space_of(addresses[lane]) {
                Space::Shared => (1, SHARED_WINDOW),
                Space::Local => (2, LOCAL_WINDOW),
                _ => (0, 0),
            };
            split[index].1 |= 1 << lane;
            addresses[lane] -= base;
        }
        split
    }

    /// The allocation that holds `size` bytes at `address`.
    #[inline(always)]
    fn region(&mut self, pc: usize, address: u64, size: usize) -> Option<(usize, usize)> {
        let fits = |alloc: &super::Alloc| {
            let offset = address.wrapping_sub(alloc.base);
            (offset as usize)
                .checked_add(size)
                .is_some_and(|end| end <= alloc.data.len())
        };
        let hint = self.hints[pc] as usize;
        if let Some(alloc) = self.regions.get(hint)
            && fits(alloc)
        {
            return Some((hint, (address - alloc.base) as usize));
        }
        let index = self
            .regions
            .partition_point(|a| a.base <= address)
            .checked_sub(1)?;
        if !fits(self.regions[index]) {
            return None;
        }
        self.hints[pc] = index as u32;
        Some((index, (address - self.regions[index].base) as usize))
    }

    /// Executes a load, store or atomic update; false if `op` is another instruction.
    pub(super) fn memory(
        &mut self,
        warp: &mut Warp,
        pc: usize,
        op: &Op,
        mask: u32,
        line: u32,
    ) -> bool {
        match op {
            Op::LdParam {
                ty,
                count,
                regs,
                offset,
            } => self.load_param(warp, *ty, *count, regs, *offset, mask, line),
            Op::Ld(transfer) => self.transfer(warp, pc, transfer, mask, line, true),
            Op::St(transfer) => {
                for reg in transfer.regs.iter().flatten() {
                    self.need(warp, mask, warp.regs.defined(*reg), line, "what is stored");
                }
                self.transfer(warp, pc, transfer, mask, line, false);
            }
            Op::Atom(atomic) => self.atomic(warp, pc, atomic, mask, line),
            Op::CopyLocal { to, from, bytes } => {
                let stride = self.kernel.local_bytes;
                for lane in lanes(mask) {
                    let at = lane * stride;
                    let source = at + *from as usize..at + (*from + *bytes) as usize;
                    warp.local.copy_within(source.clone(), at + *to as usize);
                    warp.local_valid.copy_within(source, at + *to as usize);
                }
            }
            _ => return false,
        }
        true
    }

    #[allow(clippy::too_many_arguments)]
    fn load_param(
        &mut self,
        warp: &mut Warp,
        ty: Ty,
        count: u8,
        regs: &[Option<Reg>; 8],
        offset: u32,
        mask: u32,
        line: u32,
    ) {
        for (index, reg) in regs[..count as usize].iter().enumerate() {
            let Some(reg) = reg else { continue };
            let at = offset as usize + index * ty.size();
            let Some(bytes) = self.launch.params.get(at..at + ty.size()) else {
                self.find(
                    Check::OutOfBounds,
                    line,
                    warp,
                    0,
                    "a read outside the kernel's parameters",
                );
                self.stop |= self.on(Check::OutOfBounds);
                return;
            };
            let value = convert::extend(read_bytes(bytes, ty.size()), ty);
            match reg.class {
                Class::B64 => warp.regs.write64(reg.slot, mask, &[value; 32], u32::MAX),
                Class::B32 => warp
                    .regs
                    .write32(reg.slot, mask, &[value as u32; 32], u32::MAX),
                _ => warp
                    .regs
                    .write32(reg.slot, mask, &[value as u32 & 0xffff; 32], u32::MAX),
            }
        }
    }

    #[inline]
    fn transfer(
        &mut self,
        warp: &mut Warp,
        pc: usize,
        t: &Transfer,
        mask: u32,
        line: u32,
        load: bool,
    ) {
        self.need(warp, mask, warp.regs.defined(t.base), line, "an address");
        let mut addresses = self.addresses(warp, t.base, t.offset);
        let size = t.ty.size() * t.count as usize;
        for (space, mask) in self.resolve(t.space, mask, &mut addresses) {
            if mask == 0 {
                continue;
            }
            warp.touched = true;
            if space == Space::Global {
                let lanes = u64::from(mask.count_ones());
                let (number, bytes) = if load {
                    (&mut self.report.loads, &mut self.report.bytes_read)
                } else {
                    (&mut self.report.stores, &mut self.report.bytes_written)
                };
                *number += lanes;
                *bytes += lanes * size as u64;
            }
            let row = mask == u32::MAX
                && (1..32).all(|i| addresses[i] == addresses[0] + (i * size) as u64);
            if row && self.row(warp, pc, t, space, addresses[0], line, load) {
                continue;
            }
            self.scattered(warp, pc, t, (space, mask), &addresses, line, load);
        }
        if load {
            for reg in t.regs.iter().flatten() {
                warp.regs.define(*reg, mask, u32::MAX);
            }
        }
    }

    /// 32 elements side by side in one allocation. False, with nothing done, if anything is wrong with them
    /// besides a race.
    #[allow(clippy::too_many_arguments)]
    #[inline]
    fn row(
        &mut self,
        warp: &mut Warp,
        pc: usize,
        t: &Transfer,
        space: Space,
        address: u64,
        line: u32,
        load: bool,
    ) -> bool {
        let size = t.ty.size() * t.count as usize;
        if address % size as u64 != 0 || size > 16 {
            return false;
        }
        let (place, offset) = match space {
            Space::Shared => {
                let end = address.checked_add(32 * size as u64);
                if end.is_none_or(|end| end > self.shared.data.len() as u64) {
                    return false;
                }
                (usize::MAX, address as usize)
            }
            Space::Global => match self.region(pc, address, 32 * size) {
                Some(found) => found,
                None => return false,
            },
            _ => return false,
        };
        let first = if space == Space::Shared {
            u64::from(self.first_run) << 32
        } else {
            self.first_record
        };
        let (data, valid, shadow) = match space {
            Space::Shared => (
                &mut self.shared.data,
                &mut self.shared.valid,
                &mut self.shared.shadow,
            ),
            _ => {
                let region = &mut *self.regions[place];
                if region.constant && !load {
                    return false;
                }
                (&mut region.data, &mut region.valid, &mut region.shadow)
            }
        };
        let bytes = offset..offset + 32 * size;
        shadow.prepare(data.len(), t.ty.size());
        let slow;
        if load {
            // All are 1 exactly if their conjunction and disjunction are.
            if valid[bytes.clone()].iter().any(|v| *v != 1) {
                return false;
            }
            let kind = if t.read_only {
                Access::ReadOnly
            } else {
                Access::Read
            };
            slow = shadow.read_row(offset, size, &warp.me, first, Shadow::flags(kind));
            let data = &data[bytes];
            match (t.ty.size(), t.regs[0]) {
                (4, Some(reg)) if t.count == 1 && reg.class == Class::B32 => {
                    let target = &mut warp.regs.r32[reg.slot as usize];
                    for (value, bytes) in target.iter_mut().zip(data.as_chunks::<4>().0) {
                        *value = u32::from_le_bytes(*bytes);
                    }
                }
                (8, Some(reg)) if t.count == 1 => {
                    let target = &mut warp.regs.r64[reg.slot as usize];
                    for (value, bytes) in target.iter_mut().zip(data.as_chunks::<8>().0) {
                        *value = u64::from_le_bytes(*bytes);
                    }
                }
                (4, _)
                    if t.count == 4 && t.regs.iter().flatten().all(|r| r.class == Class::B32) =>
                {
                    for (lane, bytes) in data.as_chunks::<16>().0.iter().enumerate() {
                        for (reg, element) in t.regs.iter().zip(bytes.as_chunks::<4>().0) {
                            if let Some(reg) = reg {
                                warp.regs.r32[reg.slot as usize][lane] =
                                    u32::from_le_bytes(*element);
                            }
                        }
                    }
                }
                _ => {
                    for (lane, bytes) in data.chunks_exact(size).enumerate() {
                        set_elements(warp, t, lane, bytes);
                    }
                }
            }
        } else {
            if space == Space::Shared && valid[bytes.clone()].contains(&INVALID_ZONE) {
                return false;
            }
            slow = shadow.write_row(offset, size, &warp.me, first);
            valid[bytes.clone()].fill(1);
            let data = &mut data[bytes];
            match (t.ty.size(), t.regs[0]) {
                (4, Some(reg)) if t.count == 1 && reg.class == Class::B32 => {
                    let values = &warp.regs.r32[reg.slot as usize];
                    for (value, bytes) in values.iter().zip(data.as_chunks_mut::<4>().0) {
                        *bytes = value.to_le_bytes();
                    }
                }
                _ => {
                    for (lane, bytes) in data.chunks_exact_mut(size).enumerate() {
                        for (reg, element) in t.regs.iter().zip(bytes.chunks_exact_mut(t.ty.size()))
                        {
                            let value = reg.map_or(0, |r| warp.regs.get(r, lane));
                            element.copy_from_slice(&value.to_le_bytes()[..t.ty.size()]);
                        }
                    }
                }
            }
        }
        if space == Space::Global {
            let region = &self.regions[place];
            let (base, size_of_all) = (region.base, region.data.len());
            let touched = &mut self.report.touched;
            touched.note(base, size_of_all, offset, 32 * size, !load);
        }
        let kind = match (load, t.read_only) {
            (false, _) => Access::Write,
            (true, true) => Access::ReadOnly,
            (true, false) => Access::Read,
        };
        if slow != 0 {
            for lane in lanes(slow) {
                let at = offset + lane * size;
                let place = if space == Space::Shared {
                    Place::Shared(at)
                } else {
                    Place::Global(place, at)
                };
                self.order(warp, lane, place, size, kind, line);
            }
        }
        true
    }

    fn scattered(
        &mut self,
        warp: &mut Warp,
        pc: usize,
        t: &Transfer,
        (space, mask): (Space, u32),
        addresses: &Lanes64,
        line: u32,
        load: bool,
    ) {
        let size = t.ty.size() * t.count as usize;
        let first = mask.trailing_zeros() as usize;
        let kind = match (load, t.read_only) {
            (false, _) => Access::Write,
            (true, true) => Access::ReadOnly,
            (true, false) => Access::Read,
        };
        // One address for all lanes: what holds for two of them holds for all.
        if load
            && space != Space::Local
            && lanes(mask).all(|lane| addresses[lane] == addresses[first])
        {
            let second = (mask & (mask - 1)).trailing_zeros() as usize;
            let Some(place) = self.locate(
                warp,
                pc,
                (space, t.ty, load),
                first,
                addresses[first],
                size,
                line,
            ) else {
                return;
            };
            self.order(warp, first, place, size, kind, line);
            if second < 32 {
                self.order(warp, second, place, size, kind, line);
            }
            let mut bytes = [0; 64];
            bytes[..size].copy_from_slice(&self.bytes(warp, place)[..size]);
            for lane in lanes(mask) {
                set_elements(warp, t, lane, &bytes[..size]);
            }
            return;
        }
        for lane in lanes(mask) {
            let Some(place) = self.locate(
                warp,
                pc,
                (space, t.ty, load),
                lane,
                addresses[lane],
                size,
                line,
            ) else {
                if self.stop {
                    return;
                }
                continue;
            };
            self.order(warp, lane, place, size, kind, line);
            if load {
                let mut bytes = [0; 64];
                bytes[..size].copy_from_slice(&self.bytes(warp, place)[..size]);
                set_elements(warp, t, lane, &bytes[..size]);
            } else {
                let mut bytes = [0; 64];
                for (reg, element) in t
                    .regs
                    .iter()
                    .zip(bytes[..size].chunks_exact_mut(t.ty.size()))
                {
                    let value = reg.map_or(0, |r| warp.regs.get(r, lane));
                    element.copy_from_slice(&value.to_le_bytes()[..t.ty.size()]);
                }
                self.put(warp, place, &bytes[..size]);
            }
        }
    }

    /// Finds and checks what one lane accesses. `None` if there is nothing; that ends the launch, if it is
    /// looked for.
    #[allow(clippy::too_many_arguments)]
    fn locate(
        &mut self,
        warp: &Warp,
        pc: usize,
        (space, ty, load): (Space, Ty, bool),
        lane: usize,
        address: u64,
        size: usize,
        line: u32,
    ) -> Option<Place> {
        let verb = if load { "read" } else { "write" };
        if address % size as u64 != 0 && self.on(Check::Misaligned) {
            let what = format!("misaligned {verb} of {size} bytes at 0x{address:x}");
            self.find(Check::Misaligned, line, warp, lane, &what);
            self.stop = true;
            return None;
        }
        let place = match space {
            Space::Shared => self.in_shared(address, size),
            Space::Local => {
                let stride = self.kernel.local_bytes;
                let offset = address as usize;
                let inside = offset.checked_add(size).is_some_and(|end| end <= stride)
                    && !warp.local_valid[lane * stride + offset..][..size].contains(&INVALID_ZONE);
                inside.then(|| Place::Local(lane * stride + offset))
            }
            _ => self
                .region(pc, address, size)
                .map(|(index, offset)| Place::Global(index, offset)),
        };
        let Some(place) = place else {
            let what = self.outside(space, verb, address, size);
            self.find(Check::OutOfBounds, line, warp, lane, &what);
            self.stop |= self.on(Check::OutOfBounds);
            return None;
        };
        let (valid, offset, check) = match place {
            Place::Shared(at) => (&mut self.shared.valid, at, Check::UninitShared),
            Place::Local(at) => {
                if load && warp.local_valid[at..at + size].contains(&0) {
                    let what = format!("uninitialised local read at {}", address);
                    self.find(Check::UninitLocal, line, warp, lane, &what);
                }
                return Some(place);
            }
            Place::Global(index, at) => {
                let region = &mut *self.regions[index];
                region.shadow.prepare(region.data.len(), ty.size());
                if region.constant && !load && self.options.checks.has(Check::ConstantWrite) {
                    self.find(
                        Check::ConstantWrite,
                        line,
                        warp,
                        lane,
                        "a write of constant memory",
                    );
                    self.stop = true;
                    return None;
                }
                (&mut self.regions[index].valid, at, Check::UninitGlobal)
            }
        };
        if load && valid[offset..offset + size].contains(&0) {
            let name = if check == Check::UninitShared {
                "shared"
            } else {
                "global"
            };
            let what = format!("uninitialised {name} read at offset {offset}");
            self.find(check, line, warp, lane, &what);
        }
        if let Place::Shared(_) = place {
            self.shared
                .shadow
                .prepare(self.shared.data.len(), ty.size());
        }
        Some(place)
    }

    fn in_shared(&self, address: u64, size: usize) -> Option<Place> {
        let offset = usize::try_from(address).ok()?;
        let valid = self.shared.valid.get(offset..offset.checked_add(size)?)?;
        (!valid.contains(&INVALID_ZONE)).then_some(Place::Shared(offset))
    }

    #[cold]
    fn outside(&self, space: Space, verb: &str, address: u64, size: usize) -> String {
        let zones = |name: &str, list: &[(usize, usize)]| {
            let near = list
                .iter()
                .rev()
                .find(|(at, _)| *at as u64 <= address)
                .or(list.first());
            let near = near.map_or(String::new(), |(at, n)| {
                format!(
                    "; nearest array has {n} bytes, offset {}",
                    address.wrapping_sub(*at as u64) as i64
                )
            });
            format!("out-of-bounds {name} {verb} of {size} bytes at {address}{near}")
        };
        match space {
            Space::Shared => {
                let mut list = self.kernel.shared.clone();
                if self.kernel.uses_dynamic {
                    list.push((self.kernel.dynamic_at, self.launch.dyn_shared));
                }
                zones("shared", &list)
            }
            Space::Local => zones("local", &self.kernel.local),
            _ => {
                let index = self.regions.partition_point(|a| a.base <= address);
                let near = index.checked_sub(1).map_or(String::new(), |i| {
                    let alloc = &self.regions[i];
                    let offset = address - alloc.base;
                    format!(
                        "; nearest allocation 0x{:x} has {} bytes, offset {offset}",
                        alloc.base,
                        alloc.data.len()
                    )
                });
                format!("out-of-bounds global {verb} of {size} bytes at 0x{address:x}{near}")
            }
        }
    }

    /// Checks the order of an access against all others of its bytes.
    #[inline]
    fn order(
        &mut self,
        warp: &Warp,
        lane: usize,
        place: Place,
        size: usize,
        kind: Access,
        line: u32,
    ) {
        let (first_run, block_time) = (self.first_run, self.block_time);
        let (conflict, shared, offset) = match place {
            Place::Local(_) => return,
            Place::Shared(at) => {
                let observer =
                    warp.observer(lane, u64::from(first_run) << 32, first_run, block_time);
                (
                    self.shared.shadow.access(at, size, kind, &observer),
                    true,
                    at,
                )
            }
            Place::Global(index, at) => {
                let region = &self.regions[index];
                let (base, size_of_all) = (region.base, region.data.len());
                let wrote = matches!(kind, Access::Write | Access::Atomic);
                let touched = &mut self.report.touched;
                touched.note(base, size_of_all, at, size, wrote);
                let observer = warp.observer(lane, self.first_record, first_run, block_time);
                (
                    self.regions[index].shadow.access(at, size, kind, &observer),
                    false,
                    at,
                )
            }
        };
        if let Some(conflict) = conflict {
            self.race(conflict, shared, warp, lane, line, offset);
        }
    }

    #[inline]
    fn bytes<'b>(&'b self, warp: &'b Warp, place: Place) -> &'b [u8] {
        match place {
            Place::Shared(at) => &self.shared.data[at..],
            Place::Global(index, at) => &self.regions[index].data[at..],
            Place::Local(at) => &warp.local[at..],
        }
    }

    #[inline]
    fn put(&mut self, warp: &mut Warp, place: Place, bytes: &[u8]) {
        let (data, valid, at) = match place {
            Place::Shared(at) => (&mut self.shared.data, &mut self.shared.valid, at),
            Place::Global(index, at) => {
                let region = &mut *self.regions[index];
                (&mut region.data, &mut region.valid, at)
            }
            Place::Local(at) => (&mut warp.local, &mut warp.local_valid, at),
        };
        data[at..at + bytes.len()].copy_from_slice(bytes);
        valid[at..at + bytes.len()].fill(1);
    }

    fn atomic(&mut self, warp: &mut Warp, pc: usize, atomic: &Atomic, mask: u32, line: u32) {
        self.need(
            warp,
            mask,
            warp.regs.defined(atomic.base),
            line,
            "an address",
        );
        self.need(
            warp,
            mask,
            warp.regs.defined(atomic.value),
            line,
            "what is stored",
        );
        if let Some(swap) = atomic.swap {
            self.need(warp, mask, warp.regs.defined(swap), line, "what is stored");
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
                let found = self.locate(
                    warp,
                    pc,
                    (space, atomic.ty, true),
                    lane,
                    addresses[lane],
                    size,
                    line,
                );
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
                            line,
                            warp,
                            lane,
                            "a write of constant memory",
                        );
                    }
                }
                self.order(warp, lane, place, size, Access::Atomic, line);
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

#[inline(always)]
fn set_elements(warp: &mut Warp, t: &Transfer, lane: usize, bytes: &[u8]) {
    for (reg, element) in t.regs.iter().zip(bytes.chunks_exact(t.ty.size())) {
        if let Some(reg) = reg {
            let value = convert::extend(read_bytes(element, t.ty.size()), t.ty);
            warp.regs.set(*reg, lane, value);
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
