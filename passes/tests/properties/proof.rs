//! The proof holds for what the rewrite makes, and for nothing else: each change of a node, however
//! small, is found.

use super::{Case, config, graphs, settings};
use proptest::prelude::*;
use velora_graph::analysis::recompute::cost::Rates;
use velora_graph::analysis::{Analyses, Settings, sites};
use velora_graph::ir::{Graph, Model};
use velora_graph::onnx::schema::{ModelProto, NodeProto};
use velora_passes::pipeline::Options;
use velora_passes::planner::{Planner, Subject};
use velora_passes::proof::{Form, Proof, Side, prove};
use velora_testgen::{Generated, random};

fn proof(case: &Case, after: ModelProto) -> Option<Proof> {
    let analyses = Analyses::new(&case.model, &Settings::default()).unwrap();
    let after = Model::from_proto(after).ok()?;
    let side = |model| Side {
        model,
        folder: None,
    };
    Some(prove(
        side(&case.model),
        &analyses,
        side(&after),
        &Settings::default(),
    ))
}

/// Proves a rewritten graph, and breaks it in several ways, each of which has to be found.
fn check(case: &Case, at: prop::sample::Index) -> Result<(), TestCaseError> {
    let proof_of = |model| proof(case, model);
    let found = proof_of(case.after.clone()).unwrap();
    prop_assert_eq!(&found.differences, &[]);
    let copies_found = found.copies;
    let rewritten: Vec<_> = case
        .outcome
        .decisions
        .iter()
        .filter(|d| d.rewritten())
        .collect();
    prop_assert_eq!(found.gradients.len(), rewritten.len());
    for decision in &rewritten {
        let site = decision.site.as_ref().unwrap();
        let gradient = found.gradients.iter().find(|g| g.site == *site).unwrap();
        let form = match (&site.form, decision.gradient.route()) {
            (sites::Form::Reconstructed, _) => Form::Reconstructed,
            (_, Some(_)) => Form::Factors,
            _ => Form::Factored,
        };
        prop_assert_eq!(gradient.form, form);
        let groups = decision.settings.grouping.groups(site.features);
        prop_assert_eq!(gradient.factors.groups, groups);
        prop_assert_eq!(gradient.factors.scale, decision.settings.scale);
    }
    let nodes = case.model.graph.node_count();
    prop_assert_eq!(found.same + found.removed, nodes);

    // Any node that is not the tool's, with an attribute more; and any that is there no longer.
    let mut broken = case.after.clone();
    let list = &mut broken.graph.as_mut().unwrap().node;
    let old: Vec<usize> = (0..list.len())
        .filter(|&n| {
            !list[n]
                .metadata_props
                .iter()
                .any(|e| e.key().starts_with("velora."))
        })
        .collect();
    let place = old[at.index(old.len())];
    let name = list[place].output[0].clone();
    let label = match list[place].name() {
        "" => format!("producer of {name}"),
        label => label.to_owned(),
    };
    list[place].doc_string = Some("changed".to_owned());
    let found = proof_of(broken).unwrap();
    // It comes first: where it is a product that reads X̂, what led to X is missed as well.
    let first = found.differences.first().map(|d| d.node.as_str());
    prop_assert_eq!(
        first,
        Some(label.as_str()),
        "{}: {:?}",
        name,
        found.differences
    );
    let mut broken = case.after.clone();
    broken.graph.as_mut().unwrap().node.remove(place);
    // A node that others read cannot go without leaving no graph.
    if let Some(found) = proof_of(broken) {
        prop_assert!(!found.differences.is_empty(), "{}", name);
    }

    // Any node of an expanded operator, without its attributes.
    let mut broken = case.after.clone();
    let list = &mut broken.graph.as_mut().unwrap().node;
    let expanded = |node: &NodeProto| {
        let role = node.metadata_props.iter().find(|e| e.key() == "velora.op");
        let role = role.map(|e| e.value());
        let beside = role == Some("Compress") && node.op_type() == "Cast";
        role.is_some_and(|role| role != "Pin") && !beside && !node.attribute.is_empty()
    };
    let parts: Vec<usize> = (0..list.len()).filter(|&n| expanded(&list[n])).collect();
    if !parts.is_empty() {
        let place = parts[at.index(parts.len())];
        list[place].attribute.clear();
        if let Some(found) = proof_of(broken) {
            prop_assert!(!found.differences.is_empty(), "{}", name);
        }
    }

    // A copy that reads something else.
    let mut broken = case.after.clone();
    let graph = broken.graph.as_mut().unwrap();
    let copies: Vec<usize> = (0..graph.node.len())
        .filter(|&n| {
            marked(&graph.node[n], "velora.half", "backward") && !graph.node[n].input.is_empty()
        })
        .collect();
    prop_assert_eq!(copies_found, copies.len());
    if !copies.is_empty() {
        let other = graph.input[at.index(graph.input.len())].name().to_owned();
        let node = &mut graph.node[copies[at.index(copies.len())]];
        // A pin may hand on just that.
        if unpinned(&case.outcome.ran.model.graph, &node.input[0]) != other {
            node.input[0] = other;
            let found = proof_of(broken).unwrap();
            prop_assert!(!found.differences.is_empty());
        }
    }
    Ok(())
}

/// What stands behind the pins of a value.
fn unpinned(graph: &Graph, name: &str) -> String {
    let mut values = graph.values();
    let value = values.find(|&v| graph.value(v).name == name).unwrap();
    graph.value(graph.unpinned(value)).name.clone()
}

fn marked(node: &NodeProto, key: &str, value: &str) -> bool {
    let mut entries = node.metadata_props.iter();
    entries.any(|e| (e.key(), e.value()) == (key, value))
}

/// The same options with a plan at a price; none where nothing in the graph is trained.
fn planned(made: &Generated, options: &Options, exact: bool, price: f64) -> Option<Options> {
    let model = Model::from_proto(made.model.clone()).unwrap();
    let subject = Subject::new(&model, options).ok()?;
    let planner = Planner::new(&model, options, &subject, Rates::default()).unwrap();
    Some(planner.options(&planner.cut(price, exact)))
}

proptest! {
    #![proptest_config(config(250))]

    #[test]
    fn rewritten_graphs_are_proven(graph in graphs(), options in settings(), at in any::<prop::sample::Index>()) {
        if let Some(case) = Case::new(random::graph(&graph), &options, 1) {
            check(&case, at)?;
        }
    }

    /// The lower the price of time, the more is computed again.
    #[test]
    fn planned_graphs_are_proven(
        graph in graphs(),
        options in settings(),
        exact: bool,
        power in -3..10i32,
        at in any::<prop::sample::Index>(),
    ) {
        let made = random::graph(&graph);
        let price = if power < 0 { 0.0 } else { 10f64.powi(power) };
        if let Some(options) = planned(&made, &options, exact, price)
            && let Some(case) = Case::new(made, &options, 1)
        {
            check(&case, at)?;
        }
    }
}
