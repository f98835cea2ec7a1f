//! Several processes that write to one place.

use crate::place::{Place, command, is_temporary};
use crate::trace::{End, Fate, trace};
use std::collections::BTreeSet;
use std::fs;

const GROUPS: [usize; 8] = [1, 2, 4, 8, 16, 32, 64, 3];

/// All of them, again and again, into the same files: in the end these are the files of one of them.
fn write_at_once(processes: usize, rounds: usize) {
    let place = Place::new();
    place.model_with_data("ort/digits_mlp.onnx", "in/m.onnx");
    let arguments = |groups: usize, out: &str| {
        format!(
            "in/m.onnx -o {out}/m.onnx -q --external-data copy --groups {groups} --json {out}/r.json"
        )
    };
    let groups = &GROUPS[..processes];
    let expected: BTreeSet<(Vec<u8>, Vec<u8>)> = groups
        .iter()
        .map(|groups| {
            let out = format!("alone{groups}");
            fs::create_dir(place.at(&out)).unwrap();
            place.run(&arguments(*groups, &out));
            let bytes = |name: &str| place.bytes(&format!("{out}/{name}"));
            (bytes("m.onnx"), bytes("r.json"))
        })
        .collect();
    assert_eq!(
        expected.len(),
        processes,
        "the outputs are to be told apart"
    );
    for _ in 0..rounds {
        fs::create_dir(place.at("out")).unwrap();
        let children: Vec<_> = { groups.iter() }
            .map(|groups| place.command(&arguments(*groups, "out")).spawn().unwrap())
            .collect();
        for mut child in children {
            assert!(child.wait().unwrap().success());
        }
        // Another one may have written the report last.
        let (model, report) = (place.bytes("out/m.onnx"), place.bytes("out/r.json"));
        assert!(expected.iter().any(|(whole, _)| *whole == model));
        assert!(expected.iter().any(|(_, whole)| *whole == report));
        for data in ["data/w.bin", "v.bin"] {
            assert!(place.bytes(&format!("out/{data}")) == place.bytes(&format!("in/{data}")));
        }
        let out = place
            .files()
            .into_iter()
            .filter(|name| name.starts_with("out/"));
        let expected = ["out/data/w.bin", "out/m.onnx", "out/r.json", "out/v.bin"];
        assert_eq!(out.collect::<Vec<_>>(), expected);
        fs::remove_dir_all(place.at("out")).unwrap();
    }
}

#[test]
fn two_at_once() {
    write_at_once(2, 5);
}

#[test]
fn eight_at_once() {
    write_at_once(8, 2);
}

/// A process stands still before each call that has to do with its temporary file, and another one writes to
/// the folder meanwhile: it must not take the file for abandoned.
#[test]
fn a_living_process_keeps_its_file() {
    for has_unnamed in [true, false] {
        let mut point = 0;
        let mut seen = 0;
        loop {
            let place = Place::new();
            place.model("ort/digits_mlp.onnx", "in/m.onnx");
            fs::create_dir(place.at("out")).unwrap();
            let (mut begun, mut count) = (false, 0);
            let fate = |call: &crate::trace::Call| {
                let unnamed = call.name == "openat"
                    && call.argument(2) as i32 & libc::O_TMPFILE == libc::O_TMPFILE;
                if unnamed && !has_unnamed {
                    return Fate::Fails(libc::EOPNOTSUPP);
                }
                begun |= call.path().is_some_and(|path| path.starts_with("out"));
                count += usize::from(begun);
                match begun && count == point + 1 {
                    true => Fate::Stops,
                    false => Fate::Happens,
                }
            };
            let mut first = command(place.path(), "in/m.onnx -o out/a.onnx -q");
            let stopped = match trace(&mut first, fate) {
                End::Stopped(stopped) => stopped,
                End::Ended(status, errors) => {
                    assert!(status.success(), "{errors}");
                    break;
                }
            };
            let temporary = |place: &Place| place.files().iter().any(|name| is_temporary(name));
            seen += usize::from(temporary(&place));
            place.run("in/m.onnx -o out/b.onnx -q --groups 8");
            match stopped.go_on(|_| Fate::Happens) {
                End::Ended(status, errors) => {
                    assert!(status.success(), "stopped at call {point}: {errors}");
                }
                End::Stopped(_) => unreachable!("nothing asks for that"),
            }
            assert!(!temporary(&place), "stopped at call {point}");
            assert!(place.at("out/a.onnx").exists() && place.at("out/b.onnx").exists());
            point += 1;
        }
        assert!(seen > 0, "no temporary file was ever there");
    }
}
