//! Which bytes an operation read and wrote: what the order of operations on different streams is checked by.

use std::collections::BTreeMap;
use std::iter::once;
use std::ops::Range;

/// The bytes of one block of memory that one operation touched. Addresses, ascending, not overlapping.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Touch {
    /// Address of the block.
    pub base: u64,
    /// What was read.
    pub reads: Vec<Range<u64>>,
    /// What was written.
    pub writes: Vec<Range<u64>>,
}

impl Touch {
    /// A read of `len` bytes at `at`.
    pub fn read(base: u64, at: u64, len: usize) -> Self {
        let reads = once(at..at + len as u64).collect();
        Self {
            base,
            reads,
            writes: Vec::new(),
        }
    }

    /// A write of `len` bytes at `at`.
    pub fn write(base: u64, at: u64, len: usize) -> Self {
        let writes = once(at..at + len as u64).collect();
        Self {
            base,
            reads: Vec::new(),
            writes,
        }
    }

    /// One touch for each block: an operation is not in a race with itself.
    pub fn merge(touches: Vec<Touch>) -> Vec<Touch> {
        let mut merged: BTreeMap<u64, Touch> = BTreeMap::new();
        for touch in touches {
            let all = merged.entry(touch.base).or_insert_with(|| Touch {
                base: touch.base,
                ..Touch::default()
            });
            all.reads.extend(touch.reads);
            all.writes.extend(touch.writes);
        }
        for touch in merged.values_mut() {
            normalise(&mut touch.reads);
            normalise(&mut touch.writes);
        }
        merged.into_values().collect()
    }

    /// The first address behind all that was touched, or `base` if nothing was.
    pub fn end(&self) -> u64 {
        let last = |ranges: &[Range<u64>]| ranges.last().map_or(self.base, |range| range.end);
        last(&self.reads).max(last(&self.writes))
    }
}

/// Bytes of a page: blocks are large, and a kernel touches few of their pages.
const PAGE: usize = 64 * WORDS;

/// Words of bits for a page.
const WORDS: usize = 64;

/// Collects the bytes that a kernel touches, one access after the other, in any order.
#[derive(Debug, Default)]
pub struct Touched {
    /// Where the page of a block is in `pages`.
    places: BTreeMap<(u64, usize), usize>,
    pages: Vec<Page>,
    /// The page that was touched last.
    last: Option<((u64, usize), usize)>,
}

/// One bit for each byte.
#[derive(Debug)]
struct Page {
    read: [u64; WORDS],
    written: [u64; WORDS],
}

impl Touched {
    /// Notes an access to `len` bytes at `offset` of the block at `base`, which has `size` bytes.
    pub fn note(&mut self, base: u64, size: usize, offset: usize, len: usize, wrote: bool) {
        let (mut at, end) = (offset, (offset + len).min(size));
        while at < end {
            let page = self.page(base, at / PAGE);
            let bits = if wrote {
                &mut page.written
            } else {
                &mut page.read
            };
            let until = end.min((at / PAGE + 1) * PAGE);
            while at < until {
                let count = (64 - at % 64).min(until - at);
                bits[at % PAGE / 64] |= (u64::MAX >> (64 - count)) << (at % 64);
                at += count;
            }
        }
    }

    #[inline]
    fn page(&mut self, base: u64, number: usize) -> &mut Page {
        let key = (base, number);
        let place = match self.last {
            Some((last, place)) if last == key => place,
            _ => *self.places.entry(key).or_insert_with(|| {
                self.pages.push(Page {
                    read: [0; WORDS],
                    written: [0; WORDS],
                });
                self.pages.len() - 1
            }),
        };
        self.last = Some((key, place));
        &mut self.pages[place]
    }

    /// All that was noted, by block, and forgets it.
    pub fn take(&mut self) -> Vec<Touch> {
        let Touched { places, pages, .. } = std::mem::take(self);
        let mut touches: Vec<Touch> = Vec::new();
        for ((base, number), place) in places {
            if touches.last().is_none_or(|touch| touch.base != base) {
                touches.push(Touch {
                    base,
                    ..Touch::default()
                });
            }
            if let Some(touch) = touches.last_mut() {
                let first = base + (number * PAGE) as u64;
                add_ranges(first, &pages[place].read, &mut touch.reads);
                add_ranges(first, &pages[place].written, &mut touch.writes);
            }
        }
        touches
    }
}

/// Adds the runs of set bits, as addresses, to ranges that lie before them.
fn add_ranges(base: u64, bits: &[u64], found: &mut Vec<Range<u64>>) {
    for (index, &word) in bits.iter().enumerate() {
        let first = base + index as u64 * 64;
        let mut at = 0;
        while at < 64 && word >> at != 0 {
            at += (word >> at).trailing_zeros();
            let len = (word >> at).trailing_ones();
            let (start, end) = (first + u64::from(at), first + u64::from(at + len));
            match found.last_mut() {
                Some(last) if last.end == start => last.end = end,
                _ => found.push(start..end),
            }
            at += len;
        }
    }
}

/// Sorts ranges and joins those that meet.
pub fn normalise(ranges: &mut Vec<Range<u64>>) {
    ranges.retain(|range| range.start < range.end);
    ranges.sort_unstable_by_key(|range| range.start);
    let mut kept: Vec<Range<u64>> = Vec::with_capacity(ranges.len());
    for range in ranges.drain(..) {
        match kept.last_mut() {
            Some(last) if range.start <= last.end => last.end = last.end.max(range.end),
            _ => kept.push(range),
        }
    }
    *ranges = kept;
}

/// The first bytes that two ascending lists of ranges have in common.
pub fn overlap(a: &[Range<u64>], b: &[Range<u64>]) -> Option<Range<u64>> {
    let (mut i, mut j) = (0, 0);
    while i < a.len() && j < b.len() {
        let common = a[i].start.max(b[j].start)..a[i].end.min(b[j].end);
        if common.start < common.end {
            return Some(common);
        }
        if a[i].end <= b[j].end {
            i += 1;
        } else {
            j += 1;
        }
    }
    None
}

/// Whether every byte of `inner` is in `outer`; both ascending and merged as far as possible.
pub fn covers(outer: &[Range<u64>], inner: &[Range<u64>]) -> bool {
    let mut at = 0;
    inner.iter().all(|range| {
        while at < outer.len() && outer[at].end < range.end {
            at += 1;
        }
        at < outer.len() && outer[at].start <= range.start
    })
}

#[cfg(test)]
// Lists of one range are meant as such.
#[allow(clippy::single_range_in_vec_init)]
mod tests {
    use super::*;

    #[test]
    fn runs_join_across_words_and_stay_apart_at_gaps() {
        let mut touched = Touched::default();
        touched.note(1000, 300, 60, 8, true);
        touched.note(1000, 300, 68, 4, true);
        touched.note(1000, 300, 80, 1, true);
        touched.note(1000, 300, 128, 64, false);
        // Over the border of two pages.
        touched.note(1000, 9000, 4090, 16, true);
        let touch = touched.take().remove(0);
        assert_eq!(touch.writes, [1060..1072, 1080..1081, 5090..5106]);
        assert_eq!(touch.reads, [1128..1192]);
        assert_eq!(touch.end(), 5106);
        assert!(touched.take().is_empty());
    }

    #[test]
    fn overlaps_are_found_and_neighbours_are_none() {
        assert_eq!(overlap(&[0..4, 8..12], &[4..8, 12..20]), None);
        assert_eq!(overlap(&[0..4, 8..12], &[4..9]), Some(8..9));
        assert!(covers(&[0..4, 8..12], &[1..2, 8..12]));
        assert!(!covers(&[0..4, 8..12], &[3..9]));
    }
}
