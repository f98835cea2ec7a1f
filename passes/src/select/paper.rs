//! The layers that the paper compresses, recognised by structure.
//!
//! A *down* projection's input comes from the MLP's activation function, which may be written out; a *value* projection's
//! output is the right operand of the product whose left operand comes from a softmax
//! (arXiv 2405.17991, section 4).

use std::collections::HashSet;
use velora_graph::analysis::buffers::is_view;
use velora_graph::analysis::partition::{Half, Partition};
use velora_graph::analysis::sites::{Kind, Site};
use velora_graph::ir::{Graph, Node, NodeId, ValueId};

/// What a linear layer is in a transformer block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// The attention's value projection.
    Value,
    /// The second projection of an MLP.
    Down,
}

/// The role of the layer whose weight gradient a site is, where it is one of the paper's.
pub fn role(graph: &Graph, partition: &Partition, site: &Site) -> Option<Role> {
    if site.kind != Kind::Linear {
        return None;
    }
    if from_activation_function(graph, site.input) {
        return Some(Role::Down);
    }
    is_value(graph, partition, site.parameter).then_some(Role::Value)
}

/// No block has this many nodes between its parts; bounds the walks.
const REACH: usize = 64;

fn activation_function(node: &Node) -> bool {
    matches!(
        node.op(),
        "Relu"
            | "Gelu"
            | "BiasGelu"
            | "FastGelu"
            | "QuickGelu"
            | "HardSwish"
            | "Swish"
            | "Mish"
            | "Elu"
            | "LeakyRelu"
            | "Softplus"
    )
}

/// What GELU and SiLU are made of where an exporter writes them out.
fn part_of_activation_function(node: &Node) -> bool {
    matches!(node.op(), "Erf" | "Sigmoid" | "Tanh" | "HardSigmoid")
}

/// Element by element or a change of layout, so that a value stays "the same" through it.
fn passes(node: &Node) -> bool {
    matches!(
        node.op(),
        "Reshape"
            | "Squeeze"
            | "Unsqueeze"
            | "Flatten"
            | "Identity"
            | "Transpose"
            | "Cast"
            | "Dropout"
            | "Mul"
            | "Add"
            | "Sub"
            | "Div"
            | "Where"
            | "Expand"
            | "Neg"
            | "Scale"
            | "Pow"
    )
}

fn from_activation_function(graph: &Graph, from: ValueId) -> bool {
    let mut seen = HashSet::new();
    let mut pending = vec![from];
    let (mut parts, mut factors) = (Vec::new(), HashSet::new());
    while let Some(value) = pending.pop() {
        let Some(id) = graph.producer(value).filter(|n| seen.insert(*n)) else {
            continue;
        };
        let node = graph.node(id);
        if activation_function(node) {
            return true;
        }
        if part_of_activation_function(node) {
            parts.push(id);
        } else if passes(node) && seen.len() < REACH {
            pending.extend(node.inputs.iter().flatten());
            if node.op() == "Mul" {
                factors.extend(node.inputs.iter().flatten().copied());
            }
        }
    }
    // x·σ(x) and x·Φ(x): a factor is what the part is a function of. What only follows a Tanh, like
    // the classifier behind BERT's pooler, is no MLP's second half.
    let of = |part: &NodeId| above(graph, *part);
    parts.iter().any(|part| !factors.is_disjoint(&of(part)))
}

/// The values that a node is a function of, up to products and normalisations.
fn above(graph: &Graph, node: NodeId) -> HashSet<ValueId> {
    let mut found = HashSet::new();
    let mut pending: Vec<ValueId> = graph.node(node).inputs.iter().flatten().copied().collect();
    while let Some(value) = pending.pop() {
        if graph.is_constant(value) || found.len() >= REACH || !found.insert(value) {
            continue;
        }
        let producer = graph.producer(value).map(|n| graph.node(n));
        if let Some(node) = producer.filter(|n| passes(n)) {
            pending.extend(node.inputs.iter().flatten());
        }
    }
    found
}

/// Whether what a weight makes in forward becomes the right operand of a product with a softmax.
fn is_value(graph: &Graph, partition: &Partition, parameter: ValueId) -> bool {
    let mut seen: HashSet<NodeId> = HashSet::new();
    // The weight's own product may be followed at once by a second one (LoRA); one behind anything
    // else, such as a residual sum, belongs to another layer.
    let mut pending = vec![(parameter, 0, true)];
    while let Some((value, products, straight)) = pending.pop() {
        for user in &graph.value(value).users {
            if partition.half(user.node) != Half::Forward {
                continue;
            }
            let node = graph.node(user.node);
            let product = matches!(node.op(), "MatMul" | "Gemm" | "FusedMatMul");
            let next = if product {
                let left = node.inputs.first().copied().flatten();
                let right = products > 0 && user.slot == Some(1);
                if right && left.is_some_and(|left| from_softmax(graph, left)) {
                    return true;
                }
                if products == 2 || !straight || attention(graph, node) {
                    continue;
                }
                (products + 1, true)
            } else if passes(node) || matches!(node.op(), "Concat" | "Gather" | "Split" | "Slice") {
                let layout = is_view(node) || matches!(node.op(), "Transpose" | "Cast" | "Dropout");
                (products, straight && layout)
            } else {
                continue;
            };
            if seen.insert(user.node) && seen.len() < REACH {
                pending.extend(node.outputs.iter().flatten().map(|&v| (v, next.0, next.1)));
            }
        }
    }
    false
}

/// A product of two activations: neither operand is a parameter, whichever layout it is brought to.
fn attention(graph: &Graph, node: &Node) -> bool {
    let weight = |value: ValueId| {
        let mut here = value;
        for _ in 0..REACH {
            let Some(producer) = graph.producer(here) else {
                return true;
            };
            match graph.node(producer).inputs.first().copied().flatten() {
                Some(source) if passes(graph.node(producer)) => here = source,
                _ => return false,
            }
        }
        false
    };
    !node.inputs.iter().flatten().take(2).any(|&v| weight(v))
}

fn from_softmax(graph: &Graph, from: ValueId) -> bool {
    let mut here = from;
    for _ in 0..REACH {
        let Some(producer) = graph.producer(here) else {
            return false;
        };
        let node = graph.node(producer);
        if node.op() == "Softmax" {
            return true;
        }
        match node.inputs.first().copied().flatten() {
            Some(source) if passes(node) => here = source,
            _ => return false,
        }
    }
    false
}
