//! Whether two nodes are one: the same message, the same values read.

use super::{Difference, Side, at};
use prost::Message;
use std::path::Path;
use velora_graph::ir::NodeId;
use velora_graph::onnx::read::map_external_data;
use velora_graph::onnx::schema::{GraphProto, NodeProto, TensorProto};

/// Compares a node of the original with one of the rewritten graph; what is read at the place `but` is
/// not compared.
pub fn nodes(
    original: Side<'_>,
    id: NodeId,
    rewritten: Side<'_>,
    twin: NodeId,
    but: Option<usize>,
) -> Result<(), Difference> {
    let (old, new) = (original.graph(), rewritten.graph());
    let (was, is) = (old.node(id), new.node(twin));
    let differs = |tensor: &str, problem: String| Err(at(old, id, tensor, problem));
    message(&was.proto, &is.proto).or_else(|problem| differs("", problem))?;
    let name = |graph: &velora_graph::ir::Graph, value: &Option<_>| match value {
        Some(value) => graph.value(*value).name.clone(),
        None => String::new(),
    };
    let outputs = |graph, values: &[Option<_>]| -> Vec<String> {
        values.iter().map(|value| name(graph, value)).collect()
    };
    let (made, makes) = (outputs(old, &was.outputs), outputs(new, &is.outputs));
    if made != makes {
        return differs(
            "",
            format!("made {} and makes {}", made.join(", "), makes.join(", ")),
        );
    }
    if was.inputs.len() != is.inputs.len() {
        let (was, is) = (was.inputs.len(), is.inputs.len());
        return differs("", format!("had {was} operands and has {is}"));
    }
    for (slot, (was, is)) in was.inputs.iter().zip(&is.inputs).enumerate() {
        if but == Some(slot) {
            continue;
        }
        let was = name(old, was);
        let is = name(new, &is.map(|value| new.unpinned(value)));
        if was != is {
            return differs(&was, format!("operand {slot} is now '{is}'"));
        }
    }
    let (before, after) = (tensors(&was.proto), tensors(&is.proto));
    for (before, after) in before.into_iter().zip(after) {
        payloads(before, original.folder, after, rewritten.folder)
            .or_else(|problem| differs(before.name(), problem))?;
    }
    Ok(())
}

/// Compares all of two messages but edges and the tool's marks.
fn message(was: &NodeProto, is: &NodeProto) -> Result<(), String> {
    let mut stripped = is.clone();
    (stripped.metadata_props)
        .retain(|entry| !entry.key().starts_with("velora.") || was.metadata_props.contains(entry));
    // Encoded, because that tells -0 from 0 and one NaN from another.
    if stripped.encode_to_vec() == was.encode_to_vec() {
        return Ok(());
    }
    if (was.op_type(), was.domain(), &was.overload) != (is.op_type(), is.domain(), &is.overload) {
        let shown = |node: &NodeProto| match node.domain() {
            "" => node.op_type().to_owned(),
            domain => format!("{domain}.{}", node.op_type()),
        };
        return Err(format!("was {} and is {}", shown(was), shown(is)));
    }
    if was.name() != is.name() {
        return Err(format!("is now called '{}'", is.name()));
    }
    for attribute in &was.attribute {
        let name = attribute.name();
        let Some(other) = is.attribute.iter().find(|a| a.name() == name) else {
            return Err(format!("lost its attribute '{name}'"));
        };
        if attribute.encode_to_vec() != other.encode_to_vec() {
            return Err(format!("has another value of its attribute '{name}'"));
        }
    }
    if was.attribute.len() != is.attribute.len() {
        return Err("has an attribute more".to_owned());
    }
    Err("has other metadata or documentation, or another order of attributes".to_owned())
}

/// The tensors in the attributes of a node, nested graphs included.
fn tensors(node: &NodeProto) -> Vec<&TensorProto> {
    let mut found = Vec::new();
    let mut nodes = vec![node];
    let mut graphs: Vec<&GraphProto> = Vec::new();
    loop {
        for node in std::mem::take(&mut nodes) {
            for attribute in &node.attribute {
                found.extend((attribute.t.as_deref().into_iter()).chain(&attribute.tensors));
                graphs.extend(attribute.g.as_deref().into_iter().chain(&attribute.graphs));
            }
        }
        let Some(graph) = graphs.pop() else {
            return found;
        };
        found.extend(&graph.initializer);
        nodes.extend(&graph.node);
    }
}

/// Compares the data of two tensors, wherever it lies.
pub fn payloads(
    was: &TensorProto,
    before: Option<&Path>,
    is: &TensorProto,
    after: Option<&Path>,
) -> Result<(), String> {
    if !was.is_external() && !is.is_external() {
        return match was.raw_data == is.raw_data {
            true => Ok(()),
            false => Err(changed(
                was,
                was.raw_data.as_deref(),
                is.raw_data.as_deref(),
            )),
        };
    }
    if before == after
        && was.external_data == is.external_data
        && was.is_external() == is.is_external()
    {
        return Ok(());
    }
    let bytes = |tensor: &TensorProto, folder: Option<&Path>| match (tensor.is_external(), folder) {
        (false, _) => Ok(tensor.raw_data.clone()),
        (true, Some(folder)) => {
            let mapped = map_external_data(tensor, folder);
            mapped.map(Some).map_err(|error| error.to_string())
        }
        (true, None) => Err("its data lies in another file, and the model in none".to_owned()),
    };
    let (was_bytes, is_bytes) = (bytes(was, before)?, bytes(is, after)?);
    match was_bytes == is_bytes {
        true => Ok(()),
        false => Err(changed(was, was_bytes.as_deref(), is_bytes.as_deref())),
    }
}

/// Where two payloads differ.
fn changed(tensor: &TensorProto, was: Option<&[u8]>, is: Option<&[u8]>) -> String {
    let (Some(was), Some(is)) = (was, is) else {
        return "stores its data otherwise".to_owned();
    };
    if was.len() != is.len() {
        return format!("had {} bytes of data and has {}", was.len(), is.len());
    }
    let place = was.iter().zip(is).position(|(a, b)| a != b);
    let elements: i64 = tensor.dims.iter().product();
    let width = was.len() as i64 / elements.max(1);
    let element = place.unwrap_or(0) as i64 / width.max(1);
    format!("has other data, from element {element} on")
}
