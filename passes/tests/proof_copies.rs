//! Graphs in which forward nodes are computed again, and weights transposed again, are proven; what computes
//! something else is named.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::path::Path;
use velora_graph::analysis::partition::is_copy;
use velora_graph::analysis::recompute::cost::Rates;
use velora_graph::analysis::{Analyses, Settings};
use velora_graph::ir::Model;
use velora_graph::onnx::make::{ints, node, tensor_info};
use velora_graph::onnx::read::{UnknownFields, read};
use velora_graph::onnx::schema::{GraphProto, ModelProto, NodeProto, StringStringEntryProto};
use velora_graph::shapes::DataType;
use velora_graph::text::parse_model;
use velora_passes::manager::Checks;
use velora_passes::pipeline::{Options, optimise};
use velora_passes::planner::{Level, Plan, Planner, Subject};
use velora_passes::proof::{Proof, Side, prove};
use velora_passes::select::{Grouping, Preset, Selection};

fn file(name: &str) -> Model {
    let models = Path::new(env!("CARGO_MANIFEST_DIR")).join("../models");
    let proto = read(&models.join(name), UnknownFields::Allow).unwrap();
    Model::from_proto(proto).unwrap()
}

fn options() -> Options {
    Options {
        settings: Settings::default(),
        selection: Selection {
            preset: Preset::Freeable,
            ..Selection::freeable(Grouping::Groups(4))
        },
        inline: false,
        hoist: true,
        recompute: None,
        pin: true,
        adapter: None,
        checks: Checks::default(),
    }
}

/// A graph, and what a plan makes of it.
struct Pair {
    original: Model,
    analyses: Analyses,
    rewritten: ModelProto,
}

impl Pair {
    fn new(original: Model, options: &Options) -> Pair {
        let outcome = optimise(&original, options).unwrap();
        Pair {
            analyses: Analyses::new(&original, &Settings::default()).unwrap(),
            rewritten: outcome.ran.model.to_proto(),
            original,
        }
    }

    /// With everything within a block computed again, or all that saves a byte where no blocks are found, and nothing
    /// approximate.
    fn layers(name: &str) -> Pair {
        let (original, options) = (file(name), options());
        let subject = Subject::new(&original, &options).unwrap();
        let planner = Planner::new(&original, &options, &subject, Rates::default()).unwrap();
        let cheapest = || planner.frontier(true).pop().unwrap();
        let plan = planner.level(Level::Layers, true).unwrap_or_else(cheapest);
        let options = planner.options(&plan);
        Pair::new(original, &options)
    }

    fn prove(&self, rewritten: ModelProto) -> Proof {
        let rewritten = Model::from_proto(rewritten).unwrap();
        let side = |model| Side {
            model,
            folder: None,
        };
        let original = side(&self.original);
        let settings = Settings::default();
        prove(original, &self.analyses, side(&rewritten), &settings)
    }

    fn broken(&self, breaks: impl FnOnce(&mut GraphProto)) -> Proof {
        let mut model = self.rewritten.clone();
        breaks(model.graph.as_mut().unwrap());
        self.prove(model)
    }

    /// Breaks the rewritten graph, and expects the first difference to say so.
    fn refuses(&self, wanted: &str, breaks: impl FnOnce(&mut GraphProto)) {
        let found = self.broken(breaks).differences;
        let first = found.first().map(ToString::to_string).unwrap_or_default();
        let shown = &found[..found.len().min(5)];
        assert!(
            first.contains(wanted),
            "expected {wanted}, found {shown:#?}"
        );
    }
}

fn marked(node: &NodeProto, key: &str, value: &str) -> bool {
    let mut entries = node.metadata_props.iter();
    entries.any(|e| e.key() == key && e.value() == value)
}

/// The copies of an operator, by place in the list.
fn copies(graph: &GraphProto, op: &str) -> Vec<usize> {
    let nodes = graph.node.iter().enumerate();
    { nodes.filter(|(_, n)| n.op_type() == op && marked(n, "velora.half", "backward")) }
        .map(|(place, _)| place)
        .collect()
}

/// The node that makes a value, by place in the list.
fn maker(graph: &GraphProto, value: &str) -> Option<usize> {
    let mut nodes = graph.node.iter();
    nodes.position(|n| n.output.iter().any(|o| o == value))
}

/// What a value is, seen through pins.
fn unpinned(graph: &GraphProto, value: &str) -> String {
    let mut value = value.to_owned();
    while let Some(node) = maker(graph, &value).map(|place| &graph.node[place])
        && node.op_type() == "Reshape"
        && marked(node, "velora.op", "Pin")
    {
        value.clone_from(&node.input[0]);
    }
    value
}

fn mark(key: &str, value: &str) -> StringStringEntryProto {
    StringStringEntryProto {
        key: Some(key.to_owned()),
        value: Some(value.to_owned()),
    }
}

const MODELS: [&str; 5] = [
    "aot/llama_tiny.onnx",
    "aot/bert_tiny.onnx",
    "aot/vit_tiny.onnx",
    "ort/llama_tiny.onnx",
    "ort/bert_tiny_dropout.onnx",
];

#[test]
fn plans_are_accepted() {
    let (mut copies, mut gradients, mut derived, mut plans) = (0, 0, 0, 0);
    for name in MODELS {
        let (original, options) = (file(name), options());
        let analyses = Analyses::new(&original, &options.settings).unwrap();
        let subject = Subject::new(&original, &options).unwrap();
        let planner = Planner::new(&original, &options, &subject, Rates::default()).unwrap();
        for exact in [true, false] {
            let levels = [Level::Cheap, Level::Layers, Level::Sqrt].into_iter();
            let levels = levels.filter_map(|level| planner.level(level, exact));
            let frontier = planner.frontier(exact);
            let prices = [0, frontier.len() / 2, frontier.len() - 1];
            let all: Vec<Plan> = levels
                .chain(prices.map(|at| frontier[at].clone()))
                .collect();
            for plan in all {
                let outcome = optimise(&original, &planner.options(&plan)).unwrap();
                let rewritten = &outcome.ran.model;
                let at = format!(
                    "{name}, exact {exact}, {} nodes again",
                    plan.recompute.len()
                );
                let side = |model| Side {
                    model,
                    folder: None,
                };
                let proof = prove(
                    side(&original),
                    &analyses,
                    side(rewritten),
                    &options.settings,
                );
                assert_eq!(proof.differences, [], "{at}");
                let graph = &rewritten.graph;
                let count = |is: &dyn Fn(&velora_graph::ir::Node) -> bool| {
                    let nodes = graph.order().iter();
                    nodes.filter(|&&id| is(graph.node(id))).count()
                };
                assert_eq!(proof.copies, count(&is_copy), "{at}");
                if exact {
                    // Nothing else is gone then: weights that were transposed twice.
                    assert_eq!((proof.added, proof.gradients.len()), (0, 0), "{at}");
                    derived += proof.removed;
                }
                let pins = count(&|n| n.velora_op() == Some("Pin"));
                assert_eq!(proof.pins, pins, "{at}");
                let nodes = proof.same + proof.added + proof.pins + proof.copies;
                assert_eq!(nodes, graph.node_count(), "{at}");
                assert_eq!(
                    proof.same + proof.removed,
                    original.graph.node_count(),
                    "{at}"
                );
                let decisions = outcome.decisions.iter().filter(|d| d.rewritten());
                assert_eq!(proof.gradients.len(), decisions.count(), "{at}");
                // Their ids are those of the graph with the copies.
                for gradient in &proof.gradients {
                    let made = graph.node(gradient.node).outputs[0].unwrap();
                    let result = gradient.site.result(&original.graph).unwrap();
                    assert_eq!(graph.value(made).name, original.graph.value(result).name);
                    assert!(
                        graph.value(gradient.factors.z).name.starts_with("velora."),
                        "{at}"
                    );
                }
                copies += proof.copies;
                gradients += proof.gradients.len();
                plans += 1;
            }
        }
    }
    println!("{plans} plans, {copies} copies, {gradients} gradients, {derived} transpositions");
    assert!(plans >= 48 && copies > 2000 && gradients > 100 && derived > 100);
}

/// What a copy is called and is said to be of does not matter, only what it computes.
#[test]
fn wrong_marks_prove_nothing_and_refute_nothing() {
    let pair = Pair::layers("aot/llama_tiny.onnx");
    let right = pair.prove(pair.rewritten.clone());
    assert!(right.differences.is_empty() && right.copies > 50);
    for origin in ["", "nothing", "a product"] {
        let proof = pair.broken(|g| {
            let nodes = { g.node.iter_mut() }.filter(|n| marked(n, "velora.half", "backward"));
            for node in nodes {
                node.name = None;
                node.metadata_props.retain(|e| e.key() != "velora.origin");
                node.metadata_props.push(mark("velora.origin", origin));
            }
        });
        assert_eq!((proof.differences, proof.copies), (vec![], right.copies));
    }
    // Twice the same product is no copy of a sum, whatever it says.
    pair.refuses(
        "is marked as a copy of 'a sum', and that is of the operator Add",
        |g| {
            let place = copies(g, "Mul")[0];
            g.node[place].op_type = Some("Div".to_owned());
            g.node[place]
                .metadata_props
                .retain(|e| e.key() != "velora.origin");
            g.node[place]
                .metadata_props
                .push(mark("velora.origin", "a sum"));
            let add =
                |n: &&mut NodeProto| n.op_type() == "Add" && !marked(n, "velora.half", "backward");
            let mut sum = None;
            if let Some(node) = g.node.iter_mut().find(add) {
                sum = node.name.replace("a sum".to_owned());
            }
            assert!(sum.is_some());
        },
    );
}

#[test]
fn copies_that_compute_something_else_are_named() {
    for name in [
        "aot/llama_tiny.onnx",
        "ort/llama_tiny.onnx",
        "aot/bert_tiny.onnx",
    ] {
        let pair = Pair::layers(name);
        // An attribute.
        let changed = |g: &GraphProto| {
            let places = 0..g.node.len();
            let mut places = places.filter(|&place| {
                let node = &g.node[place];
                let perm = node.attribute.iter().find(|a| a.name() == "perm");
                let square = perm.is_some_and(|a| a.ints.len() == 4);
                square && marked(node, "velora.half", "backward")
            });
            places.next().unwrap()
        };
        let place = changed(pair.rewritten.graph.as_ref().unwrap());
        let label = pair.rewritten.graph.as_ref().unwrap().node[place]
            .name()
            .to_owned();
        let said = format!("node '{label}' (Transpose), tensor '{label}': is marked as a copy of");
        pair.refuses(&said, |g| g.node[place].attribute[0].ints.swap(2, 3));
        pair.refuses("and has another value of its attribute 'perm'", |g| {
            g.node[place].attribute[0].ints.swap(2, 3);
        });
        pair.refuses("and that is of the operator", |g| {
            let place = copies(g, "Mul")[0];
            g.node[place].op_type = Some("Sub".to_owned());
        });
        pair.refuses("has other operands or outputs", |g| {
            let place = copies(g, "Mul")[0];
            g.node[place].op_type = Some("Sum".to_owned());
            g.node[place].input.truncate(1);
            g.node[place]
                .metadata_props
                .retain(|e| e.key() != "velora.origin");
            let mut other = g.node[place].clone();
            let first = g.node[place].input[0].clone();
            other.input = vec![first.clone(), first];
            other.output = vec!["twice".to_owned()];
            other.name = Some("twice".to_owned());
            other.metadata_props.clear();
            g.node[place]
                .metadata_props
                .push(mark("velora.half", "backward"));
            g.node[place]
                .metadata_props
                .push(mark("velora.origin", "twice"));
            g.node.push(other);
        });
        // An operand: what the copy of the same operator in another block reads.
        let g = pair.rewritten.graph.as_ref().unwrap();
        let places = copies(g, "Mul");
        let (place, other) = (places[places.len() - 1], places[0]);
        let (was, is) = (
            g.node[place].input[0].clone(),
            g.node[other].input[0].clone(),
        );
        let label = g.node[place].name();
        let seen = unpinned(g, &is);
        assert_ne!(unpinned(g, &was), seen);
        let said = format!(
            "node '{label}' (Mul), tensor '{seen}': is operand 0 of a node marked as a copy of"
        );
        pair.refuses(&said, |g| g.node[place].input[0].clone_from(&is));
        // Nothing is said of what that copy leads to.
        let proof = pair.broken(|g| g.node[place].input[0].clone_from(&is));
        let said = { proof.differences.iter() }.filter(|d| d.problem.contains("marked as"));
        assert_eq!(said.count(), 1, "{:#?}", proof.differences);
        // A value that leaves the graph, and the copy of what is no forward node.
        pair.refuses("what it makes leaves the graph", |g| {
            let made = g.node[place].output[0].clone();
            g.output.push(tensor_info(&made, DataType::FLOAT, [1]));
        });
    }
}

#[test]
fn copies_of_backward_nodes_are_refused() {
    let pair = Pair::layers("aot/llama_tiny.onnx");
    let backward = pair.original.graph.outputs().iter().find_map(|&value| {
        let graph = &pair.original.graph;
        let id = graph.producer(value)?;
        (graph.node(id).op() == "MatMul").then(|| graph.value(value).name.clone())
    });
    let backward = backward.unwrap();
    pair.refuses("which is no forward node of the original", |g| {
        let place = maker(g, &backward).unwrap();
        let mut copy = g.node[place].clone();
        let label = copy.name().to_owned();
        copy.output = vec!["velora.again.twice".to_owned()];
        copy.name = Some("velora.again.twice".to_owned());
        copy.metadata_props = vec![
            mark("velora.half", "backward"),
            mark("velora.origin", &label),
        ];
        g.node.push(copy);
    });
}

#[test]
fn random_copies_are_refused() {
    let pair = Pair::layers("ort/bert_tiny_dropout.onnx");
    let random =
        "(Dropout), tensor 'velora.again.mask': is marked as computed again, and is not known";
    pair.refuses(random, |g| {
        let place = g
            .node
            .iter()
            .position(|n| n.op_type() == "Dropout")
            .unwrap();
        let mut copy = g.node[place].clone();
        let mask = std::mem::replace(&mut copy.output[1], "velora.again.mask".to_owned());
        let label = copy.name().to_owned();
        copy.output[0].clear();
        copy.name = Some("velora.again.mask".to_owned());
        copy.metadata_props = vec![
            mark("velora.half", "backward"),
            mark("velora.origin", &label),
        ];
        let readers = g.node.iter_mut().filter(|n| n.op_type() == "DropoutGrad");
        let reads = readers
            .flat_map(|n| &mut n.input)
            .filter(|name| **name == mask);
        assert!(
            reads
                .map(|name| *name = "velora.again.mask".to_owned())
                .count()
                > 0
        );
        g.node.push(copy);
    });
}

/// Readers in the original, which read the copy of something else.
#[test]
fn redirected_reads_are_named() {
    for name in ["aot/llama_tiny.onnx", "ort/llama_tiny.onnx"] {
        let pair = Pair::layers(name);
        let g = pair.rewritten.graph.as_ref().unwrap();
        let again = |value: &str| unpinned(g, value).starts_with("velora.again.");
        // Two products of one block's copies and another's, in the order of the file.
        let ours = |n: &NodeProto| {
            n.metadata_props
                .iter()
                .any(|e| e.key().starts_with("velora."))
        };
        let mut readers = (0..g.node.len()).filter(|&place| {
            let node = &g.node[place];
            node.op_type() == "Mul" && !ours(node) && node.input.iter().any(|i| again(i))
        });
        let first = readers.next().unwrap();
        let last = readers.next_back().unwrap();
        let slot = |place: usize| g.node[place].input.iter().position(|i| again(i)).unwrap();
        let (from, to) = (slot(first), slot(last));
        let is = unpinned(g, &g.node[first].input[from]);
        let was = unpinned(g, &g.node[last].input[to]);
        let copied = |copy: &str| {
            let copy = &g.node[maker(g, copy).unwrap()];
            let origin = copy
                .metadata_props
                .iter()
                .find(|e| e.key() == "velora.origin");
            let origin = origin.unwrap().value().to_owned();
            let named = |n: &&NodeProto| {
                n.name() == origin || format!("producer of {}", n.output[0]) == origin
            };
            g.node.iter().find(named).unwrap().output[0].clone()
        };
        let label = match g.node[last].name() {
            "" => format!("producer of {}", g.node[last].output[0]),
            label => label.to_owned(),
        };
        let (was, other) = (copied(&was), copied(&is));
        assert_ne!(was, other);
        let said = format!("node '{label}' (Mul), tensor '{was}': operand {to} is now '{other}'");
        pair.refuses(&said, |g| g.node[last].input[to].clone_from(&is));
    }
}

/// Two nodes of the original that compute the same are as good as each other, and the copies of either are told
/// apart by what reads them.
#[test]
fn twins_of_the_original_are_no_difference() {
    let text = "<ir_version: 8, opset_import: [\"\" : 18]>
         g (float[4, 8] x, float[8, 8] w) => (float loss, float[8, 8] w_grad)
         <float two = {2}> {
            p = MatMul (x, w)
            [first] a = Tanh (p)
            [second] b = Tanh (p)
            [more] c = Mul (b, two)
            [sum] y = Add (a, c)
            loss = ReduceSum <keepdims = 0> (y)
            [one] d = Mul (a, two)
            [other] e = Mul (c, b)
            [dy] dy = Add (d, e)
            xt = Transpose <perm = [1, 0]> (x)
            [weight] w_grad = MatMul (xt, dy)
         }";
    let original = Model::from_proto(parse_model(text).unwrap()).unwrap();
    let names = ["a", "b", "c"].map(str::to_owned);
    let options = Options {
        recompute: Some(names.into()),
        pin: false,
        ..options()
    };
    let pair = Pair::new(original, &options);
    let proof = pair.prove(pair.rewritten.clone());
    assert_eq!((proof.differences, proof.copies), (vec![], 3));
    // Without a mark as well.
    let proof = pair.broken(|g| {
        for node in &mut g.node {
            node.metadata_props.retain(|e| e.key() != "velora.origin");
        }
    });
    assert_eq!((proof.differences, proof.copies), (vec![], 3));
    pair.refuses(
        "node 'other' (Mul), tensor 'c': operand 0 is now 'a'",
        |g| {
            called(g, "other").input[0] = "velora.again.a".to_owned();
        },
    );
}

/// t of W is transposed again in two ways: once back, and once otherwise.
const TRANSPOSED: &str = "<ir_version: 8, opset_import: [\"\" : 18]>
     g (float[2, 5, 4] x, float[2, 3, 4] w, float[3] b, float[4] c)
       => (float loss, float[2, 3, 4] w_grad, float[3] b_grad, float[4] c_grad)
     <int64[2] axes = {0, 1}> {
        [shift] h = Add (x, c)
        [forward] t = Transpose <perm = [0, 2, 1]> (w)
        [product] p = MatMul (h, t)
        [bias] y = Add (p, b)
        loss = ReduceSum <keepdims = 0> (y)
        [dy] dy = Sigmoid (y)
        [back] u = Transpose <perm = [0, 2, 1]> (t)
        [dx] dx = MatMul (dy, u)
        [c] c_grad = ReduceSum <keepdims = 0> (dx, axes)
        [otherwise] r = Transpose <perm = [1, 0, 2]> (t)
        [decay] s = ReduceSum <keepdims = 0> (r, axes)
        [plain] d = ReduceSum <keepdims = 0> (dy, axes)
        [b] b_grad = Add (d, s)
        [ht] ht = Transpose <perm = [0, 2, 1]> (h)
        [dt] t_grad = MatMul (ht, dy)
        [w] w_grad = Transpose <perm = [0, 2, 1]> (t_grad)
     }";

fn transposed() -> Pair {
    let original = Model::from_proto(parse_model(TRANSPOSED).unwrap()).unwrap();
    let options = Options {
        recompute: Some(BTreeSet::new()),
        pin: false,
        ..options()
    };
    Pair::new(original, &options)
}

fn called<'g>(graph: &'g mut GraphProto, name: &str) -> &'g mut NodeProto {
    graph.node.iter_mut().find(|n| n.name() == name).unwrap()
}

#[test]
fn weights_may_be_transposed_again() {
    let pair = transposed();
    let mut after = pair.rewritten.graph.clone().unwrap();
    assert!(after.node.iter().all(|n| n.name() != "back"));
    assert_eq!(called(&mut after, "dx").input, ["dy", "w"]);
    let otherwise = called(&mut after, "otherwise");
    assert_eq!(
        (&otherwise.input[0][..], &otherwise.attribute[0].ints[..]),
        ("w", &[2, 0, 1][..])
    );
    let proof = pair.prove(pair.rewritten.clone());
    assert_eq!(
        (proof.differences, proof.removed, proof.copies),
        (vec![], 1, 0)
    );
    assert_eq!(proof.same + proof.removed, pair.original.graph.node_count());
    // By a node that is not in the original: as good.
    let proof = pair.broken(|g| {
        let twice = NodeProto {
            attribute: vec![ints("perm", vec![0, 2, 1])],
            metadata_props: vec![mark("velora.version", "0")],
            ..node("Transpose", &["t"], "twice")
        };
        g.node.push(twice);
        called(g, "dx").input[1] = "twice".to_owned();
    });
    assert_eq!((proof.differences, proof.removed), (vec![], 1));
    // And as it was.
    let proof = pair.prove(pair.original.to_proto());
    assert_eq!((proof.differences, proof.removed), (vec![], 0));
}

#[test]
fn wrong_permutations_are_named() {
    let pair = transposed();
    let perm = "node 'otherwise' (Transpose) has another value of its attribute 'perm'";
    pair.refuses(perm, |g| {
        called(g, "otherwise").attribute[0].ints = vec![2, 1, 0]
    });
    pair.refuses(
        "node 'otherwise' (Transpose) lost its attribute 'perm'",
        |g| {
            called(g, "otherwise").attribute.clear();
        },
    );
    pair.refuses(
        "node 'otherwise' (Transpose), tensor 't': operand 0 is now 'w'",
        |g| {
            called(g, "otherwise").attribute[0].ints = vec![1, 0, 2];
        },
    );
    pair.refuses(perm, |g| called(g, "otherwise").input[0] = "t".to_owned());
    pair.refuses(
        "node 'dx' (MatMul), tensor 'u': operand 1 is now 't'",
        |g| {
            called(g, "dx").input[1] = "t".to_owned();
        },
    );
    pair.refuses(
        "node 'dx' (MatMul), tensor 'u': operand 1 is now 'other'",
        |g| {
            let other = NodeProto {
                attribute: vec![ints("perm", vec![1, 0, 2])],
                metadata_props: vec![mark("velora.version", "0")],
                ..node("Transpose", &["w"], "other")
            };
            g.node.push(other);
            called(g, "dx").input[1] = "other".to_owned();
        },
    );
    // A transposition that something else needed: an output.
    let text = TRANSPOSED.replace("float[4] c_grad)", "float[4] c_grad, float[2, 3, 4] u)");
    let original = Model::from_proto(parse_model(&text).unwrap()).unwrap();
    let other = Pair {
        analyses: Analyses::new(&original, &Settings::default()).unwrap(),
        original,
        rewritten: pair.rewritten.clone(),
    };
    other.refuses("node 'back' (Transpose), tensor 'u': is missing", |_| {});
}

/// Chains as long as nobody writes them: no stack overflows, and the time grows with the graph.
#[test]
fn long_chains_are_followed() {
    const LENGTH: usize = 20_000;
    let mut proto = parse_model(TRANSPOSED).unwrap();
    let graph = proto.graph.as_mut().unwrap();
    // Forward, before the product: back and forth, element by element and by axis.
    let mut before = "w".to_owned();
    let mut chain = Vec::new();
    for number in 0..LENGTH {
        let op = ["Transpose", "Neg"][usize::from(number >= LENGTH / 2)];
        let made = format!("chain{number}");
        chain.push(node(op, &[&before], &made));
        before = made;
    }
    called(graph, "forward").input[0] = before;
    let place = graph
        .node
        .iter()
        .position(|n| n.name() == "forward")
        .unwrap();
    graph.node.splice(place..place, chain);
    let original = Model::from_proto(proto).unwrap();
    let names = (LENGTH / 2..LENGTH).map(|number| format!("chain{number}"));
    let options = Options {
        recompute: Some(names.chain(["t".to_owned()]).collect()),
        pin: false,
        ..options()
    };
    let started = std::time::Instant::now();
    let pair = Pair::new(original, &options);
    let rewritten = started.elapsed();
    let proof = pair.prove(pair.rewritten.clone());
    assert_eq!((proof.differences, proof.copies), (vec![], LENGTH / 2 + 1));
    println!(
        "rewritten in {rewritten:?}, proven in {:?}",
        started.elapsed() - rewritten
    );
    pair.refuses("is marked as a copy of", |g| {
        let place = g
            .node
            .iter()
            .position(|n| n.output[0] == "velora.again.chain15000")
            .unwrap();
        g.node[place].op_type = Some("Abs".to_owned());
    });
}
