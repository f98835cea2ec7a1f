//! The proof can fail: rewritten graphs, each broken in one way, are refused, with the node or tensor
//! named.
#![allow(clippy::unwrap_used)]

use std::path::Path;
use velora_graph::analysis::{Analyses, Settings};
use velora_graph::ir::Model;
use velora_graph::onnx::read::{UnknownFields, read};
use velora_graph::onnx::schema::{
    AttributeType, GraphProto, ModelProto, NodeProto, StringStringEntryProto, ValueInfoProto,
};
use velora_passes::manager::Checks;
use velora_passes::pipeline::{Options, optimise};
use velora_passes::proof::{Proof, Side, prove};
use velora_passes::select::{Directions, Grouping, Init, LayerSettings, Selection, Storage};

struct Pair {
    original: Model,
    analyses: Analyses,
    rewritten: ModelProto,
}

impl Pair {
    /// A real graph, and what the rewrite with 4 groups makes of it.
    fn new(name: &str, inline: bool, scale: f64) -> Pair {
        Pair::hoisted(name, inline, scale, false)
    }

    fn hoisted(name: &str, inline: bool, scale: f64, hoist: bool) -> Pair {
        Pair::with(name, (inline, hoist), |defaults| defaults.scale = scale)
    }

    fn with(
        name: &str,
        (inline, hoist): (bool, bool),
        settings: impl FnOnce(&mut LayerSettings),
    ) -> Pair {
        let models = Path::new(env!("CARGO_MANIFEST_DIR")).join("../models");
        let proto = read(&models.join(name), UnknownFields::Allow).unwrap();
        let original = Model::from_proto(proto).unwrap();
        let mut selection = Selection::freeable(Grouping::Groups(4));
        settings(&mut selection.defaults);
        let options = Options {
            settings: Settings::default(),
            selection,
            inline,
            hoist,
            recompute: None,
            pin: true,
            adapter: None,
            checks: Checks::default(),
        };
        let outcome = optimise(&original, &options).unwrap();
        Pair {
            analyses: Analyses::new(&original, &Settings::default()).unwrap(),
            rewritten: outcome.ran.model.to_proto(),
            original,
        }
    }

    fn prove(&self, rewritten: ModelProto) -> Proof {
        let rewritten = Model::from_proto(rewritten).unwrap();
        let side = |model| Side {
            model,
            folder: None,
        };
        prove(
            side(&self.original),
            &self.analyses,
            side(&rewritten),
            &Settings::default(),
        )
    }

    /// Breaks the rewritten graph, and expects the first difference to say so.
    fn refuses(&self, wanted: &str, breaks: impl FnOnce(&mut GraphProto)) {
        let mut model = self.rewritten.clone();
        breaks(model.graph.as_mut().unwrap());
        let found = self.prove(model).differences;
        let first = found.first().map(ToString::to_string).unwrap_or_default();
        assert!(
            first.contains(wanted),
            "expected {wanted}, found {found:#?}"
        );
    }
}

fn making<'g>(graph: &'g mut GraphProto, output: &str) -> &'g mut NodeProto {
    let mut nodes = graph.node.iter_mut();
    nodes
        .find(|n| n.output.iter().any(|o| o == output))
        .unwrap()
}

fn marked(node: &NodeProto, key: &str, value: &str) -> bool {
    let mut entries = node.metadata_props.iter();
    entries.any(|e| e.key() == key && e.value() == value)
}

fn called<'g>(graph: &'g mut GraphProto, op: &str) -> &'g mut NodeProto {
    let mut nodes = graph.node.iter_mut();
    nodes.find(|n| n.op_type() == op).unwrap()
}

const MODELS: [&str; 3] = [
    "aot/llama_tiny.onnx",
    "ort/bert_tiny.onnx",
    "aot/digits_sgd.onnx",
];

#[test]
fn right_graphs_are_accepted() {
    for model in MODELS {
        for inline in [false, true] {
            for scale in [1.0, 0.3] {
                let pair = Pair::new(model, inline, scale);
                let proof = pair.prove(pair.rewritten.clone());
                assert_eq!(proof.differences, [], "{model}");
                assert!(!proof.gradients.is_empty() && proof.pins > 0, "{model}");
                let nodes = pair.original.graph.node_count();
                assert_eq!(proof.same + proof.removed, nodes, "{model}");
            }
        }
        for inline in [false, true] {
            let pair = Pair::hoisted(model, inline, 1.0, true);
            let proof = pair.prove(pair.rewritten.clone());
            assert_eq!(proof.differences, [], "{model}");
        }
        // A graph is its own rewrite, without a gradient.
        let pair = Pair::new(model, false, 1.0);
        let proof = pair.prove(pair.original.to_proto());
        assert_eq!((proof.differences.len(), proof.gradients.len()), (0, 0));
    }
}

/// mlp: x → fc1 → relu → fc2 → gelu → fc3; fc3's gradient is rewritten, from gelu.
#[test]
fn broken_nodes_are_named() {
    for inline in [false, true] {
        let pair = Pair::new("aot/mlp.onnx", inline, 1.0);
        assert_eq!(pair.prove(pair.rewritten.clone()).differences, []);

        pair.refuses(
            "(LogSoftmax) has another value of its attribute 'axis'",
            |g| {
                let node = called(g, "LogSoftmax");
                node.attribute[0].i = Some(0);
            },
        );
        pair.refuses("(Relu) was Relu and is Abs", |g| {
            making(g, "relu").op_type = Some("Abs".to_owned());
        });
        pair.refuses("(Relu) is now called 'other'", |g| {
            making(g, "relu").name = Some("other".to_owned());
        });
        pair.refuses("(Relu) has other metadata", |g| {
            making(g, "relu")
                .metadata_props
                .push(StringStringEntryProto {
                    key: Some("key".to_owned()),
                    value: None,
                });
        });
        pair.refuses("(Relu), tensor 'addmm': operand 0 is now 'addmm_1'", |g| {
            // Through what would be a pin if it were marked as one.
            making(g, "relu").input[0] = "addmm_1".to_owned();
            let gelu = g
                .node
                .iter()
                .position(|n| n.output[0] == "addmm_1")
                .unwrap();
            // No cycle: the product in between reads what is there before.
            for name in &mut g.node[gelu].input {
                if name.contains("relu") {
                    *name = "addmm".to_owned();
                }
            }
        });
        // A Relu that nothing reads any longer would have to be gone with all before it.
        pair.refuses("node_extra", |g| {
            g.node.push(NodeProto {
                input: vec!["relu".to_owned()],
                output: vec!["extra".to_owned()],
                name: Some("node_extra".to_owned()),
                op_type: Some("Neg".to_owned()),
                ..Default::default()
            });
        });
        pair.refuses("is made no longer; the node makes other", |g| {
            let loss = g.output[0].name().to_owned();
            making(g, &loss).output[0] = "other".to_owned();
            g.output[0].name = Some("other".to_owned());
        });
    }
}

#[test]
fn dropped_nodes_are_named() {
    let pair = Pair::new("aot/mlp.onnx", false, 1.0);
    // The gradient of fc1's bias leaves the graph, and nothing else reads it.
    let output = "grad.fc1.bias";
    pair.refuses("'grad.fc1.bias': is missing", |g| {
        g.output.retain(|o| o.name() != output);
        g.node.retain(|n| n.output[0] != output);
    });
    pair.refuses("'grad.fc1.bias' was output", |g| {
        g.output.retain(|o| o.name() != output);
    });
}

#[test]
fn other_constants_are_named() {
    let pair = Pair::new("ort/digits_mlp.onnx", false, 1.0);
    let weights = |graph: &GraphProto| {
        let large = |t: &&velora_graph::onnx::schema::TensorProto| {
            t.raw_data.as_ref().is_some_and(|raw| raw.len() > 1000)
        };
        graph
            .initializer
            .iter()
            .find(large)
            .unwrap()
            .name()
            .to_owned()
    };
    let name = weights(&pair.original.graph.to_proto());
    pair.refuses(
        &format!("'{name}': the constant has other data, from element 25 on"),
        |g| {
            let tensor = g.initializer.iter_mut().find(|t| t.name() == name);
            let tensor = tensor.unwrap();
            let mut raw = tensor.raw_data.clone().unwrap().to_vec();
            raw[101] ^= 1;
            tensor.raw_data = Some(raw.into());
        },
    );
    pair.refuses(&format!("'{name}': the constant is missing"), |g| {
        g.initializer.retain(|t| t.name() != name);
    });
    pair.refuses("has another type, shape or data", |g| {
        let tensor = g.initializer.iter_mut().find(|t| t.name() == name);
        tensor.unwrap().dims.reverse();
    });
}

#[test]
fn other_surroundings_are_found() {
    let pair = Pair::new("aot/mlp.onnx", false, 1.0);
    pair.refuses("the file has other graph's name", |g| {
        g.name = Some("other".to_owned());
    });
    pair.refuses("is declared otherwise as output", |g| {
        g.output[0].doc_string = Some("other".to_owned());
    });
    pair.refuses("was input 0, which is now", |g| g.input.swap(0, 1));
    pair.refuses("'relu' is declared otherwise", |g| {
        g.value_info.retain(|info| info.name() != "relu");
        g.value_info.push(ValueInfoProto {
            name: Some("relu".to_owned()),
            ..Default::default()
        });
    });
    let whole = |breaks: &dyn Fn(&mut ModelProto)| {
        let mut model = pair.rewritten.clone();
        breaks(&mut model);
        let found = pair.prove(model).differences;
        found.first().map(ToString::to_string).unwrap_or_default()
    };
    let text = whole(&|model| model.ir_version = model.ir_version.map(|v| v + 1));
    assert!(text.contains("version, producer"), "{text}");
    let text = whole(&|model| model.producer_name = Some("other".to_owned()));
    assert!(text.contains("version, producer"), "{text}");
    let text = whole(&|model| model.opset_import[0].version = Some(19));
    assert!(text.contains("operator sets"), "{text}");
    let text = whole(&|model| model.functions[0].node[0].op_type = Some("Shape".to_owned()));
    assert!(text.contains("is not the function"), "{text}");
}

#[test]
fn wrong_gradients_are_named() {
    let pair = Pair::new("aot/mlp.onnx", false, 1.0);
    let attribute = |graph: &mut GraphProto, name: &str, i: Option<i64>, f: Option<f32>| {
        let node = called(graph, "FactoredWeightGrad");
        let found = node.attribute.iter_mut().find(|a| a.name() == name);
        let found = found.unwrap();
        (found.i, found.f) = (i, f);
    };
    pair.refuses("FactoredWeightGrad) has scale = 0.5, expected 1", |g| {
        attribute(g, "scale", None, Some(0.5));
    });
    pair.refuses("FactoredWeightGrad) has groups = 8, expected 4", |g| {
        attribute(g, "groups", Some(8), None);
    });
    pair.refuses("Compress) has groups = 8, expected 4", |g| {
        called(g, "Compress").attribute[0].i = Some(8);
    });
    for form in [false, true] {
        let pair = Pair::new("aot/mlp.onnx", form, 1.0);
        let z = |node: &NodeProto| {
            node.op_type() == "Compress" || marked(node, "velora.op", "Compress")
        };
        pair.refuses("'relu': is compressed in the place of 'gelu'", |g| {
            let nodes = g.node.iter_mut().filter(|n| z(n));
            for name in nodes.flat_map(|n| &mut n.input) {
                if name == "gelu" || name.starts_with("velora.pin.gelu") {
                    *name = "relu".to_owned();
                }
            }
        });
        // Another gradient of as many columns in the place of dY.
        pair.refuses("is read in the place of dY", |g| {
            let ours = |n: &&mut NodeProto| {
                n.op_type() == "FactoredWeightGrad" || marked(n, "velora.op", "FactoredWeightGrad")
            };
            let nodes = g.node.iter_mut().filter(ours);
            for name in nodes.flat_map(|n| &mut n.input) {
                if name == "sub" || name.starts_with("velora.pin.sub") {
                    *name = "addmm_2".to_owned();
                }
            }
        });
    }
}

/// Convolutions, scales, recurrent layers.
#[test]
fn other_kinds_are_accepted() {
    for model in [
        "ort/cnn.onnx",
        "ort/vit_tiny_ssf.onnx",
        "aot/vit_tiny_ssf.onnx",
        "ort/lstm.onnx",
    ] {
        for inline in [false, true] {
            let pair = Pair::hoisted(model, inline, 0.5, true);
            let proof = pair.prove(pair.rewritten.clone());
            assert_eq!(proof.differences, [], "{model}");
        }
    }
}

/// A `ReluGrad` that reads a mask of something else, or another comparison, would hand on other gradients.
#[test]
fn masks_are_looked_at() {
    let pair = Pair::hoisted("ort/mlp.onnx", false, 1.0, true);
    let proof = pair.prove(pair.rewritten.clone());
    assert_eq!((proof.differences.len(), proof.moved), (0, 1));
    let greater = |g: &GraphProto| {
        let mut nodes = g.node.iter();
        nodes.position(|n| n.op_type() == "Greater").unwrap()
    };
    pair.refuses("(com.microsoft.ReluGrad)", |g| {
        let place = greater(g);
        g.node[place].op_type = Some("Less".to_owned());
    });
    pair.refuses("(com.microsoft.ReluGrad)", |g| {
        let place = greater(g);
        g.node[place].input.reverse();
    });
    pair.refuses("(com.microsoft.ReluGrad)", |g| {
        let place = greater(g);
        g.node[place].input[0] = g.input[0].name().to_owned();
    });
}

/// A part of a pin that would do something.
#[test]
fn pins_are_looked_at() {
    let pair = Pair::new("aot/llama_tiny.onnx", false, 1.0);
    let change = |op: &str, wanted: &str, change: &dyn Fn(&mut NodeProto)| {
        pair.refuses(wanted, |g| {
            let pin = |n: &&mut NodeProto| n.op_type() == op && marked(n, "velora.op", "Pin");
            change(g.node.iter_mut().find(|n| pin(n)).unwrap());
        });
    };
    let part = "is marked as part of a pin";
    change("Slice", part, &|node| node.input.truncate(3));
    change("Reshape", "is now 'velora.pin.", &|node| {
        node.op_type = Some("Expand".to_owned());
    });
    // Inference of shapes finds these first.
    change("ReduceSum", "velora.pin", &|node| {
        node.input[1] = "velora.pin.ints_0".to_owned();
    });
    change("Cast", "the element type is float", &|node| {
        node.attribute[0].i = Some(1)
    });
    change("Concat", "(Concat)", &|node| node.attribute[0].i = Some(1));
}

/// Bodies of every kind: means, moving averages, several directions, padding, 8 bits, scales, channels.
#[test]
fn every_expansion_is_accepted() {
    let settings: [fn(&mut LayerSettings); 8] = [
        |_| {},
        |all| all.grouping = Grouping::Groups(3),
        |all| all.directions = Directions::Group,
        |all| all.storage = Storage::Int8,
        |all| all.init = Init::RunningAverage,
        |all| (all.init, all.rank) = (Init::None, 2),
        |all| {
            (all.init, all.rank, all.scale) = (Init::Random, 2, 0.5);
            (all.directions, all.grouping) = (Directions::Group, Grouping::Groups(5));
        },
        |all| (all.init, all.directions) = (Init::RunningAverage, Directions::Group),
    ];
    for model in [
        "aot/mlp.onnx",
        "ort/vit_tiny_ssf.onnx",
        "ort/lstm.onnx",
        "ort/cnn.onnx",
    ] {
        for (number, settings) in settings.iter().enumerate() {
            let pair = Pair::with(model, (true, true), settings);
            let proof = pair.prove(pair.rewritten.clone());
            assert_eq!(proof.differences, [], "{model}, settings {number}");
        }
    }
}

/// A node of an expanded operator.
fn part<'g>(graph: &'g mut GraphProto, role: &str, op: &str) -> &'g mut NodeProto {
    let mut nodes = graph.node.iter_mut();
    nodes
        .find(|n| n.op_type() == op && marked(n, "velora.op", role))
        .unwrap()
}

/// A constant of an expanded operator.
fn constant<'g>(graph: &'g mut GraphProto, role: &str, attribute: &str) -> &'g mut NodeProto {
    let mut nodes = graph.node.iter_mut();
    nodes
        .find(|n| marked(n, "velora.op", role) && n.attribute.iter().any(|a| a.name() == attribute))
        .unwrap()
}

/// Each still is a graph, and has the marks of the tool: only its nodes are not those of the body.
#[test]
fn expanded_bodies_are_looked_at() {
    let pair = Pair::new("aot/mlp.onnx", true, 1.0);
    assert_eq!(pair.prove(pair.rewritten.clone()).differences, []);
    let grad = "FactoredWeightGrad";
    pair.refuses(
        "(Gemm) has transA = 0 where the body of FactoredWeightGrad has 1",
        |g| part(g, grad, "Gemm").attribute[0].i = Some(0),
    );
    pair.refuses(
        "(Gemm) has the attribute 'alpha', and none in the body of FactoredWeightGrad",
        |g| {
            let gemm = part(g, grad, "Gemm");
            let mut more = gemm.attribute[0].clone();
            (more.name, more.i, more.f) = (Some("alpha".to_owned()), None, Some(2.0));
            more.r#type = Some(AttributeType::Float as i32);
            gemm.attribute.push(more);
        },
    );
    pair.refuses(
        "(Gemm) has no attribute 'transA', which the body of FactoredWeightGrad gives it",
        |g| part(g, grad, "Gemm").attribute.clear(),
    );
    pair.refuses(
        "(Gemm), tensor 'velora.gelu.z': is read where the body of FactoredWeightGrad reads 'sub'",
        |g| part(g, grad, "Gemm").input.reverse(),
    );
    pair.refuses(
        "(Add) stands where the body of FactoredWeightGrad has Mul",
        |g| part(g, grad, "Mul").op_type = Some("Add".to_owned()),
    );
    pair.refuses("has scale = 0.5, expected 1", |g| {
        let found = constant(g, grad, "value_float");
        found.attribute[0].f = Some(0.5);
    });
    pair.refuses("has groups = 8, expected 4", |g| {
        let found = constant(g, "Compress", "value_int");
        found.attribute[0].i = Some(8);
    });
    pair.refuses("another value of its attribute 'value_ints'", |g| {
        let found = constant(g, "Compress", "value_ints");
        found.attribute[0].ints = vec![1];
    });
    // A step more inside.
    pair.refuses("(Abs) stands where the body of Compress has", |g| {
        let product = part(g, "Compress", "MatMul");
        let mut absolute = product.clone();
        absolute.op_type = Some("Abs".to_owned());
        absolute.input = vec![product.output[0].clone()];
        let wide = std::mem::replace(&mut product.output[0], "wide".to_owned());
        absolute.input = vec!["wide".to_owned()];
        absolute.output = vec![wide];
        g.node.push(absolute);
    });
    pair.refuses(
        "(Exp) stands where the body of MeanDirection has Sqrt",
        |g| {
            part(g, "MeanDirection", "Sqrt").op_type = Some("Exp".to_owned());
        },
    );
    // The mean of something else.
    pair.refuses("reads 'relu' in the place of 'gelu'", |g| {
        let nodes = g.node.iter_mut();
        let nodes = nodes.filter(|n| marked(n, "velora.op", "MeanDirection"));
        for name in nodes.flat_map(|n| &mut n.input) {
            if name == "gelu" || name.starts_with("velora.pin.gelu") {
                *name = "relu".to_owned();
            }
        }
    });
    // A value of the tool's own in the place of one of the body.
    pair.refuses("is read where the body of MeanDirection reads", |g| {
        let square = part(g, "MeanDirection", "Sqrt").input[0].clone();
        let v = part(g, "MeanDirection", "Where").output[0].clone();
        let squares = part(g, "MeanDirection", "Mul");
        let all: Vec<String> = squares.output.clone();
        let less = part(g, "MeanDirection", "Less");
        assert_ne!((&square, &v), (&all[0], &less.input[1]));
        less.input[0] = square;
    });
    // Marked as part of an operator, and beside it.
    pair.refuses("(Neg) is marked as part of Compress, and is none", |g| {
        let mut beside = part(g, "Compress", "MatMul").clone();
        beside.op_type = Some("Neg".to_owned());
        beside.input = vec!["relu".to_owned()];
        beside.output = vec!["beside".to_owned()];
        g.node.push(beside);
    });
}

/// Operators that only some settings have.
#[test]
fn expanded_bodies_of_other_operators_are_looked_at() {
    let pair = Pair::with("aot/mlp.onnx", (true, false), |all| {
        all.storage = Storage::Int8;
    });
    pair.refuses("(Floor) stands where the body of Quantize has Round", |g| {
        part(g, "Quantize", "Round").op_type = Some("Floor".to_owned());
    });
    pair.refuses("that no one Quantize made", |g| {
        // Twice the scale, by a node beside the operators.
        let scale = part(g, "Quantize", "Max").output[0].clone();
        let mut twice = part(g, "Quantize", "Mul").clone();
        twice.metadata_props.retain(|e| e.key() != "velora.op");
        twice.op_type = Some("Add".to_owned());
        twice.input = vec![scale.clone(); 2];
        twice.output = vec!["twice".to_owned()];
        let nodes = g.node.iter_mut();
        let nodes = nodes.filter(|n| marked(n, "velora.op", "Dequantize"));
        for name in nodes.flat_map(|n| &mut n.input) {
            if *name == scale {
                *name = "twice".to_owned();
            }
        }
        g.node.push(twice);
    });
    let pair = Pair::with("aot/mlp.onnx", (true, false), |all| {
        all.init = Init::RunningAverage;
    });
    pair.refuses(
        "(Add) stands where the body of RunningDirection has Sub",
        |g| {
            part(g, "RunningDirection", "Sub").op_type = Some("Add".to_owned());
        },
    );
    let pair = Pair::with("ort/cnn.onnx", (true, true), |_| {});
    pair.refuses("of Reconstruct", |g| {
        part(g, "Reconstruct", "Mul").op_type = Some("Add".to_owned());
    });
    let pair = Pair::with("ort/vit_tiny_ssf.onnx", (true, true), |_| {});
    pair.refuses("of FactoredScaleGrad", |g| {
        part(g, "FactoredScaleGrad", "Mul").op_type = Some("Add".to_owned());
    });
}
