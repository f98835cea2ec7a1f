//! Gradients that leave as P and v are proven, and what is wrong with them is named.
#![allow(clippy::unwrap_used)]

use std::path::Path;
use velora_graph::analysis::roles::Hints;
use velora_graph::analysis::{Analyses, Settings};
use velora_graph::ir::Model;
use velora_graph::onnx::make::{float, float_tensor, int};
use velora_graph::onnx::read::{UnknownFields, read};
use velora_graph::onnx::schema::tensor_shape_proto::dimension;
use velora_graph::onnx::schema::{
    GraphProto, ModelProto, NodeProto, StringStringEntryProto, ValueInfoProto, type_proto,
};
use velora_graph::text::parse_model;
use velora_passes::manager::Checks;
use velora_passes::pipeline::{Options, optimise};
use velora_passes::proof::{Form, Proof, Side, prove};
use velora_passes::select::{Directions, Gradients, Grouping, Init, Selection, Storage};

struct Pair {
    original: Model,
    settings: Settings,
    rewritten: ModelProto,
}

fn selection() -> Selection {
    let mut selection = Selection::freeable(Grouping::Groups(4));
    selection.defaults.init = Init::Random;
    selection.defaults.gradients = Gradients::Factored;
    selection
}

fn file(name: &str) -> ModelProto {
    let models = Path::new(env!("CARGO_MANIFEST_DIR")).join("../models");
    read(&models.join(name), UnknownFields::Allow).unwrap()
}

impl Pair {
    fn new(original: ModelProto, selection: Selection, inline: bool, pin: bool) -> Pair {
        Pair::with(original, selection, inline, pin, Settings::default())
    }

    fn with(
        original: ModelProto,
        selection: Selection,
        inline: bool,
        pin: bool,
        settings: Settings,
    ) -> Pair {
        let original = Model::from_proto(original).unwrap();
        let options = Options {
            settings: settings.clone(),
            selection,
            inline,
            hoist: true,
            recompute: None,
            pin,
            adapter: None,
            checks: Checks {
                verify_each: true,
                keep_after: None,
            },
        };
        let outcome = optimise(&original, &options).unwrap();
        let found = outcome.decisions.iter();
        assert!(
            { found }.any(|d| d.gradient.route().is_some()),
            "nothing leaves as factors"
        );
        Pair {
            rewritten: outcome.ran.model.to_proto(),
            settings,
            original,
        }
    }

    fn prove(&self, rewritten: ModelProto) -> Proof {
        let rewritten = Model::from_proto(rewritten).unwrap();
        let analyses = Analyses::new(&self.original, &self.settings).unwrap();
        let side = |model| Side {
            model,
            folder: None,
        };
        prove(
            side(&self.original),
            &analyses,
            side(&rewritten),
            &self.settings,
        )
    }

    /// Breaks the rewritten graph, and expects a difference that says so.
    fn refuses(&self, wanted: &str, breaks: impl FnOnce(&mut GraphProto)) {
        let mut model = self.rewritten.clone();
        breaks(model.graph.as_mut().unwrap());
        assert!(model != self.rewritten, "nothing is broken: {wanted}");
        let found = self.prove(model).differences;
        assert!(
            found.iter().any(|d| d.to_string().contains(wanted)),
            "expected {wanted}, found {found:#?}"
        );
    }
}

fn making<'g>(graph: &'g mut GraphProto, output: &str) -> &'g mut NodeProto {
    let mut nodes = graph.node.iter_mut();
    let found = nodes.find(|n| n.output.iter().any(|o| o == output));
    found.unwrap_or_else(|| panic!("nothing makes {output}"))
}

fn place_of(graph: &GraphProto, output: &str) -> usize {
    let mut nodes = graph.node.iter();
    nodes.position(|n| n.output[0] == output).unwrap()
}

/// Sets a mark, or takes it.
fn mark(node: &mut NodeProto, key: &str, value: Option<&str>) {
    let key = format!("velora.{key}");
    node.metadata_props.retain(|e| e.key() != key);
    if let Some(value) = value {
        node.metadata_props.push(StringStringEntryProto {
            key: Some(key),
            value: Some(value.to_owned()),
        });
    }
}

/// A node of ours, by its marks.
fn new_node(op: &str, inputs: &[&str], output: &str) -> NodeProto {
    let mut node = NodeProto {
        name: Some(output.to_owned()),
        op_type: Some(op.to_owned()),
        input: inputs.iter().map(|&i| i.to_owned()).collect(),
        output: vec![output.to_owned()],
        ..Default::default()
    };
    mark(&mut node, "version", Some(env!("CARGO_PKG_VERSION")));
    node
}

fn declared<'g>(infos: &'g mut [ValueInfoProto], name: &str) -> &'g mut ValueInfoProto {
    infos.iter_mut().find(|i| i.name() == name).unwrap()
}

fn resize(info: &mut ValueInfoProto, axis: usize, size: i64) {
    let Some(type_proto::Value::TensorType(tensor)) = &mut info.r#type.as_mut().unwrap().value
    else {
        panic!("no tensor");
    };
    tensor.shape.as_mut().unwrap().dim[axis].value = Some(dimension::Value::DimValue(size));
}

/// Two layers on two activations. P and z are square or as wide as dY: shapes tell nothing apart.
fn two_layers() -> ModelProto {
    let text = "<ir_version: 10, opset_import: [\"\" : 18]>
        g (float[256, 64] x, float[64, 4] w, float[4, 64] u)
           => (float loss, float[64, 4] w_grad, float[4, 64] u_grad, float[2] metric)
           <int64[1] two = {2}>
        {
           h = Sigmoid (x)
           k = Tanh (x)
           y = MatMul (h, w)
           c = Gemm <transB = 1> (k, u)
           t = Mul (y, c)
           loss = ReduceSumSquare <keepdims = 0> (t)
           one = Neg (loss)
           metric = Expand (one, two)
           dy = Mul (t, c)
           dc = Mul (t, y)
           w_grad = Gemm <transA = 1> (h, dy)
           u_grad = Gemm <transA = 1> (dc, k)
        }";
    parse_model(text).unwrap()
}

/// A gradient that is halved and turned on its way.
fn a_way() -> ModelProto {
    let text = "<ir_version: 10, opset_import: [\"\" : 18]>
        g (float[256, 64] x, float[64, 64] w) => (float loss, float[64, 64] w_grad)
           <float half = {0.5}, float third = {0.25}, int64[2] same = {64, 64}>
        {
           h = Sigmoid (x)
           y = MatMul (h, w)
           loss = ReduceSumSquare <keepdims = 0> (y)
           dy = Add (y, y)
           g0 = Gemm <transA = 1> (dy, h)
           g1 = Mul (g0, half)
           g2 = Reshape (g1, same)
           g3 = Transpose <perm = [1, 0]> (g2)
           w_grad = Div (g3, third)
        }";
    parse_model(text).unwrap()
}

/// ONNX Runtime's accumulators.
fn accumulated() -> ModelProto {
    let text = "<ir_version: 10, opset_import: [\"\" : 18, \"com.microsoft\" : 1]>
        g (float[256, 64] x, float[64, 4] w, float[64, 4] u, float[64, 4] \"w_grad.buffer\",
           float[64, 4] \"u_grad.buffer\", bool[1] reset, bool[1] never)
           => (float loss, bool[1] \"w_grad.out\", bool[1] \"u_grad.out\")
        {
           h = Sigmoid (x)
           y = MatMul (h, w)
           c = MatMul (h, u)
           t = Mul (y, c)
           loss = ReduceSumSquare <keepdims = 0> (t)
           dy = Mul (t, c)
           dc = Mul (t, y)
           w_grad = Gemm <transA = 1> (h, dy)
           \"w_grad.out\" = com.microsoft.InPlaceAccumulatorV2 (\"w_grad.buffer\", w_grad, reset)
           u_grad = Gemm <transA = 1> (h, dc)
           \"u_grad.out\" = com.microsoft.InPlaceAccumulatorV2 (\"u_grad.buffer\", u_grad, reset)
        }";
    parse_model(text).unwrap()
}

#[test]
fn right_graphs_are_accepted() {
    for name in [
        "aot/digits_mlp.onnx",
        "ort/digits_mlp.onnx",
        "aot/llama_tiny.onnx",
        "ort/llama_tiny.onnx",
    ] {
        for inline in [false, true] {
            for (init, scale) in [(Init::FirstBatch, 1.0), (Init::None, 0.3)] {
                let mut selection = selection();
                selection.defaults.init = init;
                selection.defaults.scale = scale;
                let pair = Pair::new(file(name), selection, inline, true);
                let proof = pair.prove(pair.rewritten.clone());
                assert_eq!(proof.differences, [], "{name}");
                let factors = proof.gradients.iter().filter(|g| g.form == Form::Factors);
                assert!(factors.count() > 0 && proof.pins > 0, "{name}");
                let nodes = pair.original.graph.node_count();
                assert_eq!(proof.same + proof.removed, nodes, "{name}");
            }
        }
    }
    for model in [two_layers(), a_way(), accumulated()] {
        for storage in Storage::ALL {
            for directions in [Directions::Shared, Directions::Group] {
                for inline in [false, true] {
                    let mut selection = selection();
                    selection.defaults.storage = storage;
                    selection.defaults.directions = directions;
                    let pair = Pair::new(model.clone(), selection, inline, true);
                    let proof = pair.prove(pair.rewritten.clone());
                    assert_eq!(proof.differences, [], "{storage:?} {directions:?}");
                }
            }
        }
    }
}

/// A loss that only the user can tell from another scalar.
#[test]
fn hints_are_followed() {
    let mut model = two_layers();
    let graph = model.graph.as_mut().unwrap();
    making(graph, "metric").op_type = Some("Neg".to_owned());
    making(graph, "metric").input.truncate(1);
    graph.output[3] = graph.output[0].clone();
    graph.output[3].name = Some("metric".to_owned());
    graph.initializer.clear();
    let settings = Settings {
        hints: Hints {
            loss: Some("loss".to_owned()),
            ..Hints::default()
        },
        ..Settings::default()
    };
    let pair = Pair::with(model, selection(), false, true, settings);
    assert_eq!(pair.prove(pair.rewritten.clone()).differences, []);
}

#[test]
fn wrong_factors_are_named() {
    let pair = Pair::new(two_layers(), selection(), false, false);
    let product = "node 'w_grad.P' (Gemm) is no product of the transpose";
    pair.refuses(product, |g| making(g, "w_grad.P").attribute.clear());
    pair.refuses(product, |g| {
        making(g, "w_grad.P").attribute.push(int("transB", 1));
    });
    pair.refuses("(MatMul) is no product of the transpose", |g| {
        let node = making(g, "w_grad.P");
        node.op_type = Some("MatMul".to_owned());
        node.attribute.clear();
    });
    pair.refuses("node 'w_grad.P' (Gemm)", |g| {
        // An addend, of P's shape.
        g.initializer
            .push(float_tensor("added", vec![4, 4], &[1.0; 16]));
        making(g, "w_grad.P").input.push("added".to_owned());
    });
    let turned = "(Gemm) makes the transpose of what it should";
    pair.refuses(&format!("'w_grad.P' {turned}"), |g| {
        making(g, "w_grad.P").input.reverse();
    });
    pair.refuses(&format!("'u_grad.P' {turned}"), |g| {
        making(g, "u_grad.P").input.reverse();
    });
    pair.refuses("'w_grad.P' (Gemm) has alpha = 2, expected 1", |g| {
        making(g, "w_grad.P").attribute.push(float("alpha", 2.0));
    });
    pair.refuses(
        "'w_grad.P' (Gemm), tensor 'dc': is read in the place of dY, 'dy'",
        |g| {
            let node = making(g, "w_grad.P");
            node.input[1] = "dc".to_owned();
        },
    );
    pair.refuses("tensor 'k': is compressed in the place of 'h'", |g| {
        making(g, "w_grad.P").input[0] = "velora.k.z".to_owned();
    });
    pair.refuses("tensor 'k': is compressed in the place of 'h'", |g| {
        making(g, "velora.h.z").input[0] = "k".to_owned();
    });
    pair.refuses(
        "tensor 'velora.k.v': is not the direction that X is compressed with",
        |g| {
            making(g, "w_grad.v").input[0] = "velora.k.v".to_owned();
        },
    );
    pair.refuses(
        "tensor 'w_grad.v': is not the direction that X is compressed with",
        |g| {
            making(g, "w_grad.v").op_type = Some("Neg".to_owned());
        },
    );
    let mut scaled = selection();
    scaled.defaults.scale = 2.0;
    let pair = Pair::new(two_layers(), scaled, false, false);
    pair.refuses("'w_grad.P' (Gemm) has alpha = 1, expected 2", |g| {
        making(g, "w_grad.P")
            .attribute
            .retain(|a| a.name() != "alpha");
    });
}

/// Nodes of the tool between z or dY and their product that would change them.
#[test]
fn what_stands_before_a_product_is_looked_at() {
    for inline in [false, true] {
        let pair = Pair::new(two_layers(), selection(), inline, false);
        for (slot, op) in [(0, "Neg"), (1, "Neg"), (0, "Exp"), (1, "Exp")] {
            pair.refuses("'changed'", |g| {
                let place = place_of(g, "w_grad.P");
                let read = g.node[place].input[slot].clone();
                g.node[place].input[slot] = "changed".to_owned();
                g.node.insert(place, new_node(op, &[&read], "changed"));
            });
        }
        pair.refuses("'added'", |g| {
            let place = place_of(g, "w_grad.P");
            let read = g.node[place].input[1].clone();
            g.node[place].input[1] = "added".to_owned();
            g.node
                .insert(place, new_node("Add", &[&read, &read], "added"));
        });
    }
    // Rows in another order.
    let mut model = two_layers();
    let graph = model.graph.as_mut().unwrap();
    for info in &mut graph.input {
        if info.name() == "x" {
            resize(info, 0, 4);
        }
    }
    let mut selection = selection();
    selection.preset = velora_passes::select::Preset::All;
    selection.min_bytes = 0;
    let pair = Pair::new(model, selection, false, false);
    pair.refuses("'turned'", |g| {
        let place = place_of(g, "w_grad.P");
        g.node[place].input[1] = "turned".to_owned();
        g.node
            .insert(place, new_node("Transpose", &["dy"], "turned"));
    });
}

#[test]
fn wrong_marks_are_named() {
    let pair = Pair::new(two_layers(), selection(), false, false);
    pair.refuses(
        "tensor 'w_grad': names the wrong axis of the parameter",
        |g| {
            mark(making(g, "w_grad.P"), "axis", Some("1"));
        },
    );
    pair.refuses(
        "tensor 'u_grad': names the wrong axis of the parameter",
        |g| {
            mark(making(g, "u_grad.P"), "axis", Some("0"));
        },
    );
    let whose = "does not say which parameter and direction it belongs to";
    pair.refuses(&format!("tensor 'w_grad': {whose}"), |g| {
        mark(making(g, "w_grad.P"), "factored", Some("u"));
    });
    pair.refuses(&format!("tensor 'w_grad': {whose}"), |g| {
        mark(making(g, "w_grad.v"), "direction_of", None);
    });
    pair.refuses(&format!("tensor 'w_grad': {whose}"), |g| {
        mark(making(g, "w_grad.P"), "groups", None);
    });
    for groups in ["2", "8"] {
        pair.refuses("'w_grad.P'", |g| {
            mark(making(g, "w_grad.P"), "groups", Some(groups));
        });
    }
    pair.refuses("has 65 groups of 64 features", |g| {
        mark(making(g, "w_grad.P"), "groups", Some("65"));
    });
    pair.refuses("tensor 'w_grad': has two factors", |g| {
        mark(making(g, "u_grad.P"), "factor_of", Some("w_grad"));
    });
    pair.refuses("'w_grad'", |g| {
        mark(making(g, "w_grad.P"), "factor_of", None);
    });
    // The directions of two gradients, exchanged by their marks.
    pair.refuses("is not the direction that X is compressed with", |g| {
        mark(making(g, "w_grad.v"), "direction_of", Some("u_grad.P"));
        mark(making(g, "u_grad.v"), "direction_of", Some("w_grad.P"));
    });
}

#[test]
fn wrong_ports_are_named() {
    let pair = Pair::new(two_layers(), selection(), false, false);
    pair.refuses(
        "tensor 'w_grad.P' was output 1, which is now 'w_grad.v'",
        |g| {
            g.output.swap(1, 2);
        },
    );
    pair.refuses(
        "tensor 'w_grad.P' was output 1, which is now 'u_grad.P'",
        |g| {
            g.output.swap(1, 3);
        },
    );
    pair.refuses("tensor 'w_grad.P' is declared otherwise as output", |g| {
        resize(declared(&mut g.output, "w_grad.P"), 0, 8);
    });
    pair.refuses("tensor 'w_grad.v' is declared otherwise as output", |g| {
        resize(declared(&mut g.output, "w_grad.v"), 0, 4);
    });
    pair.refuses(
        "tensor 'u_grad': does not say which parameter and direction",
        |g| {
            g.output.retain(|o| o.name() != "u_grad.v");
            g.node.retain(|n| n.output[0] != "u_grad.v");
        },
    );
    // Another output is made from P.
    pair.refuses("(Neg), tensor 'loss': operand 0 is now 'w_grad.P'", |g| {
        let place = place_of(g, "one");
        g.node[place].input[0] = "w_grad.P".to_owned();
        // Behind what it reads.
        let metric = g.node.remove(place_of(g, "metric"));
        let one = g.node.remove(place);
        g.node.extend([one, metric]);
    });
    // P leaves behind one more node.
    pair.refuses("tensor 'w_grad'", |g| {
        let place = place_of(g, "w_grad.P");
        let mut behind = new_node("Neg", &["inner"], "w_grad.P");
        for (key, value) in [("factored", "w"), ("axis", "0"), ("groups", "4")] {
            mark(&mut behind, key, Some(value));
        }
        g.node[place].output[0] = "inner".to_owned();
        g.node.insert(place + 1, behind);
    });
}

#[test]
fn another_way_is_named() {
    let pair = Pair::new(a_way(), selection(), false, false);
    assert_eq!(pair.prove(pair.rewritten.clone()).differences, []);
    let other = "does not do to a factor what";
    pair.refuses(&format!("(Transpose) {other} 'producer of g3'"), |g| {
        let node = making(g, "g3.P");
        node.attribute[0].ints = vec![0, 1];
    });
    pair.refuses(&format!("(Sub) {other}"), |g| {
        making(g, "g1.P").op_type = Some("Sub".to_owned());
    });
    pair.refuses("tensor 'third': is read in the place of 'half'", |g| {
        making(g, "g1.P").input[1] = "third".to_owned();
    });
    pair.refuses("tensor 'g0.P': is read in the place of 'g1.P'", |g| {
        making(g, "g2.P").input[0] = "g0.P".to_owned();
    });
    pair.refuses("(Neg)", |g| {
        making(g, "g2.P").op_type = Some("Neg".to_owned());
    });
    pair.refuses("has no factor for 'g1', which it is made of", |g| {
        making(g, "g2.P").input[0] = "g0.P".to_owned();
        g.node.retain(|n| n.output[0] != "g1.P");
    });
    pair.refuses("tensor 'half': the constant has", |g| {
        let half = g
            .initializer
            .iter_mut()
            .find(|t| t.name() == "half")
            .unwrap();
        *half = float_tensor("half", vec![], &[0.75]);
    });
    for groups in ["2", "8"] {
        pair.refuses("tensor 'w_grad.P' is declared otherwise as output", |g| {
            mark(making(g, "w_grad.P"), "groups", Some(groups));
        });
    }
}

#[test]
fn other_buffers_are_named() {
    let pair = Pair::new(accumulated(), selection(), false, false);
    assert_eq!(pair.prove(pair.rewritten.clone()).differences, []);
    let node = "(com.microsoft.InPlaceAccumulatorV2)";
    pair.refuses("is summed up in 'u_grad.buffer.P'", |g| {
        making(g, "w_grad.out.P").input[0] = "u_grad.buffer.P".to_owned();
    });
    pair.refuses(
        &format!("{node}, tensor 'never': is read in the place of 'reset'"),
        |g| {
            making(g, "w_grad.out.P").input[2] = "never".to_owned();
        },
    );
    pair.refuses("tensor 'w_grad.buffer.P' was input", |g| {
        let swap = ["w_grad.buffer.P", "u_grad.buffer.P"];
        let [first, second] = swap.map(|name| {
            let mut inputs = g.input.iter();
            inputs.position(|i| i.name() == name).unwrap()
        });
        g.input.swap(first, second);
    });
    pair.refuses(
        "tensor 'w_grad.buffer.P' is declared otherwise as input",
        |g| {
            resize(declared(&mut g.input, "w_grad.buffer.P"), 0, 64);
        },
    );
    pair.refuses("'w_grad.buffer.P'", |g| {
        // A sum that starts with ones.
        let ones = float_tensor("w_grad.buffer.P", vec![4, 4], &[1.0; 16]);
        g.initializer.push(ones);
    });
}
