//! 4-bit integers as tensors: in the file, as inputs and outputs, through views, and in other files.

use super::{floats, integers, model, run};
use std::collections::BTreeMap;
use velora_graph::shapes::DataType;
use velora_runtime::data::batches::{Batches, Input, Last, Settings};
use velora_runtime::data::{Dataset, npz, safetensors};
use velora_runtime::session::checkpoint::Settings as Run;
use velora_runtime::session::checkpoint::{self, Expected, Progress};
use velora_runtime::tensor::{Tensor, TensorType, byte_length};

fn odd() -> Tensor {
    integers(DataType::INT4, &[1, 5], &[-8, 7, -1, 0, 3])
}

#[test]
fn two_elements_take_a_byte() {
    for (shape, bytes) in [(&[][..], 1), (&[0, 3], 0), (&[5], 3), (&[3, 4], 6)] {
        assert_eq!(byte_length(DataType::INT4, shape), Some(bytes));
        assert_eq!(TensorType::new(DataType::UINT4, shape).bytes(), bytes);
    }
    // float4e2m1 and uint2 have no kernel.
    assert_eq!(byte_length(DataType(23), &[2]), None);
    assert_eq!(TensorType::new(DataType(25), [4]).checked_bytes(), None);
}

#[test]
fn views_inputs_outputs_and_defaults() {
    let nodes = "flat = Reshape (x, shape) y = Unsqueeze (flat, axes) z = Identity (c)";
    let constants = "int64[1] shape = {-1}, int64[1] axes = {1}, uint4[3] c = {18, 3}";
    let source = model(
        21,
        "int4[1,5] x",
        "int4[5,1] y, uint4[3] z",
        constants,
        nodes,
    );
    let outputs = run(&source, &[("x", odd())]).unwrap();
    assert_eq!(outputs[0].bytes, odd().bytes);
    assert_eq!(outputs[0].shape, [5, 1]);
    assert_eq!(outputs[1], integers(DataType::UINT4, &[3], &[2, 1, 3]));
    let found = run(
        &source,
        &[("x", integers(DataType::UINT4, &[1, 5], &[0; 5]))],
    )
    .unwrap_err();
    assert!(
        found.contains("expected int4[1,5], got uint4[1,5]"),
        "{found}"
    );

    let default = "int4[1,5] x = {120, 15, 3}, float s = {1}";
    let node = "y = DequantizeLinear (x, s)";
    let expected = [-8.0, 7.0, -1.0, 0.0, 3.0];
    let source = model(21, "int4[1,5] x", "float[1,5] y", default, node);
    assert_eq!(floats(&source), expected);
    let nodes = "x = Constant <value = int4[5] {120, 15, 3}> () y = DequantizeLinear (x, s)";
    let source = model(21, "", "float[5] y", "float s = {1}", nodes);
    assert_eq!(floats(&source), expected);
}

#[test]
fn files_of_tensors_keep_them() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.safetensors");
    let arrays = BTreeMap::from([
        ("signed".to_owned(), odd()),
        (
            "unsigned".to_owned(),
            integers(DataType::UINT4, &[2, 2], &[1, 2, 3, 15]),
        ),
        ("empty".to_owned(), integers(DataType::INT4, &[3, 0], &[])),
        (
            "bytes".to_owned(),
            integers(DataType::UINT8, &[3], &[1, 2, 3]),
        ),
        ("float".to_owned(), Tensor::from_f32(&[1], &[1.5])),
    ]);
    let views = || { arrays.iter() }.map(|(name, tensor)| (&name[..], tensor.view()));
    let metadata = BTreeMap::from([("a".to_owned(), "b".to_owned())]);
    safetensors::write(&path, &metadata, views()).unwrap();
    let read = safetensors::read(&path).unwrap();
    assert_eq!((&read.arrays, &read.metadata), (&arrays, &metadata));
    // Other readers find bytes.
    let file = std::fs::read(&path).unwrap();
    let plain = ::safetensors::SafeTensors::deserialize(&file).unwrap();
    let signed = plain.tensor("signed").unwrap();
    assert_eq!(
        (signed.dtype(), signed.shape()),
        (::safetensors::Dtype::U8, &[3][..])
    );
    let refused = npz::write(&folder.path().join("a.npz"), views()).unwrap_err();
    assert!(refused.to_string().contains("int4"), "{refused}");
}

#[test]
fn metadata_that_lies_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.safetensors");
    let bytes = integers(DataType::UINT8, &[3], &[1, 2, 3]);
    let float = Tensor::from_f32(&[3], &[0.0; 3]);
    for (packed, expected) in [
        (r#"{"a": {"dtype": "int4", "shape": [5]}}"#, ""),
        (r#"{"a": {"dtype": "int4", "shape": [7]}}"#, "no such bytes"),
        (
            r#"{"f": {"dtype": "int4", "shape": [24]}}"#,
            "no such bytes",
        ),
        (r#"{"b": {"dtype": "int4", "shape": [5]}}"#, "no such bytes"),
        (
            r#"{"a": {"dtype": "int8", "shape": [3]}}"#,
            "expected int4 or uint4",
        ),
        (
            r#"{"a": {"dtype": "int4", "shape": [18446744073709551615, 18446744073709551615]}}"#,
            "no such bytes",
        ),
        (
            r#"{"a": {"dtype": "int4", "shape": [-1]}}"#,
            "cannot be read",
        ),
        ("[]", "cannot be read"),
        ("", "cannot be read"),
    ] {
        let metadata = BTreeMap::from([("velora.packed".to_owned(), packed.to_owned())]);
        let tensors = [("a", bytes.view()), ("f", float.view())];
        safetensors::write(&path, &metadata, tensors).unwrap();
        match safetensors::read(&path) {
            Ok(read) => {
                assert_eq!(expected, "", "{packed}");
                assert_eq!(read.arrays["a"].data_type, DataType::INT4);
            }
            Err(error) => {
                assert!(!expected.is_empty(), "{packed}: {error}");
                assert!(error.to_string().contains(expected), "{packed}: {error}");
            }
        }
    }
}

#[test]
fn checkpoints_keep_a_frozen_parameter() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("c");
    let settings = Run {
        model: "m".to_owned(),
        seed: 1,
        optimizer: None,
        schedule: None,
        accumulate: 1,
        clip: None,
    };
    let progress = Progress {
        step: 1,
        batches: None,
    };
    let weight = odd();
    let parameters = [("frozen", weight.view())];
    checkpoint::write(&path, &settings, &progress, parameters, []).unwrap();
    let read = checkpoint::read(&path).unwrap();
    assert_eq!(read.parameters["frozen"], weight);
    let expected = |data_type| Expected {
        name: "frozen",
        data_type,
        shape: &[1, 5],
        trained: false,
        state: &[],
    };
    read.check(&settings, &[expected(DataType::INT4)]).unwrap();
    let refused = read
        .check(&settings, &[expected(DataType::UINT4)])
        .unwrap_err();
    assert!(
        refused.to_string().contains("it is int4[1, 5]"),
        "{refused}"
    );
}

#[test]
fn samples_are_whole_bytes() {
    let dataset = Dataset {
        file: "data".into(),
        arrays: BTreeMap::from([("x".to_owned(), odd())]),
        metadata: BTreeMap::new(),
    };
    let input = Input {
        name: "x",
        data_type: DataType::INT4,
        shape: &[1, 5],
        axis: 0,
    };
    let settings = Settings {
        size: 1,
        last: Last::Keep,
        shuffle: None,
    };
    let refused = Batches::new(&dataset, &[input], settings).unwrap_err();
    assert!(
        refused.to_string().contains("need not be whole bytes"),
        "{refused}"
    );
}
