//! Gradients that leave as factors, and adapters.

use super::{Case, config, graphs, settings};
use proptest::prelude::*;
use std::collections::BTreeMap;
use velora_graph::analysis::roles::{Hints, roles};
use velora_graph::ir::{Model, ValueId};
use velora_graph::onnx::schema::{GraphProto, ValueInfoProto};
use velora_passes::adapt::base::Base;
use velora_passes::pipeline::{Adapter, Options, optimise};
use velora_passes::select::{GradientForm, Gradients, Grouping, Init, Preset};
use velora_testgen::{ledger, random};

/// The unit roundoff of 32-bit floats.
const U: f64 = 1.0 / (1u64 << 24) as f64;

impl Case {
    /// The outputs that leave as factors, by name.
    pub fn factored(&self) -> BTreeMap<String, ValueId> {
        let decisions = self.outcome.decisions.iter();
        let routes = decisions.filter_map(|d| d.gradient.route());
        let name = |value: ValueId| self.model.graph.value(value).name.clone();
        routes.map(|r| (name(r.output), r.parameter)).collect()
    }
}

/// Outputs are declared as they were, with P and v in the places of gradients that leave as such.
pub fn check_outputs(case: &Case, old: &GraphProto, new: &GraphProto) {
    let factored = case.factored();
    let mut found = new.output.iter();
    for output in &old.output {
        if !factored.contains_key(output.name()) {
            assert_eq!(found.next(), Some(output));
            continue;
        }
        for part in ["P", "v"] {
            let name = found.next().map(ValueInfoProto::name);
            let expected = format!("{}.{part}", output.name());
            assert_eq!(name, Some(expected.as_str()));
        }
    }
    assert_eq!(found.next(), None);
}

/// With factors asked for, and directions that stay.
fn factored() -> impl Strategy<Value = Options> {
    (settings(), 0..4usize).prop_map(|(mut options, init)| {
        let defaults = &mut options.selection.defaults;
        defaults.gradients = Gradients::Factored;
        defaults.init = [Init::FirstBatch, Init::Svd, Init::Random, Init::None][init];
        options
    })
}

proptest! {
    #![proptest_config(config(200))]

    /// What the marks say is what was decided, and v ⊗ P is the gradient that the rewrite makes where it is
    /// not asked for factors.
    #[test]
    fn factors_are_the_full_gradient(graph in graphs(), options in factored()) {
        let Some(case) = Case::new(random::graph(&graph), &options, 3) else { return Ok(()) };
        let mut full = options.clone();
        full.selection.defaults.gradients = Gradients::Full;
        let full = Case::new(random::graph(&graph), &full, 3).unwrap();
        let outputs = case.factored();
        let after = &case.outcome.ran.model.graph;
        let name = |value: ValueId| after.value(value).name.as_str();
        let said = roles(after, &Hints::default()).unwrap().factored;
        prop_assert_eq!(said.len(), outputs.len());
        for (output, parameter) in outputs {
            let p_name = format!("{output}.P");
            let of = said.iter().find(|f| name(f.gradient) == p_name).unwrap();
            prop_assert_eq!(name(of.parameter), &case.model.graph.value(parameter).name);
            prop_assert_eq!(name(of.direction), format!("{output}.v"));
            let (p, v) = (&case.new_values[&p_name], &case.new_values[name(of.direction)]);
            let expected = &full.new_values[&output];
            let [rows, columns] = expected.shape[..] else { panic!("no matrix") };
            let (features, wide) = if of.features_last { (columns, rows) } else { (rows, columns) };
            let groups = of.groups as usize;
            let size = v.shape[0];
            prop_assert_eq!(size, features.div_ceil(groups));
            let shape = if of.features_last { [wide, groups] } else { [groups, wide] };
            prop_assert_eq!(&p.shape[..], &shape[..]);
            let route = case.outcome.decisions.iter().filter_map(|d| d.gradient.route());
            let route = route.into_iter().find(|r| r.parameter == parameter).unwrap();
            if route.products.len() > 1 {
                // A difference of gradients has no bound of its own size.
                continue;
            }
            for (at, expected) in expected.f().iter().enumerate() {
                let (feature, place) = match of.features_last {
                    false => (at / columns, at / columns / size * columns + at % columns),
                    true => (at % columns, at / columns * groups + at % columns / size),
                };
                let found = v.f()[feature % size] * p.f()[place];
                // Of P as the contraction makes it: times the scale here; times v and the scale, and
                // that times P, there. All other numbers are powers of two.
                let tolerance = 5.0 * U * expected.abs() + f64::from(f32::MIN_POSITIVE);
                prop_assert!((found - expected).abs() <= tolerance, "{output} at {at}: {found}, expected {expected}");
            }
        }
    }

    /// With A of zeros and a base as it was, every value that does not come out of a rewritten contraction
    /// is what it was, bit for bit; and so are the factors without adapters.
    #[test]
    fn adapters_start_at_the_weight(graph in graphs(), options in factored()) {
        let Some(plain) = Case::new(random::graph(&graph), &options, 2) else { return Ok(()) };
        let adapter = Some(Adapter { base: Base::Float32, folder: None });
        let adapted = Options { adapter, ..options };
        let case = Case::new(random::graph(&graph), &adapted, 2).unwrap();
        let after = &case.outcome.ran.model.graph;
        let roles = roles(after, &Hints::default()).unwrap();
        prop_assert_eq!(roles.factored, []);
        prop_assert_eq!(roles.adapters.len(), case.factored().len());
        for adapter in &roles.adapters {
            let name = |value: ValueId| after.value(value).name.as_str();
            let weight = name(adapter.of.parameter);
            prop_assert_eq!(name(adapter.input), format!("{weight}.A"));
            let (a, p) = (name(adapter.input), name(adapter.of.gradient));
            prop_assert_eq!(&case.new_values[a].shape, &case.new_values[p].shape);
            prop_assert!(case.new_values[a].f().iter().all(|e| *e == 0.0));
        }
        let old = case.made.model.graph.as_ref().unwrap();
        let changed = ledger::dependents(old, case.rewritten());
        for (name, value) in case.values.iter().filter(|(name, _)| !changed.contains(*name)) {
            let Some(now) = case.new_values.get(name) else { continue };
            prop_assert!(value.bits() == now.bits(), "{name} changed");
        }
        for (output, _) in case.factored() {
            for part in ["P", "v"] {
                let name = format!("{output}.{part}");
                let (with, without) = (&case.new_values[&name], &plain.new_values[&name]);
                prop_assert!(with.bits() == without.bits(), "{name} changed");
            }
        }
    }
}

/// Random graphs have gradients that leave as factors, by each way, and refused ones of many kinds.
#[test]
fn random_graphs_have_factors() {
    let mut random = velora_testgen::Random::new(9);
    let mut seen: BTreeMap<String, usize> = BTreeMap::new();
    for _ in 0..400 {
        let bytes: Vec<u8> = (0..120).map(|_| random.bits() as u8).collect();
        let made = random::graph(&bytes);
        let model = Model::from_proto(made.model.clone()).unwrap();
        let mut options = super::options(
            Grouping::Groups(2),
            Init::None,
            Preset::Freeable,
            1.0,
            false,
            false,
            0,
        );
        options.selection.defaults.gradients = Gradients::Factored;
        let Ok(outcome) = optimise(&model, &options) else {
            continue;
        };
        for decision in outcome.decisions.iter().filter(|d| d.rewritten()) {
            let what = match &decision.gradient {
                GradientForm::Full => "full".to_owned(),
                GradientForm::Unfactored(why) => why
                    .split_whitespace()
                    .rev()
                    .take(3)
                    .collect::<Vec<_>>()
                    .join(" "),
                GradientForm::Factored(route) => {
                    let ops: Vec<&str> = { route.nodes.iter() }
                        .map(|&n| model.graph.node(n).op())
                        .collect();
                    format!("way of {} {}", route.products.len(), ops.join(" "))
                }
            };
            *seen.entry(what).or_default() += 1;
        }
    }
    eprintln!("{seen:#?}");
    assert!(!seen.contains_key("full"), "{seen:?}");
    for wanted in ["way of 1 Identity", "way of 1 Mul", "way of 2"] {
        let found = seen.iter().filter(|(what, _)| what.starts_with(wanted));
        let count: usize = found.map(|(_, n)| n).sum();
        assert!(count >= 5, "{wanted}: {seen:?}");
    }
}
