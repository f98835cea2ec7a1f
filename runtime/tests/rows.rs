//! Reductions, normalisations, losses and compressed activations, against sums in f64.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use velora_graph::ir::Model;
use velora_graph::text;
use velora_runtime::cpu::Cpu;
use velora_runtime::evaluate::evaluate;
use velora_runtime::lower::Request;
use velora_runtime::tensor::Tensor;

const EPS: f64 = f32::EPSILON as f64;

fn try_run(source: &str, inputs: &[(&str, Tensor)], threads: usize) -> Result<Vec<Tensor>, String> {
    let model = Model::from_proto(text::parse_model(source).unwrap()).unwrap();
    let request = Request {
        sizes: &BTreeMap::new(),
        partition: None,
        folder: None,
        evaluation: false,
    };
    let inputs = inputs.iter().map(|(n, t)| ((*n).to_owned(), t.clone()));
    let cpu = Cpu::new(threads).unwrap();
    evaluate(&model, &request, &inputs.collect(), &cpu).map_err(|error| error.to_string())
}

/// Runs with one thread and with three, which must give the same bits.
fn run(graph: &str, inputs: &[(&str, Tensor)]) -> Vec<Vec<f32>> {
    let source = format!(
        r#"<ir_version: 10, opset_import: ["" : 18, "com.microsoft" : 1, "ai.velora" : 1]> {graph}"#
    );
    let one = try_run(&source, inputs, 1).unwrap();
    let three = try_run(&source, inputs, 3).unwrap();
    assert!(one == three, "threads change the result of {graph}");
    one.iter().map(|t| t.to_f32().unwrap()).collect()
}

/// Numbers between -1 and 1 that look random.
fn numbers(shape: &[usize], seed: u64) -> Tensor {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let next = |_| {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1 << 23) as f32 - 1.0
    };
    let elements: Vec<f32> = (0..shape.iter().product()).map(next).collect();
    Tensor::from_f32(shape, &elements)
}

fn wide(tensor: &Tensor) -> Vec<f64> {
    (tensor.to_f32().unwrap().iter())
        .map(|&x| f64::from(x))
        .collect()
}

/// Each element must be within its bound of what was expected.
fn close(what: &str, found: &[f32], expected: &[f64], bound: impl Fn(usize) -> f64) {
    assert_eq!(found.len(), expected.len(), "{what}");
    for (i, (&f, &e)) in found.iter().zip(expected).enumerate() {
        let error = (f64::from(f) - e).abs();
        assert!(
            error <= bound(i),
            "{what}[{i}]: {f} for {e}, off by {error}"
        );
    }
}

/// An f32 lane adds at most 64 numbers before they go to f64, and lanes are joined in 6 steps.
const SUM: f64 = 72.0 * EPS;

#[test]
fn sums_of_rows_columns_and_in_between() {
    let x = numbers(&[3, 700, 5, 37], 1);
    let shape = [3, 700, 5, 37];
    let elements = wide(&x);
    for axes in [
        vec![3],
        vec![2, 3],
        vec![0, 1],
        vec![1],
        vec![0, 2],
        vec![0, 1, 2, 3],
        vec![0, 3],
    ] {
        let kept: Vec<usize> = (0..4)
            .filter(|a| !axes.contains(a))
            .map(|a| shape[a])
            .collect();
        let mut sums = vec![0.0; kept.iter().product()];
        let mut sizes = vec![0.0; sums.len()];
        for (i, x) in elements.iter().enumerate() {
            let (mut rest, mut place, mut stride) = (i, 0, 1);
            for axis in (0..4).rev() {
                if !axes.contains(&axis) {
                    place += rest % shape[axis] * stride;
                    stride *= shape[axis];
                }
                rest /= shape[axis];
            }
            sums[place] += x;
            sizes[place] += x.abs();
        }
        let list = |of: &[usize]| {
            of.iter()
                .map(usize::to_string)
                .collect::<Vec<_>>()
                .join(",")
        };
        let graph = format!(
            "g (float[3,700,5,37] x) => (float[{}] y) <int64[{}] axes = {{{}}}> {{ y = ReduceSum <keepdims: int = 0> (x, axes) }}",
            list(&kept),
            axes.len(),
            list(&axes)
        );
        let y = run(&graph, &[("x", x.clone())]);
        close(&graph, &y[0], &sums, |i| SUM * sizes[i]);
    }
}

#[test]
fn column_sums_of_many_rows() {
    let (rows, width) = (5003, 70);
    let x = numbers(&[rows, width], 2);
    let mut sums = vec![0.0; width];
    for row in wide(&x).chunks(width) {
        sums.iter_mut().zip(row).for_each(|(s, x)| *s += x);
    }
    let graph = "g (float[5003,70] x) => (float[70] y) <int64[1] axes = {0}> { y = ReduceSum <keepdims: int = 0> (x, axes) }";
    let y = run(graph, &[("x", x)]);
    close("columns", &y[0], &sums, |_| SUM * rows as f64);
}

fn softmax(x: &[f64], size: usize) -> Vec<f64> {
    let row = |x: &[f64]| {
        let sum: f64 = x.iter().map(|x| x.exp()).sum();
        x.iter().map(|x| x.exp() / sum).collect::<Vec<f64>>()
    };
    x.chunks(size).flat_map(row).collect()
}

#[test]
fn softmax_and_its_gradient() {
    let (rows, size) = (600, 83);
    let x = numbers(&[rows, size], 3);
    let dy = numbers(&[rows, size], 4);
    let graph = r#"g (float[600,83] x, float[600,83] dy) => (float[600,83] y, float[600,83] dx, float[600,83] dz) {
        y = Softmax <axis: int = -1> (x)
        dx = com.microsoft.SoftmaxGrad_13 <axis: int = -1> (dy, y)
        z = LogSoftmax <axis: int = -1> (x)
        dz = com.microsoft.LogSoftmaxGrad_13 <axis: int = -1> (dy, z)
    }"#;
    let found = run(graph, &[("x", x.clone()), ("dy", dy.clone())]);
    let (y, dy) = (softmax(&wide(&x), size), wide(&dy));
    // The exponential is within 2 units, and its argument off by half a unit of 2.
    close("y", &found[0], &y, |i| (SUM + 8.0 * EPS) * y[i]);
    let (mut dx, mut dz) = (Vec::new(), Vec::new());
    for (y, dy) in y.chunks(size).zip(dy.chunks(size)) {
        let product: f64 = y.iter().zip(dy).map(|(y, d)| y * d).sum();
        let sum: f64 = dy.iter().sum();
        dx.extend(y.iter().zip(dy).map(|(y, d)| y * (d - product)));
        dz.extend(y.iter().zip(dy).map(|(y, d)| d - y * sum));
    }
    close("dx", &found[1], &dx, |i| {
        (2.0 * SUM + 16.0 * EPS) * y[i] * 2.0
    });
    // A logarithm near -5 is off by units of 4.
    close("dz", &found[2], &dz, |i| {
        EPS + (2.0 * SUM + 16.0 * EPS) * y[i] * size as f64
    });
}

#[test]
fn softmax_over_an_axis_in_the_middle_is_that_over_the_last_one() {
    let x = numbers(&[4, 5, 40], 5);
    let graph = r#"g (float[4,5,40] x) => (float[4,5,40] y) { y = Softmax <axis: int = 1> (x) }"#;
    let found = run(graph, &[("x", x.clone())]);
    let x = wide(&x);
    for n in 0..4 {
        for i in 0..40 {
            let at = |c: usize| (n * 5 + c) * 40 + i;
            let column: Vec<f64> = (0..5).map(|c| x[at(c)]).collect();
            for (c, y) in softmax(&column, 5).into_iter().enumerate() {
                close("y", &found[0][at(c)..=at(c)], &[y], |_| 16.0 * EPS);
            }
        }
    }
}

/// Σ dY · layer norm(X), which dX, dScale and dBias are the derivatives of.
fn layer_objective(x: &[f64], scale: &[f64], bias: &[f64], dy: &[f64], centred: bool) -> f64 {
    let size = scale.len();
    let mut total = 0.0;
    for (x, dy) in x.chunks(size).zip(dy.chunks(size)) {
        let mean = if centred {
            x.iter().sum::<f64>() / size as f64
        } else {
            0.0
        };
        let square = x.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / size as f64;
        let inverse = 1.0 / (square + f64::from(1e-5f32)).sqrt();
        for i in 0..size {
            total += dy[i] * ((x[i] - mean) * inverse * scale[i] + bias[i]);
        }
    }
    total
}

#[test]
fn gradients_of_layer_normalisation_are_finite_differences() {
    let (rows, size) = (45, 19);
    let x = numbers(&[rows, size], 6);
    let dy = numbers(&[rows, size], 7);
    let (scale, bias) = (numbers(&[size], 8), numbers(&[size], 9));
    for centred in [true, false] {
        let graph = if centred {
            r#"g (float[45,19] x, float[19] s, float[19] b, float[45,19] dy) => (float[45,19] y, float[45,19] dx, float[19] ds, float[19] db) {
            y, mean, inv = LayerNormalization (x, s, b)
            dx, ds, db = com.microsoft.LayerNormalizationGrad (dy, x, s, mean, inv) }"#
        } else {
            r#"g (float[45,19] x, float[19] s, float[19] b, float[45,19] dy) => (float[45,19] y, float[45,19] dx, float[19] ds) {
            y, inv = SimplifiedLayerNormalization (x, s)
            dx, ds = com.microsoft.SimplifiedLayerNormalizationGrad (dy, x, s, inv) }"#
        };
        let inputs = [
            ("x", x.clone()),
            ("s", scale.clone()),
            ("b", bias.clone()),
            ("dy", dy.clone()),
        ];
        let found = run(graph, &inputs);
        let operands = [wide(&x), wide(&scale), wide(&bias)];
        let dy = wide(&dy);
        for (number, output) in found[1..].iter().enumerate() {
            let differences: Vec<f64> = (0..operands[number].len())
                .map(|i| {
                    let h = 1e-5;
                    let at = |shift: f64| {
                        let mut o = operands.clone();
                        o[number][i] += shift;
                        layer_objective(&o[0], &o[1], &o[2], &dy, centred)
                    };
                    (at(h) - at(-h)) / (2.0 * h)
                })
                .collect();
            // Differences are off by about h² and by the rounding of a sum of 855 terms over h.
            let largest = differences.iter().fold(1.0f64, |m, d| m.max(d.abs()));
            close(graph, output, &differences, |_| 1e-7 + SUM * largest);
        }
    }
}

#[test]
fn gradients_of_batch_normalisation_sum_to_nothing() {
    let x = numbers(&[6, 3, 50], 10);
    let dy = numbers(&[6, 3, 50], 11);
    let (s, zeros, ones) = (
        numbers(&[3], 12),
        Tensor::from_f32(&[3], &[0.0; 3]),
        Tensor::from_f32(&[3], &[1.0; 3]),
    );
    let graph = r#"g (float[6,3,50] x, float[3] s, float[3] b, float[3] v, float[6,3,50] dy) => (float[6,3,50] dx, float[3] ds, float[3] db) {
        y, rm, rv, sm, si = com.microsoft.BatchNormInternal <training_mode: int = 1> (x, s, b, b, v)
        dx, ds, db = com.microsoft.BatchNormalizationGrad <epsilon: float = 1e-5> (dy, x, s, sm, si)
    }"#;
    let inputs = [
        ("x", x.clone()),
        ("s", s),
        ("b", zeros),
        ("v", ones),
        ("dy", dy.clone()),
    ];
    let found = run(graph, &inputs);
    let (x, dy) = (wide(&x), wide(&dy));
    for c in 0..3 {
        let places = || (0..6).flat_map(move |n| (0..50).map(move |i| (n * 3 + c) * 50 + i));
        let bias: f64 = places().map(|p| dy[p]).sum();
        close("dBias", &found[2][c..=c], &[bias], |_| SUM * 300.0);
        // Neither a shift nor a stretch of a channel changes the output, but for epsilon.
        let shift: f64 = places().map(|p| f64::from(found[0][p])).sum();
        let stretch: f64 = places().map(|p| f64::from(found[0][p]) * x[p]).sum();
        assert!(shift.abs() < 300.0 * SUM, "{shift}");
        assert!(stretch.abs() < 300.0 * (SUM + 1e-4), "{stretch}");
    }
}

#[test]
fn cross_entropy_and_its_gradient() {
    let (rows, classes) = (300, 90);
    let x = numbers(&[rows, classes], 13);
    let labels: Vec<i64> = (0..rows)
        .map(|r| {
            if r % 7 == 0 {
                -100
            } else {
                (r * 31 % classes) as i64
            }
        })
        .collect();
    let weights = numbers(&[classes], 14);
    let weights = Tensor::from_f32(
        &[classes],
        &weights
            .to_f32()
            .unwrap()
            .iter()
            .map(|w| w + 1.5)
            .collect::<Vec<_>>(),
    );
    let graph = r#"g (float[300,90] x, int64[300] l, float[90] w, float dy) => (float loss, float[300,90] dx) {
        loss, log = SoftmaxCrossEntropyLoss <ignore_index: int = -100> (x, l, w)
        dx = com.microsoft.SoftmaxCrossEntropyLossGrad <ignore_index: int = -100> (dy, log, l, w)
    }"#;
    let inputs = [
        ("x", x.clone()),
        ("l", Tensor::from_i64(&[rows], &labels)),
        ("w", weights.clone()),
        ("dy", Tensor::from_f32(&[], &[0.5])),
    ];
    let found = run(graph, &inputs);
    let (p, w) = (softmax(&wide(&x), classes), wide(&weights));
    let counted = || {
        labels
            .iter()
            .enumerate()
            .filter(|(_, l)| **l >= 0)
            .map(|(r, &l)| (r, l as usize))
    };
    let total: f64 = counted().map(|(_, l)| w[l]).sum();
    let loss: f64 = counted()
        .map(|(r, l)| -p[r * classes + l].ln() * w[l] / total)
        .sum();
    close("loss", &found[0], &[loss], |_| {
        (SUM + 16.0 * EPS) * loss.max(1.0) * 4.0
    });
    let mut dx = vec![0.0; rows * classes];
    for (r, l) in counted() {
        for c in 0..classes {
            let hot = f64::from(u8::from(c == l));
            dx[r * classes + c] = (p[r * classes + c] - hot) * w[l] * 0.5 / total;
        }
    }
    close("dx", &found[1], &dx, |_| {
        (SUM + 16.0 * EPS) * 2.5 * 0.5 / total
    });
}

#[test]
fn a_label_that_is_no_class_is_named() {
    let source = r#"<ir_version: 10, opset_import: ["" : 18]> g (float[2,3] x, int64[2] l) => (float loss) {
        loss = SoftmaxCrossEntropyLoss (x, l) }"#;
    for label in [3, -1, i64::MIN] {
        let inputs = [
            ("x", numbers(&[2, 3], 1)),
            ("l", Tensor::from_i64(&[2], &[0, label])),
        ];
        let error = try_run(source, &inputs, 1).unwrap_err();
        assert!(
            error.contains(&format!("label {label} at place 1: expected 0 to 2")),
            "{error}"
        );
    }
}

/// The entries of a sub-token: X̂, z and dW by the definition, in f64.
#[test]
fn compressed_activations_by_their_definition() {
    for (n, d, groups, o) in [
        (70, 64, 16, 9),
        (33, 30, 7, 5),
        (40, 96, 4, 130),
        (9, 10, 7, 3),
        (200, 700, 2, 4),
        (5, 6, 6, 2),
        (9, 485, 41, 3),
        (6, 98, 10, 3),
    ] {
        let m = usize::div_ceil(d, groups);
        let (x, v, dy) = (
            numbers(&[n, d], 20),
            numbers(&[m], 21),
            numbers(&[n, o], 22),
        );
        let graph = format!(
            r#"g (float[{n},{d}] x, float[{m}] v, float[{n},{o}] dy)
            => (float[{n},{groups}] z, float[{n},{d}] y, float[{d},{o}] dw, float[{o},{d}] dt, float[{m}] mean) {{
            z = ai.velora.Compress <groups: int = {groups}> (x, v)
            y = ai.velora.Reconstruct <groups: int = {groups}, features: int = {d}> (z, v)
            dw = ai.velora.FactoredWeightGrad <groups: int = {groups}, features: int = {d}, transposed: int = 0, scale: float = 0.5> (z, dy, v)
            dt = ai.velora.FactoredWeightGrad <groups: int = {groups}, features: int = {d}, transposed: int = 1, scale: float = 0.5> (z, dy, v)
            mean = ai.velora.MeanDirection <groups: int = {groups}> (x) }}"#
        );
        let found = run(
            &graph,
            &[("x", x.clone()), ("v", v.clone()), ("dy", dy.clone())],
        );
        let (x, v, dy) = (wide(&x), wide(&v), wide(&dy));
        let mut z = vec![0.0; n * groups];
        let mut mean = vec![0.0; m];
        for (i, x) in x.iter().enumerate() {
            z[i / d * groups + i % d / m] += x * v[i % d % m];
            mean[i % d % m] += x;
        }
        let y: Vec<f64> = (0..n * d)
            .map(|i| z[i / d * groups + i % d / m] * v[i % d % m])
            .collect();
        let (mut dw, mut dt) = (vec![0.0; d * o], vec![0.0; d * o]);
        for f in 0..d {
            for c in 0..o {
                dw[f * o + c] = (0..n).map(|r| 0.5 * y[r * d + f] * dy[r * o + c]).sum();
                dt[c * d + f] = dw[f * o + c];
            }
        }
        let bound = (SUM + 4.0 * EPS) * m as f64;
        close("z", &found[0], &z, |_| bound);
        close("y", &found[1], &y, |_| bound + EPS);
        // The product adds n numbers in f32.
        let of_sum = n as f64 * (bound + n as f64 * EPS * m as f64);
        close("dw", &found[2], &dw, |_| of_sum);
        close("dt", &found[3], &dt, |_| of_sum);
        let norm = mean.iter().map(|s| s * s).sum::<f64>().sqrt();
        let mean: Vec<f64> = mean.iter().map(|s| s / norm).collect();
        close("mean", &found[4], &mean, |_| {
            EPS + 2.0 * SUM * (n * d) as f64 / norm
        });
    }
}

/// Sub-tokens across channels: z, X̂ and the mean by the definition, in f64.
#[test]
fn channels_by_their_definition() {
    for (batch, d, groups, places) in [
        (2, 8, 4, 36),
        (3, 10, 3, 300),
        (1, 7, 5, 1),
        (4, 6, 6, 17),
        (2, 5, 4, 600),
    ] {
        let m = usize::div_ceil(d, groups);
        let (x, v) = (numbers(&[batch, d, places], 23), numbers(&[m], 24));
        let graph = format!(
            r#"g (float[{batch},{d},{places}] x, float[{m}] v)
            => (float[{batch},{groups},{places}] z, float[{batch},{d},{places}] y, float[{m}] mean) {{
            z = ai.velora.Compress <groups: int = {groups}, axis: int = 1> (x, v)
            y = ai.velora.Reconstruct <groups: int = {groups}, features: int = {d}, axis: int = 1> (z, v)
            mean = ai.velora.MeanDirection <groups: int = {groups}, axis: int = 1> (x) }}"#
        );
        let found = run(&graph, &[("x", x.clone()), ("v", v.clone())]);
        let (x, v) = (wide(&x), wide(&v));
        let mut z = vec![0.0; batch * groups * places];
        let mut mean = vec![0.0; m];
        // Which channel, which of its sub-token's numbers in z.
        let at = |i: usize| {
            let (row, place) = (i / places, i % places);
            let channel = row % d;
            (channel, (row / d * groups + channel / m) * places + place)
        };
        for (i, x) in x.iter().enumerate() {
            let (channel, of_z) = at(i);
            z[of_z] += x * v[channel % m];
            mean[channel % m] += x;
        }
        let y: Vec<f64> = (0..x.len()).map(|i| z[at(i).1] * v[at(i).0 % m]).collect();
        let bound = (SUM + 4.0 * EPS) * m as f64;
        close("z", &found[0], &z, |_| bound);
        close("y", &found[1], &y, |_| bound + EPS);
        let norm = mean.iter().map(|s| s * s).sum::<f64>().sqrt();
        let mean: Vec<f64> = mean.iter().map(|s| s / norm).collect();
        close("mean", &found[2], &mean, |_| {
            EPS + 2.0 * SUM * x.len() as f64 / norm
        });
    }
}

/// The gradient of a scale by its definition, in f64.
#[test]
fn factored_gradients_of_scales_by_their_definition() {
    for (n, d, groups) in [
        (70, 64, 16),
        (33, 30, 7),
        (500, 700, 2),
        (9, 10, 7),
        (5, 6, 6),
        (3000, 24, 5),
    ] {
        let m = usize::div_ceil(d, groups);
        let (z, dy, v) = (
            numbers(&[n, groups], 25),
            numbers(&[n, d], 26),
            numbers(&[m], 27),
        );
        let graph = format!(
            r#"g (float[{n},{groups}] z, float[{n},{d}] dy, float[{m}] v) => (float[{d}] dg) {{
            dg = ai.velora.FactoredScaleGrad <groups: int = {groups}, scale: float = 0.5> (z, dy, v) }}"#
        );
        let inputs = [("z", z.clone()), ("dy", dy.clone()), ("v", v.clone())];
        let found = run(&graph, &inputs);
        let (z, dy, v) = (wide(&z), wide(&dy), wide(&v));
        let of = |f: usize, r: usize| z[r * groups + f / m] * dy[r * d + f];
        let sum = |f| (0..n).map(|r| of(f, r)).sum::<f64>();
        let dg: Vec<f64> = (0..d).map(|f| 0.5 * v[f % m] * sum(f)).collect();
        // A product, a sum, and three roundings of the result.
        let size = |f| (0..n).map(|r| of(f, r).abs()).sum::<f64>();
        close("dg", &found[0], &dg, |f| (SUM + 4.0 * EPS) * size(f));
    }
}

#[test]
fn the_direction_of_nothing_is_even() {
    let graph =
        "g (float[8,12] x) => (float[4] v) { v = ai.velora.MeanDirection <groups: int = 3> (x) }";
    let found = run(graph, &[("x", Tensor::from_f32(&[8, 12], &[0.0; 96]))]);
    assert_eq!(found[0], [0.5; 4]);
}
