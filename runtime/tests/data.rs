//! Reading and writing arrays, and batches of them.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::path::Path;

use bytes::Bytes;
use proptest::prelude::*;
use velora_graph::shapes::DataType;
use velora_runtime::data::batches::{Batches, Input, Last, Position, Settings};
use velora_runtime::data::{self, Dataset, npz, safetensors};
use velora_runtime::tensor::Tensor;

/// A file that `tests/data/make.py` has written.
fn golden(name: &str) -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/data")
        .join(name)
}

fn bytes_of(data_type: i32, number: i64) -> Vec<u8> {
    match data_type {
        1 => (number as f32).to_le_bytes().to_vec(),
        2 | 3 | 9 => vec![number as u8],
        4 | 5 => (number as u16).to_le_bytes().to_vec(),
        6 | 12 => (number as u32).to_le_bytes().to_vec(),
        7 | 13 => (number as u64).to_le_bytes().to_vec(),
        10 => half::f16::from_f64(number as f64).to_le_bytes().to_vec(),
        11 => (number as f64).to_le_bytes().to_vec(),
        16 => half::bf16::from_f64(number as f64).to_le_bytes().to_vec(),
        other => panic!("{other}"),
    }
}

/// The array that `make.py` writes for a type: 0 to 23 (for signed types less 12), or 0 and 1.
fn expected(data_type: i32) -> Tensor {
    let numbers = (0..24).map(|i| match data_type {
        9 => i % 2,
        2 | 4 | 12 | 13 => i,
        _ => i - 12,
    });
    Tensor {
        data_type: DataType(data_type),
        shape: vec![2, 3, 4],
        bytes: numbers
            .flat_map(|n| bytes_of(data_type, n))
            .collect::<Vec<_>>()
            .into(),
    }
}

const TYPES: [(&str, i32); 13] = [
    ("float16", 10),
    ("float32", 1),
    ("float64", 11),
    ("bfloat16", 16),
    ("int8", 3),
    ("int16", 5),
    ("int32", 6),
    ("int64", 7),
    ("uint8", 2),
    ("uint16", 4),
    ("uint32", 12),
    ("uint64", 13),
    ("bool", 9),
];

#[test]
fn files_of_numpy() {
    for file in ["stored.npz", "deflated.npz"] {
        let dataset = data::read(&golden(file)).unwrap();
        for (name, data_type) in TYPES {
            for suffix in ["", "_fortran", "_big", "_big_fortran"] {
                // Only types of several bytes have an order; NumPy knows none of bfloat16.
                if let Some(tensor) = dataset.arrays.get(&format!("{name}{suffix}")) {
                    assert_eq!(*tensor, expected(data_type), "{file} {name}{suffix}");
                }
            }
            assert!(dataset.arrays.contains_key(name), "{name}");
        }
        assert_eq!(dataset.arrays["float32_big_fortran"], expected(1));
        assert_eq!(dataset.arrays["version2"], expected(1));
        assert_eq!(dataset.arrays["version3"], expected(1));
        assert_eq!(dataset.arrays["scalar"], Tensor::from_f32(&[], &[3.5]));
        assert_eq!(dataset.arrays["empty"], Tensor::from_i64(&[3, 0, 2], &[]));
        assert_eq!(dataset.arrays["line"], Tensor::from_i64(&[3], &[7, 8, 9]));
        assert_eq!(dataset.arrays.len(), 13 + 12 + 9 + 9 + 5, "{file}");
    }
}

#[test]
fn files_of_the_safetensors_package() {
    let dataset = data::read(&golden("tensors.safetensors")).unwrap();
    for (name, data_type) in TYPES {
        assert_eq!(dataset.arrays[name], expected(data_type), "{name}");
    }
    assert_eq!(dataset.metadata["format"], "pt");
}

/// The message, without the folder.
fn message(error: impl std::error::Error) -> String {
    let folder = golden("").display().to_string();
    error.to_string().replace(&folder, "")
}

#[test]
fn files_that_are_refused() {
    let refused = |file: &str| message(data::read(&golden(file)).unwrap_err());
    assert_eq!(
        refused("complex.npz"),
        "complex.npz: array 'z': dtype '<c8' is not supported; convert it with .astype(); read are \
         bool, int8 to int64, uint8 to uint64, float16, float32, float64, and bfloat16 of ml_dtypes"
    );
    assert!(refused("record.npz").starts_with("record.npz: array 'r': its elements are records; "));
    assert!(refused("text.npz").starts_with("text.npz: array 't': dtype '<U5' is not supported; "));
    assert_eq!(
        refused("one.npy"),
        "one.npy: this is a single array without a name; write named arrays with \
         numpy.savez(file, x=..., labels=...)"
    );
    let text = npz::decode(Bytes::from_static(b"PK not an archive"), Path::new("a.npz"));
    assert!(message(text.unwrap_err()).starts_with("a.npz: "));
    let text = data::decode(Bytes::from_static(b"hello"), Path::new("a.bin"));
    assert_eq!(
        message(text.unwrap_err()),
        "a.bin: header too small; is this a safetensors or an npz file, and complete?"
    );
}

/// An array with a header that lies, in an archive.
fn archive_of(header: &str, elements: &[u8]) -> Bytes {
    use std::io::Write;
    let mut npy = b"\x93NUMPY\x01\x00".to_vec();
    npy.extend((header.len() as u16).to_le_bytes());
    npy.extend(header.bytes());
    npy.extend(elements);
    let mut archive = zip::ZipWriter::new(std::io::Cursor::new(Vec::new()));
    archive
        .start_file("x.npy", zip::write::SimpleFileOptions::default())
        .unwrap();
    archive.write_all(&npy).unwrap();
    archive.finish().unwrap().into_inner().into()
}

#[test]
fn headers_that_lie() {
    let decode = |header: &str, elements: &[u8]| {
        let result = npz::decode(archive_of(header, elements), Path::new("a.npz"));
        result.map(|d| d.arrays["x"].clone()).map_err(message)
    };
    let good = "{\"fortran_order\": False,'shape' :(2L ,),'descr':'<i2'}";
    assert_eq!(decode(good, &[1, 0, 2, 0]).unwrap().shape, [2]);
    for (header, problem) in [
        (
            "{'descr': '<f4', 'fortran_order': False, 'shape': (1048576, 1048576), }",
            "takes 4398046511104",
        ),
        (
            "{'descr': '<f4', 'fortran_order': False, 'shape': (4294967296, 4294967296, 0), }",
            "its shape [4294967296, 4294967296, 0] exceeds any memory",
        ),
        (
            "{'descr': '<f4', 'fortran_order': False, 'shape': (99999999999999999999,), }",
            "where a size was expected",
        ),
        (
            "{'descr': '<f4', 'fortran_order': False, 'shape': (-1,), }",
            "'-1,), }' where a size",
        ),
        ("{'descr': '<f4', 'fortran_order': False}", "lacks one of"),
        (
            "{'descr': '<f4', 'fortran_order': 0, 'shape': ()}",
            "True or False",
        ),
        (
            "{'descr': '<f4', 'fortran_order': True, 'shape': (), 'x': 1}",
            "unknown key 'x'",
        ),
        ("{'descr': '<f4", "the end of a string"),
        ("", "'{'"),
        (
            "{'descr': '<f4', 'fortran_order': True, 'shape': ()} é",
            "' é' where the end",
        ),
    ] {
        let message = decode(header, &[0; 8]).unwrap_err();
        assert!(message.contains(problem), "{header}: {message}");
    }
}

#[test]
fn written_files_are_read_back() {
    let folder = tempfile::tempdir().unwrap();
    let arrays: BTreeMap<String, Tensor> = (TYPES.iter())
        .map(|(name, data_type)| (format!("a/{name}"), expected(*data_type)))
        .chain([
            ("scalar".to_owned(), Tensor::from_f32(&[], &[1.0])),
            ("empty".to_owned(), Tensor::from_f32(&[0, 5], &[])),
        ])
        .collect();
    let views = || {
        arrays
            .iter()
            .map(|(name, tensor)| (&name[..], tensor.view()))
    };
    let path = folder.path().join("a.npz");
    npz::write(&path, views()).unwrap();
    let first = std::fs::read(&path).unwrap();
    let read = data::read(&path).unwrap();
    assert_eq!(read.arrays, arrays);
    for tensor in read.arrays.values().filter(|t| !t.bytes.is_empty()) {
        assert_eq!(tensor.bytes.as_ptr().addr() % 64, 0);
    }
    npz::write(&path, views()).unwrap();
    assert_eq!(std::fs::read(&path).unwrap(), first);
    // The mapping of the old file is still whole.
    assert_eq!(read.arrays, arrays);

    let path = folder.path().join("a.safetensors");
    let metadata = BTreeMap::from([("a".to_owned(), "ü\"".to_owned()), ("b".into(), "".into())]);
    safetensors::write(&path, &metadata, views()).unwrap();
    let read = data::read(&path).unwrap();
    assert_eq!((&read.arrays, &read.metadata), (&arrays, &metadata));
    let entry = || ("twice", arrays["scalar"].view());
    assert!(safetensors::write(&path, &metadata, [entry(), entry()]).is_err());
    assert!(npz::write(&folder.path().join("b.npz"), [entry(), entry()]).is_err());
    assert!(
        safetensors::write(
            &path,
            &metadata,
            [("__metadata__", arrays["scalar"].view())]
        )
        .is_err()
    );
    // Nothing of the refused writing is left, and the old file is whole.
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 2);
    assert_eq!(data::read(&path).unwrap().arrays, arrays);
}

fn damaged(file: &str) -> impl Strategy<Value = Vec<u8>> {
    let bytes = std::fs::read(golden(file)).unwrap();
    let changes = prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6);
    // The directory of an archive is at its end, the header of a safetensors file at its beginning.
    let tail = prop::collection::vec((0usize..600, any::<u8>()), 0..3);
    let cut = prop::option::of(any::<prop::sample::Index>());
    (changes, tail, cut).prop_map(move |(changes, tail, cut)| {
        let mut bytes = bytes.clone();
        for (at, byte) in changes {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        for (at, byte) in tail {
            let at = (bytes.len() - 1).saturating_sub(at);
            bytes[at] = byte;
        }
        if let Some(cut) = cut {
            bytes.truncate(cut.index(bytes.len()));
        }
        bytes
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    /// Whatever is read has as many bytes as its shape says; nothing panics.
    #[test]
    fn damaged_files(
        bytes in prop_oneof![
            damaged("stored.npz"),
            damaged("deflated.npz"),
            damaged("tensors.safetensors"),
            prop::collection::vec(any::<u8>(), 0..200),
        ]
    ) {
        if let Ok(dataset) = data::decode(bytes.into(), Path::new("damaged")) {
            for tensor in dataset.arrays.values() {
                let bits = tensor.data_type.bits().unwrap() as usize;
                prop_assert_eq!(tensor.elements() * bits / 8, tensor.bytes.len());
            }
        }
    }

    #[test]
    fn damaged_headers(header in "[{}()\\[\\]'\",: <>|=a-z0-9TFL]{0,60}") {
        let _ = npz::decode(archive_of(&header, &[0; 16]), Path::new("damaged"));
    }
}

fn dataset(arrays: impl IntoIterator<Item = (&'static str, Tensor)>) -> Dataset {
    let arrays = arrays
        .into_iter()
        .map(|(name, tensor)| (name.to_owned(), tensor));
    Dataset {
        file: "d.npz".into(),
        arrays: arrays.collect(),
        metadata: BTreeMap::new(),
    }
}

fn input<'a>(name: &'a str, data_type: DataType, shape: &'a [usize], axis: usize) -> Input<'a> {
    Input {
        name,
        data_type,
        shape,
        axis,
    }
}

/// Ten samples: `x` is [i, i + 0.5], `y` is i, `tokens` is [10 i, 10 i + 1, 10 i + 2].
fn ten() -> Dataset {
    let x: Vec<f32> = (0..10).flat_map(|i| [i as f32, i as f32 + 0.5]).collect();
    let y: Vec<i64> = (0..10).collect();
    let tokens: Vec<i64> = (0..10)
        .flat_map(|i| [10 * i, 10 * i + 1, 10 * i + 2])
        .collect();
    dataset([
        ("x", Tensor::from_f32(&[10, 2], &x)),
        ("y", Tensor::from_i64(&[10], &y)),
        ("tokens", Tensor::from_i64(&[10, 3], &tokens)),
    ])
}

fn settings(size: usize, last: Last, shuffle: Option<u64>) -> Settings {
    Settings {
        size,
        last,
        shuffle,
    }
}

fn ints(batches: &Batches, input: usize, length: usize) -> Vec<i64> {
    let mut bytes = vec![0xAA; length * 8];
    batches.copy(input, &mut bytes).unwrap();
    bytemuck::pod_collect_to_vec(&bytes)
}

#[test]
fn batches_in_file_order() {
    let inputs = [
        input("y", DataType::INT64, &[4], 0),
        input("tokens", DataType::INT64, &[12], 0),
        input("tokens", DataType::INT64, &[3, 4], 1),
    ];
    let mut batches = Batches::new(&ten(), &inputs, settings(4, Last::Keep, None)).unwrap();
    assert_eq!(batches.unused(), ["x"]);
    assert_eq!(batches.per_epoch(), 3);
    assert_eq!(ints(&batches, 0, 4), [0, 1, 2, 3]);
    assert_eq!(
        ints(&batches, 1, 12),
        [0, 1, 2, 10, 11, 12, 20, 21, 22, 30, 31, 32]
    );
    assert_eq!(
        ints(&batches, 2, 12),
        [0, 10, 20, 30, 1, 11, 21, 31, 2, 12, 22, 32]
    );
    batches.advance();
    assert_eq!(ints(&batches, 0, 4), [4, 5, 6, 7]);
    batches.advance();
    assert_eq!(batches.batch(), [8, 9]);
    assert_eq!(ints(&batches, 2, 6), [80, 90, 81, 91, 82, 92]);
    let wrong = batches.copy(0, &mut [0; 32]).unwrap_err();
    assert_eq!((wrong.expected, wrong.found), (16, 32));
    batches.advance();
    assert_eq!(batches.batch(), [0, 1, 2, 3]);
    assert_eq!(batches.position().epoch, 1);

    let mut batches = Batches::new(&ten(), &inputs, settings(4, Last::Drop, None)).unwrap();
    batches.advance();
    batches.advance();
    assert_eq!(
        (batches.position().epoch, batches.batch()),
        (1, &[0, 1, 2, 3][..])
    );
}

#[test]
fn shuffled_orders() {
    let inputs = [input("x", DataType::FLOAT, &[3, 2], 0)];
    let make = |seed| Batches::new(&ten(), &inputs, settings(3, Last::Keep, Some(seed))).unwrap();
    let epoch = |batches: &mut Batches| {
        let mut order = Vec::new();
        for _ in 0..batches.per_epoch() {
            let mut bytes = vec![0; batches.batch().len() * 8];
            batches.copy(0, &mut bytes).unwrap();
            for (row, sample) in bytes.chunks(8).zip(batches.batch()) {
                let row: Vec<f32> = bytemuck::pod_collect_to_vec(row);
                assert_eq!(row, [*sample as f32, *sample as f32 + 0.5]);
            }
            order.extend_from_slice(batches.batch());
            batches.advance();
        }
        order
    };
    let mut batches = make(1);
    let orders: Vec<Vec<u32>> = (0..3).map(|_| epoch(&mut batches)).collect();
    for order in &orders {
        let mut sorted = order.clone();
        sorted.sort();
        assert_eq!(sorted, (0..10).collect::<Vec<_>>());
    }
    assert_ne!(orders[0], orders[1]);
    assert_ne!(epoch(&mut make(2)), orders[0]);

    // From every position on, a fresh object goes on as this one does.
    let mut batches = make(1);
    for _ in 0..9 {
        let text = serde_json::to_string(batches.position()).unwrap();
        let mut resumed = make(1);
        resumed
            .resume(&serde_json::from_str(&text).unwrap())
            .unwrap();
        let mut original = batches.clone();
        for _ in 0..9 {
            assert_eq!(resumed.batch(), original.batch());
            resumed.advance();
            original.advance();
        }
        batches.advance();
    }
}

/// Every sample is as likely at every place: five standard deviations of the counts.
#[test]
fn orders_are_uniform() {
    let inputs = [input("y", DataType::INT64, &[1], 0)];
    let mut batches = Batches::new(&ten(), &inputs, settings(1, Last::Drop, Some(3))).unwrap();
    let mut counts = [[0u32; 10]; 10];
    for _ in 0..5000 {
        for place in &mut counts {
            place[batches.batch()[0] as usize] += 1;
            batches.advance();
        }
    }
    assert!(
        counts.iter().flatten().all(|c| c.abs_diff(500) < 107),
        "{counts:?}"
    );
}

#[test]
fn resuming_with_something_else() {
    let inputs = [input("y", DataType::INT64, &[4], 0)];
    let make = |last, seed| Batches::new(&ten(), &inputs, settings(4, last, seed)).unwrap();
    let position = make(Last::Drop, Some(1)).position().clone();
    fn refused(mut batches: Batches, position: &Position) -> String {
        message(batches.resume(position).unwrap_err())
    }
    assert_eq!(
        refused(make(Last::Drop, Some(2)), &position),
        "cannot make batches of d.npz: the checkpoint was made with shuffle seed 1, and now it is 2; \
         resume with the data and the batches of the checkpoint"
    );
    assert!(refused(make(Last::Keep, Some(1)), &position).contains("last batch drop"));
    for sample in [8, 3, 12, usize::MAX] {
        let mut position = position.clone();
        position.sample = sample;
        assert!(refused(make(Last::Drop, Some(1)), &position).contains("next sample"));
    }
}

#[test]
fn arrays_that_do_not_fit() {
    let refused = |shape: &[usize], name, data_type, axis, size| {
        let inputs = [
            input("y", DataType::INT64, &[1], 0),
            input(name, data_type, shape, axis),
        ];
        let inputs = if size == 1 { &inputs[..] } else { &inputs[1..] };
        message(Batches::new(&ten(), inputs, settings(size, Last::Drop, None)).unwrap_err())
    };
    assert_eq!(
        refused(&[4, 3], "x", DataType::FLOAT, 0, 4),
        "d.npz: array 'x' is float[10, 2], but the graph reads float[samples, 3]; the first axis \
         counts the samples, the others must be the graph's"
    );
    assert_eq!(
        refused(&[4], "y", DataType::INT32, 0, 4),
        "d.npz: array 'y' is int64[10], but the graph reads int32[samples]; convert the array with \
         .astype() when the file is made"
    );
    assert_eq!(
        refused(&[4, 3], "image", DataType::FLOAT, 0, 4),
        "d.npz: no array 'image', which the graph reads as float[samples, 3]; the file has 'tokens', \
         'x', 'y'; rename an array, or add it"
    );
    assert!(refused(&[6, 2], "x", DataType::FLOAT, 0, 4).contains("is no multiple of 4 samples"));
    assert!(refused(&[], "x", DataType::FLOAT, 0, 4).contains("is no multiple of 4 samples"));
    assert!(refused(&[11], "y", DataType::INT64, 0, 11).contains("do not fill one batch of 11"));
    assert!(refused(&[0], "y", DataType::INT64, 0, 0).contains("a batch of no samples"));

    let uneven = dataset([
        ("x", Tensor::from_i64(&[2], &[1, 2])),
        ("y", Tensor::from_i64(&[1], &[1])),
    ]);
    let inputs = [
        input("x", DataType::INT64, &[1], 0),
        input("y", DataType::INT64, &[1], 0),
    ];
    let error = Batches::new(&uneven, &inputs, settings(1, Last::Drop, None)).unwrap_err();
    assert_eq!(
        message(error),
        "cannot make batches of d.npz: array 'x' has 2 samples, but 'y' has 1; the first axis of every \
         array must count the same samples"
    );
}
