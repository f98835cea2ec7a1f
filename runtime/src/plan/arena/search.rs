//! A branch and bound for places below a limit, from the bottom up.
//!
//! Each block lies as low as those placed before it allow, and blocks are placed in the order of their
//! offsets: any placement can be brought into that form, by letting its blocks sink. What is left to
//! choose is which block comes next. A choice is given up as soon as some step has less room left than it
//! has yet to hold. With the largest sum of a step as the limit, that step has no room for a gap, so bad
//! choices show soon. Blocks that no longer meet, because all that linked them is placed, are placed
//! apart: where one part has no places, choices within the other are not to blame and are not tried
//! again. Which block is tried first is decided by ranks. Where a choice near the beginning is a bad
//! one, it may take forever to come back to it, so after some failures it all starts again with other
//! ranks.
//!
//! The ideas are those of `MiniMalloc` (Moffitt, ASPLOS 2023), the new starts apart.

use super::{Block, Found};
use std::cmp::Reverse;

/// Placed blocks that left no room, after which the first start ends.
const FAILURES: u64 = 50;

/// Raised offsets that a search may have to remember: 64 MiB. Four thousand blocks of a transformer's step
/// take a fifth of that.
const RAISED: usize = 1 << 22;

/// Looks for a placement at the bound with half of the work, and with the other half for the lowest top
/// between that and the best placement known.
pub(super) fn improve(blocks: &[Block], bound: u64, work: u64, best: &mut Found) {
    let mut search = Search::new(blocks);
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    // Below `low` there are no places, or none were found.
    let (mut low, mut limit, mut end) = (bound, bound, work / 2);
    while low < best.top && search.work < work {
        match search.starts(limit, end, &mut random) {
            Outcome::Found => *best = search.found(),
            Outcome::Impossible | Outcome::Spent => low = limit + 1,
        }
        let range = best.top.saturating_sub(low);
        limit = low + range / 2;
        let halvings = u64::from(range.max(1).ilog2()) + 1;
        end = search.work + work.saturating_sub(search.work) / halvings;
    }
}

/// What became of a search.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Outcome {
    /// All blocks have places.
    Found,
    /// There are no such places.
    Impossible,
    /// The failures or the work allowed are spent.
    Spent,
}

/// The offset and the rank of a block.
type Key = (u64, u32);

/// Blocks that meet none outside but those placed.
#[derive(Clone, Copy)]
struct Part {
    /// A range of the blocks; some of them are placed.
    from: usize,
    to: usize,
    /// The last step of any.
    last: u32,
    /// Those placed next in it have keys above this one.
    above: Option<Key>,
    /// The choice that it was split off by.
    parent: Option<usize>,
}

/// The choice of a part's next block.
struct Choice {
    part: Part,
    /// The key of the block tried last.
    tried: Option<Key>,
    /// How many parts waited before it, blocks were placed, and offsets raised.
    waiting: usize,
    placed: usize,
    raised: usize,
}

struct Search<'b> {
    /// By first step.
    blocks: &'b [Block],
    /// By block: among those of one offset, the lowest is tried first.
    rank: Vec<u32>,
    is_placed: Vec<bool>,
    /// By block: its offset; before it is placed, the lowest that is left for it.
    offsets: Vec<u64>,
    /// By step: the top of what is placed.
    floor: Vec<u64>,
    /// By step: the sum of what is not placed.
    rest: Vec<u64>,
    /// By step: a block of that step, found low enough when it was last looked at.
    lowest: Vec<usize>,
    /// What is placed, in that order.
    placed: Vec<usize>,
    /// Offsets before they were raised.
    raised: Vec<(usize, u64)>,
    /// Floors before a block was placed on them, and over how many steps.
    floors: Vec<(u64, usize)>,
    /// Comparisons made so far.
    work: u64,
}

impl<'b> Search<'b> {
    fn new(blocks: &'b [Block]) -> Self {
        let steps = blocks.iter().map(|b| b.last as usize + 1).max();
        let steps = steps.unwrap_or(0);
        let mut lowest = vec![0; steps];
        // A block starts at each step.
        for (index, block) in blocks.iter().enumerate() {
            lowest[block.first as usize] = index;
        }
        Search {
            blocks,
            rank: vec![0; blocks.len()],
            is_placed: vec![false; blocks.len()],
            offsets: vec![0; blocks.len()],
            floor: vec![0; steps],
            rest: vec![0; steps],
            lowest,
            placed: Vec::with_capacity(blocks.len()),
            raised: Vec::new(),
            floors: Vec::new(),
            work: 0,
        }
    }

    fn found(&self) -> Found {
        let blocks = self.blocks.iter().zip(&self.offsets);
        Found {
            top: blocks.map(|(b, offset)| offset + b.size).max().unwrap_or(0),
            offsets: self.offsets.clone(),
            method: "search",
        }
    }

    /// Starts until places below a limit are found, or the work is above `end`.
    fn starts(&mut self, limit: u64, end: u64, random: &mut Random) -> Outcome {
        let mut failures = FAILURES;
        let mut stretch = 0;
        while self.work <= end {
            for by_load in [false, true] {
                self.start(by_load, stretch, random);
                let outcome = self.run(limit, failures, end);
                if outcome != Outcome::Spent {
                    return outcome;
                }
            }
            stretch = 32;
            // Small, so that there are many starts, and growing, so that what is impossible is found out.
            failures += failures / 20;
        }
        Outcome::Spent
    }

    /// Nothing is placed, and ranks are given: to those that live longest, or to those of the steps with
    /// the largest sums, and then to those that take most over all their steps. For other ranks, the
    /// steps count for up to `stretch` parts of 64 more.
    fn start(&mut self, by_load: bool, stretch: usize, random: &mut Random) {
        self.is_placed.fill(false);
        self.offsets.fill(0);
        self.floor.fill(0);
        self.rest.fill(0);
        self.placed.clear();
        self.raised.clear();
        self.floors.clear();
        for block in self.blocks {
            for step in block.span() {
                self.rest[step] += block.size;
            }
            self.work += block.steps();
        }
        let key = |block: &Block| {
            let steps = u128::from(block.steps()) * (64 + random.below(stretch) as u128);
            let load = block.span().map(|step| self.rest[step]).max();
            let first = if by_load {
                load.unwrap_or(0).into()
            } else {
                steps
            };
            Reverse((first, steps * u128::from(block.size)))
        };
        let mut order: Vec<_> = self.blocks.iter().map(key).zip(0..).collect();
        order.sort_unstable();
        for (rank, (_, block)) in (0..).zip(order) {
            self.rank[block] = rank;
        }
    }

    /// Places all blocks below `limit`, until there were so many failures or the work is above `end`.
    fn run(&mut self, limit: u64, mut failures: u64, end: u64) -> Outcome {
        let all = Part {
            from: 0,
            to: self.blocks.len(),
            last: 0,
            above: None,
            parent: None,
        };
        let mut waiting = Vec::new();
        self.split(all, &mut waiting);
        let mut choices: Vec<Choice> = Vec::new();
        while let Some(part) = waiting.pop() {
            choices.push(Choice {
                part,
                tried: None,
                waiting: waiting.len(),
                placed: self.placed.len(),
                raised: self.raised.len(),
            });
            // Until a block leaves room: here, or at a choice made before.
            while let Some(choice) = choices.last_mut() {
                if self.work > end || failures == 0 || self.raised.len() > RAISED {
                    return Outcome::Spent;
                }
                self.undo(choice);
                waiting.truncate(choice.waiting);
                let Some((key, block)) = self.next(choice) else {
                    let Some(parent) = choice.part.parent else {
                        return Outcome::Impossible;
                    };
                    choices.truncate(parent + 1);
                    continue;
                };
                choice.tried = Some(key);
                let part = choice.part;
                self.place(block, part);
                if self.has_room(block, part, limit) {
                    let rest = Part {
                        above: Some(key),
                        parent: Some(choices.len() - 1),
                        ..part
                    };
                    self.split(rest, &mut waiting);
                    break;
                }
                failures -= 1;
            }
        }
        Outcome::Found
    }

    /// The block that comes after the one tried last at a choice.
    fn next(&mut self, choice: &Choice) -> Option<(Key, usize)> {
        let Part {
            from, to, above, ..
        } = choice.part;
        let after = choice.tried.or(above);
        let mut end = u64::MAX;
        let mut next: Option<(Key, usize)> = None;
        for block in (from..to).filter(|&b| !self.is_placed[b]) {
            let key = (self.offsets[block], self.rank[block]);
            end = end.min(key.0 + self.blocks[block].size);
            if after.is_none_or(|after| key > after) && next.is_none_or(|(least, _)| key < least) {
                next = Some((key, block));
            }
        }
        self.work += (to - from) as u64;
        // If it lies above the end of one that is not placed, there is a gap into which that one sinks.
        next.filter(|(key, _)| key.0 < end)
    }

    /// Places a block of a part at the lowest offset that is left for it.
    fn place(&mut self, block: usize, part: Part) {
        let Block {
            size, first, last, ..
        } = self.blocks[block];
        let end = self.offsets[block] + size;
        self.is_placed[block] = true;
        self.placed.push(block);
        for (run, step) in self.blocks[block].span().enumerate() {
            match self.floors.last_mut() {
                Some((floor, steps)) if run > 0 && *floor == self.floor[step] => *steps += 1,
                _ => self.floors.push((self.floor[step], 1)),
            }
            self.floor[step] = end;
            self.rest[step] -= size;
        }
        for other in (part.from..part.to).filter(|&b| !self.is_placed[b]) {
            let meets = self.blocks[other].first <= last && first <= self.blocks[other].last;
            if meets && self.offsets[other] < end {
                self.raised.push((other, self.offsets[other]));
                self.offsets[other] = end;
            }
        }
        self.work += (part.to - part.from) as u64 + self.blocks[block].steps();
    }

    /// Takes back what was placed by a choice and those after it.
    fn undo(&mut self, choice: &Choice) {
        for block in self.placed.drain(choice.placed..).rev() {
            self.is_placed[block] = false;
            let span = self.blocks[block].span();
            let mut end = *span.end() + 1;
            while end > *span.start()
                && let Some((floor, steps)) = self.floors.pop()
            {
                self.floor[end - steps..end].fill(floor);
                end -= steps;
            }
            for step in span {
                self.rest[step] += self.blocks[block].size;
            }
        }
        for (block, offset) in self.raised.drain(choice.raised..).rev() {
            self.offsets[block] = offset;
        }
    }

    /// Whether every step of a part has room for what it has yet to hold, with nothing more below the
    /// block placed last.
    ///
    /// A block never ends above the limit where this holds before it is placed, and after: alone at a step,
    /// it was low enough itself; with others left there, they would have no room on top of it.
    fn has_room(&mut self, block: usize, part: Part, limit: u64) -> bool {
        let offset = self.offsets[block];
        let steps = self.blocks[part.from].first..=part.last;
        self.work += u64::from(steps.end() - steps.start());
        for step in steps {
            let at = step as usize;
            if self.rest[at] == 0 {
                continue;
            }
            // What comes next at this step must not lie above this, with the others on top of it.
            let Some(most) = limit.checked_sub(self.rest[at]) else {
                return false;
            };
            if self.floor[at].max(offset) > most {
                return false;
            }
            let is_low = |&b: &usize| !self.is_placed[b] && self.offsets[b] <= most;
            if is_low(&self.lowest[at]) {
                continue;
            }
            let started = (part.from..part.to).take_while(|&b| self.blocks[b].first <= step);
            let mut alive = started.filter(|&b| step <= self.blocks[b].last);
            self.work += (part.to - part.from) as u64;
            match alive.find(is_low) {
                Some(block) => self.lowest[at] = block,
                None => return false,
            }
        }
        true
    }

    /// Adds to those that wait what is left of a part, in parts that do not meet.
    fn split(&mut self, rest: Part, waiting: &mut Vec<Part>) {
        let mut open: Option<Part> = None;
        for block in (rest.from..rest.to).filter(|&b| !self.is_placed[b]) {
            let Block { first, last, .. } = self.blocks[block];
            match &mut open {
                Some(part) if first <= part.last => {
                    part.to = block + 1;
                    part.last = part.last.max(last);
                }
                _ => waiting.extend(open.replace(Part {
                    from: block,
                    to: block + 1,
                    last,
                    ..rest
                })),
            }
        }
        waiting.extend(open);
        self.work += (rest.to - rest.from) as u64;
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
