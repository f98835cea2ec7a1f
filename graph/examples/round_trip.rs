//! Takes every model of a list through the file layer, the indexed graph, the text and the verifier:
//! `round_trip LIST FOLDER`, where LIST has one path a line.
//!
//! Model number i is written to `FOLDER/i.onnx` and, as text, to `FOLDER/i.txt`. What fails is
//! printed, one line each: the number, the step, and the message.

use prost::Message;
use std::path::Path;
use velora_graph::ir::Graph;
use velora_graph::onnx::read::{UnknownFields, read};
use velora_graph::onnx::write::write;
use velora_graph::text::{parse_model, print_model};
use velora_graph::verify::{verify, verify_model};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let (Some(list), Some(folder)) = (arguments.next(), arguments.next()) else {
        return Err("usage: round_trip LIST FOLDER".into());
    };
    for (i, path) in std::fs::read_to_string(list)?.lines().enumerate() {
        let report = |step: &str, problem: &dyn std::fmt::Display| {
            for line in problem.to_string().lines() {
                println!("{i}\t{step}\t{}", line.trim());
            }
        };
        let mut model = match read(Path::new(path), UnknownFields::Refuse) {
            Ok(model) => model,
            Err(error) => {
                report("read", &error);
                continue;
            }
        };
        if let Err(error) = write(&model, &Path::new(&folder).join(format!("{i}.onnx"))) {
            report("write", &error);
        }
        let text = print_model(&model);
        match parse_model(&text) {
            Ok(parsed) if print_model(&parsed) == text => {}
            Ok(_) => report("text", &"the text of the parsed text differs"),
            Err(error) => report("text", &error),
        }
        std::fs::write(Path::new(&folder).join(format!("{i}.txt")), text)?;
        if let Err(violations) = verify_model(&model) {
            violations.list.iter().for_each(|v| report("verify", v));
        }
        let Some(graph) = model.graph.take() else {
            continue;
        };
        match Graph::from_proto(graph.clone()) {
            Err(error) => report("graph", &error),
            Ok(indexed) => {
                // Bytes, since a NaN is not equal to itself.
                if indexed.to_proto().encode_to_vec() != graph.encode_to_vec() {
                    report("graph", &"the indexed graph is not what it was made from");
                }
                // The same rules, on the other form of the graph.
                let before = verify(&model, &indexed);
                model.graph = Some(graph);
                if before != verify_model(&model) {
                    report(
                        "verify",
                        &"the indexed graph is judged otherwise than the message",
                    );
                }
            }
        }
    }
    Ok(())
}
