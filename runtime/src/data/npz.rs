//! Archives of NumPy arrays: ZIP files whose entries are arrays, named with `.npy` at the end.

use std::collections::BTreeMap;
use std::io::{BufWriter, Cursor, Read, Write};
use std::path::Path;

use bytes::Bytes;
use velora_graph::onnx::read::{FileError, Source};
use velora_graph::onnx::write::replace;
use zip::result::ZipError;
use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, ZipArchive, ZipWriter};

use super::{DataError, Dataset, npy};
use crate::tensor::{TensorView, byte_length};

/// Deflate makes of one byte 1032 at most (258 bytes from two bits).
const MAX_RATIO: u64 = 1032;

/// Reads an archive.
///
/// A large file is mapped. Elements of entries that `numpy.savez` wrote stay where they are, and are not
/// read before they are used; their checksums are therefore not compared. Entries that are compressed
/// (`numpy.savez_compressed`), big-endian or in Fortran order are converted into memory.
pub fn read(path: &Path) -> Result<Dataset, DataError> {
    let source = Source::open(path)?;
    decode(source.bytes().clone(), path)
}

/// Reads the bytes of an archive; `file` is for messages.
pub fn decode(bytes: Bytes, file: &Path) -> Result<Dataset, DataError> {
    let malformed = |error: ZipError| DataError::Malformed {
        file: file.to_path_buf(),
        problem: error.to_string(),
        hint: "is this a file of numpy.savez, and complete?",
    };
    let mut archive = ZipArchive::new(Cursor::new(bytes.clone())).map_err(malformed)?;
    let mut arrays = BTreeMap::new();
    for index in 0..archive.len() {
        let name = match archive.name_for_index(index) {
            Some(name) => name.map_err(malformed)?.into_owned(),
            None => break,
        };
        // NumPy reads entries with other endings as plain bytes; none of them is an array.
        let Some(name) = name.strip_suffix(".npy").map(str::to_owned) else {
            continue;
        };
        let tensor = entry(&mut archive, index, &bytes).and_then(|bytes| npy::decode(&bytes));
        match tensor {
            Ok(tensor) => arrays.insert(name, tensor),
            Err((problem, hint)) => {
                return Err(DataError::Array {
                    file: file.to_path_buf(),
                    name,
                    problem,
                    hint,
                });
            }
        };
    }
    Ok(Dataset {
        file: file.to_path_buf(),
        arrays,
        metadata: BTreeMap::new(),
    })
}

/// The content of one entry: a part of the mapping where it is stored as it is.
fn entry(
    archive: &mut ZipArchive<Cursor<Bytes>>,
    index: usize,
    bytes: &Bytes,
) -> Result<Bytes, npy::Problem> {
    const HINT: &str = "write the file again with numpy.savez";
    let failed = |error: ZipError| (error.to_string(), HINT);
    let (method, size, compressed, start) = {
        let entry = archive.by_index_raw(index).map_err(failed)?;
        if entry.encrypted() {
            return Err(("it is encrypted".to_owned(), HINT));
        }
        let start = entry.data_start();
        let sizes = (entry.size(), entry.compressed_size());
        (entry.compression(), sizes.0, sizes.1, start)
    };
    match method {
        CompressionMethod::Stored => {
            let range = start.and_then(|start| {
                let end = start.checked_add(compressed)?;
                let range = usize::try_from(start).ok()?..usize::try_from(end).ok()?;
                (range.end <= bytes.len()).then_some(range)
            });
            match range {
                Some(range) if size == compressed => Ok(bytes.slice(range)),
                _ => Err((
                    format!("its {size} bytes do not lie within the file"),
                    "is the file complete?",
                )),
            }
        }
        CompressionMethod::Deflated => {
            let refused = || {
                (
                    format!("it claims to be {size} bytes, of {compressed} compressed ones"),
                    "is the file damaged? write it again with numpy.savez",
                )
            };
            // A false size must not make us reserve memory, nor a true one end in an abort.
            if size > compressed.saturating_mul(MAX_RATIO) {
                return Err(refused());
            }
            let mut content = Vec::new();
            let length = usize::try_from(size).map_err(|_| refused())?;
            if content.try_reserve_exact(length).is_err() {
                return Err((
                    format!("there is no memory for its {size} bytes"),
                    "numpy.savez writes arrays that can be mapped",
                ));
            }
            let mut entry = archive.by_index(index).map_err(failed)?.take(size);
            let read = entry.read_to_end(&mut content);
            // At the end, where the checksum is compared.
            let read = read.and_then(|_| entry.into_inner().read(&mut [0]));
            match read {
                Ok(0) if content.len() == length => Ok(Bytes::from(content)),
                Ok(_) => Err(refused()),
                Err(error) => Err((error.to_string(), HINT)),
            }
        }
        other => Err((
            format!("its compression ({other:?}) is not supported"),
            HINT,
        )),
    }
}

/// Writes arrays to an archive as `numpy.savez` does, uncompressed; the file appears complete, or not
/// at all. Elements begin at multiples of 64 bytes, and the same arrays make the same file.
pub fn write<'a>(
    path: &Path,
    arrays: impl IntoIterator<Item = (&'a str, TensorView<'a>)>,
) -> Result<(), DataError> {
    let mut entries = BTreeMap::new();
    for (name, tensor) in arrays {
        let refused = |problem, hint| DataError::Array {
            file: path.to_path_buf(),
            name: name.to_owned(),
            problem,
            hint,
        };
        let Some(prelude) = npy::prelude(&tensor) else {
            return Err(refused(
                format!("NumPy has no type {}", tensor.data_type),
                "write a safetensors file",
            ));
        };
        if byte_length(tensor.data_type, tensor.shape) != Some(tensor.bytes.len()) {
            return Err(refused(
                format!("{} bytes are not {:?}", tensor.bytes.len(), tensor.shape),
                "the shape and the elements must agree",
            ));
        }
        if entries.insert(name, (prelude, tensor.bytes)).is_some() {
            return Err(refused(
                "it is given twice".to_owned(),
                "rename one of them",
            ));
        }
    }
    let written = replace(path, |file| {
        let mut archive = ZipWriter::new(BufWriter::new(file));
        for (name, (prelude, elements)) in entries {
            let bytes = (prelude.len() + elements.len()) as u64;
            let options = SimpleFileOptions::default()
                .compression_method(CompressionMethod::Stored)
                .last_modified_time(zip::DateTime::default())
                .large_file(bytes >= u64::from(u32::MAX))
                .with_alignment(64);
            archive.start_file(format!("{name}.npy"), options)?;
            archive.write_all(&prelude)?;
            archive.write_all(elements)?;
        }
        archive.finish()?.flush()
    });
    written.map_err(|error: FileError| error.into())
}
