//! Pins of a deep graph, of which every tensor is a small part of the peak.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use velora_graph::analysis::{Analyses, Settings};
use velora_graph::ir::Model;
use velora_passes::manager::Checks;
use velora_passes::pin::dependences;
use velora_passes::pipeline::{Options, assumed_sizes, optimise};
use velora_passes::select::{Grouping, Selection};
use velora_testgen::models::{Recipe, published};

#[test]
fn orders_of_other_runtimes_stay_near_the_schedule() {
    // 5803 nodes before the rewrite.
    let recipe = Recipe {
        blocks: Some(32),
        ..Recipe::default()
    };
    let made = published("llama-60m", &recipe).unwrap();
    let model = Model::from_proto(made.model).unwrap();
    let settings = Settings {
        sizes: BTreeMap::from([("batch".into(), 1)]),
        ..Settings::default()
    };
    let options = Options {
        settings: settings.clone(),
        selection: Selection::freeable(Grouping::Groups(32)),
        inline: false,
        hoist: true,
        recompute: None,
        pin: false,
        adapter: None,
        checks: Checks::default(),
    };
    let rewritten = optimise(&model, &options).unwrap().ran.model;
    let shapes = Analyses::new(&rewritten, &settings).unwrap().shapes;
    let sizes = assumed_sizes(&rewritten, &shapes);
    let (pins, above) = dependences(&rewritten.graph, &shapes, &sizes);
    // A pin has about five nodes: fewer of them than the graph has.
    assert!(pins.len() < 1200, "{}", pins.len());
    // One percent is what is aimed at.
    assert!(above <= 0.01, "{above}");
}
