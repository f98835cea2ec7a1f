//! `DequantizeLinear`: by hand, against a plain loop, and what is refused; 4-bit integers as tensors.
#![allow(clippy::unwrap_used)]

mod layouts;
mod refusals;
mod tensors;

use std::collections::BTreeMap;
use velora_graph::ir::Model;
use velora_graph::shapes::DataType;
use velora_graph::text;
use velora_runtime::cpu::Cpu;
use velora_runtime::evaluate::evaluate;
use velora_runtime::lower::Request;
use velora_runtime::tensor::Tensor;

/// A model of some nodes: `inputs` are declarations, `constants` initialisers.
fn model(opset: i64, inputs: &str, output: &str, constants: &str, nodes: &str) -> String {
    format!(
        r#"<ir_version: 10, opset_import: ["" : {opset}]>
        g ({inputs}) => ({output}) <{constants}> {{ {nodes} }}"#
    )
}

fn run_on(source: &str, inputs: &[(&str, Tensor)], threads: usize) -> Result<Vec<Tensor>, String> {
    let proto = text::parse_model(source).unwrap();
    let model = Model::from_proto(proto).map_err(|e| e.to_string())?;
    let request = Request {
        sizes: &BTreeMap::new(),
        partition: None,
        folder: None,
        evaluation: false,
    };
    let inputs = inputs.iter().map(|(n, t)| ((*n).to_owned(), t.clone()));
    let cpu = Cpu::new(threads).unwrap();
    evaluate(&model, &request, &inputs.collect(), &cpu).map_err(|e| e.to_string())
}

fn run(source: &str, inputs: &[(&str, Tensor)]) -> Result<Vec<Tensor>, String> {
    run_on(source, inputs, 1)
}

fn floats(source: &str) -> Vec<f32> {
    run(source, &[]).unwrap()[0].to_f32().unwrap()
}

/// Packs integers; those of 4 bits two to a byte.
fn integers(data_type: DataType, shape: &[usize], elements: &[i64]) -> Tensor {
    let bytes: Vec<u8> = match data_type.0 {
        21 | 22 => elements
            .chunks(2)
            .map(|pair| (pair[0] & 15) as u8 | (pair.get(1).map_or(0, |e| (e & 15) as u8) << 4))
            .collect(),
        2 | 3 => elements.iter().map(|&e| e as u8).collect(),
        4 | 5 => { elements.iter() }
            .flat_map(|&e| (e as u16).to_le_bytes())
            .collect(),
        _ => { elements.iter() }
            .flat_map(|&e| (e as i32).to_le_bytes())
            .collect(),
    };
    Tensor {
        data_type,
        shape: shape.to_vec(),
        bytes: bytes.into(),
    }
}
