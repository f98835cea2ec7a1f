//! Reports for tests of what shows them.

use super::{Amount, Decision, Held, Hoisted, KeptAlive, Layer, Reader, Report, Saved, Totals};
use crate::measure::fidelity::Fidelity;
use std::collections::BTreeMap;
use velora_graph::dim::Dim;

/// A mask that moved, for the tests of the renderers.
pub fn moved() -> Hoisted {
    let amount = |text: &str| Amount::from(Dim::parse(text));
    Hoisted {
        nodes: vec![Reader {
            node: "mask".to_owned(),
            op: "LessOrEqual".to_owned(),
        }],
        tensor: "mask".to_owned(),
        bytes_before: amount("256*batch"),
        bytes_after: amount("128*batch + 4"),
        unlocked: vec!["relu".to_owned()],
    }
}

/// Two layers with an open batch, one of them rewritten, for the tests of the renderers.
pub fn example() -> Report {
    let amount = |text: &str| Amount::from(Dim::parse(text));
    let shape = || Some(vec![Dim::symbol("batch"), Dim::from(64)]);
    let float = || Some("float".to_owned());
    let layer = |param: &str, activation: &str| Layer {
        param: param.to_owned(),
        kind: velora_graph::analysis::sites::Kind::Linear,
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
        gradient: Some("full"),
        saved_bytes_before: amount("256*batch"),
        saved_bytes_after: amount("64*batch"),
        freed_bytes: amount("192*batch"),
        kept_alive_by: vec![],
        fidelity: None,
    };
    let kept = Layer {
        decision: Decision::Skipped,
        reason: "kept-alive".to_owned(),
        message: "kept alive by relu_grad (Mul)".to_owned(),
        groups: None,
        sub_token_size: None,
        init: None,
        gradient: None,
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
            counted_per_layer_before: amount("512*batch"),
            counted_per_layer_after: amount("256*batch"),
            saved_bytes_before: amount("512*batch"),
            saved_bytes_after: amount("320*batch"),
            peak_bytes_before: Amount::default(),
            peak_bytes_after: Amount::default(),
            weight_grad_flops_before: amount("2048*batch"),
            weight_grad_flops_after: amount("1280*batch"),
            held_before: Held::default(),
            held_after: Held::default(),
            sites: 2,
            sites_rewritten: 1,
            fidelity: None,
        },
        layers: vec![layer("a.weight", "gelu"), kept],
        hoisted: vec![],
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
        plan: None,
        pareto: vec![],
        presets: vec![],
        sweep: vec![],
        batch: None,
        timeline: None,
        open: None,
    }
}

/// The same with what `inspect` can be asked besides.
pub fn measured() -> Report {
    let amount = |text: &str| Amount::from(Dim::parse(text));
    let fidelity = |cosine, norm_ratio| Fidelity {
        cosine: Some(cosine),
        norm_ratio: Some(norm_ratio),
    };
    let mut report = example();
    report.layers[0].fidelity = Some(fidelity(0.75, 0.5));
    report.layers[1].fidelity = Some(Fidelity::default());
    report.totals.fidelity = Some(fidelity(0.875, 0.75));
    report.batch = Some(("data.npz".to_owned(), 32));
    let preset = |preset, sites_rewritten, after: &str, freed: &str| super::Preset {
        preset,
        sites_rewritten,
        saved_bytes_after: amount(after),
        freed_bytes: amount(freed),
        counted_per_layer: amount("256*batch"),
    };
    report.presets = vec![
        preset("freeable", 1, "320*batch", "192*batch"),
        preset("all", 2, "384*batch", "128*batch"),
    ];
    let trial = |groups, after: &str, cosine| super::Trial {
        groups,
        sites_rewritten: 1,
        saved_bytes_after: amount(after),
        fidelity: Some(fidelity(cosine, cosine)),
        layers: vec![],
    };
    report.sweep = vec![trial(4, "272*batch", 0.5), trial(16, "320*batch", 0.875)];
    report
}
