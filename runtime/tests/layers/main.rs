//! Convolutions, pooling and recurrent layers against plain formulas and finite differences.
#![allow(clippy::unwrap_used)]

mod recurrent;
mod window;

use std::collections::BTreeMap;
use velora_graph::ir::Model;
use velora_graph::shapes::DataType;
use velora_graph::text;
use velora_runtime::cpu::Cpu;
use velora_runtime::evaluate::evaluate;
use velora_runtime::lower::Request;
use velora_runtime::tensor::Tensor;

/// Numbers with a shape.
#[derive(Clone, Debug)]
struct Array {
    shape: Vec<usize>,
    data: Vec<f64>,
}

impl Array {
    /// Numbers between -1 and 1 that look random, and are the same for the same seed.
    fn random(shape: &[usize], seed: u64) -> Array {
        let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        let number = || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 11) as f64 / (1u64 << 52) as f64 - 1.0
        };
        let count = shape.iter().product();
        Array {
            shape: shape.to_vec(),
            data: std::iter::repeat_with(number).take(count).collect(),
        }
    }

    /// The numbers as singles hold them.
    fn single(mut self) -> Array {
        for number in &mut self.data {
            *number = f64::from(*number as f32);
        }
        self
    }

    fn tensor(&self, data_type: DataType) -> Tensor {
        let numbers = self.data.iter();
        let bytes: Vec<u8> = match data_type {
            DataType::FLOAT => numbers.flat_map(|&n| (n as f32).to_le_bytes()).collect(),
            DataType::DOUBLE => numbers.flat_map(|n| n.to_le_bytes()).collect(),
            DataType::INT32 => numbers.flat_map(|&n| (n as i32).to_le_bytes()).collect(),
            DataType::INT64 => numbers.flat_map(|&n| (n as i64).to_le_bytes()).collect(),
            DataType::UINT8 => numbers.map(|&n| n as u8).collect(),
            other => panic!("no test has type {}", other.0),
        };
        Tensor {
            data_type,
            shape: self.shape.clone(),
            bytes: bytes.into(),
        }
    }

    fn from_tensor(tensor: &Tensor) -> Array {
        let bytes = &tensor.bytes[..];
        let data = match tensor.data_type {
            DataType::FLOAT => {
                let numbers = bytemuck::pod_collect_to_vec::<u8, f32>(bytes);
                numbers.into_iter().map(f64::from).collect()
            }
            DataType::DOUBLE => bytemuck::pod_collect_to_vec(bytes),
            DataType::INT64 => {
                let numbers = bytemuck::pod_collect_to_vec::<u8, i64>(bytes);
                numbers.into_iter().map(|n| n as f64).collect()
            }
            DataType::UINT8 => bytes.iter().map(|&n| f64::from(n)).collect(),
            other => panic!("no test has type {}", other.0),
        };
        Array {
            shape: tensor.shape.clone(),
            data,
        }
    }

    /// The sum of products with another array.
    fn dot(&self, other: &Array) -> f64 {
        assert_eq!(self.shape, other.shape);
        self.data.iter().zip(&other.data).map(|(a, b)| a * b).sum()
    }
}

const HEAD: &str = r#"<ir_version: 10, opset_import: ["" : 22, "com.microsoft" : 1]>"#;

/// Evaluates a graph; the error is the runtime's message.
fn try_run(threads: usize, graph: &str, inputs: &[(&str, Tensor)]) -> Result<Vec<Tensor>, String> {
    let model = Model::from_proto(text::parse_model(&format!("{HEAD}\n{graph}")).unwrap()).unwrap();
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

/// Evaluates a graph on arrays of one type, with one thread and with three: the bits must be the same.
fn run(data_type: DataType, graph: &str, inputs: &[(&str, &Array)]) -> Vec<Array> {
    let inputs: Vec<(&str, Tensor)> = (inputs.iter())
        .map(|(name, array)| (*name, array.tensor(data_type)))
        .collect();
    let outputs = try_run(1, graph, &inputs).unwrap();
    assert_eq!(outputs, try_run(3, graph, &inputs).unwrap());
    outputs.iter().map(Array::from_tensor).collect()
}

/// Refuses differences beyond `tolerance` times the largest expected number.
fn assert_close(found: &Array, expected: &Array, tolerance: f64, what: &str) {
    assert_eq!(found.shape, expected.shape, "{what}");
    let scale = expected.data.iter().fold(1e-3, |m: f64, n| m.max(n.abs()));
    for (place, (a, b)) in found.data.iter().zip(&expected.data).enumerate() {
        assert!(
            (a - b).abs() <= tolerance * scale,
            "{what}: element {place} is {a}, expected {b}"
        );
    }
}

/// The gradient of `loss` by central differences at `at`. With steps of 1e-5 in 64 bits, its error is
/// about 1e-10 of the third derivative, and 1e-11 of the loss.
fn differences(at: &Array, loss: impl Fn(&Array) -> f64) -> Array {
    let step = 1e-5;
    let mut gradient = at.clone();
    for place in 0..at.data.len() {
        let mut moved = at.clone();
        moved.data[place] = at.data[place] + step;
        let above = loss(&moved);
        moved.data[place] = at.data[place] - step;
        gradient.data[place] = (above - loss(&moved)) / (2.0 * step);
    }
    gradient
}

/// A shape as the text format writes it.
fn dims(shape: &[usize]) -> String {
    let dims: Vec<String> = shape.iter().map(usize::to_string).collect();
    dims.join(",")
}
