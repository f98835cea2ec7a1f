//! The command line, case by case: `tests/cli/*.txt`, whose format `tests/cli/README.md` describes.
//!
//! `BLESS=1 cargo test --test cli` writes what the commands do into the cases; `CASE=text` runs only
//! the cases with that in their names.
#![cfg(unix)]
#![allow(clippy::unwrap_used)]

use regex::Regex;
use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::process::{Command, Stdio};
use velora_graph::onnx::write::write;
use velora_graph::text::parse_model;
use velora_runtime::data::safetensors;
use velora_runtime::tensor::Tensor;

const TOOL: &str = env!("CARGO_BIN_EXE_velora-opt");

#[test]
fn cases() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cli");
    let filter = std::env::var("CASE").unwrap_or_default();
    let bless = std::env::var_os("BLESS").is_some();
    let mut paths: Vec<_> = fs::read_dir(&folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|e| e == "txt"))
        .filter(|path| path.to_str().unwrap().contains(&filter))
        .collect();
    paths.sort();
    assert!(!paths.is_empty(), "no case in {}", folder.display());
    let mut failures = Vec::new();
    for path in paths {
        let text = fs::read_to_string(&path).unwrap();
        let name = path.file_name().unwrap().to_str().unwrap();
        match run(&text) {
            Ok(Outcome::Ran(actual)) if actual == text => {}
            Ok(Outcome::Ran(actual)) if bless => fs::write(&path, actual).unwrap(),
            Ok(Outcome::Ran(actual)) => {
                failures.push(format!("{name}:\n{}", difference(&text, &actual)));
            }
            Ok(Outcome::Skipped(why)) => eprintln!("{name}: skipped, {why}"),
            Err(problem) => failures.push(format!("{name}: {problem}")),
        }
    }
    assert!(
        failures.is_empty(),
        "\n{}\n(BLESS=1 accepts what the commands did)\n",
        failures.join("\n")
    );
}

enum Outcome {
    /// The case's text with what really happened.
    Ran(String),
    /// Why the case means nothing here.
    Skipped(&'static str),
}

/// Runs a case in a folder of its own.
fn run(text: &str) -> Result<Outcome, String> {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().canonicalize().unwrap();
    symlink(
        Path::new(env!("CARGO_MANIFEST_DIR")).join("models"),
        dir.join("models"),
    )
    .unwrap();
    let mut actual = String::new();
    let mut lines = text.lines().peekable();
    while let Some(line) = lines.next() {
        if is_expectation(line) {
            return Err(format!("no command before the expectation `{line}`"));
        }
        actual += line;
        actual.push('\n');
        if let Some(directive) = line.strip_prefix('%') {
            let mut block = String::new();
            if matches!(directive.split(' ').next(), Some("model" | "text")) {
                while let Some(line) = lines.next_if(|l| !l.starts_with(['%', '$'])) {
                    block += line;
                    block.push('\n');
                }
                actual += &block;
                // Empty lines before the next command set the case out, and are not the file's.
                block.truncate(block.trim_end_matches('\n').len() + 1);
            }
            match prepare(&dir, directive, &block).map_err(|e| format!("`{line}`: {e}"))? {
                None => {}
                Some(why) => return Ok(Outcome::Skipped(why)),
            }
        } else if let Some(command) = line.strip_prefix("$ ") {
            while lines.next_if(|l| is_expectation(l)).is_some() {}
            actual += &execute(&dir, command).map_err(|e| format!("`{line}`: {e}"))?;
        } else if !line.is_empty() && !line.starts_with('#') {
            return Err(format!("expected `#`, `%` or `$`, found `{line}`"));
        }
    }
    Ok(Outcome::Ran(actual))
}

fn is_expectation(line: &str) -> bool {
    line.starts_with(['|', '!', '='])
}

/// Makes a file; a reason to skip the case where that cannot have the meant effect.
fn prepare(dir: &Path, directive: &str, block: &str) -> Result<Option<&'static str>, String> {
    let words: Vec<&str> = directive.split_whitespace().collect();
    let number = |text: &str| text.parse::<usize>().map_err(|e| e.to_string());
    let at = |name: &str| dir.join(name);
    match words.as_slice() {
        ["model", name] => {
            let model = parse_model(block).map_err(|e| e.to_string())?;
            write(&model, &at(name)).map_err(|e| e.to_string())?;
        }
        ["text", name] => fs::write(at(name), block).unwrap(),
        ["bytes", name, rest @ ..] => {
            let bytes = rest.iter().map(|b| u8::from_str_radix(b, 16).unwrap());
            fs::write(at(name), bytes.collect::<Vec<_>>()).unwrap();
        }
        ["random", name, length] => fs::write(at(name), random(number(length)?)).unwrap(),
        ["sparse", name, length] => {
            let file = fs::File::create(at(name)).unwrap();
            file.set_len(number(length)? as u64).unwrap();
        }
        ["tensors", name, arrays @ ..] => tensors(&at(name), arrays)?,
        ["truncate", name, from, length] => {
            let bytes = fs::read(at(from)).unwrap();
            let start = bytes.get(..number(length)?);
            fs::write(at(name), start.ok_or("the file is shorter")?).unwrap();
        }
        ["copy", name, from] => drop(fs::copy(at(from), at(name)).unwrap()),
        ["symlink", name, target] => symlink(target, at(name)).unwrap(),
        ["hardlink", name, from] => fs::hard_link(at(from), at(name)).unwrap(),
        ["folder", name] => fs::create_dir_all(at(name)).unwrap(),
        ["readonly", name] => {
            fs::set_permissions(at(name), fs::Permissions::from_mode(0o555)).unwrap();
            if tempfile::tempfile_in(at(name)).is_ok() {
                return Ok(Some("this user may write to read-only folders"));
            }
        }
        _ => return Err("no such directive, see tests/cli/README.md".to_owned()),
    }
    Ok(None)
}

/// Writes a safetensors file of arrays such as `x=float[4,64]`.
fn tensors(path: &Path, arrays: &[&str]) -> Result<(), String> {
    let mut made: Vec<(&str, Tensor)> = Vec::new();
    for array in arrays {
        let parts = (array.strip_suffix(']'))
            .and_then(|array| array.split_once('='))
            .and_then(|(name, ty)| Some((name, ty.split_once('[')?)));
        let (name, (kind, sizes)) = parts.ok_or("expected NAME=TYPE[SIZES]")?;
        let sizes = sizes.split(',').map(str::parse::<usize>);
        let shape = sizes.collect::<Result<Vec<_>, _>>();
        let shape = shape.map_err(|e| e.to_string())?;
        let numbers = 0..shape.iter().product();
        let tensor = match kind {
            "float" => {
                let numbers: Vec<f32> = numbers.map(|i: usize| (i % 8) as f32 / 8.0).collect();
                Tensor::from_f32(&shape, &numbers)
            }
            "int64" => {
                let numbers: Vec<i64> = numbers.map(|i: usize| (i % 2) as i64).collect();
                Tensor::from_i64(&shape, &numbers)
            }
            _ => return Err(format!("no tensors of type {kind}")),
        };
        made.push((name, tensor));
    }
    let views = made.iter().map(|(name, tensor)| (*name, tensor.view()));
    safetensors::write(path, &BTreeMap::new(), views).map_err(|e| e.to_string())
}

/// Bytes that look like nothing, the same each time (xorshift64).
fn random(length: usize) -> Vec<u8> {
    let mut state = 0x9E37_79B9_7F4A_7C15_u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 32) as u8
    };
    (0..length).map(|_| next()).collect()
}

/// Runs one command line and writes down what it did.
fn execute(dir: &Path, command: &str) -> Result<String, String> {
    let (command, head) = match command.split_once(" | head ") {
        Some((command, count)) => (command, Some(count.parse::<usize>().unwrap())),
        None => (command, None),
    };
    let words: Vec<&str> = command.split_whitespace().collect();
    let (status, stdout, stderr) = match words.as_slice() {
        ["velora-opt", arguments @ ..] => tool(dir, arguments),
        ["ls"] => (0, listing(dir), Vec::new()),
        ["cat", name] => (
            0,
            fs::read(dir.join(name)).map_err(|e| e.to_string())?,
            Vec::new(),
        ),
        ["same", a, b] => {
            let read = |name: &str| fs::read(dir.join(name)).map_err(|e| format!("{name}: {e}"));
            let same = read(a)? == read(b)?;
            (i32::from(!same), Vec::new(), Vec::new())
        }
        ["json", name, pointer] => {
            let text = fs::read(dir.join(name)).map_err(|e| format!("{name}: {e}"))?;
            let whole: serde_json::Value =
                serde_json::from_slice(&text).map_err(|e| e.to_string())?;
            let part = whole.pointer(pointer).ok_or("no such part")?;
            let mut text = serde_json::to_string_pretty(part).unwrap();
            text.push('\n');
            (0, text.into_bytes(), Vec::new())
        }
        _ => return Err("expected velora-opt, ls, cat, json or same".to_owned()),
    };
    let mut text = quote("|", &stdout, dir, head);
    text += &quote("!", &stderr, dir, None);
    if status != 0 {
        text += &format!("= {status}\n");
    }
    Ok(text)
}

fn tool(dir: &Path, words: &[&str]) -> (i32, Vec<u8>, Vec<u8>) {
    let mut command = Command::new(TOOL);
    command
        .current_dir(dir)
        .env("COLUMNS", "100")
        // What the cases say must not depend on a device.
        .env("CUDA_VISIBLE_DEVICES", "")
        .stdin(Stdio::null());
    let mut words = words.iter();
    let mut target = None;
    while let Some(&word) = words.next() {
        match word {
            "<" => {
                let file = fs::File::open(dir.join(words.next().unwrap())).unwrap();
                command.stdin(file);
            }
            ">" => target = words.next(),
            // Arguments are split at spaces; this is how an empty one is written.
            "''" => drop(command.arg("")),
            word => drop(command.arg(word)),
        }
    }
    let output = command.output().unwrap();
    let mut stdout = output.stdout;
    if let Some(name) = target {
        fs::write(dir.join(name), &stdout).unwrap();
        stdout.clear();
    }
    // A signal has no code: none of the tool's statuses.
    (output.status.code().unwrap_or(-1), stdout, output.stderr)
}

/// The files of the case's folder, and where links lead.
fn listing(dir: &Path) -> Vec<u8> {
    let mut lines = Vec::new();
    let mut folders = vec![dir.to_path_buf()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let name = path.strip_prefix(dir).unwrap().display().to_string();
            let kind = fs::symlink_metadata(&path).unwrap().file_type();
            if name == "models" {
                continue;
            }
            if kind.is_dir() {
                lines.push(format!("{name}/\n"));
                folders.push(path);
            } else if kind.is_symlink() {
                lines.push(format!(
                    "{name} -> {}\n",
                    fs::read_link(&path).unwrap().display()
                ));
            } else {
                lines.push(format!("{name}\n"));
            }
        }
    }
    lines.sort();
    lines.concat().into_bytes()
}

/// Output as expectation lines, without what differs between machines and versions.
fn quote(mark: &str, bytes: &[u8], dir: &Path, head: Option<usize>) -> String {
    let Ok(text) = std::str::from_utf8(bytes) else {
        return format!("{mark} [{} bytes that are no text]\n", bytes.len());
    };
    let version = env!("CARGO_PKG_VERSION");
    let text = text
        .replace(dir.to_str().unwrap(), "[DIR]")
        .replace(&format!("velora-opt {version}"), "velora-opt [VERSION]")
        .replace(
            &format!("\"tool_version\": \"{version}\""),
            "\"tool_version\": \"[VERSION]\"",
        );
    let text = Regex::new(r"\b\d+\.\d+ (ms|s per step)\b")
        .unwrap()
        .replace_all(&text, "[TIME] $1");
    let mut quoted = String::new();
    for line in text.lines().take(head.unwrap_or(usize::MAX)) {
        quoted += format!("{mark} {line}").trim_end();
        quoted.push('\n');
    }
    if !text.is_empty() && !text.ends_with('\n') && head.is_none() {
        quoted += &format!("{mark} [no line end]\n");
    }
    quoted
}

/// The lines that differ, with the expected ones first.
fn difference(expected: &str, actual: &str) -> String {
    let (expected, actual): (Vec<&str>, Vec<&str>) =
        (expected.lines().collect(), actual.lines().collect());
    let common = expected
        .iter()
        .zip(&actual)
        .take_while(|(e, a)| e == a)
        .count();
    let tail = (expected[common..].iter().rev())
        .zip(actual[common..].iter().rev())
        .take_while(|(e, a)| e == a)
        .count();
    let mut text = format!("  from line {}\n", common + 1);
    for line in &expected[common..expected.len() - tail] {
        text += &format!("  -{line}\n");
    }
    for line in &actual[common..actual.len() - tail] {
        text += &format!("  +{line}\n");
    }
    text
}

#[test]
fn a_wrong_expectation_is_noticed() {
    let written = |text: &str| match run(text).unwrap() {
        Outcome::Ran(actual) => actual,
        Outcome::Skipped(why) => panic!("{why}"),
    };
    let right = "# Comment.\n\n$ velora-opt --version\n| velora-opt [VERSION]\n";
    assert_eq!(written(right), right);
    for wrong in [
        "# Comment.\n\n$ velora-opt --version\n",
        "# Comment.\n\n$ velora-opt --version\n| velora-opt 9\n",
        "# Comment.\n\n$ velora-opt --version\n| velora-opt [VERSION]\n= 1\n",
        "# Comment.\n\n$ velora-opt --version\n| velora-opt [VERSION]\n! more\n",
    ] {
        assert_eq!(written(wrong), right);
    }
    assert!(run("$ rm -rf x\n").is_err());
    assert!(run("what\n").is_err());
    assert!(run("%nothing x\n").is_err());
    assert!(run("%model x\nno model\n").is_err());
}

/// `velora-opt print MODEL | head -1`: whoever reads may leave.
#[test]
fn a_reader_that_leaves_is_no_error() {
    let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/aot/llama_tiny.onnx");
    let mut child = Command::new(TOOL)
        .args(["print".as_ref(), model.as_os_str()])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    let mut stdout = BufReader::new(child.stdout.take().unwrap());
    stdout.read_line(&mut line).unwrap();
    drop(stdout);
    assert!(line.starts_with('<'), "{line}");
    let output = child.wait_with_output().unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
    assert!(output.status.success(), "{:?}", output.status);
}

/// A model that comes through a pipe, in pieces.
#[test]
fn standard_input_may_be_a_pipe() {
    let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/aot/mlp.onnx");
    let mut child = Command::new(TOOL)
        .args(["-", "-o", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    for piece in fs::read(&model).unwrap().chunks(1000) {
        stdin.write_all(piece).unwrap();
    }
    drop(stdin);
    let output = child.wait_with_output().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let target = folder.path().join("out.onnx");
    let file = Command::new(TOOL)
        .arg(&model)
        .arg("-o")
        .arg(&target)
        .output()
        .unwrap();
    assert_eq!(output.stdout, fs::read(&target).unwrap());
    // The table goes where the model does not.
    assert_eq!(output.stderr, file.stdout);
    assert!(output.status.success() && !output.stderr.is_empty());
}
