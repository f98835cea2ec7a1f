//! The verifier, a case for each invariant.
//!
//! A case is a text with the violations where the listing has them. Comments are no part of the
//! model, so the same text is what is parsed and what the listing must be.
#![allow(clippy::unwrap_used)]

mod functions;
mod graphs;
mod operators;
mod values;

use std::path::{Path, PathBuf};
use velora_graph::ir::Graph;
use velora_graph::onnx::read::{UnknownFields, read};
use velora_graph::onnx::schema::*;
use velora_graph::text::{Part, parse_model, print_model};
use velora_graph::verify::{Violations, verify, verify_model};

const HEAD: &str = r#"<
   ir_version: 10,
   opset_import: ["" : 21, "local" : 1, "ai.velora" : 1]
>
"#;

fn violations(model: &ModelProto) -> Violations {
    verify_model(model).expect_err("the model was accepted")
}

/// Blank lines, and blanks that the printer leaves behind some heads, do not matter here.
fn trimmed(text: &str) -> Vec<&str> {
    let lines = text.lines().map(str::trim_end);
    lines.filter(|line| !line.is_empty()).collect()
}

/// A model in which only `mutate` puts what text cannot say.
fn check_with(text: &str, mutate: impl FnOnce(&mut ModelProto)) {
    let mut model = parse_model(text).unwrap();
    mutate(&mut model);
    let listing = violations(&model).listing(&model);
    assert_eq!(
        trimmed(&listing),
        trimmed(text),
        "the listing is:\n{listing}"
    );
}

/// A whole model.
fn check_model(text: &str) {
    check_with(text, |_| {});
}

/// A graph, and perhaps functions behind it.
fn check(graph: &str) {
    check_model(&format!("{HEAD}{}\n", graph.trim()));
}

fn accept(graph: &str) {
    let model = parse_model(&format!("{HEAD}{graph}")).unwrap();
    if let Err(found) = verify_model(&model) {
        panic!("{}", found.listing(&model));
    }
}

/// The violations of a graph that was changed into something that has no text.
fn messages(graph: &str, mutate: impl FnOnce(&mut GraphProto)) -> Vec<String> {
    let mut model = parse_model(&format!("{HEAD}{graph}")).unwrap();
    mutate(model.graph.as_mut().unwrap());
    violations(&model)
        .list
        .iter()
        .map(ToString::to_string)
        .collect()
}

fn exported() -> Vec<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../models");
    let folders = ["", "aot", "ort"].map(|f| std::fs::read_dir(root.join(f)).unwrap());
    let mut paths: Vec<_> = folders
        .into_iter()
        .flatten()
        .map(|e| e.unwrap().path())
        .collect();
    paths.retain(|p| p.extension().is_some_and(|e| e == "onnx"));
    assert!(paths.len() >= 25, "only {} models", paths.len());
    paths
}

#[test]
fn every_exported_model_passes_as_message_and_as_indexed_graph() {
    for path in exported() {
        let mut model = read(&path, UnknownFields::Refuse).unwrap();
        if let Err(found) = verify_model(&model) {
            panic!("{}: {found}", path.display());
        }
        let graph = Graph::from_proto(model.graph.take().unwrap()).unwrap();
        if let Err(found) = verify(&model, &graph) {
            panic!("{}: {found}", path.display());
        }
    }
}

#[test]
fn the_indexed_graph_is_judged_as_the_message() {
    let text = format!(
        r#"{HEAD}g (float[N] x) => (float[N] y) {{
   [late] a = Add (x, b)
   # error: reads 'b', which node 1 'early' (Relu) makes only later; nodes must stand behind what they read
   [early] b = Relu (x)
   y = If (x) <then_branch: graph = t () => (d) {{
      d = Relu (x, a)
      # error: 2 inputs; Relu has 1
   }}, else_branch: graph = e () => (d) {{
      d = Neg (a)
   }}>
}}
"#
    );
    let model = parse_model(&text).unwrap();
    let graph = Graph::from_proto(model.graph.clone().unwrap()).unwrap();
    let shell = ModelProto {
        graph: None,
        ..model.clone()
    };
    let found = verify(&shell, &graph).unwrap_err();
    assert_eq!(found, violations(&model));
    assert_eq!(trimmed(&found.listing(&model)), trimmed(&text));
}

#[test]
fn a_listing_parses_back_to_the_model() {
    let mut model = read(&exported()[0], UnknownFields::Refuse).unwrap();
    let text = print_model(&model);
    model.graph.as_mut().unwrap().node[7].op_type = Some(String::new());
    model.graph.as_mut().unwrap().node[9].input[0] = "no\nsuch".into();
    let found = violations(&model);
    assert!(found.list.len() >= 2);
    assert!(found.list.iter().all(|v| v.place.part == Part::Graph));
    // Without the line for the missing operator, which has no text.
    model.graph.as_mut().unwrap().node[7].op_type = Some("Op".into());
    let listing = found.listing(&model);
    assert!(listing.lines().count() > text.lines().count());
    let parsed = parse_model(&listing).unwrap();
    assert_eq!(print_model(&parsed), print_model(&model));
}

#[test]
fn the_message_counts_and_names_places() {
    let graph = r#"g (float x) => (float y) {
   [act] a = Relu (b)
   y = If (a) <then_branch: graph = t () => (d) {
      d = Neg ()
   }>
}
<domain: "local", opset_import: ["" : 21]>
F (x) => (y) {
   [n] y = Relu (z)
}"#;
    let model = parse_model(&format!("{HEAD}{graph}")).unwrap();
    let expected = "\
the model breaks the rules of ONNX at 3 places
  node 0 'act' (Relu): reads 'b', which is defined nowhere; expected an input, an initialiser or the output of a node
  node 1 (If), graph in attribute 'then_branch', node 0 (Neg): 0 inputs; Neg has 1
  function 0 'local.F', node 0 'n' (Relu): reads 'z', which is defined nowhere; expected an input, an initialiser or the output of a node";
    assert_eq!(violations(&model).to_string(), expected);
}

#[test]
fn a_long_message_is_cut() {
    let nodes: String = (0..30).map(|i| format!("o{i} = Relu (m{i})\n")).collect();
    let model = parse_model(&format!("{HEAD}g (float x) => (float o0) {{\n{nodes}}}")).unwrap();
    let found = violations(&model);
    assert_eq!(found.list.len(), 30);
    let text = found.to_string();
    assert_eq!(text.lines().count(), 22);
    assert_eq!(text.lines().last(), Some("  and 10 more"));
}

#[test]
fn long_names_are_cut_where_others_refer_to_them() {
    let long = "ü".repeat(100_000);
    let text =
        format!("{HEAD}g (float x) => (float z) {{ [\"{long}\"] y = Relu (x) y = Neg (x) }}");
    let found = violations(&parse_model(&text).unwrap());
    let expected = format!(
        "output 'y' is already defined by node 0 '{}…' (Relu)",
        &long[..240]
    );
    assert!(found.list.iter().any(|v| v.message == expected), "{found}");
}
