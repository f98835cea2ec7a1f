//! A deeper search for orders with a low peak.
//!
//! Three ways are taken in turn. *Moves*: at the step of the peak, a task that frees what is alive there
//! goes ahead of it, with what it waits for; a task that made what only later steps read goes behind it,
//! with what follows from it. *Windows*: the tasks around the peak are ordered anew by trying all orders
//! (depth first, sets of done tasks never twice), where a ready task that frees at least as much as it
//! allocates is always run at once: whatever order has a lower peak without that has it with it, because
//! what a task frees only grows with the tasks done before. *Kicks*: where nothing helps, some tasks
//! change places at random.
//!
//! Everything is counted, nothing timed, and the seed is fixed: the result is the same everywhere.

use super::{Links, Memory, Order, Tasks};
use std::collections::HashSet;

/// The most tasks in a window: the done ones are the bits of one number.
const WINDOW: usize = 128;
/// The most tasks that one move takes along.
const CONE: usize = 64;

/// The best order found with some effort: about so many tasks are run in thought. 2000 for each task
/// find most of what can be found, beyond 20 000 for each little is left. No worse than
/// [`super::order`].
pub fn search(tasks: &Tasks, effort: u64) -> Order {
    let start = super::order(tasks);
    let links = Links::new(tasks);
    let mut state = State::new(&links, start.order.clone(), effort);
    let mut best = (state.key(), start.order);
    let mut seeds = vec![best.1.clone()];
    let given: Vec<usize> = (0..tasks.len()).collect();
    seeds.extend(links.candidates(&given));
    seeds.dedup();
    // One seed after the other is improved a little, the best of all to the end.
    for seed in seeds {
        state.set(seed);
        state.improve(effort / 8);
        state.keep(&mut best);
    }
    state.set(best.1.clone());
    let mut idle = 0;
    while state.spent < effort && best.0.peak > state.floor && !state.optimal && idle < 1000 {
        state.kick();
        state.improve(effort / 8);
        idle = match state.keep(&mut best) {
            true => 0,
            false => idle + 1,
        };
        if state.key().peak > best.0.peak || idle % 16 == 15 {
            state.set(best.1.clone());
        }
    }
    Order {
        order: best.1,
        peak: best.0.peak,
        given_peak: start.given_peak,
    }
}

/// What is compared: the highest of the live bytes, how many steps have them, and the sum over all
/// steps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Key {
    peak: i64,
    steps: usize,
    sum: i128,
}

/// A maximum and how often it occurs.
#[derive(Clone, Copy, Default)]
struct Most {
    live: i64,
    steps: usize,
}

impl Most {
    fn with(self, other: Most) -> Most {
        match self.live.cmp(&other.live) {
            std::cmp::Ordering::Less => other,
            std::cmp::Ordering::Greater => self,
            std::cmp::Ordering::Equal => Most {
                live: self.live,
                steps: self.steps + other.steps,
            },
        }
    }
}

/// An order, and the live bytes in it.
struct State<'l> {
    links: &'l Links<'l>,
    memory: Memory<'l>,
    order: Vec<usize>,
    /// By task.
    position: Vec<usize>,
    /// By step: the live bytes while it runs, and before it.
    during: Vec<i64>,
    before: Vec<i64>,
    /// By step: the maximum over the steps before it, and over it and the steps behind it.
    ahead: Vec<Most>,
    behind: Vec<Most>,
    sum: i128,
    /// No order has a lower peak than this.
    floor: i64,
    /// A search over all orders found none with a lower peak.
    optimal: bool,
    spent: u64,
    effort: u64,
    random: u64,
    mark: Vec<bool>,
    piece: Vec<usize>,
}

impl<'l> State<'l> {
    fn new(links: &'l Links<'l>, order: Vec<usize>, effort: u64) -> Self {
        let tasks = links.tasks;
        let mut state = State {
            links,
            memory: Memory::new(tasks, &links.readers),
            position: vec![0; order.len()],
            order: Vec::new(),
            during: Vec::new(),
            before: Vec::new(),
            ahead: Vec::new(),
            behind: Vec::new(),
            sum: 0,
            floor: 0,
            optimal: false,
            spent: 0,
            effort,
            random: 0x9e37_79b9_7f4a_7c15,
            mark: vec![false; order.len()],
            piece: Vec::new(),
        };
        state.floor = state.floor();
        state.set(order);
        state
    }

    /// What a task needs by itself is a bound for every order, and so is what lives to the end.
    fn floor(&self) -> i64 {
        let tasks = self.links.tasks;
        let sum = |list: &[usize]| list.iter().map(|&b| tasks.buffers[b].bytes).sum::<i64>();
        let own = |task: usize| {
            let (reads, makes) = (sum(tasks.reads.of(task)), sum(tasks.makes.of(task)));
            match tasks.overwrites.of(task).is_empty() {
                true => reads + makes,
                false => reads.max(makes),
            }
        };
        let made = (0..tasks.len()).flat_map(|task| tasks.makes.of(task));
        let kept = made.map(|&b| &tasks.buffers[b]).filter(|b| b.lives_to_end);
        let kept = kept.map(|b| b.bytes).sum();
        (0..tasks.len()).map(own).fold(kept, i64::max)
    }

    fn key(&self) -> Key {
        let all = self.behind.first().copied().unwrap_or_default();
        Key {
            peak: all.live,
            steps: all.steps,
            sum: self.sum,
        }
    }

    fn keep(&self, best: &mut (Key, Vec<usize>)) -> bool {
        let better = self.key() < best.0;
        if better {
            *best = (self.key(), self.order.clone());
        }
        better
    }

    fn set(&mut self, order: Vec<usize>) {
        self.order = order;
        self.refresh();
    }

    /// Everything that follows from the order.
    fn refresh(&mut self) {
        self.spent += self.order.len() as u64;
        self.memory.reset();
        self.during.clear();
        self.before.clear();
        self.ahead.clear();
        let mut most = Most::default();
        self.sum = 0;
        for (place, &task) in self.order.iter().enumerate() {
            self.position[task] = place;
            self.before.push(self.memory.live);
            let live = self.memory.run(task);
            self.during.push(live);
            self.sum += i128::from(live);
            self.ahead.push(most);
            most = most.with(Most { live, steps: 1 });
        }
        self.behind.clear();
        self.behind.resize(self.order.len() + 1, Most::default());
        for place in (0..self.order.len()).rev() {
            let live = self.during[place];
            self.behind[place] = self.behind[place + 1].with(Most { live, steps: 1 });
        }
    }

    /// Sets the memory to before a step, as far as some tasks from that step on are concerned.
    fn enter(&mut self, start: usize, piece: &[usize]) {
        let tasks = self.links.tasks;
        self.memory.live = self.before[start];
        for &task in piece {
            for &buffer in tasks.reads.of(task).iter().chain(tasks.makes.of(task)) {
                let readers = self.links.readers.of(buffer).iter();
                let left = readers.filter(|&&r| self.position[r] >= start).count();
                self.memory.left[buffer] =
                    left as u32 + u32::from(tasks.buffers[buffer].lives_to_end);
            }
        }
    }

    /// The key with the steps from `start` on replaced by the same tasks in another order.
    fn key_with(&mut self, start: usize, piece: &[usize]) -> Key {
        self.spent += 2 * piece.len() as u64;
        self.enter(start, piece);
        let mut most = self.ahead[start].with(self.behind[start + piece.len()]);
        let mut sum = self.sum;
        for (step, &task) in piece.iter().enumerate() {
            let live = self.memory.run(task);
            most = most.with(Most { live, steps: 1 });
            sum += i128::from(live) - i128::from(self.during[start + step]);
        }
        Key {
            peak: most.live,
            steps: most.steps,
            sum,
        }
    }

    fn apply(&mut self, start: usize, piece: &[usize]) {
        self.order[start..start + piece.len()].copy_from_slice(piece);
        self.refresh();
    }

    /// Improves the order until nothing helps, or the effort is spent.
    fn improve(&mut self, most: u64) {
        let end = self.effort.min(self.spent + most);
        while self.spent < end && self.key().peak > self.floor && !self.optimal {
            if !self.move_at_peak() && !self.windows(end) {
                break;
            }
        }
    }

    fn peak_step(&self) -> usize {
        let peak = self.key().peak;
        self.during.iter().position(|&l| l == peak).unwrap_or(0)
    }

    /// Makes the best move at the step of the peak, if one helps.
    fn move_at_peak(&mut self) -> bool {
        let peak = self.peak_step();
        let mut best: Option<(Key, usize, Vec<usize>)> = None;
        let mut piece = std::mem::take(&mut self.piece);
        let mut seen = HashSet::new();
        for (target, ahead) in self.targets(peak) {
            for near in [true, false] {
                let moved = match ahead {
                    true => self.ahead_of(peak, target, near, &mut piece),
                    false => self.behind_of(peak, target, near, &mut piece),
                };
                let Some(start) = moved else {
                    continue;
                };
                if !seen.insert((
                    start,
                    piece.len(),
                    piece.first().copied(),
                    piece.last().copied(),
                    target,
                )) {
                    continue;
                }
                let key = self.key_with(start, &piece);
                if key < best.as_ref().map_or(self.key(), |b| b.0) {
                    best = Some((key, start, piece.clone()));
                }
            }
            if self.spent > self.effort {
                break;
            }
        }
        self.piece = piece;
        match best {
            Some((_, start, piece)) => {
                self.apply(start, &piece);
                true
            }
            None => false,
        }
    }

    /// Tasks behind a step that free what is alive there (and go ahead of it), and those up to it that
    /// make what is read behind it only (and go behind it).
    fn targets(&mut self, step: usize) -> Vec<(usize, bool)> {
        let tasks = self.links.tasks;
        let mut found = Vec::new();
        for place in 0..=step {
            let task = self.order[place];
            let mut idle = !tasks.makes.of(task).is_empty() && place < step;
            let mut alive = false;
            for &buffer in tasks.makes.of(task) {
                let readers = self.links.readers.of(buffer).iter();
                let places = readers.map(|&r| self.position[r]);
                let (mut first, mut last) = (usize::MAX, 0);
                for place in places {
                    (first, last) = (first.min(place), last.max(place));
                }
                let outlives = tasks.buffers[buffer].lives_to_end;
                idle &= first > step && (last > step || outlives);
                alive |= last > step || outlives;
                if last > step && !outlives {
                    found.push((self.order[last], true));
                }
            }
            if idle || alive && place + 16 > step {
                found.push((task, false));
            }
        }
        self.spent += step as u64;
        // The task of the peak itself may wait.
        found.push((self.order[step], false));
        found.sort_unstable();
        found.dedup();
        found
    }

    /// The tasks from some step on, with `target` and what it waits for ahead of the step of the peak:
    /// right ahead of it, or as early as can be. `None` where that cannot be done.
    fn ahead_of(
        &mut self,
        peak: usize,
        target: usize,
        near: bool,
        piece: &mut Vec<usize>,
    ) -> Option<usize> {
        let after = &self.links.tasks.after;
        let end = self.position[target];
        self.mark[target] = true;
        let mut cone = vec![target];
        let mut next = 0;
        let mut earliest = 0;
        while let Some(&task) = cone.get(next) {
            next += 1;
            for &other in after.of(task) {
                let place = self.position[other];
                if place < peak {
                    earliest = earliest.max(place + 1);
                } else if !self.mark[other] {
                    self.mark[other] = true;
                    cone.push(other);
                }
            }
            if cone.len() > CONE {
                break;
            }
        }
        self.spent += cone.len() as u64;
        let blocked = cone.len() > CONE || self.mark[self.order[peak]];
        let start = if near { peak } else { earliest };
        if !blocked {
            cone.sort_unstable_by_key(|&task| self.position[task]);
            piece.clear();
            piece.extend_from_slice(&cone);
            let others = self.order[start..=end].iter().copied();
            piece.extend(others.filter(|&task| !self.mark[task]));
        }
        for task in cone {
            self.mark[task] = false;
        }
        (!blocked).then_some(start)
    }

    /// The tasks from some step on, with `target` and what follows from it behind the step of the peak:
    /// right behind it, or as late as can be.
    fn behind_of(
        &mut self,
        peak: usize,
        target: usize,
        near: bool,
        piece: &mut Vec<usize>,
    ) -> Option<usize> {
        let start = self.position[target];
        self.mark[target] = true;
        let mut cone = vec![target];
        let mut next = 0;
        let mut latest = self.order.len();
        while let Some(&task) = cone.get(next) {
            next += 1;
            for &other in self.links.followers.of(task) {
                let place = self.position[other];
                if place > peak {
                    latest = latest.min(place);
                } else if !self.mark[other] {
                    self.mark[other] = true;
                    cone.push(other);
                }
            }
            if cone.len() > CONE {
                break;
            }
        }
        self.spent += cone.len() as u64;
        // Where the task of the peak itself waits, at least one other goes ahead of it.
        let nearest = peak + 1 + usize::from(self.mark[self.order[peak]]);
        let end = if near { nearest.min(latest) } else { latest };
        let blocked = cone.len() > CONE || end <= start + cone.len();
        if !blocked {
            cone.sort_unstable_by_key(|&task| self.position[task]);
            piece.clear();
            let others = self.order[start..end].iter().copied();
            piece.extend(others.filter(|&task| !self.mark[task]));
            piece.extend_from_slice(&cone);
        }
        for task in cone {
            self.mark[task] = false;
        }
        (!blocked).then_some(start)
    }

    /// Orders the tasks around the peak anew, in windows that grow.
    fn windows(&mut self, end: u64) -> bool {
        let count = self.order.len();
        for size in [8, 16, 32, 64, WINDOW] {
            let peak = self.peak_step();
            for (part, of) in [(1, 2), (1, 4), (3, 4)] {
                if self.spent >= end {
                    return false;
                }
                let start = peak
                    .saturating_sub(size * part / of)
                    .min(count.saturating_sub(size));
                let window = start..(start + size).min(count);
                let whole = window.len() == count;
                let tasks = self.order[window].to_vec();
                let limit = if whole {
                    end - self.spent
                } else {
                    200 * size as u64
                };
                let mut search = Window::new(self, start, &tasks, limit);
                let found = search.run();
                let (complete, spent) = (search.complete(), search.spent);
                self.spent += spent;
                match found {
                    Some(order) => {
                        self.apply(start, &order);
                        return true;
                    }
                    None if whole && complete => {
                        self.optimal = true;
                        return false;
                    }
                    None if whole => return false,
                    None => {}
                }
            }
        }
        false
    }

    /// Tasks near the peak change places at random.
    fn kick(&mut self) {
        let count = self.order.len();
        let peak = self.peak_step();
        for _ in 0..1 + self.below(4) {
            let near = match self.below(2) {
                0 => self.below(count),
                _ => (peak + self.below(64)).saturating_sub(32).min(count - 1),
            };
            let task = self.order[near];
            let tasks = self.links.tasks;
            let after = tasks.after.of(task).iter().map(|&t| self.position[t] + 1);
            let first = after.max().unwrap_or(0);
            let followers = self.links.followers.of(task).iter();
            let last = followers
                .map(|&t| self.position[t] - 1)
                .min()
                .unwrap_or(count - 1);
            let to = first + self.below(last + 1 - first);
            match to < near {
                true => self.order[to..=near].rotate_right(1),
                false => self.order[near..=to].rotate_left(1),
            }
            let (low, high) = (to.min(near), to.max(near));
            for place in low..=high {
                self.position[self.order[place]] = place;
            }
        }
        self.refresh();
    }

    /// A number below `end`, or 0 (xorshift64, Marsaglia 2003).
    fn below(&mut self, end: usize) -> usize {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        (self.random % (end as u64).max(1)) as usize
    }
}

/// A search through all orders of the tasks of a window for one with a lower peak.
struct Window<'s, 'l> {
    state: &'s mut State<'l>,
    window: &'s [usize],
    /// By task of the window: those that it follows, and those that follow it, as bits.
    after: Vec<u128>,
    /// The live bytes must stay below this.
    below: i64,
    seen: HashSet<u128>,
    order: Vec<usize>,
    limit: u64,
    spent: u64,
}

impl<'s, 'l> Window<'s, 'l> {
    /// Of at most [`WINDOW`] tasks.
    fn new(state: &'s mut State<'l>, start: usize, window: &'s [usize], limit: u64) -> Self {
        let inside = start..start + window.len();
        let after = window.iter().map(|&task| {
            let others = state.links.tasks.after.of(task).iter();
            let places = others.map(|&t| state.position[t]);
            let bits = places
                .filter(|p| inside.contains(p))
                .map(|p| 1 << (p - start));
            bits.fold(0u128, |all, bit| all | bit)
        });
        let after = after.collect();
        let below = state.key().peak;
        state.enter(start, window);
        Window {
            state,
            window,
            after,
            below,
            seen: HashSet::new(),
            order: Vec::with_capacity(window.len()),
            limit,
            spent: 0,
        }
    }

    fn run(&mut self) -> Option<Vec<usize>> {
        self.reach(0).then(|| std::mem::take(&mut self.order))
    }

    /// Whether all orders were looked at.
    fn complete(&self) -> bool {
        self.spent < self.limit
    }

    /// Completes the order from the tasks that are done, if that can be; leaves the memory as it was
    /// if not. Never deeper than the window is long.
    fn reach(&mut self, done: u128) -> bool {
        let count = self.window.len();
        if self.order.len() == count {
            return true;
        }
        if !self.seen.insert(done) || self.spent >= self.limit {
            return false;
        }
        let live = self.state.memory.live;
        let mut choices: Vec<(i64, i64, usize)> = Vec::new();
        for index in 0..count {
            if done >> index & 1 == 1 || self.after[index] & !done != 0 {
                continue;
            }
            self.spent += 1;
            let task = self.window[index];
            let during = self.state.memory.during(task);
            if during >= self.below {
                continue;
            }
            self.state.memory.finish(task);
            let net = self.state.memory.live - live;
            self.undo(task, live);
            if net <= 0 {
                choices.clear();
                choices.push((net, during, index));
                break;
            }
            choices.push((net, during, index));
        }
        choices.sort_unstable();
        for (_, _, index) in choices {
            let task = self.window[index];
            self.state.memory.finish(task);
            self.order.push(task);
            if self.reach(done | 1 << index) {
                return true;
            }
            self.order.pop();
            self.undo(task, live);
        }
        false
    }

    fn undo(&mut self, task: usize, live: i64) {
        for &read in self.state.links.tasks.reads.of(task) {
            self.state.memory.left[read] += 1;
        }
        self.state.memory.live = live;
    }
}
