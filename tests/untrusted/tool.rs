//! The tool as a process: what it said, what it wrote, and the most memory that it took.
//!
//! `UNTRUSTED_TOOL` names another build of it, to see what that one does.

use std::fs::{self, File};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};
use velora_graph::onnx::schema::ModelProto;
use velora_graph::onnx::write::write;
use velora_graph::text::parse_model;

/// Longer than any case takes on a busy machine; what takes longer hangs.
const PATIENCE: Duration = Duration::from_secs(120);

/// Bytes of memory that any command may take: the program, its threads' stacks, its tables.
pub const BASE: u64 = 64 << 20;
/// Bytes of memory for each byte of the files that a command is given.
pub const MULTIPLE: u64 = 256;
/// The same where layers are rewritten and reported on.
pub const REWRITTEN: u64 = 768;
/// The same where they are rewritten in standard operators.
pub const INLINE: u64 = 2560;

/// What a command did.
#[derive(Debug)]
pub struct Ran {
    pub status: Option<i32>,
    /// For messages of failed checks.
    #[allow(dead_code)]
    pub out: String,
    pub err: String,
    /// The most bytes that were resident at a time.
    pub peak: u64,
}

impl Ran {
    /// Checks that the command refused its input with one message that has all of `words`.
    pub fn refused(&self, words: &[&str]) -> &Self {
        assert_eq!(self.status, Some(1), "{self:?}");
        assert_eq!(self.err.lines().count(), 1, "{self:?}");
        assert!(
            self.err.len() < 3000,
            "a message of {} bytes",
            self.err.len()
        );
        for word in words {
            assert!(self.err.contains(word), "no {word:?} in {}", self.err);
        }
        self
    }

    /// Checks that the command did not fail.
    pub fn accepted(&self) -> &Self {
        assert_eq!(self.status, Some(0), "{self:?}");
        self
    }

    /// Checks the bound on memory for files of so many bytes.
    pub fn within(&self, bytes: u64) -> &Self {
        let most = BASE + MULTIPLE * bytes;
        assert!(
            self.peak <= most,
            "{} bytes of memory for files of {bytes}, {most} at most: {}",
            self.peak,
            self.err
        );
        self
    }
}

/// A folder for the files of a case.
pub struct Place(tempfile::TempDir);

impl Place {
    pub fn new() -> Self {
        Place(tempfile::tempdir().unwrap())
    }

    pub fn path(&self) -> &Path {
        self.0.path()
    }

    pub fn at(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    pub fn write(&self, name: &str, bytes: impl AsRef<[u8]>) {
        fs::write(self.at(name), bytes).unwrap();
    }

    pub fn model(&self, name: &str, model: &ModelProto) {
        write(model, &self.at(name)).unwrap();
    }

    /// A model from text.
    pub fn text(&self, name: &str, text: &str) {
        self.model(name, &parse_model(text).unwrap());
    }

    /// The names of all files below the folder, in order.
    pub fn files(&self) -> Vec<String> {
        let mut found = Vec::new();
        let mut folders = vec![self.path().to_path_buf()];
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                let name = path.strip_prefix(self.path()).unwrap();
                found.push(name.to_string_lossy().into_owned());
                if fs::symlink_metadata(&path).unwrap().is_dir() {
                    folders.push(path);
                }
            }
        }
        found.sort();
        found
    }

    /// The bytes of some files together.
    pub fn bytes(&self, names: &[&str]) -> u64 {
        let length = |name: &&str| fs::metadata(self.at(name)).unwrap().len();
        names.iter().map(length).sum()
    }

    /// Runs the tool in the folder, with arguments that are split at spaces.
    pub fn run(&self, arguments: &str) -> Ran {
        self.execute("", arguments, Stdio::null())
    }

    /// The same, in a folder below.
    pub fn run_in(&self, folder: &str, arguments: &str) -> Ran {
        self.execute(folder, arguments, Stdio::null())
    }

    /// The same, with something on standard input.
    pub fn run_with(&self, arguments: &str, input: Stdio) -> Ran {
        self.execute("", arguments, input)
    }

    fn execute(&self, folder: &str, arguments: &str, input: Stdio) -> Ran {
        let streams = tempfile::tempdir().unwrap();
        let ended = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "tool::launcher", "--quiet"])
            .env(ARGUMENTS, arguments)
            .env(STREAMS, streams.path())
            .current_dir(self.at(folder))
            .stdin(input)
            .output()
            .unwrap();
        let said = |name: &str| {
            let bytes = fs::read(streams.path().join(name));
            let bytes = bytes.unwrap_or_else(|_| panic!("{arguments}: {ended:?}"));
            String::from_utf8_lossy(&bytes).into_owned()
        };
        let result = said("result");
        let (status, peak) = result.split_once(' ').unwrap();
        Ran {
            status: status.parse().ok(),
            out: said("out"),
            err: said("err"),
            peak: peak.parse().unwrap(),
        }
    }
}

/// What the tool is to be run with, and the folder for what it says.
const ARGUMENTS: &str = "UNTRUSTED_ARGUMENTS";
const STREAMS: &str = "UNTRUSTED_STREAMS";

/// No test, but a process between the tests and the tool: what the system says of a process begins with the
/// memory of the one that it was split off from, and the tests hold large files.
// It is waited for, by another call than the library's.
#[allow(clippy::zombie_processes)]
#[test]
fn launcher() {
    let (Ok(arguments), Ok(streams)) = (std::env::var(ARGUMENTS), std::env::var(STREAMS)) else {
        return;
    };
    let at = |name: &str| Path::new(&streams).join(name);
    let tool = std::env::var("UNTRUSTED_TOOL");
    let child = Command::new(tool.as_deref().unwrap_or(env!("CARGO_BIN_EXE_velora-opt")))
        .args(arguments.split_whitespace())
        // Files, since the other end of a pipe would have to be read meanwhile.
        .stdout(File::create(at("out")).unwrap())
        .stderr(File::create(at("err")).unwrap())
        .spawn()
        .unwrap();
    let (status, peak) = wait(child.id(), &arguments);
    let status = status
        .code()
        .map_or("signal".to_owned(), |code| code.to_string());
    fs::write(at("result"), format!("{status} {peak}")).unwrap();
}

/// Waits for a child; what it needed is known only to the one who waits.
fn wait(child: u32, arguments: &str) -> (ExitStatus, u64) {
    let child = libc::pid_t::try_from(child).unwrap();
    let begin = Instant::now();
    loop {
        let mut status = 0;
        // SAFETY: all of its fields are numbers, of which 0 is one.
        let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
        // SAFETY: both places are valid for the call, and the child is ours and was not waited for.
        let ended = unsafe { libc::wait4(child, &mut status, libc::WNOHANG, &mut usage) };
        if ended == child {
            let kibibytes = u64::try_from(usage.ru_maxrss).unwrap();
            return (ExitStatus::from_raw(status), kibibytes << 10);
        }
        if begin.elapsed() > PATIENCE {
            // SAFETY: the child has not been waited for, so that the number is still its own.
            unsafe { libc::kill(child, libc::SIGKILL) };
            panic!("{arguments}: still running after {PATIENCE:?}");
        }
        sleep(Duration::from_millis(2));
    }
}
