//! `verify` on graphs that a plan of the whole step made: forward nodes are computed again, weights transposed again.

use super::{models, said, samples, tool, verify};
use velora_graph::ir::Model;
use velora_graph::onnx::read::{UnknownFields, read};
use velora_graph::onnx::schema::NodeProto;
use velora_graph::onnx::write::write;

fn is_copy(node: &NodeProto) -> bool {
    let mut entries = node.metadata_props.iter();
    entries.any(|e| (e.key(), e.value()) == ("velora.half", "backward"))
}

#[test]
fn plans_are_verified() {
    let plans = [
        (
            "aot/llama_tiny",
            "--recompute layers --exact --dim batch=4 --dim seq=16",
        ),
        ("aot/llama_tiny", "--recompute sqrt --groups 4"),
        ("ort/llama_tiny", "--recompute cheap --groups 4 --inline"),
        ("ort/llama_tiny", "--recompute layers --exact --no-pin"),
        ("aot/bert_tiny", "--recompute cheap --exact"),
        (
            "ort/bert_tiny_dropout",
            "--recompute cheap --groups 3 --init none --scale 0.5",
        ),
        (
            "aot/vit_tiny",
            "--recompute cheap --groups 4 --gradients factored --init random",
        ),
        ("ort/cnn_bn", "--recompute cheap --groups 4 --select all"),
    ];
    let folder = tempfile::tempdir().unwrap();
    let rewritten = folder.path().join("rewritten.onnx");
    let (mut again, mut layers) = (0, 0);
    for (name, options) in plans {
        let original = models().join(format!("{name}.onnx"));
        let at = format!("{name} {options}");
        let model = read(&original, UnknownFields::Allow).unwrap();
        samples(name, &model, &folder.path().join("data.safetensors"));
        let [from, to] = [&original, &rewritten].map(|path| path.to_str().unwrap());
        let mut arguments = vec![from, "-q", "-o", to];
        arguments.extend(options.split(' '));
        let output = tool(&arguments);
        assert!(output.status.success(), "{at}: {}", said(&output));
        let (output, certificate) = verify(folder.path(), &original, &rewritten);
        assert!(output.status.success(), "{at}: {}", said(&output));
        let made = read(&rewritten, UnknownFields::Allow)
            .unwrap()
            .graph
            .unwrap();
        let copies = made.node.iter().filter(|n| is_copy(n)).count();
        assert_eq!(certificate["structure"]["nodes_again"], copies, "{at}");
        let line = format!("computed again: {copies} nodes are copies of forward nodes");
        assert_eq!(copies > 0, said(&output).contains(&line), "{at}");
        for key in [
            "ok",
            "forward_identical",
            "input_gradients_identical",
            "untouched_identical",
        ] {
            assert_eq!(certificate[key], true, "{at}: {key}");
        }
        // Nothing is left out because it is computed again.
        let compared = &certificate["values_compared"];
        assert!(compared["forward"].as_u64() > Some(2), "{at}: {compared}");
        let found = certificate["layers"].as_array().unwrap();
        assert!(found.is_empty() || !options.contains("--exact"), "{at}");
        for layer in found {
            let number = |key: &str| layer[key].as_f64();
            assert!(
                number("formula_max_error") <= number("tolerance"),
                "{at}: {layer}"
            );
        }
        again += copies;
        layers += found.len();
    }
    println!("{again} nodes again, {layers} layers");
    assert!(again > 200 && layers > 20);
}

/// A backward half that computes something else again is refused, and not by its numbers.
#[test]
fn wrong_copies_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let original = models().join("aot/llama_tiny.onnx");
    let rewritten = folder.path().join("rewritten.onnx");
    let [from, to] = [&original, &rewritten].map(|path| path.to_str().unwrap());
    let output = tool(&[from, "-q", "-o", to, "--recompute", "layers", "--exact"]);
    assert!(output.status.success(), "{}", said(&output));
    let mut model = read(&rewritten, UnknownFields::Allow).unwrap();
    samples("llama", &model, &folder.path().join("data.safetensors"));
    let mut nodes = model.graph.as_mut().unwrap().node.iter_mut();
    let copy = nodes.find(|n| is_copy(n) && n.op_type() == "Mul").unwrap();
    copy.op_type = Some("Add".to_owned());
    let label = copy.name().to_owned();
    assert!(Model::from_proto(model.clone()).is_ok());
    write(&model, &rewritten).unwrap();
    let (output, certificate) = verify(folder.path(), &original, &rewritten);
    assert_eq!(output.status.code(), Some(1), "{}", said(&output));
    let problem = &certificate["first_problem"];
    assert_eq!(
        (&problem["node"], &problem["op"]),
        (&label.into(), &"Add".into())
    );
    let said_of = problem["problem"].as_str().unwrap();
    assert!(said_of.starts_with("is marked as a copy of"), "{problem}");
    assert_eq!(certificate["structure"]["ok"], false);
    assert!(certificate["forward_identical"].is_null());
}
