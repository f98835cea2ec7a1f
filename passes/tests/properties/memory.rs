//! What the analyses say lives is what the interpreter counts.

use super::{Case, config, graphs, settings};
use proptest::prelude::*;
use std::collections::{HashMap, HashSet};
use velora_graph::analysis::lifetimes::{Lifetimes, Sizes};
use velora_graph::analysis::{Analyses, Settings};
use velora_graph::ir::Model;
use velora_graph::onnx::schema::GraphProto;
use velora_testgen::interpret::Tensor;
use velora_testgen::{Generated, ledger, random};

/// The halves by what each node reaches; a compression and what was moved belong to the forward half.
pub fn halves(graph: &GraphProto, made: &Generated) -> (Vec<bool>, Vec<bool>) {
    let known: HashSet<&str> = made.gradient_outputs.iter().map(String::as_str).collect();
    // A factor of a gradient stands in its place.
    let is_gradient = |o: &str| known.contains(o.strip_suffix(".P").unwrap_or(o));
    let outputs = || graph.output.iter().map(|o| o.name());
    let mut forward = ledger::ancestors(graph, outputs().filter(|o| !is_gradient(o)));
    let mut backward = ledger::ancestors(graph, outputs().filter(|o| is_gradient(o)));
    for (place, node) in graph.node.iter().enumerate() {
        let op = node.metadata_props.iter().find(|e| e.key() == "velora.op");
        let op = if node.domain() == "ai.velora" {
            Some(node.op_type())
        } else {
            op.map(|e| e.value())
        };
        let entries = &mut node.metadata_props.iter();
        let early = matches!(op, Some("Compress" | "MeanDirection"))
            || entries.any(|e| (e.key(), e.value()) == ("velora.half", "forward"));
        forward[place] |= backward[place] && early;
        backward[place] &= !forward[place];
    }
    (forward, backward)
}

fn check(
    model: &Model,
    made: &Generated,
    values: &HashMap<String, Tensor>,
    batch: i64,
) -> HashSet<String> {
    let graph = &model.graph;
    let proto = graph.to_proto();
    let analyses = Analyses::new(model, &Settings::default()).unwrap();
    let name = |v| graph.value(v).name.clone();
    let (forward, backward) = halves(&proto, made);
    let counted = ledger::saved(&proto, values, &forward, &backward);
    let predicted: HashSet<String> = analyses.saved.iter().map(|s| name(s.buffer)).collect();
    assert_eq!(predicted, counted, "saved activations");

    let sizes = Sizes::new(graph, &analyses.shapes, |_| batch);
    let lifetimes = Lifetimes::new(graph, &analyses.buffers, &sizes, graph.order());
    let unknown: Vec<String> = lifetimes.unknown(&sizes).into_iter().map(name).collect();
    assert!(unknown.is_empty(), "sizes of {unknown:?} are unknown");
    let order: Vec<usize> = (0..proto.node.len()).collect();
    let counted = ledger::live(&proto, values, &order);
    assert_eq!(lifetimes.live(&sizes), counted, "live bytes");
    assert_eq!(
        lifetimes.peak(&sizes).0,
        counted.into_iter().max().unwrap_or(0)
    );
    predicted
}

proptest! {
    #![proptest_config(config(250))]

    #[test]
    fn predicted_is_counted(graph in graphs(), options in settings()) {
        let Some(case) = Case::new(random::graph(&graph), &options, 2) else { return Ok(()) };
        let batch = case.made.batch.err().unwrap_or(2);
        check(&case.model, &case.made, &case.values, batch);
        let saved = check(&case.outcome.ran.model, &case.made, &case.new_values, batch);
        // What is said to be freed is freed, and what keeps a tensor is named.
        let graph = &case.model.graph;
        for decision in case.outcome.decisions.iter().filter(|d| d.rewritten()) {
            let kept = saved.contains(&graph.value(decision.activation).name);
            let keepers = !decision.kept_alive_by.is_empty();
            prop_assert!(keepers == kept, "{kept} {}", decision.message);
        }
    }
}
