//! Constant tensors: from the file, from integers that inference knows, from scalars.

use super::Refusal;
use crate::tensor::{Tensor, TensorType};
use bytes::Bytes;
use half::{bf16, f16};
use std::path::Path;
use velora_graph::ir::Graph;
use velora_graph::onnx::read::map_external_data;
use velora_graph::onnx::schema::TensorProto;
use velora_graph::shapes::DataType;

/// A tensor of given integers in a type that shapes are computed in; `None` for other types.
pub fn from_integers(ty: &TensorType, elements: &[i64]) -> Option<Tensor> {
    let bytes: Vec<u8> = match ty.data_type {
        DataType::INT64 => elements.iter().flat_map(|e| e.to_le_bytes()).collect(),
        DataType::INT32 => {
            let narrow: Result<Vec<i32>, _> = elements.iter().map(|&e| i32::try_from(e)).collect();
            narrow.ok()?.iter().flat_map(|e| e.to_le_bytes()).collect()
        }
        _ => return None,
    };
    Some(Tensor {
        data_type: ty.data_type,
        shape: ty.shape.clone(),
        bytes: bytes.into(),
    })
}

/// The elements of a tensor of integers.
pub fn integers(tensor: &Tensor) -> Option<Vec<i64>> {
    let bytes = &tensor.bytes[..];
    Some(match tensor.data_type {
        DataType::INT64 => bytemuck::pod_collect_to_vec::<u8, i64>(bytes),
        DataType::INT32 => {
            let narrow = bytemuck::pod_collect_to_vec::<u8, i32>(bytes);
            narrow.into_iter().map(i64::from).collect()
        }
        _ => return None,
    })
}

/// A scalar of a floating-point type.
///
/// # Errors
/// [`Refusal`] for other types.
pub fn scalar(data_type: DataType, number: f64) -> Result<Tensor, Refusal> {
    let bytes = match data_type {
        DataType::FLOAT => (number as f32).to_le_bytes().to_vec(),
        DataType::DOUBLE => number.to_le_bytes().to_vec(),
        DataType::FLOAT16 => f16::from_f64(number).to_le_bytes().to_vec(),
        DataType::BFLOAT16 => bf16::from_f64(number).to_le_bytes().to_vec(),
        _ => {
            return Err(Refusal(format!(
                "element type {} is no floating-point type",
                data_type.0
            )));
        }
    };
    Ok(Tensor {
        data_type,
        shape: Vec::new(),
        bytes: bytes.into(),
    })
}

/// The first element of a tensor of floating-point numbers.
pub fn float(tensor: &Tensor) -> Option<f64> {
    let bytes = &tensor.bytes[..];
    Some(match tensor.data_type {
        DataType::FLOAT => f64::from(f32::from_le_bytes(bytes.get(..4)?.try_into().ok()?)),
        DataType::DOUBLE => f64::from_le_bytes(bytes.get(..8)?.try_into().ok()?),
        DataType::FLOAT16 => f16::from_le_bytes(bytes.get(..2)?.try_into().ok()?).to_f64(),
        DataType::BFLOAT16 => bf16::from_le_bytes(bytes.get(..2)?.try_into().ok()?).to_f64(),
        _ => return None,
    })
}

/// The default of an input: the initialiser of its name, where there is one.
pub fn default(
    graph: &Graph,
    name: &str,
    folder: Option<&Path>,
) -> Option<Result<Tensor, Refusal>> {
    let proto = graph.initializers().iter().find(|t| t.name() == name)?;
    Some(from_proto(proto, folder))
}

/// A tensor of the file.
///
/// # Errors
/// [`Refusal`] where its data is elsewhere, or does not fit its type.
pub fn from_proto(proto: &TensorProto, folder: Option<&Path>) -> Result<Tensor, Refusal> {
    let name = proto.name();
    let mut shape = Vec::with_capacity(proto.dims.len());
    for &dim in &proto.dims {
        let dim = usize::try_from(dim);
        shape.push(dim.map_err(|_| Refusal(format!("'{name}' has a negative dimension")))?);
    }
    let ty = TensorType::new(DataType(proto.data_type()), shape);
    let Some(expected) = ty.checked_bytes() else {
        return Err(Refusal(format!(
            "'{name}' is {ty}, which the runtime cannot hold"
        )));
    };
    let bytes: Bytes = if proto.is_external() {
        let Some(folder) = folder else {
            return Err(Refusal(format!(
                "the data of '{name}' lies in an external file, and the model in none"
            )));
        };
        map_external_data(proto, folder).map_err(|error| Refusal(error.to_string()))?
    } else if let Some(raw) = &proto.raw_data {
        raw.clone()
    } else {
        match ty.data_type {
            DataType::FLOAT => flat(proto.float_data.iter().map(|e| e.to_le_bytes())),
            DataType::DOUBLE => flat(proto.double_data.iter().map(|e| e.to_le_bytes())),
            DataType::INT64 => flat(proto.int64_data.iter().map(|e| e.to_le_bytes())),
            DataType(13) => flat(proto.uint64_data.iter().map(|e| e.to_le_bytes())),
            DataType(12) => flat(proto.uint64_data.iter().map(|&e| (e as u32).to_le_bytes())),
            DataType::INT32 => flat(proto.int32_data.iter().map(|e| e.to_le_bytes())),
            // Narrow types lie in the low bits of `int32_data`.
            _ if ty.data_type.bits() == Some(16) => {
                flat(proto.int32_data.iter().map(|&e| (e as u16).to_le_bytes()))
            }
            // Of integers of 4 bits, an entry has two, as a byte has.
            _ => flat(proto.int32_data.iter().map(|&e| [e as u8])),
        }
    };
    if bytes.len() != expected {
        return Err(Refusal(format!(
            "'{name}' is {ty} and has {} bytes of data instead of {expected}",
            bytes.len()
        )));
    }
    Ok(Tensor {
        data_type: ty.data_type,
        shape: ty.shape,
        bytes,
    })
}

fn flat<const N: usize>(elements: impl Iterator<Item = [u8; N]>) -> Bytes {
    elements.flatten().collect::<Vec<u8>>().into()
}
