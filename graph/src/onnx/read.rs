//! Reading a model by reference out of a file's bytes.
//!
//! Payloads (`raw_data`, strings of attributes) become [`Bytes`] slices of the file, which is mapped where
//! it is large, so decoding costs memory for the graph only. Before decoding, the wire format is walked once against a table
//! of the fields of [`schema`](super::schema): prost drops fields that it does not know, and
//! rewriting such a file would lose them silently.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use bytes::Bytes;
use memmap2::{Mmap, MmapMut};
use prost::Message;

use super::schema::ModelProto;

mod beneath;
mod external;
mod wire;

pub use external::{ExternalData, check_external_data, map_external_data, open_external_file};
use wire::{Fault, Walk};

/// What to do with fields that the schema does not describe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UnknownFields {
    /// Stop with [`FileError::UnknownField`].
    Refuse,
    /// Drop them.
    Allow,
}

/// Why a file could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// The operating system refused.
    ///
    /// The system's message is the error's source, not part of its own message.
    #[error("cannot {action} {}", path.display())]
    Io {
        /// What was tried, as a verb.
        action: &'static str,
        /// On which file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A folder, a pipe or a device where a file is needed.
    #[error("{} is not a regular file; give the path of a file", path.display())]
    NotAFile {
        /// The path.
        path: PathBuf,
    },
    /// A file in the place of the target that nobody may write to.
    #[error("cannot write {}: the file is write-protected; remove it, or choose another name", path.display())]
    Protected {
        /// The target.
        path: PathBuf,
    },
    /// A file that something else wrote to while it was in use.
    #[error("{} changed while it was read; run again when nothing else writes to it", path.display())]
    Changed {
        /// The file.
        path: PathBuf,
    },
    /// No folder to write into.
    #[error("cannot write {}: there is no folder {}; make it first", path.display(), folder.display())]
    NoFolder {
        /// The target.
        path: PathBuf,
        /// The missing folder.
        folder: PathBuf,
    },
    /// Nothing in it that makes a model.
    #[error("{}: {found}, expected a graph, a function or an ir_version; is this an ONNX model?", file.display())]
    NotAModel {
        /// The file.
        file: PathBuf,
        /// What it holds instead.
        found: &'static str,
    },
    /// The bytes are not a protobuf message of the ONNX schema.
    #[error("{}: at byte {offset}, in {place}: {problem}; is this an ONNX model, and complete?", file.display())]
    Malformed {
        /// The file.
        file: PathBuf,
        /// Where in the file.
        offset: usize,
        /// The path of the message there, as `graph.node[3]`.
        place: String,
        /// What was found and what was expected.
        problem: String,
    },
    /// The bytes were well-formed, but prost could not decode them; its message is the source.
    #[error("{}: cannot decode it; is this an ONNX model, and complete?", file.display())]
    Decode {
        /// The file.
        file: PathBuf,
        /// What prost said.
        source: prost::DecodeError,
    },
    /// A field newer than the schema.
    #[error(
        "{}: unknown field at {place}: it is not in the ONNX schema up to IR version {}, and \
         rewriting the file would lose it; pass --allow-unknown-fields to drop it",
        file.display(), super::schema::IR_VERSION
    )]
    UnknownField {
        /// The file.
        file: PathBuf,
        /// The path of the field, as `graph.node[3].attribute[0] field 99`.
        place: String,
    },
    /// The reference to a tensor's external data is not acceptable.
    #[error("external data of {tensor}: {problem}; {hint}")]
    ExternalData {
        /// Which tensor.
        tensor: String,
        /// What is wrong, with the value found.
        problem: String,
        /// What would be right.
        hint: &'static str,
    },
    /// The encoded model is larger than any protobuf reader accepts.
    #[error(
        "cannot write {}: the model takes {bytes} bytes, and protobuf allows {} at most; keep the \
         weights in external data", path.display(), super::write::MAX_BYTES
    )]
    TooLarge {
        /// The target.
        path: PathBuf,
        /// The encoded length.
        bytes: u64,
    },
}

/// Files up to this many bytes are read by [`Source::open`], longer ones are mapped. What is read stays what
/// it is whatever becomes of the file, and most graphs whose weights are elsewhere are far below.
const READ_BYTES: u64 = 16 << 20;

/// A file in memory: read, or mapped where it is large. Slices of it live as long as anything refers to them.
#[derive(Clone, Debug)]
pub struct Source {
    bytes: Bytes,
    path: PathBuf,
    /// A mapped file, and its length and time of change when it was mapped.
    mapped: Option<(Arc<File>, Stamp)>,
}

/// The length of a file, and when its content was written to last.
type Stamp = (u64, Option<SystemTime>);

fn stamp(metadata: &fs::Metadata) -> Stamp {
    (metadata.len(), metadata.modified().ok())
}

impl Source {
    /// Opens a file: a small one is read, a large one is mapped, and nothing of it read yet.
    ///
    /// # Errors
    /// Where it is no file, cannot be opened, or changed while it was read.
    pub fn open(path: &Path) -> Result<Self, FileError> {
        // Asked before opening, because opening a device may do something, and a pipe would wait for its
        // writer; and again of the opened file, which may be another by then.
        let metadata = fs::metadata(path).map_err(failed("read", path))?;
        if !metadata.is_file() {
            return Err(FileError::NotAFile {
                path: path.to_path_buf(),
            });
        }
        let mut options = File::options();
        options.read(true);
        #[cfg(unix)]
        {
            use std::os::unix::fs::OpenOptionsExt;
            // The bits are of the type that the system's headers have.
            let flags = rustix::fs::OFlags::NONBLOCK.bits();
            options.custom_flags(flags as i32);
        }
        let file = options.open(path).map_err(failed("open", path))?;
        Source::of(file, path, |length| length > READ_BYTES)
    }

    /// Maps an opened file, however small, of which little may be used; errors name it `path`. Nothing of it is
    /// read yet.
    ///
    /// # Errors
    /// Where it is no plain file, or cannot be mapped.
    pub fn map(file: File, path: &Path) -> Result<Self, FileError> {
        Source::of(file, path, |_| true)
    }

    fn of(file: File, path: &Path, is_mapped: impl Fn(u64) -> bool) -> Result<Self, FileError> {
        let metadata = file.metadata().map_err(failed("read", path))?;
        if !metadata.is_file() {
            return Err(FileError::NotAFile {
                path: path.to_path_buf(),
            });
        }
        let before = stamp(&metadata);
        let (bytes, mapped) = if before.0 == 0 {
            (Bytes::new(), None)
        } else if is_mapped(before.0) {
            // SAFETY: the mapping is read-only and private to this process; nothing here writes to
            // an input file (outputs are new files renamed into place, which leaves a mapped one
            // alone). Another process may still truncate or rewrite it in place. Truncation ends this
            // process (`signals`); a rewrite changes payloads, which are bytes of any value to whoever reads
            // them, and is found by `check_unchanged`.
            let map = unsafe { Mmap::map(&file) }.map_err(failed("map", path))?;
            (Bytes::from_owner(map), Some((Arc::new(file), before)))
        } else {
            // As aligned as a mapped file, which readers of arrays rely on.
            let length = usize::try_from(before.0).unwrap_or(usize::MAX);
            let mut bytes = MmapMut::map_anon(length).map_err(failed("read", path))?;
            let read = (&file).read_exact(&mut bytes);
            let after = file.metadata().map_err(failed("read", path))?;
            let shorter = |error: &io::Error| error.kind() == io::ErrorKind::UnexpectedEof;
            if stamp(&after) != before || read.as_ref().is_err_and(shorter) {
                let path = path.to_path_buf();
                return Err(FileError::Changed { path });
            }
            read.map_err(failed("read", path))?;
            let bytes = bytes.make_read_only().map_err(failed("read", path))?;
            (Bytes::from_owner(bytes), None)
        };
        Ok(Self {
            bytes,
            path: path.to_path_buf(),
            mapped,
        })
    }

    /// Whether the bytes are still those of the file that was opened, as far as its length and its time of
    /// change tell.
    ///
    /// # Errors
    /// Where they are not, or where that cannot be found out.
    pub fn check_unchanged(&self) -> Result<(), FileError> {
        let Some((file, before)) = &self.mapped else {
            return Ok(());
        };
        let path = || self.path.clone();
        match file.metadata() {
            Ok(now) if stamp(&now) == *before => Ok(()),
            Ok(_) => Err(FileError::Changed { path: path() }),
            Err(source) => Err(FileError::Io {
                action: "read",
                path: path(),
                source,
            }),
        }
    }

    /// The whole file.
    pub fn bytes(&self) -> &Bytes {
        &self.bytes
    }

    /// Where the file is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Decodes the model in the file; its payloads are slices of the file's bytes.
    pub fn decode(&self, unknown: UnknownFields) -> Result<ModelProto, FileError> {
        decode_named(self.bytes.clone(), &self.path, unknown)
    }
}

fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> FileError {
    let path = path.to_path_buf();
    move |source| FileError::Io {
        action,
        path,
        source,
    }
}

/// Opens a file and decodes the model in it; its payloads are slices of the file's bytes.
pub fn read(path: &Path, unknown: UnknownFields) -> Result<ModelProto, FileError> {
    Source::open(path)?.decode(unknown)
}

/// Decodes a model; its payloads are slices of `bytes`.
pub fn decode(bytes: Bytes, unknown: UnknownFields) -> Result<ModelProto, FileError> {
    decode_named(bytes, Path::new("<memory>"), unknown)
}

/// Decodes a model; its payloads are slices of `bytes`, and errors name it `file`.
pub fn decode_named(
    bytes: Bytes,
    file: &Path,
    unknown: UnknownFields,
) -> Result<ModelProto, FileError> {
    let not_a_model = |found| FileError::NotAModel {
        file: file.to_path_buf(),
        found,
    };
    if bytes.is_empty() {
        return Err(not_a_model("the file is empty"));
    }
    Walk::new(&bytes, unknown).run().map_err(|fault| {
        let file = file.to_path_buf();
        match fault {
            Fault::Unknown { place } => FileError::UnknownField { file, place },
            Fault::Malformed {
                offset,
                place,
                problem,
            } => FileError::Malformed {
                file,
                offset,
                place,
                problem,
            },
        }
    })?;
    let model = ModelProto::decode(bytes).map_err(|source| FileError::Decode {
        file: file.to_path_buf(),
        source,
    })?;
    if model.graph.is_none() && model.functions.is_empty() && model.ir_version.is_none() {
        return Err(not_a_model("neither graph nor functions nor ir_version"));
    }
    Ok(model)
}
