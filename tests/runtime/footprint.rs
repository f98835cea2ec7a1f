//! Bytes: predicted are measured, region by region.

use super::graphs::{Graph, files};
use velora_passes::select::Preset;
use velora_runtime::backend::StepContext;
use velora_runtime::cpu::Cpu;
use velora_runtime::plan::{ALIGNMENT, Region};
use velora_runtime::session::optimizer::{Optimizer, Step};

/// AdamW, with its two tensors of state.
pub const OPTIMIZER: Optimizer = Optimizer::AdamW {
    betas: [0.9, 0.999],
    epsilon: 1e-8,
    weight_decay: 0.1,
};

/// The bytes of buffers that lie one behind the other.
pub fn packed(buffers: impl Iterator<Item = usize>) -> usize {
    let (mut start, mut end) = (0usize, 0);
    for bytes in buffers {
        end = start + bytes;
        start = end.next_multiple_of(ALIGNMENT);
    }
    end
}

/// The ratio of the arena to the lower bound; those above the target go to `above`.
fn check(graph: &Graph, cpu: &Cpu, batch: i64, above: &mut Vec<String>) -> f64 {
    let at = format!(
        "{} ({} rewritten), batch {batch}",
        graph.name,
        graph.rewritten.len()
    );
    let inside = graph.signature.trained.is_empty();
    let states = if inside { 0 } else { OPTIMIZER.state().len() };
    let mut ready = graph.prepare(cpu, batch, states);
    ready.executable.run(&StepContext::default(), None).unwrap();
    let step = Step {
        number: 1,
        learning_rate: 1e-3,
        gradient_scale: 1.0,
    };
    ready.executable.update(&OPTIMIZER, &step).unwrap();

    let plan = ready.executable.plan();
    for (region, measured) in Region::ALL.into_iter().zip(ready.executable.touched()) {
        assert_eq!(plan.bytes(region), measured, "{at}: {}", region.name());
    }
    // From the graph alone: one gradient and two tensors of state for every trained parameter.
    let trained: Vec<usize> = (graph.signature.trained.iter())
        .map(|parameter| plan.inputs[parameter.input].as_ref().unwrap().ty.bytes())
        .collect();
    assert_eq!(
        plan.bytes(Region::Gradients),
        packed(trained.iter().copied()),
        "{at}"
    );
    if !inside {
        let twice = trained.iter().flat_map(|&bytes| vec![bytes; states]);
        assert_eq!(plan.bytes(Region::Optimizer), packed(twice), "{at}");
    }
    let (start, bytes) = plan.regions[5];
    let arena = plan
        .buffers
        .iter()
        .filter(|buffer| buffer.region == Region::Activations);
    let end = arena
        .map(|buffer| buffer.offset + buffer.bytes)
        .max()
        .unwrap();
    assert_eq!(start + bytes, end, "{at}");
    assert_eq!(
        plan.footprint.arena,
        bytes.next_multiple_of(ALIGNMENT),
        "{at}"
    );
    let ratio = plan.footprint.arena as f64 / plan.footprint.lower_bound as f64;
    let target = if graph.is_transformer() { 1.02 } else { 1.05 };
    if ratio > target {
        above.push(format!("{at}: {ratio:.4}, {:?}", plan.footprint));
    }
    ratio
}

#[test]
fn predicted_bytes_are_measured() {
    let cpu = Cpu::new(2).unwrap();
    let (mut worst, mut above) = (1f64, Vec::new());
    for file in files() {
        let original = Graph::read(&file);
        for graph in [original.rewrite(Preset::Freeable, false), original] {
            // Where the file fixes the batch, all are the same.
            for batch in [1, 3, 8] {
                worst = worst.max(check(&graph, &cpu, batch, &mut above));
            }
        }
    }
    assert!(
        above.is_empty(),
        "arenas above the target:\n{}",
        above.join("\n")
    );
    println!("the arena is at most {worst:.4} of the lower bound");
}
