//! Topological order, reachability, and the graph as petgraph's algorithms see it.

use super::{Graph, GraphError, NodeId};
use petgraph::Direction;
use petgraph::visit::{GraphBase, GraphRef, IntoNeighbors, IntoNeighborsDirected, Visitable};
use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashSet};

impl Graph {
    /// The nodes whose outputs a node reads, itself or in nested graphs; a node is listed once for
    /// each value that it provides.
    pub fn predecessors(&self, node: NodeId) -> impl Iterator<Item = NodeId> {
        let node = self.node(node);
        let read = node.inputs.iter().flatten().chain(&node.captures);
        read.filter_map(|&value| self.producer(value))
    }

    /// The nodes that read a node's outputs; a node is listed once for each read.
    pub fn successors(&self, node: NodeId) -> impl Iterator<Item = NodeId> {
        let made = self.node(node).outputs.iter().flatten();
        made.flat_map(|&value| &self.value(value).users)
            .map(|u| u.node)
    }

    /// The nodes in an order in which each comes after what it reads; where the file's own order is
    /// such an order, it is the one returned.
    ///
    /// # Errors
    /// [`GraphError::Cycle`] with the nodes of one cycle.
    pub fn topological_order(&self) -> Result<Vec<NodeId>, GraphError> {
        let mut waiting = vec![0usize; self.nodes.len()];
        let mut position = vec![0usize; self.nodes.len()];
        for (place, &id) in self.order.iter().enumerate() {
            position[id.index()] = place;
            waiting[id.index()] = self.predecessors(id).count();
        }
        let place = |id: NodeId| Reverse((position[id.index()], id));
        let free = self.order.iter().filter(|id| waiting[id.index()] == 0);
        let mut ready: BinaryHeap<_> = free.map(|&id| place(id)).collect();
        let mut sorted = Vec::with_capacity(self.order.len());
        while let Some(Reverse((_, id))) = ready.pop() {
            sorted.push(id);
            for next in self.successors(id) {
                waiting[next.index()] -= 1;
                if waiting[next.index()] == 0 {
                    ready.push(place(next));
                }
            }
        }
        if sorted.len() == self.order.len() {
            return Ok(sorted);
        }
        Err(self.cycle(&waiting))
    }

    /// Walks backwards among the nodes that never became ready until one comes up again.
    fn cycle(&self, waiting: &[usize]) -> GraphError {
        let mut path: Vec<NodeId> = Vec::new();
        let mut place = vec![None; self.nodes.len()];
        let mut here = self
            .order
            .iter()
            .copied()
            .find(|id| waiting[id.index()] > 0);
        while let Some(id) = here {
            if let Some(start) = place[id.index()] {
                path.drain(..start);
                break;
            }
            place[id.index()] = Some(path.len());
            path.push(id);
            here = self.predecessors(id).find(|p| waiting[p.index()] > 0);
        }
        path.reverse();
        let nodes = path.iter().map(|&id| self.node(id).label(self)).collect();
        GraphError::Cycle { nodes }
    }
}

/// A borrowed graph for petgraph, whose traits want a `Copy` handle.
#[derive(Clone, Copy)]
pub struct View<'g>(pub &'g Graph);

impl GraphBase for View<'_> {
    type NodeId = NodeId;
    type EdgeId = (NodeId, usize);
}

impl GraphRef for View<'_> {}

impl<'g> IntoNeighbors for View<'g> {
    type Neighbors = Box<dyn Iterator<Item = NodeId> + 'g>;

    fn neighbors(self, node: NodeId) -> Self::Neighbors {
        Box::new(self.0.successors(node))
    }
}

impl<'g> IntoNeighborsDirected for View<'g> {
    type NeighborsDirected = Box<dyn Iterator<Item = NodeId> + 'g>;

    fn neighbors_directed(self, node: NodeId, direction: Direction) -> Self::NeighborsDirected {
        match direction {
            Direction::Outgoing => Box::new(self.0.successors(node)),
            Direction::Incoming => Box::new(self.0.predecessors(node)),
        }
    }
}

impl Visitable for View<'_> {
    type Map = HashSet<NodeId>;

    fn visit_map(&self) -> Self::Map {
        HashSet::new()
    }

    fn reset_map(&self, map: &mut Self::Map) {
        map.clear();
    }
}
