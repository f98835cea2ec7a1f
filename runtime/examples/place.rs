//! How near to the bound the buffers of models are placed: `place [--dim NAME=SIZE | --all SIZE] FILES`.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]
use std::collections::BTreeMap;
use std::time::Instant;
use velora_graph::analysis::buffers::Buffers;
use velora_graph::analysis::lifetimes::{Lifetimes, Sizes};
use velora_graph::ir::Model;
use velora_graph::shapes::{Context, infer};
use velora_runtime::plan::arena::{Interval, place};

fn main() {
    let mut args = std::env::args().skip(1).peekable();
    let mut size = 64;
    while let Some(arg) = args.next_if(|a| a == "--all") {
        let _ = arg;
        size = args.next().unwrap().parse().unwrap();
    }
    for file in args {
        let file_proto = velora_graph::onnx::read::read(
            file.as_ref(),
            velora_graph::onnx::read::UnknownFields::Allow,
        )
        .unwrap();
        let model = Model::from_proto(file_proto).unwrap();
        let graph = &model.graph;
        let none = BTreeMap::new();
        let context = Context {
            opsets: &model.shell.opset_import,
            functions: &model.shell.functions,
            sizes: &none,
        };
        let shapes = infer(graph, &context).unwrap();
        let sizes = Sizes::new(graph, &shapes, |_| size);
        let buffers = Buffers::new(graph);
        let lifetimes = Lifetimes::new(graph, &buffers, &sizes, graph.order());
        let intervals = intervals(&lifetimes, &sizes);
        let start = Instant::now();
        let placed = place(&intervals, 64).unwrap();
        println!(
            "{file:50} {:5} buffers {:12} bytes ratio {:.4} raw {:.4} {:>24} {:6.1} ms",
            intervals.len(),
            placed.bytes,
            placed.bytes as f64 / placed.lower_bound as f64,
            placed.bytes as f64 / placed.raw_bound as f64,
            placed.method,
            start.elapsed().as_secs_f64() * 1e3
        );
    }
}

/// Buffers that are written over each other are one.
fn intervals(lifetimes: &Lifetimes, sizes: &Sizes) -> Vec<Interval> {
    let mut of = BTreeMap::new();
    let mut found: Vec<Interval> = Vec::new();
    for root in lifetimes.buffers() {
        let (first, last) = lifetimes.span(root).unwrap();
        let bytes = sizes.of(root).unwrap_or(0) as u64;
        match lifetimes
            .takes_over(root)
            .and_then(|old| of.get(&old).copied())
        {
            Some(index) => {
                let interval: &mut Interval = &mut found[index];
                interval.last = interval.last.max(last);
                of.insert(root, index);
            }
            None => {
                of.insert(root, found.len());
                found.push(Interval { bytes, first, last });
            }
        }
    }
    found
}
