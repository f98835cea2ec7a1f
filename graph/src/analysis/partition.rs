//! Forward and backward.

use super::roles::Roles;
use crate::ir::{Graph, Node, NodeId, ValueId};

/// Which half of a training step a node belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Half {
    /// An ancestor of the loss or of another output that is no gradient; or part of a compression,
    /// which runs where its input is born.
    Forward,
    /// Not forward, and an ancestor of a gradient or an updated parameter.
    Backward,
    /// Reaches no output.
    Dead,
}

/// The half of every node.
#[derive(Clone, Debug)]
pub struct Partition {
    halves: Vec<Half>,
}

impl Partition {
    /// Divides a graph by what each node reaches.
    pub fn new(graph: &Graph, roles: &Roles) -> Self {
        let mut halves = vec![Half::Dead; graph.order().len()];
        let forward = std::iter::once(roles.loss).chain(roles.others.iter().copied());
        mark(graph, forward, Half::Forward, &mut halves);
        let gradients = roles.gradients.iter().map(|&(_, output)| output);
        mark(graph, gradients, Half::Backward, &mut halves);
        for &node in graph.order() {
            let half = &mut halves[node.index()];
            if *half == Half::Backward && compresses(graph.node(node)) {
                *half = Half::Forward;
            }
        }
        Partition { halves }
    }

    /// The half that a node belongs to.
    pub fn half(&self, node: NodeId) -> Half {
        self.halves[node.index()]
    }

    /// The values that forward nodes make and backward nodes read, by id: every one of them lives
    /// from the one half into the other. Views are not merged here.
    pub fn saved(&self, graph: &Graph) -> Vec<ValueId> {
        let is = |node, half| self.half(node) == half;
        let crosses = |value: &ValueId| {
            let made = graph.producer(*value).is_some_and(|n| is(n, Half::Forward));
            let users = &graph.value(*value).users;
            made && users.iter().any(|u| is(u.node, Half::Backward))
        };
        graph.values().filter(crosses).collect()
    }
}

/// Whether a node is part of a compression: it belongs to the forward half, where its input is born,
/// though nothing but gradients depends on it.
fn compresses(node: &Node) -> bool {
    let op = match node.domain() {
        "ai.velora" => Some(node.op()),
        _ => node.metadata("velora.op"),
    };
    matches!(op, Some("Compress" | "MeanDirection"))
}

/// A pin makes a node wait and hands on no value: by itself it draws nothing into a half.
fn only_waits(node: &Node, slot: usize) -> bool {
    node.op() == "Reshape" && slot == 1 && node.metadata("velora.op") == Some("Pin")
}

fn mark(graph: &Graph, from: impl Iterator<Item = ValueId>, half: Half, halves: &mut [Half]) {
    let mut pending: Vec<NodeId> = from.filter_map(|value| graph.producer(value)).collect();
    while let Some(id) = pending.pop() {
        // What a node of a half depends on is of that half already.
        if halves[id.index()] != Half::Dead {
            continue;
        }
        halves[id.index()] = half;
        let node = graph.node(id);
        let read = node.inputs.iter().enumerate();
        let read = read.filter_map(|(slot, value)| value.filter(|_| !only_waits(node, slot)));
        let read = read.chain(node.captures.iter().copied());
        pending.extend(read.filter_map(|value| graph.producer(value)));
    }
}
