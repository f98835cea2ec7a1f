//! Random training graphs.

use crate::choices::Choices;
use crate::layers::{ACTIVATIONS, Linear};
use crate::tape::{Generated, Tape, V, batch, fixed, float};
use velora_graph::onnx::schema::{NodeProto, StringStringEntryProto};

/// The widths of layers.
const WIDTHS: [i64; 4] = [6, 8, 5, 12];

/// The graph that the bytes stand for.
pub fn graph(bytes: &[u8]) -> Generated {
    let mut tape = Tape::new(Choices::new(bytes));
    if tape.choices.seldom(4) {
        tape.prefix = tape
            .choices
            .of(&["a/b::c.", "\u{e9}\u{4e2d} ", "velora.", "%\"'\\\n"]);
    }
    if tape.choices.seldom(4) {
        tape.fixed_batch = Some(3);
    }
    let wide = tape.choices.flag();
    let width = tape.choices.of(&WIDTHS);
    let shape = match wide {
        false => vec![batch(1), fixed(width)],
        true => vec![batch(1), fixed(3), fixed(width)],
    };
    let mut h = tape.input("x", &shape);
    let mut tied: Option<Linear> = None;
    let layers = 1 + tape.choices.below(4);
    for index in 0..layers {
        h = layer(&mut tape, &h, index, &mut tied);
    }
    if tape.choices.seldom(4) {
        // An extra output of the forward half, and nodes that nothing reads.
        let logits = h.clone();
        tape.output(&logits);
        let dead = tape.like("Neg", &[&h]);
        tape.like("Exp", &[&dead]);
    }
    let kind = tape.choices.below(3);
    let loss = tape.loss(kind, &h);
    let shuffle = tape
        .choices
        .seldom(3)
        .then(|| u64::from(tape.choices.below(255)));
    let metadata = tape.choices.seldom(3);
    let mut made = tape.finish(&loss, tail, shuffle);
    if metadata {
        annotate(&mut made);
    }
    made
}

/// One step from activation to activation.
fn layer(tape: &mut Tape, x: &V, index: u8, tied: &mut Option<Linear>) -> V {
    let name = format!("layers.{index}");
    let width = x.width();
    match tape.choices.below(10) {
        0 | 1 => {
            let layer = random_linear(tape, &name, (width, None));
            let y = tape.linear(x, &layer);
            activation(tape, &y, &name)
        }
        2 => activation(tape, x, &name),
        3 => {
            // Residual: a narrow and a wide layer.
            let down = random_linear(tape, &format!("{name}.in"), (width, None));
            let up = random_linear(tape, &format!("{name}.out"), (down.sizes().1, Some(width)));
            let y = tape.linear(x, &down);
            let y = activation(tape, &y, &name);
            let y = tape.linear(&y, &up);
            tape.add(x, &y)
        }
        4 => {
            // Two or three layers on one input.
            let first = random_linear(tape, &format!("{name}.a"), (width, None));
            let inner = first.sizes().1;
            let mut y = tape.linear(x, &first);
            if tape.choices.flag() {
                y = activation(tape, &y, &name);
            }
            for part in 0..1 + tape.choices.below(2) {
                let other = random_linear(tape, &format!("{name}.b{part}"), (width, Some(inner)));
                let z = tape.linear(x, &other);
                y = if tape.choices.flag() {
                    tape.mul(&y, &z)
                } else {
                    tape.add(&y, &z)
                };
            }
            y
        }
        5 => {
            let y = tape.view_and_back(x);
            let layer = random_linear(tape, &name, (width, None));
            tape.linear(&y, &layer)
        }
        6 if x.rank() == 3 => {
            let parts = ["q", "k", "v", "o"].map(|p| format!("{name}.{p}"));
            let layers = parts.map(|p| random_linear(tape, &p, (width, Some(width))));
            let [q, k, v, o] = &layers;
            let y = tape.attention(x, [q, k, v, o]);
            if tape.choices.flag() {
                tape.add(x, &y)
            } else {
                y
            }
        }
        7 if x.rank() == 3 => {
            // All tokens of a sample as one.
            let wide = tape.reshape(x, &[batch(1), fixed(3 * width)]);
            let layer = random_linear(tape, &name, (3 * width, None));
            tape.linear(&wide, &layer)
        }
        8 => {
            // A weight that is used twice.
            let layer = match tied.clone().filter(|l| l.sizes() == (width, width)) {
                Some(layer) => layer,
                None => random_linear(tape, &name, (width, Some(width))),
            };
            *tied = Some(layer.clone());
            let y = tape.linear(x, &layer);
            let y = activation(tape, &y, &name);
            tape.linear(&y, &layer)
        }
        _ => {
            let kind = tape.choices.of(&["norm", "scale"]);
            let y = tape.activation(kind, x, &name);
            let layer = random_linear(tape, &name, (width, None));
            tape.linear(&y, &layer)
        }
    }
}

fn activation(tape: &mut Tape, x: &V, name: &str) -> V {
    let kind = tape.choices.of(&ACTIVATIONS);
    tape.activation(kind, x, &format!("{name}.act{}", tape.node_count()))
}

fn random_linear(tape: &mut Tape, name: &str, (from, to): (i64, Option<i64>)) -> Linear {
    let to = to.unwrap_or_else(|| tape.choices.of(&WIDTHS));
    let transposed = tape.choices.flag();
    let bias = tape.choices.flag();
    let frozen = tape.choices.seldom(6);
    tape.linear_parameters(name, (from, to), transposed, bias, frozen)
}

/// From a gradient to what leaves the graph.
fn tail(tape: &mut Tape, parameter: &V, gradient: &V) -> V {
    let (mut out, name) = match tape.choices.below(6) {
        0 => (
            tape.like("Identity", &[gradient]),
            format!("grad.{}", parameter.name),
        ),
        1 => {
            let factor = tape.number(0.25);
            (
                tape.like("Mul", &[gradient, &factor]),
                format!("{}.grad", parameter.name),
            )
        }
        2 => {
            let (low, high) = (tape.number(-0.5), tape.number(0.5));
            (
                tape.like("Clip", &[gradient, &low, &high]),
                format!("{}_grad", parameter.name),
            )
        }
        3 => {
            let sum = tape.input(&format!("{}_sum", parameter.name), &gradient.shape);
            (
                tape.like("Add", &[&sum, gradient]),
                format!("{}_grad.out", parameter.name),
            )
        }
        4 => {
            let rate = tape.number(0.125);
            let step = tape.like("Mul", &[gradient, &rate]);
            (
                tape.like("Sub", &[parameter, &step]),
                format!("{} updated", parameter.name),
            )
        }
        _ => {
            // By its own norm.
            let square = tape.like("Mul", &[gradient, gradient]);
            let axes: Vec<i64> = (0..gradient.rank() as i64).collect();
            let axes = tape.integers(&axes);
            let keep = crate::tape::int("keepdims", 0);
            let total = tape.raw("ReduceSum", &[&square.name, &axes], &[keep], &[]);
            let one = tape.number(1.0);
            let safe = tape.like("Add", &[&total, &one]);
            let norm = tape.like("Sqrt", &[&safe]);
            (
                tape.like("Div", &[gradient, &norm]),
                format!("{} gradient", parameter.name),
            )
        }
    };
    tape.last_node().output = vec![name.clone()];
    out.name = name;
    out
}

fn annotate(made: &mut Generated) {
    let entry = |key: &str, value: &str| StringStringEntryProto {
        key: Some(key.to_owned()),
        value: Some(value.to_owned()),
    };
    made.model.metadata_props.push(entry("origin", "testgen"));
    let graph = made.model.graph.as_mut().unwrap();
    graph.doc_string = Some("a graph\nwith two lines".to_owned());
    for (index, node) in graph.node.iter_mut().enumerate() {
        annotate_node(node, index, entry("index", &index.to_string()));
    }
}

fn annotate_node(node: &mut NodeProto, index: usize, entry: StringStringEntryProto) {
    match index % 3 {
        0 => node.metadata_props.push(entry),
        1 => node.doc_string = Some(format!("node {index}")),
        _ => node.name = None,
    }
    if node.op_type() == "Gemm" && node.attribute.iter().all(|a| a.name() != "beta") {
        node.attribute.push(float("beta", 1.0));
    }
}
