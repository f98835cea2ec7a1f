//! Ways of gradients that no file of cases shows: too long ones, and the gradient of a single number.
#![allow(clippy::unwrap_used)]

use velora_graph::analysis::sites::route::{Route, route};
use velora_graph::analysis::{Analyses, Settings};
use velora_graph::ir::Model;
use velora_graph::onnx::schema::{ModelProto, NodeProto};
use velora_graph::text::parse_model;

/// The way of the only gradient.
fn way(model: ModelProto) -> Result<Route, String> {
    let model = Model::from_proto(model).unwrap();
    let analyses = Analyses::new(&model, &Settings::default()).unwrap();
    let &[gradient] = analyses.roles.gradients.as_slice() else {
        panic!("several gradients");
    };
    route(&model.graph, &analyses.shapes, &analyses.sites, gradient)
}

/// A layer from `features` to `outputs`, and the nodes behind its contraction, g.
fn layer([features, outputs]: [i64; 2], behind: &str) -> ModelProto {
    let text = format!(
        "<ir_version: 10, opset_import: [\"\" : 18]>
         g (float[256, {features}] x, float[{features}, {outputs}] w)
            => (float loss, float[{features}, {outputs}] w_grad)
         {{
            h = Sigmoid (x)
            y = MatMul (h, w)
            loss = ReduceSumSquare <keepdims = 0> (y)
            dy = Add (y, y)
            g = Gemm <transA = 1> (h, dy)
            {behind}
         }}"
    );
    parse_model(&text).unwrap()
}

/// The gradient of a weight with one entry is itself a number.
#[test]
fn a_square_of_one_entry_is_refused() {
    assert_eq!(
        way(layer([1, 1], "w_grad = Neg (g)")).unwrap().nodes.len(),
        1
    );
    for behind in [
        "w_grad = Mul (g, g)",
        "w_grad = Div (g, g)",
        "n = Neg (g)  w_grad = Mul (n, g)",
    ] {
        let why = way(layer([1, 1], behind)).unwrap_err();
        assert!(why.contains("multiplies it by itself"), "{behind}: {why}");
    }
}

/// However long the way, it is a message and no overflow.
#[test]
fn long_ways_are_refused() {
    for (length, accepted) in [(1, true), (64, true), (65, false), (300_000, false)] {
        let mut model = layer([64, 4], "");
        let graph = model.graph.as_mut().unwrap();
        let mut read = "g".to_owned();
        for step in 1..=length {
            let made = if step == length {
                "w_grad".to_owned()
            } else {
                format!("s{step}")
            };
            graph.node.push(NodeProto {
                op_type: Some("Neg".to_owned()),
                input: vec![read],
                output: vec![made.clone()],
                ..Default::default()
            });
            read = made;
        }
        match way(model) {
            Ok(route) => assert!(accepted && route.nodes.len() == length, "{length}"),
            Err(why) => assert!(!accepted && why.contains("more than 64 nodes"), "{why}"),
        }
    }
}
