//! Minimum cuts of networks with capacities.

use petgraph::Direction;
use petgraph::algo::dinics;
use petgraph::graph::{DiGraph, NodeIndex};
use petgraph::visit::EdgeRef;

/// A network under construction. Edges without a capacity are never cut.
#[derive(Debug, Default)]
pub(super) struct Network {
    graph: DiGraph<(), Option<u64>>,
}

/// A vertex of a [`Network`].
pub(super) type Vertex = NodeIndex;

impl Network {
    /// Adds a vertex.
    pub(super) fn vertex(&mut self) -> Vertex {
        self.graph.add_node(())
    }

    /// Adds an edge that costs so much to cut.
    pub(super) fn edge(&mut self, from: Vertex, to: Vertex, capacity: u64) {
        if capacity > 0 {
            self.graph.add_edge(from, to, Some(capacity));
        }
    }

    /// Adds an edge that cannot be cut: where `from` is on the source's side, `to` is as well.
    pub(super) fn bind(&mut self, from: Vertex, to: Vertex) {
        self.graph.add_edge(from, to, None);
    }

    /// By vertex: whether it is on the source's side of a minimum cut; of several the one with the smallest such
    /// side.
    pub(super) fn source_side(&self, source: Vertex, sink: Vertex) -> Vec<bool> {
        // More than all that could be cut.
        let capacities = self.graph.edge_weights().flatten();
        let endless = capacities.fold(1, |sum: u64, &c| sum.saturating_add(c));
        let network = self
            .graph
            .map(|_, ()| (), |_, capacity| capacity.unwrap_or(endless));
        let (_, flows) = dinics(&network, source, sink);
        reached(&network, source, &flows)
    }
}

/// By vertex: whether more could flow to it from the source.
fn reached(network: &DiGraph<(), u64>, source: Vertex, flows: &[u64]) -> Vec<bool> {
    let mut reached = vec![false; network.node_count()];
    let mut pending = vec![source];
    while let Some(node) = pending.pop() {
        if std::mem::replace(&mut reached[node.index()], true) {
            continue;
        }
        let open = network.edges(node);
        let open = open.filter(|edge| flows[edge.id().index()] < *edge.weight());
        pending.extend(open.map(|edge| edge.target()));
        let back = network.edges_directed(node, Direction::Incoming);
        let back = back.filter(|edge| flows[edge.id().index()] > 0);
        pending.extend(back.map(|edge| edge.source()));
    }
    reached
}
