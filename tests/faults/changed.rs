//! Files that change while they are read.

use crate::place::{Place, command};
use crate::trace::{Call, End, Fate, trace};
use std::fs::{self, File};
use std::io::{Seek, SeekFrom, Write};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::Stdio;

/// Makes a model of 17 MiB, which is mapped; smaller ones are read.
fn large(place: &Place, data: bool) {
    use velora_graph::onnx::write::write;
    use velora_graph::text::parse_model;
    let graph = match data {
        true => r#"<float[4456448] c = ["location": "w.bin"]>"#,
        false => "<float[4456448] c = {}>",
    };
    let text = format!(
        r#"<ir_version: 8, opset_import: ["" : 18]>
g (float[4] w) => (float loss, float[4] w_grad)
{}
{{
   w_grad = Identity (w)
   loss = ReduceSum <keepdims = 0> (c)
}}"#,
        graph
    );
    let mut bytes = vec![0; 17 << 20];
    for (i, part) in bytes.chunks_mut(4).enumerate() {
        part.copy_from_slice(&(i as f32).to_le_bytes());
    }
    let mut model = parse_model(&text).unwrap();
    if data {
        fs::write(place.at("in/w.bin"), bytes).unwrap();
    } else {
        model.graph.as_mut().unwrap().initializer[0].raw_data = Some(bytes.into());
    }
    write(&model, &place.at("in/m.onnx")).unwrap();
}

/// Changes the file at each call after the tool has opened it, in turn; what each run does.
fn change_at_each(
    arguments: &str,
    file: &str,
    has_data: bool,
    change: fn(&Path),
    mut check: impl FnMut(usize, Option<i32>, &str, &Place),
) {
    let (mut point, mut step) = (0, 1);
    loop {
        let place = Place::new();
        large(&place, has_data);
        fs::create_dir(place.at("out")).unwrap();
        fs::write(place.at("out/m.onnx"), "old").unwrap();
        let (mut begun, mut count) = (false, 0);
        let fate = |call: &Call| {
            let opens =
                call.name == "openat" && call.path().is_some_and(|path| path == Path::new(file));
            if begun {
                count += 1;
            }
            begun |= opens;
            if begun && count == point + 1 {
                change(&place.at(file));
                count += 1;
            }
            Fate::Happens
        };
        let End::Ended(status, errors) = trace(&mut command(place.path(), arguments), fate) else {
            unreachable!("nothing asks for that")
        };
        assert_eq!(
            status.signal(),
            None,
            "{arguments}, changed at call {point}: {errors}"
        );
        check(point, status.code(), &errors, &place);
        if count <= point {
            assert!(point > 10, "nothing was tested");
            break;
        }
        // Every call at the beginning, and then some.
        point += step;
        step += usize::from(point > 20);
    }
}

/// Whether it ended with one line.
fn is_clear(errors: &str) -> bool {
    errors.starts_with("velora-opt: ") && errors.lines().count() == 1
}

fn truncate(path: &Path) {
    File::options()
        .write(true)
        .open(path)
        .unwrap()
        .set_len(4096)
        .unwrap();
}

fn rewrite(path: &Path) {
    let mut file = File::options().write(true).open(path).unwrap();
    file.seek(SeekFrom::Start(12 << 20)).unwrap();
    file.write_all(&[1; 4096]).unwrap();
}

fn outputs(place: &Place) -> Vec<(String, Vec<u8>)> {
    let names = place
        .files()
        .into_iter()
        .filter(|name| name.starts_with("out/"));
    names
        .map(|name| (name.clone(), place.bytes(&name)))
        .collect()
}

/// What comes out where the files are changed before the tool is run; nothing where it fails then.
fn whole(
    arguments: &str,
    has_data: bool,
    change: impl Fn(&Place),
) -> Option<Vec<(String, Vec<u8>)>> {
    let place = Place::new();
    large(&place, has_data);
    fs::create_dir(place.at("out")).unwrap();
    change(&place);
    let status = place
        .command(arguments)
        .stderr(Stdio::null())
        .status()
        .unwrap();
    status.success().then(|| outputs(&place))
}

/// Where the change comes after the last look at the file, the result is the one without it.
fn check_all(arguments: &str, file: &str, has_data: bool) {
    for change in [truncate as fn(&Path), rewrite] {
        // The change may also come before the first look at the file.
        let whole = [
            whole(arguments, has_data, |_| {}),
            whole(arguments, has_data, |place| change(&place.at(file))),
        ];
        let (mut refused, mut done) = (0, 0);
        change_at_each(
            arguments,
            file,
            has_data,
            change,
            |point, status, errors, place| {
                let what = format!("{arguments}: changed at call {point}: {errors}");
                match status {
                    Some(1) => {
                        assert!(is_clear(errors), "{what}");
                        assert_eq!(place.bytes("out/m.onnx"), b"old", "{what}");
                        refused += 1;
                    }
                    Some(0) => {
                        let out = outputs(place);
                        let is_whole = whole.iter().flatten().any(|whole| *whole == out);
                        assert!(is_whole, "{what}: another result");
                        done += 1;
                    }
                    _ => panic!("{what}: {status:?}"),
                }
            },
        );
        assert!(
            refused > 3 && done > 0,
            "{arguments}: {refused} refused, {done} done"
        );
    }
}

#[test]
fn a_mapped_model() {
    check_all("in/m.onnx -o out/m.onnx -q", "in/m.onnx", false);
}

#[test]
fn data_that_is_moved_into_the_model() {
    check_all(
        "in/m.onnx -o out/m.onnx -q --external-data inline",
        "in/w.bin",
        true,
    );
}

#[test]
fn data_that_is_copied() {
    check_all(
        "in/m.onnx -o out/m.onnx -q --external-data copy",
        "in/w.bin",
        true,
    );
}

/// What only reads a mapping has nobody to ask: the page is not there.
#[test]
fn a_page_that_is_gone() {
    let place = Place::new();
    large(&place, false);
    let fate = |call: &Call| {
        // It is about to be mapped as it was.
        if call.name == "mmap" && call.descriptor() != Some(-1) && call.argument(1) > 16 << 20 {
            truncate(&place.at("in/m.onnx"));
        }
        Fate::Happens
    };
    let end = trace(&mut command(place.path(), "print in/m.onnx"), fate);
    let End::Ended(status, errors) = end else {
        unreachable!("nothing asks for that")
    };
    assert_eq!(
        (status.code(), status.signal()),
        (Some(1), None),
        "{errors}"
    );
    assert!(
        is_clear(&errors) && errors.contains("became shorter"),
        "{errors}"
    );
}
