//! Derives transposed weights from the weights again, in the place of saving them.
//!
//! An exporter transposes a weight for the forward product, and that tensor again for the backward one:
//!
//! ```text
//! t = Transpose(W)   y = MatMul(x, t)   …   u = Transpose(t)   dx = MatMul(dy, u)
//! ```
//!
//! So t, of the weight's size, is alive from the one half into the other. The two are one permutation of W, which is
//! alive in any case: where that is the identity, what read u reads W, and otherwise u transposes W itself. The
//! elements are the same either way.

use crate::proto::version;
use velora_graph::analysis::partition::{Half, Partition};
use velora_graph::ir::{Graph, Node, NodeId, Origin, Patch, ValueId};
use velora_graph::onnx::make::ints;

/// The name of the pass.
pub const NAME: &str = "derive";

/// The patch that lets backward transpositions read weights.
pub fn derive(graph: &Graph, partition: &Partition) -> Patch {
    let mut patch = Patch::new(NAME, "transposed weights, derived from the weights again");
    for &id in graph.order() {
        let Some((weight, axes)) = derived(graph, partition, id) else {
            continue;
        };
        let name = &graph.value(weight).name;
        let node = graph.node(id);
        let identity = axes.iter().enumerate().all(|(at, &axis)| at as i64 == axis);
        let output = node.outputs.first().copied().flatten();
        let free = output.filter(|&value| identity && may_be_replaced(graph, value));
        match free {
            Some(value) => {
                for (reader, slot) in graph.reads(value) {
                    patch.redirect(reader, slot, name);
                }
                patch.remove(id);
            }
            None => {
                let mut proto = graph.node_proto(id);
                proto.input = vec![name.clone()];
                proto.attribute.retain(|a| a.name() != "perm");
                proto.attribute.push(ints("perm", axes));
                proto.metadata_props.push(version());
                patch.replace(id, vec![proto]);
            }
        }
    }
    patch
}

/// Whether other names may take the place of a value.
fn may_be_replaced(graph: &Graph, value: ValueId) -> bool {
    let info = graph.value(value);
    !info.is_output && info.users.iter().all(|user| user.slot.is_some())
}

/// The weight behind a backward transposition of a forward one, and the permutation that both make of it.
fn derived(graph: &Graph, partition: &Partition, id: NodeId) -> Option<(ValueId, Vec<i64>)> {
    let outer = transposition(graph, partition, id, Half::Backward)?;
    let between = outer.inputs.first().copied().flatten()?;
    let inner = graph.producer(between)?;
    let inner = transposition(graph, partition, inner, Half::Forward)?;
    let weight = inner.inputs.first().copied().flatten()?;
    if !matches!(
        graph.value(weight).origin,
        Origin::Input(_) | Origin::Initializer(_)
    ) {
        return None;
    }
    // Without its attribute a transposition reverses the axes, however many there are.
    let (inner, outer) = match (inner.ints("perm"), outer.ints("perm")) {
        (Some(inner), Some(outer)) => (inner.to_vec(), outer.to_vec()),
        (Some(one), None) | (None, Some(one)) => {
            let reversed = (0..one.len() as i64).rev().collect::<Vec<_>>();
            match outer.ints("perm") {
                Some(outer) => (reversed, outer.to_vec()),
                None => (one.to_vec(), reversed),
            }
        }
        // Any number of axes, reversed twice.
        (None, None) => return None,
    };
    let axis = |&at: &i64| inner.get(usize::try_from(at).ok()?).copied();
    let axes: Option<Vec<i64>> = outer.iter().map(axis).collect();
    Some((weight, axes?))
}

fn transposition<'g>(
    graph: &'g Graph,
    partition: &Partition,
    id: NodeId,
    half: Half,
) -> Option<&'g Node> {
    let node = graph.node(id);
    let fits = node.domain().is_empty() && node.op() == "Transpose" && partition.half(id) == half;
    fits.then_some(node)
}
