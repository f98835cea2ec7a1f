//! Which saved activations to keep, to compute again or to compress.
//!
//! Every forward node n is computed once in the forward half, and perhaps a second time in the backward half; every
//! buffer r that it makes is *available* in backward (saved, or computed again) or not. Work of the backward half
//! that needs forward values only ([`hoist`](super::super::hoist)) is of the same kind, but that to do it there
//! costs nothing. With "available" and "computed again" on the sink's side, the choice with the least cost is a
//! minimum cut:
//!
//! ```text
//! source ── seconds(n) · price ──► n            n is computed again        (∞ where it must not be)
//! n ── bytes(r) ──► r                           r is saved
//! r ── ∞ ──► m                                  m, computed again, reads r
//! r ── ∞ ──► sink                               a backward node reads r
//! r ── ∞ ──► k,  k ── compressed bytes ──► sink only weight gradients read r through k, which z can serve
//! source ── seconds saved by z · price ──► k    the exact gradient takes longer
//! ```
//!
//! `price` is what a second is worth in bytes: at 0 the fewest bytes are saved, whatever that takes; the higher it
//! is, the less is computed again. What is alive in any case (inputs, constants, outputs) costs nothing to read.

use super::cost::Costs;
use super::may_recompute;
use crate::analysis::hoist::{Context, Early};
use crate::analysis::min_cut::{Network, Vertex};
use crate::analysis::partition::Half;
use crate::analysis::saved::needs_bytes;
use crate::ir::{GraphError, NodeId, ValueId};
use std::collections::{BTreeMap, BTreeSet};

/// No second is worth more bytes than this, so that sums fit 64 bits.
const MOST: f64 = 1e15;

/// The compressed form of a tensor that weight gradients read.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Compressed {
    /// What is saved of it.
    pub bytes: i64,
    /// By how much the weight gradients are faster with it; negative where they are not.
    pub seconds: f64,
}

/// What may be chosen, and what it is worth.
#[derive(Clone, Debug)]
pub struct Terms<'a> {
    /// Bytes that a second is worth.
    pub price: f64,
    /// Whether matrix products may be computed again.
    pub products: bool,
    /// Nodes that run once, whatever their operators say.
    pub once: &'a BTreeSet<NodeId>,
    /// Roots that are saved, and cost nothing.
    pub keep: &'a BTreeSet<ValueId>,
    /// By root: what may be compressed.
    pub compressed: &'a BTreeMap<ValueId, Compressed>,
}

/// What is to become of the saved activations.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Choice {
    /// Forward nodes that are computed again, by id.
    pub recompute: BTreeSet<NodeId>,
    /// Roots that are saved in their compressed form only.
    pub compress: BTreeSet<ValueId>,
    /// Bytes saved then.
    pub saved: i64,
    /// Seconds that a step takes longer for what is computed again.
    pub seconds: f64,
}

/// A graph, ready to be cut at several prices.
pub struct Problem<'a> {
    context: Context<'a>,
    costs: Costs<'a>,
    early: Early,
    /// The nodes that have a vertex, in order.
    nodes: Vec<NodeId>,
    /// The buffers that they make.
    buffers: Vec<Buffer>,
    /// By root: its place among the buffers.
    places: Vec<Option<usize>>,
}

/// A buffer of the forward half, or of early work of the backward half.
struct Buffer {
    root: ValueId,
    producer: NodeId,
    bytes: i64,
    /// Backward nodes that read it in any case.
    needed: bool,
    /// Such as only its original can serve.
    fixed: bool,
    /// Whether weight gradients read it.
    contracted: bool,
    /// Bytes of the masks that `ReluGrad`s may read in its place.
    masks: usize,
}

impl<'a> Problem<'a> {
    /// Collects what there is to choose.
    ///
    /// # Errors
    /// [`GraphError::Cycle`] where the graph has no order.
    pub fn new(context: Context<'a>, costs: Costs<'a>) -> Result<Self, GraphError> {
        let graph = context.graph;
        let order = graph.topological_order()?;
        let early = Early::new(&context, &order);
        let mut problem = Problem {
            nodes: Vec::new(),
            buffers: Vec::new(),
            places: vec![None; graph.value_count()],
            context,
            costs,
            early,
        };
        let in_network = |id: &NodeId| problem.is_in_network(*id);
        problem.nodes = order.into_iter().filter(in_network).collect();
        for root in context.buffers.roots(graph) {
            let producer = graph.producer(root).filter(|&id| problem.is_in_network(id));
            if let Some(producer) = producer
                && !graph.is_constant(root)
                && !problem.costs.is_arithmetic(root)
            {
                let buffer = problem.buffer(root, producer);
                problem.places[root.index()] = Some(problem.buffers.len());
                problem.buffers.push(buffer);
            }
        }
        Ok(problem)
    }

    /// What nodes cost.
    pub fn costs(&self) -> &Costs<'a> {
        &self.costs
    }

    /// Forward nodes, and backward ones that need forward values only.
    fn is_in_network(&self, id: NodeId) -> bool {
        match self.context.partition.half(id) {
            Half::Forward => true,
            Half::Backward => self.early.is_candidate(id),
            Half::Dead => false,
        }
    }

    fn is_forward(&self, id: NodeId) -> bool {
        self.context.partition.half(id) == Half::Forward
    }

    fn buffer(&self, root: ValueId, producer: NodeId) -> Buffer {
        let Context { graph, buffers, .. } = self.context;
        let is_output = |&value: &ValueId| graph.value(value).is_output;
        let outlives = buffers.members(root).iter().any(is_output);
        let mut buffer = Buffer {
            root,
            producer,
            // What lives to the end costs nothing to keep, and of what has no size nothing is known.
            bytes: self
                .context
                .sizes
                .of(root)
                .filter(|_| !outlives)
                .unwrap_or(0),
            needed: false,
            fixed: self.context.sizes.of(root).is_none(),
            contracted: false,
            masks: 0,
        };
        for reader in self.context.readers(root) {
            if self.early.is_candidate(reader.node) {
                continue;
            } else if self.context.contracts(&reader) {
                buffer.contracted = true;
            } else if self.early.masks(&self.context, &reader) {
                buffer.masks += 1;
            } else {
                buffer.needed = true;
                buffer.fixed |= reader.slot.is_none();
            }
        }
        buffer
    }

    /// The buffers that a node needs the bytes of, by place.
    fn reads(&self, id: NodeId) -> impl Iterator<Item = usize> {
        let node = self.context.graph.node(id);
        let slots = node.inputs.iter().enumerate();
        let read = slots.filter(|&(slot, _)| needs_bytes(node, Some(slot)));
        let read = read.filter_map(|(_, value)| *value);
        let read = read.chain(node.captures.iter().copied());
        read.filter_map(|value| self.place_of(value))
    }

    fn place_of(&self, value: ValueId) -> Option<usize> {
        self.places[self.context.buffers.root(value).index()]
    }

    /// The cheapest choice.
    pub fn cut(&self, terms: &Terms<'_>) -> Choice {
        let mut network = Network::default();
        let (source, sink) = (network.vertex(), network.vertex());
        let worth = |seconds: f64| (seconds * terms.price).ceil().clamp(0.0, MOST) as u64;
        let capacity = |bytes: i64| u64::try_from(bytes).unwrap_or(0);
        let mut nodes: Vec<Option<Vertex>> = vec![None; self.context.graph.node_count()];
        for &id in &self.nodes {
            let vertex = network.vertex();
            nodes[id.index()] = Some(vertex);
            if self.is_forward(id) {
                match self.may_recompute(id, terms) {
                    true => network.edge(source, vertex, worth(self.costs.node(id))),
                    false => network.bind(source, vertex),
                }
            }
        }
        let available: Vec<Vertex> = self.buffers.iter().map(|_| network.vertex()).collect();
        let mut compressed: BTreeMap<ValueId, Vertex> = BTreeMap::new();
        for (buffer, &vertex) in self.buffers.iter().zip(&available) {
            let Some(maker) = nodes[buffer.producer.index()] else {
                continue;
            };
            let kept = terms.keep.contains(&buffer.root);
            match kept {
                true => network.bind(source, maker),
                false => network.edge(maker, vertex, capacity(buffer.bytes)),
            }
            if buffer.fixed {
                network.bind(source, maker);
            }
            if buffer.needed && !kept {
                network.bind(vertex, sink);
            }
            for _ in 0..buffer.masks {
                // Of four bytes an element is one; done in the forward half.
                let mask = network.vertex();
                network.bind(vertex, mask);
                network.edge(mask, sink, capacity(buffer.bytes / 4));
            }
            if buffer.contracted && !kept {
                match terms.compressed.get(&buffer.root) {
                    Some(form) => {
                        let serves = network.vertex();
                        network.bind(vertex, serves);
                        network.edge(source, serves, worth(form.seconds));
                        network.edge(serves, sink, capacity(form.bytes).max(1));
                        compressed.insert(buffer.root, serves);
                    }
                    None => network.bind(vertex, sink),
                }
            }
        }
        for &id in &self.nodes {
            for place in self.reads(id) {
                if let Some(vertex) = nodes[id.index()]
                    && !terms.keep.contains(&self.buffers[place].root)
                {
                    network.bind(available[place], vertex);
                }
            }
        }
        let forward = network.source_side(source, sink);
        let again = |id: NodeId| nodes[id.index()].is_some_and(|v| !forward[v.index()]);
        let compress = { compressed.into_iter() }.filter(|(_, v)| forward[v.index()]);
        self.choice(terms, again, compress.map(|(root, _)| root).collect())
    }

    fn may_recompute(&self, id: NodeId, terms: &Terms<'_>) -> bool {
        let node = self.context.graph.node(id);
        let product = super::cost::class(node) == super::cost::Class::Products;
        may_recompute(node) && (terms.products || !product) && !terms.once.contains(&id)
    }

    /// Follows what the backward half needs: of what could be computed again, only that is.
    fn choice(
        &self,
        terms: &Terms<'_>,
        again: impl Fn(NodeId) -> bool,
        compress: BTreeSet<ValueId>,
    ) -> Choice {
        let mut choice = Choice::default();
        let mut wanted = vec![false; self.buffers.len()];
        let mut pending: Vec<usize> = Vec::new();
        for (place, buffer) in self.buffers.iter().enumerate() {
            let contracted = buffer.contracted && !compress.contains(&buffer.root);
            if buffer.needed || contracted {
                pending.push(place);
            }
        }
        for &id in &self.nodes {
            // Early work that stays where it is.
            if !self.is_forward(id) && again(id) {
                pending.extend(self.reads(id));
            }
        }
        while let Some(place) = pending.pop() {
            if std::mem::replace(&mut wanted[place], true) {
                continue;
            }
            let buffer = &self.buffers[place];
            if !again(buffer.producer) {
                choice.saved = choice.saved.saturating_add(buffer.bytes);
            } else if self.is_forward(buffer.producer) && choice.recompute.insert(buffer.producer) {
                choice.seconds += self.costs.node(buffer.producer);
                pending.extend(self.reads(buffer.producer));
            }
        }
        for root in &compress {
            if let Some(form) = terms.compressed.get(root) {
                choice.saved = choice.saved.saturating_add(form.bytes);
            }
        }
        choice.compress = compress;
        choice
    }
}
