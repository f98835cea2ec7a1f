//! What is computed again makes the same bits, and is not saved.

use super::memory::halves;
use super::{Case, check_untouched, config, graphs, settings};
use proptest::prelude::*;
use std::collections::BTreeSet;
use velora_graph::analysis::partition::{Half, is_copy};
use velora_graph::analysis::recompute::may_recompute;
use velora_graph::analysis::{Analyses, Settings};
use velora_graph::ir::{Model, NodeId};
use velora_passes::derive;
use velora_passes::pipeline::Options;
use velora_testgen::{ledger, random};

/// Forward nodes picked by the bits of a number, by their first outputs.
fn picked(model: &Model, seed: u64) -> BTreeSet<String> {
    let Ok(analyses) = Analyses::new(model, &Settings::default()) else {
        return BTreeSet::new();
    };
    let graph = &model.graph;
    let mut random = velora_testgen::Random::new(seed);
    let mut candidate = |id: &NodeId| {
        let forward = analyses.partition.half(*id) == Half::Forward;
        forward && may_recompute(graph.node(*id)) && random.bits() & 1 == 1
    };
    let nodes: Vec<NodeId> = graph
        .order()
        .iter()
        .copied()
        .filter(&mut candidate)
        .collect();
    let first = |id: NodeId| graph.node(id).outputs[0].map(|v| graph.value(v).name.clone());
    nodes.into_iter().filter_map(first).collect()
}

fn recomputing(graph: &[u8], options: &Options, seed: u64) -> Option<Case> {
    let made = random::graph(graph);
    let model = Model::from_proto(made.model.clone()).unwrap();
    let options = Options {
        recompute: Some(picked(&model, seed)),
        ..options.clone()
    };
    Case::new(made, &options, 2)
}

proptest! {
    #![proptest_config(config(150))]

    /// Any set of forward nodes may be computed again, together with any rewrite: every value stays, bit for bit,
    /// and every copy has the bits of what it is a copy of.
    #[test]
    fn copies_change_no_bit(graph in graphs(), options in settings(), seed in any::<u64>()) {
        let Some(case) = recomputing(&graph, &options, seed) else { return Ok(()) };
        check_untouched(&case)?;
        for (name, value) in &case.new_values {
            let Some(of) = name.strip_prefix("velora.again.") else { continue };
            let original = case.new_values.get(of).or_else(|| {
                let (of, number) = of.rsplit_once('.')?;
                number.parse::<u32>().ok()?;
                case.new_values.get(of)
            });
            let original = original.unwrap_or_else(|| panic!("{name} is a copy of nothing"));
            prop_assert!(value.bits() == original.bits(), "{name} has other bits");
        }
    }

    /// What the analyses say is saved, once nodes are computed again, is what lives between the halves of the
    /// graph that is written.
    #[test]
    fn what_is_saved_is_what_was_said(graph in graphs(), options in settings(), seed in any::<u64>()) {
        let options = Options { hoist: false, pin: false, ..options };
        let Some(case) = recomputing(&graph, &options, seed) else { return Ok(()) };
        let outcome = &case.outcome;
        let derived = outcome.ran.passes.iter().any(|p| p.0 == derive::NAME && p.1.is_some());
        if derived || outcome.decisions.iter().any(|d| d.rewritten()) {
            return Ok(());
        }
        let said: BTreeSet<&str> = outcome.moved().saved.iter()
            .map(|saved| case.model.graph.value(saved.buffer).name.as_str())
            .collect();
        let after = case.after.graph.as_ref().unwrap();
        let (forward, backward) = halves(after, &case.made);
        let found = ledger::saved(after, &case.new_values, &forward, &backward);
        let found: BTreeSet<&str> = found.iter().map(String::as_str).collect();
        prop_assert_eq!(said, found);
    }
}

/// The generator makes graphs in which something is computed again.
#[test]
fn copies_are_made() {
    let mut random = velora_testgen::Random::new(7);
    let (mut copies, mut graphs) = (0, 0);
    for _ in 0..60 {
        let graph: Vec<u8> = (0..120).map(|_| random.bits() as u8).collect();
        let options = super::options(
            velora_passes::select::Grouping::Groups(2),
            velora_passes::select::Init::None,
            velora_passes::select::Preset::Freeable,
            1.0,
            false,
            true,
            0,
        );
        let Some(case) = recomputing(&graph, &options, random.bits()) else {
            continue;
        };
        let model = &case.outcome.ran.model;
        let made = model
            .graph
            .order()
            .iter()
            .filter(|&&id| is_copy(model.graph.node(id)))
            .count();
        graphs += usize::from(made > 0);
        copies += made;
    }
    println!("{copies} copies in {graphs} graphs");
    assert!(
        graphs > 30 && copies > 150,
        "{copies} copies in {graphs} graphs"
    );
}
