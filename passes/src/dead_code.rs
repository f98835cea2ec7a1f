//! Removes what a rewrite left without readers.
//!
//! Only nodes that were alive before: what the file carried for no reader's sake stays in it. An
//! initialiser goes with its last reader.

use std::collections::HashSet;
use velora_graph::ir::{Graph, NodeId, Origin, Patch, ValueId};

/// The name of the pass.
pub const NAME: &str = "dead-code";

/// Names of values that nothing computed for an output needs: made by dead nodes, or unread.
pub fn idle(graph: &Graph) -> HashSet<String> {
    let alive = alive(graph);
    let is_idle = |value: &ValueId| match graph.value(*value).origin {
        Origin::Node(node, _) => !alive[node.index()],
        _ => graph.value(*value).users.is_empty(),
    };
    let names = graph.values().filter(is_idle);
    names.map(|v| graph.value(v).name.clone()).collect()
}

/// The patch that removes dead nodes and unread initialisers, except those idle before.
pub fn dead_code(graph: &Graph, idle_before: &HashSet<String>) -> Patch {
    let mut patch = Patch::new(NAME, "nodes and constants that nothing reads any longer");
    let alive = alive(graph);
    let mut removed: HashSet<NodeId> = HashSet::new();
    for &id in graph.order() {
        let mut outputs = graph.node(id).outputs.iter().flatten();
        let was_alive = outputs.any(|&v| !idle_before.contains(&graph.value(v).name));
        if !alive[id.index()] && was_alive {
            patch.remove(id);
            removed.insert(id);
        }
    }
    for value in graph.values() {
        let Origin::Initializer(_) = graph.value(value).origin else {
            continue;
        };
        let found = graph.value(value);
        let unread = found.users.iter().all(|u| removed.contains(&u.node)) && !found.is_output;
        if unread && !idle_before.contains(&found.name) {
            patch.remove_initializer(found.name.clone());
        }
    }
    patch
}

/// By node: whether an output of the graph depends on it.
fn alive(graph: &Graph) -> Vec<bool> {
    let mut alive = vec![false; graph.node_count()];
    let mut pending: Vec<NodeId> = graph
        .outputs()
        .iter()
        .filter_map(|&v| graph.producer(v))
        .collect();
    while let Some(node) = pending.pop() {
        if !std::mem::replace(&mut alive[node.index()], true) {
            pending.extend(graph.predecessors(node));
        }
    }
    alive
}
