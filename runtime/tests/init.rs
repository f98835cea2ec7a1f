//! Initial values of the parameters of real graphs.
#![allow(clippy::unwrap_used)]

use std::path::Path;

use velora_graph::ir::Graph;
use velora_graph::onnx::read::{UnknownFields, read};
use velora_graph::onnx::schema::tensor_shape_proto::dimension::Value::DimValue;
use velora_graph::onnx::schema::type_proto::Value::TensorType;
use velora_graph::shapes::DataType;
use velora_runtime::session::init::{Distribution, InitError, Scheme, distribution, draw};

type Parameter = (String, Vec<usize>, Distribution);

/// The parameters of a graph of `models/`: float inputs of fixed sizes that are not ONNX Runtime's
/// gradient buffers.
fn parameters(file: &str, scheme: Scheme) -> Vec<Parameter> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../models");
    let model = read(&folder.join(file), UnknownFields::Refuse).unwrap();
    let graph = Graph::from_proto(model.graph.unwrap()).unwrap();
    let mut found = Vec::new();
    for (&value, info) in graph.inputs().iter().zip(graph.input_infos()) {
        let Some(TensorType(tensor)) = info.r#type.as_ref().unwrap().value.as_ref() else {
            continue;
        };
        let dims = tensor.shape.iter().flat_map(|shape| &shape.dim);
        let sizes = dims.map(|dim| match dim.value {
            Some(DimValue(size)) => Some(size as usize),
            _ => None,
        });
        let Some(shape) = sizes.collect::<Option<Vec<usize>>>() else {
            continue;
        };
        let name = info.name();
        if tensor.elem_type() == 1 && !name.ends_with(".buffer") && name != "x" {
            let distribution = distribution(scheme, &graph, value, &shape);
            found.push((name.to_owned(), shape, distribution));
        }
    }
    assert!(found.len() > 5, "{file}");
    found
}

fn of<'a>(parameters: &'a [Parameter], name: &str) -> &'a Distribution {
    let found = parameters.iter().find(|(n, _, _)| n == name);
    &found.unwrap_or_else(|| panic!("no {name}")).2
}

fn uniform(fan_in: f64) -> Distribution {
    Distribution::Uniform {
        bound: 1.0 / fan_in.sqrt(),
    }
}

/// Vectors in all exported graphs: what their PyTorch modules name `bias` or `beta` begins at 0, other
/// scales at 1, and an optimiser's momentum at 0, whether the graph spells a normalisation out or not.
#[test]
fn vectors_of_all_graphs() {
    let mut count = 0;
    for folder in ["aot", "ort"] {
        let path = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("../models")
            .join(folder);
        for file in std::fs::read_dir(path).unwrap() {
            let file = file.unwrap().file_name().into_string().unwrap();
            for (name, shape, found) in parameters(&format!("{folder}/{file}"), Scheme::Kaiming) {
                if shape.len() == 1 {
                    let zero = name.contains(".bias")
                        || name.ends_with(".beta")
                        || name.starts_with("momentum.");
                    let expected = Distribution::Constant(if zero { 0.0 } else { 1.0 });
                    assert_eq!(found, expected, "{file} {name}");
                    count += 1;
                }
            }
        }
    }
    // More than 27 graphs with several layers each.
    assert!(count > 300, "{count}");
}

#[test]
fn larger_parameters() {
    let kaiming = parameters("ort/cnn.onnx", Scheme::Kaiming);
    assert_eq!(*of(&kaiming, "conv2.weight"), uniform(72.0));
    assert_eq!(*of(&kaiming, "fc.weight"), uniform(256.0));
    let kaiming = parameters("aot/mlp.onnx", Scheme::Kaiming);
    assert_eq!(*of(&kaiming, "fc1.weight"), uniform(64.0));
    assert_eq!(*of(&kaiming, "fc3.weight"), uniform(128.0));
    let kaiming = parameters("aot/llama_tiny_lora.onnx", Scheme::Kaiming);
    let proj = |part: &str| {
        of(
            &kaiming,
            &format!("layers.0.self_attn.q_proj.{part}.weight"),
        )
    };
    assert_eq!(*proj("base"), uniform(64.0));
    assert_eq!(*proj("lora_A"), uniform(64.0));
    assert_eq!(*proj("lora_B"), Distribution::Constant(0.0));
    let embedding = Distribution::Normal { deviation: 1.0 };
    assert_eq!(*of(&kaiming, "embed_tokens.weight"), embedding);

    let inside = parameters("aot/digits_sgd.onnx", Scheme::Kaiming);
    assert_eq!(
        *of(&inside, "momentum.fc1.weight"),
        Distribution::Constant(0.0)
    );
    assert_eq!(*of(&inside, "fc1.weight"), uniform(64.0));

    let small = Distribution::Normal { deviation: 0.02 };
    let positions = parameters("aot/vit_tiny.onnx", Scheme::Kaiming);
    assert_eq!(*of(&positions, "pos"), small);
    let normal = parameters("aot/llama_tiny.onnx", Scheme::Normal);
    assert!(
        normal
            .iter()
            .all(|(_, shape, found)| shape.len() < 2 || *found == small)
    );
}

#[test]
fn draws() {
    let draw = |distribution, seed, name| {
        let tensor = draw(distribution, seed, name, DataType::FLOAT, &[100, 200]);
        tensor.unwrap().to_f32().unwrap()
    };
    let n = 20_000f64;
    for (distribution, deviation) in [
        (Distribution::Normal { deviation: 0.02 }, 0.02),
        // The deviation of a uniform distribution is its bound over the root of 3.
        (Distribution::Uniform { bound: 0.1 }, 0.1 / 3f64.sqrt()),
    ] {
        let x = draw(distribution, 1, "w");
        let mean = x.iter().map(|&x| f64::from(x)).sum::<f64>() / n;
        let square = x.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>() / n;
        assert!(mean.abs() < 5.0 * deviation / n.sqrt());
        // The square's deviation is √2 σ² for a normal distribution, and less for a uniform one.
        assert!((square / deviation.powi(2) - 1.0).abs() < 5.0 * (2.0 / n).sqrt());
        assert_eq!(x, draw(distribution, 1, "w"));
        assert_ne!(x, draw(distribution, 2, "w"));
        assert_ne!(x, draw(distribution, 1, "v"));
    }
    let x = draw(Distribution::Uniform { bound: 0.1 }, 1, "w");
    assert!(x.iter().all(|x| x.abs() <= 0.1) && x.iter().any(|x| x.abs() > 0.0999));
    assert!(
        draw(Distribution::Constant(1.0), 1, "w")
            .iter()
            .all(|&x| x == 1.0)
    );
}

#[test]
fn element_types() {
    let one = Distribution::Constant(1.5);
    let bytes = |data_type| draw(one, 1, "w", data_type, &[1]).map(|tensor| tensor.bytes.to_vec());
    assert_eq!(bytes(DataType::FLOAT16).unwrap(), [0x00, 0x3E]);
    assert_eq!(bytes(DataType::BFLOAT16).unwrap(), [0xC0, 0x3F]);
    assert_eq!(bytes(DataType::DOUBLE).unwrap(), 1.5f64.to_le_bytes());
    assert_eq!(
        bytes(DataType::INT64).unwrap_err().to_string(),
        "parameter 'w' is of type int64; only float, double, float16 and bfloat16 are drawn, so give its \
         values in a file"
    );
    let huge = draw(one, 1, "w", DataType::FLOAT, &[usize::MAX, 2]);
    assert!(matches!(huge, Err(InitError::Size { .. })));
    let scalar = draw(one, 1, "w", DataType::FLOAT, &[]).unwrap();
    assert_eq!(scalar.to_f32().unwrap(), [1.5]);
}
