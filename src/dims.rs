//! `--dim NAME=N`: sizes for the symbols of a graph's inputs.

use anyhow::{Result, bail};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use velora_graph::dim::Dim;
use velora_graph::ir::Graph;
use velora_graph::onnx::schema::{ValueInfoProto, tensor_shape_proto::dimension, type_proto};

/// The sizes given on the command line, by symbol.
///
/// # Errors
/// Where a name is no symbol of the graph's inputs; the message lists those that are.
pub fn sizes(graph: &Graph, given: &[(String, i64)]) -> Result<BTreeMap<Arc<str>, i64>> {
    let known = symbols(graph);
    for (name, size) in given {
        if known.contains(name.as_str()) {
            continue;
        }
        let known: Vec<&str> = known.iter().map(|name| &**name).collect();
        match known.as_slice() {
            [] => bail!(
                "--dim {name}={size}: every dimension of the graph's inputs is a number already"
            ),
            names => bail!(
                "--dim {name}={size}: no input of the graph has a dimension of that name; expected {}",
                names.join(" or ")
            ),
        }
    }
    Ok(given
        .iter()
        .map(|(name, size)| (Arc::from(name.as_str()), *size))
        .collect())
}

/// The named dimensions of the graph's inputs.
pub fn symbols(graph: &Graph) -> BTreeSet<Arc<str>> {
    let names = graph.input_infos().iter().flat_map(named_dimensions);
    names.flat_map(|name| Dim::parse(name).symbols()).collect()
}

fn named_dimensions(info: &ValueInfoProto) -> impl Iterator<Item = &str> {
    let value = info.r#type.as_ref().and_then(|t| t.value.as_ref());
    let shape = match value {
        Some(type_proto::Value::TensorType(tensor)) => tensor.shape.as_ref(),
        _ => None,
    };
    let dims = shape.into_iter().flat_map(|shape| &shape.dim);
    dims.filter_map(|dim| match &dim.value {
        Some(dimension::Value::DimParam(name)) if !name.is_empty() => Some(name.as_str()),
        _ => None,
    })
}
