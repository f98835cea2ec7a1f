//! From the analyses to a [`Report`].

use super::{Amount, Decision, KeptAlive, Kind, Layer, Reader, Report, Saved, Totals};
use crate::cli::Init;
use crate::settings::Settings;
use clap::ValueEnum;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use velora_graph::analysis::partition::{Half, Partition};
use velora_graph::analysis::sites::{Site, Sites};
use velora_graph::dim::Dim;
use velora_graph::ir::{Graph, ValueId};
use velora_graph::shapes::Shapes;
use velora_graph::text::element_type_name;
use velora_passes::compress;

/// What a report is made of.
#[derive(Clone, Copy, Debug)]
pub struct Analyses<'a> {
    /// The graph before the rewrite.
    pub graph: &'a Graph,
    /// Its shapes.
    pub shapes: &'a Shapes,
    /// Its halves.
    pub partition: &'a Partition,
    /// Its sites.
    pub sites: &'a Sites,
    /// What becomes of each site, in the order of the sites.
    pub decisions: &'a [compress::Decision],
    /// The settings in force.
    pub settings: &'a Settings,
}

/// The report of a graph; `model` is how the user named it.
///
/// No peak is known yet, and views of a saved tensor that backward reads count as tensors of their own.
pub fn report(model: &str, sizes: &BTreeMap<Arc<str>, i64>, found: &Analyses<'_>) -> Report {
    let layers: Vec<Layer> = found.decisions.iter().map(|d| layer(found, d)).collect();
    let saved = found.partition.saved(found.graph);
    let saved: Vec<Saved> = saved.into_iter().map(|v| saved_tensor(found, v)).collect();
    Report {
        tool_version: env!("CARGO_PKG_VERSION").to_owned(),
        model: model.to_owned(),
        dims: (sizes.iter())
            .map(|(name, &size)| (name.to_string(), size))
            .collect(),
        groups_default: found.settings.defaults().grouping.groups(),
        totals: totals(found, &layers, &saved),
        layers,
        saved,
    }
}

fn totals(found: &Analyses<'_>, layers: &[Layer], saved: &[Saved]) -> Totals {
    let zero = || Amount::from(0);
    let before = saved.iter().fold(zero(), |sum, s| &sum + &s.bytes);
    let mut after = before.clone();
    let mut freed = BTreeSet::new();
    for layer in layers.iter().filter(|l| l.decision == Decision::Rewritten) {
        if freed.insert(&layer.activation) {
            after = &after - &layer.freed_bytes;
        }
    }
    let (mut flops_before, mut flops_after) = (zero(), zero());
    for decision in found.decisions {
        let full = flops(found, &decision.site, decision.site.features);
        let now = match decision.groups {
            Some(groups) => flops(found, &decision.site, groups),
            None => full.clone(),
        };
        flops_before = &flops_before + &full;
        flops_after = &flops_after + &now;
    }
    Totals {
        saved_bytes_before: before,
        saved_bytes_after: after,
        peak_bytes_before: Amount::default(),
        peak_bytes_after: Amount::default(),
        weight_grad_flops_before: flops_before,
        weight_grad_flops_after: flops_after,
        sites: layers.len(),
        sites_rewritten: (layers.iter())
            .filter(|l| l.decision == Decision::Rewritten)
            .count(),
    }
}

/// N, the tokens of a site.
fn tokens(found: &Analyses<'_>, site: &Site) -> Option<Dim> {
    let elements = found.shapes.of(site.activation).elements()?;
    elements.exact_div(&Dim::from(site.features))
}

/// 2·N·width·O.
fn flops(found: &Analyses<'_>, site: &Site, width: i64) -> Amount {
    let factors = Dim::from(2) * Dim::from(width) * Dim::from(site.outputs);
    Amount::from(tokens(found, site).map(|n| n * factors))
}

fn layer(found: &Analyses<'_>, decision: &compress::Decision) -> Layer {
    let graph = found.graph;
    let site = &decision.site;
    let kind = found.shapes.of(site.activation);
    let parameter = &graph.value(site.parameter).name;
    let settings = found.settings.layer(parameter);
    let before = Amount::from(found.shapes.bytes(site.activation));
    let sizes = decision
        .groups
        .map(|g| (g, compress::sub_token_size(site.features, g)));
    let after = match sizes {
        Some((groups, size)) => compressed(found, site, groups, size, settings.init),
        None => before.clone(),
    };
    let keepers = found.sites.keepers.get(&site.activation);
    Layer {
        param: parameter.clone(),
        kind: Kind::Linear,
        node: graph.node(site.node).label(graph),
        activation: graph.value(site.activation).name.clone(),
        shape: kind.shape.clone(),
        dtype: dtype(found, site.activation),
        features_outputs: Some((site.features, site.outputs)),
        decision: match sizes {
            Some(_) => Decision::Rewritten,
            None => Decision::Skipped,
        },
        reason: decision.reason.to_owned(),
        message: decision.message.clone(),
        groups: sizes.map(|(groups, _)| groups),
        sub_token_size: sizes.map(|(_, size)| size),
        init: sizes.and_then(|_| {
            settings
                .init
                .to_possible_value()
                .map(|v| v.get_name().to_owned())
        }),
        freed_bytes: match sizes {
            Some(_) => &before - &after,
            None => Amount::from(0),
        },
        saved_bytes_before: before,
        saved_bytes_after: after,
        kept_alive_by: keepers
            .into_iter()
            .flatten()
            .map(|keeper| KeptAlive {
                node: keeper
                    .node
                    .map_or(String::new(), |n| graph.node(n).label(graph)),
                op: keeper
                    .node
                    .map_or(String::new(), |n| graph.node(n).op().to_owned()),
                why: keeper.why.to_owned(),
            })
            .collect(),
    }
}

/// Bytes of z, and of v where it is computed in the graph rather than a constant.
fn compressed(found: &Analyses<'_>, site: &Site, groups: i64, size: i64, init: Init) -> Amount {
    let bits = found
        .shapes
        .of(site.activation)
        .data_type
        .and_then(|t| t.bits());
    let width = bits.map(|bits| Dim::from(bits / 8));
    let direction = match init {
        Init::BatchAverage => Dim::from(size),
        Init::Random | Init::None => Dim::from(0),
    };
    let elements = tokens(found, site).map(|n| n * Dim::from(groups) + direction);
    Amount::from(
        elements
            .zip(width)
            .map(|(elements, width)| elements * width),
    )
}

fn saved_tensor(found: &Analyses<'_>, value: ValueId) -> Saved {
    let graph = found.graph;
    let backward = |u: &&velora_graph::ir::Use| found.partition.half(u.node) == Half::Backward;
    let mut readers: Vec<_> = graph.value(value).users.iter().filter(backward).collect();
    readers.dedup_by_key(|u| u.node);
    let readers = readers.into_iter().map(|u| Reader {
        node: graph.node(u.node).label(graph),
        op: graph.node(u.node).op().to_owned(),
    });
    Saved {
        tensor: graph.value(value).name.clone(),
        shape: found.shapes.of(value).shape.clone(),
        dtype: dtype(found, value),
        bytes: Amount::from(found.shapes.bytes(value)),
        readers: readers.collect(),
        rewritable: found.sites.keepers.get(&value).is_some_and(Vec::is_empty),
    }
}

fn dtype(found: &Analyses<'_>, value: ValueId) -> Option<String> {
    let kind = found.shapes.of(value).data_type?;
    element_type_name(kind.0).map(str::to_owned)
}

/// Two layers with an open batch, one of them rewritten, for the tests of the renderers.
#[cfg(test)]
pub fn example() -> Report {
    let amount = |text: &str| Amount::from(Dim::parse(text));
    let shape = || Some(vec![Dim::symbol("batch"), Dim::from(64)]);
    let float = || Some("float".to_owned());
    let layer = |param: &str, activation: &str| Layer {
        param: param.to_owned(),
        kind: Kind::Linear,
        node: format!("{param}_grad"),
        activation: activation.to_owned(),
        shape: shape(),
        dtype: float(),
        features_outputs: Some((64, 8)),
        decision: Decision::Rewritten,
        reason: "rewritten".to_owned(),
        message: "16 groups of 4".to_owned(),
        groups: Some(16),
        sub_token_size: Some(4),
        init: Some("random".to_owned()),
        saved_bytes_before: amount("256*batch"),
        saved_bytes_after: amount("64*batch"),
        freed_bytes: amount("192*batch"),
        kept_alive_by: vec![],
    };
    let kept = Layer {
        decision: Decision::Skipped,
        reason: "kept-alive".to_owned(),
        message: "kept alive by relu_grad (Mul)".to_owned(),
        groups: None,
        sub_token_size: None,
        init: None,
        saved_bytes_after: amount("256*batch"),
        freed_bytes: Amount::from(0),
        kept_alive_by: vec![KeptAlive {
            node: "relu_grad".to_owned(),
            op: "Mul".to_owned(),
            why: "it reads the values in backward".to_owned(),
        }],
        ..layer("b.weight", "relu")
    };
    let reader = |node: &str, op: &str| Reader {
        node: node.to_owned(),
        op: op.to_owned(),
    };
    let saved = |tensor: &str, readers, rewritable| Saved {
        tensor: tensor.to_owned(),
        shape: shape(),
        dtype: float(),
        bytes: amount("256*batch"),
        readers,
        rewritable,
    };
    Report {
        tool_version: "0.0.0".to_owned(),
        model: "example.onnx".to_owned(),
        dims: BTreeMap::new(),
        groups_default: Some(16),
        totals: Totals {
            saved_bytes_before: amount("512*batch"),
            saved_bytes_after: amount("320*batch"),
            peak_bytes_before: Amount::default(),
            peak_bytes_after: Amount::default(),
            weight_grad_flops_before: amount("2048*batch"),
            weight_grad_flops_after: amount("1280*batch"),
            sites: 2,
            sites_rewritten: 1,
        },
        layers: vec![layer("a.weight", "gelu"), kept],
        saved: vec![
            saved("gelu", vec![reader("a.weight_grad", "MatMul")], true),
            saved(
                "relu",
                vec![
                    reader("relu_grad", "Mul"),
                    reader("b.weight_grad", "MatMul"),
                ],
                false,
            ),
        ],
    }
}
