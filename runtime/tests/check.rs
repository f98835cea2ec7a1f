//! The comparison of a device with the CPU: bounds that the CPU itself keeps, that another order of summation
//! keeps, and that an error of a few times their size does not.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::time::Instant;
use velora_graph::ir::Model;
use velora_graph::shapes::DataType;
use velora_graph::text;
use velora_runtime::backend::{Backend, Observer, StepContext};
use velora_runtime::check::{Check, Findings, Precision};
use velora_runtime::cpu::Cpu;
use velora_runtime::lower::{Request, lower};
use velora_runtime::plan::{Step, build};

/// Changes what a device seems to write: the operation, the output, and what becomes of its bytes.
type Change<'c> = (&'static str, usize, &'c (dyn Fn(&mut [u8]) + Sync));

/// A device that is the CPU, but for a change.
struct Device<'c> {
    check: Check,
    change: Option<Change<'c>>,
}

impl Observer for Device<'_> {
    fn wants_inputs(&self) -> bool {
        true
    }

    fn starting(
        &mut self,
        number: usize,
        step: &Step,
        read: &mut dyn Iterator<Item = (usize, &[u8])>,
    ) {
        self.check.starting(number, step, read);
    }

    fn finished(
        &mut self,
        number: usize,
        step: &Step,
        times: (Instant, Instant),
        written: &mut dyn Iterator<Item = (usize, &[u8])>,
    ) {
        let mut all: Vec<(usize, Vec<u8>)> = written.map(|(p, b)| (p, b.to_vec())).collect();
        if let Some((op, output, change)) = self.change
            && op == step.op.name()
        {
            let of = all.iter_mut().find(|(place, _)| *place == output);
            change(&mut of.unwrap().1);
        }
        let mut written = all.iter().map(|(place, bytes)| (*place, &bytes[..]));
        self.check.finished(number, step, times, &mut written);
    }
}

/// Numbers between -2 and 2 that look random; small integers, and truth values.
fn fill(ty: DataType, bytes: &mut [u8], seed: u64) {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 11) as f64 / (1u64 << 51) as f64 - 2.0
    };
    let width = ty.bits().unwrap() as usize / 8;
    for element in bytes.chunks_mut(width) {
        let x = next();
        let whole = (x.abs() * 2.0) as i64;
        match ty {
            DataType::FLOAT => element.copy_from_slice(&(x as f32).to_le_bytes()),
            DataType::DOUBLE => element.copy_from_slice(&x.to_le_bytes()),
            DataType::FLOAT16 => element.copy_from_slice(&half::f16::from_f64(x).to_le_bytes()),
            DataType::BFLOAT16 => element.copy_from_slice(&half::bf16::from_f64(x).to_le_bytes()),
            DataType::BOOL => element[0] = (whole & 1) as u8,
            _ => element.copy_from_slice(&whole.to_le_bytes()[..width]),
        }
    }
}

/// Runs a graph on random inputs, watched.
fn watch(body: &str, change: Option<Change<'_>>, precision: Precision) -> Findings {
    let header =
        r#"<ir_version: 10, opset_import: ["" : 20, "com.microsoft" : 1, "ai.velora" : 1]> "#;
    let model = text::parse_model(&format!("{header}{body}")).unwrap();
    let model = Model::from_proto(model).unwrap();
    let request = Request {
        sizes: &BTreeMap::new(),
        partition: None,
        folder: None,
        evaluation: false,
    };
    let mut program = lower(&model, &request).unwrap();
    let cpu = Cpu::new(2).unwrap();
    let plan = build(&mut program, &cpu).unwrap();
    let mut executable = cpu.prepare(vec![plan]).unwrap();
    let inputs = executable.plan().inputs.clone();
    for (place, operand) in inputs.into_iter().flatten().enumerate() {
        let ty = operand.ty.data_type;
        let seed = place as u64 + 1;
        (executable.fill(operand.buffer, &mut |bytes| fill(ty, bytes, seed))).unwrap();
    }
    let context = StepContext { seed: 3, step: 5 };
    let check = Check::new(executable.plan(), 2, context, precision).unwrap();
    let mut device = Device { check, change };
    executable.run(&context, Some(&mut device)).unwrap();
    device.check.findings().clone()
}

fn clean(body: &str) -> Findings {
    let findings = watch(body, None, Precision::default());
    assert!(findings.first.is_none(), "{body}: {findings}");
    assert!(
        findings.left_out.is_empty(),
        "{body}: {:?}",
        findings.left_out
    );
    findings
}

/// Graphs with every family that rounds, and the least that the CPU's error may be of what the analysis
/// allows: an analysis that allows much more says nothing.
const GRAPHS: &[(&str, f64)] = &[
    ("g (float[5,40] a, float[40,7] b, float[7] c) => (float[5,7] y) { y = Gemm <alpha: float = -0.7, beta: float = 0.3> (a, b, c) }", 1e-3),
    ("g (float16[5,40] a, float16[40,7] b) => (float16[5,7] y) { y = MatMul (a, b) }", 0.05),
    ("g (bfloat16[5,40] a, bfloat16[40,7] b) => (bfloat16[5,7] y) { y = MatMul (a, b) }", 0.05),
    ("g (int32[3,4] a, int32[4,2] b) => (int32[3,2] y) { y = MatMul (a, b) }", 0.0),
    // GELU, and a chain with comparisons.
    ("g (float[3,50] x, float[50] b) => (float[3,50] y) <float h = {0.5}, float r = {0.70710677}, float one = {1}> {
        s = Add (x, b)  t = Mul (s, r)  e = Erf (t)  f = Add (e, one)  m = Mul (s, f)  y = Mul (m, h) }", 0.01),
    ("g (float[300] x) => (float[300] y) <float z = {0}> { a = Exp (x)  l = Log (a)  s = Sigmoid (l)  t = Tanh (s)
        p = Softplus (t)  q = Sqrt (p)  c = Less (x, z)  w = Where (c, q, l)  y = Relu (w) }", 0.01),
    ("g (float[300] x) => (float[300] y) { a = Sin (x)  b = Cos (a)  c = Tan (b)  d = Atan (c)  e = Asinh (d)
        f = Sinh (e)  g = Cosh (f)  h = Acosh (g)  i = Abs (h)  y = Reciprocal (i) }", 0.001),
    ("g (float[300] x, float[300] z) => (float[300] y) { a = Abs (x)  p = Pow (a, z)  d = Div (p, a)  m = Max (d, z)
        f = Floor (m)  y = Sub (m, f) }", 0.0),
    ("g (float16[300] x) => (float16[300] y) { s = Sigmoid (x)  y = Mul (x, s) }", 0.05),
    ("g (double[300] x) => (double[300] y) { s = Exp (x)  y = Mul (x, s) }", 0.0),
    ("g (int64[300] x, bool[300] c) => (int64[300] y, float[300] z) { a = Mul (x, x)  b = Neg (a)  y = Where (c, a, b)
        z = Cast <to: int = 1> (y) }", 0.0),
    ("g (float[6,5,30] x) => (float[6,30] s, float[5] m, float[6,5] a, float[6,5] b, float[6,5] c, float[6,5] d, float[6,5] e, float[6,5] p)
        <int64[1] i = {1}, int64[2] o = {0, 2}, int64[1] l = {2}> {
        s = ReduceSum <keepdims: int = 0> (x, i)  m = ReduceMean <keepdims: int = 0> (x, o)
        a = ReduceL1 <keepdims: int = 0> (x, l)  b = ReduceL2 <keepdims: int = 0> (x, l)
        c = ReduceLogSumExp <keepdims: int = 0> (x, l)  d = ReduceSumSquare <keepdims: int = 0> (x, l)
        e = ReduceMax <keepdims: int = 0> (x, l)  p = ReduceProd <keepdims: int = 0> (x, l) }", 1e-3),
    ("g (float[6,30] x) => (float[6,30] c, int64[6,1] a, float[6,4] v, int64[6,4] k) <int64 one = {1}, int64[1] four = {4}> {
        c = CumSum (x, one)  a = ArgMax <axis: int = 1> (x)  v, k = TopK (x, four) }", 1e-3),
    ("g (float[4,33] x, float[4,33] dy) => (float[4,33] dx, float[4,33] dz) { y = Softmax (x)  z = LogSoftmax (x)
        dx = com.microsoft.SoftmaxGrad_13 <axis: int = -1> (dy, y)
        dz = com.microsoft.LogSoftmaxGrad_13 <axis: int = -1> (dy, z) }", 1e-3),
    ("g (float16[4,33] x) => (float16[4,33] y) { y = Softmax (x) }", 0.02),
    ("g (float[4,33,5] x) => (float[4,33,5] y) { y = Softmax <axis: int = 1> (x) }", 1e-3),
    ("g (float[6,40] x, float[40] s, float[40] b, float[6,40] dy) => (float[6,40] y, float[6,40] dx, float[40] ds, float[40] db) {
        y, mean, inv = LayerNormalization (x, s, b)
        dx, ds, db = com.microsoft.LayerNormalizationGrad (dy, x, s, mean, inv) }", 1e-3),
    ("g (float[6,40] x, float[40] s, float[6,40] dy) => (float[6,40] y, float[6,40] dx, float[40] ds) {
        y, inv = SimplifiedLayerNormalization (x, s)
        dx, ds = com.microsoft.SimplifiedLayerNormalizationGrad (dy, x, s, inv) }", 1e-3),
    ("g (float[4,3,11] x, float[3] s, float[3] b, float[4,3,11] dy) => (float[4,3,11] y, float[4,3,11] dx, float[3] ds, float[3] db, float[3] rm, float[3] rv) {
        y, rm, rv, sm, si = com.microsoft.BatchNormInternal <training_mode: int = 1> (x, s, b, b, s)
        dx, ds, db = com.microsoft.BatchNormalizationGrad <epsilon: float = 1e-5> (dy, x, s, sm, si) }", 1e-3),
    ("g (float[9,7] x, int64[9] l, float[7] w, float dy) => (float loss, float[9,7] dx) {
        loss, log = SoftmaxCrossEntropyLoss <ignore_index: int = -100> (x, l, w)
        dx = com.microsoft.SoftmaxCrossEntropyLossGrad <ignore_index: int = -100> (dy, log, l, w) }", 1e-3),
    ("g (float[9,30] x, float[8] v, float[9,11] dy) => (float[9,30] y, float[30,11] dw, float[8] m, float[9,4] z, float[9,4] q) {
        z = ai.velora.Compress <groups: int = 4> (x, v)
        y = ai.velora.Reconstruct <groups: int = 4, features: int = 30> (z, v)
        dw = ai.velora.FactoredWeightGrad <groups: int = 4, features: int = 30, transposed: int = 0, scale: float = -0.5> (z, dy, v)
        m = ai.velora.MeanDirection <groups: int = 4> (x)
        i, s = ai.velora.Quantize (z)  q = ai.velora.Dequantize (i, s) }", 1e-3),
    ("g (float[9,30] x, float[2,8] v, float[4,1,8] o) => (float[9,8] z, float[9,30] y, float[4,1,8] n) {
        z = ai.velora.Compress <groups: int = 4> (x, v)
        y = ai.velora.Reconstruct <groups: int = 4, features: int = 30> (z, v)
        m = ai.velora.MeanDirections <groups: int = 4> (x)
        n = ai.velora.RunningDirection <decay: float = 0.9> (o, m) }", 1e-3),
    ("g (float[5,6] d, int64[4] i, float[4,6] u) => (float[5,6] y, float[4,6] z) <int64[1] one = {1}> {
        z = Gather (d, i)  k = Unsqueeze (i, one)  y = ScatterND <reduction: string = \"add\"> (d, k, u) }", 0.01),
    ("g (float[100,9] x) => (float[100,9] y, bool[100,9] m, float[100,9] dx) <float r = {0.3}, bool t = {1}> {
        y, m = Dropout (x, r, t)  dx = com.microsoft.DropoutGrad (x, m, r, t) }", 0.01),
    ("g () => (float[50] a, float[50] b) { a = RandomNormal <shape: ints = [50]> ()
        b = RandomUniform <shape: ints = [50], low: float = -1.0> () }", 0.0),
    ("g (float[2,3,9,9] x, float[4,3,3,3] w, float[4] b, float[2,4,9,9] dy) => (float[2,4,9,9] y, float[2,3,9,9] dx, float[4,3,3,3] dw, float[4] db) {
        y = Conv <pads: ints = [1, 1, 1, 1]> (x, w, b)
        dx, dw, db = com.microsoft.ConvGrad <pads: ints = [1, 1, 1, 1]> (dy, x, w) }", 1e-3),
    ("g (float[2,3,9,9] x) => (float[2,3,4,4] a, float[2,3,4,4] m, float[2,3,4,4] l) {
        a = AveragePool <kernel_shape: ints = [2, 2], strides: ints = [2, 2]> (x)
        m = MaxPool <kernel_shape: ints = [2, 2], strides: ints = [2, 2]> (x)
        l = LpPool <kernel_shape: ints = [2, 2], strides: ints = [2, 2], p: int = 3> (x) }", 1e-3),
    ("g (int8[6,8] x, float[6] s) => (float[6,8] y) { y = DequantizeLinear <axis: int = 0> (x, s) }", 0.0),
    ("g (float[4,3,2] x, float[1,20,2] w, float[1,20,5] r, float[1,40] b, float[1,3,5] h0, float[1,3,5] c0, float[4,1,3,5] d, float[1,3,5] dh, float[1,3,5] dc)
        => (float[4,3,2] dx, float[1,20,2] dw, float[1,20,5] dr, float[1,40] db) {
        y, y_h, y_c, cells, gates = com.microsoft.LSTMTraining <hidden_size=5> (x, w, r, b, , h0, c0)
        dx, dw, dr, db = com.microsoft.LSTMGrad <hidden_size=5> (x, w, r, , h0, c0, y, cells, gates, d, dh, dc) }", 1e-3),
    ("g (float[4,3,2] x, float[1,15,2] w, float[1,15,5] r, float[1,30] b, float[1,3,5] h0, float[4,1,3,5] d)
        => (float[4,3,2] dx, float[1,15,2] dw, float[1,15,5] dr, float[1,30] db) {
        y, y_h, gates = com.microsoft.GRUTraining <hidden_size=5> (x, w, r, b, , h0)
        dx, dw, dr, db = com.microsoft.GRUGrad <hidden_size=5> (x, w, r, b, , h0, y, gates, d) }", 1e-3),
    ("g (float[4,3,2] x, float[1,5,2] w, float[1,5,5] r) => (float[4,1,3,5] y) {
        y = RNN <hidden_size=5, activations = [\"Relu\"], clip: float = 1.5> (x, w, r) }", 1e-3),
];

/// The CPU agrees with itself, its errors are within the analysis of each operation, and the analysis does not
/// allow a thousand times as much.
#[test]
fn the_cpu_keeps_its_bounds() {
    let mut wrong = Vec::new();
    for &(body, least) in GRAPHS {
        let findings = clean(body);
        for (op, kind) in &findings.kinds {
            println!("{op:>18} {:.4} of {} elements", kind.cpu, kind.elements);
            if kind.unknown > 0 || kind.cpu > 1.0 {
                wrong.push(format!("{op}: {kind:?} in {body}"));
            }
        }
        let most = findings
            .kinds
            .values()
            .map(|kind| kind.cpu)
            .fold(0.0, f64::max);
        if most < least {
            wrong.push(format!("{most} of the bound at most in {body}"));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// What the operation of a graph with one operation does with an element, and what it may be off by.
fn element(
    body: &str,
    op: &'static str,
    output: usize,
    to: &(dyn Fn(f64) -> f32 + Sync),
) -> Findings {
    let change = |bytes: &mut [u8]| {
        let first: &mut [u8; 4] = bytes[..4].first_chunk_mut().unwrap();
        let was = f32::from_le_bytes(*first);
        *first = to(was.into()).to_le_bytes();
    };
    watch(body, Some((op, output, &change)), Precision::default())
}

/// An error of four times the bound is found, and named; one of less than half of it is none.
#[test]
fn an_error_of_four_bounds_is_found() {
    let layer = "g (float[6,40] x, float[40] s, float[6,40] dy) => (float[6,40] y, float[6,40] dx, float[40] ds) {
        y, mean, inv = LayerNormalization (x, s)
        dx, ds, db = com.microsoft.LayerNormalizationGrad (dy, x, s, mean, inv) }";
    let cases = [
        (
            "g (float[5,40] a, float[40,7] b) => (float[5,7] y) { y = MatMul (a, b) }",
            "MatMul",
            0,
        ),
        (
            "g (float[5,40] a) => (float[5,40] y) { b = Exp (a)  y = Tanh (b) }",
            "Elementwise",
            0,
        ),
        (
            "g (float[5,40] a) => (float[5] y) <int64[1] l = {1}> { y = ReduceSum <keepdims: int = 0> (a, l) }",
            "Reduce",
            0,
        ),
        (
            "g (float[5,40] a) => (float[5,40] y) { y = Softmax (a) }",
            "Softmax",
            0,
        ),
        (layer, "LayerNorm", 0),
        (layer, "LayerNormGrad", 0),
        (layer, "LayerNormGrad", 1),
        (
            "g (float[9,7] x, int64[9] l) => (float loss) { loss = SoftmaxCrossEntropyLoss (x, l) }",
            "CrossEntropy",
            0,
        ),
        (
            "g (float[9,32] x, float[8] v) => (float[9,4] z) { z = ai.velora.Compress <groups: int = 4> (x, v) }",
            "Compress",
            0,
        ),
        (
            "g (float[9,32] x) => (float[8] z) { z = ai.velora.MeanDirection <groups: int = 4> (x) }",
            "MeanDirection",
            0,
        ),
        (
            "g (float[2,3,9,9] x, float[4,3,3,3] w) => (float[2,4,7,7] y) { y = Conv (x, w) }",
            "Conv",
            0,
        ),
        (
            "g (float[4,3,2] x, float[1,5,2] w, float[1,5,5] r) => (float[4,1,3,5] y) { y = RNN <hidden_size=5> (x, w, r) }",
            "RNN",
            0,
        ),
    ];
    for (body, op, output) in cases {
        let far = element(body, op, output, &|was| (2.0 * was + 1.0) as f32);
        let first = far.first.unwrap_or_else(|| panic!("{op}: nothing found"));
        assert_eq!(
            (first.op, first.output, first.element),
            (op, output, 0),
            "{op}"
        );
        assert!(
            !first.node.is_empty() && !first.tensor.is_empty(),
            "{first:?}"
        );
        let bound = first.bound;
        assert!(
            bound > 0.0 && bound < 1e-3 * (1.0 + first.cpu.abs()),
            "{op}: {bound}"
        );
        for sign in [-1.0, 1.0] {
            let found = element(body, op, output, &|was| (was + sign * 4.0 * bound) as f32);
            assert_eq!(found.total().0.wrong, 1, "{op}: {bound}");
            let found = element(body, op, output, &|was| (was + sign * 0.4 * bound) as f32);
            assert_eq!(found.first, None, "{op}: {bound}");
        }
        // No number and infinity are no results.
        for number in [f32::NAN, f32::INFINITY] {
            assert!(
                element(body, op, output, &|_| number).first.is_some(),
                "{op}: {number}"
            );
        }
    }
}

const PRODUCT: &str = "g (float[5,400] a, float[400,7] b) => (float[5,7] y) { y = MatMul (a, b) }";

/// The product of the operands that [`PRODUCT`] gets, each changed first.
fn product(bytes: &mut [u8], k: usize, sum: impl Fn(&[f32]) -> f32, change: fn(f32) -> f32) {
    let random = |count: usize, seed| {
        let mut bytes = vec![0; 4 * count];
        fill(DataType::FLOAT, &mut bytes, seed);
        bytemuck::pod_collect_to_vec::<u8, f32>(&bytes)
    };
    let (a, b) = (random(5 * k, 1), random(k * 7, 2));
    for (number, y) in bytes.chunks_exact_mut(4).enumerate() {
        let (i, j) = (number / 7, number % 7);
        let terms: Vec<f32> = (0..k)
            .map(|p| change(a[i * k + p]) * change(b[p * 7 + j]))
            .collect();
        y.copy_from_slice(&sum(&terms).to_le_bytes());
    }
}

/// Sums from the front, from the end, and of halves of halves.
#[test]
fn other_orders_of_summation_are_right() {
    fn halves(terms: &[f32]) -> f32 {
        match terms {
            [one] => *one,
            _ => {
                let (a, b) = terms.split_at(terms.len() / 2);
                halves(a) + halves(b)
            }
        }
    }
    let orders: [fn(&[f32]) -> f32; 3] = [
        |terms| terms.iter().sum(),
        |terms| terms.iter().rev().sum(),
        halves,
    ];
    for order in orders {
        let change = |bytes: &mut [u8]| product(bytes, 400, order, |x| x);
        let found = watch(PRODUCT, Some(("MatMul", 0, &change)), Precision::default());
        assert_eq!(found.first, None);
        let largest = found.kinds["MatMul"].largest;
        // Another order is another sum, and errors that have random signs use little of the bound.
        assert!(largest > 1e-4 && largest < 0.5, "{largest}");
    }
}

/// Operands of 11 bits are right where the device says that it has such, and else not. The sums are short: of
/// long ones, errors of random signs are within what 32 bits may do in the worst case.
#[test]
fn tf32_must_be_announced() {
    fn tf32(x: f32) -> f32 {
        f32::from_bits((x.to_bits() + 0x1000) & !0x1fff)
    }
    let change = |bytes: &mut [u8]| product(bytes, 8, |terms| terms.iter().sum(), tf32);
    let body = "g (float[5,8] a, float[8,7] b) => (float[5,7] y) { y = MatMul (a, b) }";
    let run = |tf32| watch(body, Some(("MatMul", 0, &change)), Precision { tf32 });
    assert_eq!(run(true).first, None);
    assert!(run(false).first.is_some());
}

/// exp(log(k)) for an integer k is k or a little less, so that the integer below is k or k - 1; k - 2 is not.
#[test]
fn what_is_not_decided_may_be_either() {
    let body = "g (int64[64] x) => (float[64] y) <float two = {2}> {
        k = Cast <to: int = 1> (x)  a = Add (k, two)  l = Log (a)  e = Exp (l)  y = Floor (e) }";
    let down = |by: f64| {
        let below = move |was: f64| {
            // The CPU's own may be either.
            (was.ceil() - by) as f32
        };
        element(body, "Elementwise", 0, &below)
    };
    assert_eq!(down(0.0).first, None);
    assert!(down(2.0).first.is_some());
    assert!(down(-2.0).first.is_some());
}

/// Integers, masks, and what is only moved must be the same.
#[test]
fn what_is_exact_must_be_equal() {
    let cases = [
        (
            "g (float[4,33] x) => (float[33,4] y) { y = Transpose (x) }",
            "Copy",
            0,
        ),
        (
            "g (float[6,30] x) => (int64[6,1] a) { a = ArgMax <axis: int = 1> (x) }",
            "Arg",
            0,
        ),
        (
            "g (float[5,6] d, int64[4] i) => (float[4,6] z) { z = Gather (d, i) }",
            "Gather",
            0,
        ),
        (
            "g (int64[30] x) => (int64[30] y) { y = Mul (x, x) }",
            "Mul",
            0,
        ),
        (
            "g (float[100] x) => (float[100] y, bool[100] m) <float r = {0.3}, bool t = {1}> { y, m = Dropout (x, r, t) }",
            "Dropout",
            1,
        ),
        (
            "g (float[9,4] z) => (int8[9,4] i, float[9,1] s) { i, s = ai.velora.Quantize (z) }",
            "Quantize",
            0,
        ),
    ];
    for (body, op, output) in cases {
        clean(body);
        // The lowest bit that an integer, a truth value or a number has.
        let change = |bytes: &mut [u8]| bytes[0] ^= 1;
        let found = watch(body, Some((op, output, &change)), Precision::default());
        assert_eq!(found.total().0.wrong, 1, "{op}: {:?}", found.kinds);
        assert_eq!(found.first.unwrap().op, op);
    }
}
