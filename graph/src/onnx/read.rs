//! Reading a model by reference out of a mapped file.
//!
//! Payloads (`raw_data`, strings of attributes) become [`Bytes`] slices of the mapping, so decoding
//! costs memory for the graph only. Before decoding, the wire format is walked once against a table
//! of the fields of [`schema`](super::schema): prost drops fields that it does not know, and
//! rewriting such a file would lose them silently.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use memmap2::Mmap;
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

/// A file mapped into memory; slices of it live as long as anything refers to them.
#[derive(Clone, Debug)]
pub struct Source {
    bytes: Bytes,
    path: PathBuf,
}

impl Source {
    /// Maps a file. Nothing is read yet.
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
        Source::map(&file, path)
    }

    /// Maps an opened file; errors name it `path`.
    pub fn map(file: &File, path: &Path) -> Result<Self, FileError> {
        let metadata = file.metadata().map_err(failed("read", path))?;
        if !metadata.is_file() {
            return Err(FileError::NotAFile {
                path: path.to_path_buf(),
            });
        }
        let bytes = if metadata.len() == 0 {
            Bytes::new()
        } else {
            // SAFETY: the mapping is read-only and private to this process; nothing here writes to
            // an input file (outputs are new files renamed into place, which leaves a mapped one
            // alone). As with every mapped file, another process that truncates or rewrites it in
            // place while the tool runs breaks it; that is a documented limit of the tool.
            let map = unsafe { Mmap::map(file) }.map_err(failed("map", path))?;
            Bytes::from_owner(map)
        };
        Ok(Self {
            bytes,
            path: path.to_path_buf(),
        })
    }

    /// The whole file.
    pub fn bytes(&self) -> &Bytes {
        &self.bytes
    }

    /// Where the file is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Decodes the model in the file; its payloads are slices of the mapping.
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

/// Maps a file and decodes the model in it; its payloads are slices of the mapping.
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
