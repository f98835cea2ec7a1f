//! Files that are none: pipes, devices, folders and sockets where a file should be.

use crate::tool::Place;
use std::fs;
use std::process::Command;

/// A folder with one of each.
fn place() -> Place {
    let place = Place::new();
    let made = Command::new("mkfifo").arg(place.at("fifo")).status();
    assert!(made.unwrap().success());
    fs::create_dir(place.at("folder")).unwrap();
    std::os::unix::fs::symlink("/dev/zero", place.at("zero")).unwrap();
    place.write("empty", "");
    place.text(
        "model.onnx",
        r#"<ir_version: 8, opset_import: ["" : 18]>
g (float[2,1] w, float[batch,2] x) => (float loss, float[2,1] w_grad) <float[2,1] w = {1,2}>
{
   y = MatMul (x, w)
   loss = ReduceSum <keepdims = 0> (y)
   shape = Shape (y)
   dy = ConstantOfShape (shape)
   xt = Transpose <perm = [1, 0]> (x)
   w_grad = MatMul (xt, dy)
}"#,
    );
    place
}

#[test]
fn in_the_place_of_a_model() {
    let place = place();
    for command in [
        "FILE -o out.onnx",
        "inspect FILE",
        "print FILE",
        "verify FILE model.onnx",
        "verify model.onnx FILE",
        "run FILE --data x.npz",
        "calibrate FILE --data x.npz -o out.onnx",
        "merge FILE x.npz -o out.onnx",
    ] {
        let before = place.files();
        for file in ["fifo", "folder", "zero"] {
            let ran = place.run(&command.replace("FILE", file));
            ran.refused(&[file, "is not a regular file"]).within(0);
        }
        place
            .run(&command.replace("FILE", "empty"))
            .refused(&["empty", "is this an ONNX model?"]);
        assert_eq!(place.files(), before, "{command}");
    }
}

#[test]
fn in_the_place_of_arrays() {
    let place = place();
    for command in [
        "run model.onnx --device cpu --data FILE --save out.safetensors",
        "inspect model.onnx --data FILE --json out.json",
        "verify model.onnx model.onnx --data FILE --json out.json",
        "merge model.onnx FILE -o out.onnx",
    ] {
        let before = place.files();
        for file in ["fifo", "folder", "zero"] {
            let ran = place.run(&command.replace("FILE", file));
            ran.refused(&[file, "is not a regular file"]).within(0);
        }
        place
            .run(&command.replace("FILE", "empty"))
            .refused(&["empty"]);
        assert_eq!(place.files(), before, "{command}");
    }
}

/// A plan may come through a pipe, but none is without end.
#[test]
fn in_the_place_of_a_plan() {
    let place = place();
    let before = place.files();
    let ran = place.run("model.onnx -o out.onnx --plan zero");
    ran.refused(&["zero", "longer than"]).within(16 << 20);
    place
        .run("model.onnx -o out.onnx --plan folder")
        .refused(&["folder"])
        .within(0);
    let nested = format!(
        "version = 1\na = {}{}\n",
        "[".repeat(200_000),
        "]".repeat(200_000)
    );
    place.write("plan.toml", &nested);
    place
        .run("model.onnx -o out.onnx --plan plan.toml")
        .refused(&["plan.toml"])
        .within(1 << 20);
    fs::remove_file(place.at("plan.toml")).unwrap();
    assert_eq!(place.files(), before);
}
