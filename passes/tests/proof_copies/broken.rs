//! Copies that compute something else, and reads of the wrong ones.

use super::{Pair, called, mark, marked, options};
use std::collections::BTreeSet;
use velora_graph::ir::Model;
use velora_graph::onnx::make::tensor_info;
use velora_graph::onnx::schema::{GraphProto, NodeProto};
use velora_graph::shapes::DataType;
use velora_graph::text::parse_model;
use velora_passes::pipeline::Options;

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

/// Without its second output this `Split` makes one piece, the whole.
#[test]
fn copies_with_other_outputs_are_named() {
    let text = "<ir_version: 8, opset_import: [\"\" : 13]>
         g (float[4, 8] x, float[8, 8] w) => (float loss, float[8, 8] w_grad) {
            p = MatMul (x, w)
            [pieces] a, b = Split <axis = 1> (p)
            m = Mul (a, b)
            loss = ReduceSum <keepdims = 0> (m)
            [dy] dy = Concat <axis = 1> (b, a)
            xt = Transpose <perm = [1, 0]> (x)
            [weight] w_grad = MatMul (xt, dy)
         }";
    let original = Model::from_proto(parse_model(text).unwrap()).unwrap();
    let options = Options {
        recompute: Some(["a".to_owned()].into()),
        pin: false,
        ..options()
    };
    let pair = Pair::new(original, &options);
    let proof = pair.prove(pair.rewritten.clone());
    assert_eq!((proof.differences, proof.copies), (vec![], 1));
    pair.refuses(
        "(Split), tensor 'velora.again.a': is marked as a copy of 'pieces', and that has other",
        |g| {
            called(g, "velora.again.a").output.truncate(1);
            called(g, "dy").input[0] = "velora.again.a".to_owned();
        },
    );
}

/// A function of the file's own may draw random numbers, whatever its domain.
#[test]
fn copies_of_calls_are_refused() {
    let text = "<ir_version: 8, opset_import: [\"\" : 18, \"com.microsoft\" : 1]>
         g (float[4, 8] x, float[8, 8] w) => (float loss, float[8, 8] w_grad) {
            p = MatMul (x, w)
            [noise] n = com.microsoft.Noise (p)
            m = Mul (p, n)
            loss = ReduceSum <keepdims = 0> (m)
            xt = Transpose <perm = [1, 0]> (x)
            [weight] w_grad = MatMul (xt, n)
         }
         <domain: \"com.microsoft\", opset_import: [\"\" : 18]>
         Noise (x) => (y) { y = RandomNormalLike (x) }";
    let original = Model::from_proto(parse_model(text).unwrap()).unwrap();
    let options = Options {
        recompute: Some(BTreeSet::new()),
        pin: false,
        ..options()
    };
    let pair = Pair::new(original, &options);
    pair.refuses(
        "(com.microsoft.Noise), tensor 'again': is marked as computed again, and is not",
        |g| {
            let mut copy = called(g, "noise").clone();
            copy.name = Some("again".to_owned());
            copy.output = vec!["again".to_owned()];
            copy.metadata_props = vec![
                mark("velora.half", "backward"),
                mark("velora.origin", "noise"),
            ];
            g.node.push(copy);
            called(g, "weight").input[1] = "again".to_owned();
        },
    );
}
