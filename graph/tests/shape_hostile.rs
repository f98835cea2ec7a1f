//! Inference on graphs that no exporter writes: it must not panic, hang or fill the memory.
#![allow(clippy::unwrap_used)]

use proptest::prelude::*;
use std::collections::BTreeMap;
use velora_graph::ir::Graph;
use velora_graph::onnx::schema::tensor_shape_proto::{Dimension, dimension};
use velora_graph::onnx::schema::*;
use velora_graph::shapes::{Context, ShapeErrors, Shapes, infer};

fn run(
    graph: GraphProto,
    functions: &[FunctionProto],
    opset: i64,
) -> (Graph, Result<Shapes, ShapeErrors>) {
    let opsets = [OperatorSetIdProto {
        domain: None,
        version: Some(opset),
    }];
    let context = Context {
        opsets: &opsets,
        functions,
        sizes: &BTreeMap::new(),
    };
    let graph = Graph::from_proto(graph).unwrap();
    let shapes = infer(&graph, &context);
    (graph, shapes)
}

fn ints(name: &str, list: Vec<i64>) -> AttributeProto {
    AttributeProto {
        name: Some(name.to_owned()),
        ints: list,
        r#type: Some(AttributeType::Ints as i32),
        ..AttributeProto::default()
    }
}

fn node(
    domain: &str,
    op: &str,
    input: &[&str],
    output: &[&str],
    attribute: Vec<AttributeProto>,
) -> NodeProto {
    NodeProto {
        input: input.iter().map(|&n| n.to_owned()).collect(),
        output: output.iter().map(|&n| n.to_owned()).collect(),
        op_type: Some(op.to_owned()),
        domain: Some(domain.to_owned()),
        attribute,
        ..NodeProto::default()
    }
}

fn input(name: &str, dims: &[&str]) -> ValueInfoProto {
    let dim = |text: &&str| Dimension {
        value: Some(match text.parse() {
            Ok(size) => dimension::Value::DimValue(size),
            Err(_) => dimension::Value::DimParam((*text).to_owned()),
        }),
        denotation: None,
    };
    ValueInfoProto {
        name: Some(name.to_owned()),
        r#type: Some(TypeProto {
            value: Some(type_proto::Value::TensorType(type_proto::Tensor {
                elem_type: Some(1),
                shape: Some(TensorShapeProto {
                    dim: dims.iter().map(dim).collect(),
                }),
            })),
            denotation: None,
        }),
        ..ValueInfoProto::default()
    }
}

fn constant(name: &str, dims: &[i64], elements: &[i64]) -> TensorProto {
    TensorProto {
        name: Some(name.to_owned()),
        dims: dims.to_vec(),
        data_type: Some(7),
        int64_data: elements.to_vec(),
        ..TensorProto::default()
    }
}

#[test]
fn huge_sizes_are_unknown_not_wrapped() {
    let max = i64::MAX.to_string();
    let graph = GraphProto {
        input: vec![input("x", &[&max, &max, "n"])],
        initializer: vec![
            constant("t", &[3], &[i64::MAX, i64::MAX, 4]),
            constant("w", &[i64::MAX, i64::MAX], &[]),
        ],
        node: vec![
            node("", "Tile", &["x", "t"], &["a"], vec![]),
            node("", "ConstantOfShape", &["t"], &["b"], vec![]),
            node("", "Flatten", &["x"], &["c"], vec![ints("axis", vec![])]),
            node(
                "",
                "Concat",
                &["x", "x"],
                &["d"],
                vec![AttributeProto {
                    name: Some("axis".into()),
                    i: Some(0),
                    ..AttributeProto::default()
                }],
            ),
            node("", "Size", &["x"], &["e"], vec![]),
        ],
        ..GraphProto::default()
    };
    let (graph, shapes) = run(graph, &[], 18);
    let shapes = shapes.unwrap();
    let of = |name: &str| {
        graph
            .values()
            .find(|&v| graph.value(v).name == name)
            .unwrap()
    };
    assert_eq!(shapes.of(of("a")).to_string(), "float[a#0, a#1, 4·n]");
    assert_eq!(
        shapes.of(of("d")).to_string(),
        "float[d#0, 9223372036854775807, n]"
    );
    assert!(shapes.bytes(of("w")).unwrap().is_undefined());
    assert!(shapes.contents(of("e")).unwrap()[0].is_undefined());
}

#[test]
fn a_negative_size_of_a_constant_is_named() {
    let graph = GraphProto {
        initializer: vec![constant("w", &[4, -3], &[])],
        node: vec![node("", "Relu", &["w"], &["y"], vec![])],
        ..GraphProto::default()
    };
    assert_eq!(
        run(graph, &[], 18).1.unwrap_err().to_string(),
        "tensor 'w': the constant has the size -3 on axis 1, but no size is negative; the file is damaged"
    );
}

/// A rule that searched these lists for each of their entries would not end.
#[test]
fn lists_of_a_million_entries() {
    let long = || (0..1_000_000).collect::<Vec<i64>>();
    let graph = GraphProto {
        input: vec![input("x", &["2", "n"])],
        node: vec![
            node("", "Unsqueeze", &["x"], &["a"], vec![ints("axes", long())]),
            node("", "Transpose", &["x"], &["b"], vec![ints("perm", long())]),
            node("", "Transpose", &["a"], &["c"], vec![ints("perm", long())]),
            node(
                "",
                "Squeeze",
                &["x"],
                &["d"],
                vec![ints("axes", vec![-2; 1_000_000])],
            ),
            node(
                "",
                "ReduceSum",
                &["x"],
                &["e"],
                vec![ints("axes", vec![1; 1_000_000])],
            ),
            node("", "Reshape", &["x"], &["f"], vec![ints("shape", long())]),
            node("", "Split", &["x"], &["g"], vec![ints("split", long())]),
            node(
                "",
                "Constant",
                &[],
                &["h"],
                vec![ints("value_ints", long())],
            ),
            node("", "ConstantOfShape", &["h"], &["i"], vec![]),
            node(
                "",
                "MaxPool",
                &["a"],
                &["j"],
                vec![ints("kernel_shape", long())],
            ),
            node("", "RandomNormal", &[], &["k"], vec![ints("shape", long())]),
        ],
        ..GraphProto::default()
    };
    let errors = run(graph, &[], 11).1.unwrap_err().to_string();
    let longest = errors.lines().map(str::len).max().unwrap();
    assert!(
        longest < 300,
        "a message of {longest} bytes: the lists of the file are cut"
    );
}

/// Each function calls the next one twice, the last one itself: 2^40 calls and no end.
#[test]
fn functions_that_unfold_without_end() {
    let function = |i: usize| FunctionProto {
        name: Some(format!("f{i}")),
        domain: Some("own".to_owned()),
        input: vec!["x".to_owned()],
        output: vec!["y".to_owned()],
        node: vec![
            node(
                "own",
                &format!("f{}", (i + 1).min(40)),
                &["x"],
                &["h"],
                vec![],
            ),
            node(
                "own",
                &format!("f{}", (i + 1).min(40)),
                &["h"],
                &["y"],
                vec![],
            ),
        ],
        ..FunctionProto::default()
    };
    let functions: Vec<_> = (0..=40).map(function).collect();
    let graph = GraphProto {
        input: vec![input("x", &["n"])],
        node: vec![node("own", "f0", &["x"], &["y"], vec![])],
        ..GraphProto::default()
    };
    let (_, shapes) = run(graph, &functions, 18);
    assert!(shapes.is_ok());
}

/// Sums of ever more symbols become symbols of their own.
#[test]
fn expressions_do_not_grow_from_node_to_node() {
    let count = 5000;
    let names: Vec<String> = (0..count).map(|i| format!("s{i}")).collect();
    let axis = || AttributeProto {
        name: Some("axis".into()),
        i: Some(0),
        ..AttributeProto::default()
    };
    let mut nodes = Vec::new();
    let mut last = "x0".to_owned();
    for i in 1..count {
        let (made, new) = (format!("y{i}"), format!("x{i}"));
        nodes.push(node("", "Concat", &[&last, &new], &[&made], vec![axis()]));
        last = made;
    }
    let graph = GraphProto {
        input: names
            .iter()
            .enumerate()
            .map(|(i, s)| input(&format!("x{i}"), &[s]))
            .collect(),
        node: nodes,
        ..GraphProto::default()
    };
    let (graph, shapes) = run(graph, &[], 18);
    let shapes = shapes.unwrap();
    let lengths = graph.values().map(|v| shapes.of(v).to_string().len());
    assert!(lengths.max().unwrap() < 2000);
}

const OPERATORS: &str = include_str!("../src/shapes/rules.rs");

/// Every operator name in the table, and one that is not.
fn operators() -> Vec<(String, String)> {
    let mut domain = "";
    let mut all = vec![("".to_owned(), "Unheard".to_owned())];
    for line in OPERATORS.lines() {
        if line.starts_with("fn contrib") {
            domain = "com.microsoft";
        }
        let quoted = line.split('"').skip(1).step_by(2);
        for word in quoted.filter(|w| w.starts_with(|c: char| c.is_ascii_uppercase())) {
            all.push((domain.to_owned(), word.to_owned()));
        }
    }
    for op in [
        "Compress",
        "MeanDirection",
        "Reconstruct",
        "FactoredWeightGrad",
    ] {
        all.push(("ai.velora".to_owned(), op.to_owned()));
    }
    all
}

const ATTRIBUTES: [&str; 30] = [
    "axis",
    "axes",
    "perm",
    "keepdims",
    "noop_with_empty_axes",
    "to",
    "kernel_shape",
    "strides",
    "dilations",
    "pads",
    "group",
    "groups",
    "features",
    "transA",
    "transB",
    "transBatchA",
    "split",
    "num_outputs",
    "start",
    "end",
    "starts",
    "ends",
    "batch_dims",
    "hidden_size",
    "layout",
    "blocksize",
    "ceil_mode",
    "allowzero",
    "shape",
    "output_padding",
];

fn number() -> impl Strategy<Value = i64> {
    prop_oneof![
        6 => -3..5i64,
        1 => prop_oneof![Just(i64::MIN), Just(i64::MAX), Just(1 << 40), Just(-(1 << 40))],
    ]
}

fn attribute() -> impl Strategy<Value = AttributeProto> {
    let name = proptest::sample::select(ATTRIBUTES.to_vec());
    let list = proptest::collection::vec(number(), 0..5);
    (name, number(), list).prop_map(|(name, i, list)| AttributeProto {
        name: Some(name.to_owned()),
        i: Some(i),
        ints: list,
        ..AttributeProto::default()
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(3000))]

    #[test]
    fn no_graph_makes_a_rule_panic(
        shapes in proptest::collection::vec(proptest::collection::vec(proptest::sample::select(vec![
            "0", "1", "2", "3", "8", "9223372036854775807", "-1", "n", "2*n", "Max(n, m)", "m - 3",
        ]), 0..5), 3),
        constants in proptest::collection::vec(proptest::collection::vec(number(), 0..5), 4),
        nodes in proptest::collection::vec((
            proptest::sample::select(operators()),
            proptest::collection::vec(proptest::option::weighted(0.9, 0..64usize), 0..7),
            proptest::collection::vec(attribute(), 0..5),
            1..5usize,
        ), 1..12),
        opset in prop_oneof![Just(8i64), Just(11), Just(15), Just(18), Just(24)],
    ) {
        let mut names: Vec<String> = Vec::new();
        let mut graph = GraphProto::default();
        for (index, shape) in shapes.iter().enumerate() {
            names.push(format!("x{index}"));
            graph.input.push(input(&format!("x{index}"), shape));
        }
        for (index, elements) in constants.iter().enumerate() {
            names.push(format!("c{index}"));
            let count = elements.len() as i64;
            let dims = if count == 1 { vec![] } else { vec![count] };
            graph.initializer.push(constant(&format!("c{index}"), &dims, elements));
        }
        for (index, ((domain, op), inputs, attributes, outputs)) in nodes.iter().enumerate() {
            let read: Vec<&str> = inputs.iter().map(|slot| {
                slot.map_or("", |slot| names[slot % names.len()].as_str())
            }).collect();
            let made: Vec<String> = (0..*outputs).map(|slot| format!("v{index}_{slot}")).collect();
            let written: Vec<&str> = made.iter().map(String::as_str).collect();
            graph.node.push(node(domain, op, &read, &written, attributes.clone()));
            names.extend(made);
        }
        let (graph, found) = run(graph, &[], opset);
        match found {
            Ok(shapes) => for value in graph.values() {
                let sizes = shapes.of(value).shape.iter().flatten();
                prop_assert!(sizes.clone().all(|d| !d.is_undefined()));
                prop_assert!(sizes.clone().all(|d| d.as_const().is_none_or(|c| c >= 0)));
            },
            Err(errors) => prop_assert!(!errors.to_string().is_empty()),
        }
    }
}
