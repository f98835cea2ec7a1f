//! The graph of LLaMA (Touvron et al. 2023, arXiv 2302.13971) at any size, without weights.

use crate::chain::plain_tail;
use crate::choices::Choices;
use crate::layers::Linear;
use crate::tape::{Generated, Tape, V, batch, fixed, int, ints};

/// The sizes of a model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LlamaSizes {
    /// Features of a token between blocks.
    pub hidden: i64,
    /// Features within the gated MLP.
    pub intermediate: i64,
    /// Heads of the attention, of `hidden / heads` features, an even number.
    pub heads: i64,
    /// Classes of the last layer.
    pub vocabulary: i64,
}

impl LlamaSizes {
    /// Those of LLaMA-7B, which has 32 blocks.
    pub const SEVEN_B: LlamaSizes = LlamaSizes {
        hidden: 4096,
        intermediate: 11008,
        heads: 32,
        vocabulary: 32000,
    };
}

/// A training graph in standard operators: blocks of causal attention with rotary positions and of a gated
/// MLP, each behind an RMS norm and a residual sum, then norm, language-model head and cross-entropy.
///
/// It starts from hidden states `x` (batch, sequence, hidden), since the tape has no integers: the embedding
/// and its gradient are not there. Its other inputs are the targets `y`, a distribution over the
/// vocabulary for each token, the `mask` that is added to the scores (sequence, sequence), and `cos` and
/// `sin` of the positions' angles (sequence, hidden / heads). Weights are (features, outputs).
pub fn llama(blocks: usize, sizes: &LlamaSizes, sequence: i64) -> Generated {
    let mut tape = Tape::new(Choices::default());
    let angles = [fixed(sequence), fixed(sizes.hidden / sizes.heads)];
    let positions = Positions {
        mask: tape.input("mask", &[fixed(sequence), fixed(sequence)]),
        cos: tape.input("cos", &angles),
        sin: tape.input("sin", &angles),
    };
    let mut h = tape.input("x", &[batch(1), fixed(sequence), fixed(sizes.hidden)]);
    for index in 0..blocks {
        let name = |part: &str| format!("layers.{index}.{part}");
        let even = tape.rms_norm(&h, &name("input_layernorm"));
        let mixed = tape.causal_attention(&even, sizes.heads, &positions, &name("self_attn"));
        h = tape.add(&h, &mixed);
        let even = tape.rms_norm(&h, &name("post_attention_layernorm"));
        let narrow = tape.gated_mlp(&even, sizes.intermediate, &name("mlp"));
        h = tape.add(&h, &narrow);
    }
    let even = tape.rms_norm(&h, "norm");
    let head = (sizes.hidden, sizes.vocabulary);
    let head = tape.linear_parameters("lm_head", head, false, false, false);
    let logits = tape.linear(&even, &head);
    let loss = tape.loss(0, &logits);
    tape.finish(&loss, plain_tail, None)
}

/// What attention knows of the places of tokens.
struct Positions {
    mask: V,
    cos: V,
    sin: V,
}

impl Tape {
    /// The axes in another order.
    fn permute(&mut self, x: &V, order: [usize; 4]) -> V {
        let y = self.reorder(x, order);
        let from = x.clone();
        self.rule(&y, &[x], move |tape, dy| {
            let mut back = [0; 4];
            for (place, axis) in order.into_iter().enumerate() {
                back[axis] = place;
            }
            let dx = tape.reorder(&dy, back);
            tape.contribute(&from, dx);
        });
        y
    }

    /// The same without a rule.
    fn reorder(&mut self, x: &V, order: [usize; 4]) -> V {
        let shape = order.map(|axis| x.shape[axis]);
        let order = ints("perm", &order.map(|axis| axis as i64));
        self.node("Transpose", &[x], &[order], &shape)
    }

    /// x / √(mean x² + ε) · weight, with the gradient that PyTorch exports, which needs x and the root only.
    fn rms_norm(&mut self, x: &V, name: &str) -> V {
        let weight = self.parameter(&format!("{name}.weight"), &[fixed(x.width())], false);
        let share = self.number(1.0 / x.width() as f32);
        let square = self.like("Mul", &[x, x]);
        let total = self.sum(&square, &[-1], true);
        let mean = self.like("Mul", &[&total, &share]);
        let epsilon = self.number(1e-5);
        let safe = self.like("Add", &[&mean, &epsilon]);
        let root = self.like("Sqrt", &[&safe]);
        let inverse = self.like("Reciprocal", &[&root]);
        let even = self.like("Mul", &[x, &inverse]);
        let from = x.clone();
        self.rule(&even, &[x], move |tape, dy| {
            // dx = r dy − x r³ mean(dy x), with r the inverse root.
            let product = tape.like("Mul", &[&dy, &from]);
            let total = tape.sum(&product, &[-1], true);
            let mean = tape.like("Mul", &[&total, &share]);
            let square = tape.like("Mul", &[&inverse, &inverse]);
            let cube = tape.like("Mul", &[&square, &inverse]);
            let factor = tape.like("Mul", &[&mean, &cube]);
            let along = tape.like("Mul", &[&from, &factor]);
            let straight = tape.like("Mul", &[&dy, &inverse]);
            let dx = tape.like("Sub", &[&straight, &along]);
            tape.contribute(&from, dx);
        });
        self.mul(&even, &weight)
    }

    /// Multi-head attention over [batch, sequence, hidden].
    fn causal_attention(&mut self, x: &V, heads: i64, positions: &Positions, name: &str) -> V {
        let (sequence, hidden) = (x.shape[1], x.width());
        let size = hidden / heads;
        let square = (hidden, hidden);
        let [q, k, v] = ["q_proj", "k_proj", "v_proj"].map(|part| {
            let layer =
                self.linear_parameters(&format!("{name}.{part}"), square, false, false, false);
            let all = self.linear(x, &layer);
            let split = [x.shape[0], sequence, fixed(heads), fixed(size)];
            let split = self.reshape(&all, &split);
            self.permute(&split, [0, 2, 1, 3])
        });
        let q = self.rotary(&q, positions);
        let k = self.rotary(&k, positions);
        let k = self.transpose(&k);
        let scores = self.matmul(&q, &k);
        let scores = self.scaled(&scores, 1.0 / (size as f32).sqrt());
        let scores = self.add(&scores, &positions.mask);
        let weights = self.softmax(&scores);
        let mixed = self.matmul(&weights, &v);
        let mixed = self.permute(&mixed, [0, 2, 1, 3]);
        let mixed = self.reshape(&mixed, &x.shape);
        let o = self.linear_parameters(&format!("{name}.o_proj"), square, false, false, false);
        self.linear(&mixed, &o)
    }

    /// Turns pairs of features by angles that depend on the token's place: x cos + (−b, a) sin, where a and
    /// b are the halves of x.
    fn rotary(&mut self, x: &V, positions: &Positions) -> V {
        let (cos, sin) = (positions.cos.clone(), positions.sin.clone());
        let kept = self.like("Mul", &[x, &cos]);
        let turned = self.quarter_turn(x, true);
        let turned = self.like("Mul", &[&turned, &sin]);
        let y = self.like("Add", &[&kept, &turned]);
        let from = x.clone();
        self.rule(&y, &[x], move |tape, dy| {
            let kept = tape.like("Mul", &[&dy, &cos]);
            let turned = tape.like("Mul", &[&dy, &sin]);
            let turned = tape.quarter_turn(&turned, false);
            let dx = tape.like("Add", &[&kept, &turned]);
            tape.contribute(&from, dx);
        });
        y
    }

    /// (−b, a) of the halves (a, b) of the last axis, or its inverse (b, −a); without a rule.
    fn quarter_turn(&mut self, x: &V, forward: bool) -> V {
        let (size, last) = (x.width(), x.rank() as i64 - 1);
        let axes = self.integers(&[last]);
        let mut shape = x.shape.clone();
        shape[last as usize] = fixed(size / 2);
        let [a, b] = [(0, size / 2), (size / 2, size)].map(|(start, end)| {
            let (start, end) = (self.integers(&[start]), self.integers(&[end]));
            self.raw("Slice", &[&x.name, &start, &end, &axes], &[], &shape)
        });
        let negated = self.like("Neg", &[if forward { &b } else { &a }]);
        let halves = match forward {
            true => [&negated, &a],
            false => [&b, &negated],
        };
        self.node("Concat", &halves, &[int("axis", last)], &x.shape)
    }

    /// down(silu(gate(x)) · up(x)).
    fn gated_mlp(&mut self, x: &V, intermediate: i64, name: &str) -> V {
        let (wide, narrow) = ((x.width(), intermediate), (intermediate, x.width()));
        let [gate, up, down]: [Linear; 3] = [
            ("gate_proj", wide),
            ("up_proj", wide),
            ("down_proj", narrow),
        ]
        .map(|(part, sizes)| {
            self.linear_parameters(&format!("{name}.{part}"), sizes, false, false, false)
        });
        let gate = self.linear(x, &gate);
        let gate = self.activation("silu", &gate, name);
        let up = self.linear(x, &up);
        let both = self.mul(&gate, &up);
        self.linear(&both, &down)
    }
}
