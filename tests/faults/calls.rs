//! Every system call in turn is the last one, or fails: from the first one on that touches the output's
//! folder, for each kind of writing.
//!
//! Afterwards each output is what it was or what it is to be, byte for byte, all other files are as they were,
//! and what did not succeed says why in one line.

use crate::place::{Place, command, copy_folder, files, is_temporary};
use crate::trace::{Call, End, Fate, trace};
use std::collections::BTreeMap;
use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::ExitStatus;

/// One way to write files.
struct Scenario {
    /// The files as they are before.
    before: Place,
    /// The tool's arguments.
    arguments: &'static str,
    /// From the first call on that names something below it, all calls are tried.
    watched: &'static str,
    /// Whether the file system has files without a name.
    has_unnamed: bool,
    /// What each output may hold at any time: what it is at the end, and what it is on the way; beside what it
    /// was before.
    outputs: BTreeMap<&'static str, Vec<Vec<u8>>>,
}

/// What was tried.
#[derive(Debug, Default)]
struct Tried {
    calls: usize,
    kills: usize,
    failures: usize,
    /// Failures after which the tool succeeded all the same.
    survived: usize,
    /// Kills after which a temporary file was there.
    left: usize,
}

impl Scenario {
    /// `prepare` makes the files that are there before; `outputs` are what the arguments write.
    fn new(
        arguments: &'static str,
        watched: &'static str,
        outputs: &[&'static str],
        prepare: impl FnOnce(&Place),
    ) -> Self {
        let before = Place::new();
        prepare(&before);
        let mut scenario = Scenario {
            before,
            arguments,
            watched,
            has_unnamed: true,
            outputs: outputs.iter().map(|name| (*name, Vec::new())).collect(),
        };
        scenario.also_by(arguments);
        scenario
    }

    /// What these arguments write is in order, too.
    fn also_by(&mut self, arguments: &str) {
        let place = Place::new();
        copy_folder(self.before.path(), place.path());
        place.run(arguments);
        for (name, contents) in &mut self.outputs {
            contents.insert(0, comparable(name, place.bytes(name)));
        }
    }

    fn without_unnamed(mut self) -> Self {
        self.has_unnamed = false;
        self
    }

    /// Tries everything.
    fn try_all(&self) {
        let all = tries_all();
        let mut tried = Tried::default();
        let mut names = Vec::new();
        let (status, errors, _) = self.trace(|call| {
            names.push(call.name);
            Fate::Happens
        });
        assert!(status.success(), "{}: {errors}", self.arguments);
        tried.calls = names.len();
        for (point, name) in names.iter().enumerate() {
            if all || changes_files(name) {
                self.kill(point, name, &mut tried);
            }
            let errors = match all {
                true => errors_of(name),
                false => errors_of(name).get(..1).unwrap_or_default(),
            };
            for error in errors {
                self.fail(point, name, *error, &mut tried);
            }
        }
        println!("{}: {tried:?}", self.arguments);
        assert!(
            tried.calls > 10 && tried.survived < tried.failures,
            "{tried:?}: nothing was tested"
        );
    }

    fn kill(&self, point: usize, name: &str, tried: &mut Tried) {
        let what = format!("{}: killed at call {point}, {name}", self.arguments);
        let (status, errors, place) = self.trace(at(point, name, Fate::Kills));
        // Threads may be faster once than another time.
        assert!(
            status.signal() == Some(libc::SIGKILL) || status.success(),
            "{what}: {status} {errors}"
        );
        tried.kills += 1;
        self.check(&place, &what);
        if files(place.path()).iter().any(|file| is_temporary(file)) {
            tried.left += 1;
            place.run(self.arguments);
            self.check_new(&place, &format!("{what}, then run again"));
        }
    }

    fn fail(&self, point: usize, name: &str, error: i32, tried: &mut Tried) {
        let system = std::io::Error::from_raw_os_error(error);
        let what = format!("{}: call {point}, {name}: {system}", self.arguments);
        let (status, errors, place) = self.trace(at(point, name, Fate::Fails(error)));
        tried.failures += 1;
        self.check(&place, &what);
        match (status.code(), status.signal()) {
            (Some(0), None) => {
                tried.survived += 1;
                self.check_new(&place, &what);
            }
            (Some(1), None) => {
                let is_line = errors.starts_with("velora-opt: ") && errors.lines().count() == 1;
                assert!(is_line, "{what}: {errors}");
                assert!(
                    error != libc::EINTR,
                    "{what} is no reason to fail: {errors}"
                );
                let left = files(place.path());
                let left: Vec<_> = left.iter().filter(|file| is_temporary(file)).collect();
                assert!(left.is_empty(), "{what}: left {left:?}");
            }
            _ => panic!("{what}: {status}: {errors}"),
        }
    }

    /// Runs in a fresh copy of the files; `fate` decides on the calls that are tried.
    fn trace(&self, mut fate: impl FnMut(&Call) -> Fate) -> (ExitStatus, String, Place) {
        let place = Place::new();
        copy_folder(self.before.path(), place.path());
        let watched = place.path().canonicalize().unwrap().join(self.watched);
        let all = tries_all();
        let mut begun = false;
        let end = trace(&mut command(place.path(), self.arguments), |call| {
            if !self.has_unnamed && makes_unnamed(call) {
                return Fate::Fails(libc::EOPNOTSUPP);
            }
            if !is_of_files(call) {
                return Fate::Happens;
            }
            let is_there =
                || { call.target(place.path()) }.is_some_and(|target| target.starts_with(&watched));
            let is_tried = match all {
                true => begun || is_there(),
                false => is_there(),
            };
            begun |= is_tried;
            match is_tried {
                true => fate(call),
                false => Fate::Happens,
            }
        });
        match end {
            End::Ended(status, errors) => (status, errors, place),
            End::Stopped(_) => unreachable!("nothing asks for that"),
        }
    }

    /// Each output is an old or a new one, and all else is as before.
    fn check(&self, place: &Place, what: &str) {
        for (name, contents) in &self.outputs {
            let read = |folder: &Path| fs::read(folder.join(name)).ok();
            let (was, is) = (read(self.before.path()), read(place.path()));
            let is_new = |is: Vec<u8>| contents.contains(&comparable(name, is));
            assert!(
                is == was || is.is_some_and(is_new),
                "{what}: {name} is neither the old file nor the new one"
            );
        }
        let others = |folder: &Path| -> BTreeMap<String, Vec<u8>> {
            let mut files = files(folder);
            files.retain(|name| !is_temporary(name) && !self.outputs.contains_key(name.as_str()));
            let read = |name: String| (name.clone(), fs::read(folder.join(name)).unwrap());
            files.into_iter().map(read).collect()
        };
        assert!(
            others(place.path()) == others(self.before.path()),
            "{what}: other files changed: {:?}",
            place.files()
        );
    }

    /// All outputs are the new ones, and nothing else is there.
    fn check_new(&self, place: &Place, what: &str) {
        for (name, contents) in &self.outputs {
            let is = comparable(name, place.bytes(name));
            let new = contents.last().is_some_and(|new| *new == is);
            assert!(new, "{what}: {name} is not the new file");
        }
        let mut files = files(place.path());
        files.retain(|name| is_temporary(name));
        assert!(files.is_empty(), "{what}: left {files:?}");
    }
}

/// Whether all calls are tried with all errors, or only those that have to do with the watched folder.
fn tries_all() -> bool {
    std::env::var("FAULTS").is_ok_and(|which| which == "all")
}

/// Gives the call with this number and name a fate, or the next one of that name, where threads have changed
/// places; and lets all others happen.
fn at(point: usize, name: &str, fate: Fate) -> impl FnMut(&Call) -> Fate {
    let (mut count, mut is_done) = (0, false);
    move |call| {
        count += 1;
        if is_done || count <= point || call.name != name {
            return Fate::Happens;
        }
        // The standard library takes for granted that a folder can be closed, and panics.
        let is_folder = || {
            call.target(Path::new(""))
                .is_some_and(|target| target.is_dir())
        };
        if call.name == "close" && fate != Fate::Kills && is_folder() {
            is_done = true;
            return Fate::Happens;
        }
        is_done = true;
        fate
    }
}

/// Whether files may be others after a call of that name. A process that is killed before another call leaves
/// what one leaves that is killed before the next one of these.
fn changes_files(name: &str) -> bool {
    !matches!(
        name,
        "read"
            | "pread64"
            | "stat"
            | "lstat"
            | "fstat"
            | "newfstatat"
            | "statx"
            | "access"
            | "faccessat"
            | "lseek"
            | "mmap"
            | "getdents64"
            | "readlink"
            | "fcntl"
    )
}

/// Whether a call has to do with files other than the standard streams.
fn is_of_files(call: &Call) -> bool {
    match call.descriptor() {
        // No file is mapped.
        Some(-1) => false,
        Some(descriptor) => descriptor > 2,
        None => true,
    }
}

fn makes_unnamed(call: &Call) -> bool {
    let flags = call.argument(2) as i32;
    call.name == "openat" && flags & libc::O_TMPFILE == libc::O_TMPFILE
}

/// What a call may fail with.
fn errors_of(name: &str) -> &'static [i32] {
    use libc::{EINTR, EIO, ENOSPC};
    match name {
        "write" | "openat" | "copy_file_range" | "fsync" | "ftruncate" => &[EIO, ENOSPC, EINTR],
        "rename" | "linkat" | "mkdir" | "fallocate" | "pwrite64" => &[EIO, ENOSPC],
        "read" => &[EIO, EINTR],
        _ => &[EIO],
    }
}

/// A file's content without the times that are measured in it.
fn comparable(name: &str, bytes: Vec<u8>) -> Vec<u8> {
    if !name.ends_with(".json") {
        return bytes;
    }
    let Ok(mut json) = serde_json::from_slice::<serde_json::Value>(&bytes) else {
        return bytes;
    };
    if let Some(fields) = json.as_object_mut() {
        fields.remove("seconds_per_step");
    }
    json.to_string().into_bytes()
}

const MLP: &str = "ort/digits_mlp.onnx";

fn old(place: &Place, names: &[&str]) {
    for name in names {
        let path = place.at(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, format!("what {name} was before")).unwrap();
    }
}

#[test]
fn model_beside_its_data_with_reports() {
    let outputs = [
        "in/out.onnx",
        "in/plan.toml",
        "in/report.json",
        "in/report.html",
    ];
    let arguments = "in/m.onnx -o in/out.onnx -q --emit-plan in/plan.toml --json in/report.json \
                     --html in/report.html";
    Scenario::new(arguments, "in", &outputs, |place| {
        place.model_with_data(MLP, "in/m.onnx");
        old(place, &outputs);
    })
    .try_all();
}

#[test]
fn model_in_its_own_place() {
    Scenario::new("in/m.onnx -o in/m.onnx -q", "in", &["in/m.onnx"], |place| {
        place.model(MLP, "in/m.onnx");
    })
    .try_all();
}

const COPIED: [&str; 3] = ["out/data/w.bin", "out/v.bin", "out/m.onnx"];
const COPY: &str = "in/m.onnx -o out/m.onnx -q --external-data copy";

#[test]
fn copies_of_data_that_are_new() {
    Scenario::new(COPY, "out", &COPIED, |place| {
        place.model_with_data(MLP, "in/m.onnx");
        fs::create_dir(place.at("out")).unwrap();
    })
    .try_all();
}

#[test]
fn copies_of_data_in_the_place_of_others() {
    Scenario::new(COPY, "out", &COPIED, |place| {
        place.model_with_data(MLP, "in/m.onnx");
        old(place, &COPIED);
    })
    .try_all();
}

#[test]
fn copies_of_data_without_unnamed_files() {
    Scenario::new(COPY, "out", &COPIED, |place| {
        place.model_with_data(MLP, "in/m.onnx");
        old(place, &COPIED);
    })
    .without_unnamed()
    .try_all();
}

#[test]
fn data_moved_into_the_model() {
    let arguments = "in/m.onnx -o out/m.onnx -q --external-data inline";
    Scenario::new(arguments, "out", &["out/m.onnx"], |place| {
        place.model_with_data(MLP, "in/m.onnx");
        old(place, &["out/m.onnx"]);
    })
    .try_all();
}

#[test]
fn directions_filled() {
    let arguments =
        "calibrate in/m.onnx -o out/m.onnx -q --threads 1 --data models/data/digits_train.npz";
    Scenario::new(arguments, "out", &["out/m.onnx"], |place| {
        place.run("models/ort/digits_mlp.onnx -o in/m.onnx -q --init first-batch");
        old(place, &["out/m.onnx"]);
    })
    .try_all();
}

#[test]
fn parameters_and_checkpoints() {
    let outputs = ["out/p.safetensors", "out/c.safetensors", "out/run.json"];
    let run = "run in/m.onnx -q --threads 2 --data models/data/digits_train.npz --save out/p.safetensors \
               --checkpoint out/c.safetensors --checkpoint-every 1 --json out/run.json --steps 2";
    let mut scenario = Scenario::new(run, "out", &outputs, |place| {
        place.model(MLP, "in/m.onnx");
        old(place, &outputs);
    });
    // Which is the checkpoint on the way.
    scenario.also_by(&run.replace("--steps 2", "--steps 1"));
    scenario.try_all();
}

#[test]
fn adapters_merged() {
    let arguments = "merge in/m.onnx in/a.safetensors -o out/m.onnx -q";
    Scenario::new(arguments, "out", &["out/m.onnx"], |place| {
        place.model(MLP, "in/m.onnx");
        place.run("in/m.onnx -o in/a.onnx -q --adapter f32");
        place.run("run in/a.onnx -q --data models/data/digits_train.npz --steps 1 --save-adapter in/a.safetensors");
        old(place, &["out/m.onnx"]);
    })
    .try_all();
}
