//! References to external data: hostile ones are refused, wherever they are.
#![allow(clippy::unwrap_used)]

use std::fs;

use velora_graph::onnx::read::{FileError, check_external_data};
use velora_graph::onnx::schema::*;

mod common;
use common::{entry, text};

fn external(entries: &[(&str, &str)]) -> TensorProto {
    TensorProto {
        name: text("weight"),
        external_data: entries
            .iter()
            .map(|(key, value)| entry(key, value))
            .collect(),
        data_location: Some(1),
        ..Default::default()
    }
}

fn with_initializer(tensor: TensorProto) -> ModelProto {
    let graph = GraphProto {
        initializer: vec![tensor],
        ..Default::default()
    };
    ModelProto {
        graph: Some(graph),
        ..Default::default()
    }
}

#[test]
fn external_data_must_lie_in_a_plain_file_inside_the_folder() {
    let outside = tempfile::tempdir().unwrap();
    fs::write(outside.path().join("secret"), [0; 100]).unwrap();
    let folder = outside.path().join("model");
    fs::create_dir_all(folder.join("sub")).unwrap();
    fs::write(folder.join("w.bin"), [0; 100]).unwrap();
    fs::write(folder.join("sub/w.bin"), [0; 100]).unwrap();
    let check = |entries: &[(&str, &str)]| {
        check_external_data(&with_initializer(external(entries)), &folder)
    };
    let refused = |entries: &[(&str, &str)], why: &str| {
        let error = check(entries).unwrap_err().to_string();
        assert!(
            error.contains("\"weight\"") && error.contains(why),
            "{entries:?}: {error}"
        );
    };

    check(&[("location", "w.bin")]).unwrap();
    check(&[
        ("location", "./sub/w.bin"),
        ("offset", "40"),
        ("length", "60"),
    ])
    .unwrap();
    check(&[("location", "w.bin"), ("offset", "100")]).unwrap();

    refused(&[], "no location");
    refused(&[("location", "")], "no location");
    refused(&[("location", "../secret")], "leave the folder");
    refused(&[("location", "sub/../../secret")], "leave the folder");
    refused(&[("location", "sub\\..\\..\\secret")], "leave the folder");
    refused(&[("location", "w.bin\0")], "leave the folder");
    refused(
        &[("location", outside.path().join("secret").to_str().unwrap())],
        "leave the folder",
    );
    refused(&[("location", "missing.bin")], "cannot find");
    refused(&[("location", "w.bin/x")], "cannot find");
    refused(&[("location", "sub")], "not a regular file");
    refused(&[("location", ".")], "not a regular file");
    refused(&[("location", "w.bin"), ("location", "../secret")], "twice");
    for (offset, length) in [
        ("101", "0"),
        ("0", "101"),
        ("60", "41"),
        ("1", "18446744073709551615"),
    ] {
        refused(
            &[
                ("location", "w.bin"),
                ("offset", offset),
                ("length", length),
            ],
            "is needed",
        );
    }
    for number in ["", "-1", "+1", "0x10", "1e3", " 1", "18446744073709551616"] {
        refused(&[("location", "w.bin"), ("offset", number)], "offset is");
        refused(&[("location", "w.bin"), ("length", number)], "length is");
    }

    #[cfg(unix)]
    {
        use std::os::unix::fs::symlink;
        symlink(outside.path().join("secret"), folder.join("link.bin")).unwrap();
        symlink(outside.path(), folder.join("linked")).unwrap();
        fs::hard_link(outside.path().join("secret"), folder.join("hard.bin")).unwrap();
        refused(&[("location", "link.bin")], "symbolic link");
        refused(&[("location", "linked/secret")], "symbolic link");
        refused(&[("location", "hard.bin")], "hard links");
    }
}

#[test]
fn external_data_is_checked_wherever_tensors_are() {
    let folder = tempfile::tempdir().unwrap();
    let bad = || external(&[("location", "../secret")]);
    let sparse = || SparseTensorProto {
        indices: Some(bad()),
        ..Default::default()
    };
    let node = |attribute| NodeProto {
        attribute: vec![attribute],
        ..Default::default()
    };
    let in_graph = |graph| ModelProto {
        graph: Some(graph),
        ..Default::default()
    };
    let in_node = |attribute| GraphProto {
        node: vec![node(attribute)],
        ..Default::default()
    };
    let attribute = AttributeProto::default;
    let inner = || with_initializer(bad()).graph.unwrap();
    let cases = [
        in_graph(in_node(AttributeProto {
            t: Some(Box::new(bad())),
            ..attribute()
        })),
        in_graph(in_node(AttributeProto {
            tensors: vec![bad()],
            ..attribute()
        })),
        in_graph(in_node(AttributeProto {
            sparse_tensor: Some(Box::new(sparse())),
            ..attribute()
        })),
        in_graph(in_node(AttributeProto {
            sparse_tensors: vec![sparse()],
            ..attribute()
        })),
        in_graph(in_node(AttributeProto {
            g: Some(Box::new(inner())),
            ..attribute()
        })),
        in_graph(in_node(AttributeProto {
            graphs: vec![inner()],
            ..attribute()
        })),
        in_graph(GraphProto {
            sparse_initializer: vec![sparse()],
            ..Default::default()
        }),
        ModelProto {
            training_info: vec![TrainingInfoProto {
                algorithm: Some(inner()),
                ..Default::default()
            }],
            ..Default::default()
        },
        ModelProto {
            functions: vec![FunctionProto {
                node: vec![node(AttributeProto {
                    t: Some(Box::new(bad())),
                    ..attribute()
                })],
                ..Default::default()
            }],
            ..Default::default()
        },
        ModelProto {
            functions: vec![FunctionProto {
                attribute_proto: vec![AttributeProto {
                    t: Some(Box::new(bad())),
                    ..attribute()
                }],
                ..Default::default()
            }],
            ..Default::default()
        },
    ];
    for (i, model) in cases.iter().enumerate() {
        let result = check_external_data(model, folder.path());
        assert!(
            matches!(result, Err(FileError::ExternalData { .. })),
            "case {i}"
        );
    }
}

#[test]
fn external_data_has_the_size_of_its_tensor() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("w.bin"), [0; 100]).unwrap();
    let check = |dims: &[i64], entries: &[(&str, &str)]| {
        let tensor = TensorProto {
            dims: dims.to_vec(),
            data_type: Some(1),
            ..external(entries)
        };
        check_external_data(&with_initializer(tensor), folder.path())
    };
    let at = |length| [("location", "w.bin"), ("offset", "4"), ("length", length)];
    check(&[5, 2], &at("40")).unwrap();
    check(&[], &at("4")).unwrap();
    check(&[0, 3], &at("0")).unwrap();
    check(&[5, 2], &[("location", "w.bin")]).unwrap();
    for (dims, length) in [
        (&[5, 2][..], "36"),
        (&[5, 2], "44"),
        (&[1 << 40, 1 << 40], "8"),
    ] {
        let error = check(dims, &at(length)).unwrap_err().to_string();
        assert!(error.contains("the reference holds"), "{error}");
    }
    assert!(check(&[26], &[("location", "w.bin")]).is_err());
}

#[test]
fn ranges_are_the_same_or_have_nothing_in_common() {
    let folder = tempfile::tempdir().unwrap();
    fs::create_dir(folder.path().join("sub")).unwrap();
    for name in ["w.bin", "v.bin"] {
        fs::write(folder.path().join(name), [0; 100]).unwrap();
    }
    let check = |ranges: &[(&str, &str, &str)]| {
        let tensors = ranges.iter().enumerate();
        let tensors = tensors.map(|(number, (location, offset, length))| TensorProto {
            name: text(&format!("t{number}")),
            ..external(&[
                ("location", location),
                ("offset", offset),
                ("length", length),
            ])
        });
        let graph = GraphProto {
            initializer: tensors.collect(),
            ..Default::default()
        };
        let model = ModelProto {
            graph: Some(graph),
            ..Default::default()
        };
        check_external_data(&model, folder.path()).map_err(|error| error.to_string())
    };
    // Side by side, in any order, tied, of no bytes, in two files.
    check(&[
        ("w.bin", "50", "50"),
        ("w.bin", "0", "50"),
        ("./w.bin", "0", "50"),
    ])
    .unwrap();
    check(&[
        ("w.bin", "0", "100"),
        ("w.bin", "50", "0"),
        ("v.bin", "1", "99"),
    ])
    .unwrap();
    for (first, second) in [("0", "49"), ("30", "0"), ("10", "20"), ("0", "10")] {
        let ranges = [("w.bin", first, "50"), ("./w.bin", second, "40")];
        let error = check(&ranges).unwrap_err();
        assert!(
            error.contains("\"t0\"") && error.contains("\"t1\""),
            "{error}"
        );
        assert!(error.contains("overlap"), "{error}");
    }
    // One that lies within another, behind which a third begins.
    let nested = [
        ("w.bin", "0", "90"),
        ("w.bin", "0", "90"),
        ("w.bin", "80", "20"),
    ];
    assert!(check(&nested).unwrap_err().contains("\"t2\""));
}
