//! Races, by happens-before: each cell of memory remembers who last wrote, read and atomically updated it, and
//! when in the order of synchronisation. Whether two accesses are ordered depends on barriers alone, not on the
//! order in which the interpreter happens to run warps.
//!
//! A record packs into 64 bits: the run of a block (32), the thread in it (10), the time (19), whether it read
//! through the read-only cache (1), and how many threads it stands for (2).

/// Time counts the synchronisations of a block; a warp's lanes take a new time after each that they take part
/// in. It must stay below this.
pub(super) const MAX_TIME: u32 = 1 << 19;

const READ_ONLY: u64 = 1 << 2;
const EXTENT: u64 = 3;
/// Several lanes of one warp.
const WARP: u64 = 1;
/// Several warps of one block.
const BLOCK: u64 = 2;
/// Several blocks.
const GRID: u64 = 3;

/// A record of an access by one thread.
pub(super) fn record(run: u32, thread: u32, time: u32) -> u64 {
    u64::from(run) << 32 | u64::from(thread) << 22 | u64::from(time) << 3
}

fn run_of(record: u64) -> u32 {
    (record >> 32) as u32
}

/// The thread in its block that a record names.
pub(super) fn thread_of(record: u64) -> u32 {
    (record >> 22) as u32 & 0x3ff
}

fn time_of(record: u64) -> u32 {
    (record >> 3) as u32 & (MAX_TIME - 1)
}

/// The number of the run of the block that a record names.
pub(super) fn run_number(record: u64) -> u32 {
    run_of(record)
}

/// What one lane of a warp knows of the order of synchronisation.
#[derive(Clone, Copy)]
pub(super) struct Observer<'a> {
    /// The lane's own record, as of now.
    pub(super) me: u64,
    /// Records below this belong to earlier launches (for shared memory: to earlier blocks).
    pub(super) first: u64,
    /// Runs from this to before its own belong to the same block, before a barrier.
    pub(super) first_run: u32,
    /// Accesses of the block before this time are ordered for all its threads.
    pub(super) block_time: u32,
    /// Accesses of the warp before this time are ordered for all its lanes.
    pub(super) warp_time: u32,
    /// For each lane of the warp the time before which its accesses are ordered for this lane.
    pub(super) known: Option<&'a [u32; 32]>,
}

impl Observer<'_> {
    fn ordered(&self, record: u64) -> bool {
        if run_of(record) != run_of(self.me) {
            return run_of(record) >= self.first_run
                && run_of(record) < run_of(self.me)
                && record & EXTENT != GRID;
        }
        let extent = record & EXTENT;
        let time = time_of(record);
        if extent == GRID {
            return false;
        }
        if time < self.block_time || (extent == 0 && (record ^ self.me) >> 22 == 0) {
            return true;
        }
        if extent == BLOCK || thread_of(record) >> 5 != thread_of(self.me) >> 5 {
            return false;
        }
        if time < self.warp_time {
            return true;
        }
        match self.known {
            Some(known) if extent == 0 => time < known[thread_of(record) as usize & 31],
            Some(known) => known.iter().all(|t| time < *t),
            None => false,
        }
    }

    fn current(&self, record: u64) -> bool {
        record >= self.first
    }

    /// The record of `old` and this lane together.
    fn join(&self, old: u64, flags: u64) -> u64 {
        let keep = old & READ_ONLY | flags;
        if !self.current(old) {
            return self.me | flags;
        }
        if self.ordered(old) {
            return self.me | keep;
        }
        let same_block = run_of(old) == run_of(self.me) || run_of(old) >= self.first_run;
        let extent = if !same_block || old & EXTENT == GRID {
            GRID
        } else if old & EXTENT == BLOCK || thread_of(old) >> 5 != thread_of(self.me) >> 5 {
            BLOCK
        } else {
            WARP
        };
        // The later of both times: whoever is ordered after that is ordered after both.
        let time = if run_of(old) == run_of(self.me) {
            time_of(old).max(time_of(self.me))
        } else {
            time_of(self.me)
        };
        record(run_of(self.me), thread_of(self.me), time) | keep | extent
    }
}

/// Two accesses without order.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Conflict {
    pub(super) what: &'static str,
    /// The record of the earlier of the two.
    pub(super) other: u64,
    /// Whether the fault is a read through the read-only cache of what the launch writes.
    pub(super) read_only: bool,
}

/// The kinds of accesses.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Access {
    Read,
    /// Through the read-only cache.
    ReadOnly,
    Write,
    Atomic,
}

/// The records of one allocation.
#[derive(Clone, Default, Debug)]
pub(super) struct Shadow {
    /// Log2 of the bytes of a cell. Cells become finer with the first access that is smaller, so that
    /// neighbours never share one.
    shift: u32,
    /// Last write and reads since, per cell.
    cells: Vec<[u64; 2]>,
    /// Last atomic updates; empty until there is one.
    atomics: Vec<u64>,
}

impl Shadow {
    /// Prepares for accesses of elements of `size` bytes in `bytes` bytes.
    #[inline]
    pub(super) fn prepare(&mut self, bytes: usize, size: usize) {
        let shift = size.trailing_zeros().min(2);
        if self.cells.is_empty() {
            self.shift = shift;
            self.cells = vec![[0; 2]; (bytes >> shift) + 1];
        } else if shift < self.shift {
            let times = 1 << (self.shift - shift);
            self.cells = self
                .cells
                .iter()
                .flat_map(|c| std::iter::repeat_n(*c, times))
                .collect();
            self.atomics = self
                .atomics
                .iter()
                .flat_map(|c| std::iter::repeat_n(*c, times))
                .collect();
            self.shift = shift;
        }
    }

    /// Forgets everything.
    pub(super) fn clear(&mut self) {
        self.cells.clear();
        self.atomics.clear();
    }

    /// Reads of 32 lanes, side by side, of `size` bytes each from `offset`. Returns the lanes that need
    /// [`Shadow::access`] instead: those whose cells were written in this launch.
    #[inline]
    pub(super) fn read_row(
        &mut self,
        offset: usize,
        size: usize,
        me: &[u64; 32],
        first: u64,
        flags: u64,
    ) -> u32 {
        let per_lane = size >> self.shift;
        let start = offset >> self.shift;
        let mut left = 0;
        if !self.atomics.is_empty() || per_lane == 0 {
            return u32::MAX;
        }
        let cells = &mut self.cells[start..start + per_lane * 32];
        for (lane, group) in cells.chunks_exact_mut(per_lane).enumerate() {
            let mut slow = false;
            for cell in group.iter() {
                let fresh = cell[1] < first;
                let same = (cell[1] ^ me[lane]) >> 22 == 0 && cell[1] & EXTENT == 0;
                slow |= cell[0] >= first || !(fresh || same || cell[1] & EXTENT == GRID);
            }
            if slow {
                left |= 1 << lane;
                continue;
            }
            for cell in group {
                if cell[1] < first {
                    cell[1] = me[lane] | flags;
                } else if cell[1] & EXTENT != GRID {
                    cell[1] = me[lane] | cell[1] & READ_ONLY | flags;
                } else {
                    cell[1] |= flags;
                }
            }
        }
        left
    }

    /// Writes of 32 lanes, side by side. Returns the lanes that need [`Shadow::access`] instead: those whose
    /// cells other threads accessed in this launch.
    #[inline]
    pub(super) fn write_row(
        &mut self,
        offset: usize,
        size: usize,
        me: &[u64; 32],
        first: u64,
    ) -> u32 {
        let per_lane = size >> self.shift;
        let start = offset >> self.shift;
        let mut left = 0;
        if !self.atomics.is_empty() || per_lane == 0 {
            return u32::MAX;
        }
        let cells = &mut self.cells[start..start + per_lane * 32];
        for (lane, group) in cells.chunks_exact_mut(per_lane).enumerate() {
            let own =
                |r: u64| r < first || ((r ^ me[lane]) >> 22 == 0 && r & (EXTENT | READ_ONLY) == 0);
            if group.iter().all(|cell| own(cell[0]) && own(cell[1])) {
                group.fill([me[lane], 0]);
            } else {
                left |= 1 << lane;
            }
        }
        left
    }

    /// The flag of a read through the read-only cache.
    pub(super) fn flags(access: Access) -> u64 {
        if access == Access::ReadOnly {
            READ_ONLY
        } else {
            0
        }
    }

    /// One lane's access of `size` bytes at `offset`: what it conflicts with.
    pub(super) fn access(
        &mut self,
        offset: usize,
        size: usize,
        access: Access,
        by: &Observer,
    ) -> Option<Conflict> {
        let range = offset >> self.shift..(offset + size).div_ceil(1 << self.shift);
        if access == Access::Atomic && self.atomics.is_empty() {
            self.atomics = vec![0; self.cells.len()];
        }
        let mut found = None;
        for index in range {
            let atomic = self.atomics.get(index).copied().unwrap_or(0);
            let conflict = check_cell(&self.cells[index], atomic, access, by);
            found = found.or(conflict);
            let cell = &mut self.cells[index];
            match access {
                Access::Read | Access::ReadOnly => cell[1] = by.join(cell[1], Self::flags(access)),
                Access::Write => {
                    *cell = [by.me, 0];
                    if let Some(atomic) = self.atomics.get_mut(index) {
                        *atomic = 0;
                    }
                }
                Access::Atomic => self.atomics[index] = by.join(atomic, 0),
            }
        }
        found
    }
}

fn check_cell(cell: &[u64; 2], atomic: u64, access: Access, by: &Observer) -> Option<Conflict> {
    let [write, read] = *cell;
    let conflict = |what, other| {
        Some(Conflict {
            what,
            other,
            read_only: false,
        })
    };
    let stale = |other| {
        Some(Conflict {
            what: "",
            other,
            read_only: true,
        })
    };
    let races = |record| by.current(record) && !by.ordered(record);
    match access {
        Access::ReadOnly if by.current(write) => return stale(write),
        Access::ReadOnly if by.current(atomic) => return stale(atomic),
        Access::Write | Access::Atomic if by.current(read) && read & READ_ONLY != 0 => {
            return stale(read);
        }
        _ => {}
    }
    if races(write) {
        let what = match access {
            Access::Read | Access::ReadOnly => "read after write",
            Access::Write => "write after write",
            Access::Atomic => "atomic update after write",
        };
        return conflict(what, write);
    }
    if access != Access::Atomic && races(atomic) {
        let write = access == Access::Write;
        return conflict(
            if write {
                "write after atomic update"
            } else {
                "read after atomic update"
            },
            atomic,
        );
    }
    if matches!(access, Access::Write | Access::Atomic) && races(read) {
        let write = access == Access::Write;
        return conflict(
            if write {
                "write after read"
            } else {
                "atomic update after read"
            },
            read,
        );
    }
    None
}

#[cfg(test)]
mod tests {
    use super::super::warp::{Warp, lanes};
    use super::{Access, EXTENT, GRID, READ_ONLY, Shadow};

    const THREADS: usize = 64;
    const CELLS: usize = 3;

    /// Numbers without a pattern.
    struct Noise(u64);

    impl Noise {
        fn below(&mut self, n: usize) -> usize {
            self.0 = self
                .0
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            (self.0 >> 33) as usize % n
        }
    }

    /// The same by definition: all accesses with the vector clocks of their threads.
    struct Reference {
        clocks: Vec<[u32; THREADS]>,
        accesses: Vec<(usize, usize, Access, u32)>,
    }

    impl Reference {
        fn synchronise(&mut self, threads: &[usize]) {
            let mut joined = [0; THREADS];
            for thread in threads {
                for (all, own) in joined.iter_mut().zip(&self.clocks[*thread]) {
                    *all = (*all).max(*own);
                }
            }
            for thread in threads {
                self.clocks[*thread] = joined;
                self.clocks[*thread][*thread] += 1;
            }
        }

        /// Whether an access of `cell` races with one before.
        fn access(&mut self, thread: usize, cell: usize, access: Access) -> bool {
            let races = self.accesses.iter().any(|(other, at, kind, time)| {
                let reads = *kind == Access::Read && access == Access::Read;
                let harmless = reads || (*kind == Access::Atomic && access == Access::Atomic);
                *at == cell && !harmless && *other != thread && self.clocks[thread][*other] < *time
            });
            self.accesses
                .push((thread, cell, access, self.clocks[thread][thread]));
            races
        }
    }

    /// Compares the first race of a random program with the definition's: at which access it is found.
    fn first_races(seed: u64, partial: bool) -> (Option<usize>, Option<usize>) {
        let mut noise = Noise(seed);
        let mut clocks = vec![[0; THREADS]; THREADS];
        for (thread, clock) in clocks.iter_mut().enumerate() {
            clock[thread] = 1;
        }
        let mut reference = Reference {
            clocks,
            accesses: Vec::new(),
        };
        let mut warps = [Warp::default(), Warp::default()];
        for (index, warp) in warps.iter_mut().enumerate() {
            warp.index = index as u32;
            warp.lanes = u32::MAX;
        }
        warps.iter_mut().for_each(|w| w.synchronise_all(1, 1));
        let (mut time, mut block_time) = (1, 1);
        let mut shadow = Shadow::default();
        shadow.prepare(4 * CELLS, 4);
        let mut found = (None, None);
        for step in 0..60 {
            match noise.below(10) {
                0 => {
                    time += 1;
                    block_time = time;
                    warps.iter_mut().for_each(|w| w.synchronise_all(1, time));
                    reference.synchronise(&(0..THREADS).collect::<Vec<_>>());
                }
                1 | 2 => {
                    time += 1;
                    let index = noise.below(2);
                    let few = [0xff, 0xff00, 0x3, 0xffff][noise.below(4)];
                    let mask = if partial && noise.below(2) == 0 {
                        few
                    } else {
                        u32::MAX
                    };
                    if mask == u32::MAX {
                        warps[index].synchronise_all(1, time);
                    } else {
                        warps[index].synchronise(mask, 1, time);
                    }
                    reference.synchronise(&lanes(mask).map(|l| index * 32 + l).collect::<Vec<_>>());
                }
                _ => {
                    // Few threads and cells, so that they meet.
                    let thread = [0, 1, 2, 9, 32, 33][noise.below(6)];
                    let cell = noise.below(CELLS);
                    let access =
                        [Access::Read, Access::Read, Access::Write, Access::Atomic][noise.below(4)];
                    let observer = warps[thread / 32].observer(thread % 32, 1 << 32, 1, block_time);
                    let conflict = shadow.access(4 * cell, 4, access, &observer);
                    if reference.access(thread, cell, access) {
                        found.1 = found.1.or(Some(step));
                    }
                    if conflict.is_some() {
                        found.0 = found.0.or(Some(step));
                    }
                }
            }
            if found.0.is_some() || found.1.is_some() {
                break;
            }
        }
        found
    }

    #[test]
    fn races_are_those_of_the_definition() {
        let mut races = 0;
        for seed in 0..20_000 {
            let (got, expected) = first_races(seed, false);
            assert_eq!(got, expected, "seed {seed}");
            races += usize::from(expected.is_some());
        }
        assert!(races > 5_000, "{races}");
    }

    /// Readers that know different things of each other are kept as one, which may report too much, but never
    /// too little.
    #[test]
    fn no_race_is_missed_among_parts_of_warps() {
        let mut early = 0;
        for seed in 0..20_000 {
            let (got, expected) = first_races(seed, true);
            if got != expected {
                assert!(
                    got.is_some() && expected.is_none(),
                    "seed {seed}: {got:?}, {expected:?}"
                );
                early += 1;
            }
        }
        assert!(
            early < 200,
            "{early} of 20000 programs reported without a race"
        );
    }

    /// Rows of 32 lanes take short cuts; what they find and what they leave behind must be what lane after lane
    /// does.
    #[test]
    fn a_row_does_what_its_lanes_do() {
        let mut found = 0;
        for seed in 0..3_000 {
            let mut noise = Noise(seed);
            let mut warps = [Warp::default(), Warp::default()];
            for (index, warp) in warps.iter_mut().enumerate() {
                warp.index = index as u32;
                warp.lanes = u32::MAX;
                warp.synchronise_all(1, 1);
            }
            let (mut rows, mut single) = (Shadow::default(), Shadow::default());
            let (size, element) = [(4, 4), (16, 4), (2, 2), (8, 8)][noise.below(4)];
            rows.prepare(40 * size, element);
            single.prepare(40 * size, element);
            let (mut time, mut block_time, mut run) = (1, 1, 1);
            for _ in 0..12 {
                let index = noise.below(2);
                match noise.below(8) {
                    0 => {
                        time += 1;
                        block_time = time;
                        warps.iter_mut().for_each(|w| w.synchronise_all(run, time));
                        continue;
                    }
                    1 => {
                        time += 1;
                        warps[index].synchronise_all(run, time);
                        continue;
                    }
                    2 => {
                        // Another block.
                        (run, time, block_time) = (run + 1, 1, 1);
                        warps.iter_mut().for_each(|w| w.synchronise_all(run, 1));
                        continue;
                    }
                    _ => {}
                }
                let kinds = [Access::Read, Access::Read, Access::ReadOnly, Access::Write];
                let access = kinds[noise.below(4)];
                let start = noise.below(9) * size;
                let warp = &warps[index];
                let first = 1 << 32;
                let observe = |lane| warp.observer(lane, first, run, block_time);
                let left = if access == Access::Write {
                    rows.write_row(start, size, &warp.me, first)
                } else {
                    rows.read_row(start, size, &warp.me, first, Shadow::flags(access))
                };
                for lane in 0..32 {
                    let offset = start + lane * size;
                    let expected = single.access(offset, size, access, &observe(lane));
                    let got = if left >> lane & 1 == 1 {
                        rows.access(offset, size, access, &observe(lane))
                    } else {
                        None
                    };
                    let what = |c: Option<super::Conflict>| c.map(|c| (c.what, c.read_only));
                    assert_eq!(
                        what(got),
                        what(expected),
                        "seed {seed} lane {lane} {access:?}"
                    );
                    found += usize::from(expected.is_some());
                }
                // Which block is named among several is all one.
                let meaning = |shadow: &Shadow| -> Vec<[u64; 2]> {
                    let plain = |r: u64| {
                        if r & EXTENT == GRID {
                            r & (EXTENT | READ_ONLY)
                        } else {
                            r
                        }
                    };
                    shadow.cells.iter().map(|cell| cell.map(plain)).collect()
                };
                assert_eq!(meaning(&rows), meaning(&single), "seed {seed} {access:?}");
            }
        }
        assert!(found > 10_000, "{found}");
    }
}
