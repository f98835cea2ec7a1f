//! Which values of two graphs are the same, bit for bit.

use super::{Bench, bytes_of, chunks};
use anyhow::Result;
use std::collections::{BTreeSet, HashSet};
use velora_graph::analysis::Analyses;
use velora_graph::analysis::partition::Half;
use velora_graph::ir::{Graph, NodeId, ValueId};
use velora_graph::shapes::Shapes;
use velora_passes::proof::Difference;
use velora_runtime::tensor::Tensor;

/// What a value is to the training step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Made by the forward half.
    Forward,
    /// Made by the backward half, on the way to the dY of a weight-gradient contraction.
    InputGradient,
    /// All else that no rewritten gradient feeds: gradients of biases, norms, embeddings, other weights.
    Untouched,
}

/// How many values were compared, and how many differ.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Count {
    /// Compared.
    pub compared: usize,
    /// Different.
    pub different: usize,
}

/// The outcome, by kind of value.
#[derive(Clone, Debug, Default)]
pub struct Identity {
    /// Of the forward half.
    pub forward: Count,
    /// On the way to the dY of contractions.
    pub input_gradients: Count,
    /// The rest.
    pub untouched: Count,
    /// The first value that differs, in the order of the file.
    pub first: Option<Difference>,
}

impl Identity {
    fn of(&mut self, kind: Kind) -> &mut Count {
        match kind {
            Kind::Forward => &mut self.forward,
            Kind::InputGradient => &mut self.input_gradients,
            Kind::Untouched => &mut self.untouched,
        }
    }
}

/// Compares every value that both graphs make under one name and that no rewritten gradient feeds.
///
/// `analyses` are the original's, `shapes` its shapes at the batch's sizes; `changed` are the values that
/// rewritten contractions make. The outputs are compared once more in the graphs as they are, with
/// nothing else handed out: an operation that writes over a value too early would show there only.
///
/// # Errors
/// Where a graph cannot be executed.
pub fn compare(
    original: &Bench<'_>,
    analyses: &Analyses,
    shapes: &Shapes,
    rewritten: &Bench<'_>,
    changed: &[ValueId],
) -> Result<Identity> {
    let graph = &original.model.graph;
    let fed = fed_by(graph, changed);
    let made: HashSet<&str> = {
        let graph = &rewritten.model.graph;
        let alive = alive(graph);
        let nodes = graph.order().iter().filter(|id| alive[id.index()]);
        let values = nodes.flat_map(|&id| graph.node(id).outputs.iter().flatten());
        values.map(|&v| graph.value(v).name.as_str()).collect()
    };
    let alive = alive(graph);
    let upward = above(graph, analyses);
    let mut values: Vec<(NodeId, ValueId, Kind)> = Vec::new();
    for id in graph.topological_order()? {
        let kind = match analyses.partition.half(id) {
            Half::Forward => Kind::Forward,
            _ if upward[id.index()] => Kind::InputGradient,
            _ => Kind::Untouched,
        };
        let outputs = graph.node(id).outputs.iter().flatten();
        let comparable = outputs.filter(|&&value| {
            alive[id.index()]
                && !fed[value.index()]
                && made.contains(graph.value(value).name.as_str())
        });
        values.extend(comparable.map(|&value| (id, value, kind)));
    }
    let mut identity = Identity::default();
    let compared: Vec<_> = (values.iter().copied())
        .filter(|&(_, value, _)| graph.value(value).is_output)
        .collect();
    for chunk in chunks(values, |&(_, value, _)| bytes_of(shapes, value)) {
        let names = chunk
            .iter()
            .map(|&(_, value, _)| graph.value(value).name.as_str());
        let differing = differing(original, rewritten, names.collect(), &chunk)?;
        for &(_, _, kind) in &chunk {
            identity.of(kind).compared += 1;
        }
        for found in &differing {
            identity.of(found.kind).different += 1;
        }
        note(graph, &mut identity, differing);
    }
    // The accumulator of a factored gradient is not the original's.
    let known: HashSet<&str> = {
        let graph = &rewritten.model.graph;
        let names = graph.values().map(|v| graph.value(v).name.as_str());
        names.collect()
    };
    let outputs = graph.outputs().iter();
    let outputs = outputs.map(|&v| graph.value(v).name.as_str());
    let outputs: BTreeSet<&str> = outputs.filter(|name| known.contains(name)).collect();
    let found = differing(original, rewritten, outputs, &compared)?;
    note(graph, &mut identity, found);
    Ok(identity)
}

/// A value that differs.
struct Differing {
    node: NodeId,
    value: ValueId,
    kind: Kind,
    problem: String,
}

/// Hands out some values of both graphs, and finds those of a list that differ.
fn differing(
    original: &Bench<'_>,
    rewritten: &Bench<'_>,
    names: BTreeSet<&str>,
    compared: &[(NodeId, ValueId, Kind)],
) -> Result<Vec<Differing>> {
    let graph = &original.model.graph;
    let (before, after) = (
        original.values(names.iter().copied())?,
        rewritten.values(names)?,
    );
    let mut found = Vec::new();
    for &(node, value, kind) in compared {
        let name = &graph.value(value).name;
        if let (Some(was), Some(is)) = (before.get(name), after.get(name))
            && let Some(problem) = difference(was, is)
        {
            found.push(Differing {
                node,
                value,
                kind,
                problem,
            });
        }
    }
    Ok(found)
}

fn note(graph: &Graph, identity: &mut Identity, differing: Vec<Differing>) {
    let Some(first) = differing.into_iter().next() else {
        return;
    };
    let Differing {
        node: id,
        value,
        kind,
        problem,
    } = first;
    // A difference in the graphs as they are counts though the same value may agree when handed out.
    if identity.of(kind).different == 0 {
        identity.of(kind).different = 1;
    }
    let node = graph.node(id);
    identity.first.get_or_insert(Difference {
        node: node.label(graph),
        op: node.op().to_owned(),
        tensor: graph.value(value).name.clone(),
        problem,
    });
}

/// How two tensors differ.
fn difference(was: &Tensor, is: &Tensor) -> Option<String> {
    if (was.data_type, &was.shape) != (is.data_type, &is.shape) {
        return Some("has another type or shape".to_owned());
    }
    let different = was.bytes.iter().zip(&is.bytes).position(|(a, b)| a != b)?;
    let width = was.bytes.len() / was.elements().max(1);
    let element = different / width.max(1);
    let shown = match (was.to_f64(), is.to_f64()) {
        (Some(was), Some(is)) => format!(": {:e}, and was {:e}", is[element], was[element]),
        _ => String::new(),
    };
    Some(format!(
        "is not the same bits, from element {element} on{shown}"
    ))
}

/// By node: whether an output depends on it.
fn alive(graph: &Graph) -> Vec<bool> {
    let mut alive = vec![false; graph.node_count()];
    let makers = graph.outputs().iter().filter_map(|&v| graph.producer(v));
    let mut pending: Vec<NodeId> = makers.collect();
    while let Some(id) = pending.pop() {
        if !std::mem::replace(&mut alive[id.index()], true) {
            pending.extend(graph.predecessors(id));
        }
    }
    alive
}

/// By value: whether it is one of some values, or depends on one.
fn fed_by(graph: &Graph, values: &[ValueId]) -> Vec<bool> {
    let mut fed = vec![false; graph.value_count()];
    let mut pending = values.to_vec();
    while let Some(value) = pending.pop() {
        if std::mem::replace(&mut fed[value.index()], true) {
            continue;
        }
        for user in &graph.value(value).users {
            pending.extend(graph.node(user.node).outputs.iter().flatten());
        }
    }
    fed
}

/// By node: whether the backward half goes through it on its way to the dY of a contraction.
fn above(graph: &Graph, analyses: &Analyses) -> Vec<bool> {
    let mut above = vec![false; graph.node_count()];
    // All that a contraction reads beside X.
    let operands = analyses.sites.sites.iter().flat_map(|site| {
        let inputs = graph.node(site.product).inputs.iter().enumerate();
        inputs.filter_map(|(slot, value)| (*value).filter(|_| slot != site.slot))
    });
    let mut pending: Vec<NodeId> = operands.filter_map(|value| graph.producer(value)).collect();
    while let Some(id) = pending.pop() {
        let backward = analyses.partition.half(id) == Half::Backward;
        if backward && !std::mem::replace(&mut above[id.index()], true) {
            pending.extend(graph.predecessors(id));
        }
    }
    above
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::collections::{BTreeMap, BTreeSet as Set};
    use std::sync::Arc;
    use velora_graph::analysis::Settings;
    use velora_graph::ir::Model;
    use velora_graph::text::parse_model;
    use velora_runtime::cpu::Cpu;
    use velora_runtime::session::bind::Bound;
    use velora_runtime::session::inputs::Inputs;

    fn model(middle: &str) -> Model {
        let text = format!(
            "<ir_version: 8, opset_import: [\"\" : 18]>
             g (float[4, 8] x, float[8, 8] w, float[8] b) => (float loss, float[8, 8] w_grad, float[8] b_grad)
             <int64[1] zero = {{0}}> {{
                h = Tanh (x)
                [product] p = MatMul (h, w)
                [middle] y = {middle}
                loss = ReduceSum <keepdims = 0> (y)
                [dy] dy = Sigmoid (y)
                [bias] b_grad = ReduceSum <keepdims = 0> (dy, zero)
                ht = Transpose <perm = [1, 0]> (h)
                [weight] w_grad = MatMul (ht, dy)
             }}"
        );
        Model::from_proto(parse_model(&text).unwrap()).unwrap()
    }

    /// Compares a graph with one that computes `y` otherwise; `w_grad` counts as rewritten.
    fn compared(middle: &str) -> Identity {
        let (before, after) = (model("Add (p, b)"), model(middle));
        let analyses = Analyses::new(&before, &Settings::default()).unwrap();
        let floats = |shape: &[usize]| {
            let count = shape.iter().product::<usize>();
            let numbers: Vec<f32> = (0..count).map(|i| (i % 7) as f32 / 7.0 - 0.3).collect();
            Tensor::from_f32(shape, &numbers)
        };
        let tensors = [
            ("x", floats(&[4, 8])),
            ("w", floats(&[8, 8])),
            ("b", floats(&[8])),
        ];
        let inputs = Inputs {
            tensors: tensors.map(|(name, t)| (name.to_owned(), t)).into(),
            bound: Bound {
                batch: Set::new(),
                size: 4,
                sizes: BTreeMap::<Arc<str>, i64>::new(),
            },
            notes: vec![],
        };
        let cpu = Cpu::new(1).unwrap();
        let bench = |model| Bench {
            model,
            folder: None,
            inputs: &inputs,
            cpu: &cpu,
        };
        let graph = &before.graph;
        let changed: Vec<ValueId> = graph
            .values()
            .filter(|&v| graph.value(v).name == "w_grad")
            .collect();
        let shapes = &analyses.shapes;
        compare(&bench(&before), &analyses, shapes, &bench(&after), &changed).unwrap()
    }

    #[test]
    fn each_kind_of_value_is_compared() {
        let same = compared("Add (p, b)");
        let counts = [same.forward, same.input_gradients, same.untouched];
        assert_eq!(
            counts.map(|c| (c.compared, c.different)),
            [(4, 0), (1, 0), (2, 0)]
        );
        assert_eq!(same.first, None);
        // Another order of a sum of two is the same; another sum is not, nor what comes from it.
        assert_eq!(compared("Add (b, p)").first, None);
        let other = compared("Sub (p, b)");
        let counts = [other.forward, other.input_gradients, other.untouched];
        assert_eq!(counts.map(|c| c.different), [2, 1, 1]);
        let first = other.first.unwrap();
        assert_eq!(
            (&first.node[..], &first.op[..], &first.tensor[..]),
            ("middle", "Add", "y")
        );
        assert!(
            first
                .problem
                .starts_with("is not the same bits, from element 0 on: ")
        );
    }
}
