//! Device memory: allocations with red zones, and for every byte whether something wrote it.

use super::shadow::Shadow;
use crate::ptx::Module;
use std::collections::{BTreeMap, HashMap};

/// Where device addresses begin. No process maps memory there, so that a host that follows one faults.
const FIRST_ADDRESS: u64 = 0x0700_0000_0000;
/// Windows of the generic address space for shared and local memory.
pub(super) const SHARED_WINDOW: u64 = 0x0500_0000_0000;
pub(super) const LOCAL_WINDOW: u64 = 0x0600_0000_0000;
/// Addresses from a window's base that belong to it.
pub(super) const WINDOW_BYTES: u64 = 1 << 32;
/// Devices align allocations so.
const ALIGNMENT: u64 = 512;

/// An allocation.
#[derive(Debug)]
pub struct Alloc {
    /// Its device address.
    pub base: u64,
    /// Its bytes.
    pub data: Vec<u8>,
    /// For each byte 1 where something wrote it, 0 where not.
    pub valid: Vec<u8>,
    /// Whether kernels must not write it.
    pub(super) constant: bool,
    pub(super) shadow: Shadow,
}

/// The memory of the device.
#[derive(Default, Debug)]
pub struct Mem {
    /// Allocations by address.
    pub allocs: BTreeMap<u64, Alloc>,
    next: u64,
    /// Bytes allocated now.
    pub live: usize,
    /// The most bytes that were allocated at once.
    pub peak: usize,
    /// Addresses of the variables of modules.
    modules: HashMap<u64, Vec<u64>>,
    /// Runs of blocks so far, which number the records of races.
    pub(super) runs: u32,
}

impl Mem {
    /// Allocates `n` bytes, all uninitialised, and returns their address. At least 512 bytes to the next
    /// allocation belong to none.
    pub fn alloc(&mut self, n: usize) -> u64 {
        self.next = self.next.max(FIRST_ADDRESS);
        let base = self.next;
        self.next += ((n as u64).div_ceil(ALIGNMENT) + 2) * ALIGNMENT;
        let alloc = Alloc {
            base,
            data: vec![0xCD; n],
            valid: vec![0; n],
            constant: false,
            shadow: Shadow::default(),
        };
        self.allocs.insert(base, alloc);
        self.live += n;
        self.peak = self.peak.max(self.live);
        base
    }

    /// Frees the allocation at `p`; whether there was one.
    pub fn free(&mut self, p: u64) -> bool {
        match self.allocs.remove(&p) {
            Some(alloc) => {
                self.live -= alloc.data.len();
                true
            }
            None => false,
        }
    }

    /// The allocation that holds all of `n` bytes at `p`, and the offset in it.
    pub fn find(&mut self, p: u64, n: usize) -> Option<(&mut Alloc, usize)> {
        let (_, alloc) = self.allocs.range_mut(..=p).next_back()?;
        let offset = (p - alloc.base) as usize;
        if offset.checked_add(n)? <= alloc.data.len() {
            Some((alloc, offset))
        } else {
            None
        }
    }

    /// The addresses of a module's variables, which the first call allocates.
    pub(super) fn variables(&mut self, module: &Module) -> Vec<u64> {
        if let Some(addresses) = self.modules.get(&module.id) {
            return addresses.clone();
        }
        let live = self.live;
        let addresses: Vec<u64> = module
            .variables
            .iter()
            .map(|v| self.alloc(v.bytes.len()))
            .collect();
        // They are part of the program, not of what it allocates.
        self.live = live;
        for (variable, base) in module.variables.iter().zip(&addresses) {
            if let Some(alloc) = self.allocs.get_mut(base) {
                alloc.data.copy_from_slice(&variable.bytes);
                alloc.valid.fill(1);
                alloc.constant = variable.constant;
                for (at, target) in &variable.addresses {
                    alloc.data[*at..at + 8].copy_from_slice(&addresses[*target].to_le_bytes());
                }
            }
        }
        self.modules.insert(module.id, addresses.clone());
        addresses
    }

    /// Numbers for `n` runs of blocks; starts over, with all records forgotten, before they run out.
    pub(super) fn reserve_runs(&mut self, n: u64) {
        if u64::from(self.runs) + n >= u64::from(u32::MAX) / 2 {
            self.runs = 0;
            for alloc in self.allocs.values_mut() {
                alloc.shadow.clear();
            }
        }
    }
}
