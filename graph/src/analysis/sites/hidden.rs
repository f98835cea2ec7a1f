//! Gradients that a function of the model or a nested graph computes: whether a contraction is in there is out
//! of sight.

use super::{Kind, Obstacle, Source, Unfit, Walk, is_float};
use crate::ir::{NodeId, ValueId};

/// What a call or a node with nested graphs at the end of a walk is, where it reads what forward made.
pub(super) fn source(walk: &Walk<'_>, parameter: ValueId, id: NodeId) -> Source {
    let node = walk.graph.node(id);
    let why = match (node.domain(), node.op()) {
        ("", "If" | "Loop" | "Scan") => "a nested graph computes its gradient",
        ("" | "com.microsoft" | "ai.velora", _) => return Source::Other,
        (domain, _) if domain.starts_with("ai.onnx") => return Source::Other,
        _ => "a function of the model computes its gradient: export the graph without functions",
    };
    let read = node.inputs.iter().flatten().chain(&node.captures).copied();
    let mut saved = read.filter(|&value| {
        let made = walk.graph.producer(value).is_some_and(|n| walk.forward(n));
        made && is_float(walk.shapes.of(value).data_type)
    });
    match saved.next() {
        Some(activation) => Source::of(Err(Unfit {
            parameter,
            kind: Kind::Linear,
            product: id,
            activation: walk.buffers.root(activation),
            obstacle: Obstacle::Hidden,
            why,
        })),
        None => Source::Other,
    }
}
