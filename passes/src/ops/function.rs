//! The operators as model-local functions.

use super::{Op, Variant};
use crate::proto::{attribute, int, ints, node};
use std::collections::BTreeSet;
use velora_graph::onnx::schema::{
    AttributeProto, AttributeType, FunctionProto, GraphProto, NodeProto, OperatorSetIdProto,
    TypeProto, ValueInfoProto, type_proto,
};
use velora_graph::shapes::DataType;
use velora_graph::text::{ParseError, parse_function};

/// A body's function, for one variant.
pub(super) fn body(op: Op, variant: Variant) -> Result<FunctionProto, ParseError> {
    parse_function(op.body(op.relevant(variant)))
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
    let relevant: BTreeSet<Variant> = variants.iter().map(|&v| op.relevant(v)).collect();
    let mut bodies = Vec::new();
    for &variant in &relevant {
        bodies.push((variant, body(op, variant)?));
    }
    let mut function = match bodies.as_slice() {
        [(_, only)] => only.clone(),
        [] => body(op, Variant::default())?,
        several => branching(op, several),
    };
    function.attribute = op.attributes().iter().map(|a| (*a).to_owned()).collect();
    function.opset_import = vec![OperatorSetIdProto {
        domain: Some(String::new()),
        version: Some(opset),
    }];
    Ok(function)
}

/// Nested branches over the variants: first whether dW is transposed, then whether there is padding.
fn branching(op: Op, bodies: &[(Variant, FunctionProto)]) -> FunctionProto {
    let mut function = bodies.first().map(|(_, f)| f.clone()).unwrap_or_default();
    let output = function.output.first().cloned().unwrap_or_default();
    function.node = Vec::new();
    let transposed = bodies.iter().any(|(v, _)| v.transposed);
    let straight = bodies.iter().any(|(v, _)| !v.transposed);
    if transposed && straight {
        let of = |transposed| {
            let group: Vec<_> = bodies
                .iter()
                .filter(|(v, _)| v.transposed == transposed)
                .collect();
            padding_branch(op, &group, if transposed { "t_" } else { "s_" })
        };
        function
            .node
            .extend(read_attribute("transposed", "transposed"));
        function.node.push(condition("transposed", "is_transposed"));
        function
            .node
            .push(branch("is_transposed", of(true), of(false), &output));
    } else {
        let group: Vec<_> = bodies.iter().collect();
        let graph = padding_branch(op, &group, "");
        function.node = graph.node;
        rename(
            &mut function.node,
            &graph
                .output
                .first()
                .map(|o| o.name().to_owned())
                .unwrap_or_default(),
            &output,
        );
    }
    function
}

/// The nodes of one or two variants that differ in padding only.
fn padding_branch(op: Op, group: &[&(Variant, FunctionProto)], prefix: &str) -> GraphProto {
    let graph_of =
        |function: &FunctionProto, tag: &str| as_graph(function, &format!("{prefix}{tag}"));
    let find = |padded| {
        group
            .iter()
            .find(|(v, _)| v.padded == padded)
            .map(|(_, f)| f)
    };
    match (find(false), find(true)) {
        (Some(plain), Some(padded)) => {
            let mut nodes = features(op, prefix);
            let name = |what: &str| format!("{prefix}{what}");
            nodes.extend(read_attribute("groups", &name("group_count")));
            nodes.push(node(
                "Mod",
                &[&name("feature_count"), &name("group_count")],
                &name("remainder"),
            ));
            nodes.push(condition(&name("remainder"), &name("is_padded")));
            let output = name("result");
            nodes.push(branch(
                &name("is_padded"),
                graph_of(padded, "p_"),
                graph_of(plain, "n_"),
                &output,
            ));
            GraphProto {
                node: nodes,
                name: Some(name("padding")),
                output: vec![float_value(&output)],
                ..Default::default()
            }
        }
        (Some(one), None) | (None, Some(one)) => graph_of(one, ""),
        (None, None) => GraphProto::default(),
    }
}

/// D: an attribute where the operator has one, else the last axis of X.
fn features(op: Op, prefix: &str) -> Vec<NodeProto> {
    let name = |what: &str| format!("{prefix}{what}");
    if op.attributes().contains(&"features") {
        return read_attribute("features", &name("feature_count"));
    }
    let constant = |value: i64, output: &str| NodeProto {
        attribute: vec![ints("value_ints", vec![value])],
        ..node("Constant", &[], output)
    };
    let [last, past, shape] = ["last", "past", "x_shape"].map(name);
    vec![
        constant(-1, &last),
        constant(i64::MAX, &past),
        node("Shape", &["x"], &shape),
        node("Slice", &[&shape, &last, &past], &name("feature_count")),
    ]
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
fn as_graph(function: &FunctionProto, prefix: &str) -> GraphProto {
    let mut nodes = function.node.clone();
    for name in function.node.iter().flat_map(|n| &n.output) {
        rename(&mut nodes, name, &format!("{prefix}{name}"));
    }
    let outputs = function
        .output
        .iter()
        .map(|o| float_value(&format!("{prefix}{o}")));
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

fn float_value(name: &str) -> ValueInfoProto {
    ValueInfoProto {
        name: Some(name.to_owned()),
        r#type: Some(TypeProto {
            value: Some(type_proto::Value::TensorType(type_proto::Tensor {
                elem_type: Some(1),
                shape: None,
            })),
            ..Default::default()
        }),
        ..Default::default()
    }
}
