//! The planner: its cuts are the cheapest, and what it promises holds in the graph that it makes.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use velora_graph::analysis::partition::Half;
use velora_graph::analysis::recompute::cost::{Costs, Rates};
use velora_graph::analysis::recompute::{may_recompute, needed};
use velora_graph::analysis::{Settings, symbols};
use velora_graph::ir::{Model, NodeId};
use velora_graph::onnx::read::{UnknownFields, read};
use velora_passes::manager::Checks;
use velora_passes::pipeline::{JobError, Options, optimise};
use velora_passes::planner::{Goal, Level, PlanError, Planner, Subject, point};
use velora_passes::select::{Grouping, Selection};
use velora_testgen::random;

fn options(sizes: &[(&str, i64)]) -> Options {
    let sizes = sizes.iter().map(|&(name, size)| (Arc::from(name), size));
    Options {
        settings: Settings {
            sizes: sizes.collect(),
            ..Settings::default()
        },
        selection: Selection::freeable(Grouping::Groups(8)),
        inline: false,
        hoist: true,
        recompute: None,
        pin: true,
        adapter: None,
        checks: Checks {
            verify_each: true,
            keep_after: None,
        },
    }
}

fn models() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../models")
}

fn model(file: &str) -> Model {
    Model::from_proto(read(&models().join(file), UnknownFields::Allow).unwrap()).unwrap()
}

/// With sizes for a model's symbols; `rows` are those of the loss, samples or tokens.
fn sized(file: &str, model: &Model) -> Options {
    let size = |name: &str| match name {
        "seq" => 16,
        "rows" if file.contains("llama") => 8 * 16,
        _ => 8,
    };
    let symbols = symbols(&model.graph);
    let sizes: Vec<(&str, i64)> = symbols.iter().map(|name| (&**name, size(name))).collect();
    options(&sizes)
}

/// The cheapest set of nodes to compute again, by trying all of them.
fn cheapest(subject: &Subject, model: &Model, price: f64) -> Option<(f64, BTreeSet<NodeId>)> {
    let (graph, analyses) = (&model.graph, &subject.analyses);
    let forward = |id: &NodeId| analyses.partition.half(*id) == Half::Forward;
    let candidates: Vec<NodeId> = (graph.order().iter().copied())
        .filter(|id| forward(id) && may_recompute(graph.node(*id)))
        .collect();
    if candidates.len() > 12 {
        return None;
    }
    let costs = Costs::new(
        graph,
        &analyses.partition,
        &analyses.shapes,
        &subject.sizes,
        Rates::default(),
    );
    let mut best: Option<(f64, BTreeSet<NodeId>)> = None;
    for bits in 0..1u32 << candidates.len() {
        let chosen = candidates
            .iter()
            .enumerate()
            .filter(|(at, _)| bits >> at & 1 == 1);
        let chosen: BTreeSet<NodeId> = chosen.map(|(_, &id)| id).collect();
        let run = needed(graph, &analyses.partition, &analyses.buffers, &chosen);
        if run != chosen {
            continue;
        }
        let after = analyses.recomputed(graph, &chosen);
        let outlives = |root| {
            let members = analyses.buffers.members(root).iter();
            { members }.any(|&value| graph.value(value).is_output)
        };
        let saved = after.saved.iter().filter(|s| !outlives(s.buffer));
        let bytes: i64 = saved.filter_map(|s| subject.sizes.of(s.buffer)).sum();
        let seconds: f64 = chosen.iter().map(|&id| costs.node(id)).sum();
        let cost = bytes as f64 + price * seconds;
        if best.as_ref().is_none_or(|(least, _)| cost < *least) {
            best = Some((cost, chosen));
        }
    }
    best
}

/// On small graphs every choice is tried: none is cheaper than the cut.
#[test]
fn no_choice_is_cheaper_than_the_cut() {
    let mut random = velora_testgen::Random::new(1);
    let (mut compared, mut recomputing) = (0, 0);
    for _ in 0..600 {
        let length = 4 + random.bits() % 24;
        let bytes: Vec<u8> = (0..length).map(|_| random.bits() as u8).collect();
        let model = Model::from_proto(random::graph(&bytes).model).unwrap();
        let options = options(&[("batch", 64)]);
        let subject = match Subject::new(&model, &options) {
            Ok(subject) => subject,
            Err(JobError::Analysis(_)) => continue,
            Err(error) => panic!("{error}"),
        };
        let planner = Planner::new(&model, &options, &subject, Rates::default()).unwrap();
        for price in [0.0, 1e8, 1e9, 1e10] {
            let Some((least, chosen)) = cheapest(&subject, &model, price) else {
                continue;
            };
            let choice = planner.choice(price, true);
            let cost = choice.saved as f64 + price * choice.seconds;
            // Costs are rounded up to whole bytes, node by node.
            let slack = chosen.len() as f64 + 1.0;
            assert!(
                cost <= least + slack,
                "{bytes:?}, price {price}: the cut costs {cost}, {chosen:?} cost {least}"
            );
            compared += 1;
            recomputing += usize::from(!choice.recompute.is_empty());
        }
    }
    println!("{compared} cuts compared, {recomputing} of which compute something again");
    assert!(
        compared > 400 && recomputing > 100,
        "{compared} {recomputing}"
    );
}

/// The lower the price of time, the more is computed again, the less is saved, and the longer a step takes.
#[test]
fn plans_are_nested_by_price() {
    for file in [
        "aot/llama_tiny.onnx",
        "ort/bert_tiny.onnx",
        "aot/vit_tiny.onnx",
        "ort/cnn.onnx",
    ] {
        let model = model(file);
        let options = sized(file, &model);
        let subject = Subject::new(&model, &options).unwrap();
        let planner = Planner::new(&model, &options, &subject, Rates::default()).unwrap();
        let plans = planner.frontier(true);
        assert!(plans.len() > 1, "{file}");
        for pair in plans.windows(2) {
            let [less, more] = [0, 1].map(|at| planner.measure(&pair[at]).unwrap());
            assert!(
                more.saved <= less.saved && more.seconds >= less.seconds,
                "{file}"
            );
        }
    }
}

/// What a search finds keeps its bounds in the graph that is written, pins included.
#[test]
fn bounds_are_kept_by_the_graph_that_is_written() {
    for file in [
        "aot/llama_tiny.onnx",
        "ort/llama_tiny.onnx",
        "ort/bert_tiny_dropout.onnx",
        "aot/mlp.onnx",
    ] {
        let model = model(file);
        let options = sized(file, &model);
        let subject = Subject::new(&model, &options).unwrap();
        let planner = Planner::new(&model, &options, &subject, Rates::default()).unwrap();
        let before = planner.before().unwrap();
        let mut found_some = 0;
        for exact in [true, false] {
            for share in [1.0, 0.8, 0.6, 0.4] {
                let bound = (before.peak as f64 * share) as i64;
                let goal = Goal {
                    peak: Some(bound),
                    slowdown: Some(0.4),
                    exact,
                };
                let found = match planner.find(&goal) {
                    Ok(found) => found,
                    Err(PlanError::Impossible { least }) => {
                        assert!(least.point.peak > bound, "{file} {share}");
                        continue;
                    }
                    Err(PlanError::Slow { fastest }) => {
                        assert!(fastest.point.peak <= bound, "{file} {share}");
                        assert!(
                            fastest.point.seconds > 1.4 * before.seconds,
                            "{file} {share}"
                        );
                        continue;
                    }
                    Err(error) => panic!("{error}"),
                };
                found_some += 1;
                assert!(!exact || found.plan.compress.is_empty());
                let options = planner.options(&found.plan);
                let outcome = optimise(&model, &options).unwrap();
                let made = point(&outcome.ran.model, &options.settings, Rates::default()).unwrap();
                assert!(
                    made.peak <= bound,
                    "{file} {share}: {} of {bound}",
                    made.peak
                );
                assert_eq!(made.peak, found.point.peak, "{file} {share}");
                assert!(
                    found.point.seconds <= 1.4 * before.seconds,
                    "{file} {share}"
                );
                let rewritten = outcome.decisions.iter().filter(|d| d.rewritten()).count();
                assert!(!exact || rewritten == 0, "{file} {share}");
            }
        }
        assert!(found_some > 2, "{file}: {found_some}");
    }
}

/// Blocks are found in what has blocks, and what enters them is all that checkpointing saves of them.
#[test]
fn checkpoints_are_the_borders_of_blocks() {
    for (file, blocks) in [
        ("aot/llama_256x4.onnx", 4),
        ("aot/llama_tiny.onnx", 2),
        ("ort/llama_tiny.onnx", 2),
        ("ort/llama_hf.onnx", 2),
        ("aot/bert_tiny.onnx", 2),
        ("ort/bert_tiny.onnx", 2),
        ("aot/vit_tiny.onnx", 2),
    ] {
        let model = model(file);
        let options = options(&[]);
        let subject = Subject::new(&model, &options).unwrap();
        let planner = Planner::new(&model, &options, &subject, Rates::default()).unwrap();
        let borders = planner.borders();
        assert_eq!(borders.len(), blocks + 1, "{file}: {borders:?}");
        let layers = planner
            .measure(&planner.level(Level::Layers, true).unwrap())
            .unwrap();
        let cheap = planner
            .measure(&planner.level(Level::Cheap, true).unwrap())
            .unwrap();
        let none = planner
            .measure(&planner.level(Level::None, true).unwrap())
            .unwrap();
        assert!(
            layers.saved < cheap.saved && cheap.saved <= none.saved,
            "{file}"
        );
        assert!(
            layers.seconds > cheap.seconds && cheap.seconds >= none.seconds,
            "{file}"
        );
    }
}

/// Random nodes stay as they are, and names are checked.
#[test]
fn what_cannot_run_twice_is_refused() {
    let model = model("ort/bert_tiny_dropout.onnx");
    let dropout = model
        .graph
        .order()
        .iter()
        .find(|&&id| model.graph.node(id).op() == "Dropout");
    let dropped = model.graph.node(*dropout.unwrap()).outputs[0].unwrap();
    let dropped = model.graph.value(dropped).name.clone();
    for (name, problem) in [
        (
            dropped.as_str(),
            "is made by a node that must not run twice",
        ),
        ("no such tensor", "is made by no node of the graph"),
    ] {
        let options = Options {
            recompute: Some(BTreeSet::from([name.to_owned()])),
            ..options(&[])
        };
        let error = optimise(&model, &options).unwrap_err().to_string();
        assert!(error.contains(name) && error.contains(problem), "{error}");
    }
}
