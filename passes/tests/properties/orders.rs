//! Pinned graphs in other orders than the one listed.

use super::{Case, config, graphs, options, settings};
use proptest::prelude::*;
use velora_graph::onnx::schema::{GraphProto, NodeProto};
use velora_passes::select::{Grouping, Init, Preset};
use velora_testgen::interpret::{Precision, run_in};
use velora_testgen::tape::{edges, random_order};
use velora_testgen::{Generated, chain, ledger, random};

fn is_pin(node: &NodeProto) -> bool {
    let mut metadata = node.metadata_props.iter();
    metadata.any(|e| e.key() == "velora.op" && e.value() == "Pin")
}

/// ONNX Runtime's default order: depth first from the nodes that nothing reads, upwards, the highest
/// index first.
fn depth_first(graph: &GraphProto) -> Vec<usize> {
    let nodes = &graph.node;
    let (_, readers) = edges(nodes);
    let mut producers = vec![Vec::new(); nodes.len()];
    for (place, readers) in readers.iter().enumerate() {
        for &reader in readers {
            producers[reader].push(place);
        }
    }
    let mut stack: Vec<(usize, bool)> = (0..nodes.len())
        .filter(|&n| readers[n].is_empty())
        .map(|n| (n, false))
        .collect();
    let mut seen = vec![false; nodes.len()];
    let mut order = Vec::new();
    while let Some((node, leave)) = stack.pop() {
        if leave {
            order.push(node);
        } else if !std::mem::replace(&mut seen[node], true) {
            stack.push((node, true));
            producers[node].sort();
            stack.extend(
                producers[node]
                    .iter()
                    .filter(|&&p| !seen[p])
                    .map(|&p| (p, false)),
            );
        }
    }
    order
}

proptest! {
    #![proptest_config(config(60))]

    #[test]
    fn any_order_gives_the_same_values(graph in graphs(), mut options in settings(), seed: u64) {
        options.pin = true;
        let Some(case) = Case::new(random::graph(&graph), &options, 2) else { return Ok(()) };
        let graph = case.after.graph.as_ref().unwrap();
        let order = random_order(&graph.node, seed);
        let values = run_in(&case.after, &case.inputs, Precision::Single, &order);
        for (name, value) in &case.new_values {
            prop_assert!(value.bits() == values[name].bits(), "{name} changed");
        }
    }
}

/// In ONNX Runtime's order a pinned graph peaks where its schedule does, or little above.
#[test]
fn pins_hold_the_peak_in_a_depth_first_order() {
    type Make = fn() -> Generated;
    let graphs: [(&str, Make); 5] = [
        ("mlp of gelu", || chain::mlp(4, 16, "gelu")),
        ("mlp of norms", || chain::mlp(5, 16, "norm")),
        ("mlp of silu", || chain::mlp(3, 24, "silu")),
        ("one block", || chain::transformer(1, 8, 8)),
        ("three blocks", || chain::transformer(3, 8, 4)),
    ];
    for (name, make) in graphs {
        for inline in [false, true] {
            let peaks = [true, false].map(|pin| {
                let options = options(
                    Grouping::Groups(2),
                    Init::BatchAverage,
                    Preset::Freeable,
                    1.0,
                    inline,
                    pin,
                    0,
                );
                let case = Case::new(make(), &options, 64).unwrap();
                let messages = case.outcome.decisions.iter().map(|d| &d.message);
                assert!(
                    case.outcome.decisions.iter().any(|d| d.rewritten()),
                    "{:?}",
                    messages.collect::<Vec<_>>()
                );
                let graph = case.after.graph.as_ref().unwrap();
                let pins = graph
                    .node
                    .iter()
                    .filter(|n| is_pin(n) && n.op_type() == "Reshape")
                    .count();
                let listed: Vec<usize> = (0..graph.node.len()).collect();
                let scheduled = ledger::peak(graph, &case.new_values, &listed);
                let sorted = ledger::peak(graph, &case.new_values, &depth_first(graph));
                (scheduled, sorted, pins)
            });
            let [(scheduled, pinned, pins), (_, unpinned, _)] = peaks;
            let ratio = pinned as f64 / scheduled as f64;
            eprintln!(
                "{name}, inline {inline}: schedule {scheduled}, pinned {ratio:.3}, unpinned {:.3}, {pins} pins",
                unpinned as f64 / scheduled as f64
            );
            assert!(
                ratio <= 1.05,
                "{name}, inline {inline}: {pinned} bytes, {scheduled} scheduled"
            );
        }
    }
}
