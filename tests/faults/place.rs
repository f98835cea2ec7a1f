//! Folders with models, and the tool in them.

use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use velora_graph::onnx::read::{UnknownFields, read};
use velora_graph::onnx::schema::StringStringEntryProto;
use velora_graph::onnx::write::write;

/// A folder of a test's own.
pub struct Place(tempfile::TempDir);

impl Place {
    /// An empty folder, with another one, `in`, in it.
    pub fn new() -> Self {
        let place = Place(tempfile::tempdir().unwrap());
        fs::create_dir(place.at("in")).unwrap();
        place
    }

    pub fn path(&self) -> &Path {
        self.0.path()
    }

    pub fn at(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    pub fn bytes(&self, name: &str) -> Vec<u8> {
        fs::read(self.at(name)).unwrap_or_else(|e| panic!("{name}: {e}"))
    }

    /// A copy of a model of the repository.
    pub fn model(&self, from: &str, to: &str) {
        fs::copy(repository().join("models").join(from), self.at(to)).unwrap();
    }

    /// A model whose two largest tensors lie in the files `data/w.bin` and `v.bin` beside it.
    pub fn model_with_data(&self, from: &str, to: &str) {
        let mut model = read(
            &repository().join("models").join(from),
            UnknownFields::Refuse,
        )
        .unwrap();
        let to = self.at(to);
        let folder = to.parent().unwrap();
        let graph = model.graph.as_mut().unwrap();
        let mut tensors: Vec<_> = graph.initializer.iter_mut().collect();
        tensors.sort_by_key(|t| std::cmp::Reverse(t.raw_data.as_ref().map_or(0, |d| d.len())));
        for (tensor, location) in tensors.into_iter().zip(["data/w.bin", "v.bin"]) {
            let data = tensor.raw_data.take().unwrap();
            let file = folder.join(location);
            fs::create_dir_all(file.parent().unwrap()).unwrap();
            fs::write(file, data).unwrap();
            tensor.data_location = Some(1);
            tensor.external_data = vec![StringStringEntryProto {
                key: Some("location".to_owned()),
                value: Some(location.to_owned()),
            }];
        }
        write(&model, &to).unwrap();
    }

    /// The tool with arguments that are split at spaces; `models` are the repository's.
    pub fn command(&self, arguments: &str) -> Command {
        command(self.path(), arguments)
    }

    /// Runs the tool, which is to succeed.
    pub fn run(&self, arguments: &str) {
        let output = self.command(arguments).output().unwrap();
        assert!(output.status.success(), "{arguments}: {output:?}");
    }

    /// Runs the tool, which is to fail with one line; that line.
    pub fn fail(&self, arguments: &str) -> String {
        message(self.command(arguments).output().unwrap(), arguments)
    }

    /// The files below the folder, sorted.
    pub fn files(&self) -> Vec<String> {
        files(self.path())
    }
}

/// The one line of a run that failed as it should.
pub fn message(output: Output, what: &str) -> String {
    let message = String::from_utf8(output.stderr).unwrap();
    let status = output.status;
    assert_eq!(
        (status.code(), status.signal()),
        (Some(1), None),
        "{what}: {message}"
    );
    assert!(
        message.starts_with("velora-opt: ") && message.lines().count() == 1,
        "{what}: {message}"
    );
    message
}

pub fn command(folder: &Path, arguments: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_velora-opt"));
    command.current_dir(folder).stdin(Stdio::null());
    // What is tested must not depend on a device.
    command.env("CUDA_VISIBLE_DEVICES", "");
    let models = repository().join("models");
    let models = models.to_str().unwrap();
    for argument in arguments.split_whitespace() {
        match argument.strip_prefix("models/") {
            Some(name) => command.arg(format!("{models}/{name}")),
            None => command.arg(argument),
        };
    }
    command
}

fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The files below a folder, by their paths in it.
pub fn files(folder: &Path) -> Vec<String> {
    let mut found = Vec::new();
    let mut folders = vec![folder.to_path_buf()];
    while let Some(next) = folders.pop() {
        for entry in fs::read_dir(next).unwrap() {
            let path = entry.unwrap().path();
            if fs::symlink_metadata(&path).unwrap().is_dir() {
                folders.push(path);
            } else {
                let name = path.strip_prefix(folder).unwrap();
                found.push(name.to_str().unwrap().to_owned());
            }
        }
    }
    found.sort();
    found
}

/// Whether a file is one of those that the tool writes before it renames them.
pub fn is_temporary(name: &str) -> bool {
    let name = Path::new(name).file_name().unwrap().to_str().unwrap();
    name.starts_with(".velora-") && name.ends_with(".tmp")
}

/// Copies all files of a folder into a new one.
pub fn copy_folder(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let to = to.join(entry.file_name());
        match entry.file_type().unwrap().is_dir() {
            true => copy_folder(&entry.path(), &to),
            false => drop(fs::copy(entry.path(), to).unwrap()),
        }
    }
}
