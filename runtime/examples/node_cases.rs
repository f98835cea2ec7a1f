//! Runs the node cases of the onnx package against the CPU backend, and holds them to a manifest.
//!
//! `node_cases FOLDER MANIFEST [--write] [CASE]`: `FOLDER` is `onnx/backend/test/data/node` of the pinned
//! onnx wheel. Every case of which all operators belong to a family of the runtime must stand in the
//! manifest, as `pass NAME` or as `skip NAME: REASON`; the outcome must be the one written there. The
//! tolerance is that of onnx's own runner (relative 1e-3, absolute 1e-7).
//! `--write` rewrites the manifest from what happened, to be read before it is committed.

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use prost::Message;
use std::collections::BTreeMap;
use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use velora_graph::ir::Model;
use velora_graph::onnx::read::{UnknownFields, read};
use velora_graph::onnx::schema::{ModelProto, TensorProto, type_proto};
use velora_graph::shapes::DataType;
use velora_runtime::cpu::Cpu;
use velora_runtime::evaluate::evaluate;
use velora_runtime::lower::{Request, constants};
use velora_runtime::ops::family;
use velora_runtime::tensor::Tensor;

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let write = arguments.iter().any(|a| a == "--write");
    let plain: Vec<&String> = arguments.iter().filter(|a| *a != "--write").collect();
    let (folder, manifest, only) = match plain.as_slice() {
        [folder, manifest] => (folder, manifest, None),
        [folder, manifest, only] => (folder, manifest, Some(only.as_str())),
        _ => bail!("usage: node_cases FOLDER MANIFEST [--write] [CASE]"),
    };
    let expected = read_manifest(manifest)?;
    let mut names: Vec<String> = fs::read_dir(folder)
        .with_context(|| format!("cannot read {folder}"))?
        .filter_map(|entry| Some(entry.ok()?.file_name().to_string_lossy().into_owned()))
        .filter(|name| only.is_none_or(|only| name == only))
        .collect();
    names.sort();
    let cpu = Cpu::new(2).context("no threads")?;
    let mut found = BTreeMap::new();
    let mut surprises = Vec::new();
    for name in names {
        let path = Path::new(folder.as_str()).join(&name);
        let Some(outcome) = case(&path, &cpu)? else {
            continue;
        };
        match (expected.get(&name), &outcome) {
            (Some(None), Ok(())) | (Some(Some(_)), Err(_)) => {}
            (Some(None), Err(problem)) => surprises.push(format!("{name} fails: {problem}")),
            (Some(Some(_)), Ok(())) => surprises.push(format!("{name} passes, and is skipped")),
            (None, _) => surprises.push(format!("{name} is not in the manifest: {outcome:?}")),
        }
        found.insert(name, outcome);
    }
    if only.is_none() {
        for name in expected.keys().filter(|name| !found.contains_key(*name)) {
            surprises.push(format!(
                "{name} is in the manifest, and there is no such case"
            ));
        }
    }
    let passed = found.values().filter(|outcome| outcome.is_ok()).count();
    println!("{passed} of {} cases pass", found.len());
    if write {
        let lines = found.iter().map(|(name, outcome)| match outcome {
            Ok(()) => format!("pass {name}\n"),
            Err(problem) => {
                let reason = expected.get(name).cloned().flatten();
                format!("skip {name}: {}\n", reason.as_ref().unwrap_or(problem))
            }
        });
        fs::write(manifest, lines.collect::<String>())?;
        return Ok(());
    }
    if !surprises.is_empty() {
        bail!("{}", surprises.join("\n"));
    }
    Ok(())
}

/// By name: nothing where the case passes, the reason where it is skipped.
fn read_manifest(path: &str) -> Result<BTreeMap<String, Option<String>>> {
    let text = fs::read_to_string(path).unwrap_or_default();
    let mut cases = BTreeMap::new();
    for line in text.lines().filter(|line| !line.is_empty()) {
        match (line.strip_prefix("pass "), line.strip_prefix("skip ")) {
            (Some(name), _) => cases.insert(name.to_owned(), None),
            (_, Some(rest)) => {
                let (name, reason) = rest.split_once(": ").context("a skip without a reason")?;
                cases.insert(name.to_owned(), Some(reason.to_owned()))
            }
            _ => bail!("{path}: expected 'pass NAME' or 'skip NAME: REASON', got {line:?}"),
        };
    }
    Ok(cases)
}

/// Runs one case; `None` where it has operators that the runtime does not claim.
fn case(path: &Path, cpu: &Cpu) -> Result<Option<Result<(), String>>> {
    let Ok(proto) = read(&path.join("model.onnx"), UnknownFields::Allow) else {
        return Ok(None);
    };
    let claimed = { proto.graph.iter() }
        .flat_map(|graph| &graph.node)
        .all(|node| family(node.domain(), node.op_type()).is_some());
    if !claimed {
        return Ok(None);
    }
    // A kernel that panics fails its case, and hides no other.
    let outcome = catch_unwind(AssertUnwindSafe(|| run(path, &proto, cpu)));
    Ok(Some(outcome.unwrap_or_else(|_| Err("panics".to_owned()))))
}

fn run(path: &Path, proto: &ModelProto, cpu: &Cpu) -> Result<(), String> {
    let data = path.join("test_data_set_0");
    let graph = proto.graph.as_ref().ok_or("no graph")?;
    let is_tensor = |info: &velora_graph::onnx::schema::ValueInfoProto| {
        let kind = info.r#type.as_ref().and_then(|t| t.value.as_ref());
        matches!(kind, Some(type_proto::Value::TensorType(_)))
    };
    if !graph.input.iter().chain(&graph.output).all(is_tensor) {
        return Err("an input or output is no tensor".to_owned());
    }
    let mut protos = Vec::new();
    for (number, info) in graph.input.iter().enumerate() {
        let file = data.join(format!("input_{number}.pb"));
        let bytes = fs::read(&file).map_err(|e| e.to_string())?;
        let mut tensor = TensorProto::decode(Bytes::from(bytes)).map_err(|e| e.to_string())?;
        tensor.name = Some(info.name().to_owned());
        protos.push(tensor);
    }
    let outputs = match execute(proto, &protos, false, cpu) {
        Ok(outputs) => outputs,
        // What decides shapes must be known before the first step; in a case it comes as an input.
        Err(_) => execute(proto, &protos, true, cpu)?,
    };
    for (number, (output, info)) in outputs.iter().zip(&graph.output).enumerate() {
        let file = data.join(format!("output_{number}.pb"));
        let bytes = fs::read(&file).map_err(|e| e.to_string())?;
        let expected = TensorProto::decode(Bytes::from(bytes)).map_err(|e| e.to_string())?;
        let expected = constants::from_proto(&expected, None).map_err(|e| e.to_string())?;
        compare(output, &expected).map_err(|e| format!("output '{}': {e}", info.name()))?;
    }
    Ok(())
}

/// Evaluates a case, with its inputs given at run time or made constants of the graph.
fn execute(
    proto: &ModelProto,
    inputs: &[TensorProto],
    bake: bool,
    cpu: &Cpu,
) -> Result<Vec<Tensor>, String> {
    let mut proto = proto.clone();
    let mut tensors = BTreeMap::new();
    for input in inputs {
        if bake {
            if let Some(graph) = &mut proto.graph {
                graph.input.retain(|info| info.name() != input.name());
                graph.initializer.push(input.clone());
            }
        } else {
            let tensor = constants::from_proto(input, None).map_err(|e| e.to_string())?;
            tensors.insert(input.name().to_owned(), tensor);
        }
    }
    let model = Model::from_proto(proto).map_err(|e| e.to_string())?;
    let request = Request {
        sizes: &BTreeMap::new(),
        partition: None,
        folder: None,
        evaluation: false,
    };
    evaluate(&model, &request, &tensors, cpu).map_err(|e| e.to_string())
}

fn compare(found: &Tensor, expected: &Tensor) -> Result<(), String> {
    if (found.data_type, &found.shape) != (expected.data_type, &expected.shape) {
        return Err(format!(
            "expected type {} {:?}, found {} {:?}",
            expected.data_type.0, expected.shape, found.data_type.0, found.shape
        ));
    }
    let (Some(a), Some(b)) = (numbers(found), numbers(expected)) else {
        return match found.bytes == expected.bytes {
            true => Ok(()),
            false => Err("the bytes differ".to_owned()),
        };
    };
    for (index, (&a, &b)) in a.iter().zip(&b).enumerate() {
        let close = a == b || a.is_nan() && b.is_nan() || (a - b).abs() <= 1e-7 + 1e-3 * b.abs();
        if !close {
            return Err(format!("element {index}: expected {b}, found {a}"));
        }
    }
    Ok(())
}

/// The elements of a floating-point tensor.
fn numbers(tensor: &Tensor) -> Option<Vec<f64>> {
    let bytes = &tensor.bytes[..];
    Some(match tensor.data_type {
        DataType::FLOAT => collect::<f32>(bytes).into_iter().map(f64::from).collect(),
        DataType::DOUBLE => collect::<f64>(bytes),
        DataType::FLOAT16 => collect::<half::f16>(bytes)
            .into_iter()
            .map(f64::from)
            .collect(),
        DataType::BFLOAT16 => collect::<half::bf16>(bytes)
            .into_iter()
            .map(f64::from)
            .collect(),
        _ => return None,
    })
}

fn collect<T: bytemuck::Pod>(bytes: &[u8]) -> Vec<T> {
    bytemuck::pod_collect_to_vec(bytes)
}
