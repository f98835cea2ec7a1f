//! New messages: attributes, nodes, constants, declarations.

use super::schema::tensor_shape_proto::{Dimension, dimension};
use super::schema::{
    AttributeProto, AttributeType, NodeProto, TensorProto, TensorShapeProto, TypeProto,
    ValueInfoProto, type_proto,
};
use crate::shapes::DataType;

/// An integer attribute.
pub fn int(name: &str, value: i64) -> AttributeProto {
    AttributeProto {
        i: Some(value),
        ..attribute(name, AttributeType::Int)
    }
}

/// A list of integers.
pub fn ints(name: &str, values: Vec<i64>) -> AttributeProto {
    AttributeProto {
        ints: values,
        ..attribute(name, AttributeType::Ints)
    }
}

/// A floating point attribute.
pub fn float(name: &str, value: f32) -> AttributeProto {
    AttributeProto {
        f: Some(value),
        ..attribute(name, AttributeType::Float)
    }
}

/// An attribute without a value yet.
pub fn attribute(name: &str, kind: AttributeType) -> AttributeProto {
    AttributeProto {
        name: Some(name.to_owned()),
        r#type: Some(kind as i32),
        ..Default::default()
    }
}

/// A standard node with one output.
pub fn node(op: &str, inputs: &[&str], output: &str) -> NodeProto {
    NodeProto {
        input: inputs.iter().map(|i| (*i).to_owned()).collect(),
        output: vec![output.to_owned()],
        op_type: Some(op.to_owned()),
        ..Default::default()
    }
}

/// A vector of int64 numbers.
pub fn int_vector(name: &str, entries: &[i64]) -> TensorProto {
    let bytes = entries.iter().flat_map(|e| e.to_le_bytes());
    tensor(name, DataType::INT64, vec![entries.len() as i64], bytes)
}

/// 32-bit floats.
pub fn float_tensor(name: &str, dims: Vec<i64>, entries: &[f32]) -> TensorProto {
    let bytes = entries.iter().flat_map(|e| e.to_le_bytes());
    tensor(name, DataType::FLOAT, dims, bytes)
}

fn tensor(
    name: &str,
    data_type: DataType,
    dims: Vec<i64>,
    bytes: impl Iterator<Item = u8>,
) -> TensorProto {
    TensorProto {
        dims,
        data_type: Some(data_type.0),
        name: Some(name.to_owned()),
        raw_data: Some(bytes.collect::<Vec<u8>>().into()),
        ..Default::default()
    }
}

/// The declaration of a tensor with constant sizes.
pub fn tensor_info(
    name: &str,
    data_type: DataType,
    dims: impl IntoIterator<Item = i64>,
) -> ValueInfoProto {
    let dim = dims.into_iter().map(|size| Dimension {
        value: Some(dimension::Value::DimValue(size)),
        ..Default::default()
    });
    ValueInfoProto {
        name: Some(name.to_owned()),
        r#type: Some(TypeProto {
            value: Some(type_proto::Value::TensorType(type_proto::Tensor {
                elem_type: Some(data_type.0),
                shape: Some(TensorShapeProto { dim: dim.collect() }),
            })),
            ..Default::default()
        }),
        ..Default::default()
    }
}
