//! The textual syntax: round trips of real models, errors, and hostile input.
#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};

use bytes::Bytes;
use prost::Message;
use velora_graph::onnx::schema::{
    AttributeProto, GraphProto, ModelProto, TensorProto, ValueInfoProto,
};
use velora_graph::text::{
    parse_function, parse_graph, parse_model, parse_node, print_function, print_graph, print_model,
    print_node,
};

fn models() -> Vec<(PathBuf, ModelProto)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../models");
    let mut found = Vec::new();
    for directory in ["aot", "ort"] {
        for entry in std::fs::read_dir(root.join(directory)).unwrap() {
            let path = entry.unwrap().path();
            if path.extension().is_some_and(|e| e == "onnx") {
                let model = ModelProto::decode(Bytes::from(std::fs::read(&path).unwrap())).unwrap();
                found.push((path, model));
            }
        }
    }
    assert!(!found.is_empty());
    found
}

/// Removes what the syntax does not carry.
fn strip(model: &mut ModelProto) {
    for opset in &mut model.opset_import {
        opset.domain.get_or_insert_default();
    }
    strip_graph(model.graph.as_mut().unwrap());
    for function in &mut model.functions {
        function.metadata_props.clear();
        for opset in &mut function.opset_import {
            opset.domain.get_or_insert_default();
        }
        let mut body = GraphProto {
            node: std::mem::take(&mut function.node),
            ..GraphProto::default()
        };
        strip_graph(&mut body);
        function.node = body.node;
    }
}

fn strip_graph(graph: &mut GraphProto) {
    graph.doc_string = None;
    graph.metadata_props.clear();
    for info in graph.input.iter_mut().chain(&mut graph.output) {
        strip_info(info);
    }
    graph.value_info.iter_mut().for_each(strip_info);
    graph.initializer.iter_mut().for_each(strip_tensor);
    for node in &mut graph.node {
        node.doc_string = None;
        node.metadata_props.clear();
        node.domain.get_or_insert_default();
        node.overload = node.overload.take().filter(|o| !o.is_empty());
        node.attribute.iter_mut().for_each(strip_attribute);
    }
}

fn strip_info(info: &mut ValueInfoProto) {
    info.doc_string = None;
    info.metadata_props.clear();
    if let Some(r#type) = &mut info.r#type {
        r#type.denotation = None;
    }
}

fn strip_attribute(attribute: &mut AttributeProto) {
    attribute.doc_string = None;
    if let Some(tensor) = &mut attribute.t {
        strip_tensor(tensor);
    }
    if let Some(graph) = &mut attribute.g {
        strip_graph(graph);
    }
}

/// Typed data for raw data of the types that the models hold.
fn strip_tensor(tensor: &mut TensorProto) {
    tensor.doc_string = None;
    tensor.metadata_props.clear();
    tensor.data_location = tensor.data_location.filter(|l| *l != 0);
    tensor.name.get_or_insert_default();
    let Some(raw) = tensor.raw_data.take() else {
        return;
    };
    let four = raw.as_chunks().0.iter();
    let eight = raw.as_chunks().0.iter();
    match tensor.data_type.unwrap() {
        1 => tensor.float_data = four.map(|b| f32::from_le_bytes(*b)).collect(),
        6 => tensor.int32_data = four.map(|b| i32::from_le_bytes(*b)).collect(),
        7 => tensor.int64_data = eight.map(|b| i64::from_le_bytes(*b)).collect(),
        11 => tensor.double_data = eight.map(|b| f64::from_le_bytes(*b)).collect(),
        9 => tensor.int32_data = raw.iter().map(|b| i32::from(*b)).collect(),
        other => panic!("no rule for element type {other}"),
    }
}

#[test]
fn models_round_trip() {
    for (path, mut model) in models() {
        let text = print_model(&model);
        let parsed = parse_model(&text).unwrap();
        assert_eq!(print_model(&parsed), text, "{}", path.display());
        strip(&mut model);
        // By bytes, as NaNs are unequal.
        let same = parsed.encode_to_vec() == model.encode_to_vec();
        assert!(same, "{}", path.display());
    }
}

/// An absent version, domain or overload is not the same as a zero or an empty one.
#[test]
fn what_is_absent_stays_absent() {
    for (text, version, domain, overload) in [
        ("g () => () {} f () => () {}", None, None, None),
        (
            "<ir_version: 0> g () => () {} <domain: \"\", overload: \"\"> f () => () {}",
            Some(0),
            Some(""),
            Some(""),
        ),
    ] {
        let model = parse_model(text).unwrap();
        let again = parse_model(&print_model(&model)).unwrap();
        assert_eq!(again, model);
        assert_eq!(again.ir_version, version);
        assert_eq!(again.functions[0].domain.as_deref(), domain);
        assert_eq!(again.functions[0].overload.as_deref(), overload);
    }
}

#[test]
fn graphs_round_trip() {
    let text = r#"g (float[N,"a b",?] x, seq(map(int64, float[])) "x.1", "float", int8[2] d) => (float y) 
   <float[5] f =  {nan,-inf,-0.0,0.1,1e-45}, double e =  {5e-324}, string[1] s = {"a\"b\\c"}, float[2,2] w = ["location": "w.bin", "offset": "0", "length": "16"], bool b>
{
   [n] a, "" = Op <i: int = 1, f: float = 1.0, g: floats = [-0.0, inf], s: strings = [], t: tensor = float16 v {15360}, p: type_proto = seq(float[]), r: int = @q> (x, "", "y.z")
   b = ai.onnx.Op:over () <then: graph = h () => (y) {
      y = Id (b)
   }>
   c = "my-domain"."an op" <"b c": ints = []> ()
}"#;
    let graph = parse_graph(text).unwrap();
    let data = &graph.initializer[0].float_data;
    assert!(data[0].is_nan() && data[1] == f32::NEG_INFINITY && data[2].to_bits() == 1 << 31);
    assert_eq!(data[4].to_bits(), 1);
    assert_eq!(graph.initializer[1].double_data[0].to_bits(), 1);
    let printed = print_graph(&graph);
    let again = parse_graph(&printed).unwrap();
    assert_eq!(again.encode_to_vec(), graph.encode_to_vec());
    assert_eq!(print_graph(&again), printed);
    for node in &graph.node {
        assert_eq!(&parse_node(&print_node(node)).unwrap(), node);
    }
}

#[test]
fn functions_round_trip() {
    let text = "<\n  domain: \"d\",\n  overload: \"o\",\n  opset_import: [\"\" : 18]\n>\nf <a,b: int = 3>(x) => (y)\n<float[N] x>\n{\n   y = Add <k: int = @a> (x, x)\n}";
    let function = parse_function(text).unwrap();
    assert_eq!(print_function(&function), text);
    assert_eq!(function.attribute_proto[0].i, Some(3));
}

#[test]
fn errors_say_where_and_what() {
    #[rustfmt::skip]
    let cases = [
        ("", 1, 1, "expected a graph name, found end of input"),
        ("<ir: 3> g () => () {}", 1, 2, "expected a model property, found `ir`"),
        ("<ir_version: \"3\"> g () => () {}", 1, 14, "expected an integer, found a string"),
        ("# c\ng () -> () {}", 2, 6, "expected `=>`, found `-`"),
        ("g () => () {\n  y = Op (x\n}", 3, 1, "expected `)`, found `}`"),
        ("g () => () {\n  y = Op <a: t = 1> () }", 2, 14, "expected an attribute type, found `t`"),
        ("g () => () { y = Op <a: int = 1.5> () }", 1, 31, "expected an int, found a float"),
        ("g () => () { y = Op <a = []> () }", 1, 26, "expected a type before an empty list, found none"),
        ("g () => () { y = Op <a = [1, 2.5]> () }", 1, 30, "expected an int, found a float"),
        ("g () => () <float[2] é> {}", 1, 22, "expected a value name, found `é`"),
        ("g () => () <string s = {\"é\", 1}> {}", 1, 30, "expected a string, found `1`"),
        ("g () => () <int64 x = {99999999999999999999}> {}", 1, 24,
         "expected an integer that the type can hold, found `99999999999999999999`"),
        ("g () => () <float[N] x = {1}> {}", 1, 26,
         "expected a numeric shape before the elements, found an axis without a number"),
        ("g (float \"x", 1, 10, "expected `\"` at the end of the string, found end of input"),
    ];
    for (text, line, column, message) in cases {
        let error = parse_model(text).unwrap_err();
        let found = (error.line, error.column, error.message.as_str());
        assert_eq!(found, (line, column, message), "{text}");
    }
    let error = parse_node("y = Op () z").unwrap_err();
    assert_eq!(
        error.to_string(),
        "line 1, column 11: expected end of input, found `z`"
    );
}

#[test]
fn nesting_is_bounded() {
    let types = |n: usize| {
        let (open, close) = ("seq(".repeat(n), ")".repeat(n));
        format!("g ({open}float{close} x) => () {{}}")
    };
    assert!(parse_graph(&types(63)).is_ok());
    let error = parse_graph(&types(64)).unwrap_err();
    assert_eq!(
        error.message,
        "expected at most 64 nested levels, found more"
    );
    assert!(parse_graph(&types(100_000)).is_err());
    let graphs = |n: usize| {
        let open = "g () => () { y = If () <b = ".repeat(n);
        format!("{open}g () => () {{}}{}", "> }".repeat(n))
    };
    let graph = parse_graph(&graphs(63)).unwrap();
    assert_eq!(parse_graph(&print_graph(&graph)).unwrap(), graph);
    assert!(parse_graph(&graphs(64)).is_err());
    assert!(parse_graph(&graphs(100_000)).is_err());
}

fn parse_all(text: &str) {
    let _ = parse_graph(text);
    let _ = parse_node(text);
    let _ = parse_function(text);
    if let Ok(model) = parse_model(text) {
        let _ = print_model(&model);
    }
}

#[test]
fn hostile_text_never_panics() {
    let models = models();
    let (_, model) = models.iter().min_by_key(|(_, m)| m.encoded_len()).unwrap();
    let text = print_model(model);
    for end in (0..text.len()).step_by(37) {
        let _ = parse_model(&String::from_utf8_lossy(&text.as_bytes()[..end]));
    }
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    let mut next = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as usize
    };
    let alphabet: Vec<char> = "<>[](){}=:,.@?#\"\\-+eE019 \nagfloatintseqé\0"
        .chars()
        .collect();
    for _ in 0..3000 {
        let noise: String = (0..next() % 60)
            .map(|_| alphabet[next() % alphabet.len()])
            .collect();
        parse_all(&noise);
        let raw: Vec<u8> = (0..40).map(|_| next() as u8).collect();
        parse_all(&String::from_utf8_lossy(&raw));
    }
    let chars: Vec<char> = text.chars().collect();
    for _ in 0..200 {
        let mut mutated = chars.clone();
        for _ in 0..3 {
            let at = next() % mutated.len();
            mutated[at] = alphabet[next() % alphabet.len()];
        }
        parse_all(&mutated.into_iter().collect::<String>());
    }
}
