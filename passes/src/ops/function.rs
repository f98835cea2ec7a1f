//! The operators as model-local functions.

use super::{Op, Variant};
use std::collections::BTreeSet;
use velora_graph::onnx::make::{attribute, int, ints, node};
use velora_graph::onnx::schema::{
    AttributeProto, AttributeType, FunctionProto, GraphProto, NodeProto, OperatorSetIdProto,
    TypeProto, ValueInfoProto, type_proto,
};
use velora_graph::shapes::DataType;
use velora_graph::text::{ParseError, parse_function};

/// A body's function, for one variant.
pub(super) fn body(op: Op, variant: Variant) -> Result<FunctionProto, ParseError> {
    parse_function(&op.body(op.relevant(variant)))
}

/// The function for the variants that a model's calls have, at the model's standard operator set.
/// With one variant it is that variant's body, otherwise it branches.
///
/// # Errors
/// Only where a body's text is broken, which a test excludes.
pub fn function(
    op: Op,
    variants: &BTreeSet<Variant>,
    opset: i64,
) -> Result<FunctionProto, ParseError> {
    // No call can be told by its type: where one needs a body for any type, all have it.
    let any_float = variants.iter().any(|v| op.relevant(*v).any_float);
    let relevant: BTreeSet<Variant> = (variants.iter())
        .map(|&v| op.relevant(Variant { any_float, ..v }))
        .collect();
    let mut bodies = Vec::new();
    for &variant in &relevant {
        bodies.push((variant, body(op, variant)?));
    }
    let mut function = match bodies.as_slice() {
        [(_, only)] => only.clone(),
        [] => body(op, Variant::default())?,
        several => branching(op, several),
    };
    let mut attributes = op.attributes().to_vec();
    // Then all calls say it.
    if relevant.iter().any(|v| v.channels) {
        attributes.push("axis");
    }
    function.attribute = attributes.into_iter().map(str::to_owned).collect();
    function.opset_import = vec![OperatorSetIdProto {
        domain: Some(String::new()),
        version: Some(opset),
    }];
    Ok(function)
}

/// Whether a function of a file is what [`function`] writes for one of the operators, with the bodies of
/// whichever variants.
///
/// # Errors
/// Only where a body's text is broken, which a test excludes.
pub fn is_ours(found: &FunctionProto, opset: i64) -> Result<bool, ParseError> {
    let Some(op) = Op::ALL.into_iter().find(|op| op.name() == found.name()) else {
        return Ok(false);
    };
    // All bodies of a function are for any floats, or none is.
    for any_float in [false, true] {
        let all = variants(op, any_float);
        for chosen in 1..1u32 << all.len() {
            let variants = all.iter().enumerate();
            let variants = variants.filter(|(number, _)| chosen & 1 << number != 0);
            let variants: BTreeSet<Variant> = variants.map(|(_, &variant)| variant).collect();
            if function(op, &variants, opset)? == *found {
                return Ok(true);
            }
        }
    }
    Ok(false)
}

/// Every body of an operator.
///
/// # Errors
/// Only where a body's text is broken, which a test excludes.
pub fn bodies(op: Op) -> Result<Vec<(Variant, FunctionProto)>, ParseError> {
    let all = [false, true].map(|any_float| variants(op, any_float));
    let all: BTreeSet<Variant> = all.into_iter().flatten().collect();
    let bodies = all
        .into_iter()
        .map(|variant| Ok((variant, body(op, variant)?)));
    bodies.collect()
}

/// The variants that an operator has bodies for.
fn variants(op: Op, any_float: bool) -> BTreeSet<Variant> {
    let all = (0..16).map(|bits| {
        op.relevant(Variant {
            padded: bits & 1 != 0,
            transposed: bits & 2 != 0,
            several: bits & 4 != 0,
            channels: bits & 8 != 0,
            any_float,
        })
    });
    all.collect()
}

/// What variants differ in, and how a body tells which of them a call is.
#[derive(Clone, Copy)]
enum Choice {
    /// More axes of v than one.
    Several,
    /// The attribute `transposed`.
    Transposed,
    /// The attribute `axis`.
    Channels,
    /// A remainder of D by G.
    Padded,
}

impl Choice {
    /// In the order of the branches: where to look for D depends on the axis.
    const ALL: [Choice; 4] = [
        Choice::Several,
        Choice::Transposed,
        Choice::Channels,
        Choice::Padded,
    ];

    fn of(self, variant: Variant) -> bool {
        match self {
            Choice::Several => variant.several,
            Choice::Transposed => variant.transposed,
            Choice::Channels => variant.channels,
            Choice::Padded => variant.padded,
        }
    }

    /// What the names of the two sides begin with: if it is so, and if not.
    fn prefixes(self) -> (&'static str, &'static str) {
        match self {
            Choice::Several => ("m_", "o_"),
            Choice::Transposed => ("t_", "s_"),
            Choice::Channels => ("c_", "l_"),
            Choice::Padded => ("p_", "n_"),
        }
    }

    /// The nodes that find out, and the name of the outcome; `known` is one of the variants in question,
    /// which agree in the choices before this one.
    fn condition(self, op: Op, known: Variant, prefix: &str) -> (Vec<NodeProto>, String) {
        let name = |what: &str| format!("{prefix}{what}");
        let mut nodes = Vec::new();
        let (number, outcome) = match self {
            Choice::Several => {
                let [shape, axes, one] = ["v_shape", "v_axes", "one_axis"].map(name);
                nodes.push(node("Shape", &["v"], &shape));
                nodes.push(node("Size", &[&shape], &axes));
                nodes.push(constant(int("value_int", 1), &one));
                nodes.push(node("Sub", &[&axes, &one], &name("more_axes")));
                (name("more_axes"), name("is_several"))
            }
            Choice::Transposed => {
                nodes.extend(read_attribute("transposed", &name("transposed")));
                (name("transposed"), name("is_transposed"))
            }
            Choice::Channels => {
                // It is 1 or -1.
                let [axis, one, behind] = ["axis", "one", "behind"].map(name);
                nodes.extend(read_attribute("axis", &axis));
                nodes.push(constant(int("value_int", 1), &one));
                nodes.push(node("Add", &[&axis, &one], &behind));
                (behind, name("is_channels"))
            }
            Choice::Padded => {
                nodes.extend(features(op, known, prefix));
                let [features, groups, rest] =
                    ["feature_count", "group_count", "remainder"].map(name);
                nodes.extend(read_attribute("groups", &groups));
                nodes.push(node("Mod", &[&features, &groups], &rest));
                (rest, name("is_padded"))
            }
        };
        nodes.push(condition(&number, &outcome));
        (nodes, outcome)
    }
}

/// Nested branches over the variants, of which there are several.
fn branching(op: Op, bodies: &[(Variant, FunctionProto)]) -> FunctionProto {
    let mut function = bodies.first().map(|(_, f)| f.clone()).unwrap_or_default();
    let output = function.output.first().cloned().unwrap_or_default();
    let graph = branch_over(op, bodies, &Choice::ALL, "");
    function.node = graph.node;
    let made = graph.output.first().map(|o| o.name().to_owned());
    rename(&mut function.node, &made.unwrap_or_default(), &output);
    function
}

/// The nodes of some variants, as a graph that captures the function's inputs.
fn branch_over(
    op: Op,
    bodies: &[(Variant, FunctionProto)],
    choices: &[Choice],
    prefix: &str,
) -> GraphProto {
    let Some((known, first)) = bodies.first() else {
        return GraphProto::default();
    };
    let Some((choice, rest)) = choices.split_first() else {
        return as_graph(first, *known, prefix);
    };
    let (is, is_not): (Vec<_>, Vec<_>) = bodies.iter().cloned().partition(|(v, _)| choice.of(*v));
    if is.is_empty() || is_not.is_empty() {
        return branch_over(op, bodies, rest, prefix);
    }
    let (yes, no) = choice.prefixes();
    let side = |side: &[_], mark| branch_over(op, side, rest, &format!("{prefix}{mark}"));
    let (mut nodes, outcome) = choice.condition(op, *known, prefix);
    let output = format!("{prefix}result");
    nodes.push(branch(&outcome, side(&is, yes), side(&is_not, no), &output));
    GraphProto {
        node: nodes,
        name: Some(format!("{prefix}branch")),
        output: vec![value(&output, *known)],
        ..Default::default()
    }
}

/// D: an attribute where the operator has one, else an axis of an input.
fn features(op: Op, known: Variant, prefix: &str) -> Vec<NodeProto> {
    let name = |what: &str| format!("{prefix}{what}");
    if op.attributes().contains(&"features") {
        return read_attribute("features", &name("feature_count"));
    }
    let number = |value: i64, output: &str| constant(ints("value_ints", vec![value]), output);
    let (at, first, end) = match known.channels {
        true => ("first", 1, 2),
        false => ("last", -1, i64::MAX),
    };
    let shape = format!("{}_shape", op.featured_input());
    let [from, past, shape] = [at, "past", &shape].map(name);
    vec![
        number(first, &from),
        number(end, &past),
        node("Shape", &[op.featured_input()], &shape),
        node("Slice", &[&shape, &from, &past], &name("feature_count")),
    ]
}

fn constant(value: AttributeProto, output: &str) -> NodeProto {
    NodeProto {
        attribute: vec![value],
        ..node("Constant", &[], output)
    }
}

/// A constant of an attribute of the call.
fn read_attribute(name: &str, output: &str) -> Vec<NodeProto> {
    vec![NodeProto {
        attribute: vec![AttributeProto {
            ref_attr_name: Some(name.to_owned()),
            ..attribute("value_int", AttributeType::Int)
        }],
        ..node("Constant", &[], output)
    }]
}

/// Whether a number is not zero.
fn condition(number: &str, output: &str) -> NodeProto {
    NodeProto {
        attribute: vec![int("to", i64::from(DataType::BOOL.0))],
        ..node("Cast", &[number], output)
    }
}

fn branch(condition: &str, then: GraphProto, otherwise: GraphProto, output: &str) -> NodeProto {
    let graph = |name: &str, graph| AttributeProto {
        g: Some(Box::new(graph)),
        ..attribute(name, AttributeType::Graph)
    };
    NodeProto {
        attribute: vec![graph("then_branch", then), graph("else_branch", otherwise)],
        ..node("If", &[condition], output)
    }
}

/// A body as a graph that captures the function's inputs; its own names get a prefix.
fn as_graph(function: &FunctionProto, variant: Variant, prefix: &str) -> GraphProto {
    let mut nodes = function.node.clone();
    for name in function.node.iter().flat_map(|n| &n.output) {
        rename(&mut nodes, name, &format!("{prefix}{name}"));
    }
    let outputs = function
        .output
        .iter()
        .map(|o| value(&format!("{prefix}{o}"), variant));
    GraphProto {
        node: nodes,
        name: Some(format!("{prefix}body")),
        output: outputs.collect(),
        ..Default::default()
    }
}

fn rename(nodes: &mut [NodeProto], from: &str, to: &str) {
    let names = nodes
        .iter_mut()
        .flat_map(|n| n.input.iter_mut().chain(&mut n.output));
    names.filter(|n| *n == from).for_each(|n| to.clone_into(n));
}

/// The declaration of a branch's output: of floats, or without a type where it is that of the call.
fn value(name: &str, variant: Variant) -> ValueInfoProto {
    let float = || TypeProto {
        value: Some(type_proto::Value::TensorType(type_proto::Tensor {
            elem_type: Some(DataType::FLOAT.0),
            shape: None,
        })),
        ..Default::default()
    };
    ValueInfoProto {
        name: Some(name.to_owned()),
        r#type: (!variant.any_float).then(float),
        ..Default::default()
    }
}
