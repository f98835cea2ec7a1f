//! The order of the nodes in the file.
//!
//! A compression runs right behind the tensor that it compresses, a node that needs only a shape as
//! soon as it can. For the rest several orders are made, and the one with the lowest peak is taken;
//! of equal ones the one nearest to the file's own:
//!
//! 1. the file's own order;
//! 2. *sunk*: a node that allocates at least as much as it frees waits for its first reader;
//! 3. either of them, *greedy*: a ready node that frees at least as much as it allocates runs at once
//!    (so does a weight gradient whose dY dies with it).
//!
//! Each order is made in time near-linear in the size of the graph.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use velora_graph::analysis::buffers::Buffers;
use velora_graph::analysis::lifetimes::{Lifetimes, Sizes, Uses};
use velora_graph::analysis::partition::compresses;
use velora_graph::ir::{Graph, GraphError, NodeId, Patch, ValueId};

/// The name of the pass.
pub const NAME: &str = "schedule";

/// An order of all nodes and its peak.
#[derive(Clone, Debug)]
pub struct Schedule {
    /// Every node once, after what it reads.
    pub order: Vec<NodeId>,
    /// The peak of the live bytes, at the sizes given.
    pub peak: i64,
}

/// The best order found for a graph.
///
/// # Errors
/// [`GraphError::Cycle`] where there is no order at all.
pub fn schedule(graph: &Graph, buffers: &Buffers, sizes: &Sizes) -> Result<Schedule, GraphError> {
    let uses = Uses::new(graph, buffers);
    let costs = Costs::new(graph, &uses, sizes);
    let links = Links::new(graph);
    let file = eager(&links, &graph.topological_order()?);
    let sunk = sunk(graph, &links, &costs, &file);
    let orders = [
        greedy(&links, &costs, &file),
        greedy(&links, &costs, &sunk),
        sunk,
    ];
    let peak = |order: &[NodeId]| Lifetimes::of(&uses, sizes, order).peak(sizes).0;
    let mut best = Schedule {
        peak: peak(&file),
        order: file,
    };
    for order in orders {
        let peak = peak(&order);
        if peak < best.peak {
            best = Schedule { order, peak };
        }
    }
    Ok(best)
}

/// The patch that lists the nodes in an order.
pub fn reorder(graph: &Graph, schedule: &Schedule) -> Patch {
    let mut patch = Patch::new(NAME, "nodes in the order with the lowest peak found");
    if schedule.order != graph.order() {
        patch.reorder(schedule.order.clone());
    }
    patch
}

/// Runs as soon as it can: compressions, so that their input can die, and what reads only a shape.
fn is_eager(graph: &Graph, id: NodeId) -> bool {
    let node = graph.node(id);
    compresses(node) || node.domain().is_empty() && matches!(node.op(), "Shape" | "Size")
}

/// The edges of a graph in few arrays, for several walks over all of them.
struct Links {
    /// By node: the span of `producers` that holds what it reads, one entry a read.
    reads: Vec<(usize, usize)>,
    producers: Vec<NodeId>,
    /// By node: the span of `consumers` that holds what reads it, one entry a read.
    made: Vec<(usize, usize)>,
    consumers: Vec<NodeId>,
    /// By node: whether it runs as soon as it can.
    eager: Vec<bool>,
}

impl Links {
    fn new(graph: &Graph) -> Self {
        let mut links = Links {
            reads: vec![(0, 0); graph.node_count()],
            producers: Vec::new(),
            made: vec![(0, 0); graph.node_count()],
            consumers: Vec::new(),
            eager: vec![false; graph.node_count()],
        };
        for &id in graph.order() {
            let start = links.producers.len();
            links.producers.extend(graph.predecessors(id));
            links.reads[id.index()] = (start, links.producers.len());
            let start = links.consumers.len();
            links.consumers.extend(graph.successors(id));
            links.made[id.index()] = (start, links.consumers.len());
            links.eager[id.index()] = is_eager(graph, id);
        }
        links
    }

    fn producers(&self, id: NodeId) -> &[NodeId] {
        let (start, end) = self.reads[id.index()];
        &self.producers[start..end]
    }

    fn consumers(&self, id: NodeId) -> &[NodeId] {
        let (start, end) = self.made[id.index()];
        &self.consumers[start..end]
    }
}

/// An order with the eager nodes moved up to where they become ready.
fn eager(links: &Links, base: &[NodeId]) -> Vec<NodeId> {
    let mut run = Run::new(links);
    for &id in base {
        run.emit_with_eager(id);
    }
    run.order
}

/// Nodes emitted so far, and how many producers each of the others waits for.
struct Run<'l> {
    links: &'l Links,
    order: Vec<NodeId>,
    waiting: Vec<usize>,
    done: Vec<bool>,
}

impl<'l> Run<'l> {
    fn new(links: &'l Links) -> Self {
        Run {
            links,
            order: Vec::with_capacity(links.reads.len()),
            waiting: links.reads.iter().map(|(start, end)| end - start).collect(),
            done: vec![false; links.reads.len()],
        }
    }

    /// Emits a node and hands on those that become ready.
    fn emit(&mut self, id: NodeId, mut ready: impl FnMut(NodeId)) {
        self.done[id.index()] = true;
        self.order.push(id);
        for &next in self.links.consumers(id) {
            self.waiting[next.index()] -= 1;
            if self.waiting[next.index()] == 0 {
                ready(next);
            }
        }
    }

    fn emit_with_eager(&mut self, id: NodeId) {
        let mut pending = vec![id];
        while let Some(id) = pending.pop() {
            if self.done[id.index()] || self.waiting[id.index()] > 0 {
                continue;
            }
            let links = self.links;
            self.emit(id, |next| {
                if links.eager[next.index()] {
                    pending.push(next);
                }
            });
        }
    }
}

/// What running each node allocates and may free.
struct Costs {
    /// By node: the bytes of the buffers that it makes.
    made: Vec<i64>,
    /// By node: the roots of the buffers that it reads, each once; only such as can be freed.
    reads: Vec<Vec<ValueId>>,
    /// By root: the nodes that read it, each once.
    readers: Vec<Vec<NodeId>>,
    /// By root.
    bytes: Vec<i64>,
}

impl Costs {
    fn new(graph: &Graph, uses: &Uses, sizes: &Sizes) -> Self {
        let mut costs = Costs {
            made: vec![0; graph.node_count()],
            reads: vec![Vec::new(); graph.node_count()],
            readers: vec![Vec::new(); graph.value_count()],
            bytes: vec![0; graph.value_count()],
        };
        for buffer in uses.buffers() {
            let (root, producer) = (buffer.root, buffer.producer);
            let bytes = sizes.of(root).unwrap_or(0);
            costs.bytes[root.index()] = bytes;
            costs.made[producer.index()] += bytes;
            if buffer.is_output {
                continue;
            }
            let mut readers = uses.readers(buffer).to_vec();
            readers.sort_unstable();
            readers.dedup();
            for reader in &readers {
                costs.reads[reader.index()].push(root);
            }
            costs.readers[root.index()] = readers;
        }
        costs
    }

    /// The bytes of what only this node reads.
    fn sole(&self, node: NodeId) -> i64 {
        let reads = self.reads[node.index()].iter();
        let sole = reads.filter(|r| self.readers[r.index()].len() == 1);
        sole.map(|r| self.bytes[r.index()]).sum()
    }
}

/// Nodes that allocate at least as much as they free, moved down to their first reader.
fn sunk(graph: &Graph, links: &Links, costs: &Costs, base: &[NodeId]) -> Vec<NodeId> {
    let mut run = Run::new(links);
    let mut position = vec![0usize; base.len()];
    for (place, id) in base.iter().enumerate() {
        position[id.index()] = place;
    }
    let sinks = |id: NodeId| {
        let node = graph.node(id);
        let output = node
            .outputs
            .iter()
            .flatten()
            .any(|&v| graph.value(v).is_output);
        !output && !links.eager[id.index()] && costs.made[id.index()] >= costs.sole(id)
    };
    let mut expanded = vec![false; base.len()];
    let mut demand = |run: &mut Run<'_>, target: NodeId| {
        // Producers first, in the order of the base; the stack replaces recursion. A node is
        // expanded once: what lies above it on the stack is done when it comes up again.
        let mut stack = vec![target];
        while let Some(&id) = stack.last() {
            if run.done[id.index()] {
                stack.pop();
            } else if std::mem::replace(&mut expanded[id.index()], true) {
                stack.pop();
                run.emit_with_eager(id);
            } else {
                let producers = links.producers(id).iter().copied();
                let mut missing: Vec<NodeId> = producers.filter(|p| !run.done[p.index()]).collect();
                missing.sort_unstable_by_key(|p| std::cmp::Reverse(position[p.index()]));
                missing.dedup();
                stack.extend(missing);
            }
        }
    };
    for &id in base {
        if !sinks(id) {
            demand(&mut run, id);
        }
    }
    // What nothing asked for reaches no output and comes last.
    for &id in base {
        demand(&mut run, id);
    }
    run.order
}

/// A ready node that frees at least as much as it allocates runs at once; otherwise the next node of
/// the base.
fn greedy(links: &Links, costs: &Costs, base: &[NodeId]) -> Vec<NodeId> {
    let mut position = vec![0usize; base.len()];
    for (place, id) in base.iter().enumerate() {
        position[id.index()] = place;
    }
    let mut left: Vec<usize> = costs.readers.iter().map(Vec::len).collect();
    let net = |left: &[usize], id: NodeId| {
        let reads = costs.reads[id.index()].iter();
        let freed: i64 = { reads }
            .filter(|r| left[r.index()] == 1)
            .map(|r| costs.bytes[r.index()])
            .sum();
        costs.made[id.index()] - freed
    };
    let mut run = Run::new(links);
    // Ready nodes by position, and those among them that cost nothing by what they cost.
    let mut waiting = BinaryHeap::new();
    let mut free = BinaryHeap::new();
    let admit =
        |id: NodeId, left: &[usize], waiting: &mut BinaryHeap<_>, free: &mut BinaryHeap<_>| {
            let cost = net(left, id);
            if cost <= 0 || links.eager[id.index()] {
                free.push(Reverse((cost, position[id.index()], id)));
            }
            waiting.push(Reverse((position[id.index()], id)));
        };
    for &id in base {
        if run.waiting[id.index()] == 0 {
            admit(id, &left, &mut waiting, &mut free);
        }
    }
    loop {
        let next = match free.pop() {
            Some(Reverse((_, _, id))) => id,
            None => match waiting.pop() {
                Some(Reverse((_, id))) => id,
                None => break,
            },
        };
        if run.done[next.index()] {
            continue;
        }
        let mut ready = Vec::new();
        run.emit(next, |id| ready.push(id));
        for root in &costs.reads[next.index()] {
            left[root.index()] -= 1;
            if left[root.index()] == 1 {
                // The last reader left may cost nothing now.
                let last = costs.readers[root.index()]
                    .iter()
                    .find(|r| !run.done[r.index()]);
                if let Some(&last) = last
                    && run.waiting[last.index()] == 0
                    && net(&left, last) <= 0
                {
                    free.push(Reverse((net(&left, last), position[last.index()], last)));
                }
            }
        }
        for id in ready {
            admit(id, &left, &mut waiting, &mut free);
        }
    }
    run.order
}
