//! What the deeper search for orders finds on real graphs, as exported and rewritten.
#![allow(clippy::unwrap_used)]

use std::path::Path;
use velora_graph::analysis::buffers::Buffers;
use velora_graph::analysis::order::{order, search};
use velora_graph::analysis::{Analyses, Settings};
use velora_graph::ir::Model;
use velora_graph::onnx::read::{UnknownFields, read};
use velora_passes::pipeline::assumed_sizes;
use velora_passes::schedule::tasks;

fn check(name: &str, model: &Model, effort: u64) {
    let graph = &model.graph;
    let shapes = Analyses::new(model, &Settings::default()).unwrap().shapes;
    let sizes = assumed_sizes(model, &shapes);
    let given = graph.topological_order().unwrap();
    let tasks = tasks(graph, &Buffers::new(graph), &sizes, &given).unwrap();
    let few = order(&tasks);
    let start = std::time::Instant::now();
    let deep = search(&tasks, effort * given.len() as u64);
    let time = start.elapsed();
    let peak = tasks.live(&deep.order).into_iter().max();
    assert_eq!(peak, Some(deep.peak));
    assert!(
        deep.peak <= few.peak && few.peak <= few.given_peak,
        "{name}"
    );
    println!(
        "{name:28} {:5} tasks: given {:10}, of four {:10}, search {:10} ({:.4}) in {:.2} s",
        given.len(),
        few.given_peak,
        few.peak,
        deep.peak,
        deep.peak as f64 / few.peak as f64,
        time.as_secs_f64()
    );
}

/// `SEARCH_EFFORT` is the effort for each task, `SEARCH_MODELS` a folder of further graphs.
#[test]
fn the_search_is_never_worse_than_the_four_orders() {
    let effort = std::env::var("SEARCH_EFFORT").map_or(100, |e| e.parse().unwrap());
    let models = Path::new(env!("CARGO_MANIFEST_DIR")).join("../models");
    let mut folders = vec![models.join("aot"), models.join("ort")];
    folders.extend(std::env::var_os("SEARCH_MODELS").map(Into::into));
    let mut seen = 0;
    for folder in folders {
        let files = std::fs::read_dir(folder).unwrap();
        let mut files: Vec<_> = files.map(|file| file.unwrap().path()).collect();
        files.sort();
        for file in files
            .iter()
            .filter(|f| f.extension().is_some_and(|e| e == "onnx"))
        {
            let model = read(file, UnknownFields::Allow).unwrap();
            let name = file.file_name().unwrap().to_string_lossy();
            check(&name, &Model::from_proto(model).unwrap(), effort);
            seen += 1;
        }
    }
    assert!(seen > 20);
}
