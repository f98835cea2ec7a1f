//! Roles and partition on the exported graphs.
#![allow(clippy::unwrap_used)]

use prost::Message;
use std::path::PathBuf;
use velora_graph::analysis::partition::{Half, Partition};
use velora_graph::analysis::roles::{Hints, RoleError, Roles, roles};
use velora_graph::ir::Graph;
use velora_graph::onnx::schema::ModelProto;

fn load(name: &str) -> Graph {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../models");
    let bytes = std::fs::read(root.join(name).with_extension("onnx")).unwrap();
    Graph::from_proto(ModelProto::decode(bytes.as_slice()).unwrap().graph.unwrap()).unwrap()
}

fn analysed(name: &str) -> (Graph, Roles, Partition) {
    let graph = load(name);
    let roles = roles(&graph, &Hints::default()).unwrap();
    let partition = Partition::new(&graph, &roles);
    (graph, roles, partition)
}

/// Counted by a separate Python script over the same files, by name and with no view merged.
const SAVED: [(&str, usize); 24] = [
    ("aot/bert_tiny", 53),
    ("aot/llama_tiny", 72),
    ("aot/llama_tiny_lora", 73),
    ("aot/mlp", 7),
    ("aot/vit_tiny", 52),
    ("aot/vit_tiny_hydra", 61),
    ("aot/vit_tiny_lora", 56),
    ("aot/vit_tiny_probe", 3),
    ("aot/vit_tiny_ssf", 50),
    ("ort/bert_tiny", 59),
    ("ort/bert_tiny_dropout", 70),
    ("ort/cnn", 6),
    ("ort/cnn_bn", 9),
    ("ort/gru", 14),
    ("ort/llama_hf", 80),
    ("ort/llama_tiny", 80),
    ("ort/llama_tiny_lora", 79),
    ("ort/lstm", 14),
    ("ort/mlp", 4),
    ("ort/vit_tiny", 57),
    ("ort/vit_tiny_hydra", 63),
    ("ort/vit_tiny_lora", 60),
    ("ort/vit_tiny_probe", 2),
    ("ort/vit_tiny_ssf", 55),
];

#[test]
fn saved_values_are_those_that_an_independent_script_counts() {
    let counted = SAVED.map(|(name, _)| {
        let (graph, _, partition) = analysed(name);
        (name, partition.saved(&graph).len())
    });
    assert_eq!(counted, SAVED);
}

#[test]
fn each_gradient_finds_its_parameter() {
    let (graph, found, _) = analysed("ort/mlp");
    let named: Vec<_> = (found.gradients.iter())
        .map(|&(p, g)| (graph.value(p).name.as_str(), graph.value(g).name.as_str()))
        .collect();
    assert_eq!(
        named,
        [
            ("fc1.weight", "fc1.weight_grad.accumulation.out"),
            ("fc1.bias", "fc1.bias_grad.accumulation.out"),
            ("fc2.weight", "fc2.weight_grad.accumulation.out"),
            ("fc2.bias", "fc2.bias_grad.accumulation.out"),
            ("fc3.weight", "fc3.weight_grad.accumulation.out"),
            ("fc3.bias", "fc3.bias_grad.accumulation.out"),
        ]
    );
    assert_eq!(graph.value(found.loss).name, "onnx::loss::2");

    let (graph, found, _) = analysed("aot/llama_tiny_lora");
    for &(parameter, gradient) in &found.gradients {
        let parameter = &graph.value(parameter).name;
        assert_eq!(graph.value(gradient).name, format!("grad.{parameter}"));
    }
    assert_eq!(found.gradients.len(), graph.outputs().len() - 1);
}

#[test]
fn the_halves_of_a_small_graph() {
    let (graph, _, partition) = analysed("ort/mlp");
    let of = |half| {
        let nodes = graph.order().iter().filter(|&&n| partition.half(n) == half);
        nodes.map(|&n| graph.node(n).op()).collect::<Vec<_>>()
    };
    assert_eq!(
        of(Half::Forward),
        [
            "Gemm",
            "Relu",
            "Gemm",
            "Gelu",
            "Gemm",
            "SoftmaxCrossEntropyLoss"
        ]
    );
    assert_eq!(of(Half::Dead), Vec::<&str>::new());
    let saved: Vec<_> = (partition.saved(&graph).into_iter())
        .map(|v| graph.value(v).name.as_str())
        .collect();
    assert_eq!(
        saved,
        [
            "/Relu_output_0",
            "/fc2/Gemm_output_0",
            "/Mul_1_output_0",
            "onnx::log_prob::3"
        ]
    );
}

#[test]
fn hints_override_and_are_checked() {
    let graph = load("aot/mlp");
    let mut hints = Hints {
        loss: Some("grad.fc1.bias".to_owned()),
        ..Hints::default()
    };
    let found = roles(&graph, &hints).unwrap();
    assert_eq!(graph.value(found.loss).name, "grad.fc1.bias");
    assert_eq!(
        found.others.len(),
        1,
        "the scalar is then an output like any other"
    );

    hints.loss = Some("nothing".to_owned());
    let error = roles(&graph, &hints).unwrap_err().to_string();
    assert_eq!(
        error,
        "--loss names 'nothing', which is not an output of the graph"
    );

    hints.loss = None;
    hints.gradients.insert("x".to_owned(), "loss".to_owned());
    let error = roles(&graph, &hints).unwrap_err();
    assert_eq!(error, RoleError::Loss { candidates: vec![] });
}

/// The graph `aot/mlp` with an input and an output renamed.
fn renamed(input: &str, output: &str) -> Graph {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../models/aot/mlp.onnx");
    let bytes = std::fs::read(root).unwrap();
    let mut proto = ModelProto::decode(bytes.as_slice()).unwrap().graph.unwrap();
    let new = |name: &str| match name {
        "fc1.bias" => input.to_owned(),
        "grad.fc1.bias" => output.to_owned(),
        other => other.to_owned(),
    };
    for node in &mut proto.node {
        for name in node.input.iter_mut().chain(&mut node.output) {
            *name = new(name);
        }
    }
    for info in proto.input.iter_mut().chain(&mut proto.output) {
        info.name = Some(new(info.name()));
    }
    Graph::from_proto(proto).unwrap()
}

#[test]
fn the_longest_whole_name_in_an_output_is_its_parameter() {
    let owner = |input: &str, output: &str| {
        let graph = renamed(input, output);
        let found = roles(&graph, &Hints::default()).unwrap();
        let gradient = (found.gradients.iter()).find(|(_, o)| graph.value(*o).name == output);
        gradient.map(|&(parameter, _)| graph.value(parameter).name.clone())
    };
    let named = |name: &str| Some(name.to_owned());
    assert_eq!(owner("été.b", "grad.été.b_out"), named("été.b"));
    assert_eq!(owner("x.fc2.bias", "grad.x.fc2.bias"), named("x.fc2.bias"));
    assert_eq!(owner("b", "grad.fc2.bias.sum"), named("fc2.bias"));
    assert_eq!(owner("b", "grad.sub"), None);
    assert_eq!(owner("b", "é.b"), named("b"));
}

/// Would take minutes where every part of the output's name were looked up.
#[test]
fn names_of_many_words_are_searched_fast() {
    let graph = renamed(&".".repeat(99_000), &".".repeat(100_000));
    let found = roles(&graph, &Hints::default()).unwrap();
    assert_eq!(found.gradients.len(), 6);
}

#[test]
fn an_inference_graph_is_explained() {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../models/aot/mlp.onnx");
    let bytes = std::fs::read(root).unwrap();
    let mut proto = ModelProto::decode(bytes.as_slice()).unwrap().graph.unwrap();
    proto.output.truncate(1);
    let graph = Graph::from_proto(proto).unwrap();
    let error = roles(&graph, &Hints::default()).unwrap_err().to_string();
    assert_eq!(
        error,
        "no output of the graph is the gradient of an input: this looks like an inference graph. \
         Export a training graph (forward, loss and backward in one graph), or name the gradients \
         with --grad PARAM=OUTPUT; the outputs are loss"
    );
}
