//! Every graph, as it is and rewritten, trains on the device as it does on the CPU.

use super::device;
use super::graphs::{Graph, Ready, files};
use std::collections::BTreeMap;
use std::path::Path;
use std::time::Instant;
use velora_graph::shapes::DataType;
use velora_passes::select::{Gradients, Grouping, Init, LayerSettings, Preset};
use velora_runtime::backend::{Backend, StepContext};
use velora_runtime::check::{Check, Precision};
use velora_runtime::cpu::Cpu;
use velora_runtime::plan::{Operand, Plan, Region};
use velora_runtime::random;
use velora_runtime::session::optimizer::{Optimizer, Step};

/// Half a unit in the last place of a 32-bit number.
const ROUNDOFF: f64 = 1.0 / (1 << 24) as f64;

/// Steps of a run; of one with large parameters.
const STEPS: u64 = 3;
const LARGE_STEPS: u64 = 2;

/// Parameters that take the software GPU long.
const LARGE: usize = 64 << 20;

/// Samples of a batch.
const BATCH: i64 = 2;

const OPTIMIZER: Optimizer = Optimizer::AdamW {
    betas: [0.9, 0.999],
    epsilon: 1e-8,
    weight_decay: 0.1,
};

/// What a step gives, before the optimiser.
struct Outcome {
    loss: f64,
    /// Of all gradients together.
    norm: f64,
    /// By parameter: its gradient, or itself where the graph updates it.
    results: BTreeMap<String, Vec<f32>>,
}

/// Executes a step.
fn execute(ready: &mut Ready<'_>, number: u64) -> Outcome {
    let context = StepContext {
        seed: 1,
        step: number,
    };
    ready.executable.run(&context, None).unwrap();
    let norm = ready.executable.gradient_norm().unwrap();
    let named = ready.results.iter();
    Outcome {
        loss: f64::from(floats(ready, &ready.loss)[0]),
        norm,
        results: named
            .map(|(name, operand)| (name.clone(), floats(ready, operand)))
            .collect(),
    }
}

fn bytes(ready: &Ready<'_>, operand: &Operand) -> Vec<u8> {
    let mut bytes = vec![0; operand.ty.bytes()];
    ready.executable.read(operand.buffer, &mut bytes).unwrap();
    bytes
}

fn floats(ready: &Ready<'_>, operand: &Operand) -> Vec<f32> {
    bytemuck::pod_collect_to_vec(&bytes(ready, operand))
}

/// Parameters, buffers of sums, and other state that stays: the same positions in all plans of a graph.
fn staying(plan: &Plan) -> Vec<Operand> {
    let stays = |operand: &&Operand| {
        let region = plan.buffer(operand.buffer).region;
        matches!(
            region,
            Region::Parameters | Region::Gradients | Region::Optimizer
        )
    };
    plan.inputs
        .iter()
        .flatten()
        .filter(stays)
        .cloned()
        .collect()
}

/// Gives an execution the parameters and other state of another, the floats multiplied by up to 1 ± `noise`.
fn follow(from: &Ready<'_>, to: &mut Ready<'_>, noise: f64) {
    let operands = staying(from.executable.plan());
    let places = staying(to.executable.plan());
    assert_eq!(operands.len(), places.len());
    for (position, (operand, place)) in operands.iter().zip(&places).enumerate() {
        let mut copied = bytes(from, operand);
        if noise > 0.0 && operand.ty.data_type == DataType::FLOAT {
            let mut elements: Vec<f32> = bytemuck::pod_collect_to_vec(&copied);
            for (index, element) in elements.iter_mut().enumerate() {
                let draw = random::normal(7, position as u64, index as u64).clamp(-1.0, 1.0);
                *element = (f64::from(*element) * (1.0 + noise * draw)) as f32;
            }
            copied = bytemuck::cast_slice(&elements).to_vec();
        }
        to.executable.write(place.buffer, &copied).unwrap();
    }
}

/// Lets the device update its parameters, and does the same with the optimiser's formula on what the device
/// had: the bits must be the same, since all of its operations are rounded one by one.
fn update(ready: &mut Ready<'_>, number: u64, name: &str) {
    let step = Step {
        number,
        learning_rate: 1e-3,
        gradient_scale: 0.5,
    };
    let trained = ready.executable.plan().trained.clone();
    let mut expected = Vec::new();
    for trained in &trained {
        let mut parameter = floats(ready, &trained.parameter);
        let gradient = floats(ready, &trained.gradient);
        let mut state: Vec<Vec<f32>> = (trained.state.iter())
            .map(|state| floats(ready, state))
            .collect();
        let mut slices: Vec<&mut [f32]> = state.iter_mut().map(|state| &mut state[..]).collect();
        match &trained.factor {
            None => OPTIMIZER.update(&step, &mut parameter, &gradient, &mut slices),
            Some(factor) => {
                let direction = floats(ready, &factor.direction);
                let factor = factor.with(&direction[..]);
                OPTIMIZER.update_factored(&step, &mut parameter, &factor, &gradient, &mut slices)
            }
        }
        .unwrap();
        expected.push((parameter, state));
    }
    ready.executable.update(&OPTIMIZER, &step).unwrap();
    for (trained, (parameter, state)) in trained.iter().zip(expected) {
        let same = |operand: &Operand, expected: &[f32]| {
            let found = floats(ready, operand);
            let differs =
                (found.iter().zip(expected)).position(|(a, b)| a.to_bits() != b.to_bits());
            assert_eq!(differs, None, "{name}: an update of step {number}");
        };
        same(&trained.parameter, &parameter);
        for (operand, expected) in trained.state.iter().zip(&state) {
            same(operand, expected);
        }
    }
}

/// The most operations that lie one behind the other.
fn depth(plan: &Plan) -> usize {
    let mut depths = vec![0usize; plan.buffers.len()];
    let mut most = 0;
    for step in &plan.steps {
        let before = (step.inputs.iter().flatten()).map(|operand| depths[operand.buffer.index()]);
        let depth = before.max().unwrap_or(0) + 1;
        for output in step.outputs.iter().flatten() {
            depths[output.buffer.index()] = depth;
        }
        most = most.max(depth);
    }
    most
}

fn largest(values: impl Iterator<Item = f64>) -> f64 {
    values.fold(0.0, f64::max)
}

/// Trains some steps on the device.
///
/// The first one is compared, as a whole, with what the CPU makes of the same parameters. Both round
/// differently in each of the operations on the way, `depth` of them, which moves a result as relative changes
/// of the parameters by `depth` roundings do, to first order: that is measured by an execution on the CPU with
/// parameters disturbed so. Four times as much is allowed, since one such disturbance is a sample, and what the
/// last operations round themselves. Later, where a loss near 0 is all rounding, this would compare noise.
///
/// In the first and (of graphs that are not large) the last step, every operation is compared with the CPU's, on the operands that the device
/// itself had, within bounds worked out from them; and each update of the optimiser is the formula's, bit for
/// bit. At the end `look` sees the plan.
pub fn compare(graph: &Graph, cpu: &Cpu, cuda: &dyn Backend, look: impl FnOnce(&Plan)) -> f64 {
    let name = format!("{} ({} rewritten)", graph.name, graph.rewritten.len());
    let inside = graph.signature.trained.is_empty();
    let states = if inside { 0 } else { OPTIMIZER.state().len() };
    let mut device = graph.prepare(cuda, BATCH, states);
    let large = device.executable.plan().bytes(Region::Parameters) > LARGE;
    let steps = if large { LARGE_STEPS } else { STEPS };
    let mut losses = Vec::new();
    let mut largest = 0f64;
    for number in 1..=steps {
        if number == 1 {
            first_step(graph, cpu, &mut device, &name);
        }
        if number == 1 || (number == steps && !large) {
            largest = largest.max(operations(&mut device, number, &name));
        }
        let found = execute(&mut device, number);
        update(&mut device, number, &name);
        losses.push(found.loss);
    }
    let trained = losses.windows(2).all(|pair| pair[0] != pair[1]);
    assert!(trained, "{name}: nothing is trained: {losses:?}");
    let plan = device.executable.plan();
    for (region, touched) in Region::ALL.into_iter().zip(device.executable.touched()) {
        assert_eq!(plan.bytes(region), touched, "{name}: {}", region.name());
    }
    look(plan);
    largest
}

/// Compares a step as a whole; the device then is as it was, but for sums that the graph itself keeps.
fn first_step(graph: &Graph, cpu: &Cpu, device: &mut Ready<'_>, name: &str) {
    let mut exact = graph.prepare(cpu, BATCH, 0);
    let mut disturbed = graph.prepare(cpu, BATCH, 0);
    let noise = depth(exact.executable.plan()) as f64 * ROUNDOFF;
    follow(device, &mut exact, 0.0);
    follow(device, &mut disturbed, noise);
    let expected = execute(&mut exact, 1);
    let moved = execute(&mut disturbed, 1);
    let found = execute(device, 1);
    let close = |what: &str, found: f64, expected: f64, moved: f64| {
        let allowed = 4.0 * (moved - expected).abs() + noise * expected.abs();
        // Not a number is in no bound.
        assert!(
            (found - expected).abs() <= allowed,
            "{name}: {what}: {found} on the device, {expected} on the CPU, allowed {allowed:e}"
        );
    };
    close("loss", found.loss, expected.loss, moved.loss);
    close(
        "norm of the gradients",
        found.norm,
        expected.norm,
        moved.norm,
    );
    let size = |result: &[f32]| largest(result.iter().map(|g| f64::from(g.abs())));
    // A gradient that is 0 but for rounding (that of the bias of keys, which a softmax does not feel).
    let zero = noise * largest(expected.results.values().map(|result| size(result)));
    for (parameter, result) in &expected.results {
        let between = |other: &Outcome| {
            let pairs = result.iter().zip(&other.results[parameter]);
            largest(pairs.map(|(a, b)| f64::from((a - b).abs())))
        };
        let allowed = match size(result) {
            size if size <= zero => zero,
            size => 4.0 * between(&moved) + noise * size,
        };
        let error = between(&found);
        assert!(
            error <= allowed,
            "{name}: gradient of '{parameter}': off by {error:e}, allowed {allowed:e}"
        );
    }
}

/// Executes a step, each operation of which is compared; the largest difference as a part of its bound.
fn operations(device: &mut Ready<'_>, number: u64, name: &str) -> f64 {
    let context = StepContext {
        seed: 1,
        step: number,
    };
    let plan = device.executable.plan();
    let mut check = Check::new(plan, 2, context, Precision::default()).unwrap();
    let ran = device.executable.run(&context, Some(&mut check));
    ran.unwrap_or_else(|fault| panic!("{name}: {fault}"));
    let findings = check.findings();
    assert!(
        findings.first.is_none(),
        "{name}: step {number}: {findings}"
    );
    assert!(
        findings.left_out.is_empty(),
        "{name}: {:?}",
        findings.left_out
    );
    let (total, _) = findings.total();
    assert!(
        total.elements > 0 && total.unknown == 0,
        "{name}: {findings}"
    );
    total.largest
}

/// The block of a plan is what the plan says, and is used up to its last byte.
fn check_memory(device: &device::Device, plan: &Plan) {
    #[cfg(not(feature = "gpu-tests"))]
    {
        let blocks = device.gpu.allocations();
        let block = blocks.iter().max_by_key(|block| block.len).unwrap();
        assert_eq!(block.len, plan.total() as u64);
        assert_eq!(block.high_water, plan.total() as u64);
    }
    #[cfg(feature = "gpu-tests")]
    let _ = (device, plan);
}

/// A graph as it is, rewritten, and with factored gradients, where there is anything to rewrite.
///
/// A large one takes a minute in each form: rewritten from one exporter, as it is from the other, and with `FORMS=all` in
/// the environment both from both. Its layers are those of 256x4, wider.
fn forms(file: &Path) -> Vec<Graph> {
    let original = Graph::read(file);
    let rewritten = original.rewrite(Preset::Freeable, false);
    if original.name.contains("768x4") {
        return if std::env::var("FORMS").is_ok_and(|forms| forms == "all") {
            vec![original, rewritten]
        } else if original.name.starts_with("ort/") {
            vec![original]
        } else {
            vec![rewritten]
        };
    }
    let settings = LayerSettings {
        init: Init::Random,
        gradients: Gradients::Factored,
        ..LayerSettings::new(Grouping::Groups(4))
    };
    let factored = original.rewrite_as(Preset::Freeable, false, settings);
    let mut forms = vec![rewritten, factored];
    forms.retain(|form| !form.rewritten.is_empty());
    forms.insert(0, original);
    forms
}

#[test]
fn every_graph_trains_as_on_the_cpu() {
    let cpu = Cpu::new(2).unwrap();
    let (mut largest, mut rewritten) = (0f64, 0);
    for file in files() {
        for graph in forms(&file) {
            let start = Instant::now();
            let compared = device::with(|device, cuda| {
                compare(&graph, &cpu, cuda, |plan| check_memory(device, plan))
            });
            largest = largest.max(compared);
            rewritten += usize::from(!graph.rewritten.is_empty());
            eprintln!(
                "{} ({} rewritten): {:.1} s, operations differ by at most {compared:.2} of their bounds",
                graph.name,
                graph.rewritten.len(),
                start.elapsed().as_secs_f64()
            );
        }
    }
    // Bounds that nothing comes near would bound nothing.
    assert!(largest > 0.01);
    assert!(rewritten > 0);
}
