//! Whether two nodes are one: the same message, the same values read.

use super::transposes::{Forms, is_transpose};
use super::{Difference, Side, at};
use prost::Message;
use std::path::Path;
use velora_graph::ir::{Graph, Node, NodeId, ValueId};
use velora_graph::onnx::read::map_external_data;
use velora_graph::onnx::schema::{GraphProto, NodeProto, TensorProto};

/// A graph, and what is a transposition of what there.
#[derive(Clone, Copy)]
pub struct Seen<'a> {
    pub side: Side<'a>,
    pub forms: &'a Forms,
}

/// Compares a node of the original with one of the rewritten graph; what is read at the place `but` is
/// not compared. Returns the operands that have another name, and are the same value transposed in the same way.
pub fn nodes(
    before: Seen<'_>,
    id: NodeId,
    after: Seen<'_>,
    twin: NodeId,
    but: Option<usize>,
) -> Result<Vec<usize>, Difference> {
    let (original, rewritten) = (before.side, after.side);
    let (old, new) = (original.graph(), rewritten.graph());
    let (was, is) = (old.node(id), new.node(twin));
    let differs = |tensor: &str, problem: String| at(old, id, tensor, problem);
    message(&was.proto, &is.proto).map_err(|problem| differs("", problem))?;
    let (made, makes) = (names(old, &was.outputs), names(new, &is.outputs));
    if made != makes {
        return Err(differs(
            "",
            format!("made {} and makes {}", made.join(", "), makes.join(", ")),
        ));
    }
    if was.inputs.len() != is.inputs.len() {
        let (was, is) = (was.inputs.len(), is.inputs.len());
        return Err(differs("", format!("had {was} operands and has {is}")));
    }
    let mut derived = Vec::new();
    for (slot, (was, is)) in was.inputs.iter().zip(&is.inputs).enumerate() {
        if but == Some(slot) {
            continue;
        }
        let is = is.map(|value| new.unpinned(value));
        let [before_name, after_name] = [name(old, *was), name(new, is)];
        if before_name == after_name {
            continue;
        }
        match (was, is) {
            (&Some(was), Some(is)) if equal(before, was, after, is) => derived.push(slot),
            _ => {
                let problem = format!("operand {slot} is now '{after_name}'");
                return Err(differs(before_name, problem));
            }
        }
    }
    let (before, after) = (tensors(&was.proto), tensors(&is.proto));
    for (before, after) in before.into_iter().zip(after) {
        payloads(before, original.folder, after, rewritten.folder)
            .map_err(|problem| differs(before.name(), problem))?;
    }
    Ok(derived)
}

fn name(graph: &Graph, value: Option<ValueId>) -> &str {
    value.map_or("", |value| &graph.value(value).name)
}

fn names<'g>(graph: &'g Graph, values: &[Option<ValueId>]) -> Vec<&'g str> {
    values.iter().map(|&value| name(graph, value)).collect()
}

/// Whether two values are one value, transposed in the same way.
fn equal(before: Seen<'_>, was: ValueId, after: Seen<'_>, is: ValueId) -> bool {
    let (old, new) = (before.side.graph(), after.side.graph());
    let (was, is) = (before.forms.of(was), after.forms.of(is));
    was.axes == is.axes && old.value(was.base).name == new.value(is.base).name
}

/// Whether two nodes are `Transpose`s that make the same of one value, be it through other `Transpose`s: the same
/// messages but for the permutation, and the same names of what they make.
pub fn transposes(before: Seen<'_>, id: NodeId, after: Seen<'_>, twin: NodeId) -> bool {
    let (old, new) = (before.side.graph(), after.side.graph());
    let (was, is) = (old.node(id), new.node(twin));
    let (&[Some(made)], &[Some(makes)]) = (&was.outputs[..], &is.outputs[..]) else {
        return false;
    };
    let bare = |node: &Node| {
        let mut proto = node.proto.clone();
        proto.attribute.retain(|a| a.name() != "perm");
        proto
    };
    is_transpose(was)
        && is_transpose(is)
        && name(old, Some(made)) == name(new, Some(makes))
        && message(&bare(was), &bare(is)).is_ok()
        && equal(before, made, after, makes)
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
