//! Reading models and writing results: files, standard input and output.

mod copy;
mod external;
mod hash;

#[cfg(test)]
pub use hash::Hashed;
pub use hash::{Fingerprint, fingerprint, sha256};

use crate::cli::{ExternalData, is_stream};
use anyhow::{Context, Result, bail};
use bytes::Bytes;
use std::io::{self, ErrorKind, IsTerminal, Read, Write};
use std::path::{Path, PathBuf};
use velora_graph::onnx::read::{Source, UnknownFields, decode_named};
use velora_graph::onnx::schema::ModelProto;
use velora_graph::onnx::write::{MAX_BYTES, replace, stage, write_to};

/// A model and where it came from.
#[derive(Debug)]
pub struct Input {
    /// The model; its payloads are slices of the file.
    pub model: ModelProto,
    /// The file; none for standard input.
    pub source: Option<Source>,
    /// The files that hold data of its tensors.
    pub data: Vec<PathBuf>,
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
            let source = Source::open(path)?;
            let mut model = source.decode(unknown)?;
            let (locations, _) = external::locations(&mut model)?;
            let folder = folder_of(path);
            return Ok(Input {
                model,
                source: Some(source),
                data: locations.iter().map(|data| folder.join(data)).collect(),
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
            source: None,
            data: Vec::new(),
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

/// Where a model is to be written, and how.
#[derive(Clone, Copy, Debug)]
pub struct Output<'a> {
    /// The file, or `-`.
    pub path: &'a Path,
    /// What becomes of external data.
    pub external_data: ExternalData,
    /// Whether the user wants to see no progress.
    pub quiet: bool,
}

/// Writes a model that was read from `source`, and its external data.
///
/// All files are written, and on the disk, before the first is put in its place; data files come before the
/// model, so that a model that exists is whole.
///
/// # Errors
/// Where the target cannot be written, a reference to external data is not acceptable or its file is
/// missing, the model would be too large, or something that was read has changed meanwhile. No file has been
/// replaced then; but where an error comes with the replacing itself, those before it have.
pub fn write_model(
    model: &mut ModelProto,
    source: Option<&Source>,
    output: Output<'_>,
) -> Result<()> {
    let out = output.path;
    if is_stream(out) && io::stdout().is_terminal() {
        bail!(
            "the model is binary and standard output is a terminal; redirect it, or name a file with -o"
        );
    }
    let placed = external::place(model, source.map(Source::path), output)?;
    let unchanged = || -> Result<()> {
        let mut read = source.into_iter().chain(placed.inlined());
        Ok(read.try_for_each(Source::check_unchanged)?)
    };
    if !is_stream(out) {
        let staged = stage(model, out);
        // First, because whatever else went wrong is the consequence.
        unchanged()?;
        let staged = staged?;
        placed.commit()?;
        return Ok(staged.commit()?);
    }
    let bytes = prost_length(model);
    if bytes > MAX_BYTES {
        bail!(
            "the model takes {bytes} bytes, and protobuf allows {MAX_BYTES} at most; keep the \
             weights in external data"
        );
    }
    let mut stdout = io::stdout().lock();
    let written = write_to(model, &mut stdout).and_then(|()| stdout.flush());
    unchanged()?;
    written.context("cannot write to standard output")
}

/// Whether no output would replace a file that holds data of the model's tensors.
///
/// # Errors
/// Names the output and the file that the model needs.
pub fn check_spares_data<'a>(
    data: &[PathBuf],
    outputs: impl IntoIterator<Item = &'a PathBuf>,
) -> Result<()> {
    for out in outputs.into_iter().filter(|out| !is_stream(out)) {
        if let Some(data) = data.iter().find(|data| is_one_place(out, data)) {
            bail!("{}", external::would_replace(out, data));
        }
    }
    Ok(())
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
