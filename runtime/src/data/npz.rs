//! Archives of NumPy arrays: ZIP files whose entries are arrays, named with `.npy` at the end.

use std::collections::BTreeMap;
use std::io::{BufWriter, Cursor, Read, Write};
use std::ops::Range;
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

const WRITE_AGAIN: &str = "write the file again with numpy.savez";

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
    let mut entries = Vec::new();
    for index in 0..archive.len() {
        let name = match archive.name_for_index(index) {
            Some(name) => name.map_err(malformed)?.into_owned(),
            None => break,
        };
        // NumPy reads entries with other endings as plain bytes; none of them is an array.
        let Some(name) = name.strip_suffix(".npy").map(str::to_owned) else {
            continue;
        };
        match Entry::find(&mut archive, index, bytes.len()) {
            Ok(entry) => entries.push((name, entry)),
            Err(problem) => return Err(of_array(file, name, problem)),
        }
    }
    apart(&entries).map_err(|(name, problem)| of_array(file, name, problem))?;
    let mut arrays = BTreeMap::new();
    for (name, entry) in entries {
        let content = entry.content(&mut archive, &bytes);
        match content.and_then(|content| npy::decode(&content)) {
            Ok(tensor) => arrays.insert(name, tensor),
            Err(problem) => return Err(of_array(file, name, problem)),
        };
    }
    Ok(Dataset {
        file: file.to_path_buf(),
        arrays,
        metadata: BTreeMap::new(),
    })
}

fn of_array(file: &Path, name: String, (problem, hint): npy::Problem) -> DataError {
    DataError::Array {
        file: file.to_path_buf(),
        name,
        problem,
        hint,
    }
}

/// Where the content of one entry is.
struct Entry {
    index: usize,
    method: CompressionMethod,
    /// The bytes that it says to have when it is taken out.
    size: u64,
    /// Where the entry begins, its own header included.
    begin: u64,
    /// The bytes as they are stored.
    stored: Range<usize>,
}

/// Refuses entries that share bytes: each would be taken out anew, so that an archive could make of itself
/// what grows with the square of its length.
fn apart(entries: &[(String, Entry)]) -> Result<(), (String, npy::Problem)> {
    let mut sorted: Vec<&(String, Entry)> = entries.iter().collect();
    sorted.sort_by_key(|(_, entry)| (entry.begin, entry.stored.end));
    for pair in sorted.windows(2) {
        let [(other, before), (name, entry)] = pair else {
            continue;
        };
        if before.stored.end as u64 > entry.begin {
            let problem = format!("it shares bytes of the file with array '{other}'");
            return Err((name.clone(), (problem, WRITE_AGAIN)));
        }
    }
    Ok(())
}

impl Entry {
    /// What the directory says of an entry, as far as that can be true in a file of `length` bytes.
    fn find(
        archive: &mut ZipArchive<Cursor<Bytes>>,
        index: usize,
        length: usize,
    ) -> Result<Entry, npy::Problem> {
        let entry = archive.by_index_raw(index).map_err(failed)?;
        if entry.encrypted() {
            return Err(("it is encrypted".to_owned(), WRITE_AGAIN));
        }
        let (size, compressed) = (entry.size(), entry.compressed_size());
        let range = entry.data_start().and_then(|start| {
            let end = start.checked_add(compressed)?;
            let range = usize::try_from(start).ok()?..usize::try_from(end).ok()?;
            (range.end <= length).then_some(range)
        });
        let Some(stored) = range else {
            return Err((
                format!("its {compressed} bytes do not lie within the file"),
                "is the file complete?",
            ));
        };
        Ok(Entry {
            index,
            method: entry.compression(),
            size,
            begin: entry.header_start(),
            stored,
        })
    }

    /// The content: a part of the mapping where it is stored as it is.
    fn content(
        self,
        archive: &mut ZipArchive<Cursor<Bytes>>,
        bytes: &Bytes,
    ) -> Result<Bytes, npy::Problem> {
        let (size, compressed) = (self.size, self.stored.len() as u64);
        let refused = || {
            (
                format!("it claims to be {size} bytes, of {compressed} stored ones"),
                "is the file damaged? write it again with numpy.savez",
            )
        };
        match self.method {
            CompressionMethod::Stored if size == compressed => Ok(bytes.slice(self.stored)),
            CompressionMethod::Stored => Err(refused()),
            CompressionMethod::Deflated => {
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
                let mut entry = archive.by_index(self.index).map_err(failed)?.take(size);
                let read = entry.read_to_end(&mut content);
                // At the end, where the checksum is compared.
                let read = read.and_then(|_| entry.into_inner().read(&mut [0]));
                match read {
                    Ok(0) if content.len() == length => Ok(Bytes::from(content)),
                    Ok(_) => Err(refused()),
                    Err(error) => Err((error.to_string(), WRITE_AGAIN)),
                }
            }
            other => Err((
                format!("its compression ({other:?}) is not supported"),
                WRITE_AGAIN,
            )),
        }
    }
}

fn failed(error: ZipError) -> npy::Problem {
    (error.to_string(), WRITE_AGAIN)
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
