//! Places in one region for buffers that live for some of the steps.
//!
//! Two buffers may share bytes where no step needs both. No region can be smaller than the largest sum
//! of the buffers that one step needs, so that sum is the bound which a placement is measured by.
//!
//! Placements that take one pass over the buffers are tried first (`greedy`). If none reaches the
//! bound, a branch and bound looks for one that does (`search`). It counts comparisons, not time, and its
//! random numbers come from a fixed seed: the same buffers get the same places on every machine.

mod greedy;
mod search;

use std::ops::RangeInclusive;
use thiserror::Error;

/// The comparisons that the search may make; a few tenths of a second.
const WORK: u64 = 200_000_000;

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

/// The same with a bound on the comparisons that the search may make. The placements tried first do not
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
    let mut found = greedy::best(&blocks, bound, work);
    search::improve(&blocks, bound, work, &mut found);
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
    /// Those of the intervals that have bytes, by first step.
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
        let mut blocks: Vec<Block> = blocks.collect();
        blocks.sort_by_key(|block| block.first);
        Ok(blocks)
    }

    fn steps(&self) -> u64 {
        u64::from(self.last - self.first) + 1
    }

    fn span(&self) -> RangeInclusive<usize> {
        self.first as usize..=self.last as usize
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
