//! Reading and writing ONNX files: the exported models, damaged files, hostile references.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use prost::Message;
use velora_graph::onnx::read::{
    FileError, Source, UnknownFields, check_external_data, decode, read,
};
use velora_graph::onnx::schema::*;
use velora_graph::onnx::write::{write, write_to};

mod common;
use common::full_model;

fn models() -> Vec<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../models");
    let mut found: Vec<PathBuf> = ["aot", "ort"]
        .iter()
        .flat_map(|kind| fs::read_dir(root.join(kind)).unwrap())
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|ext| ext == "onnx"))
        .collect();
    found.sort();
    assert!(found.len() >= 20, "models are missing from {root:?}");
    found
}

fn streamed(model: &ModelProto) -> Vec<u8> {
    let mut bytes = Vec::new();
    write_to(model, &mut bytes).unwrap();
    bytes
}

/// A small xorshift generator: the same mutations in every run.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % bound as u64) as usize
    }
}

#[test]
fn exported_models_survive_unchanged() {
    let folder = tempfile::tempdir().unwrap();
    let mut different = Vec::new();
    for path in models() {
        let model = read(&path, UnknownFields::Refuse).unwrap();
        assert!(model.graph.is_some(), "{path:?}");
        let bytes = streamed(&model);
        assert!(
            bytes == model.encode_to_vec(),
            "{path:?}: streaming differs from prost"
        );
        let target = folder.path().join("out.onnx");
        write(&model, &target).unwrap();
        assert!(
            fs::read(&target).unwrap() == bytes,
            "{path:?}: write differs from write_to"
        );
        assert!(model == decode(bytes.clone().into(), UnknownFields::Refuse).unwrap());
        check_external_data(&model, path.parent().unwrap()).unwrap();
        if bytes != fs::read(&path).unwrap() {
            different.push(path);
        }
    }
    assert!(different.is_empty(), "not the same bytes: {different:?}");
}

/// `models/llama_tiny.onnx` stands where a first command is easily typed; it is the exported graph.
#[test]
fn the_model_to_begin_with_is_a_copy() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../models");
    let copy = fs::read(root.join("llama_tiny.onnx")).unwrap();
    let exported = fs::read(root.join("aot/llama_tiny.onnx")).unwrap();
    assert!(
        copy == exported,
        "models/llama_tiny.onnx differs from models/aot/llama_tiny.onnx: copy it anew"
    );
}

#[test]
fn payloads_are_slices_of_the_file() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("m.onnx");
    write(&full_model(100_000), &path).unwrap();
    let source = Source::open(&path).unwrap();
    let model = source.decode(UnknownFields::Refuse).unwrap();
    let raw = model.graph.unwrap().initializer[0]
        .raw_data
        .clone()
        .unwrap();
    assert_eq!(raw.len(), 100_000);
    let (file, raw) = (source.bytes().as_ptr_range(), raw.as_ptr_range());
    assert!(
        file.start <= raw.start && raw.end <= file.end,
        "the payload was copied"
    );
}

#[test]
fn streaming_writes_what_prost_writes() {
    for payload in [0, 1, 127, 128, 70_000] {
        let model = full_model(payload);
        let bytes = streamed(&model);
        assert!(bytes == model.encode_to_vec(), "with payloads of {payload}");
        assert!(decode(bytes.into(), UnknownFields::Refuse).unwrap() == model);
    }
    assert!(streamed(&ModelProto::default()).is_empty());
}

#[test]
fn damaged_files_never_panic() {
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    let mut originals: Vec<Vec<u8>> = models()
        .iter()
        .map(|path| fs::read(path).unwrap())
        .collect();
    originals.sort_by_key(Vec::len);
    originals.truncate(3);
    originals.push(streamed(&full_model(3)));
    for original in originals {
        let whole = Bytes::from(original.clone());
        for i in 0..300 {
            let length = if i < 100 {
                i
            } else {
                random.below(original.len())
            };
            let _ = decode(whole.slice(..length), UnknownFields::Refuse);
            let _ = decode(whole.slice(..length), UnknownFields::Allow);
        }
        for _ in 0..600 {
            // Half of the damage goes to the front, where the structure is.
            let reach = if random.below(2) == 0 {
                original.len().min(400)
            } else {
                original.len()
            };
            let mut damaged = original.clone();
            for _ in 0..=random.below(4) {
                let at = random.below(reach);
                damaged[at] = random.below(256) as u8;
            }
            let damaged = Bytes::from(damaged);
            let refused = decode(damaged.clone(), UnknownFields::Refuse);
            let allowed = decode(damaged, UnknownFields::Allow);
            if let Ok(model) = &refused {
                assert!(allowed.is_ok());
                assert!(streamed(model) == model.encode_to_vec());
                let _ = check_external_data(model, Path::new("."));
            }
        }
    }
}

#[test]
fn noise_never_panics() {
    let mut random = Random(7);
    for _ in 0..5000 {
        let length = random.below(60);
        let noise: Bytes = (0..length).map(|_| random.below(256) as u8).collect();
        let _ = decode(noise.clone(), UnknownFields::Refuse);
        let _ = decode(noise, UnknownFields::Allow);
    }
}

/// A length-delimited field around some content.
fn field(number: u32, content: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    prost::encoding::encode_varint(u64::from(number << 3 | 2), &mut bytes);
    prost::encoding::encode_varint(content.len() as u64, &mut bytes);
    bytes.extend_from_slice(content);
    bytes
}

#[test]
fn unknown_fields_are_refused_with_their_path() {
    // graph.node[3].attribute[0], with `name` before a field 99.
    let attribute = [field(1, b"a"), field(99, b"new")].concat();
    let nodes = [field(1, b""), field(2, b"g"), field(1, b""), field(1, b"")].concat();
    let bytes = field(7, &[nodes, field(1, &field(5, &attribute))].concat());
    let error = decode(bytes.clone().into(), UnknownFields::Refuse).unwrap_err();
    assert!(
        matches!(&error, FileError::UnknownField { place, .. }
        if place == "graph.node[3].attribute[0] field 99"),
        "{error}"
    );
    assert!(
        error.to_string().contains("--allow-unknown-fields"),
        "{error}"
    );

    let model = decode(bytes.into(), UnknownFields::Allow).unwrap();
    assert_eq!(model.graph.unwrap().node[3].attribute[0].name(), "a");

    // At the root, and as a group, which only proto2 has and no version of ONNX.
    for (bytes, group) in [
        (field(99, b""), false),
        (vec![0x9b, 0x06, 0x9c, 0x06], true),
    ] {
        let bytes = [vec![0x08, 10], bytes].concat();
        let error = decode(bytes.clone().into(), UnknownFields::Refuse).unwrap_err();
        assert!(matches!(&error, FileError::UnknownField { place, .. } if place == "field 99"));
        let allowed = decode(bytes.into(), UnknownFields::Allow);
        match group {
            false => drop(allowed.unwrap()),
            true => {
                let error = allowed.unwrap_err().to_string();
                assert!(error.contains("field 99 is a group"), "{error}");
            }
        }
    }
}

#[test]
fn what_is_no_model_is_said_to_be_none() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("m.onnx");
    for content in [
        &b""[..],
        b"\x12\x01p",
        b"hello, world\n",
        b"\x89PNG\r\n\x1a\n",
    ] {
        fs::write(&path, content).unwrap();
        for unknown in [UnknownFields::Allow, UnknownFields::Refuse] {
            let error = read(&path, unknown).unwrap_err().to_string();
            assert!(
                error.contains("is this an ONNX model") && error.contains("m.onnx"),
                "{error}"
            );
        }
    }
    assert!(matches!(
        read(folder.path(), UnknownFields::Refuse),
        Err(FileError::NotAFile { .. })
    ));
    let missing = folder.path().join("missing.onnx");
    assert!(matches!(
        read(&missing, UnknownFields::Refuse),
        Err(FileError::Io { .. })
    ));
}

#[test]
fn nesting_is_bounded() {
    let nested = |levels: usize| {
        let graph = (0..levels).fold(Vec::new(), |graph, _| {
            field(1, &field(5, &field(6, &graph)))
        });
        decode(field(7, &graph).into(), UnknownFields::Refuse)
    };
    assert!(streamed(&nested(33).unwrap()) == nested(33).unwrap().encode_to_vec());
    assert!(matches!(nested(34), Err(FileError::Malformed { .. })));
    assert!(matches!(nested(2000), Err(FileError::Malformed { .. })));
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

fn names(folder: &Path) -> Vec<String> {
    let name = |entry: std::io::Result<fs::DirEntry>| entry.unwrap().file_name();
    fs::read_dir(folder)
        .unwrap()
        .map(|e| name(e).into_string().unwrap())
        .collect()
}

#[test]
fn a_failed_write_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let model = full_model(10);
    // A folder is in the way, and a parent does not exist.
    fs::create_dir(folder.path().join("taken")).unwrap();
    write(&model, &folder.path().join("taken")).unwrap_err();
    write(&model, &folder.path().join("none/m.onnx")).unwrap_err();
    assert_eq!(names(folder.path()), ["taken"]);
    // The content itself is too large; one buffer, shared by all tensors.
    let payload = Bytes::from(vec![0; 1 << 29]);
    let tensor = TensorProto {
        raw_data: Some(payload),
        ..Default::default()
    };
    let mut large = with_initializer(tensor.clone());
    large.graph.as_mut().unwrap().initializer = vec![tensor; 4];
    let result = write(&large, &folder.path().join("large.onnx"));
    assert!(matches!(result, Err(FileError::TooLarge { .. })));
    assert_eq!(names(folder.path()), ["taken"]);
}

#[cfg(unix)]
#[test]
fn a_written_file_replaces_and_has_ordinary_permissions() {
    use std::os::unix::fs::PermissionsExt;
    let folder = tempfile::tempdir().unwrap();
    let mode = |name: &str| {
        fs::metadata(folder.path().join(name))
            .unwrap()
            .permissions()
            .mode()
    };
    fs::write(folder.path().join("ordinary"), b"").unwrap();
    let path = folder.path().join("m.onnx");
    write(&full_model(10), &path).unwrap();
    assert_eq!(mode("m.onnx"), mode("ordinary"));
    // Over the file that is mapped: the mapping keeps the old content.
    let before = read(&path, UnknownFields::Refuse).unwrap();
    write(&full_model(20), &path).unwrap();
    assert!(before == full_model(10));
    write(&before, &path).unwrap();
    assert!(read(&path, UnknownFields::Refuse).unwrap() == before);
    assert_eq!(names(folder.path()).len(), 2);
}

#[test]
fn a_failing_writer_is_reported() {
    struct Full(usize);
    impl std::io::Write for Full {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            let taken = bytes.len().min(self.0);
            self.0 -= taken;
            Ok(taken)
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    let model = full_model(1000);
    let length = model.encoded_len();
    assert!(write_to(&model, &mut Full(length)).is_ok());
    assert!(write_to(&model, &mut Full(length - 1)).is_err());
}
