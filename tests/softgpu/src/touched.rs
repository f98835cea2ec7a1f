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

/// Collects the bytes that a kernel touches, one access after the other, in any order.
#[derive(Debug, Default)]
pub struct Touched {
    blocks: BTreeMap<u64, Pages>,
}

/// The touched parts of a block: launches touch little of a large arena.
type Pages = Vec<Option<Box<Page>>>;

/// Bytes that a page covers.
const PAGE: usize = 1 << 16;

/// One bit for each byte.
#[derive(Debug)]
struct Page {
    read: [u64; PAGE / 64],
    written: [u64; PAGE / 64],
}

impl Touched {
    /// Notes an access to `len` bytes at `offset` of the block at `base`, which has `size` bytes.
    pub fn note(&mut self, base: u64, size: usize, offset: usize, len: usize, wrote: bool) {
        let empty = || (0..size.div_ceil(PAGE)).map(|_| None).collect();
        let pages: &mut Pages = self.blocks.entry(base).or_insert_with(empty);
        let (mut at, end) = (offset, (offset + len).min(size));
        while at < end {
            let page = pages[at / PAGE].get_or_insert_with(|| {
                Box::new(Page {
                    read: [0; PAGE / 64],
                    written: [0; PAGE / 64],
                })
            });
            let bits = if wrote {
                &mut page.written
            } else {
                &mut page.read
            };
            let count = (64 - at % 64).min(end - at);
            bits[at % PAGE / 64] |= (u64::MAX >> (64 - count)) << (at % 64);
            at += count;
        }
    }

    /// All that was noted, by block, and forgets it.
    pub fn take(&mut self) -> Vec<Touch> {
        let touch = |(base, pages): (u64, Pages)| Touch {
            base,
            reads: ranges(base, &pages, |page| &page.read),
            writes: ranges(base, &pages, |page| &page.written),
        };
        std::mem::take(&mut self.blocks)
            .into_iter()
            .map(touch)
            .collect()
    }
}

/// The runs of set bits, as addresses.
fn ranges(
    base: u64,
    pages: &[Option<Box<Page>>],
    bits: impl Fn(&Page) -> &[u64; PAGE / 64],
) -> Vec<Range<u64>> {
    let mut found: Vec<Range<u64>> = Vec::new();
    for (number, page) in pages.iter().enumerate() {
        let Some(page) = page else { continue };
        for (index, &word) in bits(page).iter().enumerate() {
            let first = base + (number * PAGE + index * 64) as u64;
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
    found
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
        let touch = touched.take().remove(0);
        assert_eq!(touch.writes, [1060..1072, 1080..1081]);
        assert_eq!(touch.reads, [1128..1192]);
        assert_eq!(touch.end(), 1192);
        assert!(touched.take().is_empty());
    }

    #[test]
    fn runs_join_across_pages() {
        let mut touched = Touched::default();
        let end = 3 * PAGE;
        touched.note(0, end, PAGE - 4, 8, true);
        touched.note(0, end, end - 1, 1, true);
        let (page, end) = (PAGE as u64, end as u64);
        assert_eq!(touched.take()[0].writes, [page - 4..page + 4, end - 1..end]);
    }

    #[test]
    fn overlaps_are_found_and_neighbours_are_none() {
        assert_eq!(overlap(&[0..4, 8..12], &[4..8, 12..20]), None);
        assert_eq!(overlap(&[0..4, 8..12], &[4..9]), Some(8..9));
        assert!(covers(&[0..4, 8..12], &[1..2, 8..12]));
        assert!(!covers(&[0..4, 8..12], &[3..9]));
    }
}
