//! `verify` on every graph of `models/`, as the rewrite leaves it, and on graphs that were broken behind
//! its back.
//!
//! `GRAPH=llama` picks graphs.
#![allow(clippy::unwrap_used)]

mod plans;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use velora_graph::ir::Model;
use velora_graph::onnx::make::node;
use velora_graph::onnx::read::{UnknownFields, read};
use velora_graph::onnx::schema::tensor_shape_proto::dimension::Value;
use velora_graph::onnx::schema::{
    ModelProto, NodeProto, StringStringEntryProto, TensorProto, ValueInfoProto, type_proto,
};
use velora_graph::onnx::write::write;
use velora_graph::shapes::DataType;
use velora_graph::text::parse_model;
use velora_runtime::data::safetensors;
use velora_runtime::random;
use velora_runtime::tensor::Tensor;

const TOOL: &str = env!("CARGO_BIN_EXE_velora-opt");

/// Tokens of a sequence, and samples of a batch, where the graph leaves them open.
const SEQUENCE: usize = 4;
const SAMPLES: usize = 3;

fn models() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("models")
}

fn tool(arguments: &[&str]) -> Output {
    Command::new(TOOL).args(arguments).output().unwrap()
}

fn said(output: &Output) -> String {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    text(&output.stdout) + &text(&output.stderr)
}

/// Samples for the inputs of a graph: pixels or other numbers, tokens, labels.
fn samples(name: &str, model: &ModelProto, path: &Path) {
    let mut arrays: BTreeMap<&str, Tensor> = BTreeMap::new();
    let inputs = model.graph.as_ref().unwrap().input.iter();
    let data: Vec<_> = { inputs }
        .filter(|info| matches!(info.name(), "x" | "y" | "labels"))
        .collect();
    // Where the first axis has a size, it is the number of samples; recurrent graphs count time there, so that
    // there must be as many samples as steps.
    let fixed = data
        .iter()
        .find_map(|info| shape(info, 0).1.first().copied().filter(|&n| n > 0));
    for info in data {
        let (kind, mut shape) = shape(info, fixed.unwrap_or(SAMPLES));
        // ONNX Runtime's exports count the labels of language models by token.
        if info.name() == "labels" && shape.len() == 1 && name.contains("llama") {
            shape.push(SEQUENCE);
        }
        let count = shape.iter().product::<usize>() as u64;
        let stream = random::stream("test", info.name().as_bytes());
        let tensor = match kind {
            1 => {
                let draw = |index| random::normal(1, stream, index) as f32 / 4.0;
                Tensor::from_f32(&shape, &(0..count).map(draw).collect::<Vec<_>>())
            }
            _ => {
                let draw = |index| random::below(1, stream, index, 2) as i64;
                Tensor::from_i64(&shape, &(0..count).map(draw).collect::<Vec<_>>())
            }
        };
        arrays.insert(info.name(), tensor);
    }
    assert!(!arrays.is_empty(), "{name}: no data");
    let views = arrays.iter().map(|(name, tensor)| (*name, tensor.view()));
    safetensors::write(path, &BTreeMap::new(), views).unwrap();
}

fn shape(info: &ValueInfoProto, samples: usize) -> (i32, Vec<usize>) {
    let Some(type_proto::Value::TensorType(tensor)) = &info.r#type.as_ref().unwrap().value else {
        panic!("{} is no tensor", info.name());
    };
    let dims = tensor.shape.as_ref().unwrap().dim.iter();
    let sizes = dims.map(|dim| match &dim.value {
        Some(Value::DimValue(size)) => *size as usize,
        Some(Value::DimParam(name)) if name == "seq" => SEQUENCE,
        _ => samples,
    });
    (tensor.elem_type(), sizes.collect())
}

fn verify(folder: &Path, original: &Path, rewritten: &Path) -> (Output, serde_json::Value) {
    let data = folder.join("data.safetensors");
    let json = folder.join("certificate.json");
    let paths = [original, rewritten, &data, &json].map(|p| p.to_str().unwrap().to_owned());
    let [original, rewritten, data, json] = &paths;
    let output = tool(&[
        "verify",
        original,
        rewritten,
        "--data",
        data,
        "--init-params",
        "kaiming",
        "--json",
        json,
    ]);
    let text = std::fs::read(json).unwrap_or_default();
    let certificate = serde_json::from_slice(&text).unwrap_or_default();
    (output, certificate)
}

/// Every graph, with one of several settings each: as functions or inline, pinned or not, every kind of
/// direction, every preset that rewrites more than the default one.
#[test]
fn rewritten_graphs_are_verified() {
    let settings = [
        "--groups 4",
        "--groups 3 --inline --select all",
        "--groups 4 --init none --no-pin --scale 0.3",
        "--sub-token-size 5 --init random --seed 3 --inline",
        "--groups 8 --select all --scale 1.5",
        "--groups 4 --init svd --rank 2 --storage int8",
        "--groups 3 --directions group --storage f16 --inline",
        "--groups 4 --init running-average --storage bf16",
    ];
    let factored = [
        "--gradients factored --groups 4 --init random",
        "--gradients factored --groups 3 --init none --inline --scale 0.3",
        "--gradients factored --sub-token-size 5 --directions group --select all",
        "--gradients factored --groups 4 --init svd --storage int8 --no-pin",
    ];
    let only = std::env::var("GRAPH").unwrap_or_default();
    let folder = tempfile::tempdir().unwrap();
    let (mut layers, mut values) = (0, 0);
    let mut files: Vec<PathBuf> = ["aot", "ort"]
        .iter()
        .flat_map(|dialect| std::fs::read_dir(models().join(dialect)).unwrap())
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|e| e == "onnx"))
        .filter(|path| path.to_str().unwrap().contains(&only))
        .collect();
    files.sort();
    for (number, path) in files.iter().enumerate() {
        let name = path.display().to_string();
        let model = read(path, UnknownFields::Allow).unwrap();
        samples(&name, &model, &folder.path().join("data.safetensors"));
        let rewritten = folder.path().join("rewritten.onnx");
        let mut chosen = vec![settings[number % settings.len()]];
        // The large ones take long, and have nothing that others lack.
        if !name.contains("768") {
            chosen.push(factored[number % factored.len()]);
        }
        for options in chosen {
            let mut arguments = vec![name.as_str(), "-q", "-o", rewritten.to_str().unwrap()];
            arguments.extend(options.split(' '));
            let output = tool(&arguments);
            assert!(output.status.success(), "{name}: {}", said(&output));
            let (output, certificate) = verify(folder.path(), path, &rewritten);
            assert!(
                output.status.success(),
                "{name} {options}: {}",
                said(&output)
            );
            assert_eq!(certificate["ok"], true, "{name}");
            let kinds = ["forward", "input_gradients", "untouched"];
            for kind in kinds {
                assert_eq!(
                    certificate[format!("{kind}_identical")],
                    true,
                    "{name}: {kind}"
                );
            }
            let compared = kinds.map(|kind| certificate["values_compared"][kind].as_u64().unwrap());
            assert!(compared[0] > 2, "{name}: {compared:?}");
            values += compared.iter().sum::<u64>();
            for layer in certificate["layers"].as_array().unwrap() {
                layers += 1;
                let number = |key: &str| layer[key].as_f64();
                let (error, tolerance) = (number("formula_max_error"), number("tolerance"));
                assert!(error <= tolerance, "{name}: {layer}");
            }
        }
    }
    println!("{layers} layers, {values} values the same");
    assert!(!only.is_empty() || (layers > 200 && values > 5000));
}

/// A rewritten gradient is the exact one, projected on v in each group: dW is X̂ᵀdY = (X v vᵀ)ᵀdY = v vᵀ XᵀdY.
/// Hence, where no group is padded, the cosine of the two is the ratio of their norms, whatever the data, up
/// to rounding.
#[test]
fn a_rewritten_gradient_is_a_projection_of_the_exact_one() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data.safetensors");
    std::fs::copy(models().join("data/digits_test.npz"), data).unwrap();
    for (name, scale) in [("aot/digits_vit", 1.0), ("ort/digits_mlp", 0.5)] {
        let original = models().join(format!("{name}.onnx"));
        let rewritten = folder.path().join("rewritten.onnx");
        let [from, to] = [&original, &rewritten].map(|path| path.to_str().unwrap());
        let output = tool(&[
            from,
            "-q",
            "-o",
            to,
            "--scale",
            &scale.to_string(),
            "--groups",
            "8",
        ]);
        assert!(output.status.success(), "{}", said(&output));
        let (output, certificate) = verify(folder.path(), &original, &rewritten);
        assert!(output.status.success(), "{}", said(&output));
        let layers = certificate["layers"].as_array().unwrap();
        assert!(layers.len() > 1);
        for layer in layers {
            let number = |key: &str| layer[key].as_f64().unwrap();
            let (cosine, ratio) = (number("cosine"), number("norm_ratio"));
            assert!(cosine > 0.1 && cosine < 1.0, "{layer}");
            assert!((cosine - ratio / scale).abs() < 1e-5, "{layer}");
        }
    }
}

/// A product that adds a penalty of its own reads X̂, made of a scaled v, and stays.
#[test]
fn a_product_that_stays_is_verified() {
    let case = models().join("../tests/cases/rewrite/reconstruct.txt");
    let text = std::fs::read_to_string(case).unwrap();
    let (graph, _) = text.split_once("----").unwrap();
    for (beta, options) in [
        ("1", "--groups 4 --scale 0.5"),
        ("0.25", "--groups 5 --inline"),
    ] {
        let beta = format!("<alpha = 0.5, beta = {beta}, transA = 1>").replace("1,", "1.0,");
        let model = parse_model(&graph.replace("<transA = 1>", &beta)).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let [original, rewritten] = ["original", "rewritten"].map(|name| folder.path().join(name));
        write(&model, &original).unwrap();
        let elements: Vec<f32> = (0..256 * 64)
            .map(|i| (i % 37) as f32 / 37.0 - 0.4)
            .collect();
        let x = Tensor::from_f32(&[256, 64], &elements);
        let w = Tensor::from_f32(&[64, 16], &elements[..64 * 16]);
        let arrays = [("x", x.view())];
        let data = folder.path().join("data.safetensors");
        safetensors::write(&data, &BTreeMap::new(), arrays).unwrap();
        let parameters = folder.path().join("parameters.safetensors");
        let arrays = [("w", w.view()), ("penalty", w.view())];
        safetensors::write(&parameters, &BTreeMap::new(), arrays).unwrap();
        let paths = [&original, &rewritten, &data, &parameters];
        let [original, rewritten, data, parameters] = paths.map(|path| path.to_str().unwrap());
        let mut arguments = vec![original, "-q", "-o", rewritten, "--select", "all"];
        arguments.extend(options.split(' '));
        let output = tool(&arguments);
        assert!(output.status.success(), "{}", said(&output));
        let output = tool(&[
            "verify", original, rewritten, "--data", data, "--params", parameters,
        ]);
        let text = said(&output);
        assert!(output.status.success() && text.contains("\nw  "), "{text}");
    }
}

/// mlp: fc3's gradient is rewritten, from gelu.
fn broken(options: &str, breaks: impl FnOnce(&mut ModelProto)) -> (Output, serde_json::Value) {
    let folder = tempfile::tempdir().unwrap();
    let original = models().join("aot/mlp.onnx");
    let rewritten = folder.path().join("rewritten.onnx");
    let mut arguments = vec![original.to_str().unwrap(), "-q", "--groups", "4"];
    arguments.extend(["-o", rewritten.to_str().unwrap()]);
    arguments.extend(options.split_whitespace());
    assert!(tool(&arguments).status.success());
    let mut model = read(&rewritten, UnknownFields::Allow).unwrap();
    samples("mlp", &model, &folder.path().join("data.safetensors"));
    breaks(&mut model);
    // Still a graph: what is wrong with it is for `verify` to find.
    assert!(Model::from_proto(model.clone()).is_ok());
    let broken = folder.path().join("broken.onnx");
    write(&model, &broken).unwrap();
    verify(folder.path(), &original, &broken)
}

fn refused(options: &str, wanted: &str, breaks: impl FnOnce(&mut ModelProto)) {
    let (output, certificate) = broken(options, breaks);
    let text = said(&output);
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(
        text.contains(wanted) && text.contains("NOT verified"),
        "{text}"
    );
    assert_eq!(certificate["ok"], false, "{certificate}");
    let problem = certificate["first_problem"]["problem"].as_str().unwrap();
    assert!(text.contains(problem), "{certificate}");
}

fn constants(model: &mut ModelProto) -> impl Iterator<Item = &mut TensorProto> {
    model.graph.as_mut().unwrap().initializer.iter_mut()
}

/// The mark of a node that the tool writes beside its operators.
fn made_by_us() -> Vec<StringStringEntryProto> {
    vec![StringStringEntryProto {
        key: Some("velora.origin".to_owned()),
        value: Some("a product".to_owned()),
    }]
}

/// Constants of the tool's own are in no original: only numbers show what is wrong with them.
#[test]
fn wrong_numbers_are_refused() {
    let scaled = |model: &mut ModelProto, name: &str, factor: f32| {
        let tensor = constants(model).find(|t| t.name() == name).unwrap();
        let raw = tensor.raw_data.clone().unwrap();
        let (entries, _) = raw.as_chunks::<4>();
        let entries = entries.iter().map(|e| factor * f32::from_le_bytes(*e));
        tensor.raw_data = Some(
            entries
                .flat_map(f32::to_le_bytes)
                .collect::<Vec<u8>>()
                .into(),
        );
    };
    let v = "velora.gelu.v";
    for inline in ["", "--inline"] {
        let options = format!("--init none {inline}");
        let (output, _) = broken(&options, |_| {});
        assert!(output.status.success(), "{}", said(&output));
        refused(&options, "v is not its direction", |model| {
            scaled(model, v, 1.0001)
        });
        let options = format!("--init random {inline}");
        refused(&options, "v is not its direction", |model| {
            scaled(model, v, 1.0001)
        });
    }
    // Nodes beside the operators, which hand on what those make, or should.
    let negated = |model: &mut ModelProto, from: &str, to: &str| {
        model.graph.as_mut().unwrap().node.push(NodeProto {
            metadata_props: made_by_us(),
            ..node("Neg", &[from], to)
        });
    };
    for inline in ["", "--inline"] {
        let options = format!("--storage f16 {inline}");
        refused(&options, "z is not the projection", |model| {
            let nodes = model.graph.as_mut().unwrap().node.iter_mut();
            let mut reads = nodes.filter(|n| n.output[0] == "velora.gelu.z_f16");
            reads.next().unwrap().input[0] = "negative".to_owned();
            negated(model, "velora.gelu.z", "negative");
        });
        refused(inline, "dW is not the formula's", |model| {
            let name = "grad.fc3.weight";
            let nodes = model.graph.as_mut().unwrap().node.iter_mut();
            let mut makes = nodes.filter(|n| n.output[0] == name);
            makes.next().unwrap().output[0] = "negative".to_owned();
            negated(model, "negative", name);
        });
    }
}

/// What calibration finds is what `verify` finds in the same batch, but for sums in 32 bits; another batch
/// gives another direction, and that is no failure. Before calibration the file says that it is to come.
#[test]
fn calibrated_directions_are_compared_with_the_batch() {
    let folder = tempfile::tempdir().unwrap();
    let original = models().join("aot/digits_mlp.onnx");
    let data = folder.path().join("data.safetensors");
    std::fs::copy(models().join("data/digits_test.npz"), &data).unwrap();
    let [open, filled] = ["open", "filled"].map(|name| folder.path().join(name));
    for options in [
        "--init first-batch --groups 8",
        "--init first-batch --groups 8 --directions group --inline",
        "--init svd --groups 8",
        "--init svd --groups 7 --rank 3 --directions group",
    ] {
        let mut arguments = vec![
            original.to_str().unwrap(),
            "-q",
            "-o",
            open.to_str().unwrap(),
        ];
        arguments.extend(options.split(' '));
        let output = tool(&arguments);
        assert!(output.status.success(), "{}", said(&output));

        let (output, certificate) = verify(folder.path(), &original, &open);
        assert!(output.status.success(), "{}", said(&output));
        let note = "the directions of 2 of 2 layers are placeholders";
        assert!(said(&output).contains(note), "{}", said(&output));
        for layer in certificate["layers"].as_array().unwrap() {
            assert_eq!(layer["direction_state"], "unfilled", "{layer}");
            assert!(layer["direction_cosine"].is_null(), "{layer}");
            assert!(layer["cosine"].is_f64(), "{layer}");
        }

        let cosines = |from: &str| -> Vec<f64> {
            let batch = models().join("data").join(from);
            let paths = [&open, &batch, &filled].map(|path| path.to_str().unwrap());
            let [from, data, to] = paths;
            let output = tool(&[
                "calibrate",
                from,
                "--data",
                data,
                "--no-shuffle",
                "-o",
                to,
                "-q",
            ]);
            assert!(output.status.success(), "{}", said(&output));
            let (output, certificate) = verify(folder.path(), &original, &filled);
            assert!(output.status.success(), "{}", said(&output));
            assert!(!said(&output).contains("placeholders"), "{}", said(&output));
            let layers = certificate["layers"].as_array().unwrap();
            assert_eq!(layers.len(), 2);
            let cosines = layers.iter().map(|layer| {
                assert_eq!(layer["direction_state"], "constant", "{layer}");
                layer["direction_cosine"].as_f64().unwrap()
            });
            cosines.collect()
        };
        // An angle of a thousandth is far above the rounding of the sums, whose terms are all positive here, or
        // nearly so (a ReLU or a GELU made them), and far below what other digits change.
        let least = 1.0f64 - 1e-6 / 2.0;
        for cosine in cosines("digits_test.npz") {
            assert!((least..=1.0).contains(&cosine), "{options}: {cosine}");
        }
        for cosine in cosines("digits_train.npz") {
            assert!((-1.0..least).contains(&cosine), "{options}: {cosine}");
        }
    }
}

/// The graph of a case of the rewrite, for one of its types, with samples and parameters.
fn short(case: &str, types: &[(&str, &str)], folder: &Path) -> PathBuf {
    let path = models().join(format!("../tests/cases/rewrite/{case}.txt"));
    let text = std::fs::read_to_string(path).unwrap();
    let (graph, _) = text.split_once("----").unwrap();
    let graph = types.iter().fold(graph.to_owned(), |graph, (from, to)| {
        graph.replace(from, to)
    });
    let model = parse_model(&graph).unwrap();
    let original = folder.join("original.onnx");
    write(&model, &original).unwrap();
    let mut arrays: BTreeMap<String, Tensor> = BTreeMap::new();
    for info in &model.graph.as_ref().unwrap().input {
        let (kind, shape) = shape(info, SAMPLES);
        let stream = random::stream("test", info.name().as_bytes());
        let count = shape.iter().product::<usize>() as u64;
        let numbers = (0..count).map(|index| random::normal(1, stream, index) as f32);
        let data_type = DataType(kind);
        let bytes: Vec<u8> = match data_type {
            DataType::FLOAT16 => numbers
                .flat_map(|n| half::f16::from_f32(n).to_le_bytes())
                .collect(),
            DataType::BFLOAT16 => numbers
                .flat_map(|n| half::bf16::from_f32(n).to_le_bytes())
                .collect(),
            _ => numbers.flat_map(f32::to_le_bytes).collect(),
        };
        let tensor = Tensor {
            data_type,
            shape,
            bytes: bytes.into(),
        };
        arrays.insert(info.name().to_owned(), tensor);
    }
    for (file, is_data) in [
        ("data.safetensors", true),
        ("parameters.safetensors", false),
    ] {
        let chosen = arrays.iter().filter(|(name, _)| (*name == "x") == is_data);
        let views = chosen.map(|(name, tensor)| (name.as_str(), tensor.view()));
        safetensors::write(&folder.join(file), &BTreeMap::new(), views).unwrap();
    }
    original
}

/// Activations, weights and gradients of 16 bits; and activations of 16 bits whose gradients have 32.
#[test]
fn graphs_of_16_bits_are_verified() {
    let to_bfloat = [("float16", "bfloat16"), ("<to = 10>", "<to = 16>")];
    let to_half = [("bfloat16", "float16")];
    for (case, types) in [
        ("half_precision", &[][..]),
        ("half_precision", &to_bfloat[..]),
        ("bfloat16", &[][..]),
        ("bfloat16", &to_half[..]),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let original = short(case, types, folder.path());
        let rewritten = folder.path().join("rewritten.onnx");
        let judged = |model: &Path| {
            let files = [
                "data.safetensors",
                "parameters.safetensors",
                "certificate.json",
            ];
            let [data, params, json] = files.map(|file| folder.path().join(file));
            let paths =
                [&original, model, &data, &params, &json].map(|path| path.to_str().unwrap());
            let [original, model, data, params, json] = paths;
            let output = tool(&[
                "verify", original, model, "--data", data, "--params", params, "--json", json,
            ]);
            let text = std::fs::read(json).unwrap_or_default();
            let certificate: serde_json::Value = serde_json::from_slice(&text).unwrap_or_default();
            (output, certificate)
        };
        for options in [
            "--groups 3",
            "--groups 4 --inline --scale 0.5",
            "--groups 3 --init random --seed 2",
            "--groups 4 --init none --inline",
            "--groups 2 --init running-average",
            "--groups 2 --storage f16",
        ] {
            let paths = [&original, &rewritten].map(|path| path.to_str().unwrap());
            let mut arguments = vec![paths[0], "-q", "-o", paths[1], "--select", "all"];
            arguments.extend(options.split(' '));
            let output = tool(&arguments);
            assert!(
                output.status.success(),
                "{case} {options}: {}",
                said(&output)
            );
            let (output, certificate) = judged(&rewritten);
            let text = said(&output);
            assert!(
                output.status.success(),
                "{case} {types:?} {options}: {text}"
            );
            assert_eq!(certificate["ok"], true, "{certificate}");
            let layers = certificate["layers"].as_array().unwrap();
            assert!(layers.len() >= 2, "{certificate}");
            for layer in layers {
                let number = |key: &str| layer[key].as_f64().unwrap();
                assert!(
                    number("formula_max_error") <= number("tolerance"),
                    "{layer}"
                );
                assert!(number("cosine").abs() > 0.0, "{layer}");
            }
        }
        // A direction that is a tenth too long, and a gradient with the wrong sign: both beyond what 16 bits
        // round away.
        let paths = [&original, &rewritten].map(|path| path.to_str().unwrap());
        let output = tool(&[
            paths[0], "-q", "-o", paths[1], "--select", "all", "--groups", "4", "--init", "random",
        ]);
        assert!(output.status.success(), "{}", said(&output));
        let (output, _) = judged(&rewritten);
        assert!(output.status.success(), "{}", said(&output));
        let refused = |wanted: &str, breaks: &dyn Fn(&mut ModelProto)| {
            let mut model = read(&rewritten, UnknownFields::Allow).unwrap();
            breaks(&mut model);
            let broken = folder.path().join("broken.onnx");
            write(&model, &broken).unwrap();
            let (output, certificate) = judged(&broken);
            let text = said(&output);
            assert_eq!(output.status.code(), Some(1), "{case} {types:?}: {text}");
            assert!(text.contains(wanted), "{case} {types:?}: {text}");
            assert_eq!(certificate["ok"], false, "{certificate}");
        };
        refused("v is not its direction", &|model| {
            let v = constants(model)
                .find(|t| t.name().starts_with("velora.") && t.name().ends_with(".v"));
            let v = v.unwrap();
            let raw = v.raw_data.clone().unwrap();
            let (entries, _) = raw.as_chunks::<4>();
            let longer = entries.iter().map(|e| 1.1 * f32::from_le_bytes(*e));
            let longer: Vec<u8> = longer.flat_map(f32::to_le_bytes).collect();
            v.raw_data = Some(longer.into());
        });
        refused("dW is not the formula's", &|model| {
            let nodes = &mut model.graph.as_mut().unwrap().node;
            let makes = nodes
                .iter_mut()
                .find(|n| n.op_type() == "FactoredWeightGrad");
            let made = makes.unwrap();
            let name = std::mem::replace(&mut made.output[0], "negative".to_owned());
            nodes.push(NodeProto {
                metadata_props: made_by_us(),
                ..node("Neg", &["negative"], &name)
            });
        });
    }
}
