//! Every kind of direction and of storage: the bits that they may not touch, and the bytes that they take.

use super::graphs::{Graph, files};
use std::collections::BTreeMap;
use velora_passes::select::{Directions, Grouping, Init, LayerSettings, Preset, Storage};
use velora_runtime::cpu::Cpu;
use velora_runtime::plan::Region;

const BATCH: i64 = 3;

/// Graphs of both dialects, with matrices of two and of three axes.
const GRAPHS: [&str; 4] = [
    "aot/llama_tiny",
    "aot/mlp",
    "ort/llama_tiny",
    "ort/vit_tiny",
];

fn variants() -> Vec<(&'static str, LayerSettings)> {
    let usual = LayerSettings::new(Grouping::Groups(4));
    let padded = LayerSettings::new(Grouping::Groups(5));
    vec![
        (
            "first batch, unfilled",
            LayerSettings {
                init: Init::FirstBatch,
                ..usual
            },
        ),
        (
            "running average",
            LayerSettings {
                init: Init::RunningAverage,
                ..usual
            },
        ),
        (
            "running averages by group",
            LayerSettings {
                init: Init::RunningAverage,
                directions: Directions::Group,
                ..padded
            },
        ),
        (
            "by group",
            LayerSettings {
                directions: Directions::Group,
                ..usual
            },
        ),
        (
            "three directions",
            LayerSettings {
                init: Init::Random,
                rank: 3,
                ..padded
            },
        ),
        (
            "two directions by group",
            LayerSettings {
                init: Init::Uniform,
                rank: 2,
                directions: Directions::Group,
                storage: Storage::BFloat16,
                ..usual
            },
        ),
        (
            "f16",
            LayerSettings {
                storage: Storage::Float16,
                ..usual
            },
        ),
        (
            "int8",
            LayerSettings {
                storage: Storage::Int8,
                ..usual
            },
        ),
        (
            "int8, two directions",
            LayerSettings {
                init: Init::None,
                rank: 2,
                storage: Storage::Int8,
                ..padded
            },
        ),
    ]
}

#[test]
fn variants_leave_all_other_bits_and_take_the_bytes_of_their_plan() {
    let cpu = Cpu::new(2).unwrap();
    let chosen = |file: &&std::path::PathBuf| {
        let file = file.with_extension("");
        GRAPHS.iter().any(|name| file.ends_with(name))
    };
    let (mut same, mut changed) = (0, 0);
    for file in files().iter().filter(chosen) {
        let original = Graph::read(file);
        let before = original.prepare(&cpu, BATCH, 0).run();
        for (name, settings) in variants() {
            let mut forms = Vec::new();
            for inline in [false, true] {
                let at = format!("{}, {name}, inline {inline}", original.name);
                let graph = original.rewrite_as(Preset::Freeable, inline, settings);
                assert!(!graph.rewritten.is_empty(), "{at}");
                let mut ready = graph.prepare(&cpu, BATCH, 0);
                let after = ready.run();
                let plan = ready.executable.plan();
                for (region, measured) in Region::ALL.into_iter().zip(ready.executable.touched()) {
                    assert_eq!(plan.bytes(region), measured, "{at}: {}", region.name());
                }
                assert_eq!(before.loss, after.loss, "{at}");
                let (rewritten, others): (Vec<_>, Vec<_>) = (before.gradients.iter())
                    .partition(|(name, _)| graph.rewritten.contains(*name));
                for (parameter, bits) in others {
                    assert!(*bits == after.gradients[parameter], "{at}: {parameter}");
                    same += 1;
                }
                let other = |(name, bits): &&(&String, &Vec<u8>)| **bits != after.gradients[*name];
                changed += rewritten.iter().filter(other).count();
                forms.push(numbers(&after.gradients, &graph.rewritten));
            }
            // Our kernels and the bodies of standard operators sum in other orders.
            close(&forms[0], &forms[1], &format!("{}, {name}", original.name));
        }
    }
    println!("{same} gradients are the same, {changed} were rewritten");
    assert!(std::env::var("GRAPH").is_ok() || (same > 500 && changed > 500));
}

fn numbers(gradients: &BTreeMap<String, Vec<u8>>, of: &[String]) -> BTreeMap<String, Vec<f32>> {
    let read = |name: &String| {
        let floats = gradients[name].chunks_exact(4);
        let floats = floats.map(|b| f32::from_le_bytes(b.try_into().unwrap()));
        (name.clone(), floats.collect())
    };
    of.iter().map(read).collect()
}

/// Whether gradients agree up to rounding: relative to the largest entry, sums of some hundred terms, and
/// where an entry of z lies between two of its steps, one step of int8, f16 or bf16.
fn close(a: &BTreeMap<String, Vec<f32>>, b: &BTreeMap<String, Vec<f32>>, at: &str) {
    for (name, a) in a {
        let b = &b[name];
        let norm = |v: &mut dyn Iterator<Item = f64>| v.map(|e| e * e).sum::<f64>().sqrt();
        let difference = norm(&mut a.iter().zip(b).map(|(a, b)| f64::from(a - b)));
        let size = norm(&mut a.iter().map(|a| f64::from(*a)));
        assert!(
            difference <= 2e-3 * size,
            "{at}: {name}: {difference} of {size}"
        );
    }
}
