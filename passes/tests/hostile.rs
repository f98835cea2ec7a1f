//! Settings and graphs that nobody means: an error or a result, never a panic, and in time that grows
//! with the graph.
#![allow(clippy::unwrap_used, missing_docs)]

use std::time::Instant;
use velora_graph::analysis::Settings;
use velora_graph::ir::Model;
use velora_graph::onnx::schema::{ModelProto, tensor_shape_proto::dimension, type_proto};
use velora_graph::verify::verify_model;
use velora_passes::manager::Checks;
use velora_passes::pipeline::{JobError, Options, Outcome, optimise};
use velora_passes::select::{Grouping, Selection};
use velora_testgen::{Choices, Generated, Tape, chain, random};

fn options(grouping: Grouping) -> Options {
    Options {
        settings: Settings::default(),
        selection: Selection::freeable(grouping),
        inline: false,
        hoist: true,
        recompute: None,
        pin: true,
        adapter: None,
        checks: Checks {
            verify_each: true,
            keep_after: None,
        },
    }
}

fn rewrite(model: &ModelProto, options: &Options) -> Result<Outcome, JobError> {
    optimise(&Model::from_proto(model.clone()).unwrap(), options)
}

#[test]
fn groups_and_scales_that_no_layer_can_have() {
    let model = chain::mlp(3, 8, "gelu").model;
    for (grouping, scale) in [
        (Grouping::Groups(0), 1.0),
        (Grouping::Groups(i64::MIN), 1.0),
        (Grouping::SubTokenSize(0), 1.0),
        (Grouping::SubTokenSize(-1), 1.0),
        (Grouping::Groups(2), f64::NAN),
        (Grouping::Groups(2), f64::NEG_INFINITY),
        (Grouping::Groups(2), 1e300),
    ] {
        let mut options = options(grouping);
        options.selection.defaults.scale = scale;
        let error = rewrite(&model, &options).unwrap_err();
        assert!(matches!(error, JobError::Select(_)), "{error}");
    }
    for grouping in [Grouping::Groups(i64::MAX), Grouping::SubTokenSize(i64::MAX)] {
        rewrite(&model, &options(grouping)).unwrap();
    }
}

/// Sizes of which the products do not fit 64 bits.
#[test]
fn sizes_at_the_end_of_the_numbers() {
    for huge in [1i64 << 31, 1 << 40, 1 << 62, i64::MAX] {
        let mut model = chain::mlp(3, 8, "gelu").model;
        let graph = model.graph.as_mut().unwrap();
        let infos = graph.input.iter_mut().chain(&mut graph.output);
        for info in infos {
            let Some(type_proto::Value::TensorType(tensor)) =
                info.r#type.as_mut().and_then(|t| t.value.as_mut())
            else {
                continue;
            };
            for dim in tensor.shape.iter_mut().flat_map(|s| &mut s.dim) {
                if dim.value == Some(dimension::Value::DimValue(8)) {
                    dim.value = Some(dimension::Value::DimValue(huge));
                }
            }
        }
        for groups in [1, 3, huge - 1] {
            // Refused or not, it comes back.
            let _ = rewrite(&model, &options(Grouping::Groups(groups)));
        }
    }
}

#[test]
fn names_of_any_characters() {
    for (index, prefix) in [
        "",
        "velora.",
        "\u{202e}\u{0}",
        "a\nb\t\"",
        "x".repeat(5000).leak(),
    ]
    .into_iter()
    .enumerate()
    {
        let mut tape = Tape::new(Choices::default());
        tape.prefix = prefix;
        let layer =
            |tape: &mut Tape, name: &str| tape.linear_parameters(name, (8, 8), false, true, false);
        let x = tape.input(
            "x",
            &[
                velora_testgen::tape::batch(1),
                velora_testgen::tape::fixed(8),
            ],
        );
        let first = layer(&mut tape, "velora.z");
        let h = tape.linear(&x, &first);
        let h = tape.activation("gelu", &h, "act");
        let second = layer(&mut tape, "velora.pin");
        let h = tape.linear(&h, &second);
        let loss = tape.loss(0, &h);
        let made: Generated = tape.finish(
            &loss,
            |tape, parameter, gradient| {
                let mut out = tape.like("Identity", &[gradient]);
                out.name = format!("{}.grad", parameter.name);
                tape.last_node().output = vec![out.name.clone()];
                out
            },
            None,
        );
        let outcome = rewrite(&made.model, &options(Grouping::Groups(2))).unwrap();
        assert_eq!(
            outcome.decisions.iter().filter(|d| d.rewritten()).count(),
            1,
            "{index}"
        );
        verify_model(&outcome.ran.model.to_proto()).unwrap();
    }
}

/// Ten times the nodes may take ten times the time, and in a busy machine somewhat more, but not a
/// hundred times. Element-wise chains and products of weights, as deep as long.
#[test]
fn time_grows_with_the_graph() {
    let step = |layers: usize| {
        let model = chain::mlp(layers, 8, "tanh").model;
        let start = Instant::now();
        let mut options = options(Grouping::Groups(2));
        options.checks.verify_each = false;
        options.selection.preset = velora_passes::select::Preset::All;
        rewrite(&model, &options).unwrap();
        start.elapsed().as_secs_f64()
    };
    step(100);
    let (few, many) = (step(300), step(3000));
    assert!(many < 50.0 * few, "{few} s, {many} s");
}

/// A small graph from every byte, as a fuzzer begins.
#[test]
fn graphs_of_one_byte_each() {
    for byte in 0..=u8::MAX {
        let made = random::graph(&[byte; 40]);
        if !made.gradients.is_empty() {
            rewrite(&made.model, &options(Grouping::Groups(3))).unwrap();
        }
    }
}
