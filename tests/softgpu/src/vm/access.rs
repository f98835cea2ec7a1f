//! Loads and stores.

use super::place::{Place, read_bytes};
use super::shadow::{Access, Shadow};
use super::warp::{Lanes64, Registers, Warp, lanes};
use super::{At, Check, INVALID_ZONE, Machine, convert};
use crate::ptx::inst::{Class, Op, Reg, Space, Transfer, Ty};

/// The most bytes that one lane transfers at once.
const LARGEST: usize = 64;

impl Transfer {
    /// Bytes per lane.
    fn size(&self) -> usize {
        self.ty.size() * self.count as usize
    }

    fn access(&self, load: bool) -> Access {
        match (load, self.read_only) {
            (false, _) => Access::Write,
            (true, true) => Access::ReadOnly,
            (true, false) => Access::Read,
        }
    }
}

impl Machine<'_> {
    /// Executes a load, store or atomic update; false if `op` is another instruction.
    pub(super) fn memory(&mut self, warp: &mut Warp, at: At, op: &Op, mask: u32) -> bool {
        match op {
            Op::LdParam {
                ty,
                count,
                regs,
                offset,
            } => {
                let offsets = [u64::from(*offset); 32];
                self.load_param(warp, at, *ty, &regs[..*count as usize], &offsets, mask);
            }
            Op::LdParamAt {
                ty,
                count,
                regs,
                base,
                offset,
            } => {
                self.need(warp, mask, warp.regs.defined(*base), at.line, "an address");
                let offsets = self.addresses(warp, *base, *offset);
                self.load_param(warp, at, *ty, &regs[..*count as usize], &offsets, mask);
            }
            Op::Ld(transfer) => self.transfer(warp, at, transfer, mask, true),
            Op::St(transfer) => {
                for reg in transfer.regs.iter().flatten() {
                    self.need(
                        warp,
                        mask,
                        warp.regs.defined(*reg),
                        at.line,
                        "what is stored",
                    );
                }
                self.transfer(warp, at, transfer, mask, false);
            }
            Op::Atom(atomic) => self.atomic(warp, at, atomic, mask),
            Op::CopyLocal { to, from, bytes } => {
                let stride = self.kernel.local_bytes;
                for lane in lanes(mask) {
                    let base = lane * stride;
                    let source = base + *from as usize..base + (*from + *bytes) as usize;
                    warp.local.copy_within(source.clone(), base + *to as usize);
                    warp.local_valid.copy_within(source, base + *to as usize);
                }
            }
            _ => return false,
        }
        true
    }

    fn load_param(
        &mut self,
        warp: &mut Warp,
        at: At,
        ty: Ty,
        regs: &[Option<Reg>],
        offsets: &[u64; 32],
        mask: u32,
    ) {
        for (index, reg) in regs.iter().enumerate() {
            let Some(reg) = reg else { continue };
            let mut values = [0; 32];
            for lane in lanes(mask) {
                let start = (offsets[lane] as usize).saturating_add(index * ty.size());
                let end = start.saturating_add(ty.size());
                let Some(bytes) = self.launch.params.get(start..end) else {
                    let what = "a read outside the kernel's parameters";
                    self.find(Check::OutOfBounds, at.line, warp, lane, what);
                    self.stop |= self.on(Check::OutOfBounds);
                    return;
                };
                values[lane] = convert::extend(read_bytes(bytes, ty.size()), ty);
            }
            if reg.class == Class::B64 {
                warp.regs.write64(reg.slot, mask, &values, u32::MAX);
            } else {
                let bits = if reg.class == Class::B16 {
                    0xffff
                } else {
                    u32::MAX
                };
                let narrow = values.map(|value| value as u32 & bits);
                warp.regs.write32(reg.slot, mask, &narrow, u32::MAX);
            }
        }
    }

    #[inline]
    fn transfer(&mut self, warp: &mut Warp, at: At, t: &Transfer, mask: u32, load: bool) {
        self.need(warp, mask, warp.regs.defined(t.base), at.line, "an address");
        let mut addresses = self.addresses(warp, t.base, t.offset);
        let size = t.size();
        for (space, mask) in self.resolve(t.space, mask, &mut addresses) {
            if mask == 0 {
                continue;
            }
            warp.touched = true;
            if space == Space::Global {
                self.count_traffic(mask, size, load);
            }
            let side_by_side =
                |i: usize| addresses[i] == addresses[0].wrapping_add((i * size) as u64);
            let row = mask == u32::MAX && (1..32).all(side_by_side);
            if row && self.row(warp, at, t, space, addresses[0], load) {
                continue;
            }
            self.scattered(warp, at, t, (space, mask), &addresses, load);
        }
        if load {
            for reg in t.regs.iter().flatten() {
                warp.regs.define(*reg, mask, u32::MAX);
            }
        }
    }

    fn count_traffic(&mut self, mask: u32, size: usize, load: bool) {
        let lanes = u64::from(mask.count_ones());
        let bytes = lanes * size as u64;
        if load {
            self.report.loads += lanes;
            self.report.bytes_read += bytes;
        } else {
            self.report.stores += lanes;
            self.report.bytes_written += bytes;
        }
    }

    /// 32 elements side by side in one allocation. False, with nothing done, if anything is wrong
    /// with them besides a race.
    #[inline]
    fn row(
        &mut self,
        warp: &mut Warp,
        at: At,
        t: &Transfer,
        space: Space,
        address: u64,
        load: bool,
    ) -> bool {
        let size = t.size();
        if !address.is_multiple_of(size as u64) || size > 16 {
            return false;
        }
        let shared = space == Space::Shared;
        let Some(place) = self.find_row(at, space, address, 32 * size) else {
            return false;
        };
        let (first, offset) = match place {
            Place::Shared(offset) => (u64::from(self.first_run) << 32, offset),
            Place::Global(_, offset) => (self.first_record, offset),
            Place::Local(_) => return false,
        };
        let (data, valid, shadow) = match place {
            Place::Global(index, _) => {
                let region = &mut *self.regions[index];
                if region.constant && !load {
                    return false;
                }
                (&mut region.data, &mut region.valid, &mut region.shadow)
            }
            _ => (
                &mut self.shared.data,
                &mut self.shared.valid,
                &mut self.shared.shadow,
            ),
        };
        shadow.prepare(data.len(), t.ty.size());
        let bytes = offset..offset + 32 * size;
        let access = t.access(load);
        let left = if load {
            if valid[bytes.clone()].iter().any(|v| *v != 1) {
                return false;
            }
            load_row(&mut warp.regs, t, &data[bytes]);
            shadow.read_row(offset, size, &warp.me, first, Shadow::flags(access))
        } else {
            if shared && valid[bytes.clone()].contains(&INVALID_ZONE) {
                return false;
            }
            valid[bytes.clone()].fill(1);
            store_row(&warp.regs, t, &mut data[bytes]);
            shadow.write_row(offset, size, &warp.me, first)
        };
        if let Place::Global(index, _) = place {
            self.touch(index, offset, 32 * size, access);
        }
        for lane in lanes(left) {
            self.order(warp, lane, place.plus(lane * size), size, access, at.line);
        }
        true
    }

    fn find_row(&mut self, at: At, space: Space, address: u64, bytes: usize) -> Option<Place> {
        match space {
            Space::Shared => {
                let end = address.checked_add(bytes as u64)?;
                let inside = end <= self.shared.data.len() as u64;
                inside.then_some(Place::Shared(address as usize))
            }
            Space::Global => self
                .region(at.pc, address, bytes)
                .map(|(index, offset)| Place::Global(index, offset)),
            _ => None,
        }
    }

    fn scattered(
        &mut self,
        warp: &mut Warp,
        at: At,
        t: &Transfer,
        (space, mask): (Space, u32),
        addresses: &Lanes64,
        load: bool,
    ) {
        let size = t.size();
        let access = t.access(load);
        let first = mask.trailing_zeros() as usize;
        let mut buffer = [0; LARGEST];
        let bytes = &mut buffer[..size];
        let same = |lane: usize| addresses[lane] == addresses[first];
        if load && space != Space::Local && lanes(mask).all(same) {
            // One address for all lanes: what holds for two of them holds for all, unless some
            // lanes know more of the others than the rest.
            let enough = if warp.all_know_the_same() { 2 } else { 32 };
            let found = self.locate(warp, at, (space, t.ty, load), first, addresses[first], size);
            let Some(place) = found else { return };
            for lane in lanes(mask).take(enough) {
                self.order(warp, lane, place, size, access, at.line);
            }
            bytes.copy_from_slice(&self.bytes(warp, place)[..size]);
            for lane in lanes(mask) {
                set_elements(&mut warp.regs, t, lane, bytes);
            }
            return;
        }
        for lane in lanes(mask) {
            let found = self.locate(warp, at, (space, t.ty, load), lane, addresses[lane], size);
            let Some(place) = found else {
                if self.stop {
                    return;
                }
                continue;
            };
            self.order(warp, lane, place, size, access, at.line);
            if load {
                bytes.copy_from_slice(&self.bytes(warp, place)[..size]);
                set_elements(&mut warp.regs, t, lane, bytes);
            } else {
                get_elements(&warp.regs, t, lane, bytes);
                self.put(warp, place, bytes);
            }
        }
    }
}

/// Loads one row of all lanes; the commonest shapes in loops that become vector code.
#[inline]
fn load_row(regs: &mut Registers, t: &Transfer, data: &[u8]) {
    let narrow = |r: &Reg| r.class == Class::B32;
    match (t.ty.size(), t.count, t.regs[0]) {
        (4, 1, Some(reg)) if narrow(&reg) => {
            let target = &mut regs.r32[reg.slot as usize];
            for (value, bytes) in target.iter_mut().zip(data.as_chunks::<4>().0) {
                *value = u32::from_le_bytes(*bytes);
            }
        }
        (8, 1, Some(reg)) => {
            let target = &mut regs.r64[reg.slot as usize];
            for (value, bytes) in target.iter_mut().zip(data.as_chunks::<8>().0) {
                *value = u64::from_le_bytes(*bytes);
            }
        }
        (4, 4, _) if t.regs.iter().flatten().all(narrow) => {
            for (lane, bytes) in data.as_chunks::<16>().0.iter().enumerate() {
                for (reg, element) in t.regs.iter().zip(bytes.as_chunks::<4>().0) {
                    if let Some(reg) = reg {
                        regs.r32[reg.slot as usize][lane] = u32::from_le_bytes(*element);
                    }
                }
            }
        }
        _ => {
            for (lane, bytes) in data.chunks_exact(t.size()).enumerate() {
                set_elements(regs, t, lane, bytes);
            }
        }
    }
}

/// Stores one row of all lanes.
#[inline]
fn store_row(regs: &Registers, t: &Transfer, data: &mut [u8]) {
    match (t.ty.size(), t.count, t.regs[0]) {
        (4, 1, Some(reg)) if reg.class == Class::B32 => {
            let values = &regs.r32[reg.slot as usize];
            for (value, bytes) in values.iter().zip(data.as_chunks_mut::<4>().0) {
                *bytes = value.to_le_bytes();
            }
        }
        (4, 4, _) if t.regs.iter().flatten().all(|r| r.class == Class::B32) => {
            for (lane, bytes) in data.as_chunks_mut::<16>().0.iter_mut().enumerate() {
                for (reg, element) in t.regs.iter().zip(bytes.as_chunks_mut::<4>().0) {
                    *element = reg
                        .map_or(0, |r| regs.r32[r.slot as usize][lane])
                        .to_le_bytes();
                }
            }
        }
        _ => {
            for (lane, bytes) in data.chunks_exact_mut(t.size()).enumerate() {
                get_elements(regs, t, lane, bytes);
            }
        }
    }
}

/// Puts what one lane loaded into its registers.
#[inline(always)]
fn set_elements(regs: &mut Registers, t: &Transfer, lane: usize, bytes: &[u8]) {
    for (reg, element) in t.regs.iter().zip(bytes.chunks_exact(t.ty.size())) {
        if let Some(reg) = reg {
            let value = convert::extend(read_bytes(element, t.ty.size()), t.ty);
            regs.set(*reg, lane, value);
        }
    }
}

/// What one lane stores.
#[inline(always)]
fn get_elements(regs: &Registers, t: &Transfer, lane: usize, bytes: &mut [u8]) {
    for (reg, element) in t.regs.iter().zip(bytes.chunks_exact_mut(t.ty.size())) {
        let value = reg.map_or(0, |r| regs.get(r, lane));
        element.copy_from_slice(&value.to_le_bytes()[..t.ty.size()]);
    }
}
