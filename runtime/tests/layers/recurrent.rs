//! Recurrent layers.

use super::{Array, assert_close, differences, dims, run, try_run};
use velora_graph::shapes::DataType;

const STEPS: usize = 4;
const BATCH: usize = 3;
const INPUT: usize = 2;
const HIDDEN: usize = 5;

/// The operands of a layer, all of them there.
struct Layer {
    op: &'static str,
    gates: usize,
    directions: usize,
    x: Array,
    w: Array,
    r: Array,
    b: Array,
    h0: Array,
    c0: Array,
    p: Array,
    lengths: Vec<usize>,
    linear_before_reset: bool,
}

impl Layer {
    fn new(op: &'static str, directions: usize) -> Layer {
        let gates = match op {
            "RNN" => 1,
            "GRU" => 3,
            _ => 4,
        };
        let rows = gates * HIDDEN;
        Layer {
            op,
            gates,
            directions,
            x: Array::random(&[STEPS, BATCH, INPUT], 1),
            w: Array::random(&[directions, rows, INPUT], 2),
            r: Array::random(&[directions, rows, HIDDEN], 3),
            b: Array::random(&[directions, 2 * rows], 4),
            h0: Array::random(&[directions, BATCH, HIDDEN], 5),
            c0: Array::random(&[directions, BATCH, HIDDEN], 6),
            p: Array::random(&[directions, 3 * HIDDEN], 7),
            lengths: vec![STEPS; BATCH],
            linear_before_reset: false,
        }
    }

    /// What gate `gate` gets in direction `d`: of the input and both biases, and of the state.
    fn gate(&self, d: usize, gate: usize, j: usize, x: &[f64], h: &[f64]) -> (f64, f64) {
        let row = (d * self.gates + gate) * HIDDEN + j;
        let bias = &self.b.data[2 * d * self.gates * HIDDEN..];
        let product = |matrix: &[f64], vector: &[f64]| -> f64 {
            let row = &matrix[row * vector.len()..];
            vector.iter().zip(row).map(|(a, b)| a * b).sum()
        };
        (
            product(&self.w.data, x) + bias[gate * HIDDEN + j],
            product(&self.r.data, h) + bias[(self.gates + gate) * HIDDEN + j],
        )
    }

    /// All hidden states, the last ones and the last cell states, by the equations of the operators, one
    /// sequence at a time. A reverse direction starts at the last step that the sequence has.
    fn naive(&self) -> [Array; 3] {
        let sigmoid = |x: f64| 1.0 / (1.0 + (-x).exp());
        let mut all = Array {
            shape: vec![STEPS, self.directions, BATCH, HIDDEN],
            data: vec![0.0; STEPS * self.directions * BATCH * HIDDEN],
        };
        let (mut last_h, mut last_c) = (self.h0.clone(), self.c0.clone());
        for d in 0..self.directions {
            for n in 0..BATCH {
                let place = (d * BATCH + n) * HIDDEN;
                let mut h = self.h0.data[place..place + HIDDEN].to_vec();
                let mut c = self.c0.data[place..place + HIDDEN].to_vec();
                let mut steps: Vec<usize> = (0..self.lengths[n]).collect();
                if d == 1 {
                    steps.reverse();
                }
                for t in steps {
                    let x = &self.x.data[(t * BATCH + n) * INPUT..][..INPUT];
                    let before = h.clone();
                    let sum = |gate: usize, j: usize, h: &[f64]| {
                        let (input, state) = self.gate(d, gate, j, x, h);
                        input + state
                    };
                    let reset: Vec<f64> = match self.op {
                        "GRU" => (0..HIDDEN).map(|j| sigmoid(sum(1, j, &before))).collect(),
                        _ => Vec::new(),
                    };
                    let reset_state: Vec<f64> =
                        reset.iter().zip(&before).map(|(r, h)| r * h).collect();
                    for j in 0..HIDDEN {
                        match self.op {
                            "RNN" => h[j] = sum(0, j, &before).tanh(),
                            "GRU" => {
                                let z = sigmoid(sum(0, j, &before));
                                let candidate = if self.linear_before_reset {
                                    let (input, state) = self.gate(d, 2, j, x, &before);
                                    (input + reset[j] * state).tanh()
                                } else {
                                    sum(2, j, &reset_state).tanh()
                                };
                                h[j] = (1.0 - z) * candidate + z * before[j];
                            }
                            _ => {
                                let p = &self.p.data[3 * d * HIDDEN..];
                                let i = sigmoid(sum(0, j, &before) + p[j] * c[j]);
                                let f = sigmoid(sum(2, j, &before) + p[2 * HIDDEN + j] * c[j]);
                                c[j] = f * c[j] + i * sum(3, j, &before).tanh();
                                let o = sigmoid(sum(1, j, &before) + p[HIDDEN + j] * c[j]);
                                h[j] = o * c[j].tanh();
                            }
                        }
                    }
                    let at = ((t * self.directions + d) * BATCH + n) * HIDDEN;
                    all.data[at..at + HIDDEN].copy_from_slice(&h);
                }
                last_h.data[place..place + HIDDEN].copy_from_slice(&h);
                last_c.data[place..place + HIDDEN].copy_from_slice(&c);
            }
        }
        [all, last_h, last_c]
    }

    /// The operator on all operands, with the lengths written into the graph.
    fn evaluate(&self) -> Vec<Array> {
        let lstm = self.op == "LSTM";
        let of = |a: &Array| dims(&a.shape);
        let direction = ["forward", "bidirectional"][self.directions - 1];
        let reset = match (self.op, self.linear_before_reset) {
            ("GRU", true) => ", linear_before_reset=1",
            _ => "",
        };
        let (operands, more, last) = match lstm {
            true => (
                ", c0, p",
                format!(", double[{}] c0, double[{}] p", of(&self.c0), of(&self.p)),
                ", y_c",
            ),
            false => ("", String::new(), ""),
        };
        let state = of(&self.h0);
        let cells = if lstm {
            format!(", double[{state}] y_c")
        } else {
            String::new()
        };
        let lengths = dims(&self.lengths);
        let graph = format!(
            "g (double[{}] x, double[{}] w, double[{}] r, double[{}] b, double[{state}] h0{more})
                => (double[{STEPS},{},{BATCH},{HIDDEN}] y, double[{state}] y_h{cells})
                <int32[{BATCH}] lengths = {{{lengths}}}> {{
                y, y_h{last} = {} <hidden_size={HIDDEN}, direction=\"{direction}\"{reset}>
                    (x, w, r, b, lengths, h0{operands})
            }}",
            of(&self.x),
            of(&self.w),
            of(&self.r),
            of(&self.b),
            self.directions,
            self.op
        );
        let mut inputs = vec![
            ("x", &self.x),
            ("w", &self.w),
            ("r", &self.r),
            ("b", &self.b),
            ("h0", &self.h0),
        ];
        if lstm {
            inputs.extend([("c0", &self.c0), ("p", &self.p)]);
        }
        run(DataType::DOUBLE, &graph, &inputs)
    }
}

#[test]
fn layers_follow_the_equations_in_both_directions_and_stop_at_the_lengths() {
    for op in ["RNN", "GRU", "LSTM"] {
        for linear_before_reset in [false, true] {
            for directions in [1, 2] {
                let mut layer = Layer::new(op, directions);
                layer.linear_before_reset = linear_before_reset;
                layer.lengths = vec![4, 0, 2];
                for (found, expected) in layer.evaluate().iter().zip(&layer.naive()) {
                    assert_close(found, expected, 1e-14, op);
                }
            }
        }
    }
}

#[test]
fn the_batch_may_come_first() {
    let layer = Layer::new("GRU", 1);
    let swapped = |a: &Array| {
        let &[first, second, width] = a.shape.as_slice() else {
            panic!("three axes")
        };
        let mut data = Vec::new();
        for n in 0..second {
            for t in 0..first {
                data.extend_from_slice(&a.data[(t * second + n) * width..][..width]);
            }
        }
        Array {
            shape: vec![second, first, width],
            data,
        }
    };
    let graph = format!(
        "g (double[3,4,2] x, double[1,15,2] w, double[1,15,5] r, double[1,30] b, double[3,1,5] h0)
            => (double[3,4,1,5] y, double[3,1,5] y_h) {{
            y, y_h = GRU <hidden_size={HIDDEN}, layout=1> (x, w, r, b, , h0)
        }}"
    );
    let (x, h0) = (swapped(&layer.x), swapped(&layer.h0));
    let inputs = [
        ("x", &x),
        ("w", &layer.w),
        ("r", &layer.r),
        ("b", &layer.b),
        ("h0", &h0),
    ];
    let found = run(DataType::DOUBLE, &graph, &inputs);
    let [mut all, last, _] = layer.naive();
    all.shape.remove(1);
    let mut expected = swapped(&all);
    expected.shape.insert(2, 1);
    assert_close(&found[0], &expected, 1e-14, "y");
    assert_close(&found[1], &swapped(&last), 1e-14, "y_h");
}

/// What the gradients of a training layer come to, against differences of the plain equations.
fn check_gradients(layer: &Layer, graph: &str, operands: &[&str]) {
    let [d_all, d_h, d_c] = [
        Array::random(&[STEPS, 1, BATCH, HIDDEN], 21),
        Array::random(&[1, BATCH, HIDDEN], 22),
        Array::random(&[1, BATCH, HIDDEN], 23),
    ];
    let lstm = layer.op == "LSTM";
    let loss = |layer: &Layer| {
        let [all, h, c] = layer.naive();
        let cells = if lstm { c.dot(&d_c) } else { 0.0 };
        all.dot(&d_all) + h.dot(&d_h) + cells
    };
    let mut inputs = vec![
        ("x", &layer.x),
        ("w", &layer.w),
        ("r", &layer.r),
        ("b", &layer.b),
        ("h0", &layer.h0),
        ("d_all", &d_all),
        ("d_h", &d_h),
    ];
    if lstm {
        inputs.extend([("c0", &layer.c0), ("d_c", &d_c)]);
    }
    let found = run(DataType::DOUBLE, graph, &inputs);
    let forward = layer.naive();
    let hidden_states = &found[operands.len()];
    assert_close(hidden_states, &forward[0], 1e-14, "the hidden states");
    for (found, name) in found.iter().zip(operands) {
        let moved = |name: &str, value: &Array| {
            let mut moved = Layer {
                x: layer.x.clone(),
                w: layer.w.clone(),
                r: layer.r.clone(),
                b: layer.b.clone(),
                h0: layer.h0.clone(),
                c0: layer.c0.clone(),
                p: layer.p.clone(),
                lengths: layer.lengths.clone(),
                ..*layer
            };
            match name {
                "x" => moved.x = value.clone(),
                "w" => moved.w = value.clone(),
                "r" => moved.r = value.clone(),
                "b" => moved.b = value.clone(),
                "h0" => moved.h0 = value.clone(),
                _ => moved.c0 = value.clone(),
            }
            loss(&moved)
        };
        let at = match *name {
            "x" => &layer.x,
            "w" => &layer.w,
            "r" => &layer.r,
            "b" => &layer.b,
            "h0" => &layer.h0,
            _ => &layer.c0,
        };
        let expected = differences(at, |value| moved(name, value));
        assert_close(found, &expected, 1e-7, name);
    }
}

#[test]
fn gradients_of_lstm_are_what_finite_differences_say() {
    let mut layer = Layer::new("LSTM", 1);
    layer.p.data.fill(0.0);
    let graph = format!(
        "g (double[4,3,2] x, double[1,20,2] w, double[1,20,5] r, double[1,40] b, double[1,3,5] h0,
            double[1,3,5] c0, double[4,1,3,5] d_all, double[1,3,5] d_h, double[1,3,5] d_c)
            => (double[4,3,2] dx, double[1,20,2] dw, double[1,20,5] dr, double[1,40] db,
                double[1,3,5] dh0, double[1,3,5] dc0, double[4,1,3,5] y) {{
            y, y_h, y_c, cells, gates =
                com.microsoft.LSTMTraining <hidden_size={HIDDEN}> (x, w, r, b, , h0, c0)
            dx, dw, dr, db, dh0, dc0 = com.microsoft.LSTMGrad <hidden_size={HIDDEN}>
                (x, w, r, , h0, c0, y, cells, gates, d_all, d_h, d_c)
        }}"
    );
    check_gradients(&layer, &graph, &["x", "w", "r", "b", "h0", "c0"]);
}

#[test]
fn gradients_of_gru_are_what_finite_differences_say() {
    for reset in [0, 1] {
        let mut layer = Layer::new("GRU", 1);
        layer.linear_before_reset = reset == 1;
        let attributes = format!("<hidden_size={HIDDEN}, linear_before_reset={reset}>");
        let graph = format!(
            "g (double[4,3,2] x, double[1,15,2] w, double[1,15,5] r, double[1,30] b,
                double[1,3,5] h0, double[4,1,3,5] d_all, double[1,3,5] d_h)
                => (double[4,3,2] dx, double[1,15,2] dw, double[1,15,5] dr, double[1,30] db,
                    double[1,3,5] dh0, double[4,1,3,5] y) {{
                y, y_h, gates = com.microsoft.GRUTraining {attributes} (x, w, r, b, , h0)
                dx, dw, dr, db, dh0 = com.microsoft.GRUGrad {attributes}
                    (x, w, r, b, , h0, y, gates, d_all, d_h)
            }}"
        );
        check_gradients(&layer, &graph, &["x", "w", "r", "b", "h0"]);
    }
}

/// The gradients' nodes read another X than the forward pass did, as they do where X was compressed: all but
/// dW are the same, bit for bit.
#[test]
fn x_matters_for_the_gradient_of_the_input_weights_only() {
    for (op, rows) in [("LSTM", 20), ("GRU", 15)] {
        let layer = Layer::new(op, 1);
        let biases = 2 * rows;
        let step = match op {
            "LSTM" => {
                "y, y_h, y_c, cells, gates =
                    com.microsoft.LSTMTraining <hidden_size=5> (x, w, r, b, , h0, c0)
                dx, dw, dr, db, dh0 = com.microsoft.LSTMGrad <hidden_size=5>
                    (other, w, r, , h0, c0, y, cells, gates, d_all)"
            }
            _ => {
                "y, y_h, gates = com.microsoft.GRUTraining <hidden_size=5> (x, w, r, b, , h0)
                dx, dw, dr, db, dh0 = com.microsoft.GRUGrad <hidden_size=5>
                    (other, w, r, b, , h0, y, gates, d_all)"
            }
        };
        let graph = format!(
            "g (float[4,3,2] x, float[4,3,2] other, float[1,{rows},2] w, float[1,{rows},5] r,
                float[1,{biases}] b, float[1,3,5] h0, float[1,3,5] c0, float[4,1,3,5] d_all)
                => (float[4,3,2] dx, float[1,{rows},2] dw, float[1,{rows},5] dr,
                    float[1,{biases}] db, float[1,3,5] dh0) {{
                {step}
            }}"
        );
        let d_all = Array::random(&[STEPS, 1, BATCH, HIDDEN], 8);
        let gradients = |other: &Array| {
            let inputs = [
                ("x", &layer.x),
                ("other", other),
                ("w", &layer.w),
                ("r", &layer.r),
                ("b", &layer.b),
                ("h0", &layer.h0),
                ("c0", &layer.c0),
                ("d_all", &d_all),
            ];
            run(DataType::FLOAT, &graph, &inputs)
        };
        let exact = gradients(&layer.x);
        let compressed = gradients(&Array::random(&[STEPS, BATCH, INPUT], 9));
        for (place, (a, b)) in exact.iter().zip(&compressed).enumerate() {
            assert_eq!(a.data == b.data, place != 1, "{op}: output {place}");
        }
    }
}

#[test]
fn a_length_beyond_the_steps_is_refused() {
    let graph = "g (float[2,1,1] x, float[1,1,1] w, float[1,1,1] r) => (float[2,1,1,1] y)
            <int32[1] lengths = {3}> {
            y = RNN <hidden_size=1> (x, w, r, , lengths)
        }";
    let operand = |shape: &[usize]| Array::random(shape, 1).tensor(DataType::FLOAT);
    let inputs = [
        ("x", operand(&[2, 1, 1])),
        ("w", operand(&[1, 1, 1])),
        ("r", operand(&[1, 1, 1])),
    ];
    let message = try_run(1, graph, &inputs).unwrap_err();
    assert!(message.contains("expected 0 to 2"), "{message}");
}
