//! Where addresses lead: bounds, alignment, initialisation and order of accesses.

use super::memory::{LOCAL_WINDOW, SHARED_WINDOW, WINDOW_BYTES};
use super::shadow::{Access, Shadow};
use super::warp::{Lanes64, Warp, lanes};
use super::{At, Check, INVALID_ZONE, Machine};
use crate::ptx::Kernel;
use crate::ptx::inst::{Class, Reg, Space, Ty};

/// The shared memory of a block.
pub(super) struct Shared {
    pub(super) data: Vec<u8>,
    pub(super) valid: Vec<u8>,
    pub(super) shadow: Shadow,
    pub(super) template: Vec<u8>,
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
pub(super) enum Place {
    Shared(usize),
    /// Index among the allocations, and offset.
    Global(usize, usize),
    /// Offset in the local memory of the warp.
    Local(usize),
    /// Offset in the kernel's parameters.
    Param(usize),
}

impl Place {
    /// The place `bytes` further on.
    pub(super) fn plus(self, bytes: usize) -> Place {
        match self {
            Place::Shared(at) => Place::Shared(at + bytes),
            Place::Global(index, at) => Place::Global(index, at + bytes),
            Place::Local(at) => Place::Local(at + bytes),
            Place::Param(at) => Place::Param(at + bytes),
        }
    }
}

/// The number that the first `size` bytes make.
#[inline(always)]
pub(super) fn read_bytes(data: &[u8], size: usize) -> u64 {
    let mut bytes = [0; 8];
    bytes[..size].copy_from_slice(&data[..size]);
    u64::from_le_bytes(bytes)
}

impl Machine<'_> {
    #[inline(always)]
    pub(super) fn addresses(&self, warp: &Warp, base: Reg, offset: i64) -> Lanes64 {
        if base.class == Class::B64 {
            let base = &warp.regs.r64[base.slot as usize];
            std::array::from_fn(|i| base[i].wrapping_add_signed(offset))
        } else {
            let base = &warp.regs.r32[base.slot as usize];
            std::array::from_fn(|i| u64::from(base[i]).wrapping_add_signed(offset))
        }
    }

    /// Splits generic addresses by space: masks of lanes, with addresses within their space.
    pub(super) fn resolve(
        &self,
        space: Space,
        mask: u32,
        addresses: &mut Lanes64,
    ) -> [(Space, u32); 3] {
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
    pub(super) fn region(
        &mut self,
        pc: usize,
        address: u64,
        size: usize,
    ) -> Option<(usize, usize)> {
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

    /// Finds and checks what one lane accesses. `None` if there is nothing; that ends the launch, if it is
    /// looked for.
    pub(super) fn locate(
        &mut self,
        warp: &Warp,
        at: At,
        (space, ty, load): (Space, Ty, bool),
        lane: usize,
        address: u64,
        size: usize,
    ) -> Option<Place> {
        let verb = if load { "read" } else { "write" };
        if !address.is_multiple_of(size as u64) && self.on(Check::Misaligned) {
            let what = format!("misaligned {verb} of {size} bytes at 0x{address:x}");
            self.find(Check::Misaligned, at.line, warp, lane, &what);
            self.stop = true;
            return None;
        }
        let place = match space {
            Space::Shared => self.in_shared(address, size),
            Space::Param => {
                let end = (address as usize).checked_add(size);
                let inside = load && end.is_some_and(|end| end <= self.launch.params.len());
                inside.then_some(Place::Param(address as usize))
            }
            Space::Local => {
                let stride = self.kernel.local_bytes;
                let offset = address as usize;
                let inside = offset.checked_add(size).is_some_and(|end| end <= stride)
                    && !warp.local_valid[lane * stride + offset..][..size].contains(&INVALID_ZONE);
                inside.then(|| Place::Local(lane * stride + offset))
            }
            _ => self
                .region(at.pc, address, size)
                .map(|(index, offset)| Place::Global(index, offset)),
        };
        let Some(place) = place else {
            let what = self.outside(space, verb, address, size);
            self.find(Check::OutOfBounds, at.line, warp, lane, &what);
            self.stop |= self.on(Check::OutOfBounds);
            return None;
        };
        let (shared, offset) = match place {
            Place::Shared(offset) => {
                self.shared
                    .shadow
                    .prepare(self.shared.data.len(), ty.size());
                (true, offset)
            }
            Place::Param(_) => return Some(place),
            Place::Local(offset) => {
                if load && warp.local_valid[offset..offset + size].contains(&0) {
                    let what = format!("uninitialised local read at {address}");
                    self.find(Check::UninitLocal, at.line, warp, lane, &what);
                }
                return Some(place);
            }
            Place::Global(index, offset) => {
                let region = &mut *self.regions[index];
                region.shadow.prepare(region.data.len(), ty.size());
                if region.constant && !load && self.on(Check::ConstantWrite) {
                    let what = "a write of constant memory";
                    self.find(Check::ConstantWrite, at.line, warp, lane, what);
                    self.stop = true;
                    return None;
                }
                (false, offset)
            }
        };
        if load && self.valid(place)[..size].contains(&0) {
            let (check, name) = if shared {
                (Check::UninitShared, "shared")
            } else {
                (Check::UninitGlobal, "global")
            };
            let what = format!("uninitialised {name} read at offset {offset}");
            self.find(check, at.line, warp, lane, &what);
        }
        Some(place)
    }

    fn valid(&self, place: Place) -> &[u8] {
        match place {
            Place::Shared(offset) => &self.shared.valid[offset..],
            Place::Global(index, offset) => &self.regions[index].valid[offset..],
            Place::Local(_) | Place::Param(_) => &[],
        }
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
            Space::Param => {
                let bytes = self.launch.params.len();
                format!(
                    "out-of-bounds {verb} of {size} bytes at {address} of {bytes} of parameters"
                )
            }
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

    /// Notes an access to an allocation.
    #[inline]
    pub(super) fn touch(&mut self, index: usize, at: usize, bytes: usize, kind: Access) {
        let region = &self.regions[index];
        let wrote = matches!(kind, Access::Write | Access::Atomic);
        let touched = &mut self.report.touched;
        touched.note(region.base, region.data.len(), at, bytes, wrote);
    }

    /// Checks the order of an access against all others of its bytes.
    #[inline]
    pub(super) fn order(
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
            Place::Local(_) | Place::Param(_) => return,
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
                self.touch(index, at, size, kind);
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
    pub(super) fn bytes<'b>(&'b self, warp: &'b Warp, place: Place) -> &'b [u8] {
        match place {
            Place::Shared(at) => &self.shared.data[at..],
            Place::Global(index, at) => &self.regions[index].data[at..],
            Place::Local(at) => &warp.local[at..],
            Place::Param(at) => &self.launch.params[at..],
        }
    }

    #[inline]
    pub(super) fn put(&mut self, warp: &mut Warp, place: Place, bytes: &[u8]) {
        let (data, valid, at) = match place {
            Place::Shared(at) => (&mut self.shared.data, &mut self.shared.valid, at),
            Place::Global(index, at) => {
                let region = &mut *self.regions[index];
                (&mut region.data, &mut region.valid, at)
            }
            Place::Local(at) => (&mut warp.local, &mut warp.local_valid, at),
            // Nothing stores there: finding the place refuses it.
            Place::Param(_) => return,
        };
        data[at..at + bytes.len()].copy_from_slice(bytes);
        valid[at..at + bytes.len()].fill(1);
    }
}
