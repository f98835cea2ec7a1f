//! Named arrays in files, and batches made of them.

pub mod batches;
mod npy;
pub mod npz;
pub mod safetensors;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use velora_graph::onnx::read::{FileError, Source};
use velora_graph::shapes::DataType;

use crate::tensor::Tensor;

/// Named arrays, and the file that they came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dataset {
    /// The file, for messages.
    pub file: PathBuf,
    /// The arrays by name.
    pub arrays: BTreeMap<String, Tensor>,
    /// Text that a safetensors file carries beside its tensors; empty for other files.
    pub metadata: BTreeMap<String, String>,
}

/// Why arrays could not be read, written or used.
#[derive(Debug, thiserror::Error)]
pub enum DataError {
    /// The operating system refused, or there is no such file.
    #[error(transparent)]
    File(#[from] FileError),
    /// The file as a whole is not what it should be.
    #[error("{}: {problem}; {hint}", file.display())]
    Malformed {
        /// The file.
        file: PathBuf,
        /// What was found and what was expected.
        problem: String,
        /// What may help.
        hint: &'static str,
    },
    /// One array cannot be read or written.
    #[error("{}: array '{name}': {problem}; {hint}", file.display())]
    Array {
        /// The file.
        file: PathBuf,
        /// The array's name.
        name: String,
        /// What was found and what was expected.
        problem: String,
        /// What may help.
        hint: &'static str,
    },
    /// No array for an input of the graph.
    #[error(
        "{}: no array '{input}', which the graph reads as {expected}; the file has {found}; rename \
         an array, or add it", file.display()
    )]
    Missing {
        /// The file.
        file: PathBuf,
        /// The input's name.
        input: String,
        /// The shape and type that the array would have.
        expected: String,
        /// The names of the arrays that there are.
        found: String,
    },
    /// An array does not fit an input of the graph.
    #[error("{}: array '{input}' is {found}, but the graph reads {expected}; {hint}", file.display())]
    Mismatch {
        /// The file.
        file: PathBuf,
        /// The name of the input and of the array.
        input: String,
        /// The type and shape that would fit.
        expected: String,
        /// The array's type and shape.
        found: String,
        /// What may help.
        hint: &'static str,
    },
    /// The arrays fit the inputs, but no batches of this size can be made of them.
    #[error("cannot make batches of {}: {problem}; {hint}", file.display())]
    Batches {
        /// The file.
        file: PathBuf,
        /// What was found and what was expected.
        problem: String,
        /// What may help.
        hint: &'static str,
    },
}

/// Reads an npz or a safetensors file; which of them it is, its first bytes tell.
///
/// A large file is mapped, and stays so for as long as an array that lies in it is held.
pub fn read(path: &Path) -> Result<Dataset, DataError> {
    let source = Source::open(path)?;
    decode(source.bytes().clone(), path)
}

/// Reads the bytes of an npz or a safetensors file; `file` is for messages.
pub fn decode(bytes: Bytes, file: &Path) -> Result<Dataset, DataError> {
    if bytes.starts_with(b"PK") {
        npz::decode(bytes, file)
    } else if bytes.starts_with(npy::MAGIC) {
        Err(DataError::Malformed {
            file: file.to_path_buf(),
            problem: "this is a single array without a name".to_owned(),
            hint: "write named arrays with numpy.savez(file, x=..., labels=...)",
        })
    } else {
        safetensors::decode(bytes, file)
    }
}

/// A type and a shape in the manner of ONNX's textual syntax.
fn described(data_type: DataType, shape: &[impl std::fmt::Display]) -> String {
    let sizes: Vec<String> = shape.iter().map(|size| size.to_string()).collect();
    format!("{data_type}[{}]", sizes.join(", "))
}
