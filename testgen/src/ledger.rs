//! Bytes by counting: buffers are told apart by where the interpreter keeps them, readers are counted
//! down as nodes run.
//!
//! The rules are those that `velora_graph::analysis::lifetimes` states: a view shares its input's bytes
//! and reads none; a node that asks for a shape reads none; inputs and constants lie outside; outputs
//! stay; an element-wise node writes over an input that dies with it and is as large.

use crate::interpret::{Data, Tensor};
use std::collections::{HashMap, HashSet};
use velora_graph::onnx::schema::{GraphProto, NodeProto};

const VIEWS: [&str; 5] = ["Reshape", "Squeeze", "Unsqueeze", "Flatten", "Identity"];

/// Of those that the generator and our operators' bodies are made of.
const ELEMENT_WISE: [&str; 17] = [
    "Add",
    "Sub",
    "Mul",
    "Div",
    "Neg",
    "Relu",
    "Tanh",
    "Sigmoid",
    "Erf",
    "Exp",
    "Sqrt",
    "Reciprocal",
    "Where",
    "Softmax",
    "LogSoftmax",
    "Clip",
    "Sum",
];

fn is_view(node: &NodeProto) -> bool {
    node.domain().is_empty() && VIEWS.contains(&node.op_type())
}

fn is_pin(node: &NodeProto) -> bool {
    node.metadata_props
        .iter()
        .any(|e| e.key() == "velora.op" && e.value() == "Pin")
}

/// The buffers whose bytes a node reads, once for each read.
fn reads(node: &NodeProto, values: &HashMap<String, Tensor>) -> Vec<usize> {
    let free = is_view(node)
        || matches!(node.op_type(), "Shape" | "Size")
        || node.op_type() == "Slice" && is_pin(node);
    let read = node.input.iter().enumerate();
    let read = read.filter(|(slot, name)| !(name.is_empty() || free && *slot == 0));
    read.map(|(_, name)| values[name].buffer()).collect()
}

/// The live bytes while each node runs, in an order of places.
pub fn live(graph: &GraphProto, values: &HashMap<String, Tensor>, order: &[usize]) -> Vec<i64> {
    let mut left: HashMap<usize, usize> = HashMap::new();
    for node in &graph.node {
        for buffer in reads(node, values) {
            *left.entry(buffer).or_default() += 1;
        }
    }
    for output in &graph.output {
        // One reader that never comes.
        *left.entry(values[output.name()].buffer()).or_default() += 1;
    }
    let mut held: HashMap<usize, i64> = HashMap::new();
    let mut total = 0;
    let mut series = Vec::with_capacity(order.len());
    for &place in order {
        let node = &graph.node[place];
        let read = reads(node, values);
        for &buffer in &read {
            *left.get_mut(&buffer).unwrap() -= 1;
        }
        let dies = |buffer: &usize, held: &HashMap<usize, i64>| {
            left[buffer] == 0 && held.contains_key(buffer)
        };
        let made: Vec<&Tensor> = node
            .output
            .iter()
            .filter(|n| !n.is_empty())
            .map(|n| &values[n])
            .collect();
        if !is_view(node) && node.op_type() != "Constant" {
            let mut over = None;
            if node.domain().is_empty() && ELEMENT_WISE.contains(&node.op_type()) && made.len() == 1
            {
                over = read
                    .iter()
                    .copied()
                    .find(|b| dies(b, &held) && held[b] == made[0].bytes());
            }
            for tensor in &made {
                held.insert(tensor.buffer(), tensor.bytes());
                total += tensor.bytes();
            }
            total -= over.and_then(|b| held.remove(&b)).unwrap_or(0);
        }
        series.push(total);
        let mut done = read;
        done.extend(made.iter().map(|t| t.buffer()));
        for buffer in done {
            if left.get(&buffer).is_none_or(|&l| l == 0) {
                total -= held.remove(&buffer).unwrap_or(0);
            }
        }
    }
    series
}

/// The highest of the live bytes.
pub fn peak(graph: &GraphProto, values: &HashMap<String, Tensor>, order: &[usize]) -> i64 {
    live(graph, values, order).into_iter().max().unwrap_or(0)
}

/// The names of the values that own the buffers alive between the forward half and the backward half:
/// made by a node of the one, read by a node of the other, and not integers made from shapes and constants alone.
/// `forward` and `backward` say of each node whether it belongs to the half.
pub fn saved(
    graph: &GraphProto,
    values: &HashMap<String, Tensor>,
    forward: &[bool],
    backward: &[bool],
) -> HashSet<String> {
    let mut owners: HashMap<usize, (&str, bool)> = HashMap::new();
    for (place, node) in graph.node.iter().enumerate() {
        if is_view(node) || node.op_type() == "Constant" {
            continue;
        }
        for name in &node.output {
            let tensor = &values[name];
            let float = matches!(tensor.data, Data::Float(_));
            let counts = forward[place] && (tensor.from_data || float);
            owners.insert(tensor.buffer(), (name, counts));
        }
    }
    let mut found = HashSet::new();
    for (place, node) in graph
        .node
        .iter()
        .enumerate()
        .filter(|(place, _)| backward[*place])
    {
        debug_assert!(!forward[place]);
        for buffer in reads(node, values) {
            if let Some((name, true)) = owners.get(&buffer) {
                found.insert((*name).to_owned());
            }
        }
    }
    found
}

/// By node: whether one of the named values depends on it. A pin hands on its first input only: the
/// rest of it orders nodes and has no values.
pub fn ancestors<'n>(graph: &GraphProto, of: impl IntoIterator<Item = &'n str>) -> Vec<bool> {
    let mut makers = HashMap::new();
    for (place, node) in graph.node.iter().enumerate() {
        makers.extend(node.output.iter().map(|n| (n.as_str(), place)));
    }
    let mut found = vec![false; graph.node.len()];
    let mut pending: Vec<usize> = of
        .into_iter()
        .filter_map(|n| makers.get(n).copied())
        .collect();
    while let Some(place) = pending.pop() {
        if !std::mem::replace(&mut found[place], true) {
            let node = &graph.node[place];
            let is_pin = node.op_type() == "Reshape"
                && (node.metadata_props.iter())
                    .any(|e| (e.key(), e.value()) == ("velora.op", "Pin"));
            let inputs = node.input.iter().take(if is_pin { 1 } else { usize::MAX });
            pending.extend(inputs.filter_map(|n| makers.get(n.as_str()).copied()));
        }
    }
    found
}

/// The names of all values that depend on one of the named ones, those included.
pub fn dependents<'n>(
    graph: &GraphProto,
    of: impl IntoIterator<Item = &'n str>,
) -> HashSet<String> {
    let mut found: HashSet<String> = of.into_iter().map(str::to_owned).collect();
    // Whatever the order of the nodes: until nothing more is found.
    loop {
        let before = found.len();
        for node in &graph.node {
            if node.input.iter().any(|n| found.contains(n)) {
                found.extend(node.output.iter().cloned());
            }
        }
        if found.len() == before {
            return found;
        }
    }
}
