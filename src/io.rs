//! Reading models and writing results: files, standard input and output.

mod external;
mod hash;

#[cfg(test)]
pub use hash::Hashed;
pub use hash::{Fingerprint, fingerprint, sha256};

use crate::cli::{ExternalData, is_stream};
use anyhow::{Context, Result, bail};
use bytes::Bytes;
use std::io::{self, ErrorKind, IsTerminal, Read, Write};
use std::path::Path;
use velora_graph::onnx::read::{UnknownFields, decode_named, read};
use velora_graph::onnx::schema::ModelProto;
use velora_graph::onnx::write::{MAX_BYTES, replace, write, write_to};

/// A model and where it came from.
#[derive(Debug)]
pub struct Input {
    /// The model; its payloads are slices of the mapped file.
    pub model: ModelProto,
    /// How messages call it: the path as given, or `<stdin>`.
    pub name: String,
}

impl Input {
    /// Reads a model; the path `-` reads standard input to its end.
    ///
    /// # Errors
    /// Where it cannot be read, is no ONNX model, or has unknown fields that may not be dropped.
    pub fn read(path: &Path, allow_unknown_fields: bool) -> Result<Input> {
        let unknown = match allow_unknown_fields {
            true => UnknownFields::Allow,
            false => UnknownFields::Refuse,
        };
        if !is_stream(path) {
            return Ok(Input {
                model: read(path, unknown)?,
                name: path.display().to_string(),
            });
        }
        let name = "<stdin>";
        let mut bytes = Vec::new();
        let limit = MAX_BYTES + 1;
        io::stdin()
            .lock()
            .take(limit)
            .read_to_end(&mut bytes)
            .context("cannot read standard input")?;
        if bytes.len() as u64 == limit {
            bail!("{name}: longer than {MAX_BYTES} bytes, and protobuf allows no more");
        }
        Ok(Input {
            model: decode_named(Bytes::from(bytes), Path::new(name), unknown)?,
            name: name.to_owned(),
        })
    }
}

/// Checks the external data of a model read from `source`, before anything follows its references.
///
/// # Errors
/// Where a reference is not acceptable, or there is no folder that it could be relative to.
pub fn check_data(model: &mut ModelProto, source: &Path) -> Result<()> {
    let source = (!is_stream(source)).then_some(source);
    external::check(model, source).map(drop)
}

/// Writes a rewritten model, with what `mode` says about the external data of the model `source`
/// was read from. Data files are written before the model, so that a model that exists is whole.
///
/// # Errors
/// Where the target cannot be written, a reference to external data is not acceptable or its file is
/// missing, or the model would be too large. No model is written then.
pub fn write_model(
    model: &mut ModelProto,
    source: Option<&Path>,
    out: &Path,
    mode: ExternalData,
) -> Result<()> {
    if is_stream(out) && io::stdout().is_terminal() {
        bail!(
            "the model is binary and standard output is a terminal; redirect it, or name a file with -o"
        );
    }
    external::place(model, source, out, mode)?;
    if !is_stream(out) {
        return Ok(write(model, out)?);
    }
    let bytes = prost_length(model);
    if bytes > MAX_BYTES {
        bail!(
            "the model takes {bytes} bytes, and protobuf allows {MAX_BYTES} at most; keep the \
             weights in external data"
        );
    }
    let mut stdout = io::stdout().lock();
    write_to(model, &mut stdout)
        .and_then(|()| stdout.flush())
        .context("cannot write to standard output")
}

/// Writes text to a file, which appears complete or not at all, or to standard output for `-`.
///
/// # Errors
/// Where that cannot be written.
pub fn write_text(path: &Path, text: &str) -> Result<()> {
    if is_stream(path) {
        return print(text);
    }
    Ok(replace(path, |file| file.write_all(text.as_bytes()))?)
}

/// Writes text to standard output. A reader that left (`| head`) is no error.
///
/// # Errors
/// Where standard output cannot be written for another reason.
pub fn print(text: &str) -> Result<()> {
    let mut stdout = io::stdout().lock();
    match stdout
        .write_all(text.as_bytes())
        .and_then(|()| stdout.flush())
    {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => {
            Err(error).context("cannot write to standard output")
        }
        _ => Ok(()),
    }
}

fn prost_length(model: &ModelProto) -> u64 {
    prost::Message::encoded_len(model) as u64
}

/// The folder of a file, `.` for a bare name.
pub fn folder_of(path: &Path) -> &Path {
    match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    }
}

/// Whether two paths lead to one file, which need not exist, however they are spelt. A link in the
/// file's own place is not followed, as nothing is written through one.
pub fn is_one_place(a: &Path, b: &Path) -> bool {
    let place = |path: &Path| Some(folder_of(path).canonicalize().ok()?.join(path.file_name()?));
    a == b || place(a).is_some_and(|found| Some(found) == place(b))
}
