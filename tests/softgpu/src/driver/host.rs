//! Pinned host memory, and copies between it and the device that the host has not waited for.
//!
//! A copy to the host that is under way has filled its destination with [`POISON`]: the data comes when the
//! host has waited for it, and not before. A copy to the device has read its source already, but remembers
//! what it read: until the host has waited, the source has to stay as it is.

use super::Driver;
use super::clock::{Clock, Moment};
use super::codes::{Code, Outcome};
use super::races::{History, Op};
use std::alloc::{Layout, alloc, dealloc};
use std::collections::BTreeMap;
use std::sync::Arc;

/// NaN as a number, -1 as an integer.
pub(crate) const POISON: u8 = 0xff;
const PAGE: usize = 4096;

/// The pinned blocks, by address.
#[derive(Debug, Default)]
pub(crate) struct HostMemory {
    blocks: BTreeMap<u64, Pinned>,
    flights: Vec<Flight>,
}

#[derive(Debug)]
struct Pinned {
    len: usize,
    /// How it was allocated; none if it is the program's own, registered.
    layout: Option<Layout>,
    history: History,
}

/// A copy that the host has not waited for.
#[derive(Debug)]
struct Flight {
    moment: Moment,
    what: Arc<str>,
    at: u64,
    bytes: Vec<u8>,
    to: Direction,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Direction {
    /// `bytes` are what it read.
    Device,
    /// `bytes` will arrive; the flag says whether the destination is all poison until then.
    Host { poisoned: bool },
}

/// What is in host memory.
pub(crate) fn read(at: u64, len: usize) -> Vec<u8> {
    if len == 0 {
        return Vec::new();
    }
    // SAFETY: a caller of the driver's copy functions promises that the range is readable; ranges of pinned
    // blocks were found in the table of live ones.
    unsafe { std::slice::from_raw_parts(at as *const u8, len) }.to_vec()
}

/// Writes to host memory.
pub(crate) fn write(at: u64, bytes: &[u8]) {
    if !bytes.is_empty() {
        // SAFETY: as for `read`, with a range that the caller promises is writable and that no reference of
        // this library reaches.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), at as *mut u8, bytes.len()) };
    }
}

impl Flight {
    fn overlaps(&self, at: u64, len: usize) -> bool {
        self.at < at + len as u64 && at < self.at + self.bytes.len() as u64
    }
}

impl HostMemory {
    pub(crate) fn len(&self) -> usize {
        self.blocks.len()
    }

    /// Whether a block begins there.
    pub(crate) fn has(&self, base: u64) -> bool {
        self.blocks.contains_key(&base)
    }

    /// The block that the whole range is in.
    pub(crate) fn block_of(&self, at: u64, len: usize) -> Option<u64> {
        let (&base, block) = self.blocks.range(..=at).next_back()?;
        (at.saturating_add(len as u64) <= base + block.len as u64).then_some(base)
    }

    pub(crate) fn is_pinned(&self, at: u64, len: usize) -> bool {
        self.block_of(at, len).is_some()
    }

    pub(crate) fn histories(&mut self) -> impl Iterator<Item = &mut History> {
        self.blocks.values_mut().map(|block| &mut block.history)
    }

    pub(crate) fn history(&mut self, base: u64) -> Option<&mut History> {
        self.blocks.get_mut(&base).map(|block| &mut block.history)
    }

    /// What a range will hold when the copies to it have arrived.
    fn view(&self, at: u64, len: usize) -> Vec<u8> {
        let mut bytes = read(at, len);
        for flight in self
            .flights
            .iter()
            .filter(|flight| flight.overlaps(at, len))
        {
            if matches!(flight.to, Direction::Host { .. }) {
                let start = flight.at.max(at);
                let end = (flight.at + flight.bytes.len() as u64).min(at + len as u64);
                let (from, to) = ((start - flight.at) as usize, (start - at) as usize);
                let count = (end - start) as usize;
                bytes[to..to + count].copy_from_slice(&flight.bytes[from..from + count]);
            }
        }
        bytes
    }

    /// Says what is wrong with a copy to the device whose source is not what it was.
    fn changed(&self, flight: &Flight) -> Option<String> {
        let now = self.view(flight.at, flight.bytes.len());
        let at = now
            .iter()
            .zip(&flight.bytes)
            .position(|(now, then)| now != then)?;
        Some(format!(
            "host memory changed while {} from it was in flight (byte {at} of {}): its source may be written \
             only after the host has waited for the copy",
            flight.what,
            flight.bytes.len()
        ))
    }

    /// Frees all that was allocated here.
    pub(crate) fn clear(&mut self) {
        self.flights.clear();
        for (base, block) in std::mem::take(&mut self.blocks) {
            release(base, &block);
        }
    }
}

fn release(base: u64, block: &Pinned) {
    if let Some(layout) = block.layout {
        // SAFETY: the block was allocated with this layout, and has just left the table of live ones.
        unsafe { dealloc(base as *mut u8, layout) };
    }
}

impl Driver {
    /// Page-locked memory.
    pub(super) fn pin(&mut self, len: usize) -> Outcome<u64> {
        self.unsafe_in_capture("allocates pinned host memory")?;
        self.faults.allocation()?;
        let layout = Layout::from_size_align(len, PAGE).map_err(|_| Code::INVALID_VALUE)?;
        if len == 0 {
            return Err(Code::INVALID_VALUE);
        }
        // SAFETY: the layout's size is not zero.
        let at = unsafe { alloc(layout) } as u64;
        if at == 0 {
            return Err(Code::OUT_OF_MEMORY);
        }
        write(at, &vec![POISON; len]);
        self.host.blocks.insert(
            at,
            Pinned {
                len,
                layout: Some(layout),
                history: History::default(),
            },
        );
        Ok(at)
    }

    /// `cuMemFreeHost`.
    pub(super) fn unpin(&mut self, at: u64) -> Outcome<()> {
        self.unsafe_in_capture("frees pinned host memory")?;
        if self
            .host
            .blocks
            .get(&at)
            .is_none_or(|block| block.layout.is_none())
        {
            self.report(format!("{at:#x} is not the start of a live pinned block"));
            return Err(Code::INVALID_VALUE);
        }
        self.drop_pinned(at, "freed");
        Ok(())
    }

    /// `cuMemHostRegister`: memory of the program becomes pinned.
    pub(super) fn register(&mut self, at: u64, len: usize) -> Outcome<()> {
        self.unsafe_in_capture("registers host memory")?;
        if at == 0 || len == 0 {
            return Err(Code::INVALID_VALUE);
        }
        let end = at.saturating_add(len as u64);
        if self
            .host
            .blocks
            .iter()
            .any(|(&base, block)| base < end && at < base + block.len as u64)
        {
            self.report("the host memory is pinned already".to_string());
            return Err(Code::HOST_MEMORY_ALREADY_REGISTERED);
        }
        self.host.blocks.insert(
            at,
            Pinned {
                len,
                layout: None,
                history: History::default(),
            },
        );
        Ok(())
    }

    /// `cuMemHostUnregister`.
    pub(super) fn unregister(&mut self, at: u64) -> Outcome<()> {
        self.unsafe_in_capture("unregisters host memory")?;
        if self
            .host
            .blocks
            .get(&at)
            .is_none_or(|block| block.layout.is_some())
        {
            self.report(format!(
                "{at:#x} is not the start of registered host memory"
            ));
            return Err(Code::HOST_MEMORY_NOT_REGISTERED);
        }
        self.drop_pinned(at, "unregistered");
        Ok(())
    }

    fn drop_pinned(&mut self, at: u64, how: &str) {
        let Some(block) = self.host.blocks.remove(&at) else {
            return;
        };
        if let Some(what) = self.in_use(&block.history) {
            self.report(format!(
                "pinned host memory is {how} while {what} may still use it"
            ));
        }
        self.host
            .flights
            .retain(|flight| !flight.overlaps(at, block.len));
        release(at, &block);
    }

    /// What a copy to the device reads; remembered if the source is pinned and the copy may be under way.
    pub(super) fn depart(&mut self, at: u64, len: usize, op: &Op) -> Vec<u8> {
        let bytes = self.host.view(at, len);
        if self.host.is_pinned(at, len) {
            let (moment, what) = (op.moment, op.what.clone());
            self.host.flights.push(Flight {
                moment,
                what,
                at,
                bytes: bytes.clone(),
                to: Direction::Device,
            });
        }
        bytes
    }

    /// A copy to pinned host memory is under way.
    pub(super) fn arrive_later(&mut self, at: u64, bytes: Vec<u8>, op: &Op) {
        // Copies from there that are ordered before this one end here, at the latest.
        let (ended, others): (Vec<_>, Vec<_>) = std::mem::take(&mut self.host.flights)
            .into_iter()
            .partition(|flight| flight.to == Direction::Device && flight.overlaps(at, bytes.len()));
        self.host.flights = others;
        let faults: Vec<String> = ended
            .iter()
            .filter_map(|flight| self.host.changed(flight))
            .collect();
        faults.into_iter().for_each(|fault| self.report(fault));
        write(at, &vec![POISON; bytes.len()]);
        let (moment, what) = (op.moment, op.what.clone());
        let to = Direction::Host { poisoned: true };
        self.host.flights.push(Flight {
            moment,
            what,
            at,
            bytes,
            to,
        });
    }

    /// Ends the copies that the host has waited for.
    pub(super) fn settle_copies(&mut self) {
        let clock: &Clock = &self.host_clock;
        let (over, mut open): (Vec<_>, Vec<_>) = std::mem::take(&mut self.host.flights)
            .into_iter()
            .partition(|flight| clock.covers(flight.moment));
        let mut faults = Vec::new();
        for flight in &over {
            let poisoned = flight.to == Direction::Host { poisoned: true };
            if poisoned
                && read(flight.at, flight.bytes.len())
                    .iter()
                    .any(|&byte| byte != POISON)
            {
                faults.push(format!(
                    "host memory was written while {} to it was in flight",
                    flight.what
                ));
            }
        }
        for flight in over
            .iter()
            .filter(|flight| matches!(flight.to, Direction::Host { .. }))
        {
            write(flight.at, &flight.bytes);
            for later in open
                .iter_mut()
                .filter(|later| later.overlaps(flight.at, flight.bytes.len()))
            {
                if let Direction::Host { poisoned } = &mut later.to {
                    *poisoned = false;
                }
            }
        }
        self.host.flights = open;
        let departed = over.iter().filter(|flight| flight.to == Direction::Device);
        faults.extend(departed.filter_map(|flight| self.host.changed(flight)));
        faults.into_iter().for_each(|fault| self.report(fault));
    }
}
