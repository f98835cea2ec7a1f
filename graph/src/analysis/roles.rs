//! Which outputs are the loss, gradients, and updated state.
//!
//! An output belongs to a parameter when its name contains the parameter's whole name, bounded by
//! something that is not part of a longer name (`grad.fc1.weight`, `fc1.weight_grad.accumulation.out`),
//! and the longest such parameter wins. That is a property of what exporters share, not of one
//! exporter's spelling; `--grad PARAM=OUTPUT` and `--loss NAME` say it outright.

use crate::ir::{Graph, ValueId};
use crate::onnx::schema::{ValueInfoProto, tensor_shape_proto::dimension, type_proto};
use std::collections::{BTreeMap, BTreeSet};
use thiserror::Error;

/// What the user said about outputs.
#[derive(Clone, Debug, Default)]
pub struct Hints {
    /// The loss output's name.
    pub loss: Option<String>,
    /// Gradient output by parameter name.
    pub gradients: BTreeMap<String, String>,
}

/// What each output of a training graph is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Roles {
    /// The loss.
    pub loss: ValueId,
    /// Parameter input and gradient output (or updated parameter), in the order of the outputs.
    pub gradients: Vec<(ValueId, ValueId)>,
    /// Outputs that are neither: logits, metrics.
    pub others: Vec<ValueId>,
    /// Of those, directions of compressed activations that the graph hands from step to step: the input
    /// with the last one, and the output with the next.
    pub directions: Vec<(ValueId, ValueId)>,
    /// Of the gradients, those that a rewrite of ours hands out as factors.
    pub factored: Vec<Factored>,
    /// Of the gradients, those of adapters that stand in the places of weights.
    pub adapters: Vec<Adapter>,
    /// Of the others, outputs that might be gradients all the same, each with an input of its very shape
    /// that has none.
    pub doubtful: Vec<(ValueId, ValueId)>,
}

/// A gradient `dW = v ⊗ P` that is handed out as P and v.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Factored {
    /// The parameter, [D, O] or [O, D].
    pub parameter: ValueId,
    /// The output with P, [G, O] or [O, G], or the flag of the accumulator that sums it up.
    pub gradient: ValueId,
    /// The output with v, `[M]`, or [G, M] where each group has its own.
    pub direction: ValueId,
    /// G.
    pub groups: i64,
    /// Whether the parameter is [O, D].
    pub features_last: bool,
}

/// A weight `W = W₀ + v ⊗ A` of which A is trained.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Adapter {
    /// The input that is A, [G, O] or [O, G].
    pub input: ValueId,
    /// The weight's gradient as it was before: its parameter is W₀, and its P the gradient of A.
    pub of: Factored,
}

/// Why roles could not be told.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum RoleError {
    /// No output looks like a gradient.
    #[error(
        "no output of the graph is the gradient of an input: this looks like an inference graph. \
         Export a training graph (forward, loss and backward in one graph), or name the gradients \
         with --grad PARAM=OUTPUT; the outputs are {}", .outputs.join(", ")
    )]
    NoGradients {
        /// The outputs' names.
        outputs: Vec<String>,
    },
    /// No output can be the loss, or several can.
    #[error(
        "cannot tell which output is the loss: expected one floating-point scalar that is not a \
         gradient, found {}; name it with --loss",
        if .candidates.is_empty() { "none".to_owned() } else { .candidates.join(", ") }
    )]
    Loss {
        /// The scalars that could be it.
        candidates: Vec<String>,
    },
    /// A hint names something that is not there.
    #[error("{option} names '{name}', which is not {expected} of the graph")]
    UnknownHint {
        /// `--loss` or `--grad`.
        option: &'static str,
        /// The name given.
        name: String,
        /// What it should have been.
        expected: &'static str,
    },
}

/// Finds the loss and the gradients among the outputs.
///
/// # Errors
/// [`RoleError`] where a hint names nothing, where no output is a gradient, or where not exactly one
/// output can be the loss.
pub fn roles(graph: &Graph, hints: &Hints) -> Result<Roles, RoleError> {
    let find = |option, name: &str, among: &[ValueId], expected| {
        let found = among.iter().copied().find(|&v| graph.value(v).name == name);
        found.ok_or_else(|| RoleError::UnknownHint {
            option,
            name: name.to_owned(),
            expected,
        })
    };
    let hinted_loss = match &hints.loss {
        Some(name) => Some(find("--loss", name, graph.outputs(), "an output")?),
        None => None,
    };
    let mut hinted = BTreeMap::new();
    let as_factors: BTreeSet<&str> = match hints.gradients.is_empty() {
        true => BTreeSet::new(),
        false => (graph.order().iter())
            .filter_map(|&id| graph.node(id).metadata("velora.factor_of"))
            .collect(),
    };
    for (parameter, output) in &hints.gradients {
        // A rewrite of ours hands out factors of it, or has given the parameter an adapter.
        if as_factors.contains(output.as_str()) {
            continue;
        }
        let parameter = find("--grad", parameter, graph.inputs(), "an input")?;
        let output = find("--grad", output, graph.outputs(), "an output")?;
        hinted.insert(output, parameter);
    }

    let by_name: BTreeMap<&str, (ValueId, &ValueInfoProto)> = (graph.inputs().iter())
        .zip(graph.input_infos())
        .filter(|(_, info)| is_float(info))
        .map(|(&value, info)| (info.name(), (value, info)))
        .collect();
    let lengths: BTreeSet<usize> = by_name.keys().map(|name| name.len()).collect();
    let mut gradients = Vec::new();
    let mut others = Vec::new();
    let mut directions = Vec::new();
    let mut factored = factored(graph);
    let adapters = adapters(graph, &mut factored);
    let of_adapters = adapters.iter().map(|a| a.of.direction);
    let of_factors = factored.iter().map(|f| f.direction).chain(of_adapters);
    let of_factors: BTreeSet<ValueId> = of_factors.collect();
    for (&output, info) in graph.outputs().iter().zip(graph.output_infos()) {
        if Some(output) == hinted_loss {
            continue;
        }
        if let Some(last) = last_direction(graph, output) {
            directions.push((last, output));
            others.push(output);
            continue;
        }
        if of_factors.contains(&output) {
            others.push(output);
            continue;
        }
        let of_adapters = adapters.iter().map(|a| (a.input, a.of.gradient));
        let of_weights = factored.iter().map(|f| (f.parameter, f.gradient));
        let mut ours = of_adapters.chain(of_weights);
        if let Some((parameter, _)) = ours.find(|&(_, gradient)| gradient == output) {
            gradients.push((parameter, output));
            continue;
        }
        let owner =
            (hinted.get(&output).copied()).or_else(|| owner(info.name(), &by_name, &lengths));
        match owner {
            Some(parameter) => gradients.push((parameter, output)),
            None => others.push(output),
        }
    }
    if gradients.is_empty() {
        let outputs = graph.output_infos().iter().map(|o| o.name().to_owned());
        return Err(RoleError::NoGradients {
            outputs: outputs.collect(),
        });
    }
    let loss = match hinted_loss {
        Some(loss) => loss,
        None => {
            let among: BTreeSet<ValueId> = others.iter().copied().collect();
            // A direction may have one entry.
            let moves = |value: &ValueId| {
                of_factors.contains(value) || directions.iter().any(|(_, next)| next == value)
            };
            let scalars = (graph.outputs().iter().zip(graph.output_infos()))
                .filter(|(value, info)| is_scalar(info) && among.contains(value) && !moves(value));
            let candidates: Vec<_> = scalars.map(|(&value, info)| (value, info.name())).collect();
            match candidates.as_slice() {
                [(loss, _)] => *loss,
                several => {
                    let candidates = several.iter().map(|(_, n)| (*n).to_owned()).collect();
                    return Err(RoleError::Loss { candidates });
                }
            }
        }
    };
    others.retain(|&value| value != loss);
    // What nodes of ours make is known.
    let ours = |output: ValueId| {
        let made = graph.producer(output).map(|node| graph.node(node));
        made.is_some_and(|node| node.velora_op().is_some())
    };
    let untold: Vec<ValueId> = { others.iter().copied() }
        .filter(|&output| !ours(output))
        .collect();
    let doubtful = doubtful(graph, &gradients, &untold);
    Ok(Roles {
        loss,
        gradients,
        others,
        directions,
        factored,
        adapters,
        doubtful,
    })
}

/// Takes from the factored gradients those of adapters.
fn adapters(graph: &Graph, factored: &mut Vec<Factored>) -> Vec<Adapter> {
    let adapter = |of: &Factored| {
        let made = graph.producer(graph.unpinned(of.gradient))?;
        let name = graph.node(made).metadata("velora.adapter")?;
        let mut inputs = graph.inputs().iter().copied();
        let input = inputs.find(|&input| graph.value(input).name == name)?;
        Some(Adapter { input, of: *of })
    };
    let adapters: Vec<Adapter> = factored.iter().filter_map(adapter).collect();
    factored.retain(|of| adapters.iter().all(|adapter| adapter.of != *of));
    adapters
}

/// The gradients that are handed out as factors, by the marks that the rewrite left.
fn factored(graph: &Graph) -> Vec<Factored> {
    let mark = |output: ValueId, key: &str| {
        let made = graph.producer(graph.unpinned(output))?;
        graph.node(made).metadata(key)
    };
    let outputs = graph.outputs().iter().copied();
    let directions: BTreeMap<&str, ValueId> = { outputs.clone() }
        .filter_map(|output| Some((mark(output, "velora.direction_of")?, output)))
        .collect();
    let inputs: BTreeMap<&str, ValueId> = (graph.inputs().iter())
        .map(|&input| (graph.value(input).name.as_str(), input))
        .collect();
    let one = |gradient: ValueId| {
        Some(Factored {
            parameter: *inputs.get(mark(gradient, "velora.factored")?)?,
            gradient,
            direction: *directions.get(graph.value(gradient).name.as_str())?,
            groups: mark(gradient, "velora.groups")?.parse().ok()?,
            features_last: mark(gradient, "velora.axis")? == "1",
        })
    };
    outputs.filter_map(one).collect()
}

/// The input whose next value an output is, where a rewrite of ours made both.
fn last_direction(graph: &Graph, output: ValueId) -> Option<ValueId> {
    let made = graph.node(graph.producer(output)?);
    if made.velora_op() != Some("RunningDirection") {
        return None;
    }
    let last = graph.value(output).name.strip_suffix(".next")?;
    let mut inputs = graph.inputs().iter().copied();
    inputs.find(|&input| graph.value(input).name == last)
}

/// The parameter with the longest name that stands whole inside `output`, not as a piece of a longer
/// word; an output with the very name's letters and nothing else would be the parameter itself, not
/// its gradient.
///
/// `lengths` are those of the names: there are few, while a hostile output has a great many words.
fn owner(
    output: &str,
    inputs: &BTreeMap<&str, (ValueId, &ValueInfoProto)>,
    lengths: &BTreeSet<usize>,
) -> Option<ValueId> {
    let mut best: Option<(usize, ValueId)> = None;
    let mut in_word = false;
    for (start, char) in output.char_indices() {
        if !std::mem::replace(&mut in_word, char.is_alphanumeric()) {
            let longer = best.map_or(1, |(length, _)| length + 1);
            for &length in lengths.range(longer..) {
                let Some((name, behind)) = output[start..].split_at_checked(length) else {
                    continue;
                };
                let ends = !behind.starts_with(char::is_alphanumeric);
                let whole = name.len() == output.len();
                if let Some(&(value, _)) = inputs.get(name).filter(|_| ends && !whole) {
                    best = Some((length, value));
                }
            }
        }
    }
    best.map(|(_, value)| value)
}

/// Outputs without a role whose constant shape is that of an input without a gradient. Each such input
/// is named once.
fn doubtful(
    graph: &Graph,
    gradients: &[(ValueId, ValueId)],
    others: &[ValueId],
) -> Vec<(ValueId, ValueId)> {
    let owned: BTreeSet<ValueId> = gradients.iter().map(|&(parameter, _)| parameter).collect();
    let mut free: BTreeMap<Vec<i64>, Vec<ValueId>> = BTreeMap::new();
    for (&value, info) in graph.inputs().iter().zip(graph.input_infos()).rev() {
        if let Some(shape) = constant_shape(info).filter(|_| !owned.contains(&value)) {
            free.entry(shape).or_default().push(value);
        }
    }
    let without: BTreeSet<ValueId> = others.iter().copied().collect();
    let outputs = graph.outputs().iter().zip(graph.output_infos());
    let unclaimed = outputs.filter(|(value, _)| without.contains(value));
    unclaimed
        .filter_map(|(&value, info)| Some((value, free.get_mut(&constant_shape(info)?)?.pop()?)))
        .collect()
}

/// The shape of a floating-point tensor of rank 1 or more, where it is declared in numbers.
fn constant_shape(info: &ValueInfoProto) -> Option<Vec<i64>> {
    let shape = tensor(info).filter(|_| is_float(info))?.shape.as_ref()?;
    let dims = shape.dim.iter().map(|d| match d.value {
        Some(dimension::Value::DimValue(size)) => Some(size),
        _ => None,
    });
    dims.collect::<Option<Vec<i64>>>()
        .filter(|dims| !dims.is_empty())
}

fn tensor(info: &ValueInfoProto) -> Option<&type_proto::Tensor> {
    match info.r#type.as_ref()?.value.as_ref()? {
        type_proto::Value::TensorType(tensor) => Some(tensor),
        _ => None,
    }
}

/// FLOAT, FLOAT16, DOUBLE or BFLOAT16.
fn is_float(info: &ValueInfoProto) -> bool {
    tensor(info).is_some_and(|t| matches!(t.elem_type(), 1 | 10 | 11 | 16))
}

/// A floating-point tensor with one entry, by its declared shape.
fn is_scalar(info: &ValueInfoProto) -> bool {
    let shape = tensor(info).and_then(|t| t.shape.as_ref());
    let one = |d: &crate::onnx::schema::tensor_shape_proto::Dimension| {
        matches!(d.value, Some(dimension::Value::DimValue(1)))
    };
    is_float(info) && shape.is_some_and(|s| s.dim.iter().all(one))
}
