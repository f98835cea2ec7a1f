//! Outputs in the places of inputs.

use crate::place::Place;
use std::fs;
use std::os::unix::fs::symlink;

const MLP: &str = "ort/digits_mlp.onnx";

/// However the model's own place is spelt, it gets the result; links to it are replaced themselves.
#[test]
fn the_model_is_replaced_and_nothing_that_is_linked_to_it() {
    let place = Place::new();
    place.model(MLP, "in/m.onnx");
    let original = place.bytes("in/m.onnx");
    place.run("in/m.onnx -o result.onnx -q");
    let result = place.bytes("result.onnx");
    assert!(original != result);
    for (setup, output) in [
        (None, "in/m.onnx"),
        (None, "./in/m.onnx"),
        (None, "in/../in/m.onnx"),
        (Some("symlink"), "link.onnx"),
        (Some("hard link"), "link.onnx"),
        (Some("folder"), "folder/m.onnx"),
    ] {
        for model in ["in/m.onnx", output] {
            let place = Place::new();
            place.model(MLP, "in/m.onnx");
            match setup {
                Some("symlink") => symlink("in/m.onnx", place.at("link.onnx")).unwrap(),
                Some("hard link") => {
                    fs::hard_link(place.at("in/m.onnx"), place.at("link.onnx")).unwrap()
                }
                Some(_) => symlink("in", place.at("folder")).unwrap(),
                None => {}
            }
            let arguments = format!("{model} -o {output} -q");
            place.run(&arguments);
            assert!(place.bytes(output) == result, "{arguments}");
            let is_link = output == "link.onnx";
            let kept = if is_link { &original } else { &result };
            assert!(place.bytes("in/m.onnx") == *kept, "{arguments}");
            assert!(!fs::symlink_metadata(place.at(output)).unwrap().is_symlink());
        }
    }
}

/// No output takes the place of data that a model needs, or of what the work is done from.
#[test]
fn inputs_are_spared() {
    let place = Place::new();
    place.model_with_data(MLP, "in/m.onnx");
    fs::create_dir(place.at("out")).unwrap();
    symlink("in/data", place.at("linked")).unwrap();
    let samples = "models/data/digits_train.npz";
    let before: Vec<_> = place
        .files()
        .iter()
        .filter(|name| *name != "linked")
        .map(|name| (name.clone(), place.bytes(name)))
        .collect();
    for data in [
        "in/v.bin",
        "in/data/w.bin",
        "./in/data/../v.bin",
        "linked/w.bin",
    ] {
        for arguments in [
            format!("in/m.onnx -o {data}"),
            format!("in/m.onnx -o {data} --external-data inline"),
            format!("in/m.onnx -o in/o.onnx --json {data}"),
            format!("in/m.onnx -o in/o.onnx --html {data}"),
            format!("in/m.onnx -o in/o.onnx --emit-plan {data}"),
            format!("inspect in/m.onnx --json {data}"),
            format!("verify in/m.onnx in/m.onnx --json {data}"),
            format!("run in/m.onnx --data {samples} --steps 1 --save {data}"),
            format!("run in/m.onnx --data {samples} --steps 1 --log {data}"),
            format!("run in/m.onnx --data {samples} --steps 1 --checkpoint {data}"),
        ] {
            let message = place.fail(&arguments);
            assert!(
                message.contains("would replace the data file"),
                "{arguments}: {message}"
            );
        }
    }
    place.run("in/m.onnx -o in/o.onnx -q");
    fs::remove_file(place.at("in/o.onnx")).unwrap();
    for (name, bytes) in &before {
        assert!(place.bytes(name) == *bytes, "{name} changed");
    }
    assert_eq!(place.files().len(), before.len() + 1);
}
