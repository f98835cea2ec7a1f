//! Prints the inferred types of a model's values, one JSON object a line:
//! `print_shapes model.onnx [--dim NAME=N]...`. Keys: name, dtype (the number in
//! `TensorProto.DataType` or null), dims and contents (lists of expressions, or null).

use prost::Message;
use std::collections::BTreeMap;
use std::sync::Arc;
use velora_graph::dim::Dim;
use velora_graph::ir::Graph;
use velora_graph::onnx::schema::ModelProto;
use velora_graph::shapes::{Context, infer};

fn quoted(text: &str) -> String {
    let mut out = String::from("\"");
    for c in text.chars() {
        match c {
            '"' | '\\' => out.extend(['\\', c]),
            c if c.is_control() => out.push_str(&format!("\\u{:04x}", u32::from(c))),
            c => out.push(c),
        }
    }
    out + "\""
}

fn list(dims: Option<&[Dim]>) -> String {
    let Some(dims) = dims else {
        return "null".to_owned();
    };
    let texts: Vec<String> = dims.iter().map(|d| quoted(&d.to_string())).collect();
    format!("[{}]", texts.join(", "))
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let usage = "usage: print_shapes FILE [--dim NAME=N]...";
    let mut arguments = std::env::args().skip(1);
    let path = arguments.next().ok_or(usage)?;
    let mut sizes: BTreeMap<Arc<str>, i64> = BTreeMap::new();
    while let Some(flag) = arguments.next() {
        let pair = arguments.next().filter(|_| flag == "--dim").ok_or(usage)?;
        let (name, size) = pair.split_once('=').ok_or(usage)?;
        sizes.insert(name.into(), size.parse()?);
    }
    let model = ModelProto::decode(bytes::Bytes::from(std::fs::read(path)?))?;
    let context = Context {
        opsets: &model.opset_import,
        functions: &model.functions,
        sizes: &sizes,
    };
    let graph = Graph::from_proto(model.graph.clone().ok_or("the model has no graph")?)?;
    let shapes = infer(&graph, &context).map_err(|e| e.to_string())?;
    for value in graph.values() {
        let found = shapes.of(value);
        let dtype = found
            .data_type
            .map_or("null".to_owned(), |t| t.0.to_string());
        println!(
            "{{\"name\": {}, \"dtype\": {dtype}, \"dims\": {}, \"contents\": {}}}",
            quoted(&graph.value(value).name),
            list(found.shape.as_deref()),
            list(shapes.contents(value)),
        );
    }
    for (domain, op) in shapes.unknown_ops() {
        eprintln!("no rule for {domain}::{op}");
    }
    Ok(())
}
