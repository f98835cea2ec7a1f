//! What is moved into the forward half changes no value and frees what it is said to free.

use super::memory::halves;
use super::{Case, config, graphs, settings};
use proptest::prelude::*;
use std::collections::BTreeMap;
use velora_graph::analysis::Settings;
use velora_graph::analysis::hoist::Move;
use velora_graph::ir::Model;
use velora_passes::pipeline::{Options, optimise};
use velora_passes::select::{Grouping, Init, Preset};
use velora_testgen::{Generated, ledger, random};

/// Enough for masks of narrow layers to be worth a page.
const BATCH: usize = 256;

/// The bytes between the halves, counted.
fn saved(case: &Case) -> i64 {
    let graph = case.after.graph.as_ref().unwrap();
    let (forward, backward) = halves(graph, &case.made);
    let names = ledger::saved(graph, &case.new_values, &forward, &backward);
    names.iter().map(|name| case.new_values[name].bytes()).sum()
}

/// With the size of the batch as known to the analyses as to the interpreter.
fn sized(options: &Options, hoist: bool) -> Options {
    let sizes = BTreeMap::from([("batch".into(), BATCH as i64)]);
    Options {
        hoist,
        settings: Settings {
            sizes,
            ..options.settings.clone()
        },
        ..options.clone()
    }
}

proptest! {
    #![proptest_config(config(80))]

    /// The bytes saved with and without differ by what each hoist says, and never grow.
    #[test]
    fn moving_frees_what_it_says(graph in graphs(), options in settings()) {
        let made = || random::graph(&graph);
        let Some(with) = Case::new(made(), &sized(&options, true), BATCH) else { return Ok(()) };
        let hoists = &with.outcome.hoists;
        if hoists.is_empty() {
            return Ok(());
        }
        let without = Case::new(made(), &sized(&options, false), BATCH).unwrap();
        prop_assert!(without.outcome.hoists.is_empty());
        let freed: i64 = hoists.iter().map(|h| h.before - h.after).sum();
        prop_assert!(freed > 0);
        prop_assert_eq!(saved(&without) - saved(&with), freed);
        // What reads a moved value is not among what changed, so `the_rest_is_untouched` compares it too.
        for (name, value) in &without.new_values {
            if let Some(now) = with.new_values.get(name).filter(|_| !name.starts_with("velora.")) {
                let rewritten = with.rewritten();
                let old = without.made.model.graph.as_ref().unwrap();
                if !ledger::dependents(old, rewritten).contains(name) {
                    prop_assert!(value.bits() == now.bits(), "{name} changed");
                }
            }
        }
    }
}

/// Graphs in which something is moved are common enough for the properties to mean something, and
/// whole chains and masks are among them.
#[test]
fn random_graphs_have_work_to_move() {
    let mut random = velora_testgen::Random::new(5);
    let (mut nodes, mut chains, mut masks, mut unlocked) = (0, 0, 0, 0);
    for _ in 0..400 {
        let bytes: Vec<u8> = (0..120).map(|_| random.bits() as u8).collect();
        let made: Generated = random::graph(&bytes);
        let model = Model::from_proto(made.model.clone()).unwrap();
        let options = super::options(
            Grouping::Groups(2),
            Init::None,
            Preset::Freeable,
            1.0,
            false,
            false,
            0,
        );
        let Ok(outcome) = optimise(&model, &sized(&options, true)) else {
            continue;
        };
        for hoist in &outcome.hoists {
            let whole = hoist.moves.iter().filter(|m| matches!(m, Move::Node(_)));
            let whole = whole.count();
            nodes += whole;
            chains += usize::from(whole > 2);
            masks += hoist.moves.len() - whole;
            let rewritten = |root| {
                let decisions = &mut outcome.decisions.iter();
                decisions.any(|d| d.activation == root && d.rewritten())
            };
            unlocked += hoist.released.iter().filter(|&&r| rewritten(r)).count();
        }
    }
    eprintln!("{nodes} nodes, {chains} chains, {masks} masks, {unlocked} unlocked");
    assert!(nodes >= 40 && chains >= 5 && masks >= 5 && unlocked >= 10);
}
