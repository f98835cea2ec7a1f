//! How the base of an adapted weight is stored.

use crate::names::Names;
use half::bf16;
use std::path::Path;
use thiserror::Error;
use velora_graph::ir::{Graph, Model, Patch, ValueId};
use velora_graph::onnx::make::{float_tensor, int, node, tensor_info};
use velora_graph::onnx::read::map_external_data;
use velora_graph::onnx::schema::{NodeProto, TensorProto};
use velora_graph::shapes::DataType;

/// The type of a frozen weight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Base {
    /// As it is.
    Float32,
    /// 32-bit floats with 16 bits cut off, rounded to nearest.
    BFloat16,
    /// 4-bit integers with a 32-bit scale for each [`BLOCK`] features of an output, as
    /// `DequantizeLinear` reads them from opset 21 on: q = round(w / s) with s = max |w| / 7.
    Int4,
}

/// Features that share a scale.
pub const BLOCK: i64 = 32;

/// The opset from which on `DequantizeLinear` knows 4-bit types and blocks.
pub const OLDEST_OPSET_OF_BLOCKS: i64 = 21;

/// Why a weight cannot be stored in fewer bits.
#[derive(Debug, Error)]
pub enum BaseError {
    /// There are no values to be stored.
    #[error(
        "parameter '{parameter}' has no values in the file ({problem}), which a base of fewer bits is \
         made of; use a base of f32, or export the graph with its weights"
    )]
    Values {
        /// The parameter.
        parameter: String,
        /// What is missing.
        problem: String,
    },
    /// The model's operators are too old.
    #[error(
        "a base of 4 bits needs opset {OLDEST_OPSET_OF_BLOCKS} (blocks of DequantizeLinear), and the model \
         has {found}; use a base of bf16"
    )]
    Opset {
        /// The model's.
        found: i64,
    },
}

/// A base, ready to be put into the graph.
pub enum Stored {
    /// Nothing changes.
    AsIs,
    /// As bfloat16, [rows, columns].
    BFloat16(Vec<u8>, [i64; 2]),
    /// 4-bit integers [rows, columns], two to a byte, and scales along the features' axis.
    Int4 {
        /// The integers.
        packed: Vec<u8>,
        /// Of the weight.
        dims: [i64; 2],
        /// One for each block.
        scales: Vec<f32>,
        /// Of the scales.
        blocks: [i64; 2],
        /// The features' axis.
        axis: i64,
    },
}

/// Stores the values of a weight.
///
/// # Errors
/// [`BaseError`] where the file has none, or its opset no 4-bit integers.
pub fn stored(
    model: &Model,
    weight: ValueId,
    features_last: bool,
    base: Base,
    folder: Option<&Path>,
) -> Result<Stored, BaseError> {
    if base == Base::Float32 {
        return Ok(Stored::AsIs);
    }
    if let (Base::Int4, found) = (base, model.opset("").unwrap_or(1))
        && found < OLDEST_OPSET_OF_BLOCKS
    {
        return Err(BaseError::Opset { found });
    }
    let (dims, values) = values(&model.graph, weight, folder)?;
    Ok(match base {
        Base::Int4 if values.iter().any(|w| !w.is_finite()) => {
            // One step of an infinite scale would make the whole block no numbers.
            return Err(BaseError::Values {
                parameter: model.graph.value(weight).name.clone(),
                problem: "some are not finite".to_owned(),
            });
        }
        Base::Int4 => quantized(dims, &values, usize::from(features_last)),
        _ => {
            let bytes = values.iter().flat_map(|&w| bf16::from_f32(w).to_le_bytes());
            Stored::BFloat16(bytes.collect(), dims)
        }
    })
}

/// The values of a weight that the file holds.
pub(crate) fn values(
    graph: &Graph,
    weight: ValueId,
    folder: Option<&Path>,
) -> Result<([i64; 2], Vec<f32>), BaseError> {
    let name = &graph.value(weight).name;
    let wrong = |problem: &str| BaseError::Values {
        parameter: name.clone(),
        problem: problem.to_owned(),
    };
    let mut tensors = graph.initializers().iter();
    let tensor = tensors.find(|tensor| tensor.name() == name);
    let tensor = tensor.ok_or_else(|| wrong("there is no initialiser of its name"))?;
    let &[rows, columns] = tensor.dims.as_slice() else {
        return Err(wrong("it is no matrix"));
    };
    let bytes = match (tensor.is_external(), folder) {
        (true, Some(folder)) => {
            map_external_data(tensor, folder).map_err(|error| wrong(&error.to_string()))?
        }
        (true, None) => return Err(wrong("they lie in another file")),
        (false, _) => match &tensor.raw_data {
            Some(raw) => raw.clone(),
            None => {
                let bytes = tensor.float_data.iter().flat_map(|e| e.to_le_bytes());
                bytes.collect::<Vec<u8>>().into()
            }
        },
    };
    let (whole, rest) = bytes.as_chunks::<4>();
    let expected = rows.checked_mul(columns);
    if tensor.data_type() != DataType::FLOAT.0
        || !rest.is_empty()
        || expected != i64::try_from(whole.len()).ok()
    {
        return Err(wrong(
            "they are no 32-bit floats, or not as many as its shape says",
        ));
    }
    let values = whole.iter().map(|bytes| f32::from_le_bytes(*bytes));
    Ok(([rows, columns], values.collect()))
}

/// Blocks of [`BLOCK`] elements along an axis.
fn quantized(dims: [i64; 2], values: &[f32], axis: usize) -> Stored {
    // They are the lengths of a list in memory.
    let [rows, columns] = dims.map(|size| size.max(0) as usize);
    let block = BLOCK as usize;
    let mut blocks = dims;
    blocks[axis] = (blocks[axis] + BLOCK - 1) / BLOCK;
    let across = blocks[1].max(0) as usize;
    let place = |row: usize, column: usize| match axis {
        0 => row / block * across + column,
        _ => row * across + column / block,
    };
    let mut scales = vec![0f32; blocks.iter().product::<i64>().max(0) as usize];
    for row in 0..rows {
        for column in 0..columns {
            let scale = &mut scales[place(row, column)];
            *scale = scale.max(values[row * columns + column].abs());
        }
    }
    for scale in &mut scales {
        // Of a block of zeros, or of what a scale is too small for, any will do but zero.
        *scale /= 7.0;
        if *scale == 0.0 {
            *scale = 1.0;
        }
    }
    let mut packed = vec![0u8; values.len().div_ceil(2)];
    for row in 0..rows {
        for column in 0..columns {
            let at = row * columns + column;
            let steps = (values[at] / scales[place(row, column)]).round_ties_even();
            // Rounding a scale may put the greatest value a step too far.
            let steps = steps.clamp(-8.0, 7.0) as i8 as u8 & 0xF;
            packed[at / 2] |= steps << (4 * (at % 2));
        }
    }
    Stored::Int4 {
        packed,
        dims,
        scales,
        blocks,
        axis: axis as i64,
    }
}

impl Stored {
    /// Exchanges the weight, and gives the node that reads it as 32-bit floats, without its output, where
    /// one is needed.
    pub(super) fn put(
        self,
        patch: &mut Patch,
        graph: &Graph,
        weight: ValueId,
        names: &mut Names,
    ) -> Option<NodeProto> {
        let name = graph.value(weight).name.clone();
        let (data_type, bytes, dims) = match &self {
            Stored::AsIs => return None,
            Stored::BFloat16(bytes, dims) => (DataType::BFLOAT16, bytes, dims),
            Stored::Int4 { packed, dims, .. } => (DataType::INT4, packed, dims),
        };
        patch.exchange_input(weight, tensor_info(&name, data_type, dims.iter().copied()));
        patch.remove_initializer(&name);
        patch.add_initializer(TensorProto {
            dims: dims.to_vec(),
            data_type: Some(data_type.0),
            name: Some(name.clone()),
            raw_data: Some(bytes.clone().into()),
            ..Default::default()
        });
        let Stored::Int4 {
            scales,
            blocks,
            axis,
            ..
        } = self
        else {
            let to = int("to", i64::from(DataType::FLOAT.0));
            return Some(NodeProto {
                attribute: vec![to],
                ..node("Cast", &[&name], "")
            });
        };
        let scale = names.fresh(format!("{name}.scale"));
        patch.add_input(tensor_info(&scale, DataType::FLOAT, blocks));
        patch.add_initializer(float_tensor(&scale, blocks.to_vec(), &scales));
        Some(NodeProto {
            attribute: vec![int("axis", axis), int("block_size", BLOCK)],
            ..node("DequantizeLinear", &[&name, &scale], "")
        })
    }
}

#[cfg(test)]
mod tests;
