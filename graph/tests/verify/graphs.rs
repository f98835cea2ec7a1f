//! Model, names, order, graphs and nodes.

use crate::{HEAD, accept, check, check_model, check_with, messages, violations};
use velora_graph::onnx::schema::*;
use velora_graph::text::parse_model;
use velora_graph::verify::verify_model;

// Model.

#[test]
fn a_model_has_a_graph_and_versions() {
    let found = violations(&ModelProto::default());
    let found: Vec<_> = found.list.iter().map(ToString::to_string).collect();
    assert_eq!(
        found,
        [
            "model: ir_version is missing; expected a number of at least 1",
            "model: the model has no graph; expected one"
        ]
    );
    check_model(
        r#"<
   ir_version: 0,
   opset_import: ["" : 0, "local" : 1, "ai.onnx" : 21]
>
   # error: ir_version is 0; expected at least 1
   # error: operator set '' is imported with version 0; expected at least 1
   # error: operator set '' is imported twice; once is allowed
g (float x) => (float y) {
   y = Relu (x)
}
"#,
    );
}

#[test]
fn every_domain_is_imported() {
    check(
        r#"
g (float x) => (float y) {
   y = other.Op (x)
   # error: the model does not import the domain 'other'
   z = other.Op (y)
   a = If (x) <then_branch: graph = t () => (d) {
      d = third.Op (x)
      # error: the model does not import the domain 'third'
   }>
}

<
  domain: "unknown",
  opset_import: ["" : 21]
>
F (x) => (y)
{
   # error: the model does not import the function's domain 'unknown'
   y = local.Op (x)
   # error: the function does not import the domain 'local'
}"#,
    );
}

#[test]
fn before_ir_version_3_operator_sets_are_implied() {
    let graph = "g (float x) => (float y) {\n   y = Relu (x)\n}\n";
    let text = format!("<\n   ir_version: 2,\n   opset_import: []\n>\n{graph}");
    verify_model(&parse_model(&text).unwrap()).unwrap();
    check_model(
        r#"<
   ir_version: 3,
   opset_import: []
>
g (float x) => (float y) {
   y = Relu (x)
   # error: the model does not import the domain ''
}
"#,
    );
}

// Names.

#[test]
fn a_name_is_defined_once() {
    check(
        r#"
g (float x, float x, float[1] v) => (float y)
   <float[1] v =  {1}, float[1] w =  {1}, float[1] w =  {2}, float[1] v =  {2}>
{
   # error: input 'x' is already defined by an input
   # error: initialiser 'w' is already defined by an initialiser
   # error: initialiser 'v' is already defined by an input
   y = Relu (x)
   [again] y = Neg (x)
   # error: output 'y' is already defined by node 0 (Relu)
   x = Neg (v)
   # error: output 'x' is already defined by an input
   a, a = Split (w)
   # error: output 'a' is made twice by node 3 (Split)
}"#,
    );
}

#[test]
fn a_name_that_is_read_is_defined() {
    check(
        r#"
g (float x) => (float y, float nowhere) {
   # error: lists the output 'nowhere', which is defined nowhere; expected an input, an initialiser or the output of a node
   y = Add (x, z)
   # error: reads 'z', which is defined nowhere; expected an input, an initialiser or the output of a node
   a = Clip (x, "", x)
}"#,
    );
}

#[test]
fn nested_graphs_see_outwards_only() {
    accept(
        r#"g (float x) => (float y) {
   a = Relu (x)
   y = If (a) <then_branch: graph = t () => (d) {
      c = Neg (a)
      d = If (c) <then_branch: graph = u () => (e) { e = Add (c, a) }>
   }, else_branch: graph = f () => (d) {
      c = Neg (x)
      d = Neg (c)
   }>
}"#,
    );
    check(
        r#"
g (float x) => (float y) {
   y = If (x) <then_branch: graph = t () => (d) {
      c = Neg (x)
      d = Neg (c)
   }, else_branch: graph = f () => (d) {
      d = Neg (c)
      # error: reads 'c', which is defined nowhere; expected an input, an initialiser or the output of a node
   }>
   z = Neg (c)
   # error: reads 'c', which is defined nowhere; expected an input, an initialiser or the output of a node
}"#,
    );
}

#[test]
fn nested_graphs_hide_no_name_that_they_see() {
    check(
        r#"
g (float x) => (float y) {
   a = Relu (x)
   y = If (x) <then_branch: graph = t (x) => (d)
      <float[1] a =  {1}>
{
      # error: input 'x' hides the one of an enclosing graph defined by an input; expected a new name
      # error: initialiser 'a' hides the one of an enclosing graph defined by node 0 (Relu); expected a new name
      d = Neg (a)
   }, else_branch: graph = f () => (a) {
      a = Neg (x)
      # error: output 'a' hides the one of an enclosing graph defined by node 0 (Relu); expected a new name
      later = Neg (x)
   }>
   later = Neg (x)
}"#,
    );
}

#[test]
fn inputs_outputs_and_initialisers_have_names() {
    let found = messages("g (float x) => (float x) <float[1] w = {1}> {}", |graph| {
        graph.input.push(ValueInfoProto {
            name: None,
            ..graph.input[0].clone()
        });
        graph.output[0].name = Some(String::new());
        graph.initializer[0].name = None;
    });
    assert_eq!(
        found,
        [
            "graph: input 1 has no name",
            "graph: initialiser 0 has no name",
            "graph: output 0 has no name"
        ]
    );
}

#[test]
fn before_ir_version_4_initialisers_are_inputs() {
    check_model(
        r#"<
   ir_version: 3,
   opset_import: ["" : 9]
>
g (float[1] v) => (float[1] y)
   <float[1] v =  {1}, float[1] w =  {1}>
{
   # error: initialiser 'w' is not among the inputs; in files of IR version 3 (before 4) it must be
   y = Add (v, w)
}
"#,
    );
}

// Order.

#[test]
fn nodes_stand_behind_what_they_read() {
    check(
        r#"
g (float x) => (float y) {
   [self] b = Add (x, b)
   # error: reads 'b', which this very node makes
   c = Neg (d)
   # error: reads 'd', which node 2 (Neg) makes only later; nodes must stand behind what they read
   d = Neg (c)
   y = If (x) <then_branch: graph = t () => (e) {
      e = Add (y, z)
      # error: reads 'y', which this very node makes
      # error: reads 'z', which node 4 'last' (Relu) makes only later; nodes must stand behind what they read
   }>
   [last] z = Relu (x)
}"#,
    );
}

// Graphs.

#[test]
fn inputs_and_outputs_of_the_main_graph_have_types() {
    check(
        r#"
g (x, float z) => (y) {
   # error: input 'x' has no type; expected one
   # error: output 'y' has no type; expected one
   y = Relu (x)
}"#,
    );
}

#[test]
fn value_infos_name_values_of_their_graph() {
    check(
        r#"
g (float x) => (float y)
   <float[2] a, float[2] gone, float[3] a>
{
   # error: value info 'gone' names no value of this graph
   # error: value info 'a' is given twice
   a = Relu (x)
   y = If (a) <then_branch: graph = t () => (d)
      <float[2] a>
{
      # error: value info 'a' names no value of this graph
      d = Neg (a)
   }>
}"#,
    );
}

#[test]
fn quantisation_annotations_name_values() {
    let text = format!(
        r#"{HEAD}g (float x) => (float y) {{
   # error: quantisation annotation of 'x': ZERO_POINT_TENSOR is 'zero', which is no value of this graph
   # error: quantisation annotation of 'gone', which is no value of this graph
   # error: quantisation annotation of 'x' is given twice
   y = Relu (x)
}}"#
    );
    let annotation = |tensor: &str, parameters: &[(&str, &str)]| TensorAnnotation {
        tensor_name: Some(tensor.into()),
        quant_parameter_tensor_names: (parameters.iter())
            .map(|(key, value)| StringStringEntryProto {
                key: Some((*key).into()),
                value: Some((*value).into()),
            })
            .collect(),
    };
    check_with(&text, |model| {
        model.graph.as_mut().unwrap().quantization_annotation = vec![
            annotation("x", &[("SCALE_TENSOR", "y"), ("ZERO_POINT_TENSOR", "zero")]),
            annotation("gone", &[]),
            annotation("x", &[]),
        ];
    });
}

#[test]
fn graphs_nest_to_a_limit() {
    let nested = |levels: usize| {
        let mut graph = GraphProto::default();
        for _ in 0..levels {
            let attribute = AttributeProto {
                name: Some("body".into()),
                g: Some(Box::new(graph)),
                r#type: Some(AttributeType::Graph as i32),
                ..Default::default()
            };
            let node = NodeProto {
                op_type: Some("Loop".into()),
                domain: Some("local".into()),
                input: vec![String::new()],
                attribute: vec![attribute],
                ..Default::default()
            };
            graph = GraphProto {
                node: vec![node],
                ..Default::default()
            };
        }
        let mut model = parse_model(&format!("{HEAD}g () => () {{}}")).unwrap();
        model.graph = Some(graph);
        verify_model(&model)
    };
    nested(32).unwrap();
    let found = nested(33).unwrap_err();
    let [one] = found.list.as_slice() else {
        panic!("{found}")
    };
    assert_eq!(one.message, "graphs are nested deeper than 32 levels");
    assert_eq!(one.place.nested.len(), 32);
}

// Nodes.

#[test]
fn a_node_has_an_operator_and_edges() {
    check(
        r#"
g (float x) => (float x) {
    = local.Nothing ()
   # error: the node has neither inputs nor outputs
    = local.Print (x)
   a = local.Give ()
   b = local.Op:variant (x)
   # error: calls the overload 'variant' of 'local.Op', and the model has no such function
}"#,
    );
    let found = messages("g (float x) => (float x) { a = Relu (x) }", |graph| {
        graph.node[0].op_type = None;
    });
    assert_eq!(found, ["node 0 (): the node has no operator"]);
}
