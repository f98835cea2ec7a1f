//! The whole job on graphs of a thousand to a hundred thousand nodes: `cargo bench -p velora-passes`.
//!
//! `cargo bench -p velora-passes -- --quick` for a first look. Times grow near-linearly with the nodes;
//! the table at the end of each size says which pass takes how long, and how long for each node.
#![allow(clippy::unwrap_used, missing_docs)]

use criterion::{BenchmarkId, Criterion, Throughput};
use std::time::{Duration, Instant};
use velora_graph::analysis::{Analyses, Settings};
use velora_graph::ir::Model;
use velora_passes::manager::Checks;
use velora_passes::pipeline::{Options, optimise, shapes};
use velora_passes::select::{Grouping, Selection};
use velora_testgen::{Generated, chain};

/// A graph of about so many nodes, made of equal blocks.
fn of_nodes(nodes: usize, make: impl Fn(usize) -> Generated) -> Model {
    let count = |blocks| make(blocks).model.graph.unwrap().node.len();
    let (one, three) = (count(1), count(3));
    let block = (three - one) / 2;
    let blocks = 1 + nodes.saturating_sub(one) / block;
    Model::from_proto(make(blocks).model).unwrap()
}

fn options(inline: bool, pin: bool) -> Options {
    Options {
        settings: Settings::default(),
        selection: Selection::freeable(Grouping::Groups(16)),
        inline,
        hoist: true,
        recompute: None,
        pin,
        adapter: None,
        checks: Checks::default(),
    }
}

fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

/// Where the time goes, once.
fn table(name: &str, model: &Model) -> Duration {
    let nodes = model.graph.order().len();
    let start = Instant::now();
    shapes(model, &Settings::default()).unwrap();
    let inferred = start.elapsed();
    let start = Instant::now();
    Analyses::new(model, &Settings::default()).unwrap();
    let analysed = start.elapsed();
    let start = Instant::now();
    let outcome = optimise(model, &options(false, true)).unwrap();
    let whole = start.elapsed();
    let rewritten = outcome.decisions.iter().filter(|d| d.rewritten()).count();
    println!(
        "{name}: {nodes} nodes, {rewritten} layers rewritten, {:.1} ms, {:.2} µs a node",
        milliseconds(whole),
        milliseconds(whole) * 1e3 / nodes as f64
    );
    println!(
        "  of which shapes {:.1} ms, all analyses {:.1} ms",
        milliseconds(inferred),
        milliseconds(analysed)
    );
    for (pass, _, time) in &outcome.ran.passes {
        println!("  {pass} {:.1} ms", milliseconds(*time));
    }
    whole
}

fn main() {
    let mut criterion = Criterion::default()
        .sample_size(10)
        .measurement_time(Duration::from_secs(2))
        .configure_from_args();
    type Make = fn(usize) -> Generated;
    let families: [(&str, Make); 2] = [
        ("mlp", |layers| chain::mlp(layers, 64, "gelu")),
        ("transformer", |blocks| chain::transformer(blocks, 64, 16)),
    ];
    for (family, make) in families {
        let mut before: Option<(usize, Duration)> = None;
        for nodes in [1_000, 10_000, 100_000] {
            let model = of_nodes(nodes, make);
            let count = model.graph.order().len();
            let time = table(&format!("{family}/{nodes}"), &model);
            if let Some((fewer, less)) = before {
                let (size, ratio) = (
                    count as f64 / fewer as f64,
                    time.as_secs_f64() / less.as_secs_f64(),
                );
                println!("  {size:.1} times the nodes, {ratio:.1} times the time");
            }
            before = Some((count, time));
            let mut group = criterion.benchmark_group(family);
            group.throughput(Throughput::Elements(count as u64));
            for (form, inline, pin) in [
                ("functions", false, true),
                ("inline", true, true),
                ("no pins", false, false),
            ] {
                let options = options(inline, pin);
                group.bench_with_input(BenchmarkId::new(form, nodes), &model, |bencher, model| {
                    bencher.iter(|| optimise(model, &options).unwrap());
                });
            }
            group.finish();
        }
    }
    criterion.final_summary();
}
