//! The four orders, each made in time near-linear in the number of reads.

use super::Links;
use std::cmp::Reverse;
use std::collections::BinaryHeap;

impl Links<'_> {
    /// The orders, the one nearest to the base first.
    pub(super) fn candidates(&self, base: &[usize]) -> [Vec<usize>; 4] {
        let first = self.eager(base);
        let sunk = self.sunk(&first);
        let greedy = self.greedy(&first);
        [first, greedy, self.greedy(&sunk), sunk]
    }

    /// An order with the eager tasks moved up to where they become ready.
    pub(super) fn eager(&self, base: &[usize]) -> Vec<usize> {
        let mut run = Run::new(self);
        for &task in base {
            run.emit_with_eager(task);
        }
        run.order
    }

    /// The bytes of what a task makes.
    fn made(&self, task: usize) -> i64 {
        let makes = self.tasks.makes.of(task).iter();
        makes.map(|&b| self.tasks.buffers[b].bytes).sum()
    }

    /// The bytes of what a task reads and can free, as far as it has so many readers left.
    fn read_by_few(&self, task: usize, readers: impl Fn(usize) -> usize) -> i64 {
        let reads = self.tasks.reads.of(task).iter();
        let buffers = reads.map(|&b| (b, &self.tasks.buffers[b]));
        let freed = buffers.filter(|&(index, buffer)| !buffer.lives_to_end && readers(index) == 1);
        freed.map(|(_, buffer)| buffer.bytes).sum()
    }

    /// Tasks that allocate at least as much as they free, moved down to their first reader.
    pub(super) fn sunk(&self, base: &[usize]) -> Vec<usize> {
        let tasks = self.tasks;
        let mut run = Run::new(self);
        let mut position = vec![0usize; base.len()];
        for (place, &task) in base.iter().enumerate() {
            position[task] = place;
        }
        let sinks = |task: usize| {
            let sole = self.read_by_few(task, |buffer| self.readers.of(buffer).len());
            !tasks.is_result[task] && !tasks.eager[task] && self.made(task) >= sole
        };
        let mut expanded = vec![false; base.len()];
        let mut missing = Vec::new();
        let mut demand = |run: &mut Run<'_>, target: usize| {
            // What it follows first, in the order of the base; the stack replaces recursion. A task is
            // expanded once: what lies above it on the stack is done when it comes up again.
            let mut stack = vec![target];
            while let Some(&task) = stack.last() {
                if run.done[task] {
                    stack.pop();
                } else if std::mem::replace(&mut expanded[task], true) {
                    stack.pop();
                    run.emit_with_eager(task);
                } else {
                    let after = tasks.after.of(task).iter().copied();
                    missing.extend(after.filter(|&t| !run.done[t]));
                    missing.sort_unstable_by_key(|&t| Reverse(position[t]));
                    missing.dedup();
                    stack.append(&mut missing);
                }
            }
        };
        for &task in base {
            if !sinks(task) {
                demand(&mut run, task);
            }
        }
        // What nothing asked for reaches no result and comes last.
        for &task in base {
            demand(&mut run, task);
        }
        run.order
    }

    /// A ready task that frees at least as much as it allocates runs at once; otherwise the next task
    /// of the base.
    pub(super) fn greedy(&self, base: &[usize]) -> Vec<usize> {
        let tasks = self.tasks;
        let mut position = vec![0usize; base.len()];
        for (place, &task) in base.iter().enumerate() {
            position[task] = place;
        }
        let buffers = 0..tasks.buffers.len();
        let mut left: Vec<usize> = buffers.map(|b| self.readers.of(b).len()).collect();
        let made: Vec<i64> = (0..tasks.len()).map(|task| self.made(task)).collect();
        let net = |left: &[usize], task: usize| {
            made[task] - self.read_by_few(task, |buffer| left[buffer])
        };
        let mut run = Run::new(self);
        // Ready tasks by position, and those among them that cost nothing by what they cost.
        let mut waiting = BinaryHeap::new();
        let mut free = BinaryHeap::new();
        let admit =
            |task: usize, left: &[usize], waiting: &mut BinaryHeap<_>, free: &mut BinaryHeap<_>| {
                let cost = net(left, task);
                if cost <= 0 || tasks.eager[task] {
                    free.push(Reverse((cost, position[task], task)));
                }
                waiting.push(Reverse((position[task], task)));
            };
        for &task in base {
            if run.waiting[task] == 0 {
                admit(task, &left, &mut waiting, &mut free);
            }
        }
        let mut ready = Vec::new();
        loop {
            let next = match free.pop() {
                Some(Reverse((_, _, task))) => task,
                None => match waiting.pop() {
                    Some(Reverse((_, task))) => task,
                    None => break,
                },
            };
            if run.done[next] {
                continue;
            }
            run.emit(next, |task| ready.push(task));
            for &buffer in tasks.reads.of(next) {
                left[buffer] -= 1;
                if left[buffer] == 1 && !tasks.buffers[buffer].lives_to_end {
                    // The last reader left may cost nothing now.
                    let last = self.readers.of(buffer).iter().find(|&&r| !run.done[r]);
                    if let Some(&last) = last
                        && run.waiting[last] == 0
                        && net(&left, last) <= 0
                    {
                        free.push(Reverse((net(&left, last), position[last], last)));
                    }
                }
            }
            for task in ready.drain(..) {
                admit(task, &left, &mut waiting, &mut free);
            }
        }
        run.order
    }
}

/// Tasks emitted so far, and how many of those that it follows each of the others waits for.
struct Run<'l> {
    links: &'l Links<'l>,
    order: Vec<usize>,
    waiting: Vec<usize>,
    done: Vec<bool>,
}

impl<'l> Run<'l> {
    fn new(links: &'l Links<'l>) -> Self {
        let count = links.tasks.len();
        Run {
            links,
            order: Vec::with_capacity(count),
            waiting: (0..count)
                .map(|task| links.tasks.after.of(task).len())
                .collect(),
            done: vec![false; count],
        }
    }

    /// Emits a task and hands on those that become ready.
    fn emit(&mut self, task: usize, mut ready: impl FnMut(usize)) {
        self.done[task] = true;
        self.order.push(task);
        for &next in self.links.followers.of(task) {
            self.waiting[next] -= 1;
            if self.waiting[next] == 0 {
                ready(next);
            }
        }
    }

    fn emit_with_eager(&mut self, task: usize) {
        let mut pending = vec![task];
        while let Some(task) = pending.pop() {
            if self.done[task] || self.waiting[task] > 0 {
                continue;
            }
            let links = self.links;
            self.emit(task, |next| {
                if links.tasks.eager[next] {
                    pending.push(next);
                }
            });
        }
    }
}
