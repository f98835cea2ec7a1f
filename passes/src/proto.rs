//! Messages that passes write: attributes, metadata, constants, nodes.

use velora_graph::onnx::schema::{
    AttributeProto, AttributeType, NodeProto, StringStringEntryProto, TensorProto,
};

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

/// A metadata entry of ours; the key gets the prefix `velora.`.
pub fn metadata(key: &str, value: &str) -> StringStringEntryProto {
    StringStringEntryProto {
        key: Some(format!("velora.{key}")),
        value: Some(value.to_owned()),
    }
}

/// The entry that says which version of this tool wrote a node.
pub fn version() -> StringStringEntryProto {
    metadata("version", env!("CARGO_PKG_VERSION"))
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
    tensor(name, 7, vec![entries.len() as i64], bytes)
}

/// 32-bit floats.
pub fn float_tensor(name: &str, dims: Vec<i64>, entries: &[f32]) -> TensorProto {
    let bytes = entries.iter().flat_map(|e| e.to_le_bytes());
    tensor(name, 1, dims, bytes)
}

fn tensor(
    name: &str,
    data_type: i32,
    dims: Vec<i64>,
    bytes: impl Iterator<Item = u8>,
) -> TensorProto {
    TensorProto {
        dims,
        data_type: Some(data_type),
        name: Some(name.to_owned()),
        raw_data: Some(bytes.collect::<Vec<u8>>().into()),
        ..Default::default()
    }
}
