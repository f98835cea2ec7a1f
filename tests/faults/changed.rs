//! Files that change while they are read.

use crate::place::{Place, command, copy_folder};
use crate::trace::{Call, End, Fate, trace};
use std::fs::{self, File};
use std::io::{Seek, SeekFrom, Write};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::Stdio;
use velora_graph::onnx::write::write;
use velora_graph::text::parse_model;

/// Where a model's weights are.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Weights {
    /// In a file that is small enough to be read at once.
    Read,
    /// In a file that is mapped.
    Mapped,
    /// In another file.
    Beside,
}

/// Makes a model.
fn make(weights: Weights) -> Place {
    let place = Place::new();
    fs::create_dir(place.at("out")).unwrap();
    let floats: usize = match weights {
        Weights::Read => 1 << 18,
        Weights::Mapped | Weights::Beside => 17 << 18,
    };
    let location = match weights {
        Weights::Beside => r#"["location": "w.bin"]"#,
        _ => "{}",
    };
    let text = format!(
        r#"<ir_version: 8, opset_import: ["" : 18]>
g (float[4] w) => (float loss, float[4] w_grad)
<float[{floats}] c = {location}>
{{
   w_grad = Identity (w)
   loss = ReduceSum <keepdims = 0> (c)
}}"#
    );
    let bytes = (0..=u8::MAX).cycle().take(4 * floats).collect::<Vec<u8>>();
    let mut model = parse_model(&text).unwrap();
    match weights {
        Weights::Beside => fs::write(place.at("in/w.bin"), bytes).unwrap(),
        _ => model.graph.as_mut().unwrap().initializer[0].raw_data = Some(bytes.into()),
    }
    write(&model, &place.at("in/m.onnx")).unwrap();
    place
}

/// Changes the file at each call after the tool has opened it, in turn; what each run does.
fn change_at_each(
    arguments: &str,
    file: &str,
    before: &Place,
    change: fn(&Path),
    mut check: impl FnMut(usize, Option<i32>, &str, &Place),
) {
    let (mut point, mut step) = (0, 1);
    loop {
        let place = Place::new();
        copy_folder(before.path(), place.path());
        fs::write(place.at("out/m.onnx"), "old").unwrap();
        let (mut begun, mut count) = (false, 0);
        let fate = |call: &Call| {
            // Data files are opened from their folder, which is opened from the one above.
            let opens = call.name == "openat"
                && (call.path()).is_some_and(|path| Path::new(file).ends_with(path));
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
    let middle = file.metadata().unwrap().len() / 2;
    file.seek(SeekFrom::Start(middle)).unwrap();
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
    before: &Place,
    change: impl Fn(&Place),
) -> Option<Vec<(String, Vec<u8>)>> {
    let place = Place::new();
    copy_folder(before.path(), place.path());
    change(&place);
    let status = place
        .command(arguments)
        .stderr(Stdio::null())
        .status()
        .unwrap();
    status.success().then(|| outputs(&place))
}

/// Where the change comes after the last look at the file, the result is the one without it.
fn check_all(arguments: &str, file: &str, weights: Weights) {
    let before = make(weights);
    for change in [truncate as fn(&Path), rewrite] {
        // The change may also come before the first look at the file.
        let whole = [
            whole(arguments, &before, |_| {}),
            whole(arguments, &before, |place| change(&place.at(file))),
        ];
        let (mut refused, mut done) = (0, 0);
        change_at_each(
            arguments,
            file,
            &before,
            change,
            |point, status, errors, place| {
                let what = format!("{arguments}: changed at call {point}: {errors}");
                match status {
                    Some(1) => {
                        assert!(is_clear(errors), "{what}");
                        assert_eq!(place.bytes("out/m.onnx"), b"old", "{what}");
                        let mut files = place.files();
                        files.retain(|name| name.starts_with("out/"));
                        assert_eq!(files, ["out/m.onnx"], "{what}");
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
            refused > 0 && done > 0,
            "{arguments}: {refused} refused, {done} done"
        );
    }
}

#[test]
fn a_mapped_model() {
    check_all("in/m.onnx -o out/m.onnx -q", "in/m.onnx", Weights::Mapped);
}

#[test]
fn a_model_that_is_read_at_once() {
    check_all("in/m.onnx -o out/m.onnx -q", "in/m.onnx", Weights::Read);
}

#[test]
fn data_that_is_moved_into_the_model() {
    check_all(
        "in/m.onnx -o out/m.onnx -q --external-data inline",
        "in/w.bin",
        Weights::Beside,
    );
}

#[test]
fn data_that_is_copied() {
    check_all(
        "in/m.onnx -o out/m.onnx -q --external-data copy",
        "in/w.bin",
        Weights::Beside,
    );
}

/// What only reads a mapping has nobody to ask: the page is not there.
#[test]
fn a_page_that_is_gone() {
    let place = make(Weights::Mapped);
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
