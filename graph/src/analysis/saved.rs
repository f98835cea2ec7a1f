//! Saved activations: what the forward half makes and the backward half reads.

use super::buffers::{Buffers, is_view};
use super::partition::{Half, Partition};
use crate::ir::{Graph, Node, NodeId, Use, ValueId};

/// A buffer that lives from the forward half into the backward half.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SavedActivation {
    /// The root of the buffer.
    pub buffer: ValueId,
    /// Who reads it in backward, through whichever view; views themselves are no readers.
    pub readers: Vec<Reader>,
}

/// A backward read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Reader {
    /// The backward node.
    pub node: NodeId,
    /// Which of its inputs, or `None` where a graph nested in the node captures the value.
    pub slot: Option<usize>,
    /// The root or the view that it reads.
    pub value: ValueId,
}

/// Whether a node needs only the *shape* of what it reads there. Such a read keeps no bytes: the
/// shape is known when the tensor is born.
pub fn needs_shape_only(node: &Node, slot: Option<usize>) -> bool {
    match (node.domain(), node.op(), slot) {
        ("", "Shape" | "Size", Some(0)) => true,
        // An empty slice, of which nothing but the moment of its making matters.
        ("", "Slice", Some(0)) => node.metadata("velora.op") == Some("Pin"),
        _ => false,
    }
}

/// Whether a read keeps the bytes of what is read: a view hands them on, and a shape needs none.
pub fn needs_bytes(node: &Node, slot: Option<usize>) -> bool {
    let view = slot == Some(0) && is_view(node);
    !view && !needs_shape_only(node, slot)
}

/// Values that hold nothing but shapes and constants, by value: shape arithmetic is done before the
/// step runs, so none of them is an activation, however late it is read.
pub fn shape_arithmetic(graph: &Graph) -> Vec<bool> {
    let mut known = vec![false; graph.value_count()];
    let order = graph.topological_order();
    // A graph that could be indexed has an order; without one nothing is claimed.
    for id in order.unwrap_or_default() {
        let node = graph.node(id);
        let follows = match (node.domain(), node.op()) {
            ("", "Shape" | "Size") => true,
            (
                "",
                "Add" | "Sub" | "Mul" | "Div" | "Mod" | "Neg" | "Abs" | "Min" | "Max" | "Concat"
                | "Cast" | "Equal" | "Where" | "ReduceProd" | "Range",
            ) => from_shapes(graph, node, &known),
            // A piece of a shape is one; a piece of a constant table, cut to a shape, is data.
            (
                "",
                "Gather" | "Slice" | "Reshape" | "Squeeze" | "Unsqueeze" | "Flatten" | "Identity",
            ) => {
                let whole = node.inputs.first().copied().flatten();
                whole.is_some_and(|v| known[v.index()]) && from_shapes(graph, node, &known)
            }
            _ => false,
        };
        if follows {
            for output in node.outputs.iter().flatten() {
                known[output.index()] = true;
            }
        }
    }
    known
}

fn from_shapes(graph: &Graph, node: &Node, known: &[bool]) -> bool {
    let mut inputs = node.inputs.iter().flatten();
    inputs.all(|&v| known[v.index()] || graph.is_constant(v))
}

/// All saved activations, by id of their buffer.
pub fn saved_activations(
    graph: &Graph,
    partition: &Partition,
    buffers: &Buffers,
) -> Vec<SavedActivation> {
    let shapes = shape_arithmetic(graph);
    let mut found = Vec::new();
    for buffer in buffers.roots(graph) {
        let forward = |node| partition.half(node) == Half::Forward;
        if shapes[buffer.index()]
            || graph.is_constant(buffer)
            || !graph.producer(buffer).is_some_and(forward)
        {
            continue;
        }
        let readers = readers(graph, partition, buffers, buffer);
        if !readers.is_empty() {
            found.push(SavedActivation { buffer, readers });
        }
    }
    found
}

/// The backward readers of a buffer, in node order; none of one that is computed again there.
pub fn readers(
    graph: &Graph,
    partition: &Partition,
    buffers: &Buffers,
    buffer: ValueId,
) -> Vec<Reader> {
    let mut readers = Vec::new();
    let producer = graph.producer(buffer);
    if producer.is_some_and(|node| partition.is_recomputed(node)) {
        return readers;
    }
    for &value in buffers.members(buffer) {
        for &Use { node, slot } in &graph.value(value).users {
            let reading = graph.node(node);
            if partition.reads_late(node, slot) && needs_bytes(reading, slot) {
                readers.push(Reader { node, slot, value });
            }
        }
    }
    readers.sort_by_key(|r| (r.node, r.slot));
    readers
}
