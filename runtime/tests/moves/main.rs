//! What moves elements, reads or writes at indices, draws, and accumulates.
#![allow(clippy::unwrap_used)]

mod index;
mod movement;
mod state;

use std::collections::BTreeMap;
use velora_graph::ir::Model;
use velora_graph::text;
use velora_runtime::backend::{Backend, StepContext};
use velora_runtime::cpu::Cpu;
use velora_runtime::evaluate::{EvaluateError, evaluate};
use velora_runtime::lower::{Request, lower};
use velora_runtime::plan::build;
use velora_runtime::tensor::Tensor;

const REQUEST: fn(&BTreeMap<std::sync::Arc<str>, i64>) -> Request<'_> = |sizes| Request {
    sizes,
    partition: None,
    folder: None,
    evaluation: false,
};

fn parse(body: &str) -> Model {
    let header = r#"<ir_version: 10, opset_import: ["" : 20, "com.microsoft" : 1]> "#;
    Model::from_proto(text::parse_model(&format!("{header}{body}")).unwrap()).unwrap()
}

fn try_run(body: &str, inputs: &[(&str, Tensor)]) -> Result<Vec<Tensor>, EvaluateError> {
    let inputs = inputs.iter().map(|(n, t)| ((*n).to_owned(), t.clone()));
    let cpu = Cpu::new(2).unwrap();
    evaluate(
        &parse(body),
        &REQUEST(&BTreeMap::new()),
        &inputs.collect(),
        &cpu,
    )
}

fn run(body: &str, inputs: &[(&str, Tensor)]) -> Vec<Tensor> {
    try_run(body, inputs).unwrap()
}

/// Runs steps of a graph of one input on threads, and gives the bytes of its outputs after the last one.
fn steps(body: &str, threads: usize, contexts: &[StepContext], input: &Tensor) -> Vec<Vec<u8>> {
    let model = parse(body);
    let mut program = lower(&model, &REQUEST(&BTreeMap::new())).unwrap();
    let cpu = Cpu::new(threads).unwrap();
    let plan = build(&mut program, &cpu).unwrap();
    let mut executable = cpu.prepare(vec![plan]).unwrap();
    let place = executable.plan().inputs[0].clone().unwrap();
    executable.write(place.buffer, &input.bytes).unwrap();
    for context in contexts {
        executable.run(context, None).unwrap();
    }
    let outputs = executable.plan().outputs.clone();
    (outputs.into_iter())
        .map(|operand| {
            let mut bytes = vec![0; operand.ty.bytes()];
            executable.read(operand.buffer, &mut bytes).unwrap();
            bytes
        })
        .collect()
}

/// 0, 1, 2, ..
fn counting(shape: &[usize]) -> Tensor {
    let elements: usize = shape.iter().product();
    let numbers: Vec<f32> = (0..elements).map(|i| i as f32).collect();
    Tensor::from_f32(shape, &numbers)
}
