//! Files of tensors in the format of <https://huggingface.co/docs/safetensors>: the length of a header,
//! the header as JSON, the elements.
//!
//! The crate of that name reads the header, which it checks completely. It can write only to memory or
//! without syncing, so the few lines that write are here.
//!
//! The format has no integers of 4 bits. Such a tensor is written as its bytes, and the metadata says
//! under `velora.packed` what they are: by name, element type and shape. Other readers see bytes.

use std::collections::BTreeMap;
use std::io::{BufWriter, Write};
use std::path::Path;

use bytes::Bytes;
use safetensors::{Dtype, SafeTensors};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use velora_graph::onnx::read::Source;
use velora_graph::onnx::write::replace;
use velora_graph::shapes::DataType;

use super::{DataError, Dataset};
use crate::tensor::{Tensor, TensorView, byte_length};

/// The key of the header that holds text, and can therefore not be a tensor's name.
const METADATA: &str = "__metadata__";
/// The key of the metadata with the types of tensors that are written as bytes.
const PACKED: &str = "velora.packed";
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

/// What the bytes of a tensor are.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Packed {
    dtype: String,
    shape: Vec<usize>,
}

impl Packed {
    /// The element type; `None` where the format has it, or nobody.
    fn data_type(&self) -> Option<DataType> {
        let known = [DataType::INT4, DataType::UINT4];
        { known.into_iter() }.find(|ty| ty.to_string() == self.dtype)
    }
}

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
    let mut metadata: BTreeMap<String, String> = metadata.into_iter().collect();
    if let Some(text) = metadata.remove(PACKED) {
        unpack(&text, &mut arrays).map_err(malformed)?;
    }
    Ok(Dataset {
        file: file.to_path_buf(),
        arrays,
        metadata,
    })
}

/// Gives tensors that were written as bytes their types; `text` says which, and may say anything.
fn unpack(text: &str, arrays: &mut BTreeMap<String, Tensor>) -> Result<(), String> {
    let packed: BTreeMap<String, Packed> = serde_json::from_str(text)
        .map_err(|error| format!("its metadata '{PACKED}' cannot be read: {error}"))?;
    for (name, packed) in packed {
        let Some(data_type) = packed.data_type() else {
            return Err(format!(
                "its metadata '{PACKED}' gives '{name}' the type '{}': expected int4 or uint4",
                packed.dtype
            ));
        };
        let bytes = byte_length(data_type, &packed.shape);
        let array = arrays
            .get_mut(&name)
            .filter(|array| array.data_type == DataType::UINT8 && bytes == Some(array.bytes.len()));
        let Some(array) = array else {
            return Err(format!(
                "its metadata '{PACKED}' gives '{name}' the type {data_type}{:?}, and there are no \
                 such bytes",
                packed.shape
            ));
        };
        array.data_type = data_type;
        array.shape = packed.shape;
    }
    Ok(())
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
    let mut packed: BTreeMap<&str, Packed> = BTreeMap::new();
    for (name, tensor) in tensors {
        let stored = match tensor.data_type.is_int4() {
            true => DataType::UINT8,
            false => tensor.data_type,
        };
        let Some((dtype, _)) = TYPES.iter().find(|(_, t)| *t == stored) else {
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
        let mut shape = tensor.shape.to_vec();
        if stored != tensor.data_type {
            let dtype = tensor.data_type.to_string();
            packed.insert(name, Packed { dtype, shape });
            shape = vec![tensor.bytes.len()];
        }
        entries.push((*dtype, name, shape, tensor.bytes));
    }
    // Wide elements first, which aligns all of them.
    entries.sort_by(|a, b| b.0.cmp(&a.0).then(a.1.cmp(b.1)));

    // A map of serde_json is sorted by key.
    let mut header = Map::new();
    let mut metadata = metadata.clone();
    if !packed.is_empty() {
        metadata.insert(PACKED.to_owned(), json!(packed).to_string());
    }
    if !metadata.is_empty() {
        header.insert(METADATA.to_owned(), json!(metadata));
    }
    let mut offset = 0usize;
    for (dtype, name, shape, bytes) in &entries {
        // Slices in memory cannot add up to more than the address space.
        let end = offset + bytes.len();
        let info = json!({
            "dtype": dtype.to_string(),
            "shape": shape,
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
        for (_, _, _, bytes) in &entries {
            writer.write_all(bytes)?;
        }
        writer.flush()
    })?;
    Ok(())
}
