//! Deterministic graphs of any length, as exporters write them: for benchmarks and peaks.

use crate::choices::Choices;
use crate::tape::{Generated, Tape, V, batch, fixed};

/// Gradients leave under names that say whose they are.
pub(crate) fn plain_tail(tape: &mut Tape, parameter: &V, gradient: &V) -> V {
    let mut out = tape.like("Identity", &[gradient]);
    let name = format!("grad.{}", parameter.name);
    tape.last_node().output = vec![name.clone()];
    out.name = name;
    out
}

/// Linear layers of one width with an activation between them.
pub fn mlp(layers: usize, width: i64, activation: &str) -> Generated {
    let mut tape = Tape::new(Choices::default());
    let mut h = tape.input("x", &[batch(1), fixed(width)]);
    for index in 0..layers {
        let name = format!("layers.{index}");
        let layer = tape.linear_parameters(&name, (width, width), false, true, false);
        h = tape.linear(&h, &layer);
        if index + 1 < layers {
            h = tape.activation(activation, &h, &name);
        }
    }
    let loss = tape.loss(0, &h);
    tape.finish(&loss, plain_tail, None)
}

/// Pre-norm transformer blocks: attention and a gated MLP, each behind a residual sum.
pub fn transformer(blocks: usize, width: i64, sequence: i64) -> Generated {
    let mut tape = Tape::new(Choices::default());
    let mut h = tape.input("x", &[batch(1), fixed(sequence), fixed(width)]);
    for index in 0..blocks {
        let name = |part: &str| format!("blocks.{index}.{part}");
        let square = (width, width);
        let [q, k, v, o] = ["q", "k", "v", "o"]
            .map(|part| tape.linear_parameters(&name(part), square, true, false, false));
        let even = tape.norm(&h, &name("norm1"));
        let mixed = tape.attention(&even, [&q, &k, &v, &o]);
        h = tape.add(&h, &mixed);
        let even = tape.norm(&h, &name("norm2"));
        let [gate, up] = ["gate", "up"].map(|part| {
            tape.linear_parameters(&name(part), (width, 2 * width), true, false, false)
        });
        let down = tape.linear_parameters(&name("down"), (2 * width, width), true, false, false);
        let gate = tape.linear(&even, &gate);
        let gate = tape.activation("silu", &gate, &name("act"));
        let up = tape.linear(&even, &up);
        let wide = tape.mul(&gate, &up);
        let narrow = tape.linear(&wide, &down);
        h = tape.add(&h, &narrow);
    }
    let loss = tape.loss(0, &h);
    tape.finish(&loss, plain_tail, None)
}
