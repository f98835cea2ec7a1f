//! The graph of LLaMA (Touvron et al. 2023, arXiv 2302.13971) at any size, without weights.

use super::Training;
use crate::chain::plain_tail;
use crate::choices::Choices;
use crate::tape::{Element, Generated, Tape, V, batch, fixed, int};

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
    /// Those of LLaMA-60M, which has 8 blocks.
    pub const SIXTY_M: LlamaSizes = LlamaSizes::of(512, 1376, 8);
    /// Those of LLaMA-130M, which has 12 blocks.
    pub const HUNDRED_THIRTY_M: LlamaSizes = LlamaSizes::of(768, 2048, 12);
    /// Those of LLaMA-7B, which has 32 blocks.
    pub const SEVEN_B: LlamaSizes = LlamaSizes::of(4096, 11008, 32);
    /// Those of LLaMA-13B, which has 40 blocks.
    pub const THIRTEEN_B: LlamaSizes = LlamaSizes::of(5120, 13824, 40);

    const fn of(hidden: i64, intermediate: i64, heads: i64) -> LlamaSizes {
        LlamaSizes {
            hidden,
            intermediate,
            heads,
            vocabulary: 32000,
        }
    }
}

/// A training graph in standard operators: blocks of causal attention with rotary positions and of a gated
/// MLP, each behind an RMS norm and a residual sum, then norm, language-model head and cross-entropy.
///
/// It starts from hidden states `x` (batch, sequence, hidden), without an embedding. Its other inputs are the
/// targets `y`, a distribution over the vocabulary for each token, the `mask` that is added to the scores
/// (sequence, sequence), and `cos` and `sin` of the positions' angles (sequence, hidden / heads). Weights are
/// (features, outputs).
pub fn llama(blocks: usize, sizes: &LlamaSizes, sequence: i64) -> Generated {
    let mut tape = Tape::new(Choices::default());
    let positions = Positions::new(&mut tape, sizes, sequence);
    let x = tape.input("x", &[batch(1), fixed(sequence), fixed(sizes.hidden)]);
    let logits = tape.decoder(x, blocks, sizes, &positions);
    let loss = tape.loss(0, &logits);
    tape.finish(&loss, plain_tail, None)
}

/// The same from `input_ids` to `labels`, both (batch, sequence): with the embedding and its gradient.
pub fn llama_of_tokens(
    blocks: usize,
    sizes: &LlamaSizes,
    sequence: i64,
    training: &Training,
    element: Element,
) -> Generated {
    let mut tape = Tape::new(Choices::default());
    (tape.training, tape.element) = (training.clone(), element);
    let positions = Positions::new(&mut tape, sizes, sequence);
    let tokens = [batch(1), fixed(sequence)];
    let ids = tape.integer_input("input_ids", &tokens, sizes.vocabulary);
    let table = (sizes.vocabulary, sizes.hidden);
    let x = tape.embedding("embed_tokens.weight", table, &ids);
    let logits = tape.decoder(x, blocks, sizes, &positions);
    let loss = tape.label_loss(&logits, "labels");
    tape.finish(&loss, plain_tail, None)
}

/// What attention knows of the places of tokens.
struct Positions {
    mask: V,
    cos: V,
    sin: V,
}

impl Positions {
    fn new(tape: &mut Tape, sizes: &LlamaSizes, sequence: i64) -> Positions {
        let angles = [fixed(sequence), fixed(sizes.hidden / sizes.heads)];
        Positions {
            mask: tape.input("mask", &[fixed(sequence), fixed(sequence)]),
            cos: tape.input("cos", &angles),
            sin: tape.input("sin", &angles),
        }
    }
}

impl Tape {
    /// Logits (batch, sequence, vocabulary) from hidden states.
    fn decoder(&mut self, x: V, blocks: usize, sizes: &LlamaSizes, positions: &Positions) -> V {
        let mut h = x;
        for index in 0..blocks {
            let name = |part: &str| format!("layers.{index}.{part}");
            let even = self.rms_norm(&h, &name("input_layernorm"));
            let mixed = self.causal_attention(&even, sizes.heads, positions, &name("self_attn"));
            h = self.add(&h, &mixed);
            let even = self.rms_norm(&h, &name("post_attention_layernorm"));
            let narrow = self.gated_mlp(&even, sizes.intermediate, &name("mlp"));
            h = self.add(&h, &narrow);
        }
        let even = self.rms_norm(&h, "norm");
        let head = (sizes.hidden, sizes.vocabulary);
        self.projection(&even, "lm_head", head, false)
    }

    /// x / √(mean x² + ε) · weight, with the gradient that PyTorch exports, which needs x and the root only.
    fn rms_norm(&mut self, x: &V, name: &str) -> V {
        let weight = self.weight(&format!("{name}.weight"), &[fixed(x.width())]);
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
        let square = (x.width(), x.width());
        let [q, k, v] = ["q_proj", "k_proj", "v_proj"].map(|part| {
            let all = self.projection(x, &format!("{name}.{part}"), square, false);
            self.split_heads(&all, heads)
        });
        let q = self.rotary(&q, positions);
        let k = self.rotary(&k, positions);
        let mixed = self.attend([&q, &k, &v], Some(&positions.mask));
        self.projection(&mixed, &format!("{name}.o_proj"), square, false)
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
        let part = |part: &str| format!("{name}.{part}");
        let gate = self.projection(x, &part("gate_proj"), wide, false);
        let gate = self.activation("silu", &gate, name);
        let up = self.projection(x, &part("up_proj"), wide, false);
        let both = self.mul(&gate, &up);
        self.projection(&both, &part("down_proj"), narrow, false)
    }
}
