//! Random training graphs under random settings: what the rewrite changes is what it says it changes, and
//! bytes that the analyses predict are bytes that the interpreter counts.
//!
//! Seeds are fixed: a failure comes again. `PROPTEST_CASES` asks for more cases, `PROPTEST_RNG_SEED` for
//! others.
#![allow(clippy::unwrap_used, missing_docs)]

mod factors;
mod formula;
mod hoist;
mod memory;
mod orders;
mod proof;
mod recompute;

use proptest::prelude::*;
use proptest::test_runner::{Config, RngSeed};

use std::collections::{BTreeMap, HashMap, HashSet};
use velora_graph::analysis::roles::RoleError;
use velora_graph::analysis::sites::{Form, Site};
use velora_graph::analysis::{AnalysisError, Settings};
use velora_graph::ir::{Model, NodeId};
use velora_graph::onnx::schema::ModelProto;
use velora_graph::onnx::write::write_to;
use velora_graph::verify::verify_model;
use velora_passes::manager::Checks;
use velora_passes::pipeline::{JobError, Options, Outcome, optimise};
use velora_passes::select::{Gradients, Grouping, Init, LayerSettings, Preset, Selection};
use velora_testgen::interpret::{Precision, Tensor, run};
use velora_testgen::{Generated, ledger, random};

pub fn config(cases: u32) -> Config {
    Config {
        cases: std::env::var("PROPTEST_CASES").map_or(cases, |n| n.parse().unwrap()),
        rng_seed: match std::env::var("PROPTEST_RNG_SEED") {
            Ok(seed) => seed.parse().unwrap(),
            Err(_) => RngSeed::Fixed(7),
        },
        failure_persistence: None,
        ..Config::default()
    }
}

pub fn settings() -> impl Strategy<Value = Options> {
    let grouping = prop_oneof![
        (1..8i64).prop_map(Grouping::Groups),
        (1..6i64).prop_map(Grouping::SubTokenSize),
    ];
    let init = prop_oneof![
        Just(Init::BatchAverage),
        Just(Init::FirstBatch),
        Just(Init::Svd),
        Just(Init::Random),
        Just(Init::Uniform),
        Just(Init::None)
    ];
    let preset = prop_oneof![
        Just(Preset::Freeable),
        Just(Preset::All),
        Just(Preset::Paper)
    ];
    let scale = prop_oneof![Just(1.0), Just(0.3), Just(1.5)];
    let all = (grouping, init, preset, scale, any::<[bool; 4]>(), 0..4u64);
    all.prop_map(
        |(grouping, init, preset, scale, [inline, hoist, pin, factored], seed)| {
            let mut options = Options {
                hoist,
                ..options(grouping, init, preset, scale, inline, pin, seed)
            };
            // A direction that moves from step to step cannot be handed out.
            if factored && !init.is_computed() {
                options.selection.defaults.gradients = Gradients::Factored;
            }
            options
        },
    )
}

pub fn options(
    grouping: Grouping,
    init: Init,
    preset: Preset,
    scale: f64,
    inline: bool,
    pin: bool,
    seed: u64,
) -> Options {
    Options {
        settings: Settings::default(),
        selection: Selection {
            preset,
            defaults: LayerSettings {
                init,
                scale,
                seed,
                ..LayerSettings::new(grouping)
            },
            ..Selection::freeable(grouping)
        },
        inline,
        hoist: true,
        recompute: None,
        pin,
        adapter: None,
        checks: Checks {
            verify_each: true,
            keep_after: None,
        },
    }
}

pub fn graphs() -> impl Strategy<Value = Vec<u8>> {
    prop::collection::vec(any::<u8>(), 0..160)
}

fn bytes(model: &ModelProto) -> Vec<u8> {
    let mut bytes = Vec::new();
    write_to(model, &mut bytes).unwrap();
    bytes
}

/// A model before and after, and its values.
pub struct Case {
    pub made: Generated,
    pub model: Model,
    pub outcome: Outcome,
    /// The rewritten model as a message.
    pub after: ModelProto,
    pub inputs: HashMap<String, Tensor>,
    pub values: HashMap<String, Tensor>,
    pub new_values: HashMap<String, Tensor>,
}

impl Case {
    /// Rewrites a graph, and runs it before and after; `None` where nothing in it is trained.
    pub fn new(made: Generated, options: &Options, batch: usize) -> Option<Case> {
        let model = Model::from_proto(made.model.clone()).unwrap();
        let outcome = match optimise(&model, options) {
            Ok(outcome) => outcome,
            Err(JobError::Analysis(AnalysisError::Roles(RoleError::NoGradients { .. }))) => {
                assert!(made.gradients.is_empty());
                return None;
            }
            Err(error) => panic!("{error}"),
        };
        let after = outcome.ran.model.to_proto();
        let inputs = made.data(11, batch);
        Some(Case {
            values: run(&made.model, &inputs, Precision::Single),
            new_values: run(&after, &inputs, Precision::Single),
            made,
            model,
            outcome,
            after,
            inputs,
        })
    }

    /// The names of what comes out of rewritten contractions.
    pub fn rewritten(&self) -> HashSet<&str> {
        let graph = &self.model.graph;
        let decisions = self.outcome.decisions.iter().filter(|d| d.rewritten());
        let results = decisions.map(|d| made_by(d.site.as_ref().unwrap()));
        let names = results.map(|n| graph.node(n).outputs[0].unwrap());
        names.map(|v| graph.value(v).name.as_str()).collect()
    }
}

/// The node that makes the gradient of a site.
fn made_by(site: &Site) -> NodeId {
    match &site.form {
        Form::Weight(form) => form.result,
        Form::Scale(form) => form.result,
        Form::Reconstructed => site.product,
    }
}

/// Every value that no rewritten contraction feeds is what it was, bit for bit.
pub fn check_untouched(case: &Case) -> Result<(), TestCaseError> {
    let old = case.made.model.graph.as_ref().unwrap();
    let new = case.after.graph.as_ref().unwrap();
    prop_assert_eq!(&old.input, &new.input);
    factors::check_outputs(case, old, new);
    let changed = ledger::dependents(old, case.rewritten());
    let mut compared = 0;
    for (name, value) in &case.values {
        let Some(now) = case.new_values.get(name) else {
            continue;
        };
        prop_assert_eq!(&value.shape, &now.shape, "{}", name);
        if !changed.contains(name) {
            compared += 1;
            prop_assert!(value.bits() == now.bits(), "{name} changed");
        }
    }
    let untouched = old.output.iter().filter(|o| !changed.contains(o.name()));
    prop_assert!(compared >= untouched.count());
    Ok(())
}

proptest! {
    #![proptest_config(config(250))]

    /// Forward values, input gradients, everything that does not come out of a rewritten contraction:
    /// bit for bit what it was.
    #[test]
    fn the_rest_is_untouched(graph in graphs(), options in settings()) {
        let Some(case) = Case::new(random::graph(&graph), &options, 2) else { return Ok(()) };
        check_untouched(&case)?;
        let old = case.made.model.graph.as_ref().unwrap();
        let new = case.after.graph.as_ref().unwrap();
        // A node that is neither new nor gone is the message that it was, but for the mark of a moved one.
        let known: HashMap<&str, _> = old.node.iter().map(|n| (n.output[0].as_str(), n)).collect();
        for node in &new.node {
            let says = |key: &str| node.metadata_props.iter().any(|e| e.key() == key);
            let moved = says("velora.half") && !says("velora.origin");
            let ours = says("velora.version") && !moved;
            if let (Some(was), false) = (known.get(node.output[0].as_str()), ours) {
                let mut same = node.clone();
                // A pin or a reconstruction may stand in front of an input.
                same.input.clone_from(&was.input);
                if moved {
                    let marks = ["velora.half", "velora.version"];
                    same.metadata_props.retain(|e| !marks.contains(&e.key()));
                }
                prop_assert_eq!(&same, *was);
            }
        }
    }

    /// Twice the same bytes, whoever else runs; a second rewrite changes nothing; the result is valid.
    #[test]
    fn rewriting_is_a_function(graph in graphs(), options in settings()) {
        let Some(case) = Case::new(random::graph(&graph), &options, 1) else { return Ok(()) };
        if let Err(found) = verify_model(&case.after) {
            panic!("{}", found.listing(&case.after));
        }
        let first = bytes(&case.after);
        std::thread::scope(|scope| {
            let threads: Vec<_> = (0..3)
                .map(|_| scope.spawn(|| bytes(&optimise(&case.model, &options).unwrap().ran.model.to_proto())))
                .collect();
            for thread in threads {
                assert!(thread.join().unwrap() == first, "other bytes");
            }
        });
        let again = optimise(&case.outcome.ran.model, &options).unwrap();
        prop_assert_eq!(again.decisions.iter().filter(|d| d.rewritten()).count(), 0);
        prop_assert!(bytes(&again.ran.model.to_proto()) == first, "rewritten twice");
    }
}

/// The generator makes what the tests are about: every form of contraction, rewritten and refused.
#[test]
fn random_graphs_are_of_many_kinds() {
    let mut seen: BTreeMap<String, usize> = BTreeMap::new();
    let mut random = velora_testgen::Random::new(3);
    for round in 0..400 {
        let graph: Vec<u8> = (0..120).map(|_| random.bits() as u8).collect();
        let options = options(
            Grouping::Groups(2 + round % 3),
            Init::None,
            Preset::Freeable,
            1.0,
            false,
            false,
            0,
        );
        let made = random::graph(&graph);
        let model = Model::from_proto(made.model.clone()).unwrap();
        let Ok(outcome) = optimise(&model, &options) else {
            continue;
        };
        for decision in &outcome.decisions {
            let node = model.graph.node(decision.node);
            *seen.entry(decision.reason.code().to_owned()).or_default() += 1;
            if let Some(site) = decision.site.as_ref().filter(|_| decision.rewritten()) {
                let batched = if made_by(site) == site.product {
                    ""
                } else {
                    " batched"
                };
                let (rest, transposed) = match &site.form {
                    Form::Weight(form) if form.gradient_flipped => (" flipped", form.transposed),
                    Form::Weight(form) => ("", form.transposed),
                    _ => (" adds", site.slot == 1),
                };
                let form = format!("{}{batched}{rest} {transposed}", node.op());
                *seen.entry(form).or_default() += 1;
            }
        }
    }
    eprintln!("{seen:#?}");
    for wanted in [
        "rewritten",
        "kept-alive",
        "graph-input",
        "no-saving",
        "MatMul false",
        "MatMul true",
        "MatMul batched false",
        "MatMul batched true",
        "Gemm false",
        "Gemm true",
        "Gemm adds true",
        "Gemm flipped false",
        "FusedMatMul true",
    ] {
        assert!(
            seen.get(wanted).is_some_and(|&n| n >= 5),
            "{wanted}: {seen:?}"
        );
    }
}
