//! Functions that call each other: themselves, deep, and more often than there is memory.

use crate::tool::{BASE, MULTIPLE, Place};
use std::fmt::Write;
use velora_runtime::data::safetensors;
use velora_runtime::tensor::Tensor;

/// Commands that index the graph, and those that put bodies in the places of calls.
const READ: [&str; 4] = [
    "model.onnx -o out.onnx -q",
    "model.onnx -o out.onnx -q --inline",
    "inspect model.onnx --json out.json -q",
    "verify model.onnx model.onnx --json out.json -q",
];
const EXPAND: [&str; 4] = [
    "run model.onnx --device cpu --data x.safetensors --steps 1 --save out.safetensors -q",
    "inspect model.onnx --data x.safetensors --json out.json -q",
    "verify model.onnx model.onnx --data x.safetensors --json out.json -q",
    "calibrate model.onnx --data x.safetensors -o out.onnx -q",
];

/// A training graph that calls `d.F`, with these functions.
fn place(functions: &str) -> Place {
    let place = Place::new();
    let x = Tensor::from_f32(&[4, 8], &[0.5; 32]);
    safetensors::write(
        &place.at("x.safetensors"),
        &Default::default(),
        [("x", x.view())],
    )
    .unwrap();
    place.text(
        "model.onnx",
        &format!(
            r#"<ir_version: 8, opset_import: ["" : 18, "d" : 1]>
g (float[8,3] w, float[batch,8] x) => (float loss, float[8,3] w_grad)
   <float[8,3] w = {{0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23}}>
{{
   h = d.F (x)
   y = MatMul (h, w)
   loss = ReduceSum <keepdims = 0> (y)
   shape = Shape (y)
   dy = ConstantOfShape (shape)
   ht = Transpose <perm = [1, 0]> (h)
   w_grad = MatMul (ht, dy)
}}
{functions}"#
        ),
    );
    place
}

fn function(name: &str, body: &str) -> String {
    format!(
        "<domain: \"d\", opset_import: [\"\" : 18, \"d\" : 1]>\n{name} (a) => (b) {{ {body} }}\n"
    )
}

/// Checks that commands refuse the model with a message of all `words`, and write nothing.
fn refused(place: &Place, commands: &[&str], words: &[&str]) {
    let before = place.files();
    let size = place.bytes(&["model.onnx", "x.safetensors"]);
    for command in commands {
        let ran = place.run(command);
        assert_eq!(ran.status, Some(1), "{command}: {ran:?}");
        ran.refused(words).within(size);
        assert_eq!(place.files(), before, "{command}: {}", ran.err);
    }
}

fn refused_by_all(place: &Place, words: &[&str]) {
    refused(place, &READ, words);
    refused(place, &EXPAND, words);
}

/// Functions F, D1, D2, … of which each calls the next one `times` times, one after the other.
fn chain(length: usize, times: usize) -> String {
    let mut functions = String::new();
    for level in 0..length {
        let name = |level: usize| match level {
            0 => "F".to_owned(),
            level => format!("D{level}"),
        };
        let mut body = String::new();
        for call in 0..times {
            let from = if call == 0 {
                "a".to_owned()
            } else {
                format!("t{call}")
            };
            let to = if call + 1 == times {
                "b".to_owned()
            } else {
                format!("t{}", call + 1)
            };
            match level + 1 == length {
                true => writeln!(body, "{to} = Tanh ({from})").unwrap(),
                false => writeln!(body, "{to} = d.{} ({from})", name(level + 1)).unwrap(),
            }
        }
        functions += &function(&name(level), &body);
    }
    functions
}

#[test]
fn functions_that_call_themselves() {
    let direct = place(&function("F", "b = d.F (a)"));
    refused_by_all(&direct, &["function `d.F` calls itself"]);
    let mutual = function("F", "b = d.G (a)") + &function("G", "c = Tanh (a) b = d.F (c)");
    refused_by_all(&place(&mutual), &["function `d.F` calls itself", "d.G"]);
    // Within a branch.
    let branch = "t = Constant <value_int = 1> ()
        b = If (t) <then_branch = y () => (c) { c = d.F (a) }, else_branch = n () => (e) { e = Tanh (a) }>";
    refused_by_all(
        &place(&function("F", branch)),
        &["function `d.F` calls itself"],
    );
}

#[test]
fn calls_that_nest_deep() {
    refused_by_all(&place(&chain(65, 1)), &["nest deeper than 64"]);
    refused_by_all(&place(&chain(20_000, 1)), &["nest deeper than 64"]);
    place(&chain(64, 1)).run(READ[0]).accepted();
}

/// 2 to the power of 30 nodes, of 2 KiB. Where nothing is expanded, they are no harm.
#[test]
fn calls_that_multiply() {
    let place = place(&chain(30, 2));
    refused(&place, &EXPAND, &["inlining `d.D", "more than 5", "nodes"]);
    let size = place.bytes(&["model.onnx"]);
    for command in &READ[..3] {
        place.run(command).accepted().within(size);
    }
}

/// Few nodes, and long names: of what is expanded, that of a call stands before each.
#[test]
fn names_that_multiply() {
    let long = "n".repeat(100_000);
    let mut body = "t0 = Tanh (a)\n".to_owned();
    for node in 1..2000 {
        writeln!(body, "t{node} = Tanh (t{})", node - 1).unwrap();
    }
    body += "b = Tanh (t1999)";
    let calls = format!("[{long}] b = d.G (a)");
    let place = place(&(function("F", &calls) + &function("G", &body)));
    refused(
        &place,
        &EXPAND,
        &["inlining `d.G` would make more than", "bytes"],
    );
}

/// A body with a large graph in it is one node to those that count only the outer ones.
#[test]
fn graphs_in_bodies_multiply() {
    let mut inner = String::new();
    for node in 0..500 {
        writeln!(inner, "c{} = Tanh (c{node})", node + 1).unwrap();
    }
    let branch = format!(
        "t = Constant <value_int = 1> ()
        b = If (t) <then_branch = y () => (c500) {{ c0 = Tanh (a) {inner} }},
            else_branch = n () => (e) {{ e = Tanh (a) }}>"
    );
    let mut calls = String::new();
    for call in 0..1000 {
        writeln!(calls, "t{} = d.G (t{call})", call + 1).unwrap();
    }
    let outer = format!("t0 = Tanh (a) {calls} b = Tanh (t1000)");
    let place = place(&(function("F", &outer) + &function("G", &branch)));
    refused(
        &place,
        &EXPAND,
        &["inlining `d.G` would make more than", "nodes"],
    );
    let size = place.bytes(&["model.onnx"]);
    for command in &READ[..3] {
        place.run(command).accepted().within(size);
    }
}

/// A contradiction in a body is said once, or a few times, however often the body is called.
#[test]
fn contradictions_that_multiply() {
    let mut functions = chain(10, 4);
    let last = functions.rfind("t1 = Tanh (a)").unwrap();
    functions.replace_range(
        last..,
        "one = Constant <value = float[2] {1, 1}> ()\nb = Add (a, one) }\n",
    );
    let place = place(&functions);
    let size = place.bytes(&["model.onnx"]);
    for command in &READ[..3] {
        let ran = place.run(command);
        assert_eq!(ran.status, Some(1), "{ran:?}");
        assert!(
            ran.err.len() < 10_000,
            "a message of {} bytes",
            ran.err.len()
        );
        assert!(ran.peak <= BASE + MULTIPLE * size, "{}", ran.peak);
    }
}
