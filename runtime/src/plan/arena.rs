//! Places in one region for buffers that live for some of the steps.
//!
//! Two buffers may share bytes where no step needs both. No region can be smaller than the largest sum
//! of the buffers that one step needs, so that sum is the bound which a placement is measured by.
//!
//! Buffers are placed one after the other, each into a gap that is free over all its steps; the order
//! decides how good the result is. Several orders are tried first. If none reaches the bound, the best
//! of them are improved: a buffer that touches the top is placed earlier, so that it falls to a lower
//! gap. The search counts comparisons, not time, and its numbers come from a fixed seed: the same
//! buffers get the same places on every machine.

use std::collections::BTreeMap;
use thiserror::Error;

/// The comparisons that the search may make; a few tenths of a second.
const WORK: u64 = 200_000_000;

/// With more blocks than this, fewer orders are tried.
const MANY: usize = 4000;

/// A buffer and the steps that need it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Interval {
    /// Its bytes.
    pub bytes: u64,
    /// The first step that needs it.
    pub first: usize,
    /// The last step that needs it, inclusive.
    pub last: usize,
}

/// Where buffers lie.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Placement {
    /// The first byte of each buffer, a multiple of the alignment; of a buffer without bytes, 0.
    pub offsets: Vec<u64>,
    /// The bytes of the region: a multiple of the alignment.
    pub bytes: u64,
    /// The largest sum of the buffers that one step needs, each rounded up to the alignment.
    pub lower_bound: u64,
    /// The same without rounding.
    pub raw_bound: u64,
    /// What found the placement.
    pub method: &'static str,
}

/// Why buffers cannot be placed.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum PlaceError {
    /// An interval ends before it starts.
    #[error("buffer {buffer} is needed from step {first} to step {last}, which is before")]
    Backwards {
        /// Which one.
        buffer: usize,
        /// Its first step.
        first: usize,
        /// Its last step.
        last: usize,
    },
    /// Together they are too large for any memory.
    #[error("the buffers have more than 2^63 bytes together: are the sizes right?")]
    TooLarge,
}

/// Places buffers in one region, each at a multiple of `align` bytes (0 counts as 1).
///
/// # Errors
/// [`PlaceError`] where an interval ends before it starts, or the sum of all exceeds any memory.
pub fn place(intervals: &[Interval], align: u64) -> Result<Placement, PlaceError> {
    place_within(intervals, align, WORK)
}

/// The same with a bound on the comparisons that the search may make. The orders tried at first do not
/// count against it; at least one of them is always made.
///
/// # Errors
/// As [`place`].
pub fn place_within(
    intervals: &[Interval],
    align: u64,
    work: u64,
) -> Result<Placement, PlaceError> {
    let align = align.max(1);
    let blocks = Block::of(intervals, align)?;
    let raw: Vec<Block> = (blocks.iter())
        .map(|b| Block {
            size: intervals[b.index].bytes,
            ..*b
        })
        .collect();
    let bound = bound(&blocks);
    let found = best(&blocks, bound, work);
    let mut offsets = vec![0; intervals.len()];
    for (block, offset) in blocks.iter().zip(&found.offsets) {
        offsets[block.index] = offset * align;
    }
    Ok(Placement {
        offsets,
        bytes: found.top * align,
        lower_bound: bound * align,
        raw_bound: self::bound(&raw),
        method: found.method,
    })
}

/// A buffer that has bytes, in units of the alignment.
#[derive(Clone, Copy, Debug)]
struct Block {
    /// Which of the intervals.
    index: usize,
    size: u64,
    /// The steps, numbered anew: only those at which a buffer starts matter.
    first: u32,
    last: u32,
}

impl Block {
    fn of(intervals: &[Interval], align: u64) -> Result<Vec<Block>, PlaceError> {
        let mut starts = Vec::with_capacity(intervals.len());
        let mut sum = 0u64;
        for (buffer, interval) in intervals.iter().enumerate() {
            let Interval { bytes, first, last } = *interval;
            if last < first {
                return Err(PlaceError::Backwards {
                    buffer,
                    first,
                    last,
                });
            }
            let rounded = bytes.checked_next_multiple_of(align);
            sum = (rounded.and_then(|r| sum.checked_add(r)))
                .filter(|&s| i64::try_from(s).is_ok())
                .ok_or(PlaceError::TooLarge)?;
            if bytes > 0 {
                starts.push(first);
            }
        }
        starts.sort_unstable();
        starts.dedup();
        if u32::try_from(starts.len()).is_err() {
            return Err(PlaceError::TooLarge);
        }
        // Two intervals meet exactly where they do after the renumbering: the later start of the two
        // is one of the numbers, and each end becomes the last start that it reaches.
        let rank = |step: usize| starts.partition_point(|&s| s <= step).saturating_sub(1) as u32;
        let with_bytes = intervals.iter().enumerate().filter(|(_, i)| i.bytes > 0);
        let blocks = with_bytes.map(|(index, interval)| Block {
            index,
            size: interval.bytes.div_ceil(align),
            first: rank(interval.first),
            last: rank(interval.last),
        });
        Ok(blocks.collect())
    }

    fn steps(&self) -> u64 {
        u64::from(self.last - self.first) + 1
    }
}

/// The largest sum of the sizes at one step.
fn bound(blocks: &[Block]) -> u64 {
    let steps = blocks.iter().map(|b| b.last as usize + 1).max();
    let mut born = vec![0u64; steps.unwrap_or(0) + 1];
    let mut died = born.clone();
    for block in blocks {
        born[block.first as usize] += block.size;
        died[block.last as usize + 1] += block.size;
    }
    let (mut live, mut most) = (0, 0);
    for (born, died) in born.iter().zip(&died) {
        live = live + born - died;
        most = most.max(live);
    }
    most
}

/// Offsets by block, in units, and their top.
#[derive(Clone, Debug)]
struct Found {
    offsets: Vec<u64>,
    top: u64,
    method: &'static str,
}

/// Into which gap a block goes.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Fit {
    /// The lowest that is large enough.
    First,
    /// The smallest that is large enough.
    Best,
}

fn best(blocks: &[Block], bound: u64, work: u64) -> Found {
    let mut best = in_time(blocks);
    if best.top == bound {
        return best;
    }
    let mut decoder = Decoder::new(blocks);
    let mut starts: Vec<(u64, Vec<u32>, Fit)> = Vec::new();
    for (method, key) in KEYS {
        let mut order: Vec<u32> = (0..blocks.len() as u32).collect();
        order.sort_by_key(|&b| key(&blocks[b as usize]));
        for fit in [Fit::First, Fit::Best] {
            // Each takes time that grows with the square of their number.
            if blocks.len() > MANY && (fit == Fit::Best || decoder.work > work.max(WORK) / 4) {
                continue;
            }
            let top = decoder.place(&order, fit, u64::MAX);
            if top < best.top {
                best = decoder.found(top, method);
            }
            if best.top == bound {
                return best;
            }
            starts.push((top, order.clone(), fit));
        }
    }
    starts.sort_by_key(|s| s.0);
    starts.truncate(3);
    let share = work / starts.len().max(1) as u64;
    for (start, (_, order, fit)) in starts.into_iter().enumerate() {
        let end = decoder.work + share;
        let mut search = Search {
            decoder: &mut decoder,
            bound,
            end,
            random: Random(0x9e37_79b9_7f4a_7c15 ^ start as u64),
        };
        search.run(order, fit, &mut best);
        if best.top == bound {
            break;
        }
    }
    best
}

type Key = fn(&Block) -> (std::cmp::Reverse<u128>, std::cmp::Reverse<u128>, u32);

fn down(
    first: u128,
    second: u128,
    then: u32,
) -> (std::cmp::Reverse<u128>, std::cmp::Reverse<u128>, u32) {
    (std::cmp::Reverse(first), std::cmp::Reverse(second), then)
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

    /// The top of a placement in an order; a number above `limit` where it would exceed that.
    fn place(&mut self, order: &[u32], fit: Fit, limit: u64) -> u64 {
        self.placed.clear();
        let mut top = 0;
        for &index in order {
            let block = self.blocks[index as usize];
            let offset = self.gap(&block, fit);
            let end = offset + block.size;
            self.offsets[index as usize] = offset;
            top = top.max(end);
            if top > limit {
                return top;
            }
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
        (block.first, std::cmp::Reverse(block.size), block.last)
    });
    let mut deaths: Vec<u32> = (0..blocks.len() as u32).collect();
    deaths.sort_by_key(|&b| blocks[b as usize].last);
    let mut deaths = deaths.into_iter().peekable();
    let mut offsets = vec![0; blocks.len()];
    // Gaps below the top, by offset, and the same by size.
    let mut gaps: BTreeMap<u64, u64> = BTreeMap::new();
    let mut by_size: std::collections::BTreeSet<(u64, u64)> = std::collections::BTreeSet::new();
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

/// Improves one order.
struct Search<'d, 'b> {
    decoder: &'d mut Decoder<'b>,
    bound: u64,
    /// The comparisons after which it ends.
    end: u64,
    random: Random,
}

impl Search<'_, '_> {
    fn run(&mut self, mut order: Vec<u32>, fit: Fit, best: &mut Found) {
        let mut here = self.decoder.place(&order, fit, u64::MAX);
        let mut offsets = self.decoder.offsets.clone();
        let mut idle = 0u64;
        while self.decoder.work < self.end && here > self.bound {
            // A block at the top goes to an earlier place, one at least as likely to be near.
            let blocks = self.decoder.blocks;
            let at_top = (0..order.len()).filter(|&place| {
                let block = order[place] as usize;
                offsets[block] + blocks[block].size == here
            });
            let at_top: Vec<usize> = at_top.collect();
            let Some(&from) = at_top.get(self.random.below(at_top.len())) else {
                return;
            };
            if from == 0 {
                return;
            }
            let moved = order[from];
            let to = match self.random.below(3) {
                0 => self.random.below(from),
                1 => {
                    // In front of a block that it rests on, or that rests on one it rests on.
                    let block = &blocks[moved as usize];
                    let meets = |other: u32| {
                        let other = &blocks[other as usize];
                        other.last >= block.first && block.last >= other.first
                    };
                    let under: Vec<usize> = (0..from).filter(|&p| meets(order[p])).collect();
                    match under.get(self.random.below(under.len())) {
                        Some(&place) => place,
                        None => return,
                    }
                }
                _ => from - 1 - self.random.below(from.min(16)),
            };
            order[to..=from].rotate_right(1);
            let mut swapped = None;
            if self.random.below(4) == 0 {
                let pair = (
                    self.random.below(order.len()),
                    self.random.below(order.len()),
                );
                order.swap(pair.0, pair.1);
                swapped = Some(pair);
            }
            // A little above is accepted now and then, to leave where nothing improves.
            let slack = match idle {
                0..50 => 0,
                _ => (here - self.bound) / 4,
            };
            let limit = match self.random.below(8) {
                0 => here + slack,
                _ => here,
            };
            let top = self.decoder.place(&order, fit, limit);
            if top <= limit {
                if top < here {
                    idle = 0;
                }
                here = top;
                offsets.clone_from(&self.decoder.offsets);
                if top < best.top {
                    *best = self.decoder.found(top, "search");
                }
            } else {
                if let Some((a, b)) = swapped {
                    order.swap(a, b);
                }
                order[to..=from].rotate_left(1);
            }
            idle += 1;
        }
    }
}

/// Numbers from a seed (xorshift64, Marsaglia 2003).
struct Random(u64);

impl Random {
    /// A number below `end`; 0 where that is 0.
    fn below(&mut self, end: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % (end as u64).max(1)) as usize
    }
}
