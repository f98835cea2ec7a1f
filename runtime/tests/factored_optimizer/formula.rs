//! The formulas for any kind of numbers, an element at a time, and what they make of a case.

use super::number::Real;
use velora_runtime::random;
use velora_runtime::session::optimizer::{Factor, Optimizer, Step};

/// Momentum's direction and what the parameter follows; without momentum, the gradient.
fn follow<N: Real>(momentum: f64, nesterov: bool, g: N, direction: &mut N) -> N {
    if momentum == 0.0 {
        return g;
    }
    *direction = N::setting(momentum) * *direction + g;
    match nesterov {
        true => g + N::setting(momentum) * *direction,
        false => *direction,
    }
}

/// Adam's means, and the root of the corrected mean square.
fn means<N: Real>(betas: [f64; 2], number: u64, g: N, state: &mut [N; 2]) -> N {
    let [mean, square] = state;
    *mean = mean.toward(g, N::setting(1.0 - betas[0]));
    *square = N::setting(betas[1]) * *square + N::setting(1.0 - betas[1]) * (g * g);
    let correction = 1.0 - betas[1].powf(number as f64);
    square.sqrt() / N::setting(correction.sqrt())
}

fn decayed<N: Real>(g: N, decay: f64, w: N) -> N {
    match decay == 0.0 {
        true => g,
        false => g + N::setting(decay) * w,
    }
}

/// The betas, epsilon, and the decay of AdamW; none for gradient descent.
fn adam(optimizer: &Optimizer) -> Option<([f64; 2], f64, f64)> {
    match *optimizer {
        Optimizer::Sgd { .. } => None,
        Optimizer::Adam { betas, epsilon, .. } => Some((betas, epsilon, 0.0)),
        Optimizer::AdamW {
            betas,
            epsilon,
            weight_decay,
        } => Some((betas, epsilon, weight_decay)),
        // They take no factored gradients.
        Optimizer::GaLore { .. } | Optimizer::Flora { .. } => panic!("{optimizer:?}"),
    }
}

fn sgd(optimizer: &Optimizer) -> (f64, bool, f64) {
    match *optimizer {
        Optimizer::Sgd {
            momentum,
            nesterov,
            weight_decay,
        } => (momentum, nesterov, weight_decay),
        _ => (0.0, false, 0.0),
    }
}

/// The new element of W from its gradient; the state is of W's shape.
fn full<N: Real>(optimizer: &Optimizer, step: &Step, w: N, g: N, state: &mut [N; 2]) -> N {
    let (rate, g) = (step.learning_rate, g * N::exact(step.gradient_scale));
    if let Some((betas, epsilon, decay)) = adam(optimizer) {
        let root = means(betas, step.number, g, state);
        let rate_now = rate / (1.0 - betas[0].powf(step.number as f64));
        let size = root + N::setting(epsilon);
        return w * N::setting(1.0 - rate * decay) + N::setting(-rate_now) * (state[0] / size);
    }
    let (momentum, nesterov, decay) = sgd(optimizer);
    let along = follow(momentum, nesterov, decayed(g, decay, w), &mut state[0]);
    w + N::setting(-rate) * along
}

/// What an element of P and its state give the elements of W, [`apply`]'s last argument.
fn prepare<N: Real>(optimizer: &Optimizer, step: &Step, p: N, state: &mut [N; 2]) -> [N; 2] {
    let p = p * N::exact(step.gradient_scale);
    if let Some((betas, ..)) = adam(optimizer) {
        let root = means(betas, step.number, p, state);
        return [state[0], root];
    }
    let (momentum, nesterov, _) = sgd(optimizer);
    [follow(momentum, nesterov, p, &mut state[0]), p]
}

/// The new element of W from an element of the direction and what belongs to the group.
fn apply<N: Real>(optimizer: &Optimizer, step: &Step, w: N, v: N, [along, root]: [N; 2]) -> N {
    let rate = step.learning_rate;
    if let Some((betas, epsilon, decay)) = adam(optimizer) {
        let rate_now = rate / (1.0 - betas[0].powf(step.number as f64));
        let size = v.abs() * root + N::setting(epsilon);
        return w * N::setting(1.0 - rate * decay) + N::setting(-rate_now) * (v * along / size);
    }
    w + N::setting(-rate) * decayed(v * along, sgd(optimizer).2, w)
}

/// An optimiser, the sizes, and how the tensors lie.
#[derive(Clone, Copy, Debug)]
pub struct Case {
    pub optimizer: Optimizer,
    pub features: usize,
    pub groups: usize,
    pub outputs: usize,
    pub features_last: bool,
    pub shared: bool,
}

impl Case {
    pub fn group_len(&self) -> usize {
        self.features.div_ceil(self.groups)
    }

    /// For each element of W, those of the direction and of P that make its gradient.
    pub fn places(&self) -> Vec<(usize, usize)> {
        let (len, elements) = (self.group_len(), self.features * self.outputs);
        let place = |i: usize| {
            let (d, o) = match self.features_last {
                true => (i % self.features, i / self.features),
                false => (i / self.outputs, i % self.outputs),
            };
            let (group, within) = (d / len, d % len);
            let v = if self.shared { within } else { d };
            let p = match self.features_last {
                true => o * self.groups + group,
                false => group * self.outputs + o,
            };
            (v, p)
        };
        (0..elements).map(place).collect()
    }

    pub fn step(&self, number: u64) -> Step {
        Step {
            number,
            learning_rate: 0.1,
            gradient_scale: 0.7,
        }
    }

    /// W before the first step.
    pub fn start(&self) -> Vec<f32> {
        let elements = (self.features * self.outputs) as u64;
        (0..elements)
            .map(|i| random::normal(5, 1, i) as f32)
            .collect()
    }

    /// A direction of no particular norm; an element is zero, and one so small that Adam's epsilon, 1e-8,
    /// is as large as what is added to it.
    pub fn direction(&self) -> Vec<f32> {
        let len = self.group_len() * if self.shared { 1 } else { self.groups };
        let element = |i| match i % 7 {
            3 => 0.0,
            1 => 1e-8 * random::normal(5, 2, i) as f32,
            _ => random::normal(5, 2, i) as f32,
        };
        (0..len as u64).map(element).collect()
    }

    /// P of a step; some elements are always so small that their squares are below the normal numbers.
    pub fn gradient(&self, number: u64) -> Vec<f32> {
        let len = (self.groups * self.outputs) as u64;
        let element = |i| {
            let p = random::normal(5, 3, number * len + i) as f32;
            if i % 5 == 4 { 1e-20 * p } else { p }
        };
        (0..len).map(element).collect()
    }

    pub fn factor<'a>(&self, direction: &'a [f32]) -> Factor<'a> {
        Factor {
            direction,
            groups: self.groups,
            features: self.features,
            outputs: self.outputs,
            features_last: self.features_last,
        }
    }
}

/// A weight and its state after some steps, and the largest that each element ever was.
#[derive(Clone, Debug)]
pub struct Outcome<N> {
    pub weight: Vec<N>,
    pub state: Vec<[N; 2]>,
    pub weight_extent: Vec<f64>,
    pub state_extent: Vec<[f64; 2]>,
}

impl<N: Real> Outcome<N> {
    fn new(case: &Case, states: usize) -> Self {
        let weight: Vec<N> = case.start().into_iter().map(N::exact).collect();
        Outcome {
            weight_extent: weight.iter().map(|w| w.value().abs()).collect(),
            weight,
            state: vec![[N::exact(0.0); 2]; states],
            state_extent: vec![[0.0; 2]; states],
        }
    }

    fn extend(&mut self) {
        for (extent, w) in self.weight_extent.iter_mut().zip(&self.weight) {
            *extent = extent.max(w.value().abs());
        }
        for (extents, state) in self.state_extent.iter_mut().zip(&self.state) {
            for (extent, x) in extents.iter_mut().zip(state) {
                *extent = extent.max(x.value().abs());
            }
        }
    }
}

/// Some steps with the expanded gradient, and with the factored one.
pub fn evaluate<N: Real>(case: &Case, steps: u64) -> (Outcome<N>, Outcome<N>) {
    let (places, direction) = (case.places(), case.direction());
    let mut expanded = Outcome::new(case, places.len());
    let mut factored = Outcome::new(case, case.groups * case.outputs);
    for number in 1..=steps {
        let (step, gradient) = (case.step(number), case.gradient(number));
        for (i, &(v, p)) in places.iter().enumerate() {
            let g = N::exact(direction[v]) * N::exact(gradient[p]);
            let state = &mut expanded.state[i];
            expanded.weight[i] = full(&case.optimizer, &step, expanded.weight[i], g, state);
        }
        let states = factored.state.iter_mut();
        let prepared = states.zip(&gradient);
        let prepared: Vec<[N; 2]> = prepared
            .map(|(state, &p)| prepare(&case.optimizer, &step, N::exact(p), state))
            .collect();
        for (w, &(v, p)) in factored.weight.iter_mut().zip(&places) {
            let v = N::exact(direction[v]);
            *w = apply(&case.optimizer, &step, *w, v, prepared[p]);
        }
        expanded.extend();
        factored.extend();
    }
    (expanded, factored)
}
