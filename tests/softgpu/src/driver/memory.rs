//! Device memory: blocks, what is known of each, and access to their bytes.

use super::Driver;
use super::codes::{Code, Outcome};
use super::races::{History, Op};
use super::work::Work;
use crate::touched::Touch;
use std::sync::Arc;

/// A live allocation.
#[derive(Debug, Default)]
pub(crate) struct Block {
    pub(crate) len: usize,
    pub(crate) history: History,
}

/// Whether an address is one that only the device can use.
pub(crate) fn is_device(at: u64) -> bool {
    (0x0700_0000_0000..0x0800_0000_0000).contains(&at)
}

impl Driver {
    /// Allocates; on a stream (`cuMemAllocAsync`) or for all of them (`cuMemAlloc`).
    pub(super) fn allocate(&mut self, len: usize, stream: Option<usize>) -> Outcome<u64> {
        let key = stream.map(|handle| self.stream_key(handle)).transpose()?;
        match key {
            Some(key) => self.not_captured(key, "allocates on a stream that is being captured")?,
            None => self.unsafe_in_capture("allocates device memory")?,
        }
        if len == 0 {
            self.report("an allocation of 0 bytes".to_string());
            return Err(Code::INVALID_VALUE);
        }
        self.faults.allocation()?;
        let used: usize = self.blocks.values().map(|block| block.len).sum();
        if len > self.settings.memory.saturating_sub(used) {
            return Err(Code::OUT_OF_MEMORY);
        }
        let base = self.memory.alloc(len);
        let mut block = Block {
            len,
            ..Block::default()
        };
        if let Some(key) = key {
            let op = self.next_op(key, "the allocation");
            block.history.born = Some((op.moment, op.what));
        }
        self.blocks.insert(base, block);
        Ok(base)
    }

    /// Frees; on a stream (`cuMemFreeAsync`) or at once (`cuMemFree`).
    pub(super) fn free(&mut self, base: u64, stream: Option<usize>) -> Outcome<()> {
        let key = stream.map(|handle| self.stream_key(handle)).transpose()?;
        match key {
            Some(key) => self.not_captured(key, "frees on a stream that is being captured")?,
            None => self.unsafe_in_capture("frees device memory")?,
        }
        if base == 0 && key.is_none() {
            return Ok(());
        }
        let Some(len) = self.blocks.get(&base).map(|block| block.len) else {
            let why = self.why_not_free(base);
            self.report(why);
            return Err(Code::INVALID_VALUE);
        };
        let by = match key {
            Some(key) => {
                let op = self.next_op(key, "the free");
                if self.faults.working() {
                    self.touch(&op, vec![Touch::write(base, base, len)]);
                }
                op.what.to_string()
            }
            None => {
                let running = self
                    .blocks
                    .get(&base)
                    .and_then(|block| self.in_use(&block.history));
                if let Some(what) = running {
                    self.report(format!(
                        "device memory is freed while {what} may still use it"
                    ));
                }
                "cuMemFree".to_string()
            }
        };
        self.memory.free(base);
        self.blocks.remove(&base);
        self.freed.insert(base, (len as u64, by));
        Ok(())
    }

    /// An operation that may still use a block.
    pub(super) fn in_use(&self, history: &History) -> Option<Arc<str>> {
        history
            .running(&self.host_clock)
            .filter(|_| self.faults.working())
    }

    fn why_not_free(&self, base: u64) -> String {
        if let Some((_, by)) = self.freed.get(&base) {
            return format!("double free: the block at {base:#x} was freed by {by}");
        }
        match self.block_at(base) {
            Some(start) => format!("free of {base:#x}, which is inside of the block at {start:#x}"),
            None => format!("free of {base:#x}, which was never allocated"),
        }
    }

    /// The live block that an address is in.
    pub(super) fn block_at(&self, at: u64) -> Option<u64> {
        let (&base, block) = self.blocks.range(..=at).next_back()?;
        (at < base + block.len as u64).then_some(base)
    }

    /// The block that a whole range is in; reported, with its role, if there is none.
    pub(super) fn range(&mut self, at: u64, len: usize, role: &str) -> Outcome<u64> {
        let base = self.block_at(at);
        if let Some(base) = base
            && at.saturating_add(len as u64) <= base + self.blocks[&base].len as u64
        {
            return Ok(base);
        }
        let before = self
            .freed
            .range(..=at)
            .next_back()
            .filter(|(base, freed)| at < *base + freed.0);
        let why = match (base, before) {
            _ if !is_device(at) => format!("{at:#x} is not an address of the device"),
            (Some(base), _) => format!(
                "{len} bytes at offset {} of the block at {base:#x} end behind its {} bytes",
                at - base,
                self.blocks[&base].len
            ),
            (None, Some((base, (_, by)))) => format!("the block at {base:#x} was freed by {by}"),
            (None, None) => format!("nothing is allocated at {at:#x}"),
        };
        self.report(format!("{role}: {why}"));
        Err(Code::INVALID_VALUE)
    }

    /// The bytes of a range and which of them have a value. The range is in a block.
    pub(super) fn bytes(&mut self, at: u64, len: usize) -> (Vec<u8>, Vec<u8>) {
        match self.memory.find(at, len) {
            Some((block, offset)) => {
                let range = offset..offset + len;
                (
                    block.data[range.clone()].to_vec(),
                    block.valid[range].to_vec(),
                )
            }
            None => (vec![0; len], vec![0; len]),
        }
    }

    /// The first byte of a range without a value, by offset.
    pub(super) fn undefined(&mut self, at: u64, len: usize) -> Option<usize> {
        let (block, offset) = self.memory.find(at, len)?;
        block.valid[offset..offset + len]
            .iter()
            .position(|&valid| valid == 0)
    }

    /// Writes a range, which is in a block; `valid` says which bytes have a value, all if none.
    pub(super) fn set_bytes(&mut self, at: u64, bytes: &[u8], valid: Option<&[u8]>) {
        if let Some((block, offset)) = self.memory.find(at, bytes.len()) {
            let range = offset..offset + bytes.len();
            block.data[range.clone()].copy_from_slice(bytes);
            match valid {
                Some(valid) => block.valid[range].copy_from_slice(valid),
                None => block.valid[range].fill(1),
            }
        }
    }

    /// From now on the bytes have no value, as at the end of a tensor's life in an arena.
    pub(crate) fn undefine(&mut self, at: u64, len: usize) -> Outcome<()> {
        self.current = "undefine";
        self.range(at, len, "undefine")?;
        self.set_bytes(at, &vec![0xcd; len], Some(&vec![0; len]));
        Ok(())
    }

    /// Adds what an operation touched to the history of each block, and reports races.
    pub(super) fn touch(&mut self, op: &Op, touches: Vec<Touch>) {
        for touch in Touch::merge(touches) {
            let base = touch.base;
            let history = match self.blocks.get_mut(&base) {
                Some(block) => Some(&mut block.history),
                None => self.host.history(base),
            };
            if let Some(fault) = history.and_then(|history| history.add(op, touch)) {
                self.report(fault);
            }
        }
    }

    /// The blocks that an operation was given addresses of, so that a graph can tell when they are gone.
    pub(super) fn blocks_of(&self, work: &Work) -> Vec<u64> {
        let mut found: Vec<u64> = work
            .addresses()
            .into_iter()
            .filter_map(|at| self.block_at(at).or_else(|| self.host.block_of(at, 1)))
            .collect();
        found.sort_unstable();
        found.dedup();
        found
    }

    /// Live blocks as lines: address, bytes, high-water mark.
    pub(crate) fn allocations(&self) -> Vec<String> {
        let line = |(base, block): (&u64, &Block)| {
            format!("{base} {} {}", block.len, block.history.high_water)
        };
        self.blocks.iter().map(line).collect()
    }

    /// Free and total bytes.
    pub(super) fn memory_info(&self) -> (usize, usize) {
        let used: usize = self.blocks.values().map(|block| block.len).sum();
        (self.settings.memory - used, self.settings.memory)
    }
}
