//! Weight-gradient contractions and what else reads their saved activation.
//!
//! A contraction is found by structure: a backward matrix product in which one operand is a forward
//! value, as a two-dimensional array X [N, D], summed over its rows, and whose result reaches the
//! gradient of a two-dimensional parameter through operators that keep it a gradient of that
//! parameter (transpositions, views, casts, sums of several contributions, accumulation).

use super::partition::{Half, Partition};
use super::roles::Roles;
use crate::ir::{Graph, Node, NodeId, ValueId};
use crate::onnx::schema::{tensor_shape_proto::dimension, type_proto};
use std::collections::BTreeMap;

/// One weight-gradient contraction of one saved activation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Site {
    /// The parameter whose gradient the contraction contributes to.
    pub parameter: ValueId,
    /// The product node.
    pub node: NodeId,
    /// Which of its inputs is X.
    pub slot: usize,
    /// Whether X reaches the product through an explicit transposition.
    pub through_transpose: bool,
    /// The buffer behind X: the value that views of it share.
    pub activation: ValueId,
    /// D, the number of input features.
    pub features: i64,
    /// O, the number of output features.
    pub outputs: i64,
    /// Whether the product is dWᵀ-shaped, [O, D], rather than [D, O].
    pub transposed: bool,
}

/// A reader that keeps an activation alive whatever becomes of its sites.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Keeper {
    /// The reading node, or `None` where a graph output is the activation or a view of it.
    pub node: Option<NodeId>,
    /// Why it keeps the tensor.
    pub why: &'static str,
}

/// The sites of a graph, and by activation who else keeps it.
#[derive(Clone, Debug, Default)]
pub struct Sites {
    /// All sites, in node order.
    pub sites: Vec<Site>,
    /// Backward readers that are no site, by activation.
    pub keepers: BTreeMap<ValueId, Vec<Keeper>>,
}

/// Whether the operator's output shares its first input's bytes.
pub fn is_view(node: &Node) -> bool {
    node.domain().is_empty()
        && matches!(
            node.op(),
            "Reshape" | "Squeeze" | "Unsqueeze" | "Flatten" | "Identity"
        )
}

fn is_matrix_transpose(node: &Node) -> bool {
    node.domain().is_empty()
        && node.op() == "Transpose"
        && node.ints("perm").is_some_and(|perm| perm == [1, 0])
}

/// Whether input `slot` of a two-operand product is summed over its rows (as opposed to its
/// columns), or `None` where the node is no such product.
fn sums_rows(node: &Node, slot: usize) -> Option<bool> {
    let transposed = match (node.domain(), node.op()) {
        ("", "MatMul") => false,
        ("", "Gemm") if node.inputs.get(2).copied().flatten().is_none() => {
            node.int(if slot == 0 { "transA" } else { "transB" }, 0) != 0
        }
        ("com.microsoft", "FusedMatMul") => {
            if node.int("transBatchA", 0) != 0 || node.int("transBatchB", 0) != 0 {
                return None;
            }
            node.int(if slot == 0 { "transA" } else { "transB" }, 0) != 0
        }
        _ => return None,
    };
    Some((slot == 1) != transposed)
}

/// Finds all sites of a graph.
pub fn sites(graph: &Graph, roles: &Roles, partition: &Partition) -> Sites {
    let mut found = Sites::default();
    for &id in graph.order() {
        if partition.half(id) != Half::Backward {
            continue;
        }
        for slot in 0..graph.node(id).inputs.len().min(2) {
            if let Some(site) = site(graph, roles, partition, id, slot) {
                found.sites.push(site);
            }
        }
    }
    let mut activations: Vec<_> = found.sites.iter().map(|s| s.activation).collect();
    activations.sort();
    activations.dedup();
    for activation in activations {
        let mut keepers = Vec::new();
        keepers_of(graph, partition, &found.sites, activation, &mut keepers);
        found.keepers.insert(activation, keepers);
    }
    found
}

fn site(
    graph: &Graph,
    roles: &Roles,
    partition: &Partition,
    id: NodeId,
    slot: usize,
) -> Option<Site> {
    let node = graph.node(id);
    let mut rows = sums_rows(node, slot)?;
    let mut here = node.inputs[slot]?;
    let mut through_transpose = false;
    let activation = loop {
        let Some(producer) = graph.producer(here) else {
            break here;
        };
        let maker = graph.node(producer);
        let backward = partition.half(producer) == Half::Backward;
        if is_matrix_transpose(maker) && backward && !through_transpose {
            through_transpose = true;
            rows = !rows;
        } else if !is_view(maker) {
            if backward {
                return None;
            }
            break here;
        }
        here = maker.inputs.first().copied().flatten()?;
    };
    if !rows {
        return None;
    }
    // The other operand must be a gradient, or the product would not be one.
    let other = node.inputs.get(1 - slot).copied().flatten()?;
    if graph
        .producer(other)
        .is_none_or(|n| partition.half(n) != Half::Backward)
    {
        return None;
    }
    let (parameter, flipped) = gradient_of(graph, roles, node.outputs.first().copied().flatten()?)?;
    let &[first, second] = static_shape(graph, parameter)?.as_slice() else {
        return None;
    };
    let (rows_of_product, columns) = if flipped {
        (second, first)
    } else {
        (first, second)
    };
    let transposed = slot == 1;
    let (features, outputs) = if transposed {
        (columns, rows_of_product)
    } else {
        (rows_of_product, columns)
    };
    Some(Site {
        parameter,
        node: id,
        slot,
        through_transpose,
        activation,
        features,
        outputs,
        transposed,
    })
}

/// The parameter whose gradient a value becomes, and whether it is transposed on the way.
fn gradient_of(graph: &Graph, roles: &Roles, from: ValueId) -> Option<(ValueId, bool)> {
    let (mut here, mut flipped) = (from, false);
    // Each step goes to a reader, so the walk ends with the acyclic graph.
    loop {
        if let Some(&(parameter, _)) = roles.gradients.iter().find(|&&(_, g)| g == here) {
            return Some((parameter, flipped));
        }
        let &[reader] = graph.value(here).users.as_slice() else {
            return None;
        };
        let node = graph.node(reader.node);
        match (node.domain(), node.op()) {
            ("", "Identity" | "Cast" | "Add" | "Sum") => {}
            ("", "Transpose") if is_matrix_transpose(node) => flipped = !flipped,
            ("com.microsoft", "InPlaceAccumulatorV2") if reader.slot == Some(1) => {}
            _ => return None,
        }
        here = node.outputs.first().copied().flatten()?;
    }
}

fn static_shape(graph: &Graph, input: ValueId) -> Option<Vec<i64>> {
    let place = graph.inputs().iter().position(|&v| v == input)?;
    let r#type = graph.input_infos()[place].r#type.as_ref()?;
    let Some(type_proto::Value::TensorType(tensor)) = &r#type.value else {
        return None;
    };
    let dims = tensor.shape.as_ref()?.dim.iter().map(|d| match d.value {
        Some(dimension::Value::DimValue(size)) if size > 0 => Some(size),
        _ => None,
    });
    dims.collect()
}

/// Collects the readers of a value and its views that are neither forward nor a site.
fn keepers_of(
    graph: &Graph,
    partition: &Partition,
    sites: &[Site],
    activation: ValueId,
    keepers: &mut Vec<Keeper>,
) {
    let mut pending = vec![activation];
    while let Some(value) = pending.pop() {
        if graph.value(value).is_output {
            keepers.push(Keeper {
                node: None,
                why: "it is an output of the graph",
            });
        }
        for reader in &graph.value(value).users {
            let node = graph.node(reader.node);
            let backward = partition.half(reader.node) == Half::Backward;
            let transpose = backward && is_matrix_transpose(node);
            let shape_only = matches!(node.op(), "Shape" | "Size");
            if reader.slot == Some(0) && (is_view(node) || transpose) {
                pending.extend(node.outputs.iter().flatten());
            } else if backward
                && !shape_only
                && !sites
                    .iter()
                    .any(|s| s.node == reader.node && Some(s.slot) == reader.slot)
            {
                keepers.push(Keeper {
                    node: Some(reader.node),
                    why: "it reads the values in backward",
                });
            }
        }
    }
    keepers.sort_by_key(|k| k.node);
    keepers.dedup();
}
