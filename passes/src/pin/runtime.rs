//! How runtimes order a graph, and what lives while they run it.
//!
//! Two orders are those of ONNX Runtime (found in its source and checked against its profiles, see
//! docs/schedule.md): *depth first*, its default, walks upwards from the nodes that nothing reads,
//! the highest index first, and *priority*, Kahn's algorithm with `Shape` and `Size` first and then
//! the lowest index. Indices are positions in the file, but nodes that an optimiser makes get new
//! ones behind all others; so each order is also tried with our own nodes last, and with the indices
//! reversed, which no runtime does but which shows what an order does not promise.

use super::Dependence;
use std::cmp::Reverse;
use std::collections::BinaryHeap;
use velora_graph::analysis::buffers::{Buffers, is_view};
use velora_graph::analysis::lifetimes::{Sizes, element_wise};
use velora_graph::ir::{Graph, NodeId};

/// A way of sorting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Order {
    algorithm: Algorithm,
    indices: Indices,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Algorithm {
    /// ONNX Runtime's default.
    DepthFirst,
    /// ONNX Runtime's priority-based order.
    Priority,
}

/// Which numbers the nodes have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Indices {
    /// Their places in the file.
    Listed,
    /// The same, our own behind all others, as when local functions are expanded.
    OursLast,
    /// The same, matrix products behind all others, as when they are fused with neighbours.
    ProductsLast,
    /// Their places from the end.
    Reversed,
    /// Mixed by a hash.
    Mixed(u64),
}

impl Order {
    /// All that are tried.
    pub fn all() -> Vec<Order> {
        let listed = [Indices::Listed, Indices::OursLast, Indices::ProductsLast];
        let order = |algorithm| move |indices| Order { algorithm, indices };
        let mut all: Vec<Order> = listed.map(order(Algorithm::DepthFirst)).to_vec();
        all.extend(listed.map(order(Algorithm::Priority)));
        all.push(order(Algorithm::DepthFirst)(Indices::Reversed));
        all.extend(
            [1, 2, 3, 4]
                .map(Indices::Mixed)
                .map(order(Algorithm::DepthFirst)),
        );
        all
    }
}

/// A number that looks random, from SplitMix64's mixing step.
fn mixed(seed: u64, number: u64) -> u64 {
    let mut bits = number
        .wrapping_add(seed)
        .wrapping_mul(0x9E37_79B9_7F4A_7C15);
    bits = (bits ^ (bits >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    bits = (bits ^ (bits >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    bits ^ (bits >> 31)
}

/// The graph as a runtime sees it: nodes as small numbers in file order, and behind them one node for
/// each awaited tensor, the empty slice of it.
pub struct Simulation<'g> {
    graph: &'g Graph,
    buffers: Buffers,
    /// Node ids in file order.
    listed: Vec<NodeId>,
    /// By node: position in file order.
    position: Vec<usize>,
    /// By number: what it reads, as numbers, one entry a slot.
    reads: Vec<Vec<u32>>,
    /// By number: buffers that it reads, each once.
    touches: Vec<Vec<u32>>,
    /// By buffer: the numbers of the graph's own nodes that read it, ascending.
    readers: Vec<Vec<u32>>,
    /// By number: buffers that it makes.
    makes: Vec<Vec<u32>>,
    /// By number: whether it may write over an input that dies with it.
    in_place: Vec<bool>,
    /// By buffer: bytes, and whether it is an output.
    bytes: Vec<i64>,
    is_output: Vec<bool>,
    /// By number: whether `Shape` or `Size`; one of our own; a product.
    kinds: Vec<Kind>,
    /// By number: the position in the file that stands for its index.
    index: Vec<u64>,
    /// By node in file order: the number of the empty slice of its output.
    slices: Vec<Option<u32>>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Kind {
    shape: bool,
    ours: bool,
    product: bool,
    constant: bool,
}

/// An order with the step of each number.
pub struct Run {
    order: Vec<u32>,
    step: Vec<u32>,
}

/// By buffer: the steps that make it and that need it last.
type Spans = Vec<Option<(u32, u32)>>;

/// What runs are compared with.
pub struct Plan {
    /// The order of the file.
    schedule: Run,
    spans: Spans,
    /// The most live bytes that a run may have.
    pub allowed: i64,
    /// The bytes of a tensor from which on it is worth a pin.
    pub worth: i64,
}

impl<'g> Simulation<'g> {
    pub fn new(graph: &'g Graph, sizes: &Sizes) -> Self {
        let listed = graph.order().to_vec();
        let mut position = vec![0; graph.node_count()];
        for (place, id) in listed.iter().enumerate() {
            position[id.index()] = place;
        }
        let mut simulation = Simulation {
            graph,
            buffers: Buffers::new(graph),
            position,
            reads: Vec::with_capacity(listed.len()),
            touches: Vec::with_capacity(listed.len()),
            readers: vec![Vec::new(); graph.value_count()],
            makes: vec![Vec::new(); listed.len()],
            in_place: Vec::with_capacity(listed.len()),
            bytes: vec![0; graph.value_count()],
            is_output: vec![false; graph.value_count()],
            kinds: Vec::with_capacity(listed.len()),
            index: (0..listed.len() as u64).map(|i| 2 * i).collect(),
            slices: vec![None; listed.len()],
            listed,
        };
        let buffers = &simulation.buffers;
        for root in buffers.roots(graph).filter(|&v| !graph.is_constant(v)) {
            simulation.bytes[root.index()] = sizes.of(root).unwrap_or(0);
            let members = buffers.members(root);
            simulation.is_output[root.index()] = members.iter().any(|&v| graph.value(v).is_output);
            if let Some(producer) = graph.producer(root) {
                let place = simulation.position[producer.index()];
                simulation.makes[place].push(root.index() as u32);
            }
        }
        for &id in &simulation.listed {
            let node = graph.node(id);
            let values = || node.inputs.iter().flatten().chain(&node.captures);
            let producers = values().filter_map(|&v| graph.producer(v));
            let place = |n: NodeId| simulation.position[n.index()] as u32;
            simulation.reads.push(producers.map(place).collect());
            let mut touched: Vec<u32> = values()
                .enumerate()
                // A view reads no bytes.
                .filter(|(slot, _)| !(is_view(node) && *slot == 0))
                .map(|(_, &v)| buffers.root(v).index() as u32)
                .collect();
            touched.sort_unstable();
            touched.dedup();
            for &buffer in &touched {
                let number = simulation.touches.len() as u32;
                simulation.readers[buffer as usize].push(number);
            }
            simulation.touches.push(touched);
            simulation
                .in_place
                .push(element_wise(node) && node.outputs.len() == 1);
            simulation.kinds.push(Kind {
                shape: matches!(node.op(), "Shape" | "Size"),
                ours: node.velora_op().is_some(),
                product: matches!(node.op(), "MatMul" | "Gemm" | "FusedMatMul"),
                constant: node.op() == "Constant",
            });
        }
        simulation
    }

    /// The plan to keep: the order of the file, with its peak as what is allowed.
    pub fn plan(&self) -> Plan {
        let schedule = self.run((0..self.listed.len() as u32).collect());
        let spans = self.spans(&schedule);
        let live = self.live(&schedule, &spans);
        Plan {
            allowed: live.into_iter().max().unwrap_or(0),
            worth: 0,
            schedule,
            spans,
        }
    }

    fn run(&self, order: Vec<u32>) -> Run {
        let mut step = vec![0; self.reads.len()];
        for (place, &number) in order.iter().enumerate() {
            step[number as usize] = place as u32;
        }
        Run { order, step }
    }

    /// Adds a dependence: the waiter reads the empty slice of what the awaited node makes.
    pub fn add(&mut self, dependence: Dependence) {
        let awaited = self.position[dependence.awaited.index()];
        let waiter = self.position[dependence.waiter.index()];
        let slice = match self.slices[awaited] {
            Some(slice) => slice,
            None => {
                let slice = self.reads.len() as u32;
                self.reads.push(vec![awaited as u32]);
                let value = super::emit::awaited_value(self.graph, dependence.awaited);
                let buffers: Vec<u32> = value
                    .map(|v| self.buffers.root(v).index() as u32)
                    .into_iter()
                    .collect();
                self.touches.push(buffers);
                self.makes.push(Vec::new());
                self.in_place.push(false);
                self.kinds.push(Kind {
                    ours: true,
                    ..Kind::default()
                });
                // Right behind the awaited node in the file.
                self.index.push(2 * awaited as u64 + 1);
                self.slices[awaited] = Some(slice);
                slice
            }
        };
        self.reads[waiter].push(slice);
    }

    /// The graph in a runtime's order.
    pub fn sort(&self, order: Order) -> Run {
        let last = u64::from(u32::MAX);
        let index = |number: u32| {
            let kind = self.kinds[number as usize];
            let place = self.index[number as usize];
            match order.indices {
                Indices::Listed => place,
                Indices::OursLast => place + if kind.ours { last } else { 0 },
                Indices::ProductsLast => place + if kind.product { last } else { 0 },
                Indices::Reversed => u64::MAX - place,
                Indices::Mixed(seed) => mixed(seed, place),
            }
        };
        let order = match order.algorithm {
            Algorithm::DepthFirst => self.depth_first(index),
            Algorithm::Priority => self.kahn(index),
        };
        self.run(order)
    }

    fn depth_first(&self, index: impl Fn(u32) -> u64) -> Vec<u32> {
        let count = self.reads.len();
        let mut is_read = vec![false; count];
        for read in self.reads.iter().flatten() {
            is_read[*read as usize] = true;
        }
        let mut stack: Vec<(u32, bool)> = Vec::new();
        // Constants become initialisers before a runtime sorts; they cost nothing wherever they are.
        let mut leaves: Vec<u32> = (0..count as u32)
            .filter(|&n| !is_read[n as usize])
            .collect();
        leaves.sort_by_key(|&n| index(n));
        stack.extend(leaves.into_iter().map(|n| (n, false)));
        let mut seen = vec![false; count];
        let mut order = Vec::with_capacity(count);
        while let Some((number, leave)) = stack.pop() {
            if leave {
                order.push(number);
                continue;
            }
            if std::mem::replace(&mut seen[number as usize], true) {
                continue;
            }
            stack.push((number, true));
            let reads = self.reads[number as usize].iter();
            let mut next: Vec<u32> = reads.copied().filter(|&r| !seen[r as usize]).collect();
            next.sort_by_key(|&n| index(n));
            stack.extend(next.into_iter().map(|n| (n, false)));
        }
        order
    }

    fn kahn(&self, index: impl Fn(u32) -> u64) -> Vec<u32> {
        let count = self.reads.len();
        let mut waiting = vec![0u32; count];
        let mut readers: Vec<Vec<u32>> = vec![Vec::new(); count];
        for (number, reads) in self.reads.iter().enumerate() {
            waiting[number] = reads.len() as u32;
            for &read in reads {
                readers[read as usize].push(number as u32);
            }
        }
        let key = |n: u32| {
            let kind = self.kinds[n as usize];
            Reverse((!kind.constant, !kind.shape, index(n), n))
        };
        let free = (0..count as u32).filter(|&n| waiting[n as usize] == 0);
        let mut ready: BinaryHeap<_> = free.map(key).collect();
        let mut order = Vec::with_capacity(count);
        while let Some(Reverse((_, _, _, number))) = ready.pop() {
            order.push(number);
            for &reader in &readers[number as usize] {
                waiting[reader as usize] -= 1;
                if waiting[reader as usize] == 0 {
                    ready.push(key(reader));
                }
            }
        }
        order
    }

    fn spans(&self, run: &Run) -> Spans {
        let mut spans: Spans = vec![None; self.bytes.len()];
        for (number, makes) in self.makes.iter().enumerate() {
            for &buffer in makes {
                let step = run.step[number];
                let end = if self.is_output[buffer as usize] {
                    u32::MAX
                } else {
                    step
                };
                spans[buffer as usize] = Some((step, end));
            }
        }
        for &number in &run.order {
            for &buffer in &self.touches[number as usize] {
                if let Some((_, last)) = &mut spans[buffer as usize] {
                    *last = (*last).max(run.step[number as usize]);
                }
            }
        }
        spans
    }

    /// The live bytes at each step.
    fn live(&self, run: &Run, spans: &Spans) -> Vec<i64> {
        let mut change = vec![0i64; run.order.len() + 1];
        for (buffer, span) in spans.iter().enumerate() {
            if let Some((birth, last)) = span {
                change[*birth as usize] += self.bytes[buffer];
                let end = (*last as usize).saturating_add(1).min(run.order.len());
                change[end] -= self.bytes[buffer];
            }
        }
        for (number, makes) in self.makes.iter().enumerate() {
            let (true, [made]) = (self.in_place[number], makes.as_slice()) else {
                continue;
            };
            let (step, bytes) = (run.step[number], self.bytes[*made as usize]);
            let dies = |buffer: &u32| {
                spans[*buffer as usize].is_some_and(|(birth, last)| last == step && birth < step)
                    && self.bytes[*buffer as usize] == bytes
            };
            if self.touches[number].iter().any(dies) {
                change[step as usize] -= bytes;
                change[step as usize + 1] += bytes;
            }
        }
        let mut live = 0;
        let steps = change[..run.order.len()].iter();
        steps
            .map(|c| {
                live += c;
                live
            })
            .collect()
    }

    /// The peak of a run, and the dependences that would bring it nearer to the plan where its live
    /// bytes are above what is allowed; at each such stretch, those at its highest step.
    pub fn violations(
        &self,
        plan: &Plan,
        run: &Run,
        can: impl Fn(&Dependence) -> bool,
    ) -> (i64, Vec<Dependence>) {
        let spans = self.spans(run);
        let live = self.live(run, &spans);
        let peak = live.iter().copied().max().unwrap_or(0);
        let mut highest: Vec<usize> = Vec::new();
        let mut above = false;
        for (step, &bytes) in live.iter().enumerate() {
            if bytes <= plan.allowed {
                above = false;
            } else if !std::mem::replace(&mut above, true) {
                highest.push(step);
            } else if let Some(top) = highest.last_mut()
                && bytes > live[*top]
            {
                *top = step;
            }
        }
        // A pin often mends more than the stretch that asked for it, so few are asked for at a time;
        // more where the graph is large, so that the rounds stay few.
        highest.sort_by_key(|&step| Reverse(live[step]));
        highest.truncate(1 + self.listed.len() / 2000);
        let mut found = Vec::new();
        for step in highest {
            self.explain(step, plan, run, &spans, &can, &mut found);
        }
        (peak, found)
    }

    /// Collects the dependences for one step.
    fn explain(
        &self,
        step: usize,
        plan: &Plan,
        run: &Run,
        spans: &Spans,
        can: &impl Fn(&Dependence) -> bool,
        found: &mut Vec<Dependence>,
    ) {
        let schedule = &plan.schedule;
        // The place in the schedule: the node of this step, or the next one of the graph's own.
        let own = |n: &&u32| (**n as usize) < self.listed.len();
        let Some(&here) = run.order[step..].iter().find(own) else {
            return;
        };
        let now = schedule.step[here as usize];
        let step = step as u32;
        for (buffer, span) in spans.iter().enumerate() {
            let (Some((birth, last)), Some((planned_birth, planned_last))) =
                (span, plan.spans[buffer])
            else {
                continue;
            };
            if self.bytes[buffer] < plan.worth || *birth > step || *last < step {
                continue;
            }
            if planned_birth > now {
                found.extend(self.delay(planned_birth, schedule, run, can));
            } else if planned_last < now {
                let readers = self.readers[buffer].iter().map(|&n| n as usize);
                for late in readers.filter(|&n| run.step[n] > step) {
                    found.extend(self.hasten(schedule.step[late], schedule, run, can));
                }
            }
        }
    }

    /// The node at a place of the schedule waits for the nearest one before it that runs later.
    fn delay(
        &self,
        place: u32,
        schedule: &Run,
        run: &Run,
        can: &impl Fn(&Dependence) -> bool,
    ) -> Option<Dependence> {
        let waiter = schedule.order[place as usize];
        let before = schedule.order[..place as usize].iter().rev();
        let later = { before }.filter(|&&n| run.step[n as usize] > run.step[waiter as usize]);
        self.first(later.map(|&awaited| (waiter, awaited)), schedule, can)
    }

    /// The nearest node behind a place of the schedule that runs before the node there waits for it.
    fn hasten(
        &self,
        place: u32,
        schedule: &Run,
        run: &Run,
        can: &impl Fn(&Dependence) -> bool,
    ) -> Option<Dependence> {
        let awaited = schedule.order[place as usize];
        let behind = schedule.order[place as usize + 1..].iter();
        let earlier = { behind }.filter(|&&n| run.step[n as usize] < run.step[awaited as usize]);
        self.first(earlier.map(|&waiter| (waiter, awaited)), schedule, can)
    }

    /// The first of pairs of a waiter and what it waits for that can be written.
    fn first(
        &self,
        mut pairs: impl Iterator<Item = (u32, u32)>,
        schedule: &Run,
        can: &impl Fn(&Dependence) -> bool,
    ) -> Option<Dependence> {
        let found = pairs.find_map(|(waiter, awaited)| {
            let dependence = Dependence {
                waiter: self.listed[waiter as usize],
                awaited: self.listed[awaited as usize],
            };
            can(&dependence).then_some(dependence)
        })?;
        Some(self.head(found, schedule, can))
    }

    /// The same dependence at the head of the chain that leads to the waiter: what the schedule has
    /// between the awaited node and the waiter, and the waiter reads, had better wait in its place,
    /// since then one pin holds the whole chain back.
    fn head(
        &self,
        found: Dependence,
        schedule: &Run,
        can: &impl Fn(&Dependence) -> bool,
    ) -> Dependence {
        let place = |node: u32| schedule.step[node as usize];
        let awaited = place(self.position[found.awaited.index()] as u32);
        let mut head = found;
        let mut here = self.position[found.waiter.index()];
        loop {
            let reads = self.reads[here].iter().copied();
            let own = reads.filter(|&r| (r as usize) < self.listed.len() && place(r) > awaited);
            // Each step goes to a producer, so the walk ends with the acyclic graph.
            let Some(next) = own.min_by_key(|&r| place(r)) else {
                return head;
            };
            here = next as usize;
            let candidate = Dependence {
                waiter: self.listed[here],
                ..found
            };
            if can(&candidate) {
                head = candidate;
            }
        }
    }
}
