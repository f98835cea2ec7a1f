//! Gradients that leave the graph as factors: v ⊗ P is the full gradient, and gradients and optimiser state
//! take the bytes of P.

use super::footprint::{OPTIMIZER, packed};
use super::graphs::{Graph, files};
use std::collections::BTreeMap;
use velora_graph::ir::Model;
use velora_graph::text::parse_model;
use velora_passes::select::{Directions, Gradients, Grouping, Init, LayerSettings, Preset};
use velora_runtime::backend::{Executable, StepContext};
use velora_runtime::cpu::Cpu;
use velora_runtime::plan::{Operand, Region};
use velora_runtime::session::optimizer::Step;

const BATCH: i64 = 3;

fn settings(groups: i64, directions: Directions, gradients: Gradients) -> LayerSettings {
    LayerSettings {
        init: Init::Random,
        directions,
        gradients,
        ..LayerSettings::new(Grouping::Groups(groups))
    }
}

fn floats(executable: &dyn Executable, operand: &Operand) -> Vec<f32> {
    let mut bytes = vec![0; operand.ty.bytes()];
    executable.read(operand.buffer, &mut bytes).unwrap();
    let (floats, _) = bytes.as_chunks::<4>();
    floats.iter().map(|b| f32::from_le_bytes(*b)).collect()
}

/// By parameter: the gradient at full size, expanded where it comes as factors; and how many did.
fn gradients(graph: &Graph, cpu: &Cpu) -> (BTreeMap<String, Vec<f32>>, usize) {
    let mut ready = graph.prepare(cpu, BATCH, OPTIMIZER.state().len());
    ready.executable.run(&StepContext::default(), None).unwrap();
    let step = Step {
        number: 1,
        learning_rate: 1e-3,
        gradient_scale: 1.0,
    };
    let plan = ready.executable.plan().clone();
    let mut all = BTreeMap::new();
    let (mut factored, mut held) = (0, Vec::new());
    for ((name, operand), trained) in ready.results.iter().zip(&plan.trained) {
        let gradient = floats(&*ready.executable, operand);
        held.push(operand.ty.bytes());
        let Some(factor) = &trained.factor else {
            all.insert(name.clone(), gradient);
            continue;
        };
        factored += 1;
        let v = floats(&*ready.executable, &factor.direction);
        let (d, o, g) = (factor.features, factor.outputs, factor.groups);
        let m = d.div_ceil(g);
        assert_eq!(gradient.len(), g * o, "{}: {name}", graph.name);
        let mut full = vec![0.0; d * o];
        for feature in 0..d {
            let entry = if v.len() > m {
                v[feature]
            } else {
                v[feature % m]
            };
            for output in 0..o {
                let (at, from) = match factor.features_last {
                    true => (output * d + feature, output * g + feature / m),
                    false => (feature * o + output, feature / m * o + output),
                };
                full[at] = entry * gradient[from];
            }
        }
        all.insert(name.clone(), full);
    }
    assert_eq!(plan.bytes(Region::Gradients), packed(held.iter().copied()));
    let twice = held.iter().flat_map(|&bytes| [bytes; 2]);
    assert_eq!(plan.bytes(Region::Optimizer), packed(twice));
    ready.executable.update(&OPTIMIZER, &step).unwrap();
    for (region, measured) in Region::ALL.into_iter().zip(ready.executable.touched()) {
        assert_eq!(
            plan.bytes(region),
            measured,
            "{}: {}",
            graph.name,
            region.name()
        );
    }
    (all, factored)
}

/// Sums of as many terms as there are tokens, in two orders: a few roundings of the largest entry.
#[test]
fn factors_are_those_of_the_full_gradient() {
    let cpu = Cpu::new(2).unwrap();
    let mut total = 0;
    for file in files() {
        let original = Graph::read(&file);
        if original.signature.trained.is_empty() {
            continue;
        }
        let number = total % 3;
        let (groups, directions) = [
            (4, Directions::Shared),
            (5, Directions::Group),
            (5, Directions::Shared),
        ][number];
        let rewrite = |form| {
            let settings = settings(groups, directions, form);
            original.rewrite_as(Preset::Freeable, number == 1, settings)
        };
        let (full, none) = gradients(&rewrite(Gradients::Full), &cpu);
        let (expanded, factored) = gradients(&rewrite(Gradients::Factored), &cpu);
        assert_eq!(none, 0);
        total += factored;
        for (name, full) in &full {
            let expanded = &expanded[name];
            let largest = full.iter().fold(0f32, |m, e| m.max(e.abs()));
            for (a, b) in full.iter().zip(expanded) {
                let apart = (a - b).abs();
                let bound = 32.0 * f32::EPSILON * largest;
                assert!(apart <= bound, "{}: {name}: {a} and {b}", original.name);
            }
        }
    }
    println!("{total} gradients as factors");
    assert!(std::env::var("GRAPH").is_ok() || total > 200, "{total}");
}

/// For a weight of 4096 × 4096 and 32 groups, gradient and state of AdamW take 1/128 of the full size.
#[test]
fn a_weight_of_4096_by_4096() {
    let text = r#"<ir_version: 8, opset_import: ["" : 18]>
        g (float[batch, 4096] x, float[4096, 4096] w, float[4096] b)
            => (float loss, float[4096, 4096] w_grad, float[4096] b_grad)
            <int64[1] zero = {0}> {
            h = Tanh (x)
            p = MatMul (h, w)
            y = Add (p, b)
            s = Sigmoid (y)
            loss = ReduceSum <keepdims = 0> (s)
            one = Constant <value_float: float = 1.0> ()
            rest = Sub (one, s)
            dy = Mul (s, rest)
            b_grad = ReduceSum <keepdims = 0> (dy, zero)
            ht = Transpose <perm = [1, 0]> (h)
            w_grad = MatMul (ht, dy)
        }"#;
    let model = Model::from_proto(parse_model(text).unwrap()).unwrap();
    let original = Graph::new("4096".to_owned(), model, Vec::new());
    let cpu = Cpu::new(2).unwrap();
    let held = |gradients| {
        let settings = settings(32, Directions::Shared, gradients);
        let graph = original.rewrite_as(Preset::Freeable, false, settings);
        assert_eq!(graph.rewritten, ["w"]);
        let (plan, _) = graph.plan(&cpu, BATCH, OPTIMIZER.state().len());
        let of_b = 3 * 4096 * 4;
        plan.bytes(Region::Gradients) + plan.bytes(Region::Optimizer) - of_b
    };
    let (full, factored) = (held(Gradients::Full), held(Gradients::Factored));
    assert_eq!(full, 3 * 4096 * 4096 * 4);
    assert_eq!(factored, full / 128);
}
