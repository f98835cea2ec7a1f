//! The targets for files of arrays.

use std::io::{Cursor, Write};
use std::path::Path;

use prost::bytes::Bytes;
use velora_runtime::data::batches::{Batches, Input, Last, Settings};
use velora_runtime::data::{Dataset, npz as archive, safetensors as tensors};
use velora_runtime::tensor::byte_length;
use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, ZipWriter};

/// Bytes of all arrays for each byte of an archive: what deflate can make of one, and the copy of what
/// lies in another order.
const MOST_OF_DEFLATE: usize = 2 * 1032;

/// An archive of arrays, or one array alone, which is put into an archive: each array that is accepted has
/// the bytes of its shape, all together no more than such a file can hold, and batches can be made of it.
pub fn npz(data: &[u8]) -> bool {
    let bytes = match data.starts_with(b"\x93NUMPY") {
        true => archived(data),
        false => Bytes::copy_from_slice(data),
    };
    let limit = bytes.len().saturating_mul(MOST_OF_DEFLATE);
    let Ok(dataset) = archive::decode(bytes, Path::new("data.npz")) else {
        return false;
    };
    check(&dataset, limit);
    !dataset.arrays.is_empty()
}

/// A file of tensors: as for archives, and no tensor is copied.
pub fn safetensors(data: &[u8]) -> bool {
    let bytes = Bytes::copy_from_slice(data);
    let Ok(dataset) = tensors::decode(bytes, Path::new("data.safetensors")) else {
        return false;
    };
    check(&dataset, data.len());
    true
}

/// An archive with one array, stored as it is.
fn archived(array: &[u8]) -> Bytes {
    let mut archive = ZipWriter::new(Cursor::new(Vec::new()));
    let options = SimpleFileOptions::default().compression_method(CompressionMethod::Stored);
    archive
        .start_file("x.npy", options)
        .and_then(|()| Ok(archive.write_all(array)?))
        .expect("writing to memory cannot fail");
    let written = archive.finish().expect("writing to memory cannot fail");
    written.into_inner().into()
}

fn check(dataset: &Dataset, limit: usize) {
    let mut total = 0usize;
    for (name, array) in &dataset.arrays {
        assert_eq!(
            byte_length(array.data_type, &array.shape),
            Some(array.bytes.len()),
            "'{name}' has other bytes than its shape"
        );
        total = total.saturating_add(array.bytes.len());
        batches(dataset, name);
    }
    assert!(total <= limit, "{total} bytes of arrays, {limit} at most");
}

/// Batches of two samples of one array: the first of an epoch, and the first of the next.
fn batches(dataset: &Dataset, name: &str) {
    const SIZE: usize = 2;
    let array = &dataset.arrays[name];
    let mut shape = array.shape.clone();
    let Some(samples) = shape.first_mut() else {
        return;
    };
    *samples = SIZE;
    let input = Input {
        name,
        data_type: array.data_type,
        shape: &shape,
        axis: 0,
    };
    // More samples would be ordered at length, and no otherwise.
    if array.shape[0] > 1000 {
        return;
    }
    let settings = Settings {
        size: SIZE,
        last: Last::Keep,
        shuffle: Some(array.bytes.len() as u64),
    };
    let Ok(mut batches) = Batches::new(dataset, &[input], settings) else {
        return;
    };
    let row = array.bytes.len() / array.shape[0];
    let mut place = vec![0; SIZE * row];
    for _ in 0..=batches.per_epoch() {
        let length = batches.batch().len() * row;
        batches
            .copy(0, &mut place[..length])
            .expect("a batch does not fit its own size");
        batches.advance();
    }
}
