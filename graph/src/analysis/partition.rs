//! Forward and backward.

use super::hoist::{MASKED, Move};
use super::roles::Roles;
use crate::ir::{Graph, Node, NodeId, ValueId, View};
use petgraph::visit::{NodeFiltered, Reversed, Walker};
use std::collections::BTreeSet;

/// Which half of a training step a node belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Half {
    /// An ancestor of the loss or of another output that is computed without gradients; or, though only
    /// gradients depend on it, what runs where its inputs are born: part of a compression, and what was
    /// moved there.
    Forward,
    /// Not forward, and an ancestor of a gradient, of an updated parameter, or of an output computed
    /// from gradients.
    Backward,
    /// Reaches no output by value; the dependences of pins are among these.
    Dead,
}

/// The half of every node.
#[derive(Clone, Debug)]
pub struct Partition {
    halves: Vec<Half>,
    /// Reads of backward nodes that are done in the forward half.
    early: BTreeSet<(NodeId, usize)>,
    /// Forward nodes that are computed a second time in the backward half, for what reads them there.
    again: BTreeSet<NodeId>,
}

impl Partition {
    /// Divides a graph by what each node reaches. Pins are not followed: they order nodes and hand on
    /// no value.
    pub fn new(graph: &Graph, roles: &Roles) -> Self {
        let mut halves = vec![Half::Dead; graph.order().len()];
        mark(graph, [roles.loss], Half::Forward, &mut halves);
        let forward = halves.clone();
        let gradients = roles.gradients.iter().map(|&(_, output)| output);
        mark(graph, gradients, Half::Backward, &mut halves);
        let below = measures_gradients(graph, &halves);
        let (measured, predicted): (Vec<_>, Vec<_>) = (roles.others.iter().copied())
            .partition(|&output| graph.producer(output).is_some_and(|n| below[n.index()]));
        let mut halves = forward;
        mark(graph, predicted, Half::Forward, &mut halves);
        let gradients = roles.gradients.iter().map(|&(_, output)| output);
        mark(
            graph,
            gradients.chain(measured),
            Half::Backward,
            &mut halves,
        );
        for &node in graph.order() {
            let half = &mut halves[node.index()];
            if *half == Half::Backward && runs_early(graph.node(node)) {
                *half = Half::Forward;
            }
        }
        Partition {
            halves,
            early: BTreeSet::new(),
            again: BTreeSet::new(),
        }
    }

    /// The halves once forward nodes are computed again in the backward half: what they make is not saved,
    /// and what they read is.
    pub fn recomputed(&self, nodes: impl IntoIterator<Item = NodeId>) -> Self {
        let mut partition = self.clone();
        partition.again.extend(nodes);
        partition
    }

    /// Whether a forward node is computed again in the backward half.
    pub fn is_recomputed(&self, node: NodeId) -> bool {
        self.again.contains(&node)
    }

    /// The halves once work of the backward half is done in the forward half.
    pub fn hoisted<'m>(&self, moves: impl IntoIterator<Item = &'m Move>) -> Self {
        let mut partition = self.clone();
        for work in moves {
            match *work {
                Move::Node(node) => partition.halves[node.index()] = Half::Forward,
                Move::Mask(node) => {
                    partition.early.insert((node, MASKED));
                }
            }
        }
        partition
    }

    /// Whether the backward half needs a value for a read of it, be it to compute something again.
    pub fn reads_late(&self, node: NodeId, slot: Option<usize>) -> bool {
        let early = slot.is_some_and(|slot| self.early.contains(&(node, slot)));
        self.half(node) == Half::Backward && !early || self.is_recomputed(node)
    }

    /// The half that a node belongs to.
    pub fn half(&self, node: NodeId) -> Half {
        self.halves[node.index()]
    }

    /// The values that forward nodes make and backward nodes read, by id: every one of them lives
    /// from the one half into the other. Views are not merged here.
    pub fn saved(&self, graph: &Graph) -> Vec<ValueId> {
        let forward = |node| self.half(node) == Half::Forward;
        let crosses = |value: &ValueId| {
            let producer = graph.producer(*value);
            let made = producer.is_some_and(|node| forward(node) && !self.is_recomputed(node));
            let users = &graph.value(*value).users;
            made && users.iter().any(|u| self.reads_late(u.node, u.slot))
        };
        graph.values().filter(crosses).collect()
    }
}

/// Whether a node belongs to the forward half though nothing but gradients depends on it: it is part of
/// a compression, or it was moved there.
pub fn runs_early(node: &Node) -> bool {
    let compresses = matches!(
        node.velora_op(),
        Some("Compress" | "MeanDirection" | "MeanDirections" | "RunningDirection" | "Quantize")
    );
    compresses || was_moved(node)
}

/// Whether a node was moved into the forward half, or made to run there.
pub fn was_moved(node: &Node) -> bool {
    node.metadata("velora.half") == Some("forward")
}

/// Whether a node is the second computation of a forward node.
pub fn is_copy(node: &Node) -> bool {
    node.metadata("velora.half") == Some("backward")
}

/// By node: whether it is computed from gradients: a matrix product lies above it that gradients
/// depend on and the loss does not. What such an output measures (a norm of gradients, say) is no
/// part of the forward pass.
fn measures_gradients(graph: &Graph, halves: &[Half]) -> Vec<bool> {
    let mut below = vec![false; halves.len()];
    let products = graph.order().iter().copied().filter(|id| {
        let product = matches!(graph.node(*id).op(), "MatMul" | "Gemm" | "FusedMatMul");
        product && halves[id.index()] == Half::Backward
    });
    let mut pending: Vec<NodeId> = products.collect();
    while let Some(id) = pending.pop() {
        if !orders_only(graph.node(id)) && !std::mem::replace(&mut below[id.index()], true) {
            pending.extend(graph.successors(id));
        }
    }
    below
}

/// Whether a node makes the dependence of a pin; its `Reshape`, which hands the value on, does not.
fn orders_only(node: &Node) -> bool {
    node.metadata("velora.op") == Some("Pin") && node.op() != "Reshape"
}

/// Marks the ancestors of values that have no mark yet.
fn mark(graph: &Graph, from: impl IntoIterator<Item = ValueId>, half: Half, halves: &mut [Half]) {
    let values = NodeFiltered::from_fn(View(graph), |id| !orders_only(graph.node(id)));
    let up = Reversed(&values);
    let mut walk = petgraph::visit::Dfs::empty(up);
    for root in from.into_iter().filter_map(|value| graph.producer(value)) {
        walk.move_to(root);
        for node in (&mut walk).iter(up) {
            if halves[node.index()] == Half::Dead {
                halves[node.index()] = half;
            }
        }
    }
}
