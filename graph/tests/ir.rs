//! The indexed graph against the messages it is made from.
#![allow(clippy::unwrap_used)]

use petgraph::visit::{Reversed, Walker};
use prost::Message;
use std::path::PathBuf;
use velora_graph::ir::{Graph, GraphError, Origin, View};
use velora_graph::onnx::schema::{
    AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto,
};

fn models() -> Vec<(PathBuf, ModelProto)> {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../models");
    let mut found = Vec::new();
    for dialect in ["aot", "ort"] {
        for entry in std::fs::read_dir(root.join(dialect)).unwrap() {
            let path = entry.unwrap().path();
            if path.extension().is_some_and(|e| e == "onnx") {
                let bytes = std::fs::read(&path).unwrap();
                found.push((path, ModelProto::decode(bytes.as_slice()).unwrap()));
            }
        }
    }
    assert!(
        found.len() >= 24,
        "only {} graphs under models/",
        found.len()
    );
    found.sort_by(|a, b| a.0.cmp(&b.0));
    found
}

fn node(name: &str, op: &str, inputs: &[&str], outputs: &[&str]) -> NodeProto {
    NodeProto {
        name: Some(name.to_owned()),
        op_type: Some(op.to_owned()),
        input: inputs.iter().map(|s| s.to_string()).collect(),
        output: outputs.iter().map(|s| s.to_string()).collect(),
        ..Default::default()
    }
}

fn infos(names: &[&str]) -> Vec<ValueInfoProto> {
    let info = |n: &&str| ValueInfoProto {
        name: Some(n.to_string()),
        ..Default::default()
    };
    names.iter().map(info).collect()
}

fn graph(nodes: Vec<NodeProto>, inputs: &[&str], outputs: &[&str]) -> GraphProto {
    GraphProto {
        node: nodes,
        input: infos(inputs),
        output: infos(outputs),
        ..Default::default()
    }
}

#[test]
fn every_exported_graph_comes_back_as_it_was() {
    for (path, model) in models() {
        let proto = model.graph.unwrap();
        let graph = Graph::from_proto(proto.clone()).unwrap();
        assert!(graph.to_proto() == proto, "{} changed", path.display());
    }
}

#[test]
fn definitions_and_uses_agree_on_every_exported_graph() {
    for (_, model) in models() {
        let graph = Graph::from_proto(model.graph.unwrap()).unwrap();
        let mut reads = 0;
        for &id in graph.order() {
            let node = graph.node(id);
            for (slot, value) in node.inputs.iter().enumerate() {
                if let Some(value) = value {
                    reads += 1;
                    let users = &graph.value(*value).users;
                    let here = users
                        .iter()
                        .filter(|u| u.node == id && u.slot == Some(slot));
                    assert_eq!(here.count(), 1);
                }
            }
            for (slot, value) in node.outputs.iter().enumerate() {
                if let Some(value) = value {
                    assert_eq!(graph.value(*value).origin, Origin::Node(id, slot));
                }
            }
        }
        let listed: usize = graph.values().map(|v| graph.value(v).users.len()).sum();
        assert_eq!(listed, reads);
    }
}

#[test]
fn a_sorted_file_keeps_its_order() {
    for (path, model) in models() {
        let graph = Graph::from_proto(model.graph.unwrap()).unwrap();
        assert_eq!(
            graph.topological_order().unwrap(),
            graph.order(),
            "{}",
            path.display()
        );
    }
}

#[test]
fn an_unsorted_graph_is_sorted_with_the_fewest_surprises() {
    let nodes = vec![
        node("late", "Relu", &["h"], &["y"]),
        node("free", "Relu", &["x"], &["w"]),
        node("early", "Relu", &["x"], &["h"]),
    ];
    let graph = Graph::from_proto(graph(nodes, &["x"], &["y", "w"])).unwrap();
    let order = graph.topological_order().unwrap();
    let names: Vec<_> = order.iter().map(|&n| graph.node(n).label(&graph)).collect();
    assert_eq!(names, ["free", "early", "late"]);
}

#[test]
fn petgraph_walks_both_ways() {
    let nodes = vec![
        node("a", "Relu", &["x"], &["a"]),
        node("b", "Relu", &["a"], &["b"]),
        node("side", "Relu", &["x"], &["s"]),
    ];
    let graph = Graph::from_proto(graph(nodes, &["x"], &["b", "s"])).unwrap();
    let (first, last) = (graph.order()[0], graph.order()[1]);
    let view = View(&graph);
    let down: Vec<_> = petgraph::visit::Dfs::new(view, first).iter(view).collect();
    assert_eq!(down, [first, last]);
    let up = Reversed(view);
    let up: Vec<_> = petgraph::visit::Dfs::new(up, last).iter(up).collect();
    assert_eq!(up, [last, first]);
}

#[test]
fn an_undefined_tensor_is_named_with_its_reader() {
    let nodes = vec![node("relu", "Relu", &["nowhere"], &["y"])];
    let error = Graph::from_proto(graph(nodes, &["x"], &["y"])).unwrap_err();
    assert_eq!(
        error.to_string(),
        "tensor 'nowhere', read by node 0 'relu' (Relu), is defined nowhere; expected a graph \
         input, an initialiser or the output of a node (was the file cut out of a larger model?)"
    );
    let error = Graph::from_proto(graph(vec![], &["x"], &["y"])).unwrap_err();
    assert!(matches!(error, GraphError::Undefined { tensor, reader }
        if tensor == "y" && reader == "the list of graph outputs"));
}

#[test]
fn two_definitions_of_a_tensor_are_refused() {
    let nodes = vec![
        node("a", "Relu", &["x"], &["y"]),
        node("b", "Relu", &["x"], &["y"]),
    ];
    let error = Graph::from_proto(graph(nodes, &["x"], &["y"])).unwrap_err();
    assert_eq!(
        error.to_string(),
        "tensor 'y' is defined twice: by output 0 of node 0 and by output 0 of node 1; every name \
         may be defined once"
    );
}

#[test]
fn an_initialiser_may_be_an_inputs_default() {
    let mut proto = graph(vec![node("a", "Relu", &["w"], &["y"])], &["w"], &["y"]);
    proto.initializer.push(TensorProto {
        name: Some("w".to_owned()),
        ..Default::default()
    });
    let graph = Graph::from_proto(proto.clone()).unwrap();
    assert_eq!(graph.value(graph.inputs()[0]).origin, Origin::Input(0));
    assert!(graph.to_proto() == proto);
}

#[test]
fn a_cycle_is_named_node_by_node() {
    let nodes = vec![
        node("before", "Relu", &["x"], &["b"]),
        node("a", "Add", &["b", "q"], &["p"]),
        node("c", "Relu", &["p"], &["q"]),
        node("after", "Relu", &["q"], &["y"]),
    ];
    let error = Graph::from_proto(graph(nodes, &["x"], &["y"])).unwrap_err();
    let GraphError::Cycle { mut nodes } = error else {
        panic!("{error}");
    };
    nodes.sort();
    assert_eq!(nodes, ["a", "c"]);
}

#[test]
fn what_a_nested_graph_captures_is_a_use() {
    let branch = graph(vec![node("n", "Relu", &["outer"], &["r"])], &[], &["r"]);
    let mut choose = node("choose", "If", &["cond"], &["y"]);
    choose.attribute.push(AttributeProto {
        name: Some("then_branch".to_owned()),
        g: Some(Box::new(branch)),
        ..Default::default()
    });
    let proto = graph(
        vec![node("make", "Relu", &["x"], &["outer"]), choose],
        &["x", "cond"],
        &["y"],
    );
    let graph = Graph::from_proto(proto.clone()).unwrap();
    let choose = graph.order()[1];
    let captured: Vec<_> = (graph.node(choose).captures.iter())
        .map(|&v| graph.value(v).name.as_str())
        .collect();
    assert_eq!(captured, ["outer"]);
    assert_eq!(
        graph.predecessors(choose).collect::<Vec<_>>(),
        [graph.order()[0]]
    );
    assert!(graph.to_proto() == proto);
}

#[test]
fn nesting_without_end_is_refused() {
    let mut inner = graph(vec![], &["x"], &["x"]);
    for _ in 0..40 {
        let mut holder = node("deep", "If", &[], &["y"]);
        holder.attribute.push(AttributeProto {
            name: Some("then_branch".to_owned()),
            g: Some(Box::new(inner)),
            ..Default::default()
        });
        inner = graph(vec![holder], &[], &["y"]);
    }
    let error = Graph::from_proto(inner).unwrap_err();
    assert!(
        matches!(error, GraphError::TooDeep { limit: 32, .. }),
        "{error}"
    );
}
