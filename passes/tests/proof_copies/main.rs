//! Graphs in which forward nodes are computed again, and weights transposed again, are proven; what computes
//! something else is named.
#![allow(clippy::unwrap_used)]

mod broken;
mod transposed;

use std::path::Path;
use velora_graph::analysis::partition::is_copy;
use velora_graph::analysis::recompute::cost::Rates;
use velora_graph::analysis::{Analyses, Settings};
use velora_graph::ir::Model;
use velora_graph::onnx::read::{UnknownFields, read};
use velora_graph::onnx::schema::{GraphProto, ModelProto, NodeProto, StringStringEntryProto};
use velora_passes::manager::Checks;
use velora_passes::pipeline::{Options, optimise};
use velora_passes::planner::{Level, Plan, Planner, Subject};
use velora_passes::proof::{Proof, Side, prove};
use velora_passes::select::{Grouping, Preset, Selection};

fn file(name: &str) -> Model {
    let models = Path::new(env!("CARGO_MANIFEST_DIR")).join("../models");
    let proto = read(&models.join(name), UnknownFields::Allow).unwrap();
    Model::from_proto(proto).unwrap()
}

fn options() -> Options {
    Options {
        settings: Settings::default(),
        selection: Selection {
            preset: Preset::Freeable,
            ..Selection::freeable(Grouping::Groups(4))
        },
        inline: false,
        hoist: true,
        recompute: None,
        pin: true,
        adapter: None,
        checks: Checks::default(),
    }
}

/// A graph, and what a plan makes of it.
struct Pair {
    original: Model,
    analyses: Analyses,
    rewritten: ModelProto,
}

impl Pair {
    fn new(original: Model, options: &Options) -> Pair {
        let outcome = optimise(&original, options).unwrap();
        Pair {
            analyses: Analyses::new(&original, &Settings::default()).unwrap(),
            rewritten: outcome.ran.model.to_proto(),
            original,
        }
    }

    /// With everything within a block computed again, or all that saves a byte where no blocks are found, and nothing
    /// approximate.
    fn layers(name: &str) -> Pair {
        let (original, options) = (file(name), options());
        let subject = Subject::new(&original, &options).unwrap();
        let planner = Planner::new(&original, &options, &subject, Rates::default()).unwrap();
        let cheapest = || planner.frontier(true).pop().unwrap();
        let plan = planner.level(Level::Layers, true).unwrap_or_else(cheapest);
        let options = planner.options(&plan);
        Pair::new(original, &options)
    }

    fn prove(&self, rewritten: ModelProto) -> Proof {
        let rewritten = Model::from_proto(rewritten).unwrap();
        let side = |model| Side {
            model,
            folder: None,
        };
        let original = side(&self.original);
        let settings = Settings::default();
        prove(original, &self.analyses, side(&rewritten), &settings)
    }

    fn broken(&self, breaks: impl FnOnce(&mut GraphProto)) -> Proof {
        let mut model = self.rewritten.clone();
        breaks(model.graph.as_mut().unwrap());
        self.prove(model)
    }

    /// Breaks the rewritten graph, and expects the first difference to say so.
    fn refuses(&self, wanted: &str, breaks: impl FnOnce(&mut GraphProto)) {
        let found = self.broken(breaks).differences;
        let first = found.first().map(ToString::to_string).unwrap_or_default();
        let shown = &found[..found.len().min(5)];
        assert!(
            first.contains(wanted),
            "expected {wanted}, found {shown:#?}"
        );
    }
}

fn marked(node: &NodeProto, key: &str, value: &str) -> bool {
    let mut entries = node.metadata_props.iter();
    entries.any(|e| e.key() == key && e.value() == value)
}

fn called<'g>(graph: &'g mut GraphProto, name: &str) -> &'g mut NodeProto {
    graph.node.iter_mut().find(|n| n.name() == name).unwrap()
}

fn mark(key: &str, value: &str) -> StringStringEntryProto {
    StringStringEntryProto {
        key: Some(key.to_owned()),
        value: Some(value.to_owned()),
    }
}

const MODELS: [&str; 5] = [
    "aot/llama_tiny.onnx",
    "aot/bert_tiny.onnx",
    "aot/vit_tiny.onnx",
    "ort/llama_tiny.onnx",
    "ort/bert_tiny_dropout.onnx",
];

#[test]
fn plans_are_accepted() {
    let (mut copies, mut gradients, mut derived, mut plans) = (0, 0, 0, 0);
    for name in MODELS {
        let (original, options) = (file(name), options());
        let analyses = Analyses::new(&original, &options.settings).unwrap();
        let subject = Subject::new(&original, &options).unwrap();
        let planner = Planner::new(&original, &options, &subject, Rates::default()).unwrap();
        for exact in [true, false] {
            let levels = [Level::Cheap, Level::Layers, Level::Sqrt].into_iter();
            let levels = levels.filter_map(|level| planner.level(level, exact));
            let frontier = planner.frontier(exact);
            let prices = [0, frontier.len() / 2, frontier.len() - 1];
            let all: Vec<Plan> = levels
                .chain(prices.map(|at| frontier[at].clone()))
                .collect();
            for plan in all {
                let outcome = optimise(&original, &planner.options(&plan)).unwrap();
                let rewritten = &outcome.ran.model;
                let at = format!(
                    "{name}, exact {exact}, {} nodes again",
                    plan.recompute.len()
                );
                let side = |model| Side {
                    model,
                    folder: None,
                };
                let proof = prove(
                    side(&original),
                    &analyses,
                    side(rewritten),
                    &options.settings,
                );
                assert_eq!(proof.differences, [], "{at}");
                let graph = &rewritten.graph;
                let count = |is: &dyn Fn(&velora_graph::ir::Node) -> bool| {
                    let nodes = graph.order().iter();
                    nodes.filter(|&&id| is(graph.node(id))).count()
                };
                assert_eq!(proof.copies, count(&is_copy), "{at}");
                if exact {
                    // Nothing else is gone then: weights that were transposed twice.
                    assert!(proof.gradients.is_empty(), "{at}");
                    derived += proof.removed;
                }
                let pins = count(&|n| n.velora_op() == Some("Pin"));
                assert_eq!(proof.pins, pins, "{at}");
                let nodes = proof.same + proof.added + proof.pins + proof.copies;
                assert_eq!(nodes, graph.node_count(), "{at}");
                assert_eq!(
                    proof.same + proof.removed,
                    original.graph.node_count(),
                    "{at}"
                );
                let decisions = outcome.decisions.iter().filter(|d| d.rewritten());
                assert_eq!(proof.gradients.len(), decisions.count(), "{at}");
                // Their ids are those of the graph with the copies.
                for gradient in &proof.gradients {
                    let result = gradient.site.result(&original.graph).unwrap();
                    let result = &original.graph.value(result).name;
                    let mut made = graph.node(gradient.node).outputs.iter().flatten();
                    assert!(
                        made.any(|&v| graph.value(v).name == *result),
                        "{at}: {result}"
                    );
                    assert!(
                        graph.value(gradient.factors.z).name.starts_with("velora."),
                        "{at}"
                    );
                }
                copies += proof.copies;
                gradients += proof.gradients.len();
                plans += 1;
            }
        }
    }
    println!("{plans} plans, {copies} copies, {gradients} gradients, {derived} transpositions");
    assert!(plans >= 48 && copies > 2000 && gradients > 100 && derived > 100);
}
