//! That pins carry no value: each part of one does what makes it a mere dependence.

use super::{Difference, at};
use velora_graph::ir::{Graph, Node, NodeId, ValueId};
use velora_graph::shapes::{DataType, Shapes};

/// Checks one node of a pin: a `Reshape` to the shape that its tensor has, or a part of how an empty
/// vector is made.
pub fn check(graph: &Graph, shapes: &Shapes, id: NodeId) -> Result<(), Difference> {
    let node = graph.node(id);
    let input = |slot: usize| node.inputs.get(slot).copied().flatten();
    let says = |slot: usize, wanted: &[i64]| {
        input(slot)
            .and_then(|value| graph.constant_ints(value))
            .as_deref()
            == Some(wanted)
    };
    let rank = |value: Option<ValueId>| Some(shapes.of(value?).shape.as_ref()?.len());
    let right = match node.op() {
        "Unsqueeze" => says(1, &[0]),
        "Shape" => whole_shape(node),
        "Slice" => says(1, &[0]) && says(2, &[0]) && says(3, &[0]) && input(4).is_none(),
        "Cast" => {
            node.int("to", 0) == i64::from(DataType::INT64.0)
                && input(0).is_some_and(|v| is_part(graph, v))
        }
        "ReduceSum" => {
            let axes: Option<Vec<i64>> = rank(input(0)).map(|rank| (1..rank as i64).collect());
            let whole = axes.is_some_and(|axes| !axes.is_empty() && says(1, &axes));
            whole && node.int("keepdims", 1) == 0 && input(0).is_some_and(|v| is_part(graph, v))
        }
        "Concat" => {
            let vectors = node.inputs.iter().skip(1);
            let empty = |value: &Option<ValueId>| value.is_some_and(|v| is_empty(graph, shapes, v));
            node.int("axis", 1) == 0 && { vectors }.all(empty)
        }
        "Reshape" => match (
            rank(input(0)),
            input(1).and_then(|shape| graph.producer(shape)),
        ) {
            (Some(rank), Some(shape)) => {
                let shape = graph.node(shape);
                let same = shape.inputs.first().copied().flatten();
                // As many zeros as the tensor has axes: each keeps its axis.
                let zeros = same.and_then(|value| graph.constant_ints(value));
                let zeros = zeros.is_some_and(|z| z.len() == rank && z.iter().all(|&n| n == 0));
                let of = same.and_then(|value| graph.producer(value));
                let own = of.map(|id| graph.node(id)).is_some_and(|of| {
                    is_pin(graph, same, "Shape")
                        && whole_shape(of)
                        && of.inputs.first() == node.inputs.first()
                });
                (zeros || own) && is_pin(graph, input(1), "Concat") && node.int("allowzero", 0) == 0
            }
            _ => false,
        },
        _ => false,
    };
    match right && node.domain().is_empty() {
        true => Ok(()),
        false => Err(at(
            graph,
            id,
            "",
            "is marked as part of a pin, and may change a value",
        )),
    }
}

/// Whether a `Shape` says the sizes of all axes.
fn whole_shape(node: &Node) -> bool {
    node.attribute("start").is_none() && node.attribute("end").is_none()
}

/// Whether a value is made by a certain node of a pin.
fn is_pin(graph: &Graph, value: Option<ValueId>, op: &str) -> bool {
    let maker = value.and_then(|value| graph.producer(value));
    let maker = maker.map(|id| graph.node(id));
    maker.is_some_and(|node| node.velora_op() == Some("Pin") && node.op() == op)
}

/// Whether a value is a part of the way from a tensor to an empty vector.
fn is_part(graph: &Graph, value: ValueId) -> bool {
    is_pin(graph, Some(value), "Slice") || is_pin(graph, Some(value), "Cast")
}

/// Whether a value is an empty vector of a pin: a slice of no rows, cast, and summed over its other axes
/// where it has any.
fn is_empty(graph: &Graph, shapes: &Shapes, value: ValueId) -> bool {
    let vector = shapes
        .of(value)
        .shape
        .as_ref()
        .is_some_and(|s| s.len() == 1);
    vector && (is_pin(graph, Some(value), "Cast") || is_pin(graph, Some(value), "ReduceSum"))
}
