//! Gradients of random graphs, computed by the runtime in 32 bits, against central differences of the
//! loss in 64 bits.

use proptest::prelude::*;
use proptest::test_runner::{Config, RngSeed};
use std::collections::{BTreeMap, HashMap};
use velora_graph::ir::Model;
use velora_graph::onnx::schema::{ModelProto, NodeProto, TensorProto, ValueInfoProto};
use velora_runtime::cpu::Cpu;
use velora_runtime::evaluate::evaluate;
use velora_runtime::lower::Request;
use velora_runtime::tensor::Tensor as HostTensor;
use velora_testgen::interpret::{Data, Precision, Tensor, run};
use velora_testgen::models::{
    EncoderSizes, LlamaSizes, Training, VitSizes, llama, llama_of_tokens, roberta, vit,
};
use velora_testgen::{Element, Generated, Random, chain, random};

/// The unit roundoff of 32-bit floats.
const U: f64 = 1.0 / (1u64 << 24) as f64;

type Values = HashMap<String, Tensor>;

/// How far each gradient may be from the exact one, at any element.
///
/// Monte Carlo arithmetic (Parker 1997), as in `tests/oracle/check_rewrite.py`: every result that depends
/// on data is multiplied by 1 + K u r, with u the unit roundoff, r uniform in [-1, 1), and K the number of
/// terms that an element may sum: the largest extent of an operand, or the ratio of their sizes. The
/// largest deviation of some trials, doubled, is an estimate rather than a bound.
fn rounding(made: &Generated, inputs: &Values, exact: &Values) -> HashMap<String, f64> {
    let mut widest: HashMap<String, f64> = HashMap::new();
    for trial in 0..3 {
        let mut random = Random::new(trial);
        let mut model = made.model.clone();
        let graph = model.graph.as_mut().unwrap();
        let mut nodes = Vec::new();
        for mut node in std::mem::take(&mut graph.node) {
            let value = &exact[&node.output[0]];
            if !matches!(value.data, Data::Float(_)) || !value.from_data {
                nodes.push(node);
                continue;
            }
            let size = |t: &Tensor| t.shape.iter().product::<usize>();
            let read = node.input.iter().filter_map(|name| exact.get(name));
            let terms = read.flat_map(|operand| {
                let ratio = size(operand) / size(value).max(1);
                operand.shape.iter().copied().chain([ratio])
            });
            let terms = terms.max().unwrap_or(1).max(4) as f64;
            let name = std::mem::take(&mut node.output[0]);
            let (before, factor) = (format!("{name}/exact"), format!("{name}/factor"));
            let factors = (0..size(value)).map(|_| (1.0 + terms * U * random.entry()) as f32);
            graph.initializer.push(TensorProto {
                name: Some(factor.clone()),
                data_type: Some(1),
                dims: value.shape.iter().map(|&d| d as i64).collect(),
                float_data: factors.collect(),
                ..Default::default()
            });
            node.output[0].clone_from(&before);
            nodes.push(node);
            nodes.push(NodeProto {
                input: vec![before, factor],
                output: vec![name],
                op_type: Some("Mul".to_owned()),
                ..Default::default()
            });
        }
        graph.node = nodes;
        let noisy = run(&model, inputs, Precision::Double);
        for gradient in made.gradients.values() {
            let pairs = noisy[gradient].f().iter().zip(exact[gradient].f());
            let largest = pairs.map(|(a, b)| 2.0 * (a - b).abs()).fold(0.0, f64::max);
            let entry = widest.entry(gradient.clone()).or_default();
            *entry = entry.max(largest);
        }
    }
    widest
}

/// The model with the loss and the gradients themselves as outputs, whatever becomes of them behind.
fn exposed(made: &Generated) -> ModelProto {
    let mut model = made.model.clone();
    let graph = model.graph.as_mut().unwrap();
    graph.output.clear();
    for name in std::iter::once(&made.loss).chain(made.gradients.values()) {
        graph.output.push(ValueInfoProto {
            name: Some(name.clone()),
            ..Default::default()
        });
    }
    model
}

/// The loss and the gradients by the runtime, by value.
fn ours(made: &Generated, inputs: &Values, cpu: &Cpu) -> HashMap<String, Vec<f64>> {
    let model = exposed(made);
    let given: BTreeMap<String, HostTensor> = (inputs.iter())
        .map(|(name, tensor)| {
            let value = match &tensor.data {
                Data::Int(elements) => HostTensor::from_i64(&tensor.shape, elements),
                _ => {
                    let elements: Vec<f32> = tensor.f().iter().map(|&e| e as f32).collect();
                    HostTensor::from_f32(&tensor.shape, &elements)
                }
            };
            (name.clone(), value)
        })
        .collect();
    // An axis may have the batch as a factor, which the format cannot say; fixed sizes say all.
    let mut fixed = model.clone();
    let graph = fixed.graph.as_mut().unwrap();
    for info in &mut graph.input {
        let sizes = inputs[info.name()].shape.clone();
        declare(info, &sizes);
    }
    let model = Model::from_proto(fixed).unwrap();
    let request = Request {
        sizes: &BTreeMap::new(),
        partition: None,
        folder: None,
        evaluation: false,
    };
    let outputs = evaluate(&model, &request, &given, cpu).unwrap();
    let names = model
        .graph
        .outputs()
        .iter()
        .map(|&v| model.graph.value(v).name.clone());
    let numbers = |tensor: &HostTensor| {
        let elements = tensor.to_f32().unwrap();
        elements.into_iter().map(f64::from).collect()
    };
    names.zip(outputs.iter().map(numbers)).collect()
}

fn declare(info: &mut ValueInfoProto, sizes: &[usize]) {
    use velora_graph::onnx::schema::{tensor_shape_proto::dimension, type_proto::Value};
    let Some(Value::TensorType(tensor)) = info.r#type.as_mut().and_then(|t| t.value.as_mut())
    else {
        panic!("'{}' is no tensor", info.name());
    };
    let dims = &mut tensor.shape.as_mut().unwrap().dim;
    for (dim, &size) in dims.iter_mut().zip(sizes) {
        dim.value = Some(dimension::Value::DimValue(size as i64));
    }
}

/// Checks all gradients of a graph; returns how many slopes were compared.
fn check(made: &Generated, seed: u64, cpu: &Cpu) -> usize {
    // Small enough that a kink rarely lies in between, large enough for 64 bits.
    const H: f64 = 1e-6;
    let inputs = made.data(seed, 2);
    let exact = run(&made.model, &inputs, Precision::Double);
    let found = ours(made, &inputs, cpu);
    let tolerance = rounding(made, &inputs, &exact);
    let mut random = Random::new(seed ^ 1);
    let mut compared = 0;
    for (parameter, gradient) in &made.gradients {
        let at = &inputs[parameter];
        let count = at.f().len();
        // Two directions that all elements have a part in, and three elements alone.
        let mut directions: Vec<Vec<f64>> = (0..2)
            .map(|_| (0..count).map(|_| random.entry()).collect())
            .collect();
        directions.extend((0..3).map(|_| {
            let mut one = vec![0.0; count];
            one[random.below(count)] = 1.0;
            one
        }));
        for direction in directions {
            let loss = |h: f64| {
                let mut inputs = inputs.clone();
                let entries = at.f().iter().zip(&direction).map(|(x, u)| x + h * u);
                inputs.insert(
                    parameter.clone(),
                    Tensor::floats(&at.shape, entries.collect()),
                );
                run(&made.model, &inputs, Precision::Double)[&made.loss].f()[0]
            };
            let (right, left) = (loss(H), loss(-H));
            let difference = (right - left) / (2.0 * H);
            let slope: f64 = found[gradient]
                .iter()
                .zip(&direction)
                .map(|(g, u)| g * u)
                .sum();
            let length: f64 = direction.iter().map(|u| u.abs()).sum();
            // Differences lose 2^-52 of the loss, over H, in each of some hundred roundings.
            let lost = 100.0 * f64::EPSILON * (1.0 + right.abs()) / H;
            let allowed = tolerance[gradient] * length + lost;
            assert!(
                (slope - difference).abs() <= allowed,
                "{parameter}: slope {slope}, difference {difference}, off by more than {allowed:e}"
            );
            compared += 1;
        }
    }
    compared
}

proptest! {
    #![proptest_config(Config {
        cases: std::env::var("PROPTEST_CASES").map_or(50, |n| n.parse().unwrap()),
        rng_seed: RngSeed::Fixed(3),
        failure_persistence: None,
        ..Config::default()
    })]
    #[test]
    fn gradients_are_differences_of_the_loss(
        bytes in prop::collection::vec(any::<u8>(), 0..160),
        seed: u64,
    ) {
        check(&random::graph(&bytes), seed, &Cpu::new(1).unwrap());
    }
}

#[test]
fn gradients_of_chains_are_differences() {
    let cpu = Cpu::new(1).unwrap();
    assert!(check(&chain::mlp(3, 4, "gelu"), 5, &cpu) > 0);
    assert!(check(&chain::transformer(2, 4, 3), 6, &cpu) > 0);
}

const LLAMA: LlamaSizes = LlamaSizes {
    hidden: 8,
    intermediate: 6,
    heads: 2,
    vocabulary: 5,
};

const ENCODER: EncoderSizes = EncoderSizes {
    hidden: 8,
    intermediate: 6,
    heads: 2,
    classes: 3,
    vocabulary: 5,
};

fn names(list: &[&str]) -> Vec<String> {
    list.iter().map(|name| (*name).to_owned()).collect()
}

#[test]
fn gradients_of_llama_are_differences() {
    let made = llama(2, &LLAMA, 3);
    // Two norms, four layers of attention and three of the MLP in each block, then norm and head.
    assert_eq!(made.gradients.len(), 2 * 9 + 2);
    assert_eq!(check(&made, 7, &Cpu::new(1).unwrap()), 5 * 20);
}

#[test]
fn gradients_of_published_models_are_differences() {
    let cpu = Cpu::new(1).unwrap();
    let all = Training::All;
    // The embedding, too.
    let made = llama_of_tokens(2, &LLAMA, 3, &all, Element::Single);
    assert_eq!(made.gradients.len(), 2 * 9 + 3);
    assert_eq!(check(&made, 8, &cpu), 5 * 21);
    // Weight and bias of six layers and two norms in each block, three tables, a norm, and the classifier's two.
    let made = roberta(2, &ENCODER, 3, &all, Element::Single);
    assert_eq!(made.gradients.len(), 2 * 16 + 3 + 2 + 4);
    assert_eq!(check(&made, 9, &cpu), 5 * 41);
    // The same blocks; patches, class token and positions; norm and classifier.
    let sizes = VitSizes {
        encoder: ENCODER,
        image: 4,
        patch: 2,
    };
    let made = vit(2, &sizes, &all, Element::Single);
    assert_eq!(made.gradients.len(), 2 * 16 + 4 + 4);
    assert_eq!(check(&made, 10, &cpu), 5 * 40);
}

#[test]
fn gradients_of_adapters_and_of_some_layers_are_differences() {
    let cpu = Cpu::new(1).unwrap();
    let targets = names(&["q_proj", "v_proj", "down_proj"]);
    let adapters = Training::Adapters {
        rank: 2,
        targets: targets.clone(),
    };
    let made = llama_of_tokens(2, &LLAMA, 3, &adapters, Element::Single);
    assert!(made.gradients.keys().all(|name| name.contains(".lora_")));
    assert_eq!(made.gradients.len(), 2 * 3 * 2);
    assert_eq!(check(&made, 11, &cpu), 5 * 12);
    let made = llama_of_tokens(2, &LLAMA, 3, &Training::Only(targets), Element::Single);
    assert_eq!(made.gradients.len(), 2 * 3);
    assert_eq!(check(&made, 12, &cpu), 5 * 6);

    let branches = Training::Branches {
        rank: 2,
        targets: names(&["query", "value"]),
    };
    let sizes = VitSizes {
        encoder: ENCODER,
        image: 4,
        patch: 2,
    };
    let made = vit(1, &sizes, &branches, Element::Single);
    assert_eq!(made.gradients.len(), 2 * 4);
    assert_eq!(check(&made, 13, &cpu), 5 * 8);
    let made = vit(1, &sizes, &Training::ScaleShift, Element::Single);
    // Behind six layers and two norms of the block, the patches, the last norm, and the classifier.
    assert_eq!(made.gradients.len(), 2 * (8 + 3));
    assert_eq!(check(&made, 14, &cpu), 5 * 22);
}
