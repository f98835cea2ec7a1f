//! What of the forward half to compute again in the backward half, in the place of saving it.
//!
//! - [`cost`]: what nodes take, in seconds.
//! - [`cut`]: which saved activations to keep, to compute again or to compress: a minimum cut.
//! - [`blocks`]: the repeated blocks of a model, for gradient checkpointing.
//!
//! Computing a node a second time changes no bit of what it makes, as long as the node is a function of its inputs:
//! what draws random numbers is kept.

pub mod blocks;
pub mod cost;
pub mod cut;

use super::buffers::Buffers;
use super::hoist::depends_on_inputs_only;
use super::partition::{Half, Partition};
use super::saved::needs_bytes;
use crate::ir::{Graph, Node, NodeId, Use};
use std::collections::BTreeSet;

/// Whether computing a node again makes the same values: it is a known operator that draws no random numbers,
/// has no nested graph, and is none of ours.
pub fn may_recompute(node: &Node) -> bool {
    matches!(node.domain(), "" | "com.microsoft")
        && node.op() != "Constant"
        && depends_on_inputs_only(node)
}

/// Of some forward nodes those that the backward half needs a second time: what they make is read by a backward
/// node, or by another of them that is needed.
pub fn needed(
    graph: &Graph,
    partition: &Partition,
    buffers: &Buffers,
    nodes: &BTreeSet<NodeId>,
) -> BTreeSet<NodeId> {
    // A graph without an order is refused by whoever changes it.
    let order = graph.topological_order().unwrap_or_default();
    let mut needed = BTreeSet::new();
    for id in order.into_iter().rev().filter(|id| nodes.contains(id)) {
        let made = graph.node(id).outputs.iter().flatten();
        let members = made.flat_map(|&value| buffers.members(value));
        let mut reads = members.flat_map(|&value| &graph.value(value).users);
        let late = |&Use { node, slot }: &Use| {
            let again = partition.half(node) == Half::Backward || needed.contains(&node);
            again && needs_bytes(graph.node(node), slot)
        };
        if reads.any(late) {
            needed.insert(id);
        }
    }
    needed
}
