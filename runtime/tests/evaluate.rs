//! Small graphs, evaluated once.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use velora_graph::ir::Model;
use velora_graph::text;
use velora_runtime::cpu::Cpu;
use velora_runtime::evaluate::evaluate;
use velora_runtime::lower::Request;
use velora_runtime::tensor::Tensor;

fn run(source: &str, inputs: &[(&str, Tensor)]) -> Vec<Tensor> {
    let model = Model::from_proto(text::parse_model(source).unwrap()).unwrap();
    let request = Request {
        sizes: &BTreeMap::new(),
        partition: None,
        folder: None,
        evaluation: false,
    };
    let inputs = inputs.iter().map(|(n, t)| ((*n).to_owned(), t.clone()));
    let cpu = Cpu::new(1).unwrap();
    evaluate(&model, &request, &inputs.collect(), &cpu).unwrap()
}

#[test]
fn a_product_of_two_matrices_through_a_view() {
    let source = r#"<ir_version: 10, opset_import: ["" : 18]>
        g (float[2,3] a, float[6] flat) => (float[2,2] c)
        <int64[2] shape = {3, 2}> {
            b = Reshape (flat, shape)
            c = MatMul (a, b)
        }"#;
    let a = Tensor::from_f32(&[2, 3], &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
    let flat = Tensor::from_f32(&[6], &[1.0, 0.0, 0.0, 1.0, 1.0, 1.0]);
    let outputs = run(source, &[("a", a), ("flat", flat)]);
    assert_eq!(outputs[0].to_f32().unwrap(), [4.0, 5.0, 10.0, 11.0]);
}
