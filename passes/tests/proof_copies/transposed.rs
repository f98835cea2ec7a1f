//! Weights that are transposed again, and chains of transpositions and of copies.

use super::{Pair, called, mark, options};
use std::collections::BTreeSet;
use velora_graph::analysis::{Analyses, Settings};
use velora_graph::ir::Model;
use velora_graph::onnx::make::{ints, node};
use velora_graph::onnx::schema::NodeProto;
use velora_graph::text::parse_model;
use velora_passes::pipeline::Options;

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
