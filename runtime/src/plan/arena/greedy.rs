//! Placements in one pass over the blocks: step by step, and in several orders.

use super::{Block, Found, WORK};
use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

/// With more blocks than this, fewer orders are tried.
const MANY: usize = 4000;

/// The best of all, or the first that reaches the bound.
pub(super) fn best(blocks: &[Block], bound: u64, work: u64) -> Found {
    let mut best = in_time(blocks);
    if best.top == bound {
        return best;
    }
    let mut decoder = Decoder::new(blocks);
    for (method, key) in KEYS {
        let mut order: Vec<u32> = (0..blocks.len() as u32).collect();
        order.sort_by_key(|&b| key(&blocks[b as usize]));
        for fit in [Fit::First, Fit::Best] {
            // Each takes time that grows with the square of their number.
            if blocks.len() > MANY && (fit == Fit::Best || decoder.work > work.max(WORK) / 4) {
                continue;
            }
            let top = decoder.place(&order, fit);
            if top < best.top {
                best = decoder.found(top, method);
            }
            if best.top == bound {
                return best;
            }
        }
    }
    best
}

/// Into which gap a block goes.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Fit {
    /// The lowest that is large enough.
    First,
    /// The smallest that is large enough.
    Best,
}

type Key = fn(&Block) -> (Reverse<u128>, Reverse<u128>, u32);

fn down(first: u128, second: u128, then: u32) -> (Reverse<u128>, Reverse<u128>, u32) {
    (Reverse(first), Reverse(second), then)
}

/// Orders in which blocks are placed, by name.
const KEYS: [(&str, Key); 4] = [
    ("by size", |b| {
        down(b.size.into(), b.steps().into(), b.first)
    }),
    ("by duration", |b| {
        down(b.steps().into(), b.size.into(), b.first)
    }),
    ("by size times duration", |b| {
        down(
            u128::from(b.size) * u128::from(b.steps()),
            b.size.into(),
            b.first,
        )
    }),
    ("by first step", |b| {
        down(u128::from(u32::MAX - b.first), b.size.into(), b.last)
    }),
];

/// Places blocks one after the other, each in a gap among those placed before.
struct Decoder<'b> {
    blocks: &'b [Block],
    /// Those placed, by offset.
    placed: Vec<Placed>,
    offsets: Vec<u64>,
    /// Comparisons made so far.
    work: u64,
}

#[derive(Clone, Copy)]
struct Placed {
    offset: u64,
    end: u64,
    first: u32,
    last: u32,
}

impl<'b> Decoder<'b> {
    fn new(blocks: &'b [Block]) -> Self {
        Decoder {
            blocks,
            placed: Vec::with_capacity(blocks.len()),
            offsets: vec![0; blocks.len()],
            work: 0,
        }
    }

    /// The top of a placement in an order.
    fn place(&mut self, order: &[u32], fit: Fit) -> u64 {
        self.placed.clear();
        let mut top = 0;
        for &index in order {
            let block = self.blocks[index as usize];
            let offset = self.gap(&block, fit);
            let end = offset + block.size;
            self.offsets[index as usize] = offset;
            top = top.max(end);
            let place = self.placed.partition_point(|p| p.offset < offset);
            let Block { first, last, .. } = block;
            self.placed.insert(
                place,
                Placed {
                    offset,
                    end,
                    first,
                    last,
                },
            );
        }
        top
    }

    /// The offset of a gap that is free over all steps of a block.
    fn gap(&mut self, block: &Block, fit: Fit) -> u64 {
        // The end of what lies lowest, among the blocks that meet this one, without a gap of its size.
        let mut end = 0u64;
        let mut best: Option<(u64, u64)> = None;
        let mut compared = 0;
        for other in &self.placed {
            compared += 1;
            if other.last < block.first || block.last < other.first {
                continue;
            }
            if other.offset >= end + block.size {
                let gap = other.offset - end;
                if fit == Fit::First {
                    best = Some((gap, end));
                    break;
                }
                if best.is_none_or(|(least, _)| gap < least) {
                    best = Some((gap, end));
                }
            }
            end = end.max(other.end);
        }
        self.work += compared;
        best.map_or(end, |(_, offset)| offset)
    }

    fn found(&self, top: u64, method: &'static str) -> Found {
        Found {
            offsets: self.offsets.clone(),
            top,
            method,
        }
    }
}

/// As an allocator does it: step by step, the large ones of a step first, each into the smallest gap.
fn in_time(blocks: &[Block]) -> Found {
    let mut births: Vec<u32> = (0..blocks.len() as u32).collect();
    births.sort_by_key(|&b| {
        let block = &blocks[b as usize];
        (block.first, Reverse(block.size), block.last)
    });
    let mut deaths: Vec<u32> = (0..blocks.len() as u32).collect();
    deaths.sort_by_key(|&b| blocks[b as usize].last);
    let mut deaths = deaths.into_iter().peekable();
    let mut offsets = vec![0; blocks.len()];
    // Gaps below the top, by offset, and the same by size.
    let mut gaps: BTreeMap<u64, u64> = BTreeMap::new();
    let mut by_size: BTreeSet<(u64, u64)> = BTreeSet::new();
    let (mut end, mut top) = (0u64, 0u64);
    for birth in births {
        let block = blocks[birth as usize];
        while let Some(dead) = deaths.next_if(|&d| blocks[d as usize].last < block.first) {
            let (mut from, mut size) = (offsets[dead as usize], blocks[dead as usize].size);
            if let Some((&before, &room)) = gaps.range(..from).next_back()
                && before + room == from
            {
                gaps.remove(&before);
                by_size.remove(&(room, before));
                (from, size) = (before, size + room);
            }
            if let Some(room) = gaps.remove(&(from + size)) {
                by_size.remove(&(room, from + size));
                size += room;
            }
            if from + size == end {
                end = from;
            } else {
                gaps.insert(from, size);
                by_size.insert((size, from));
            }
        }
        let gap = by_size.range((block.size, 0)..).next().copied();
        offsets[birth as usize] = match gap {
            Some((room, from)) => {
                gaps.remove(&from);
                by_size.remove(&(room, from));
                if room > block.size {
                    gaps.insert(from + block.size, room - block.size);
                    by_size.insert((room - block.size, from + block.size));
                }
                from
            }
            None => {
                end += block.size;
                end - block.size
            }
        };
        top = top.max(end);
    }
    Found {
        offsets,
        top,
        method: "in time",
    }
}
