//! Files of arrays: archives that are more than they seem, and headers that lie.

use crate::tool::{BASE, Place, Ran};
use std::io::{Cursor, Write};
use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, ZipWriter};

/// Deflate makes of one byte 1032 at most.
const DEFLATE: u64 = 1032;

const MODEL: &str = r#"<ir_version: 8, opset_import: ["" : 18]>
g (float[8,3] w, float[batch,8] x) => (float loss, float[8,3] w_grad)
   <float[8,3] w = {0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23}>
{
   h = Tanh (x)
   y = MatMul (h, w)
   loss = ReduceSum <keepdims = 0> (y)
   shape = Shape (y)
   dy = ConstantOfShape (shape)
   ht = Transpose <perm = [1, 0]> (h)
   w_grad = MatMul (ht, dy)
}"#;

/// The commands that read arrays; `DATA` is the file.
const COMMANDS: [&str; 6] = [
    "run model.onnx --device cpu --data DATA --steps 1 --save out.safetensors -q",
    "run model.onnx --device cpu --data x.npz --params DATA --steps 1 --save out.safetensors -q",
    "run model.onnx --device cpu --data x.npz --eval DATA --steps 1 --save out.safetensors -q",
    "inspect model.onnx --data DATA --json out.json -q",
    "verify model.onnx model.onnx --data DATA --json out.json -q",
    "calibrate first.onnx --data DATA -o out.onnx -q",
];

fn place() -> Place {
    let place = Place::new();
    place.text("model.onnx", MODEL);
    place.write(
        "x.npz",
        archive("x", &array("<f4", &[4, 8], &[0; 128]), false),
    );
    let first = "model.onnx -o first.onnx --groups 2 --init first-batch -q";
    place.run(first).accepted();
    place
}

/// An array in NumPy's format, whatever its header says.
fn array(descr: &str, shape: &[u64], elements: &[u8]) -> Vec<u8> {
    let shape: String = shape.iter().map(|size| format!("{size}, ")).collect();
    let text = format!("{{'descr': '{descr}', 'fortran_order': False, 'shape': ({shape})}}\n");
    let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
    bytes.extend((text.len() as u16).to_le_bytes());
    bytes.extend(text.bytes());
    bytes.extend(elements);
    bytes
}

/// An archive of one entry.
fn archive(name: &str, content: &[u8], deflated: bool) -> Vec<u8> {
    let mut archive = ZipWriter::new(Cursor::new(Vec::new()));
    let method = match deflated {
        true => CompressionMethod::Deflated,
        false => CompressionMethod::Stored,
    };
    let options = SimpleFileOptions::default().compression_method(method);
    archive.start_file(format!("{name}.npy"), options).unwrap();
    archive.write_all(content).unwrap();
    archive.finish().unwrap().into_inner()
}

/// The place of the only entry of an archive in its directory, and of the directory's end.
fn directory(archive: &[u8]) -> (usize, usize) {
    let find = |magic: &[u8; 4]| archive.windows(4).rposition(|four| four == magic).unwrap();
    (find(b"PK\x01\x02"), find(b"PK\x05\x06"))
}

/// The archive with its entry listed `count` times, under names of its own each, but stored once.
fn listed(archive: &[u8], count: u16) -> Vec<u8> {
    let (begin, end) = directory(archive);
    let entry = &archive[begin..end];
    let mut bytes = archive[..begin].to_vec();
    for number in 0..count {
        let name = format!("{number:05}.npy");
        let mut fixed = entry[..46].to_vec();
        fixed[28..30].copy_from_slice(&(name.len() as u16).to_le_bytes());
        fixed[30..34].fill(0);
        bytes.extend(fixed);
        bytes.extend(name.bytes());
    }
    let length = (bytes.len() - begin) as u32;
    let mut tail = archive[end..].to_vec();
    tail[8..10].copy_from_slice(&count.to_le_bytes());
    tail[10..12].copy_from_slice(&count.to_le_bytes());
    tail[12..16].copy_from_slice(&length.to_le_bytes());
    bytes.extend(tail);
    bytes
}

/// Runs every command with the file as its arrays; each refuses it with a message of all `words`.
fn refused(place: &Place, name: &str, bytes: &[u8], words: &[&str]) {
    place.write(name, bytes);
    let before = place.files();
    for command in COMMANDS {
        let ran = place.run(&command.replace("DATA", name));
        let size = place.bytes(&[name, "model.onnx"]);
        ran.refused(words).within(size);
        assert_eq!(place.files(), before, "{command}: {}", ran.err);
    }
}

fn train(place: &Place, name: &str) -> Ran {
    place.run(&COMMANDS[0].replace("DATA", name))
}

#[test]
fn what_is_as_it_should_be_is_accepted() {
    let place = place();
    for command in COMMANDS {
        if !command.contains("--params") {
            place
                .run(&command.replace("DATA", "x.npz"))
                .accepted()
                .within(10_000);
        }
    }
}

/// Every entry of its own could be taken out; together they would be the file's length squared.
#[test]
fn entries_that_are_stored_once() {
    let place = place();
    let shares = [
        "hostile.npz: array '0000",
        "shares bytes of the file with array '0000",
    ];
    // 2000 times 4 MiB, of 4 KiB.
    let zeros = array("<f4", &[1 << 17, 8], &vec![0; 4 << 20]);
    let bytes = listed(&archive("x", &zeros, true), 2000);
    assert!(bytes.len() < 200_000);
    refused(&place, "hostile.npz", &bytes, &shares);
    // Not compressed, but to be turned around; 500 times 1 MiB.
    let big = array(">f4", &[1 << 15, 8], &vec![0; 1 << 20]);
    let bytes = listed(&archive("x", &big, false), 500);
    refused(&place, "hostile.npz", &bytes, &shares);
}

#[test]
fn sizes_that_lie() {
    let place = place();
    let content = array("<f4", &[4, 8], &[0; 128]);
    // Where the directory has the size, and what it is made.
    for (deflated, size, problem) in [
        (true, 0xffff_fff0_u32, "it claims to be 4294967280 bytes"),
        (true, 50_000, "it claims to be 50000 bytes"),
        (true, 100, "larger than its declared uncompressed size"),
        (false, 0xffff_fff0, "it claims to be 4294967280 bytes"),
        (false, 100, "it claims to be 100 bytes"),
    ] {
        let mut bytes = archive("x", &content, deflated);
        let (begin, _) = directory(&bytes);
        bytes[begin + 24..begin + 28].copy_from_slice(&size.to_le_bytes());
        refused(
            &place,
            "hostile.npz",
            &bytes,
            &["hostile.npz: array 'x'", problem],
        );
    }
    // The stored bytes would reach beyond the file.
    let mut bytes = archive("x", &content, true);
    let (begin, _) = directory(&bytes);
    bytes[begin + 20..begin + 24].copy_from_slice(&0xffff_fff0_u32.to_le_bytes());
    refused(
        &place,
        "hostile.npz",
        &bytes,
        &["hostile.npz: array 'x'", "lie within the file"],
    );
}

#[test]
fn shapes_that_lie() {
    let place = place();
    for (shape, problem) in [
        (vec![1 << 62, 8], "exceeds any memory"),
        (vec![1 << 40], "takes 4398046511104"),
        (vec![0, 1 << 63], "exceeds any memory"),
        (vec![1; 65], "more than 64 axes"),
    ] {
        let bytes = archive("x", &array("<f4", &shape, &[0; 128]), false);
        refused(
            &place,
            "hostile.npz",
            &bytes,
            &["hostile.npz: array 'x'", problem],
        );
    }
}

/// What deflate can do to a file is no lie, and the bound has to bear it.
#[test]
fn much_of_little() {
    let place = place();
    let samples = 1 << 20;
    let content = array("<f4", &[samples, 8], &vec![0; (samples * 32) as usize]);
    place.write("zeros.npz", archive("x", &content, true));
    let ran = train(&place, "zeros.npz");
    ran.accepted();
    let size = place.bytes(&["zeros.npz"]);
    assert!(size < 40_000, "{size}");
    assert!(
        ran.peak <= BASE + 2 * DEFLATE * size,
        "{} of {size}",
        ran.peak
    );
}

/// A name is only a name.
#[test]
fn names_that_are_paths() {
    let place = place();
    let content = array("<f4", &[4, 8], &[0; 128]);
    for name in ["/tmp/x", "../x", "..\\x", "x/../../x"] {
        let bytes = archive(name, &content, false);
        place.write("hostile.npz", bytes);
        let before = place.files();
        train(&place, "hostile.npz").refused(&["no array is named after", name]);
        assert_eq!(place.files(), before);
    }
}

#[test]
fn headers_of_tensors_that_lie() {
    let place = place();
    let file = |length: u64, header: &str, elements: usize| {
        let mut bytes = length.to_le_bytes().to_vec();
        bytes.extend(header.bytes());
        bytes.extend(vec![0; elements]);
        bytes
    };
    let told = |header: &str, elements| file(header.len() as u64, header, elements);
    let x = |shape: &str, begin: u64, end: u64| {
        format!("\"x\":{{\"dtype\":\"F32\",\"shape\":{shape},\"data_offsets\":[{begin},{end}]}}")
    };
    let one = format!("{{{}}}", x("[4,8]", 0, 128));
    for length in [u64::MAX, 1 << 40, 100_000_001, 4000, 3] {
        let bytes = file(length, &one, 128);
        refused(
            &place,
            "hostile.safetensors",
            &bytes,
            &["hostile.safetensors: "],
        );
    }
    let y = "\"y\":{\"dtype\":\"F32\",\"shape\":[4,8],\"data_offsets\":[64,192]}";
    let z = "\"y\":{\"dtype\":\"F32\",\"shape\":[4,8],\"data_offsets\":[0,128]}";
    for (header, elements) in [
        // Overlapping, the same twice, with a gap, beyond the end, backwards, of another size.
        (format!("{{{},{y}}}", x("[4,8]", 0, 128)), 192),
        (format!("{{{},{z}}}", x("[4,8]", 0, 128)), 128),
        (format!("{{{}}}", x("[4,8]", 64, 192)), 192),
        (format!("{{{}}}", x("[4,8]", 0, 128)), 100),
        (format!("{{{}}}", x("[4,8]", 128, 0)), 128),
        (format!("{{{}}}", x("[4611686018427387904,8]", 0, 128)), 128),
        (format!("{{{}}}", x("[4,8]", 0, u64::MAX)), 128),
    ] {
        let bytes = told(&header, elements);
        refused(
            &place,
            "hostile.safetensors",
            &bytes,
            &["hostile.safetensors: "],
        );
    }
    let nested = format!("{}{}", "[".repeat(500_000), "]".repeat(500_000));
    refused(
        &place,
        "hostile.safetensors",
        &told(&nested, 0),
        &["hostile.safetensors: "],
    );
    // Many small entries: what is kept of each is longer than its text.
    let entries: Vec<String> = (0..20_000)
        .map(|n| {
            format!(
                "\"{n}\":{{\"dtype\":\"U8\",\"shape\":[],\"data_offsets\":[{n},{}]}}",
                n + 1
            )
        })
        .collect();
    let bytes = told(&format!("{{{}}}", entries.join(",")), 20_000);
    place.write("many.safetensors", &bytes);
    let ran = train(&place, "many.safetensors");
    ran.refused(&["no array is named after"])
        .within(bytes.len() as u64);
}
