//! Types and shapes of the exported graphs.
#![allow(clippy::unwrap_used)]

use prost::Message;
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use velora_graph::dim::Dim;
use velora_graph::ir::Graph;
use velora_graph::onnx::schema::ModelProto;
use velora_graph::shapes::{Context, Shapes, infer};

const AOT: [&str; 15] = [
    "bert_tiny",
    "deep_mlp",
    "digits_mlp",
    "digits_sgd",
    "digits_vit",
    "llama_256x4",
    "llama_768x4",
    "llama_tiny",
    "llama_tiny_lora",
    "mlp",
    "vit_tiny",
    "vit_tiny_hydra",
    "vit_tiny_lora",
    "vit_tiny_probe",
    "vit_tiny_ssf",
];
const ORT: [&str; 18] = [
    "bert_tiny",
    "bert_tiny_dropout",
    "cnn",
    "cnn_bn",
    "digits_mlp",
    "digits_vit",
    "gru",
    "llama_768x4",
    "llama_hf",
    "llama_tiny",
    "llama_tiny_lora",
    "lstm",
    "mlp",
    "vit_tiny",
    "vit_tiny_hydra",
    "vit_tiny_lora",
    "vit_tiny_probe",
    "vit_tiny_ssf",
];

fn names() -> impl Iterator<Item = String> {
    let aot = AOT.iter().map(|name| format!("aot/{name}"));
    aot.chain(ORT.iter().map(|name| format!("ort/{name}")))
}

fn load(name: &str) -> ModelProto {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../models");
    let bytes = std::fs::read(root.join(name).with_extension("onnx")).unwrap();
    ModelProto::decode(bytes.as_slice()).unwrap()
}

fn inferred(model: &ModelProto, sizes: &[(&str, i64)]) -> (Graph, Shapes) {
    let sizes = sizes.iter().map(|&(n, s)| (Arc::from(n), s)).collect();
    let context = Context {
        opsets: &model.opset_import,
        functions: &model.functions,
        sizes: &sizes,
    };
    let graph = Graph::from_proto(model.graph.clone().unwrap()).unwrap();
    let shapes = infer(&graph, &context).unwrap_or_else(|errors| panic!("{errors}"));
    (graph, shapes)
}

/// Name to type, as text.
fn types(graph: &Graph, shapes: &Shapes) -> BTreeMap<String, String> {
    let named = |v| (graph.value(v).name.clone(), shapes.of(v).to_string());
    graph.values().map(named).collect()
}

fn input_symbols(graph: &Graph, shapes: &Shapes) -> BTreeSet<Arc<str>> {
    let inputs = graph.inputs().iter();
    let dims = inputs.flat_map(|&v| shapes.of(v).shape.iter().flatten());
    dims.flat_map(Dim::symbols).collect()
}

/// Without what the file declares of inner values and outputs.
fn undeclared(mut model: ModelProto) -> ModelProto {
    let graph = model.graph.as_mut().unwrap();
    graph.value_info.clear();
    for output in &mut graph.output {
        output.r#type = None;
    }
    model
}

#[test]
fn every_value_is_known_in_symbols_of_the_inputs() {
    for name in names() {
        let (graph, shapes) = inferred(&load(&name), &[]);
        assert_eq!(shapes.unknown_ops(), &BTreeSet::new(), "{name}");
        let given = input_symbols(&graph, &shapes);
        for value in graph.values() {
            let found = shapes.of(value);
            let label = format!("{name}: {}: {found}", graph.value(value).name);
            assert!(
                found.data_type.is_some() && found.shape.is_some(),
                "{label}"
            );
            let symbols: BTreeSet<_> = found
                .shape
                .iter()
                .flatten()
                .flat_map(Dim::symbols)
                .collect();
            assert!(symbols.is_subset(&given), "{label}");
            assert!(
                shapes.bytes(value).is_some_and(|b| !b.is_undefined()),
                "{label}"
            );
        }
    }
}

/// The rules alone find what rules and declarations find together.
#[test]
fn nothing_depends_on_what_the_file_declares() {
    for name in names() {
        let (graph, shapes) = inferred(&load(&name), &[]);
        let declared = types(&graph, &shapes);
        let (graph, shapes) = inferred(&undeclared(load(&name)), &[]);
        let mut differing = types(&graph, &shapes);
        differing.retain(|value, found| declared[value] != *found);
        assert_eq!(differing, BTreeMap::new(), "{name}");
    }
}

#[test]
fn sizes_given_leave_numbers_only() {
    let sizes = [("batch", 6), ("seq", 16), ("rows", 96)];
    for name in [
        "aot/llama_tiny",
        "aot/llama_256x4",
        "ort/llama_hf",
        "ort/llama_tiny",
    ] {
        let values: BTreeMap<_, _> = sizes.iter().map(|&(n, s)| (Arc::from(n), s)).collect();
        let (graph, symbolic) = inferred(&load(name), &[]);
        let (_, numbers) = inferred(&load(name), &sizes);
        for value in graph.values() {
            let at: Option<Vec<i64>> = symbolic
                .of(value)
                .shape
                .as_ref()
                .map(|shape| shape.iter().map(|d| d.eval(&values).unwrap()).collect());
            let found = numbers.of(value).shape.as_ref();
            let found = found.map(|s| s.iter().map(|d| d.as_const().unwrap()).collect());
            assert_eq!(at, found, "{name}: {}", graph.value(value).name);
        }
    }
}

fn expect(model: &str, expected: &[(&str, &str)]) {
    let (graph, shapes) = inferred(&load(model), &[]);
    let types = types(&graph, &shapes);
    for (name, text) in expected {
        let found = types.get(*name).map(String::as_str);
        assert_eq!(found, Some(*text), "{model}: {name}");
    }
}

#[test]
fn joint_graph_of_a_language_model() {
    expect(
        "aot/llama_tiny",
        &[
            ("x", "int64[batch, seq]"),
            ("slice_5", "float[batch, 4, seq, 8]"),
            ("unsqueeze_1", "float[batch, 2, 1, seq, 16]"),
            ("view_12", "float[4·batch, 16, seq]"),
            ("add_10", "float[batch, 4, seq, seq]"),
            ("view_67", "float[batch·seq, 64]"),
            ("exp", "float[batch·seq, 256]"),
            ("val_61", "int64[3]"),
            ("val_801", "float[8, 2, seq, batch]"),
            ("loss", "float[]"),
            ("grad.layers.1.mlp.up_proj.weight", "float[172, 64]"),
        ],
    );
}

#[test]
fn training_artifact_of_bert() {
    let layer = "/model/bert/encoder/layer.1";
    let at = |name: &str| format!("{layer}/{name}");
    expect(
        "ort/bert_tiny",
        &[
            ("labels", "int64[rows]"),
            (
                "/model/bert/embeddings/LayerNorm/Add_1_output_0",
                "float[batch, seq, 64]",
            ),
            ("saved_mean", "float[batch, seq, 1]"),
            (
                &at("attention/self/Reshape_1_output_0"),
                "float[batch, seq, 4, 16]",
            ),
            (
                &at("attention/self/Softmax_output_0_grad"),
                "float[batch, 4, seq, seq]",
            ),
            (
                &at("output/dense/MatMul_Grad/dY_reshape_2d"),
                "float[batch·seq, 64]",
            ),
            ("onnx::loss::8", "float[]"),
            // Declared as `rows` by the exporter; the rule's own size is kept.
            ("onnx::log_prob::9", "float[batch, 2]"),
            ("logits_grad", "float[batch, 2]"),
            (
                "model.bert.embeddings.word_embeddings.weight_grad",
                "float[256, 64]",
            ),
            (
                "model.bert.pooler.dense.weight_grad.accumulation.out",
                "bool[1]",
            ),
        ],
    );
}

#[test]
fn elements_of_shape_tensors_are_expressions() {
    let (graph, shapes) = inferred(&load("aot/llama_tiny"), &[]);
    let value = graph
        .values()
        .find(|&v| graph.value(v).name == "val_61")
        .unwrap();
    let elements: Vec<String> = shapes
        .contents(value)
        .unwrap()
        .iter()
        .map(Dim::to_string)
        .collect();
    assert_eq!(elements, ["batch", "seq", "64"]);
}

/// The tables of rotary embeddings have 32 rows: a longer sequence fails in the runtime.
#[test]
fn sizes_that_no_run_can_have_are_contradictions() {
    let model = load("aot/llama_tiny");
    let graph = Graph::from_proto(model.graph.clone().unwrap()).unwrap();
    let sizes = BTreeMap::from([(Arc::from("batch"), 2), (Arc::from("seq"), 40)]);
    let context = Context {
        opsets: &model.opset_import,
        functions: &model.functions,
        sizes: &sizes,
    };
    let errors = infer(&graph, &context).unwrap_err().to_string();
    assert_eq!(
        errors.lines().next().unwrap(),
        "node 'node_mul_5' (Mul), tensor 'slice_1': the shape [32, 16] has a 32, but 'permute_1' \
         [2, 4, 40, 16] has a 40 there; without the sizes given there is no contradiction: check --dim"
    );
}
