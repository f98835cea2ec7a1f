//! Operators with nested graphs, and model-local functions: the walk goes through their bodies.
//!
//! A body that cannot be indexed, or lies beyond the bounds on depth and size, leaves its node's
//! outputs unknown.

use super::DataType;
use super::call::Call;
use super::error::ShapeError;
use super::fact::{Fact, unknown};
use super::infer::{Walk, keep, standard_version};
use crate::dim::Dim;
use crate::extent::Extent;
use crate::ir::Graph;
use crate::onnx::schema::{AttributeProto, FunctionProto, GraphProto, NodeProto, ValueInfoProto};
use std::collections::{HashMap, HashSet};

/// Standard operators whose attributes hold graphs that are followed.
pub(super) const KINDS: [&str; 3] = ["If", "Loop", "Scan"];

pub(super) const DEPTH_LIMIT: usize = 16;
/// Passes over the body of a loop until the shapes it carries hold still.
const LOOP_PASSES: usize = 4;
/// Bytes of a body that count as a node: names and lists are copied with it.
const BYTES_OF_A_NODE: usize = 256;

fn nothing(call: &Call<'_>) -> Vec<Fact> {
    vec![Fact::default(); call.node.outputs.len()]
}

/// Outputs of If, Loop and Scan.
pub(super) fn branches(
    walk: &Walk<'_>,
    call: &Call<'_>,
    errors: &mut Vec<ShapeError>,
) -> Vec<Fact> {
    let found = match call.node.op() {
        "If" => conditional(walk, call, errors),
        "Loop" => repeated(walk, call, errors),
        _ if walk.opset < 9 => None,
        _ => scanned(walk, call, errors),
    };
    let mut outputs = found.unwrap_or_default();
    outputs.resize(call.node.outputs.len(), Fact::default());
    outputs
}

/// The branch that is taken, where the condition is known; else what holds for both. A branch that
/// may never be taken may contradict itself, so that errors count in the former case only.
fn conditional(
    walk: &Walk<'_>,
    call: &Call<'_>,
    errors: &mut Vec<ShapeError>,
) -> Option<Vec<Fact>> {
    match call.numbers(0).as_deref() {
        Some([0]) => return body(walk, call, "else_branch", Vec::new(), errors),
        Some([_]) => return body(walk, call, "then_branch", Vec::new(), errors),
        _ => {}
    }
    let mut unheard = Vec::new();
    let yes = body(walk, call, "then_branch", Vec::new(), &mut unheard)?;
    let no = body(walk, call, "else_branch", Vec::new(), &mut unheard)?;
    Some(
        yes.into_iter()
            .zip(no)
            .map(|(a, b)| common(a, &b))
            .collect(),
    )
}

/// What holds for both of two facts.
fn common(a: Fact, b: &Fact) -> Fact {
    let shape = match (a.shape, &b.shape) {
        (Some(a), Some(b)) if a.len() == b.len() => {
            let same = |(a, b): (Dim, &Dim)| if a == *b { a } else { unknown() };
            Some(a.into_iter().zip(b).map(same).collect())
        }
        _ => None,
    };
    Fact::new(a.data_type.filter(|_| a.data_type == b.data_type), shape)
}

/// Loop: trip count, condition, carried values; the body takes iteration number, condition and
/// carried values, and gives condition, carried values and one slice of each scan output.
fn repeated(walk: &Walk<'_>, call: &Call<'_>, errors: &mut Vec<ShapeError>) -> Option<Vec<Fact>> {
    let carried = call.node.inputs.len().saturating_sub(2);
    let mut state: Vec<Fact> = (0..carried)
        .map(|slot| Fact::new(call.dtype(slot + 2), call.shape_owned(slot + 2)))
        .collect();
    let mut last = None;
    for _ in 0..LOOP_PASSES {
        let mut inputs = vec![
            Fact::new(Some(DataType::INT64), Some(Vec::new())),
            Fact::new(Some(DataType::BOOL), Some(Vec::new())),
        ];
        inputs.extend(state.iter().cloned());
        let mut found = Vec::new();
        let outputs = body(walk, call, "body", inputs, &mut found)?;
        let next: Vec<Fact> = (state.iter())
            .zip(outputs.iter().skip(1))
            .map(|(before, after)| common(before.clone(), after))
            .collect();
        let still = next.len() == state.len() && next.iter().zip(&state).all(|(a, b)| held(a, b));
        last = Some((outputs, found));
        if still || next.len() != state.len() {
            break;
        }
        state = next;
    }
    let (outputs, found) = last?;
    found.into_iter().for_each(|error| keep(errors, error));
    let mut all = Vec::with_capacity(call.node.outputs.len());
    for (before, after) in state.iter().zip(outputs.iter().skip(1)) {
        all.push(common(before.clone(), after));
    }
    for slice in outputs.into_iter().skip(1 + carried) {
        let shape = slice.shape.map(|mut shape| {
            shape.insert(0, unknown());
            shape
        });
        all.push(Fact::new(slice.data_type, shape));
    }
    Some(all)
}

/// Whether nothing known of `before` was lost in `after`.
fn held(after: &Fact, before: &Fact) -> bool {
    after.data_type == before.data_type && after.shape == before.shape
}

/// Scan: state values, then sequences; the body takes states and one slice of each sequence.
fn scanned(walk: &Walk<'_>, call: &Call<'_>, errors: &mut Vec<ShapeError>) -> Option<Vec<Fact>> {
    let sequences = usize::try_from(call.node.int("num_scan_inputs", 0)).ok()?;
    let states = call.node.inputs.len().checked_sub(sequences)?;
    let axes = |name: &str, index: usize| {
        let axes = call.node.ints(name).unwrap_or_default();
        axes.get(index).copied().unwrap_or(0)
    };
    let mut steps = unknown();
    let mut inputs = Vec::with_capacity(call.node.inputs.len());
    for slot in 0..call.node.inputs.len() {
        let mut shape = call.shape_owned(slot);
        if let (Some(shape), Some(index)) = (&mut shape, slot.checked_sub(states)) {
            let axis = call.resolve(axes("scan_input_axes", index), shape.len())?;
            let length = shape.remove(axis);
            if steps.is_undefined() {
                steps = length;
            }
        }
        inputs.push(Fact::new(call.dtype(slot), shape));
    }
    let before: Vec<Fact> = inputs.iter().take(states).cloned().collect();
    let outputs = body(walk, call, "body", inputs, errors)?;
    let mut all = Vec::with_capacity(outputs.len());
    for (slot, fact) in outputs.into_iter().enumerate() {
        all.push(match before.get(slot) {
            Some(before) => common(before.clone(), &fact),
            None => {
                let axis = axes("scan_output_axes", slot - states);
                let shape = fact.shape.and_then(|mut shape| {
                    let axis = call.resolve(axis, shape.len() + 1)?;
                    shape.insert(axis, steps.clone());
                    Some(shape)
                });
                Fact::new(fact.data_type, shape)
            }
        });
    }
    Some(all)
}

/// The outputs of a graph held by an attribute.
fn body(
    walk: &Walk<'_>,
    call: &Call<'_>,
    attribute: &str,
    inputs: Vec<Fact>,
    errors: &mut Vec<ShapeError>,
) -> Option<Vec<Fact>> {
    let proto = call.node.attribute(attribute)?.g.as_deref()?;
    if walk.is_spent() {
        return None;
    }
    let mut proto = proto.clone();
    let taken = proto.input.len().min(inputs.len());
    let mut known: Vec<Fact> = inputs.into_iter().take(taken).collect();
    known.resize(proto.input.len(), Fact::default());
    // The graph was checked as part of the outer one, where captures are defined: here they are
    // inputs of their own.
    let own: HashSet<&str> = (proto.input.iter().map(|i| i.name()))
        .chain(proto.initializer.iter().map(|t| t.name()))
        .chain(
            proto
                .node
                .iter()
                .flat_map(|n| &n.output)
                .map(String::as_str),
        )
        .collect();
    let captures = call.node.captures.iter().copied();
    let captures: Vec<_> = captures
        .filter(|v| !own.contains(walk.graph.value(*v).name.as_str()))
        .collect();
    for value in captures {
        proto.input.push(named(&walk.graph.value(value).name));
        known.push(call.facts[value.index()].clone());
    }
    enter(walk, call, proto, known, walk.opset, errors)
}

fn named(name: &str) -> ValueInfoProto {
    ValueInfoProto {
        name: Some(name.to_owned()),
        ..ValueInfoProto::default()
    }
}

/// Walks through a body whose inputs are known.
fn enter(
    walk: &Walk<'_>,
    call: &Call<'_>,
    proto: GraphProto,
    known: Vec<Fact>,
    opset: i64,
    errors: &mut Vec<ShapeError>,
) -> Option<Vec<Fact>> {
    // The copy of the body was made for this call: a long one counts as many nodes.
    let Extent { nodes, bytes, .. } = Extent::of(&proto.node);
    let cost = nodes.saturating_add(bytes / BYTES_OF_A_NODE).max(1);
    spend(walk, cost)?;
    let graph = Graph::from_proto(proto).ok()?;
    let path = format!("{}{}/", walk.path, call.node.label(walk.graph));
    let inner = Walk {
        graph: &graph,
        world: walk.world,
        opset,
        path: &path,
        depth: walk.depth + 1,
    };
    let known: HashMap<_, _> = graph.inputs().iter().copied().zip(known).collect();
    let facts = inner.run(known, errors);
    let outputs = graph.outputs().iter();
    Some(outputs.map(|v| facts[v.index()].clone()).collect())
}

/// Takes from what bodies may cost; `None` where too little is left, which is then nothing, so that the
/// rest is not tried in vain.
fn spend(walk: &Walk<'_>, cost: usize) -> Option<()> {
    let left = walk.world.budget.get().checked_sub(cost);
    walk.world.budget.set(left.unwrap_or(0));
    left.map(drop)
}

/// The outputs of a call of a model-local function: its body, with the call's attributes in place.
pub(super) fn function(
    walk: &Walk<'_>,
    call: &Call<'_>,
    function: &FunctionProto,
    errors: &mut Vec<ShapeError>,
) -> Vec<Fact> {
    if walk.is_spent() {
        return nothing(call);
    }
    let absent: HashSet<&str> = (function.input.iter().enumerate())
        .filter(|(slot, _)| !call.has(*slot))
        .map(|(_, name)| name.as_str())
        .collect();
    let instance = |node: &NodeProto| {
        let mut node = node.clone();
        for name in &mut node.input {
            if absent.contains(name.as_str()) {
                name.clear();
            }
        }
        instantiate(&mut node, call, function, 0);
        node
    };
    let present = function
        .input
        .iter()
        .filter(|name| !absent.contains(name.as_str()));
    let proto = GraphProto {
        node: function.node.iter().map(instance).collect(),
        input: present.map(|name| named(name)).collect(),
        output: function.output.iter().map(|name| named(name)).collect(),
        // Names of sizes in a function's own declarations are its own, not the model's.
        ..GraphProto::default()
    };
    let slots = (0..function.input.len()).filter(|&slot| call.has(slot));
    let known = slots.map(|slot| call.input(slot).clone()).collect();
    let opset = standard_version(&function.opset_import).unwrap_or(walk.opset);
    let outputs = enter(walk, call, proto, known, opset, errors);
    let mut outputs = outputs.unwrap_or_else(|| nothing(call));
    outputs.resize(call.node.outputs.len(), Fact::default());
    outputs
}

/// Puts the call's attributes, else the function's defaults, in place of references to them.
fn instantiate(node: &mut NodeProto, call: &Call<'_>, function: &FunctionProto, depth: usize) {
    let resolve = |attribute: AttributeProto| {
        let Some(reference) = attribute.ref_attr_name.as_deref().filter(|r| !r.is_empty()) else {
            return Some(attribute);
        };
        let default = || {
            function
                .attribute_proto
                .iter()
                .find(|a| a.name() == reference)
        };
        let mut value = call.node.attribute(reference).or_else(default)?.clone();
        value.name = attribute.name.clone();
        Some(value)
    };
    node.attribute = std::mem::take(&mut node.attribute)
        .into_iter()
        .filter_map(resolve)
        .collect();
    if depth < DEPTH_LIMIT {
        for attribute in &mut node.attribute {
            let graphs = attribute
                .g
                .as_deref_mut()
                .into_iter()
                .chain(&mut attribute.graphs);
            for inner in graphs.flat_map(|g| &mut g.node) {
                instantiate(inner, call, function, depth + 1);
            }
        }
    }
}
