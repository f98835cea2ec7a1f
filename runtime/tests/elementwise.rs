//! Element-wise operators, alone and fused.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;
use velora_graph::ir::Model;
use velora_graph::onnx::read::{UnknownFields, read};
use velora_graph::shapes::DataType;
use velora_graph::text;
use velora_runtime::backend::{Backend, StepContext};
use velora_runtime::cpu::Cpu;
use velora_runtime::cpu::math::erf_f64;
use velora_runtime::lower::{Request, lower};
use velora_runtime::ops::Op;
use velora_runtime::plan::build_unfused;
use velora_runtime::plan::fuse::fuse;
use velora_runtime::program::Program;
use velora_runtime::tensor::{Tensor, TensorType};

fn parse(source: &str) -> Model {
    Model::from_proto(text::parse_model(source).unwrap()).unwrap()
}

/// `rows` is ONNX Runtime's name for the labels' axis: one per token, or per sequence.
fn program(model: &Model, rows: i64) -> Program {
    let sizes: BTreeMap<Arc<str>, i64> = [("batch", 2), ("seq", 8), ("rows", rows)]
        .into_iter()
        .map(|(name, size)| (Arc::from(name), size))
        .collect();
    let request = Request {
        sizes: &sizes,
        partition: None,
        folder: None,
        evaluation: false,
    };
    lower(model, &request).unwrap()
}

/// Runs a program; inputs by position.
fn run(
    program: &Program,
    threads: usize,
    input: &dyn Fn(usize, &TensorType) -> Vec<u8>,
) -> Vec<Tensor> {
    let cpu = Cpu::new(threads).unwrap();
    let plan = build_unfused(program, &cpu).unwrap();
    let mut executable = cpu.prepare(vec![plan]).unwrap();
    for position in 0..program.inputs.len() {
        if let Some(operand) = executable.plan().inputs[position].clone() {
            let bytes = input(position, &operand.ty);
            executable.write(operand.buffer, &bytes).unwrap();
        }
    }
    executable.run(&StepContext::default(), None).unwrap();
    let outputs = executable.plan().outputs.clone();
    (outputs.into_iter())
        .map(|operand| {
            let mut bytes = vec![0; operand.ty.bytes()];
            executable.read(operand.buffer, &mut bytes).unwrap();
            Tensor {
                data_type: operand.ty.data_type,
                shape: operand.ty.shape,
                bytes: bytes.into(),
            }
        })
        .collect()
}

/// A stream of numbers that are the same every time.
struct Draw(u64);

impl Draw {
    fn below(&mut self, count: usize) -> usize {
        self.0 = (self.0)
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % count
    }

    fn real(&mut self) -> f32 {
        self.below(1 << 20) as f32 / (1 << 19) as f32 - 1.0
    }
}

/// Elements for an input: small numbers, classes 0 and 1, false.
fn elements(position: usize, ty: &TensorType) -> Vec<u8> {
    let mut draw = Draw(position as u64 + 1);
    let count = ty.elements();
    match ty.data_type {
        DataType::FLOAT => (0..count).flat_map(|_| draw.real().to_le_bytes()).collect(),
        DataType::INT64 => (0..count)
            .flat_map(|_| (draw.below(2) as i64).to_le_bytes())
            .collect(),
        DataType::BOOL => vec![0; count],
        other => panic!("{other:?}"),
    }
}

fn expressions(program: &Program) -> usize {
    let ops = program.operations.iter();
    ops.filter(|o| matches!(o.op, Op::Elementwise(_))).count()
}

/// Fused and not fused, with one thread and with two, the bits are the same; the numbers of element-wise
/// operations before and after.
fn same_bits(model: &Model, rows: i64) -> (usize, usize) {
    let plain = program(model, rows);
    let mut fused = plain.clone();
    fuse(&mut fused);
    let expected = run(&plain, 1, &elements);
    let mut content = 0;
    for threads in [1, 2] {
        let found = run(&fused, threads, &elements);
        for (place, (expected, found)) in expected.iter().zip(&found).enumerate() {
            assert_eq!(expected.shape, found.shape);
            assert!(
                expected.bytes == found.bytes,
                "output {place}, {threads} threads"
            );
            content += usize::from(expected.bytes.iter().any(|&byte| byte != 0));
        }
    }
    assert!(content > 0, "all outputs are zeros");
    (expressions(&plain), expressions(&fused))
}

#[test]
fn training_graphs_give_the_same_bits_fused() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../models");
    for file in [
        "aot/mlp.onnx",
        "aot/llama_tiny.onnx",
        "aot/llama_tiny_lora.onnx",
        "aot/bert_tiny.onnx",
        "aot/vit_tiny.onnx",
        "ort/llama_tiny.onnx",
        "ort/llama_hf.onnx",
        "ort/bert_tiny.onnx",
        "ort/vit_tiny.onnx",
    ] {
        let model = Model::from_proto(read(&folder.join(file), UnknownFields::Refuse).unwrap());
        let model = model.unwrap();
        let rows = if file.contains("llama") { 16 } else { 2 };
        let (before, after) = same_bits(&model, rows);
        println!("{file}: {before} expressions, {after} fused");
        assert!(after < before, "{file}: nothing was fused");
    }
}

/// A graph of operators over broadcast shapes, with views, casts, and something else in between.
fn random_graph(seed: u64) -> String {
    let mut draw = Draw(seed);
    let shapes: [&[usize]; 6] = [&[3, 5, 70], &[5, 70], &[70], &[3, 5, 1], &[1], &[3, 1, 70]];
    let mut values: Vec<(String, Vec<usize>)> = Vec::new();
    let mut inputs = Vec::new();
    for (place, shape) in shapes.iter().enumerate() {
        values.push((format!("x{place}"), shape.to_vec()));
        inputs.push(format!("float{shape:?} x{place}"));
    }
    let mut nodes = String::new();
    let pick = |draw: &mut Draw, values: &[(String, Vec<usize>)]| {
        // Rather a late one.
        let place = draw.below(values.len()).max(draw.below(values.len()));
        values[place].clone()
    };
    for number in 0..30 {
        let name = format!("v{number}");
        let (a, shape_a) = pick(&mut draw, &values);
        let (b, shape_b) = pick(&mut draw, &values);
        let rank = shape_a.len().max(shape_b.len());
        let full = |shape: &[usize]| {
            let mut all = vec![1; rank - shape.len()];
            all.extend(shape);
            all
        };
        let both: Vec<usize> = (full(&shape_a).iter().zip(full(&shape_b)))
            .map(|(&a, b)| a.max(b))
            .collect();
        let unary = ["Sigmoid", "Tanh", "Erf", "Neg", "Softplus", "Sin", "Abs"];
        let binary = ["Add", "Sub", "Mul", "Max", "Min"];
        let (text, shape) = match draw.below(10) {
            0..3 => (format!("{} ({a})", unary[draw.below(unary.len())]), shape_a),
            3..7 => (
                format!("{} ({a}, {b})", binary[draw.below(binary.len())]),
                both,
            ),
            7 => {
                nodes += &format!("c{number} = Less ({a}, {b})\n");
                (format!("Where (c{number}, {a}, {b})"), both)
            }
            8 => {
                nodes += &format!("h{number} = Cast <to = 10> ({a})\n");
                nodes += &format!("g{number} = Mul (h{number}, h{number})\n");
                (format!("Cast <to = 1> (g{number})"), shape_a)
            }
            _ => {
                let count = shape_a.iter().product::<usize>();
                nodes += &format!("s{number} = Constant <value_ints = [{count}]> ()\n");
                nodes += &format!("f{number} = Reshape ({a}, s{number})\n");
                nodes += &format!("t{number} = Tanh (f{number})\n");
                nodes += &format!("z{number} = Constant <value_ints = {shape_a:?}> ()\n");
                (format!("Reshape (t{number}, z{number})"), shape_a)
            }
        };
        nodes += &format!("{name} = {text}\n");
        values.push((name, shape));
    }
    let outputs: Vec<String> = (0..3)
        .map(|back| {
            let (name, shape) = &values[values.len() - 1 - 7 * back];
            format!("float{shape:?} {name}")
        })
        .collect();
    format!(
        r#"<ir_version: 10, opset_import: ["" : 18]>
        g ({}) => ({}) {{ {nodes} }}"#,
        inputs.join(", "),
        outputs.join(", ")
    )
}

#[test]
fn random_graphs_give_the_same_bits_fused() {
    let (mut before, mut after) = (0, 0);
    for seed in 0..60 {
        let source = random_graph(seed);
        let (plain, fused) = same_bits(&parse(&source), 2);
        before += plain;
        after += fused;
    }
    println!("{before} expressions, {after} fused");
    assert!(2 * after < before, "{before} expressions, {after} fused");
}

fn one(op: &str, opsets: &str, inputs: &[Tensor]) -> Vec<f32> {
    let names = ["a", "b", "c", "d"];
    let ty = |t: &Tensor| TensorType::new(t.data_type, t.shape.clone());
    let declared: Vec<String> = (inputs.iter().zip(names))
        .map(|(t, name)| format!("{} {name}", ty(t)))
        .collect();
    let source = format!(
        "<ir_version: 10, opset_import: [{opsets}]> g ({}) => (float[N] y) {{ y = {op} ({}) }}",
        declared.join(", "),
        names[..inputs.len()].join(", ")
    );
    let model = parse(&source);
    let outputs = run(&program(&model, 2), 1, &|place, _| {
        inputs[place].bytes.to_vec()
    });
    outputs[0].to_f32().unwrap()
}

/// Gradients of ONNX Runtime's activations against differences of the functions in 64 bits.
#[test]
fn gradients_are_slopes() {
    let normal = |x: f64| 0.5 * (1.0 + erf_f64(x * std::f64::consts::FRAC_1_SQRT_2));
    let gelu = |x: f64| x * normal(x);
    let tanh_gelu =
        |x: f64| 0.5 * x * (1.0 + (0.797_884_560_802_865_4 * (x + 0.044715 * x * x * x)).tanh());
    let quick = |x: f64| x / (1.0 + (-1.702 * x).exp());
    let functions: [(&str, &dyn Fn(f64) -> f64); 4] = [
        ("GeluGrad", &gelu),
        ("FastGeluGrad", &tanh_gelu),
        ("QuickGeluGrad", &quick),
        ("BiasGeluGrad_dX", &gelu),
    ];
    let xs: Vec<f32> = (-40..=40).map(|i| i as f32 * 0.125).collect();
    let dys: Vec<f32> = (0..xs.len()).map(|i| 1.0 + i as f32 * 0.01).collect();
    let n = xs.len();
    for (name, function) in functions {
        let mut inputs = vec![Tensor::from_f32(&[n], &dys), Tensor::from_f32(&[n], &xs)];
        let mut shift = 0.0;
        if name == "BiasGeluGrad_dX" {
            shift = 0.25;
            inputs.push(Tensor::from_f32(&[n], &vec![0.25; n]));
        }
        let op = format!("com.microsoft.{name}");
        let found = one(&op, r#""" : 18, "com.microsoft" : 1"#, &inputs);
        for ((&x, &dy), &found) in xs.iter().zip(&dys).zip(&found) {
            let (x, h) = (f64::from(x) + shift, 1e-5);
            let slope = (function(x + h) - function(x - h)) / (2.0 * h);
            let expected = f64::from(dy) * slope;
            // Four roundings of terms of at most 2; the error of 1 - tanh² times what it is multiplied
            // with, x √(2/π) (1 + 0.134 x²) / 2; and the error of the difference.
            let factor = x.abs() * 0.4 * (1.0 + 0.134145 * x * x);
            let tolerance = (4.0 + factor) * f64::from(dy) * f64::from(f32::EPSILON) + 1e-9;
            assert!(
                (f64::from(found) - expected).abs() < tolerance,
                "{name} at {x}: {found}, {expected}"
            );
        }
    }
}

#[test]
fn numbers_without_value_and_division_by_zero() {
    let opset = r#""" : 18"#;
    let a = Tensor::from_f32(&[4], &[f32::NAN, 1.0, f32::INFINITY, -0.0]);
    let b = Tensor::from_f32(&[4], &[1.0, f32::NAN, 1.0, 0.0]);
    let max = one("Max", opset, &[a.clone(), b.clone()]);
    assert!(max[0].is_nan() && max[1].is_nan());
    assert_eq!(max[2], f32::INFINITY);
    let relu = one("Relu", opset, &[a]);
    assert!(relu[0].is_nan());
    assert_eq!(relu[1..], [1.0, f32::INFINITY, 0.0]);
    let source = r#"<ir_version: 10, opset_import: ["" : 18]>
        g (int64[4] a, int64[4] b) => (int64[4] q, int64[4] r, int64[4] w)
        { q = Div (a, b) r = Mod (a, b) w = Add (a, a) }"#;
    let model = parse(source);
    let numbers = [[i64::MIN, -7, 7, 1], [-1, 2, -2, 0]].map(|n| Tensor::from_i64(&[4], &n));
    let outputs = run(&program(&model, 2), 1, &|place, _| {
        numbers[place].bytes.to_vec()
    });
    let integers = |t: &Tensor| -> Vec<i64> {
        let elements = t.bytes.chunks_exact(8);
        elements
            .map(|e| i64::from_le_bytes(e.try_into().unwrap()))
            .collect()
    };
    assert_eq!(integers(&outputs[0]), [i64::MIN, -3, -3, 0]);
    assert_eq!(integers(&outputs[1]), [0, 1, -1, 0]);
    assert_eq!(integers(&outputs[2]), [0, -14, 14, 2]);
}

/// Times of chains as they occur in transformers, fused and not, against a copy of as many bytes.
#[test]
#[ignore = "measures"]
fn speed() {
    let chains = [
        (
            "rms norm, applied (2 tensors in, 1 out)",
            2.0,
            r#"g (float[4096,1024] x, float[1024] w, float[4096,1] m) => (float[4096,1024] y) {
                e = Constant <value_float = 0.00001> ()
                s = Add (m, e) q = Sqrt (s) r = Reciprocal (q) n = Mul (x, r) y = Mul (n, w) }"#,
        ),
        (
            "SwiGLU forward (2 in, 1 out)",
            3.0,
            r#"g (float[4096,1024] x, float[4096,1024] u) => (float[4096,1024] y) {
                s = Sigmoid (x) h = Mul (x, s) y = Mul (h, u) }"#,
        ),
        (
            "SwiGLU backward (3 in, 2 out)",
            5.0,
            r#"g (float[4096,1024] d, float[4096,1024] x, float[4096,1024] u)
                => (float[4096,1024] du, float[4096,1024] dx) {
                one = Constant <value_float = 1.0> ()
                s = Sigmoid (x) h = Mul (x, s) du = Mul (d, h) dh = Mul (d, u)
                c = Sub (one, s) p = Mul (x, c) q = Add (p, one) r = Mul (s, q) dx = Mul (dh, r) }"#,
        ),
        (
            "GELU (1 in, 1 out)",
            2.0,
            r#"g (float[4096,1024] x) => (float[4096,1024] y) {
                k = Constant <value_float = 0.70710677> () h = Constant <value_float = 0.5> ()
                one = Constant <value_float = 1.0> ()
                a = Mul (x, k) e = Erf (a) b = Add (e, one) c = Mul (x, b) y = Mul (c, h) }"#,
        ),
    ];
    // In memory on one and two threads, and in the cache.
    for (threads, rows) in [(1, 4096), (2, 4096), (1, 64)] {
        for (name, tensors, graph) in &chains {
            let graph = graph.replace("4096", &rows.to_string());
            let model = parse(&format!(
                "<ir_version: 10, opset_import: [\"\" : 18]> {graph}"
            ));
            let plain = program(&model, 2);
            let mut fused = plain.clone();
            fuse(&mut fused);
            let cpu = Cpu::new(threads).unwrap();
            let mut runs = [&plain, &fused].map(|program| {
                let mut run = cpu
                    .prepare(vec![build_unfused(program, &cpu).unwrap()])
                    .unwrap();
                for position in 0..program.inputs.len() {
                    let operand = run.plan().inputs[position].clone().unwrap();
                    run.write(operand.buffer, &elements(position, &operand.ty))
                        .unwrap();
                }
                run
            });
            let bytes = rows * 1024 * 4;
            // So much that a copy of it is not in a cache either, where the chain is not.
            let times = if rows > 1000 { 8 } else { 1 };
            let (bytes, times) = (bytes * times, times as f64);
            let source = vec![1u8; bytes];
            let mut target = vec![0u8; bytes];
            let mut best = [f64::INFINITY; 3];
            // Each by itself, as other engines are measured: what fits in the cache stays there.
            for (run, best) in runs.iter_mut().zip(&mut best) {
                for _ in 0..15 {
                    let start = Instant::now();
                    run.run(&StepContext::default(), None).unwrap();
                    *best = best.min(start.elapsed().as_secs_f64());
                }
            }
            for _ in 0..7 {
                let start = Instant::now();
                target.copy_from_slice(std::hint::black_box(&source));
                std::hint::black_box(&target);
                best[2] = best[2].min(start.elapsed().as_secs_f64());
            }
            // A copy moves two tensors, on one thread.
            let copy = best[2] / times * tensors / 2.0;
            println!(
                "{threads} threads, {rows} rows, {name}: plain {:.3} ms, fused {:.3} ms, {:.2} of a copy's time per byte",
                best[0] * 1e3,
                best[1] * 1e3,
                best[1] / copy
            );
        }
    }
}

/// What the backward half reads must be saved, as the analysis of lifetimes says: it is no part of a
/// forward operation, nor computed again.
#[test]
fn the_halves_are_not_fused_with_each_other() {
    let model = parse(
        r#"<ir_version: 10, opset_import: ["" : 18]>
        g (float[64] x) => (float[64] y) { a = Sigmoid (x) b = Mul (a, x) y = Neg (b) }"#,
    );
    for (backward, left) in [(false, 1), (true, 2)] {
        let mut program = program(&model, 2);
        program.operations.last_mut().unwrap().backward = backward;
        fuse(&mut program);
        assert_eq!(program.operations.len(), left);
    }
}
