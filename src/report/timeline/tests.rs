//! The timeline says what the totals say, for real graphs of both dialects, before and after a rewrite.

#![allow(clippy::unwrap_used)]

use super::{Category, Course, plot};
use crate::io::Input;
use crate::report::build::{Opened, Sides, report};
use crate::report::{Amount, Layer, Report, Style, View};
use crate::settings::inspection;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use velora_graph::analysis::lifetimes::{Lifetimes, Sizes};
use velora_graph::analysis::{Analyses, Settings};
use velora_graph::ir::Model;
use velora_passes::manager::Checks;
use velora_passes::pipeline::{ASSUMED_SIZE, Options, Outcome, optimise};
use velora_passes::schedule::schedule;
use velora_passes::select::Grouping;

type Given = BTreeMap<Arc<str>, i64>;

struct Case {
    model: Model,
    outcome: Outcome,
    after: Analyses,
    settings: Settings,
    report: Report,
}

fn case(file: &str, given: &[(&str, i64)]) -> Case {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("models")
        .join(file);
    let model = Model::from_proto(Input::read(&path, false).unwrap().model).unwrap();
    let settings = Settings {
        sizes: given
            .iter()
            .map(|&(name, size)| (Arc::from(name), size))
            .collect(),
        ..Settings::default()
    };
    let options = Options {
        settings: settings.clone(),
        selection: inspection(Grouping::Groups(8)),
        inline: false,
        hoist: true,
        recompute: None,
        pin: true,
        adapter: None,
        checks: Checks::default(),
    };
    let outcome = optimise(&model, &options).unwrap();
    let after = Analyses::new(&outcome.ran.model, &settings).unwrap();
    let report = {
        let sides = Sides::new(&model, &outcome, &after, &options.selection);
        let open = Opened::new(&sides, &settings.hints).unwrap();
        report(file, &settings.sizes, &sides, Some(&open)).unwrap()
    };
    Case {
        model,
        outcome,
        after,
        settings,
        report,
    }
}

fn cases() -> Vec<Case> {
    vec![
        case("aot/mlp.onnx", &[]),
        case("aot/mlp.onnx", &[("batch", 1)]),
        case("aot/llama_tiny.onnx", &[("batch", 3), ("seq", 17)]),
        case("aot/digits_sgd.onnx", &[("batch", 48)]),
        case("aot/vit_tiny_lora.onnx", &[]),
        case("aot/vit_tiny_probe.onnx", &[]),
        case("ort/digits_vit.onnx", &[("batch", 5)]),
        case("ort/llama_tiny_lora.onnx", &[]),
        case("ort/cnn_bn.onnx", &[("batch", 2)]),
        case("ort/lstm.onnx", &[]),
    ]
}

fn sum(course: &Course, wanted: &[Category]) -> i64 {
    let buffers = course.buffers.iter().map(|buffer| &buffer.tensor);
    let wanted = buffers.filter(|tensor| wanted.contains(&tensor.category));
    wanted.map(|tensor| tensor.counted.unwrap()).sum()
}

fn at(amount: &Amount, given: &Given) -> i64 {
    amount.at_sizes(given).unwrap()
}

#[test]
fn courses_add_up_to_the_totals() {
    let mut rewritten = 0;
    for case in cases() {
        let given = &case.settings.sizes;
        let (totals, name) = (&case.report.totals, &case.report.model);
        let timeline = case.report.timeline.as_ref().unwrap();
        let changed = totals.sites_rewritten > 0 || !case.report.hoisted.is_empty();
        assert_eq!(timeline.after.is_some(), changed, "{name}");
        rewritten += usize::from(changed);
        let after = timeline.after.as_ref().unwrap_or(&timeline.before);
        // Layers that share a tensor repeat its bytes.
        let of_layers = |bytes: &dyn Fn(&Layer) -> i64| -> i64 {
            let layers = case.report.layers.iter();
            let each: BTreeMap<&str, i64> = layers.map(|l| (&*l.activation, bytes(l))).collect();
            each.into_values().sum()
        };
        let linear = [Category::SavedLinear];
        let before = of_layers(&|layer| at(&layer.saved_bytes_before, given));
        assert_eq!(sum(&timeline.before, &linear), before, "{name}");
        let left = of_layers(&|layer| at(&layer.saved_bytes_after, given));
        assert_eq!(sum(after, &linear), left, "{name}");
        for (course, peak, saved, held) in [
            (
                &timeline.before,
                &totals.peak_bytes_before,
                &totals.saved_bytes_before,
                &totals.held_before,
            ),
            (
                after,
                &totals.peak_bytes_after,
                &totals.saved_bytes_after,
                &totals.held_after,
            ),
        ] {
            assert_eq!(course.peak().0, at(peak, given), "{name}");
            let kept = [Category::SavedLinear, Category::SavedOther];
            assert_eq!(sum(course, &kept), at(saved, given), "{name}");
            let trained = course.held.iter().filter(|held| held.trained);
            let parameters: i64 = trained.map(|held| held.tensor.counted.unwrap()).sum();
            assert_eq!(parameters, at(&held.parameters, given), "{name}");
            if !case.outcome.before.roles.gradients.is_empty() && parameters > 0 {
                let gradients = sum(course, &[Category::Gradients]);
                assert_eq!(gradients, at(&held.gradients, given), "{name}");
            }
        }
    }
    assert!(rewritten >= 7, "{rewritten}");
}

#[test]
fn live_bytes_are_those_of_the_lifetimes() {
    for case in cases() {
        let timeline = case.report.timeline.as_ref().unwrap();
        let size = |name: &str| {
            case.settings
                .sizes
                .get(name)
                .copied()
                .unwrap_or(ASSUMED_SIZE)
        };
        let lifetimes = |model: &Model, analyses: &Analyses, best: bool| {
            let (graph, buffers) = (&model.graph, &analyses.buffers);
            let sizes = Sizes::new(graph, &analyses.shapes, size);
            let order = match best {
                true => schedule(graph, buffers, &sizes).unwrap().order,
                false => graph.order().to_vec(),
            };
            Lifetimes::new(graph, buffers, &sizes, &order).live(&sizes)
        };
        let sums = |course: &Course| -> Vec<i64> {
            course
                .live()
                .into_iter()
                .map(|shares| shares.iter().sum())
                .collect()
        };
        let before = lifetimes(&case.model, &case.outcome.before, true);
        assert_eq!(sums(&timeline.before), before, "{}", case.report.model);
        if let Some(after) = &timeline.after {
            let expected = lifetimes(&case.outcome.ran.model, &case.after, false);
            assert_eq!(sums(after), expected, "{}", case.report.model);
        }
    }
}

#[test]
fn an_optimiser_inside_is_told_from_what_it_updates() {
    let case = case("aot/digits_sgd.onnx", &[("batch", 48)]);
    let course = &case.report.timeline.as_ref().unwrap().before;
    // Weights and biases of 64-128-128-10.
    let bytes = 4 * (64 * 128 + 128 + 128 * 128 + 128 + 128 * 10 + 10);
    assert_eq!(sum(course, &[Category::Parameters]), bytes);
    assert_eq!(sum(course, &[Category::Optimizer]), bytes);
    let held = |category| -> i64 {
        let held = course
            .held
            .iter()
            .filter(|held| held.tensor.category == category);
        held.map(|held| held.tensor.counted.unwrap()).sum()
    };
    assert_eq!(held(Category::Parameters), bytes);
    assert_eq!(held(Category::Optimizer), bytes);
}

#[test]
fn what_is_written_over_is_one_of_the_candidates() {
    let mut written = 0;
    for case in cases() {
        let timeline = case.report.timeline.as_ref().unwrap();
        for course in [Some(&timeline.before), timeline.after.as_ref()]
            .into_iter()
            .flatten()
        {
            for buffer in &course.buffers {
                let bytes = buffer.tensor.counted;
                let equal = |&&old: &&usize| course.buffers[old].tensor.counted == bytes;
                let first = buffer.over_if_equal.iter().find(equal);
                assert_eq!(buffer.over, first.copied(), "{}", buffer.tensor.tensor);
                written += usize::from(buffer.over.is_some());
            }
        }
    }
    assert!(written > 100, "{written}");
}

#[test]
fn expressions_say_the_same_at_the_sizes_given() {
    let mut open = 0;
    for case in cases() {
        let given = &case.settings.sizes;
        let timeline = case.report.timeline.as_ref().unwrap();
        for course in [Some(&timeline.before), timeline.after.as_ref()]
            .into_iter()
            .flatten()
        {
            for tensor in course.buffers.iter().map(|buffer| &buffer.tensor) {
                let value = tensor.open_bytes.at_sizes(given);
                assert_eq!(value, tensor.counted, "{}", tensor.tensor);
                assert!(!tensor.is_fixed, "{}: {}", case.report.model, tensor.tensor);
                open += usize::from(tensor.open_bytes.symbolic().is_some());
            }
        }
        let opened = case.report.open.as_ref().unwrap();
        for (layer, open) in case.report.layers.iter().zip(&opened.layers) {
            assert_eq!(at(&layer.freed_bytes, given), at(&open.freed_bytes, given));
        }
        for (saved, open) in case.report.saved.iter().zip(&opened.saved) {
            assert_eq!(saved.tensor, open.tensor);
            assert_eq!(at(&saved.bytes, given), at(&open.bytes, given));
        }
        let flops = |report: &Report| at(&report.totals.weight_grad_flops_after, given);
        assert_eq!(flops(&case.report), flops(opened));
    }
    assert!(open > 1000, "{open}");
}

/// What a page does where somebody types other sizes.
fn at_other_sizes(course: &Course, sizes: &Given) -> Course {
    let mut course = course.clone();
    for buffer in &mut course.buffers {
        buffer.tensor.counted = buffer.tensor.open_bytes.at_sizes(sizes);
    }
    let bytes: Vec<Option<i64>> = { course.buffers.iter() }
        .map(|b| b.tensor.counted)
        .collect();
    for (number, buffer) in course.buffers.iter_mut().enumerate() {
        let equal = |&&old: &&usize| bytes[old] == bytes[number];
        buffer.over = buffer.over_if_equal.iter().find(equal).copied();
    }
    course
}

#[test]
fn a_course_at_other_sizes_is_the_lifetimes_at_those_sizes() {
    let mut moved = 0;
    for case in cases() {
        let timeline = case.report.timeline.as_ref().unwrap();
        let given = |name: &str| {
            case.settings
                .sizes
                .get(name)
                .copied()
                .unwrap_or(ASSUMED_SIZE)
        };
        let open = Settings::default();
        for (model, analyses, course, best) in [
            (
                &case.model,
                &case.outcome.before,
                Some(&timeline.before),
                true,
            ),
            (
                &case.outcome.ran.model,
                &case.after,
                timeline.after.as_ref(),
                false,
            ),
        ] {
            let Some(course) = course else { continue };
            let (graph, buffers) = (&model.graph, &analyses.buffers);
            let order = match best {
                true => schedule(graph, buffers, &Sizes::new(graph, &analyses.shapes, given)),
                false => Ok(velora_passes::schedule::Schedule {
                    order: graph.order().to_vec(),
                    peak: 0,
                }),
            };
            let order = order.unwrap().order;
            let shapes = Analyses::new(model, &open).unwrap().shapes;
            for size in [1, 2, 13, 1000] {
                let sizes = { timeline.sizes.keys() }
                    .map(|name| (name.clone(), size))
                    .collect();
                let there = at_other_sizes(course, &sizes);
                let bytes = Sizes::new(graph, &shapes, |_| size);
                let lifetimes = Lifetimes::new(graph, buffers, &bytes, &order);
                let sums = there.live().into_iter().map(|shares| shares.iter().sum());
                let sums: Vec<i64> = sums.collect();
                assert_eq!(
                    sums,
                    lifetimes.live(&bytes),
                    "{} at {size}",
                    case.report.model
                );
                let over = |course: &Course| -> Vec<Option<usize>> {
                    course.buffers.iter().map(|buffer| buffer.over).collect()
                };
                moved += usize::from(over(&there) != over(course));
            }
        }
    }
    // Where a size is 1, a broadcast operand can be as large as the result.
    assert!(moved > 0);
}

#[test]
fn charts_in_text_fit_the_width_and_mark_the_peak() {
    let mut case = case("aot/mlp.onnx", &[("batch", 64)]);
    let timeline = case.report.timeline.as_mut().unwrap();
    let (_, peak) = timeline.before.peak();
    timeline.before.steps[peak].node = "a\u{1b}[2J\nb".to_owned();
    for (unicode, mark, axis) in [(true, '▲', '│'), (false, '^', '|')] {
        for width in [13, 40, 100, 500] {
            let style = Style {
                unicode,
                width: Some(width),
                everything: false,
            };
            let text = plot(timeline, View::Optimized, style);
            assert!(text.contains("a?[2J?b (Mul)"), "{text}");
            assert_eq!(text.is_ascii(), !unicode, "{text}");
            let rows: Vec<&str> = text.lines().filter(|line| line.contains(axis)).collect();
            assert_eq!(rows.len(), 12, "{text}");
            assert!(
                rows.iter().all(|row| row.chars().count() <= width),
                "{text}"
            );
            let marked = text.lines().filter(|line| line.contains(mark));
            assert_eq!(marked.count(), 2, "{text}");
            // The highest row of the higher course has something in it, above the mark.
            let top = rows[0].chars().skip(12).collect::<String>();
            assert!(!top.trim().is_empty(), "{text}");
        }
    }
}
