//! References to external data that lead where they should not, for every command that follows them.

use crate::tool::{Place, Ran};
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::fs::symlink;
use std::process::Command;
use velora_graph::onnx::read::{UnknownFields, read};
use velora_graph::onnx::schema::{ModelProto, StringStringEntryProto, TensorProto};
use velora_runtime::data::safetensors;
use velora_runtime::tensor::Tensor;

/// A layer whose gradient can be compressed, and two constants in a file.
const MODEL: &str = r#"<ir_version: 8, opset_import: ["" : 18]>
g (float[8,3] w, float[batch,8] x) => (float loss, float[8,3] w_grad)
   <float[8,3] w = {0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23},
    float[3] c = ["location": "w.bin", "offset": "0", "length": "12"],
    float[3] d = ["location": "w.bin", "offset": "12", "length": "12"]>
{
   h = Tanh (x)
   y = MatMul (h, w)
   s = Mul (y, c)
   r = Mul (s, d)
   loss = ReduceSum <keepdims = 0> (r)
   shape = Shape (y)
   one = ConstantOfShape (shape)
   dr = Mul (one, d)
   dy = Mul (dr, c)
   ht = Transpose <perm = [1, 0]> (h)
   w_grad = MatMul (ht, dy)
}"#;

/// The commands that read or hand on external data.
const COMMANDS: [(&str, &str); 9] = [
    ("keep", "model.onnx -o out.onnx -q"),
    ("copy", "model.onnx -o out/out.onnx -q --external-data copy"),
    (
        "inline",
        "model.onnx -o out/out.onnx -q --external-data inline",
    ),
    (
        "verify",
        "verify model.onnx model.onnx --json out/out.json -q",
    ),
    (
        "verify --data",
        "verify model.onnx model.onnx --data x.safetensors --json out/out.json -q",
    ),
    (
        "inspect --data",
        "inspect model.onnx --data x.safetensors --json out/out.json -q",
    ),
    (
        "run",
        "run model.onnx --device cpu --data x.safetensors --steps 1 --save out/out.safetensors -q",
    ),
    (
        "calibrate",
        "calibrate model.onnx --data x.safetensors -o out.onnx -q",
    ),
    (
        "merge",
        "merge model.onnx adapter.safetensors -o out.onnx -q",
    ),
];

/// A folder with the models, data, and files of weights inside and outside.
fn place() -> Place {
    let place = Place::new();
    fs::create_dir(place.at("outside")).unwrap();
    fs::write(place.at("outside/secret"), [0; 24]).unwrap();
    fs::create_dir_all(place.at("in/out")).unwrap();
    place.write("in/w.bin", [0; 24]);
    place.text("in/model.onnx", MODEL);
    let x = Tensor::from_f32(&[4, 8], &[0.5; 32]);
    safetensors::write(
        &place.at("in/x.safetensors"),
        &BTreeMap::new(),
        [("x", x.view())],
    )
    .unwrap();
    let metadata = [("format", "velora-adapter/1"), ("layers", "[]")];
    let metadata = metadata.map(|(key, text)| (key.to_owned(), text.to_owned()));
    safetensors::write(&place.at("in/adapter.safetensors"), &metadata.into(), []).unwrap();
    // What `calibrate` takes is a rewritten model.
    in_folder(
        &place,
        "model.onnx -o first.onnx --groups 2 --init first-batch -q",
    )
    .accepted();
    place
}

fn in_folder(place: &Place, arguments: &str) -> Ran {
    place.run_in("in", arguments)
}

/// Runs every command on the model with other references of `d`, and checks that each refuses it, with a
/// message of all `words`, and leaves all files as they were.
fn refused(place: &Place, entries: &[(&str, &str)], words: &[&str]) {
    for (name, arguments) in COMMANDS {
        let original = match name {
            "calibrate" => "in/first.onnx",
            _ => "in/model.onnx",
        };
        let mut model = read(&place.at(original), UnknownFields::Refuse).unwrap();
        refer(&mut model, "d", entries);
        place.model("in/hostile.onnx", &model);
        let before = place.files();
        let ran = in_folder(place, &arguments.replace("model.onnx", "hostile.onnx"));
        assert_eq!(ran.status, Some(1), "{name}: {ran:?}");
        ran.refused(words).within(10_000);
        assert_eq!(place.files(), before, "{name}: {}", ran.err);
    }
    // What only shows the graph opens no file of weights.
    for arguments in ["inspect hostile.onnx -q", "print hostile.onnx"] {
        in_folder(place, arguments).accepted();
    }
}

fn refer(model: &mut ModelProto, name: &str, entries: &[(&str, &str)]) {
    let tensors = &mut model.graph.as_mut().unwrap().initializer;
    let named = |tensor: &&mut TensorProto| tensor.name() == name;
    let tensor = tensors.iter_mut().find(named).unwrap();
    let entry = |(key, value): &(&str, &str)| StringStringEntryProto {
        key: Some((*key).to_owned()),
        value: Some((*value).to_owned()),
    };
    tensor.external_data = entries.iter().map(entry).collect();
}

#[test]
fn what_is_as_it_should_be_is_accepted() {
    let place = place();
    for (name, arguments) in COMMANDS {
        let arguments = match name {
            "calibrate" => arguments.replace("model.onnx", "first.onnx"),
            _ => arguments.to_owned(),
        };
        in_folder(&place, &arguments).accepted().within(10_000);
    }
    // One range for two tensors: weights that are tied.
    let mut model = read(&place.at("in/model.onnx"), UnknownFields::Refuse).unwrap();
    refer(
        &mut model,
        "d",
        &[("location", "./w.bin"), ("length", "12")],
    );
    place.model("in/hostile.onnx", &model);
    for (_, arguments) in &COMMANDS[..7] {
        in_folder(&place, &arguments.replace("model.onnx", "hostile.onnx")).accepted();
    }
}

#[test]
fn out_of_the_folder() {
    let place = place();
    let secret = place.at("outside/secret");
    let d = "tensor \"d\"";
    let leaves = [d, "may leave the folder"];
    refused(&place, &[("location", "../outside/secret")], &leaves);
    refused(&place, &[("location", "out/../../outside/secret")], &leaves);
    refused(&place, &[("location", "..\\outside\\secret")], &leaves);
    refused(&place, &[("location", secret.to_str().unwrap())], &leaves);
    refused(&place, &[("location", "/dev/zero")], &leaves);
    refused(&place, &[("location", "")], &[d, "no location"]);
}

/// A model from standard input has no folder, not even the one that the tool runs in.
#[test]
fn of_a_model_without_a_folder() {
    let place = place();
    for (name, arguments) in COMMANDS {
        if name.starts_with("verify") {
            continue;
        }
        let file = match name {
            "calibrate" => "in/first.onnx",
            _ => "in/model.onnx",
        };
        fs::copy(place.at(file), place.at("model.onnx")).unwrap();
        for data in ["w.bin", "x.safetensors", "adapter.safetensors"] {
            fs::copy(place.at("in").join(data), place.at(data)).unwrap();
        }
        fs::create_dir_all(place.at("out")).unwrap();
        let before = place.files();
        let input = File::open(place.at("model.onnx")).unwrap();
        let arguments = arguments.replace("model.onnx", "-");
        let ran = place.run_with(&arguments, input.into());
        ran.refused(&["standard input has external data", "'d'"]);
        assert_eq!(place.files(), before, "{name}");
    }
}

#[test]
fn links() {
    let place = place();
    let d = "tensor \"d\"";
    symlink("../outside/secret", place.at("in/link.bin")).unwrap();
    refused(&place, &[("location", "link.bin")], &[d, "symbolic link"]);
    symlink("../outside", place.at("in/folder")).unwrap();
    refused(
        &place,
        &[("location", "folder/secret")],
        &[d, "folder is a symbolic link"],
    );
    // Also where the link stays inside.
    symlink("w.bin", place.at("in/inner.bin")).unwrap();
    refused(&place, &[("location", "inner.bin")], &[d, "symbolic link"]);
    fs::hard_link(place.at("outside/secret"), place.at("in/hard.bin")).unwrap();
    refused(
        &place,
        &[("location", "hard.bin")],
        &[d, "several hard links"],
    );
}

#[test]
fn no_plain_file() {
    let place = place();
    let regular = ["tensor \"d\"", "is not a regular file"];
    refused(&place, &[("location", "out")], &regular);
    refused(&place, &[("location", ".")], &regular);
    // Opening it would wait for somebody who writes.
    let made = Command::new("mkfifo").arg(place.at("in/fifo")).status();
    assert!(made.unwrap().success());
    refused(&place, &[("location", "fifo")], &regular);
    let _socket = std::os::unix::net::UnixListener::bind(place.at("in/socket")).unwrap();
    refused(&place, &[("location", "socket")], &regular);
    refused(
        &place,
        &[("location", "missing")],
        &["tensor \"d\"", "cannot find"],
    );
    let long = "n".repeat(5000);
    refused(
        &place,
        &[("location", &long)],
        &["tensor \"d\"", "cannot find"],
    );
}

/// A device in the folder, which only a superuser can make.
#[test]
fn a_device() {
    let place = place();
    let made = Command::new("mknod")
        .arg(place.at("in/zero"))
        .args(["c", "1", "5"])
        .output();
    if !made.is_ok_and(|made| made.status.success()) {
        eprintln!("skipped: devices cannot be made here");
        return;
    }
    refused(
        &place,
        &[("location", "zero")],
        &["tensor \"d\"", "is not a regular file"],
    );
}

#[test]
fn ranges() {
    let place = place();
    let at = |offset, length| {
        [
            ("location", "w.bin"),
            ("offset", offset),
            ("length", length),
        ]
    };
    let outside = ["tensor \"d\"", "\"w.bin\" has 24 bytes", "is needed"];
    refused(&place, &at("25", "0"), &outside);
    refused(&place, &at("13", "12"), &outside);
    refused(&place, &at("0", "25"), &outside);
    refused(&place, &at("18446744073709551615", "12"), &outside);
    refused(&place, &at("12", "18446744073709551615"), &outside);
    refused(
        &place,
        &at("4611686018427387904", "4611686018427387904"),
        &outside,
    );
    for number in [
        "-1",
        "0x0c",
        "1e1",
        "12.0",
        " 12",
        "١٢",
        "",
        "18446744073709551616",
    ] {
        refused(
            &place,
            &at(number, "12"),
            &["tensor \"d\"", "offset is", "a decimal number"],
        );
        refused(
            &place,
            &at("12", number),
            &["tensor \"d\"", "length is", "a decimal number"],
        );
    }
    let twice = [
        ("location", "w.bin"),
        ("location", "missing"),
        ("offset", "12"),
    ];
    refused(&place, &twice, &["tensor \"d\"", "given twice"]);
    // Fewer and more bytes than the dims say.
    let unfit = ["tensor \"d\"", "the dims [3] take 12 bytes"];
    refused(&place, &at("12", "8"), &unfit);
    refused(&place, &at("4", "16"), &unfit);
}

#[test]
fn ranges_that_overlap() {
    let place = place();
    place.write("in/w.bin", [0; 40]);
    for offset in ["1", "4", "11"] {
        let entries = [("location", "w.bin"), ("offset", offset), ("length", "12")];
        refused(
            &place,
            &entries,
            &["tensor \"d\"", "overlap those of tensor \"c\""],
        );
        // However the path is spelt, and where the length is to be worked out.
        let entries = [("location", "././w.bin"), ("offset", offset)];
        refused(
            &place,
            &entries,
            &["tensor \"d\"", "overlap those of tensor \"c\""],
        );
    }
}

/// Dimensions of which the product is more than there is, of tensors in the file and outside.
#[test]
fn huge_dims() {
    let place = place();
    for dims in [
        vec![1 << 62],
        vec![i64::MAX, i64::MAX, i64::MAX],
        vec![1 << 32, 1 << 32],
        vec![1 << 20, 3],
        vec![-3],
    ] {
        for (name, arguments) in COMMANDS {
            if name == "calibrate" {
                continue;
            }
            let mut model = read(&place.at("in/model.onnx"), UnknownFields::Refuse).unwrap();
            let tensors = &mut model.graph.as_mut().unwrap().initializer;
            for tensor in tensors.iter_mut().filter(|tensor| tensor.name() == "d") {
                tensor.dims.clone_from(&dims);
            }
            place.model("in/hostile.onnx", &model);
            let before = place.files();
            let ran = in_folder(&place, &arguments.replace("model.onnx", "hostile.onnx"));
            assert_eq!(ran.status, Some(1), "{name}, {dims:?}: {ran:?}");
            ran.refused(&["d"]).within(10_000);
            assert_eq!(place.files(), before, "{name}");
        }
    }
}
