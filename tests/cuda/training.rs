//! Every graph, as it is and rewritten, trains on the device as it does on the CPU.

use super::device;
use super::graphs::{Graph, Ready, files};
use std::collections::BTreeMap;
use velora_graph::shapes::DataType;
use velora_passes::select::Preset;
use velora_runtime::backend::{Backend, StepContext};
use velora_runtime::check::{Check, Precision};
use velora_runtime::cpu::Cpu;
use velora_runtime::plan::{Operand, Plan, Region};
use velora_runtime::random;
use velora_runtime::session::optimizer::{Optimizer, Step};

/// Half a unit in the last place of a 32-bit number.
const ROUNDOFF: f64 = 1.0 / (1 << 24) as f64;

/// Steps of a run.
const STEPS: u64 = 3;

/// Samples of a batch.
const BATCH: i64 = 2;

const OPTIMIZER: Optimizer = Optimizer::AdamW {
    betas: [0.9, 0.999],
    epsilon: 1e-8,
    weight_decay: 0.1,
};

/// What a run leaves.
struct Outcome {
    losses: Vec<f64>,
    /// Of all gradients together; 0 where the graph has its own optimiser.
    norms: Vec<f64>,
    /// Of the first step, by parameter.
    gradients: BTreeMap<String, Vec<f32>>,
    plan: Plan,
    touched: [usize; 6],
}

/// Trains some steps; every parameter is multiplied by up to 1 ± `noise` before. At the end `look` sees the
/// plan.
fn train(graph: &Graph, backend: &dyn Backend, noise: f64, look: impl FnOnce(&Plan)) -> Outcome {
    let inside = graph.signature.trained.is_empty();
    let states = if inside { 0 } else { OPTIMIZER.state().len() };
    let mut ready = graph.prepare(backend, BATCH, states);
    if noise > 0.0 {
        disturb(&mut ready, noise);
    }
    let (mut losses, mut norms) = (Vec::new(), Vec::new());
    let mut gradients = BTreeMap::new();
    for number in 1..=STEPS {
        let context = StepContext {
            seed: 1,
            step: number,
        };
        ready.executable.run(&context, None).unwrap();
        losses.push(f64::from(floats(&ready, &ready.loss)[0]));
        if number == 1 {
            let named = ready.results.iter();
            gradients = named
                .map(|(name, operand)| (name.clone(), floats(&ready, operand)))
                .collect();
        }
        norms.push(ready.executable.gradient_norm().unwrap());
        let step = Step {
            number,
            learning_rate: 1e-3,
            gradient_scale: 1.0,
        };
        ready.executable.update(&OPTIMIZER, &step).unwrap();
    }
    look(ready.executable.plan());
    Outcome {
        losses,
        norms,
        gradients,
        touched: ready.executable.touched(),
        plan: ready.executable.plan().clone(),
    }
}

fn floats(ready: &Ready<'_>, operand: &Operand) -> Vec<f32> {
    let mut bytes = vec![0; operand.ty.bytes()];
    ready.executable.read(operand.buffer, &mut bytes).unwrap();
    bytemuck::pod_collect_to_vec(&bytes)
}

/// Multiplies every floating-point parameter by up to 1 ± noise.
fn disturb(ready: &mut Ready<'_>, noise: f64) {
    let inputs = ready.executable.plan().inputs.clone();
    for (position, operand) in inputs.iter().enumerate() {
        let Some(operand) = operand else { continue };
        let region = ready.executable.plan().buffer(operand.buffer).region;
        if region != Region::Parameters || operand.ty.data_type != DataType::FLOAT {
            continue;
        }
        let mut elements = floats(ready, operand);
        for (index, element) in elements.iter_mut().enumerate() {
            let draw = random::normal(7, position as u64, index as u64).clamp(-1.0, 1.0);
            *element = (f64::from(*element) * (1.0 + noise * draw)) as f32;
        }
        let bytes = bytemuck::cast_slice(&elements);
        ready.executable.write(operand.buffer, bytes).unwrap();
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

/// Compares a run on the device with one on the CPU.
///
/// Both round differently in each of the operations on the way, `depth` of them, which moves a result as
/// relative changes of the parameters by `depth` roundings do, to first order: that is measured by a run on
/// the CPU with parameters disturbed so. Four times as much is allowed, since one such disturbance is a
/// sample, and what the last operations round themselves.
pub fn compare(graph: &Graph, cpu: &Cpu, cuda: &dyn Backend, look: impl FnOnce(&Plan)) {
    let name = format!("{} ({} rewritten)", graph.name, graph.rewritten.len());
    let expected = train(graph, cpu, 0.0, |_| {});
    let found = train(graph, cuda, 0.0, look);
    let noise = depth(&expected.plan) as f64 * ROUNDOFF;
    let disturbed = train(graph, cpu, noise, |_| {});
    type Of = fn(&Outcome) -> &Vec<f64>;
    let series: [(&str, Of); 2] = [
        ("loss", |outcome| &outcome.losses),
        ("norm of the gradients", |outcome| &outcome.norms),
    ];
    for (what, of) in series {
        let runs = of(&expected).iter().zip(of(&found)).zip(of(&disturbed));
        for (number, ((expected, found), disturbed)) in runs.enumerate() {
            let allowed = 4.0 * (disturbed - expected).abs() + noise * expected.abs();
            // Not a number is in no bound.
            assert!(
                (found - expected).abs() <= allowed,
                "{name}: {what} of step {}: {found} on the device, {expected} on the CPU, allowed {allowed:e}",
                number + 1
            );
        }
    }
    assert!(
        found.losses[0] != *found.losses.last().unwrap(),
        "{name}: nothing is trained"
    );
    for (parameter, gradient) in &expected.gradients {
        let between = |other: &Outcome| {
            let pairs = gradient.iter().zip(&other.gradients[parameter]);
            largest(pairs.map(|(a, b)| f64::from((a - b).abs())))
        };
        let size = largest(gradient.iter().map(|g| f64::from(g.abs())));
        let allowed = 4.0 * between(&disturbed) + noise * size;
        let error = between(&found);
        assert!(
            error <= allowed,
            "{name}: gradient of '{parameter}': off by {error:e}, allowed {allowed:e}"
        );
    }
    for (region, touched) in Region::ALL.into_iter().zip(found.touched) {
        assert_eq!(
            found.plan.bytes(region),
            touched,
            "{name}: {}",
            region.name()
        );
    }
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

#[test]
fn every_graph_trains_as_on_the_cpu() {
    let cpu = Cpu::new(2).unwrap();
    for file in files() {
        let original = Graph::read(&file);
        let rewritten = original.rewrite(Preset::Freeable, false);
        assert!(!rewritten.rewritten.is_empty(), "{}", original.name);
        for graph in [original, rewritten] {
            let start = std::time::Instant::now();
            device::with(|device, cuda| {
                compare(&graph, &cpu, cuda, |plan| check_memory(device, plan));
            });
            eprintln!(
                "{} ({} rewritten): {:.1} s",
                graph.name,
                graph.rewritten.len(),
                start.elapsed().as_secs_f64()
            );
        }
    }
}

/// Every operation of a step, on the operands that the device itself had, within the bounds that its
/// rounding and the CPU's have.
#[test]
fn every_operation_is_within_its_bound() {
    let mut largest = (0.0, String::new());
    for file in files() {
        let original = Graph::read(&file);
        let rewritten = original.rewrite(Preset::Freeable, false);
        for graph in [original, rewritten] {
            let name = format!("{} ({} rewritten)", graph.name, graph.rewritten.len());
            let findings = device::with(|_, cuda| {
                let mut ready = graph.prepare(cuda, BATCH, 0);
                let context = StepContext { seed: 1, step: 1 };
                let plan = ready.executable.plan();
                let mut check = Check::new(plan, 2, context, Precision::default()).unwrap();
                let ran = ready.executable.run(&context, Some(&mut check));
                ran.unwrap_or_else(|fault| panic!("{name}: {fault}"));
                check.findings().clone()
            });
            assert!(findings.first.is_none(), "{name}: {findings}");
            assert!(findings.left_out.is_empty(), "{name}: {:?}", findings.left_out);
            let (total, kind) = findings.total();
            assert!(total.elements > 0 && total.unknown == 0, "{name}: {findings}");
            if total.largest > largest.0 {
                largest = (total.largest, format!("{name}, {kind} '{}'", total.node));
            }
        }
    }
    eprintln!("the largest difference is {:.2} of its bound: {}", largest.0, largest.1);
    // Bounds that nothing comes near would bound nothing.
    assert!(largest.0 > 0.01);
}
