//! Embeddings: rows of dY are added up at the places that the indices name; no activation is read.

use super::{Kind, Obstacle, Source, Unfit, Walk};
use crate::analysis::buffers::is_view;
use crate::ir::{NodeId, ValueId};

/// What a scattered sum at the end of a walk is: the gradient of a table, where the forward half gathers from
/// the parameter.
pub(super) fn source(walk: &Walk<'_>, parameter: ValueId, id: NodeId) -> Source {
    // GatherGrad: shape, indices, dY. Scatter*: zeros, indices, dY.
    let indices = walk.graph.node(id).inputs.get(1).copied().flatten();
    match indices {
        Some(indices) if is_gathered(walk, parameter) => Source::of(Err(Unfit {
            parameter,
            kind: Kind::Embedding,
            product: id,
            activation: walk.buffers.root(indices),
            obstacle: Obstacle::NothingSaved,
            why: "the gradient of an embedding needs the indices only",
        })),
        _ => Source::Other,
    }
}

/// Whether the forward half gathers from a parameter, or from a view of it.
fn is_gathered(walk: &Walk<'_>, parameter: ValueId) -> bool {
    let mut pending = vec![parameter];
    while let Some(value) = pending.pop() {
        for (id, slot) in walk.graph.reads(value) {
            let node = walk.graph.node(id);
            if slot != 0 || !walk.forward(id) || !node.domain().is_empty() {
                continue;
            }
            if matches!(node.op(), "Gather" | "GatherND" | "GatherElements") {
                return true;
            }
            if is_view(node) || node.op() == "Cast" {
                pending.extend(node.outputs.iter().flatten());
            }
        }
    }
    false
}
