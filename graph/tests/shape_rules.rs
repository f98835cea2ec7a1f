//! Rules of single operators on graphs written as text: what is inferred, and what is refused.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::sync::Arc;
use velora_graph::dim::Dim;
use velora_graph::ir::Graph;
use velora_graph::onnx::schema::ModelProto;
use velora_graph::shapes::{Context, ShapeErrors, Shapes, infer};
use velora_graph::text::parse_model;

fn model(body: &str) -> ModelProto {
    let imports = r#""": 18, "com.microsoft": 1, "ai.velora": 1, "own": 1"#;
    let text = format!("<ir_version: 10, opset_import: [{imports}]>\n{body}");
    parse_model(&text).unwrap_or_else(|error| panic!("{error}\n{text}"))
}

fn run(model: &ModelProto, sizes: &[(&str, i64)]) -> (Graph, Result<Shapes, ShapeErrors>) {
    let sizes: BTreeMap<Arc<str>, i64> = sizes.iter().map(|&(n, s)| (Arc::from(n), s)).collect();
    let graph = Graph::from_proto(model.graph.clone().unwrap()).unwrap();
    let context = Context {
        opsets: &model.opset_import,
        functions: &model.functions,
        sizes: &sizes,
    };
    let shapes = infer(&graph, &context);
    (graph, shapes)
}

/// The type of a value, and its elements where they are followed.
fn of(body: &str, name: &str) -> String {
    let (graph, shapes) = run(&model(body), &[]);
    let shapes = shapes.unwrap_or_else(|errors| panic!("{errors}"));
    let value = graph
        .values()
        .find(|&v| graph.value(v).name == name)
        .unwrap();
    let elements = shapes.contents(value).map(|c| {
        let texts: Vec<String> = c.iter().map(Dim::to_string).collect();
        format!(" = {}", texts.join(", "))
    });
    format!("{}{}", shapes.of(value), elements.unwrap_or_default())
}

/// The type of `y` in a graph of one or more nodes.
fn y(inputs: &str, constants: &str, nodes: &str) -> String {
    of(
        &format!("g ({inputs}) => (y) <{constants}> {{ {nodes} }}"),
        "y",
    )
}

fn errors(body: &str, sizes: &[(&str, i64)]) -> String {
    run(&model(body), sizes).1.unwrap_err().to_string()
}

fn refused(inputs: &str, constants: &str, nodes: &str) -> String {
    errors(
        &format!("g ({inputs}) => (y) <{constants}> {{ {nodes} }}"),
        &[],
    )
}

#[test]
fn reshape_targets_computed_from_shapes() {
    let nodes = "
        s = Shape(x)
        b = Gather(s, zero)
        l = Slice(s, one, two)
        product = Mul(b, four)
        target = Concat <axis = 0> (product, l, rest)
        y = Reshape(x, target)";
    let constants = "int64[1] zero = {0}, int64[1] one = {1}, int64[1] two = {2},
                     int64[1] four = {4}, int64[1] rest = {-1}";
    assert_eq!(
        y("float[batch, seq, 64] x", constants, nodes),
        "float[4·batch, seq, 16]"
    );
}

#[test]
fn reshape_copies_and_infers() {
    let t = "int64[3] t = {0, -1, 16}";
    assert_eq!(
        y("float[b, s, 64] x", t, "y = Reshape(x, t)"),
        "float[b, 4·s, 16]"
    );
    let t = "int64[2] t = {0, 4}";
    assert_eq!(
        y("float[0, 4] x", t, "y = Reshape <allowzero = 1> (x, t)"),
        "float[0, 4]"
    );
    // Elements that nothing tells: the rank at least, and a single open one by division.
    assert_eq!(
        y("float[b, 6] x, int64[3] t", "", "y = Reshape(x, t)"),
        "float[y#0, y#1, y#2]"
    );
    let nodes = "c = Concat <axis = 0> (n, two)  y = Reshape(x, c)";
    assert_eq!(
        y("float[b, 6] x, int64[1] n", "int64[1] two = {2}", nodes),
        "float[3·b, 2]"
    );
}

#[test]
fn slices_clamp() {
    let cut = |inputs: &str, start: &str, end: &str, step: &str| {
        let constants = format!(
            "int64[1] s = {{{start}}}, int64[1] e = {{{end}}}, int64[1] a = {{0}}, int64[1] k = {{{step}}}"
        );
        y(inputs, &constants, "y = Slice(x, s, e, a, k)")
    };
    assert_eq!(
        cut("float[n] x", "0", "9223372036854775807", "1"),
        "float[n]"
    );
    assert_eq!(
        cut("float[n] x", "1", "9223372036854775807", "1"),
        "float[n - 1]"
    );
    assert_eq!(cut("float[n] x", "0", "-1", "1"), "float[n - 1]");
    assert_eq!(cut("float[n] x", "0", "32", "1"), "float[Min(n, 32)]");
    assert_eq!(
        cut("float[n] x", "-5", "9223372036854775807", "1"),
        "float[Min(n, 5)]"
    );
    assert_eq!(
        cut("float[n] x", "5", "9223372036854775807", "1"),
        "float[Max(0, n - 5)]"
    );
    assert_eq!(
        cut("float[n] x", "-1", "-9223372036854775808", "-1"),
        "float[n]"
    );
    assert_eq!(cut("float[10] x", "8", "2", "-3"), "float[2]");
    assert_eq!(cut("float[10] x", "-100", "100", "4"), "float[3]");
    assert_eq!(cut("float[10] x", "7", "3", "1"), "float[0]");
}

#[test]
fn a_table_cut_to_the_sequence_broadcasts_to_it() {
    let nodes =
        "n = Shape <start = 1, end = 2> (x)  rows = Slice(table, zero, n)  y = Add(x, rows)";
    let constants = "int64[1] zero = {0}";
    assert_eq!(
        y("float[b, seq, 8] x, float[32, 8] table", constants, nodes),
        "float[b, seq, 8]"
    );
}

#[test]
fn broadcasting_of_symbols_is_their_maximum() {
    assert_eq!(
        y("float[a, 1] p, float[b] q", "", "y = Add(p, q)"),
        "float[a, b]"
    );
    assert_eq!(
        y("float[a] p, float[b] q", "", "y = Add(p, q)"),
        "float[Max(a, b)]"
    );
    assert_eq!(y("float[a] p, float[4] q", "", "y = Add(p, q)"), "float[4]");
}

#[test]
fn expand_by_a_mask_of_minus_ones() {
    // How PyTorch's expand(-1, 4, -1) leaves the exporter.
    let nodes = "
        s = Shape(x)
        ones = ConstantOfShape <value = int64[1] {1}> (three)
        minus = Equal(wish, neg)
        size = Where(minus, ones, wish)
        y = Expand(x, size)";
    let constants = "int64[3] wish = {-1, 4, -1}, int64 neg = {-1}, int64[1] three = {3}";
    assert_eq!(y("float[b, 1, d] x", constants, nodes), "float[b, 4, d]");
}

#[test]
fn counting() {
    let nodes = "n = Size(x)  z = Cast <to = 7> (zero)  y = Range(z, n, one)";
    assert_eq!(
        y("float[b, s] x", "int32 zero = {0}, int64 one = {1}", nodes),
        "int64[b·s]"
    );
    let nodes = "s = Shape(x)  y = ReduceProd <keepdims = 0> (s)";
    assert_eq!(y("float[b, s, 4] x", "", nodes), "int64[] = 4·b·s");
    let nodes = "s = Shape(x)  h = Div(s, two)  y = Sub(s, h)";
    assert_eq!(
        y("float[64, n] x", "int64[1] two = {2}", nodes),
        "int64[2] = 32, n - (n//2)"
    );
}

#[test]
fn axes_as_attribute_and_as_input() {
    let old = |nodes: &str| {
        let mut model = model(&format!("g (float[b, 1, 8] x) => (y) {{ {nodes} }}"));
        model.opset_import[0].version = Some(11);
        let (graph, shapes) = run(&model, &[]);
        shapes.unwrap().of(graph.outputs()[0]).to_string()
    };
    assert_eq!(old("y = Squeeze <axes = [1]> (x)"), "float[b, 8]");
    assert_eq!(
        old("y = Unsqueeze <axes = [0, -1]> (x)"),
        "float[1, b, 1, 8, 1]"
    );
    assert_eq!(
        old("y = ReduceSum <axes = [-1], keepdims = 0> (x)"),
        "float[b, 1]"
    );
    let axes = "int64[1] axes = {1}";
    assert_eq!(
        y("float[b, 1, 8] x", axes, "y = Squeeze(x, axes)"),
        "float[b, 8]"
    );
    assert_eq!(
        y("float[b, 8] x", axes, "y = Unsqueeze(x, axes)"),
        "float[b, 1, 8]"
    );
    assert_eq!(
        y("float[b, 8] x", axes, "y = ReduceSum(x, axes)"),
        "float[b, 1]"
    );
    assert_eq!(
        y(
            "float[b, 8] x",
            "",
            "y = ReduceSum <noop_with_empty_axes = 1> (x)"
        ),
        "float[b, 8]"
    );
    assert_eq!(y("float[b, 8] x", "", "y = ReduceSum(x)"), "float[1, 1]");
}

#[test]
fn operators_of_the_tool() {
    let v = "float[16] v";
    let x = "float[b, s, 64] x, float[16] v";
    assert_eq!(
        y(x, "", "y = ai.velora.Compress <groups = 4> (x, v)"),
        "float[b, s, 4]"
    );
    assert_eq!(
        y(
            "float[n, 62] x",
            "",
            "y = ai.velora.MeanDirection <groups = 4> (x)"
        ),
        "float[16]"
    );
    let z = format!("float[b, s, 4] z, {v}");
    let node = "y = ai.velora.Reconstruct <groups = 4, features = 62> (z, v)";
    assert_eq!(y(&z, "", node), "float[b, s, 62]");
    let z = format!("float[n, 4] z, float[n, 32] d, {v}");
    let grad = |transposed: i64| {
        let node = format!(
            "y = ai.velora.FactoredWeightGrad <groups = 4, features = 64, transposed = {transposed}, scale = 1.0> (z, d, v)"
        );
        y(&z, "", &node)
    };
    assert_eq!(grad(0), "float[64, 32]");
    assert_eq!(grad(1), "float[32, 64]");
    let node = "y = ai.velora.FactoredScaleGrad <groups = 4, scale = 1.0> (z, d, v)";
    assert_eq!(
        y("float[n, 4] z, float[n, 61] d, float[16] v", "", node),
        "float[61]"
    );
}

#[test]
fn features_on_axis_one() {
    let x = "float[n, 30, h, 7] x, float[8] v";
    let compress = "y = ai.velora.Compress <groups = 4, axis = 1> (x, v)";
    assert_eq!(y(x, "", compress), "float[n, 4, h, 7]");
    let mean = "y = ai.velora.MeanDirection <groups = 4, axis = 1> (x)";
    assert_eq!(y(x, "", mean), "float[8]");
    let z = "float[n, 4, h, 7] z, float[8] v";
    let reconstruct = "y = ai.velora.Reconstruct <groups = 4, features = 30, axis = 1> (z, v)";
    assert_eq!(y(z, "", reconstruct), "float[n, 30, h, 7]");
}

#[test]
fn fused_products_and_windows() {
    let node = "y = com.microsoft.FusedMatMul <transA = 1, transBatchB = 1> (a, b)";
    assert_eq!(
        y("float[2, 3, 8, 5] a, float[8, 2, 3, 7] b", "", node),
        "float[2, 3, 5, 7]"
    );
    let node = "y = Conv <pads = [1, 1, 1, 1], strides = [2, 2]> (x, w)";
    assert_eq!(
        y("float[n, 3, h, 8] x, float[4, 3, 3, 3] w", "", node),
        "float[n, 4, ((h + 1)//2), 4]"
    );
    assert_eq!(
        y(
            "float[a, i, j] p, float[j, k] q",
            "",
            r#"y = Einsum <equation = "...ij,jk->...ik"> (p, q)"#
        ),
        "float[a, i, k]"
    );
}

#[test]
fn nested_graphs_and_functions() {
    let branch = |size: i64| format!("b{size} () => (o{size}) {{ o{size} = Expand(x, c{size}) }}");
    let nodes = format!(
        "y = If (c) <then_branch = {}, else_branch = {}>",
        branch(3),
        branch(4)
    );
    let constants = "int64[2] c3 = {3, 1}, int64[2] c4 = {4, 1}";
    assert_eq!(
        y("float[1, n] x, bool c", constants, &nodes),
        "float[y#0, n]"
    );
    let known = format!("{constants}, bool c = {{1}}");
    assert_eq!(y("float[1, n] x", &known, &nodes), "float[3, n]");
    let body = "b (int64 i, bool k, float[r, m] h) => (k2, h2, out) {
        k2 = Identity(k)  h2 = Concat <axis = 0> (h, x)  out = Relu(h) }";
    let graph = format!(
        "g (float[1, n] x, int64 trips, bool c) => (y, outs) {{ y, outs = Loop (trips, c, x) <body = {body}> }}"
    );
    assert_eq!(of(&graph, "y"), "float[y#0, n]");
    let function = r#"
        g (float[b, 6] x) => (y) { y = own.halves <to = [-1, 3]> (x) }
        <domain: "own", opset_import: ["" : 18]>
        halves <to> (x) => (y) { t = Constant <value_ints: ints = @to> ()  y = Reshape(x, t) }"#;
    assert_eq!(of(function, "y"), "float[2·b, 3]");
}

#[test]
fn an_unknown_operator_is_listed_and_its_declaration_believed() {
    let text = "g (float[b, 4] x) => (float[b, 4] y) <float[b, k] h> { h, i = own.mystery(x)  y = MatMul(h, i) }";
    let (graph, shapes) = run(&model(text), &[]);
    let shapes = shapes.unwrap();
    let unknown: Vec<_> = shapes.unknown_ops().iter().collect();
    assert_eq!(unknown, [&("own".to_owned(), "mystery".to_owned())]);
    let named = |name: &str| {
        graph
            .values()
            .find(|&v| graph.value(v).name == name)
            .unwrap()
    };
    assert_eq!(shapes.of(named("h")).to_string(), "float[b, k]");
    assert_eq!(shapes.of(named("i")).to_string(), "?[...]");
    assert_eq!(shapes.of(named("y")).to_string(), "float[b, 4]");
    assert_eq!(shapes.bytes(named("i")), None);
}

#[test]
fn the_more_telling_of_rule_and_declaration_stays() {
    let of_h = |h: &str, nodes: &str| {
        of(
            &format!(
                "g (float[b, s, 64] x, int64[2] t) => (y) <float[{h}] h> {{ {nodes}  y = Relu(h) }}"
            ),
            "h",
        )
    };
    let flat = "two = Constant <value_ints = [-1, 64]> ()  h = Reshape(x, two)";
    assert_eq!(of_h("rows, 64", flat), "float[b·s, 64]");
    assert_eq!(of_h("8, 64", flat), "float[8, 64]");
    let open = "h = Reshape(x, t)";
    assert_eq!(of_h(r#"rows, "2*s""#, open), "float[rows, 2·s]");
}

#[test]
fn sizes_go_into_expressions() {
    let text = r#"g (float["4*batch", seq] x, float[batch] z) => (y) { y = Relu(x) }"#;
    let (graph, shapes) = run(&model(text), &[("batch", 3)]);
    assert_eq!(
        shapes.unwrap().of(graph.outputs()[0]).to_string(),
        "float[12, seq]"
    );
}

#[test]
fn contradictions_name_both_facts() {
    let cases = [
        (
            refused(
                "float[b, 65] x, float[64, 8] w",
                "",
                "[fc1] y = MatMul(x, w)",
            ),
            "node 'fc1' (MatMul), tensor 'w': the operand is [64, 8], but 'x' is [b, 65]; the last \
             axis of the first must equal the second last of the second",
        ),
        (
            refused("float[3] p, float[b, 4] q", "", "[sum] y = Add(p, q)"),
            "node 'sum' (Add), tensor 'q': the shape [b, 4] has a 4, but 'p' [3] has a 3 there; \
             sizes that are broadcast must be equal or 1",
        ),
        (
            refused("float[3] p, double[3] q", "", "y = Mul(p, q)"),
            "node 'producer of y' (Mul), tensor 'q': the element type is double, but 'p' has float; \
             the operator takes one type for both: insert a Cast",
        ),
        (
            refused(
                "float[4, 6] x",
                "int64[2] t = {5, 5}",
                "[flat] y = Reshape(x, t)",
            ),
            "node 'flat' (Reshape), tensor 'x': it has 24 elements, but the target shape [5, 5] has \
             25; a Reshape keeps the number of elements: check the target shape",
        ),
        (
            refused(
                "float[4, 6] x",
                "int64[2] t = {5, -1}",
                "[flat] y = Reshape(x, t)",
            ),
            "node 'flat' (Reshape), tensor 'x': it has 24 elements, but the sizes of the target \
             shape [5, ?] multiply to 5; the one must divide the other: check the target shape",
        ),
        (
            refused(
                "float[a, 4] p, float[a, 5] q",
                "",
                "[c] y = Concat <axis = 0> (p, q)",
            ),
            "node 'c' (Concat), tensor 'q': axis 1 is 5, but axis 1 of 'p' is 4; the two must be \
             equal: check the layouts of the operands",
        ),
        (
            refused("float[a] x", "", "[t] y = Transpose <perm = [0, 1]> (x)"),
            "node 't' (Transpose), tensor 'x': the shape is [a], but perm is [0, 1]; perm must list \
             every axis once",
        ),
        (
            refused(
                "float[a] x",
                "",
                "[s] y = Softmax(x)  z = Split <axis = 3> (y)",
            ),
            "node 'producer of z' (Split), tensor 'y': axis 3 is asked for, but the tensor has rank \
             1; check the axis attribute or input of the node",
        ),
        (
            errors(
                "g (float[b, 4] x) => (float[b, 5] y) { [r] y = Relu(x) }",
                &[],
            ),
            "node 'r' (Relu), tensor 'y': axis 1 is 4 in the shape [b, 4], but the file declares 5 \
             in [b, 5]; the declaration is stale: export the model again, or drop its value_info",
        ),
        (
            errors("g (float[b, 4] x) => (float[b] y) { [r] y = Relu(x) }", &[]),
            "node 'r' (Relu), tensor 'y': the shape [b, 4] has rank 2, but the file declares [b], \
             rank 1; the declaration is stale: export the model again, or drop its value_info",
        ),
        (
            errors("g (float[b] x) => (int64[b] y) { [r] y = Relu(x) }", &[]),
            "node 'r' (Relu), tensor 'y': the element type is float, but the file declares int64; \
             the declaration is stale, or a Cast is missing in front of the node",
        ),
        (
            errors("g (float[b] x) => (y) { y = Relu(x) }", &[("b", 0)]),
            "tensor 'x': the size 'b' is given as 0, but a size is at least 1; \
             without the sizes given there is no contradiction: check --dim",
        ),
        (
            errors(
                "g (float[b] x) => (y) <float[2] x = {1, 2}> { y = Relu(x) }",
                &[("b", 3)],
            ),
            "tensor 'x': axis 0 is 2 in the shape [2], but the file declares 3 in [3]; \
             without the sizes given there is no contradiction: check --dim",
        ),
        (
            errors(
                r#"g (float["n - 4"] x) => (y) { y = Relu(x) }"#,
                &[("n", 2)],
            ),
            "tensor 'x': axis 0 would be -2, but no size is negative; without the sizes given \
             there is no contradiction: check --dim",
        ),
        (
            refused(
                "float[n, 1, 1, 5] x, float[1, 1, 3, 3] w",
                "",
                "[c] y = Conv(x, w)",
            ),
            "node 'c' (Conv), tensor 'y': axis 2 would be -1, but no size is negative; check the \
             sizes of the inputs",
        ),
        (
            refused(
                "float[b, 62] x, float[15] v",
                "",
                "[z] y = ai.velora.Compress <groups = 4> (x, v)",
            ),
            "node 'z' (Compress), tensor 'v': the direction has 15 elements, but sub-tokens have 16 \
             (ceil(62 / 4)); v, groups and the features belong together: rewrite the original graph \
             again",
        ),
        (
            refused(
                "float[64, 8] buffer, float[8, 64] grad, bool[1] reset",
                "",
                "[acc] y = com.microsoft.InPlaceAccumulatorV2(buffer, grad, reset)",
            ),
            "node 'acc' (InPlaceAccumulatorV2), tensor 'grad': axis 0 is 8, but axis 0 of 'buffer' \
             is 64; the two must be equal: check the layouts of the operands",
        ),
    ];
    for (found, expected) in cases {
        assert_eq!(found, expected);
    }
}

#[test]
fn all_contradictions_are_reported_once_each() {
    let text = "g (float[2] p, float[3] q) => (float[7] y) {
        [first] a = Add(p, q)
        [second] b = Mul(q, p)
        [third] y = Add(a, b) }";
    let found = errors(text, &[]);
    let labels: Vec<&str> = found
        .lines()
        .map(|l| l.split('\'').nth(1).unwrap())
        .collect();
    assert_eq!(labels, ["first", "second"], "{found}");
}

#[test]
fn a_contradiction_in_a_function_names_call_and_node() {
    let text = r#"
        g (float[4] x) => (y) { [call] y = own.f(x) }
        <domain: "own", opset_import: ["" : 18]>
        f (x) => (y) { three = Constant <value_ints = [3]> ()  [inner] y = Reshape(x, three) }"#;
    let found = errors(text, &[]);
    assert!(
        found.starts_with("node 'call/inner' (Reshape), tensor 'x': "),
        "{found}"
    );
}
