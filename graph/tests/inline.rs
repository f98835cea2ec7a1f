//! Model-local functions replaced by their bodies.
#![allow(clippy::unwrap_used)]

use velora_graph::inline::inline;
use velora_graph::onnx::schema::ModelProto;
use velora_graph::text::{parse_model, print_graph};

fn inlined(text: &str) -> ModelProto {
    inline(parse_model(text).unwrap()).unwrap()
}

fn refusal(text: &str) -> String {
    inline(parse_model(text).unwrap()).unwrap_err().to_string()
}

/// A model that calls functions, with the nodes of its graph and its functions.
fn model(nodes: &str, functions: &str) -> String {
    format!(
        "<ir_version: 9, opset_import: [\"\" : 18, \"d\" : 1]>\n\
         g (float[2] x) => (float[2] y) {{\n{nodes}\n}}\n{functions}"
    )
}

fn function(head: &str, body: &str) -> String {
    format!("<domain: \"d\", opset_import: [\"\" : 18, \"d\" : 1]>\n{head} {{\n{body}\n}}\n")
}

/// Every node as operator, inputs and outputs.
fn nodes(model: &ModelProto) -> Vec<String> {
    let graph = model.graph.as_ref().unwrap();
    (graph.node.iter())
        .map(|node| {
            let op = node.op_type.as_deref().unwrap();
            format!("{} {:?} {:?}", op, node.input, node.output)
        })
        .collect()
}

#[test]
fn a_body_takes_the_names_of_each_call() {
    let square = function("Twice (a) => (c)", "b = Add (a, a)\nc = Mul (b, b)");
    let model = inlined(&model("z = d.Twice (x)\ny = d.Twice (z)", &square));
    assert!(model.functions.is_empty());
    assert_eq!(
        nodes(&model),
        [
            r#"Add ["x", "x"] ["Twice/b"]"#,
            r#"Mul ["Twice/b", "Twice/b"] ["z"]"#,
            r#"Add ["z", "z"] ["Twice/b_2"]"#,
            r#"Mul ["Twice/b_2", "Twice/b_2"] ["y"]"#,
        ]
    );
}

#[test]
fn attributes_are_substituted_given_ones_before_defaults() {
    let functions = function(
        "F <axis, alpha: float = 0.5> (a) => (b)",
        "c = Elu <alpha: float = @alpha> (a)\nb = Softmax <axis: int = @axis> (c)",
    );
    let given = inlined(&model("y = d.F <axis = 1, alpha = 2.0> (x)", &functions));
    let graph = given.graph.as_ref().unwrap();
    assert_eq!(graph.node[0].attribute[0].f, Some(2.0));
    assert_eq!(graph.node[1].attribute[0].i, Some(1));
    assert_eq!(graph.node[1].attribute[0].ref_attr_name, None);
    // Neither given nor with a default: the operator's own default holds.
    let absent = inlined(&model("y = d.F (x)", &functions));
    let graph = absent.graph.as_ref().unwrap();
    assert_eq!(graph.node[0].attribute[0].f, Some(0.5));
    assert!(graph.node[1].attribute.is_empty());
    let wrong = refusal(&model("y = d.F <axis = 1.5> (x)", &functions));
    assert!(wrong.contains("`axis`") && wrong.contains("d.F"), "{wrong}");
}

#[test]
fn attributes_pass_through_nested_calls() {
    let functions = function("Outer <k> (a) => (b)", "b = d.Inner <n: int = @k> (a)")
        + &function("Inner <n> (a) => (b)", "b = Softmax <axis: int = @n> (a)");
    let model = inlined(&model("y = d.Outer <k = 7> (x)", &functions));
    let node = &model.graph.as_ref().unwrap().node[0];
    assert_eq!(
        (node.attribute[0].name.as_deref(), node.attribute[0].i),
        (Some("axis"), Some(7))
    );
}

#[test]
fn absent_operands_stay_absent_and_copies_are_made() {
    let functions = function(
        "F (a, low, high) => (b, extra, a)",
        "b = Clip (a, low, high)\nextra = Neg (a)",
    );
    let model = inlined(&model(
        "z, \"\", w = d.F (x, \"\")\ny = Add (z, w)",
        &functions,
    ));
    assert_eq!(
        nodes(&model),
        [
            r#"Clip ["x", "", ""] ["z"]"#,
            r#"Neg ["x"] ["F/extra"]"#,
            r#"Identity ["x"] ["w"]"#,
            r#"Add ["z", "w"] ["y"]"#,
        ]
    );
}

#[test]
fn branches_in_and_around_calls_are_renamed() {
    let functions = function(
        "F (c, a) => (b)",
        "t = Neg (a)\nb = If <then_branch = p () => (q) { q = Add (t, a) }, \
         else_branch = p () => (q) { q = Sub (t, a) }> (c)",
    );
    let text = model(
        "c = Cast <to = 9> (x)\n\
         y = If <then_branch = p () => (r) { r = d.F (c, x) }, \
         else_branch = p () => (s) { s = Neg (x) }> (c)",
        &functions,
    );
    let printed = print_graph(inlined(&text).graph.as_ref().unwrap());
    for expected in [
        "Add (\"F/t\", x)",
        "Sub (\"F/t\", x)",
        "\"F/q\"",
        "\"F/q_2\"",
    ] {
        assert!(printed.contains(expected), "{expected} in\n{printed}");
    }
    assert!(!printed.contains("d.F"), "{printed}");
}

#[test]
fn functions_of_the_tool_stay_and_unused_ones_go() {
    let functions = "<domain: \"ai.velora\", opset_import: [\"\" : 18]>\nCompress (a) => (b) {\nb = Neg (a)\n}\n"
        .to_owned()
        + &function("Unused (a) => (b)", "b = d.Unused (a)");
    let model = inlined(&model("y = ai.velora.Compress (x)", &functions));
    assert_eq!(model.functions.len(), 1);
    assert_eq!(model.functions[0].name.as_deref(), Some("Compress"));
    assert_eq!(nodes(&model), [r#"Compress ["x"] ["y"]"#]);
}

#[test]
fn operator_sets_are_merged_or_refused() {
    let other = |domain: &str, version: i64| {
        format!(
            "<domain: \"d\", opset_import: [\"{domain}\" : {version}]>\nF (a) => (b) {{\nb = Neg (a)\n}}\n"
        )
    };
    let merged = inlined(&model("y = d.F (x)", &other("com.microsoft", 1)));
    let microsoft =
        (merged.opset_import.iter()).find(|opset| opset.domain.as_deref() == Some("com.microsoft"));
    assert_eq!(microsoft.unwrap().version, Some(1));
    let refused = refusal(&model("y = d.F (x)", &other("ai.onnx", 13)));
    assert!(
        refused.contains("version 13") && refused.contains("18"),
        "{refused}"
    );
    // A function that nobody calls imports nothing.
    inlined(&model("y = Neg (x)", &other("", 13)));
}

#[test]
fn recursion_and_calls_that_do_not_fit_are_refused() {
    let functions =
        function("F (a) => (b)", "b = d.G (a)") + &function("G (a) => (b)", "b = d.F (a)");
    let refused = refusal(&model("y = d.F (x)", &functions));
    assert!(
        refused.contains("`d.F` calls itself, through d.F, d.G"),
        "{refused}"
    );
    let refused = refusal(&model("y = d.G (x, x)", &functions));
    assert!(
        refused.contains("`d.G` with 2 inputs; it has 1"),
        "{refused}"
    );
    let refused = refusal(&model(
        "y = d.H (x)",
        &function("H (a) => (b)", "c = Neg (a)"),
    ));
    assert!(refused.contains("output `b`"), "{refused}");
    // Sixty doublings.
    let mut functions = function("D0 (a) => (b)", "b = Neg (a)");
    for level in 1..60 {
        let below = level - 1;
        let body = format!("c = d.D{below} (a)\nb = d.D{below} (c)");
        functions += &function(&format!("D{level} (a) => (b)"), &body);
    }
    let refused = refusal(&model("y = d.D59 (x)", &functions));
    assert!(refused.contains("more than"), "{refused}");
}
