//! Layers: forward nodes, and the rule of their gradients.

use crate::tape::{Axis, Contraction, Scale, Tape, V, fixed, float, int, ints};

/// Activation functions.
pub const ACTIVATIONS: [&str; 8] = [
    "relu", "gelu", "tanh", "sigmoid", "silu", "softmax", "norm", "scale",
];

/// A linear layer's parameters.
#[derive(Clone, Debug)]
pub struct Linear {
    /// [D, O], or [O, D] where `transposed`.
    pub weight: V,
    /// Which of the two.
    pub transposed: bool,
    /// Of O entries.
    pub bias: Option<V>,
}

impl Linear {
    /// D and O.
    pub fn sizes(&self) -> (i64, i64) {
        let (a, b) = (self.weight.shape[0].size, self.weight.shape[1].size);
        if self.transposed { (b, a) } else { (a, b) }
    }
}

fn swapped(shape: &[Axis]) -> Vec<Axis> {
    let mut shape = shape.to_vec();
    let rank = shape.len();
    shape.swap(rank - 2, rank - 1);
    shape
}

/// All leading axes as one.
fn rows(shape: &[Axis]) -> Axis {
    let leading = &shape[..shape.len() - 1];
    Axis {
        batch: leading.iter().any(|a| a.batch),
        size: leading.iter().map(|a| a.size).product(),
    }
}

impl Tape {
    /// Parameters of a linear layer.
    pub fn linear_parameters(
        &mut self,
        name: &str,
        sizes: (i64, i64),
        transposed: bool,
        bias: bool,
        frozen: bool,
    ) -> Linear {
        let shape = match transposed {
            false => [fixed(sizes.0), fixed(sizes.1)],
            true => [fixed(sizes.1), fixed(sizes.0)],
        };
        let weight = self.parameter(&format!("{name}.weight"), &shape, frozen);
        let bias = bias.then(|| self.parameter(&format!("{name}.bias"), &[fixed(sizes.1)], frozen));
        Linear {
            weight,
            transposed,
            bias,
        }
    }

    /// The last two axes exchanged, without a rule.
    fn flip(&mut self, x: &V) -> V {
        let shared = self.choices.flag();
        if let Some(known) = self.transposed.get(&x.name).filter(|_| shared) {
            return known.clone();
        }
        let mut perm: Vec<i64> = (0..x.rank() as i64).collect();
        let rank = perm.len();
        perm.swap(rank - 2, rank - 1);
        let y = self.node(
            "Transpose",
            &[x],
            &[ints("perm", &perm)],
            &swapped(&x.shape),
        );
        self.transposed.insert(x.name.clone(), y.clone());
        y
    }

    /// A view, without a rule.
    fn view(&mut self, x: &V, shape: &[Axis]) -> V {
        let mut open = 0;
        let sizes: Vec<i64> = shape
            .iter()
            .map(|a| if a.batch { -1 } else { a.size })
            .collect();
        open += sizes.iter().filter(|&&s| s == -1).count();
        assert!(open <= 1, "more than one open axis");
        if shape.len() == 2 && x.rank() == 3 && self.choices.seldom(4) && shape[1] == x.shape[2] {
            return self.node("Flatten", &[x], &[int("axis", 2)], shape);
        }
        let target = self.integers(&sizes);
        self.raw("Reshape", &[&x.name, &target], &[], shape)
    }

    /// A view.
    pub fn reshape(&mut self, x: &V, shape: &[Axis]) -> V {
        let y = self.view(x, shape);
        let from = x.clone();
        self.rule(&y, &[x], move |tape, dy| {
            let dx = tape.view(&dy, &from.shape);
            tape.contribute(&from, dx);
        });
        y
    }

    /// A view with one more axis, and back, or the value itself under another name.
    pub fn view_and_back(&mut self, x: &V) -> V {
        if self.choices.flag() {
            let y = self.like("Identity", &[x]);
            let from = x.clone();
            self.rule(&y, &[x], move |tape, dy| tape.contribute(&from, dy));
            return y;
        }
        let axes = self.integers(&[1]);
        let mut wide = x.shape.clone();
        wide.insert(1, fixed(1));
        let y = self.raw("Unsqueeze", &[&x.name, &axes], &[], &wide);
        let y = self.raw("Squeeze", &[&y.name, &axes], &[], &x.shape);
        let from = x.clone();
        self.rule(&y, &[x], move |tape, dy| tape.contribute(&from, dy));
        y
    }

    /// The sum over axes.
    pub(crate) fn sum(&mut self, x: &V, axes: &[i64], keep: bool) -> V {
        let gone = |axis: usize| {
            axes.contains(&(axis as i64)) || axes.contains(&(axis as i64 - x.rank() as i64))
        };
        let mut shape = Vec::new();
        for (axis, size) in x.shape.iter().enumerate() {
            match gone(axis) {
                false => shape.push(*size),
                true if keep => shape.push(fixed(1)),
                true => {}
            }
        }
        let axes = self.integers(axes);
        self.raw(
            "ReduceSum",
            &[&x.name, &axes],
            &[int("keepdims", keep.into())],
            &shape,
        )
    }

    /// An elementwise product; `b` may have a last axis of 1, or be a vector.
    pub fn mul(&mut self, a: &V, b: &V) -> V {
        let y = self.like("Mul", &[a, b]);
        let (left, right) = (a.clone(), b.clone());
        self.rule(&y, &[a, b], move |tape, dy| {
            if tape.wants(&left) {
                let da = tape.like("Mul", &[&dy, &right]);
                tape.contribute(&left, da);
            }
            if tape.wants(&right) {
                let product = tape.like("Mul", &[&dy, &left]);
                let db = tape.narrow(product.clone(), &right.shape);
                let parameter = tape.parameters.iter().any(|p| p.name == right.name);
                if parameter && right.rank() < left.rank() {
                    tape.scales.push(Scale {
                        parameter: right.name.clone(),
                        product: product.name,
                        result: db.name.clone(),
                        x: left.name.clone(),
                        dy: dy.name.clone(),
                        features: right.width(),
                    });
                }
                tape.contribute(&right, db);
            }
        });
        y
    }

    /// The sum over what was broadcast.
    pub(crate) fn narrow(&mut self, gradient: V, shape: &[Axis]) -> V {
        if gradient.shape == shape {
            return gradient;
        }
        if shape.len() == gradient.rank() {
            return self.sum(&gradient, &[-1], true);
        }
        let leading: Vec<i64> = (0..gradient.rank() as i64 - shape.len() as i64).collect();
        self.sum(&gradient, &leading, false)
    }

    /// A sum; `b` may be a vector.
    pub fn add(&mut self, a: &V, b: &V) -> V {
        let y = self.like("Add", &[a, b]);
        let (left, right) = (a.clone(), b.clone());
        self.rule(&y, &[a, b], move |tape, dy| {
            if tape.wants(&left) {
                tape.contribute(&left, dy.clone());
            }
            if tape.wants(&right) {
                let db = tape.narrow(dy, &right.shape);
                tape.contribute(&right, db);
            }
        });
        y
    }

    /// A product with a constant.
    pub fn scaled(&mut self, x: &V, factor: f32) -> V {
        let factor = self.number(factor);
        let y = self.like("Mul", &[x, &factor]);
        let from = x.clone();
        self.rule(&y, &[x], move |tape, dy| {
            let dx = tape.like("Mul", &[&dy, &factor]);
            tape.contribute(&from, dx);
        });
        y
    }

    /// A batched product of two activations.
    pub fn matmul(&mut self, a: &V, b: &V) -> V {
        let mut shape = a.shape.clone();
        *shape.last_mut().unwrap() = *b.shape.last().unwrap();
        let y = self.node("MatMul", &[a, b], &[], &shape);
        let (left, right) = (a.clone(), b.clone());
        self.rule(&y, &[a, b], move |tape, dy| {
            if tape.wants(&left) {
                let flipped = tape.flip(&right);
                let da = tape.node("MatMul", &[&dy, &flipped], &[], &left.shape);
                tape.contribute(&left, da);
            }
            if tape.wants(&right) {
                let flipped = tape.flip(&left);
                let db = tape.node("MatMul", &[&flipped, &dy], &[], &right.shape);
                tape.contribute(&right, db);
            }
        });
        y
    }

    /// The last two axes exchanged.
    pub fn transpose(&mut self, x: &V) -> V {
        let y = self.flip(x);
        let from = x.clone();
        self.rule(&y, &[x], move |tape, dy| {
            let dx = tape.flip(&dy);
            tape.contribute(&from, dx);
        });
        y
    }

    /// y = x W + b, in one of the forms that exporters write.
    pub fn linear(&mut self, x: &V, layer: &Linear) -> V {
        let (features, outputs) = layer.sizes();
        assert_eq!(x.width(), features);
        if x.rank() > 2 && self.choices.flag() {
            let flat = self.reshape(x, &[rows(&x.shape), fixed(features)]);
            let y = self.linear(&flat, layer);
            let mut shape = x.shape.clone();
            *shape.last_mut().unwrap() = fixed(outputs);
            return self.reshape(&y, &shape);
        }
        let mut shape = x.shape.clone();
        *shape.last_mut().unwrap() = fixed(outputs);
        let gemm = x.rank() == 2 && self.choices.flag();
        let scale = if gemm && self.choices.seldom(4) {
            0.5
        } else {
            1.0
        };
        let product = if gemm {
            let mut attributes = vec![int("transB", layer.transposed.into())];
            if scale != 1.0 {
                attributes.push(float("alpha", scale));
            }
            let inputs: Vec<&V> = [x, &layer.weight].into_iter().chain(&layer.bias).collect();
            self.node("Gemm", &inputs, &attributes, &shape)
        } else {
            let weight = match layer.transposed {
                true => self.flip(&layer.weight),
                false => layer.weight.clone(),
            };
            self.node("MatMul", &[x, &weight], &[], &shape)
        };
        let (from, of) = (x.clone(), layer.clone());
        let mut inputs = vec![x, &layer.weight];
        if gemm {
            inputs.extend(&layer.bias);
        }
        self.rule(&product, &inputs, move |tape, dy| {
            if tape.wants(&from) {
                let weight = match of.transposed {
                    true => of.weight.clone(),
                    false => tape.flip(&of.weight),
                };
                let dx = if dy.rank() == 2 && tape.choices.flag() {
                    let alpha = float("alpha", scale);
                    tape.node("Gemm", &[&dy, &weight], &[alpha], &from.shape)
                } else {
                    let dx = tape.node("MatMul", &[&dy, &weight], &[], &from.shape);
                    tape.times(dx, scale)
                };
                tape.contribute(&from, dx);
            }
            if let Some(bias) = of.bias.as_ref().filter(|b| gemm && tape.wants(b)) {
                let db = tape.sum(&dy, &[0], false);
                tape.contribute(bias, db);
            }
            if tape.wants(&of.weight) {
                tape.weight_gradient(&from, &dy, &of, scale);
            }
        });
        match &layer.bias {
            Some(bias) if !gemm => self.add(&product, bias),
            _ => product,
        }
    }

    fn times(&mut self, x: V, factor: f32) -> V {
        if factor == 1.0 {
            return x;
        }
        let factor = self.number(factor);
        self.like("Mul", &[&x, &factor])
    }

    /// dW in one of the forms that exporters write.
    fn weight_gradient(&mut self, x: &V, dy: &V, layer: &Linear, scale: f32) {
        let (features, outputs) = layer.sizes();
        let turned = self.choices.flag();
        let shape = match turned {
            false => [fixed(features), fixed(outputs)],
            true => [fixed(outputs), fixed(features)],
        };
        let mut note = Contraction {
            parameter: layer.weight.name.clone(),
            product: String::new(),
            result: String::new(),
            x: x.name.clone(),
            dy: dy.name.clone(),
            features,
            outputs,
            transposed: turned,
            scale: 1.0,
            added: None,
        };
        let result = if x.rank() > 2 && self.choices.flag() {
            let (left, right) = if turned { (dy, x) } else { (x, dy) };
            let flipped = self.flip(left);
            let shape = [x.shape[0], shape[0], shape[1]];
            let products = self.node("MatMul", &[&flipped, right], &[], &shape);
            note.product.clone_from(&products.name);
            self.sum(&products, &[0], false)
        } else {
            let (mut x, mut dy) = (x.clone(), dy.clone());
            if x.rank() > 2 {
                let tokens = rows(&x.shape);
                x = self.view(&x, &[tokens, fixed(features)]);
                dy = self.view(&dy, &[tokens, fixed(outputs)]);
            }
            let product = self.product(&x, &dy, turned, &shape, scale, &mut note);
            note.product.clone_from(&product.name);
            product
        };
        note.result.clone_from(&result.name);
        let missing = scale / note.scale;
        self.contractions.push(note);
        let result = self.times(result, missing);
        let result = match turned == layer.transposed {
            true => result,
            false => self.flip(&result),
        };
        self.contribute(&layer.weight, result);
    }

    fn product(
        &mut self,
        x: &V,
        dy: &V,
        turned: bool,
        shape: &[Axis],
        scale: f32,
        note: &mut Contraction,
    ) -> V {
        let (left, right) = if turned { (dy, x) } else { (x, dy) };
        match self.choices.below(6) {
            0 => {
                let left = self.flip(left);
                self.node("MatMul", &[&left, right], &[], shape)
            }
            1 => {
                note.scale = scale;
                let attributes = [int("transA", 1), float("alpha", scale)];
                self.node("Gemm", &[left, right], &attributes, shape)
            }
            2 => {
                note.scale = scale;
                let attributes = [int("transA", 1), float("alpha", scale)];
                self.node(
                    "com.microsoft:FusedMatMul",
                    &[left, right],
                    &attributes,
                    shape,
                )
            }
            3 => {
                let right = self.flip(right);
                let attributes = [int("transA", 1), int("transB", 1)];
                self.node("Gemm", &[left, &right], &attributes, shape)
            }
            4 => {
                // dY with its tokens last, and not at once behind the transposition.
                let flipped = self.flip(dy);
                let flipped = self.like("Neg", &[&flipped]);
                let flipped = self.like("Neg", &[&flipped]);
                if turned {
                    return self.node("MatMul", &[&flipped, x], &[], shape);
                }
                let attributes = [int("transA", 1), int("transB", 1)];
                self.node("Gemm", &[x, &flipped], &attributes, shape)
            }
            _ => {
                // Not a contraction alone: something is added, here nothing of worth.
                let zeros = self.input(
                    &format!("{}.zeros.{}", note.parameter, self.node_count()),
                    shape,
                );
                note.added = Some(zeros.name.clone());
                self.node("Gemm", &[left, right, &zeros], &[int("transA", 1)], shape)
            }
        }
    }

    /// An activation function of [`ACTIVATIONS`]; `name` is for parameters that it may have.
    pub fn activation(&mut self, kind: &str, x: &V, name: &str) -> V {
        let from = x.clone();
        match kind {
            "relu" => {
                let y = self.like("Relu", &[x]);
                let made = y.clone();
                self.rule(&y, &[x], move |tape, dy| {
                    let zero = tape.number(0.0);
                    let dx = match tape.choices.below(4) {
                        0 => {
                            let mask = tape.like("LessOrEqual", &[&from, &zero]);
                            tape.node("Where", &[&mask, &zero, &dy], &[], &dy.shape)
                        }
                        1 => {
                            let mask = tape.like("Greater", &[&made, &zero]);
                            let mask = tape.node("Cast", &[&mask], &[int("to", 1)], &dy.shape);
                            tape.like("Mul", &[&dy, &mask])
                        }
                        2 => tape.like("com.microsoft:ReluGrad", &[&dy, &made]),
                        _ => {
                            let mask = tape.like("Greater", &[&from, &zero]);
                            tape.node("Where", &[&mask, &dy, &zero], &[], &dy.shape)
                        }
                    };
                    tape.contribute(&from, dx);
                });
                y
            }
            "tanh" => {
                let y = self.like("Tanh", &[x]);
                let made = y.clone();
                self.rule(&y, &[x], move |tape, dy| {
                    let one = tape.number(1.0);
                    let square = tape.like("Mul", &[&made, &made]);
                    let slope = tape.node("Sub", &[&one, &square], &[], &dy.shape);
                    let dx = tape.like("Mul", &[&dy, &slope]);
                    tape.contribute(&from, dx);
                });
                y
            }
            "sigmoid" => self.sigmoid(x),
            "silu" => {
                let gate = self.sigmoid(x);
                self.mul(x, &gate)
            }
            "gelu" => self.gelu(x),
            "softmax" => self.softmax(x),
            "norm" => self.norm(x, name),
            _ => {
                let gain = self.parameter(&format!("{name}.gain"), &[fixed(x.width())], false);
                let shift = self.parameter(&format!("{name}.shift"), &[fixed(x.width())], false);
                let y = self.mul(x, &gain);
                self.add(&y, &shift)
            }
        }
    }

    fn sigmoid(&mut self, x: &V) -> V {
        let y = self.like("Sigmoid", &[x]);
        let (from, made) = (x.clone(), y.clone());
        self.rule(&y, &[x], move |tape, dy| {
            let one = tape.number(1.0);
            let rest = tape.node("Sub", &[&one, &made], &[], &dy.shape);
            let slope = tape.like("Mul", &[&made, &rest]);
            let dx = tape.like("Mul", &[&dy, &slope]);
            tape.contribute(&from, dx);
        });
        y
    }

    /// x Φ(x), decomposed.
    fn gelu(&mut self, x: &V) -> V {
        let (half, one) = (self.number(0.5), self.number(1.0));
        let root = self.number(std::f32::consts::FRAC_1_SQRT_2);
        let cumulated = |tape: &mut Tape, x: &V| {
            let small = tape.like("Mul", &[x, &root]);
            let erf = tape.like("Erf", &[&small]);
            let sum = tape.like("Add", &[&erf, &one]);
            tape.like("Mul", &[&sum, &half])
        };
        let share = cumulated(self, x);
        let y = self.like("Mul", &[x, &share]);
        let from = x.clone();
        let again = self.choices.flag();
        let (half, one) = (half.clone(), one.clone());
        self.rule(&y, &[x], move |tape, dy| {
            let share = if again {
                let small = tape.number(std::f32::consts::FRAC_1_SQRT_2);
                let small = tape.like("Mul", &[&from, &small]);
                let erf = tape.like("Erf", &[&small]);
                let sum = tape.like("Add", &[&erf, &one]);
                tape.like("Mul", &[&sum, &half])
            } else {
                share
            };
            // Φ'(x) = e^(-x²/2) / √(2π)
            let square = tape.like("Mul", &[&from, &from]);
            let minus = tape.number(-0.5);
            let power = tape.like("Mul", &[&square, &minus]);
            let bell = tape.like("Exp", &[&power]);
            let norm = tape.number(0.398_942_3);
            let density = tape.like("Mul", &[&bell, &norm]);
            let weighted = tape.like("Mul", &[&from, &density]);
            let slope = tape.like("Add", &[&share, &weighted]);
            let dx = tape.like("Mul", &[&dy, &slope]);
            tape.contribute(&from, dx);
        });
        y
    }

    /// Over the last axis.
    pub fn softmax(&mut self, x: &V) -> V {
        let y = self.node("Softmax", &[x], &[int("axis", -1)], &x.shape);
        let (from, made) = (x.clone(), y.clone());
        self.rule(&y, &[x], move |tape, dy| {
            let weighted = tape.like("Mul", &[&dy, &made]);
            let total = tape.sum(&weighted, &[-1], true);
            let rest = tape.like("Sub", &[&dy, &total]);
            let dx = tape.like("Mul", &[&rest, &made]);
            tape.contribute(&from, dx);
        });
        y
    }

    /// x / √(mean x² + ε) · gain, decomposed.
    pub fn norm(&mut self, x: &V, name: &str) -> V {
        let gain = self.parameter(&format!("{name}.gain"), &[fixed(x.width())], false);
        let square = self.mul(x, x);
        let from = square.clone();
        let total = self.sum(&square, &[-1], true);
        self.rule(&total, &[&square], move |tape, dy| {
            let one = tape.number(1.0);
            // Broadcast back over the last axis.
            let zeros = tape.like("Sub", &[&from, &from]);
            let ones = tape.like("Add", &[&zeros, &one]);
            let dx = tape.like("Mul", &[&ones, &dy]);
            tape.contribute(&from, dx);
        });
        let mean = self.scaled(&total, 1.0 / x.width() as f32);
        let epsilon = self.number(0.125);
        let safe = self.like("Add", &[&mean, &epsilon]);
        let from = mean.clone();
        self.rule(&safe, &[&mean], move |tape, dy| tape.contribute(&from, dy));
        let root = self.like("Sqrt", &[&safe]);
        let inverse = self.like("Reciprocal", &[&root]);
        let (from, made) = (safe.clone(), inverse.clone());
        self.rule(&inverse, &[&safe], move |tape, dy| {
            // d s^(-1/2) = -1/2 s^(-3/2)
            let cube = tape.like("Mul", &[&made, &made]);
            let cube = tape.like("Mul", &[&cube, &made]);
            let minus = tape.number(-0.5);
            let slope = tape.like("Mul", &[&cube, &minus]);
            let dx = tape.like("Mul", &[&dy, &slope]);
            tape.contribute(&from, dx);
        });
        let even = self.mul(x, &inverse);
        self.mul(&even, &gain)
    }

    /// Attention of one head over the middle axis of [B, S, D].
    pub fn attention(&mut self, x: &V, layers: [&Linear; 4]) -> V {
        let [q, k, v] = [0, 1, 2].map(|i| self.linear(x, layers[i]));
        let keys = self.transpose(&k);
        let scores = self.matmul(&q, &keys);
        let scores = self.scaled(&scores, 0.5);
        let weights = self.softmax(&scores);
        let mixed = self.matmul(&weights, &v);
        self.linear(&mixed, layers[3])
    }

    /// −Σ y log softmax(x), Σ x, or Σ (x − y)², as `kind` is 0, 1, 2.
    pub fn loss(&mut self, kind: u8, x: &V) -> V {
        let axes: Vec<i64> = (0..x.rank() as i64).collect();
        let from = x.clone();
        match kind {
            0 => {
                let target = self.input("y", &x.shape);
                let logs = self.node("LogSoftmax", &[x], &[int("axis", -1)], &x.shape);
                let picked = self.like("Mul", &[&logs, &target]);
                let total = self.sum(&picked, &axes, false);
                let loss = self.like("Neg", &[&total]);
                self.seed(&loss, x, move |tape| {
                    let shares = tape.like("Exp", &[&logs]);
                    let weight = tape.sum(&target, &[-1], true);
                    let shares = tape.like("Mul", &[&shares, &weight]);
                    let dx = tape.like("Sub", &[&shares, &target]);
                    tape.contribute(&from, dx);
                });
                loss
            }
            1 => {
                let loss = self.sum(x, &axes, false);
                self.seed(&loss, x, move |tape| {
                    let rank = from.rank() as i64;
                    let shape = tape.node("Shape", &[&from], &[], &[fixed(rank)]);
                    let one = tape.number(1.0);
                    let dx = tape.raw("Expand", &[&one.name, &shape.name], &[], &from.shape);
                    tape.contribute(&from, dx);
                });
                loss
            }
            _ => {
                let target = self.input("y", &x.shape);
                let difference = self.like("Sub", &[x, &target]);
                let square = self.like("Mul", &[&difference, &difference]);
                let loss = self.sum(&square, &axes, false);
                self.seed(&loss, x, move |tape| {
                    let two = tape.number(2.0);
                    let dx = tape.like("Mul", &[&difference, &two]);
                    tape.contribute(&from, dx);
                });
                loss
            }
        }
    }

    /// Notes what starts the backward half.
    pub(crate) fn seed(&mut self, loss: &V, x: &V, rule: impl FnOnce(&mut Tape) + 'static) {
        let one = V {
            name: String::new(),
            shape: loss.shape.clone(),
        };
        self.rule(loss, &[x], move |tape, _| rule(tape));
        self.contribute(loss, one);
    }
}
