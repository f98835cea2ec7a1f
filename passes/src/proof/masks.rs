//! `ReluGrad`s that read a mask of what they read before.

use velora_graph::analysis::hoist::MASKED;
use velora_graph::ir::{Graph, NodeId, Origin, ValueId};

/// Whether a `ReluGrad` of the original, which hands dY on where Y is above zero, now reads the number 1
/// in its place where Y is above zero, and 0 elsewhere: `Cast(Greater(Y, 0))`. It makes the same bits then.
pub fn masked(old: &Graph, id: NodeId, new: &Graph, twin: NodeId) -> bool {
    let was = old.node(id);
    if (was.domain(), was.op()) != ("com.microsoft", "ReluGrad") {
        return false;
    }
    let read = |graph: &Graph, node: NodeId, slot: usize| -> Option<ValueId> {
        let value = graph.node(node).inputs.get(slot).copied().flatten();
        value.map(|value| graph.unpinned(value))
    };
    let made_by = |value: Option<ValueId>, op: &str| {
        let maker = new.producer(value?)?;
        let node = new.node(maker);
        (node.domain().is_empty() && node.op() == op).then_some(maker)
    };
    let cast = made_by(read(new, twin, MASKED), "Cast");
    let compared = cast.and_then(|cast| made_by(read(new, cast, 0), "Greater"));
    let (Some(cast), Some(compared)) = (cast, compared) else {
        return false;
    };
    let to_float = new.node(cast).int("to", 0) == 1;
    let is_zero = read(new, compared, 1).is_some_and(|zero| zeros(new, zero));
    let name = |graph: &Graph, value: Option<ValueId>| value.map(|v| graph.value(v).name.clone());
    let of_same = name(old, read(old, id, MASKED)) == name(new, read(new, compared, 0));
    to_float && is_zero && of_same
}

/// Whether a value is a constant 0 of 32-bit floats.
fn zeros(graph: &Graph, value: ValueId) -> bool {
    let Origin::Initializer(number) = graph.value(value).origin else {
        return false;
    };
    let tensor = graph.initializers().get(number);
    tensor.is_some_and(|t| t.data_type() == 1 && t.raw_data.as_deref() == Some(&[0; 4]))
}
