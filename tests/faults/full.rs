//! Disks without room, and places that may not be written to.

use crate::place::{Place, message};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};

/// A small file system in memory, mounted on a folder; none where this user may not mount.
struct Mount<'a>(&'a Path);

impl<'a> Mount<'a> {
    fn new(folder: &'a Path, options: &str) -> Option<Self> {
        fs::create_dir_all(folder).unwrap();
        let mut mount = Command::new("mount");
        mount
            .args(["-t", "tmpfs", "-o", options, "tmpfs"])
            .arg(folder);
        match mount.output() {
            Ok(output) if output.status.success() => Some(Mount(folder)),
            _ => {
                eprintln!("skipped: this user may not mount");
                None
            }
        }
    }

    fn set(&self, options: &str) {
        let mut mount = Command::new("mount");
        mount
            .args(["-o", &format!("remount,{options}")])
            .arg(self.0);
        assert!(mount.status().unwrap().success());
    }
}

impl Drop for Mount<'_> {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(self.0).status();
    }
}

const ORIGINAL: &str = "ort/digits_mlp.onnx";

/// All kinds of writing that there is no room for, each with the old file's content.
fn check_no_room(place: &Place, reason: &str, mut run: impl FnMut(&str) -> String) {
    let data = "--data models/data/digits_train.npz --threads 1 -q";
    for (arguments, outputs) in [
        ("in/m.onnx -o full/m.onnx -q".to_owned(), &["m.onnx"][..]),
        (
            "in/e.onnx -o full/m.onnx -q --external-data copy".to_owned(),
            &["m.onnx", "v.bin", "data/w.bin"],
        ),
        (
            "in/e.onnx -o full/m.onnx -q --external-data inline".to_owned(),
            &["m.onnx"],
        ),
        (
            format!("calibrate in/c.onnx -o full/m.onnx {data}"),
            &["m.onnx"],
        ),
        (
            format!("run in/m.onnx {data} --steps 1 --checkpoint full/c"),
            &["c"],
        ),
        (
            format!("run in/m.onnx {data} --steps 1 --save full/p"),
            &["p"],
        ),
    ] {
        let paths = outputs.iter().map(|name| format!("full/{name}"));
        let paths: Vec<String> = paths.collect();
        for path in &paths {
            fs::create_dir_all(place.at(path).parent().unwrap()).unwrap();
            fs::write(place.at(path), "old").unwrap();
        }
        let message = run(&arguments);
        assert!(
            message.contains(reason) && message.contains("full/"),
            "{arguments}: {message}"
        );
        for path in &paths {
            assert_eq!(place.bytes(path), b"old", "{arguments}: {path}");
        }
        let mut files = place.files();
        files.retain(|name| name.starts_with("full/"));
        let mut expected = paths.clone();
        expected.sort();
        assert_eq!(files, expected, "{arguments}");
        for path in &paths {
            fs::remove_file(place.at(path)).unwrap();
        }
    }
}

fn place() -> Place {
    let place = Place::new();
    place.model(ORIGINAL, "in/m.onnx");
    place.model_with_data(ORIGINAL, "in/e.onnx");
    place.run("in/m.onnx -o in/c.onnx -q --init first-batch");
    place
}

#[test]
fn a_full_disk() {
    let place = place();
    let full = place.at("full");
    // Room for the larger data file (256 KiB), but not for both, nor for the model with its data.
    let Some(_mount) = Mount::new(&full, "size=300k") else {
        return;
    };
    check_no_room(&place, "No space left on device", |arguments| {
        place.fail(arguments)
    });
}

#[test]
fn a_limit_on_the_size_of_files() {
    let place = place();
    fs::create_dir(place.at("full")).unwrap();
    check_no_room(&place, "File too large", |arguments| {
        let mut command = place.command(arguments);
        // SAFETY: setrlimit may be called between fork and exec, and reads only its argument.
        unsafe {
            command.pre_exec(|| {
                let limit = libc::rlimit {
                    rlim_cur: 100_000,
                    rlim_max: 100_000,
                };
                match libc::setrlimit(libc::RLIMIT_FSIZE, &limit) {
                    0 => Ok(()),
                    _ => Err(std::io::Error::last_os_error()),
                }
            });
        }
        message(command.output().unwrap(), arguments)
    });
}

#[test]
fn a_file_system_that_is_read_only() {
    let place = place();
    let folder = place.at("full");
    let Some(mount) = Mount::new(&folder, "size=4m") else {
        return;
    };
    fs::write(place.at("full/m.onnx"), "old").unwrap();
    mount.set("ro");
    for arguments in [
        "in/m.onnx -o full/m.onnx",
        "in/m.onnx -o full/new.onnx",
        "in/e.onnx -o full/m.onnx --external-data copy",
        "inspect in/m.onnx --json full/report.json -q",
        "run in/m.onnx --data models/data/digits_train.npz --steps 1 --save full/m.onnx",
    ] {
        let message = place.fail(arguments);
        assert!(message.contains("Read-only file system"), "{message}");
    }
    assert_eq!(place.bytes("full/m.onnx"), b"old");
    mount.set("rw");
    place.run("in/m.onnx -o full/m.onnx -q");
}

/// Also root, who may write to such a file, meant something by taking the right away.
#[test]
fn a_file_that_is_write_protected() {
    let place = place();
    fs::write(place.at("m.onnx"), "old").unwrap();
    fs::set_permissions(place.at("m.onnx"), fs::Permissions::from_mode(0o444)).unwrap();
    for arguments in [
        "in/m.onnx -o m.onnx",
        "in/m.onnx -o other.onnx -q --json m.onnx",
        "run in/m.onnx --data models/data/digits_train.npz --checkpoint m.onnx",
    ] {
        assert_eq!(
            place.fail(arguments),
            "velora-opt: cannot write m.onnx: the file is write-protected; remove it, or choose another name\n"
        );
    }
    assert_eq!(place.bytes("m.onnx"), b"old");
}

/// Messages that cannot be written change nothing else.
#[test]
fn a_standard_error_that_is_full() {
    let place = place();
    let status = |arguments: &str| {
        let full = fs::File::options().write(true).open("/dev/full").unwrap();
        let mut command = place.command(arguments);
        let status = command.stdout(Stdio::null()).stderr(full).status().unwrap();
        status.code()
    };
    assert_eq!(
        status("in/m.onnx -o out.onnx -v --time-passes --json -"),
        Some(0)
    );
    assert!(place.at("out.onnx").exists());
    assert_eq!(status("missing.onnx -o none.onnx"), Some(1));
}
