//! The proof holds for what the rewrite makes, and for nothing else: each change of a node, however
//! small, is found.

use super::{Case, config, graphs, settings};
use proptest::prelude::*;
use velora_graph::analysis::{Analyses, Settings, sites};
use velora_graph::ir::Model;
use velora_graph::onnx::schema::ModelProto;
use velora_passes::proof::{Form, Proof, Side, prove};
use velora_testgen::random;

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

proptest! {
    #![proptest_config(config(250))]

    #[test]
    fn rewritten_graphs_are_proven(graph in graphs(), options in settings(), at in any::<prop::sample::Index>()) {
        let Some(case) = Case::new(random::graph(&graph), &options, 1) else { return Ok(()) };
        let proof_of = |model| proof(&case, model);
        let found = proof_of(case.after.clone()).unwrap();
        prop_assert_eq!(&found.differences, &[]);
        let rewritten: Vec<_> = case.outcome.decisions.iter().filter(|d| d.rewritten()).collect();
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
            .filter(|&n| !list[n].metadata_props.iter().any(|e| e.key().starts_with("velora.")))
            .collect();
        let place = old[at.index(old.len())];
        let name = list[place].output[0].clone();
        list[place].doc_string = Some("changed".to_owned());
        let found = proof_of(broken).unwrap();
        prop_assert_eq!(found.differences.len(), 1, "{}: {:?}", name, found.differences);
        let mut broken = case.after.clone();
        broken.graph.as_mut().unwrap().node.remove(place);
        // A node that others read cannot go without leaving no graph.
        if let Some(found) = proof_of(broken) {
            prop_assert!(!found.differences.is_empty(), "{}", name);
        }
    }
}
