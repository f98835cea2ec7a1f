//! Layers that published models have in common.

use super::Training;
use crate::layers::Linear;
use crate::tape::{Axis, Tape, V, fixed, int, ints};
use velora_graph::onnx::schema::{AttributeProto, AttributeType};

/// What LoRA's scale is a multiple of: its α, over the rank.
const ALPHA: f32 = 16.0;

fn text(name: &str, value: &str) -> AttributeProto {
    AttributeProto {
        name: Some(name.to_owned()),
        s: Some(value.as_bytes().to_vec().into()),
        r#type: Some(AttributeType::String as i32),
        ..Default::default()
    }
}

fn with_last(shape: &[Axis], last: i64) -> Vec<Axis> {
    let mut shape = shape.to_vec();
    shape.push(fixed(last));
    shape
}

impl Tape {
    /// A parameter that is trained only where all are.
    pub(super) fn weight(&mut self, name: &str, shape: &[Axis]) -> V {
        let frozen = self.training != Training::All;
        self.parameter(name, shape, frozen)
    }

    /// x W (+ b), with adapters beside it where they are asked for.
    pub(super) fn projection(&mut self, x: &V, name: &str, sizes: (i64, i64), bias: bool) -> V {
        let chosen = self.training.chooses(name);
        let frozen = match self.training {
            Training::All => false,
            Training::Only(_) => !chosen,
            _ => true,
        };
        let shape = [fixed(sizes.0), fixed(sizes.1)];
        let layer = Linear {
            weight: self.parameter(&format!("{name}.weight"), &shape, frozen),
            transposed: false,
            bias: bias.then(|| self.weight(&format!("{name}.bias"), &[fixed(sizes.1)])),
        };
        let y = self.linear(x, &layer);
        match self.training {
            Training::Adapters { rank, .. } if chosen => {
                let low = self.adapter(x, &format!("{name}.lora"), sizes, rank);
                self.add(&y, &low)
            }
            Training::Branches { rank, .. } if chosen => {
                let low = self.adapter(x, &format!("{name}.parallel"), sizes, rank);
                let square = (sizes.1, sizes.1);
                let after = self.adapter(&y, &format!("{name}.sequential"), square, rank);
                let both = self.add(&low, &after);
                self.add(&y, &both)
            }
            Training::ScaleShift => self.scale_shift(&y, name),
            _ => y,
        }
    }

    /// α / rank · x A B.
    fn adapter(&mut self, x: &V, name: &str, sizes: (i64, i64), rank: i64) -> V {
        let [a, b] = [("A", (sizes.0, rank)), ("B", (rank, sizes.1))].map(|(part, sizes)| {
            self.linear_parameters(&format!("{name}_{part}"), sizes, false, false, false)
        });
        let low = self.linear(x, &a);
        let low = self.linear(&low, &b);
        self.scaled(&low, ALPHA / rank as f32)
    }

    /// x · scale + shift, both trained.
    fn scale_shift(&mut self, x: &V, name: &str) -> V {
        let [scale, shift] = ["scale", "shift"]
            .map(|part| self.parameter(&format!("{name}.{part}"), &[fixed(x.width())], false));
        let y = self.mul(x, &scale);
        self.add(&y, &shift)
    }

    /// The rows of a table that `ids` name, [...] → [..., features].
    pub(super) fn embedding(&mut self, name: &str, (count, features): (i64, i64), ids: &V) -> V {
        let table = self.weight(name, &[fixed(count), fixed(features)]);
        let shape = with_last(&ids.shape, features);
        let y = self.node("Gather", &[&table, ids], &[], &shape);
        let ids = ids.clone();
        self.rule(&y, &[&table.clone()], move |tape, dy| {
            let sizes = tape.integers(&[count, features]);
            let zero = tape.number(0.0);
            let zeros = tape.raw("Expand", &[&zero.name, &sizes], &[], &table.shape);
            let axes = tape.integers(&[-1]);
            let rows = with_last(&ids.shape, 1);
            let rows = tape.raw("Unsqueeze", &[&ids.name, &axes], &[], &rows);
            let add = text("reduction", "add");
            let inputs = [&zeros, &rows, &dy];
            let gradient = tape.node("ScatterND", &inputs, &[add], &table.shape);
            tape.contribute(&table, gradient);
        });
        y
    }

    /// −Σ log softmax(x) at the labels, [...], of logits x, [..., classes].
    pub(super) fn label_loss(&mut self, x: &V, name: &str) -> V {
        let leading = &x.shape[..x.rank() - 1];
        let labels = self.integer_input(name, leading, x.width());
        let axes = self.integers(&[-1]);
        let places = with_last(leading, 1);
        let places = self.raw("Unsqueeze", &[&labels.name, &axes], &[], &places);
        let logs = self.node("LogSoftmax", &[x], &[int("axis", -1)], &x.shape);
        let picked = [&logs, &places];
        let picked = self.node("GatherElements", &picked, &[int("axis", -1)], &places.shape);
        let all: Vec<i64> = (0..x.rank() as i64).collect();
        let total = self.sum(&picked, &all, false);
        let loss = self.like("Neg", &[&total]);
        let from = x.clone();
        self.seed(&loss, x, move |tape| {
            let shares = tape.like("Exp", &[&logs]);
            let shape = [fixed(places.rank() as i64)];
            let shape = tape.node("Shape", &[&places], &[], &shape);
            let minus = tape.number(-1.0);
            let minus = [minus.name.as_str(), &shape.name];
            let minus = tape.raw("Expand", &minus, &[], &places.shape);
            let attributes = [int("axis", -1), text("reduction", "add")];
            let inputs = [&shares, &places, &minus];
            let dx = tape.node("ScatterElements", &inputs, &attributes, &from.shape);
            tape.contribute(&from, dx);
        });
        loss
    }

    /// (x − mean) / √(variance + ε) · weight + bias over the last axis, with the gradient that PyTorch exports:
    /// it needs x, the mean and the inverse deviation.
    pub(super) fn layer_norm(&mut self, x: &V, name: &str) -> V {
        let weight = self.weight(&format!("{name}.weight"), &[fixed(x.width())]);
        let bias = self.weight(&format!("{name}.bias"), &[fixed(x.width())]);
        let share = self.number(1.0 / x.width() as f32);
        let mean = self.mean(x, &share);
        let centred = self.like("Sub", &[x, &mean]);
        let square = self.like("Mul", &[&centred, &centred]);
        let variance = self.mean(&square, &share);
        let epsilon = self.number(1e-5);
        let safe = self.like("Add", &[&variance, &epsilon]);
        let root = self.like("Sqrt", &[&safe]);
        let inverse = self.like("Reciprocal", &[&root]);
        let even = self.like("Mul", &[&centred, &inverse]);
        let scaled = self.like("Mul", &[&even, &weight]);
        let y = self.like("Add", &[&scaled, &bias]);
        let (from, parameters) = (x.clone(), [weight.clone(), bias.clone()]);
        self.rule(&y, &[x, &parameters[0], &parameters[1]], move |tape, dy| {
            let centred = tape.like("Sub", &[&from, &mean]);
            let even = tape.like("Mul", &[&centred, &inverse]);
            if tape.wants(&weight) {
                let product = tape.like("Mul", &[&dy, &even]);
                let gradient = tape.narrow(product, &weight.shape);
                tape.contribute(&weight, gradient);
            }
            if tape.wants(&bias) {
                let gradient = tape.narrow(dy.clone(), &bias.shape);
                tape.contribute(&bias, gradient);
            }
            if tape.wants(&from) {
                // dx = r (g − mean g − x̂ mean(g x̂)), with g = dy · weight.
                let slope = tape.like("Mul", &[&dy, &weight]);
                let shift = tape.mean(&slope, &share);
                let product = tape.like("Mul", &[&slope, &even]);
                let along = tape.mean(&product, &share);
                let along = tape.like("Mul", &[&even, &along]);
                let rest = tape.like("Sub", &[&slope, &shift]);
                let rest = tape.like("Sub", &[&rest, &along]);
                let dx = tape.like("Mul", &[&rest, &inverse]);
                tape.contribute(&from, dx);
            }
        });
        match self.training {
            Training::ScaleShift => self.scale_shift(&y, name),
            _ => y,
        }
    }

    /// The mean over the last axis, of which `share` is one over the size; without a rule.
    fn mean(&mut self, x: &V, share: &V) -> V {
        let total = self.sum(x, &[-1], true);
        self.like("Mul", &[&total, share])
    }

    /// The axes in another order.
    pub(super) fn permute(&mut self, x: &V, order: &[usize]) -> V {
        let y = self.reorder(x, order);
        let (from, order) = (x.clone(), order.to_vec());
        self.rule(&y, &[x], move |tape, dy| {
            let mut back = vec![0; order.len()];
            for (place, &axis) in order.iter().enumerate() {
                back[axis] = place;
            }
            let dx = tape.reorder(&dy, &back);
            tape.contribute(&from, dx);
        });
        y
    }

    /// The same without a rule.
    fn reorder(&mut self, x: &V, order: &[usize]) -> V {
        let shape: Vec<Axis> = order.iter().map(|&axis| x.shape[axis]).collect();
        let order: Vec<i64> = order.iter().map(|&axis| axis as i64).collect();
        self.node("Transpose", &[x], &[ints("perm", &order)], &shape)
    }

    /// [batch, sequence, hidden] → [batch, heads, sequence, hidden / heads].
    pub(super) fn split_heads(&mut self, x: &V, heads: i64) -> V {
        let size = x.width() / heads;
        let split = [x.shape[0], x.shape[1], fixed(heads), fixed(size)];
        let split = self.reshape(x, &split);
        self.permute(&split, &[0, 2, 1, 3])
    }

    /// Softmax(q kᵀ / √size + mask) v of split heads, [batch, sequence, hidden].
    pub(super) fn attend(&mut self, [q, k, v]: [&V; 3], mask: Option<&V>) -> V {
        let (heads, size) = (q.shape[1].size, q.width());
        let keys = self.transpose(k);
        let scores = self.matmul(q, &keys);
        let mut scores = self.scaled(&scores, 1.0 / (size as f32).sqrt());
        if let Some(mask) = mask {
            scores = self.add(&scores, mask);
        }
        let weights = self.softmax(&scores);
        let mixed = self.matmul(&weights, v);
        let mixed = self.permute(&mixed, &[0, 2, 1, 3]);
        let merged = [mixed.shape[0], mixed.shape[1], fixed(heads * size)];
        self.reshape(&mixed, &merged)
    }

    /// The first of [batch, sequence, hidden], [batch, hidden].
    pub(super) fn first_token(&mut self, x: &V) -> V {
        let first = [x.shape[0], fixed(1), fixed(x.width())];
        let [start, end] = [0, 1].map(|at| self.integers(&[at]));
        let slice = [x.name.as_str(), &start, &end, &end];
        let y = self.raw("Slice", &slice, &[], &first);
        let from = x.clone();
        self.rule(&y, &[x], move |tape, dy| {
            let pads = tape.integers(&[0, 0, 0, 0, from.shape[1].size - 1, 0]);
            let dx = tape.raw("Pad", &[&dy.name, &pads], &[], &from.shape);
            tape.contribute(&from, dx);
        });
        self.reshape(&y, &[x.shape[0], fixed(x.width())])
    }

    /// A learned token before those of [batch, sequence, hidden].
    pub(super) fn prepend_token(&mut self, x: &V, name: &str) -> V {
        let (hidden, count) = (x.width(), x.shape[1].size);
        let token = self.weight(name, &[fixed(1), fixed(1), fixed(hidden)]);
        let shape = self.node("Shape", &[x], &[], &[fixed(3)]);
        let [start, end] = [0, 1].map(|at| self.integers(&[at]));
        let lead = [shape.name.as_str(), &start, &end];
        let lead = self.raw("Slice", &lead, &[], &[fixed(1)]);
        let rest = self.integers(&[1, hidden]);
        let sizes = [lead.name.as_str(), &rest];
        let sizes = self.raw("Concat", &sizes, &[int("axis", 0)], &[fixed(3)]);
        let first = [x.shape[0], fixed(1), fixed(hidden)];
        let tokens = self.node("Expand", &[&token, &sizes], &[], &first);
        let longer = [x.shape[0], fixed(count + 1), fixed(hidden)];
        let y = self.node("Concat", &[&tokens, x], &[int("axis", 1)], &longer);
        let from = x.clone();
        self.rule(&y, &[x, &token.clone()], move |tape, dy| {
            let [start, first, end] = [0, 1, count + 1].map(|at| tape.integers(&[at]));
            if tape.wants(&token) {
                let part = [dy.name.as_str(), &start, &first, &first];
                let part = tape.raw("Slice", &part, &[], &tokens.shape);
                let gradient = tape.sum(&part, &[0], true);
                tape.contribute(&token, gradient);
            }
            if tape.wants(&from) {
                let part = [dy.name.as_str(), &first, &end, &first];
                let dx = tape.raw("Slice", &part, &[], &from.shape);
                tape.contribute(&from, dx);
            }
        });
        y
    }
}
