//! Files of tensors in the format of <https://huggingface.co/docs/safetensors>: the length of a header,
//! the header as JSON, the elements.
//!
//! The crate of that name reads the header, which it checks completely. It can write only to memory or
//! without syncing, so the few lines that write are here.

use std::collections::BTreeMap;
use std::io::{BufWriter, Write};
use std::path::Path;

use bytes::Bytes;
use safetensors::{Dtype, SafeTensors};
use serde_json::{Map, Value, json};
use velora_graph::onnx::read::Source;
use velora_graph::onnx::write::replace;
use velora_graph::shapes::DataType;

use super::{DataError, Dataset};
use crate::tensor::{Tensor, TensorView, byte_length};

/// The key of the header that holds text, and can therefore not be a tensor's name.
const METADATA: &str = "__metadata__";
/// Readers refuse longer headers.
const MAX_HEADER: usize = 100_000_000;

const TYPES: [(Dtype, DataType); 13] = [
    (Dtype::BOOL, DataType::BOOL),
    (Dtype::I8, DataType::INT8),
    (Dtype::I16, DataType(5)),
    (Dtype::I32, DataType::INT32),
    (Dtype::I64, DataType::INT64),
    (Dtype::U8, DataType::UINT8),
    (Dtype::U16, DataType(4)),
    (Dtype::U32, DataType(12)),
    (Dtype::U64, DataType(13)),
    (Dtype::F16, DataType::FLOAT16),
    (Dtype::BF16, DataType::BFLOAT16),
    (Dtype::F32, DataType::FLOAT),
    (Dtype::F64, DataType::DOUBLE),
];

/// Reads a file of tensors, which stay in the mapped file.
pub fn read(path: &Path) -> Result<Dataset, DataError> {
    let source = Source::open(path)?;
    decode(source.bytes().clone(), path)
}

/// Reads the bytes of a file of tensors; `file` is for messages.
pub fn decode(bytes: Bytes, file: &Path) -> Result<Dataset, DataError> {
    let malformed = |problem: String| DataError::Malformed {
        file: file.to_path_buf(),
        problem,
        hint: "is this a safetensors or an npz file, and complete?",
    };
    let tensors = SafeTensors::deserialize(&bytes).map_err(|e| malformed(e.to_string()))?;
    let (_, header) = SafeTensors::read_metadata(&bytes).map_err(|e| malformed(e.to_string()))?;
    let mut arrays = BTreeMap::new();
    for (name, tensor) in tensors.iter() {
        let array = |problem: String, hint| DataError::Array {
            file: file.to_path_buf(),
            name: name.to_owned(),
            problem,
            hint,
        };
        let Some((_, data_type)) = TYPES.iter().find(|(known, _)| *known == tensor.dtype()) else {
            return Err(array(
                format!("element type {} is not supported", tensor.dtype()),
                "convert it to one of the types that NumPy has, or to BF16",
            ));
        };
        if byte_length(*data_type, tensor.shape()) != Some(tensor.data().len()) {
            return Err(array(
                format!("its shape {:?} exceeds any memory", tensor.shape()),
                "is the file damaged?",
            ));
        }
        let tensor = Tensor {
            data_type: *data_type,
            shape: tensor.shape().to_vec(),
            bytes: bytes.slice_ref(tensor.data()),
        };
        arrays.insert(name.to_owned(), tensor);
    }
    let metadata = header.metadata().clone().unwrap_or_default();
    Ok(Dataset {
        file: file.to_path_buf(),
        arrays,
        metadata: metadata.into_iter().collect(),
    })
}

/// Writes tensors and text to a file, which appears complete, or not at all, and is on the disk when
/// this returns. The same content makes the same file. Elements begin at multiples of their size.
pub fn write<'a>(
    path: &Path,
    metadata: &BTreeMap<String, String>,
    tensors: impl IntoIterator<Item = (&'a str, TensorView<'a>)>,
) -> Result<(), DataError> {
    let array = |name: &str, problem: String, hint| DataError::Array {
        file: path.to_path_buf(),
        name: name.to_owned(),
        problem,
        hint,
    };
    let mut entries = Vec::new();
    for (name, tensor) in tensors {
        let Some((dtype, _)) = TYPES.iter().find(|(_, t)| *t == tensor.data_type) else {
            let problem = format!("element type {} is not supported", tensor.data_type);
            return Err(array(name, problem, "convert it before it is saved"));
        };
        if byte_length(tensor.data_type, tensor.shape) != Some(tensor.bytes.len()) {
            let problem = format!("{} bytes are not {:?}", tensor.bytes.len(), tensor.shape);
            return Err(array(
                name,
                problem,
                "the shape and the elements must agree",
            ));
        }
        entries.push((*dtype, name, tensor));
    }
    // Wide elements first, which aligns all of them.
    entries.sort_by(|a, b| b.0.cmp(&a.0).then(a.1.cmp(b.1)));

    // A map of serde_json is sorted by key.
    let mut header = Map::new();
    if !metadata.is_empty() {
        header.insert(METADATA.to_owned(), json!(metadata));
    }
    let mut offset = 0usize;
    for (dtype, name, tensor) in &entries {
        // Slices in memory cannot add up to more than the address space.
        let end = offset + tensor.bytes.len();
        let info = json!({
            "dtype": dtype.to_string(),
            "shape": tensor.shape,
            "data_offsets": [offset, end],
        });
        offset = end;
        if header.insert((*name).to_owned(), info).is_some() || *name == METADATA {
            return Err(array(
                name,
                "the name is taken".to_owned(),
                "rename the tensor",
            ));
        }
    }
    let mut header = Value::Object(header).to_string();
    while !header.len().is_multiple_of(8) {
        header.push(' ');
    }
    if header.len() > MAX_HEADER {
        return Err(DataError::Malformed {
            file: path.to_path_buf(),
            problem: format!("the header would take {} bytes", header.len()),
            hint: "readers refuse more than 100000000; save fewer tensors in one file",
        });
    }
    replace(path, |file| {
        let mut writer = BufWriter::new(file);
        writer.write_all(&(header.len() as u64).to_le_bytes())?;
        writer.write_all(header.as_bytes())?;
        for (_, _, tensor) in &entries {
            writer.write_all(tensor.bytes)?;
        }
        writer.flush()
    })?;
    Ok(())
}
