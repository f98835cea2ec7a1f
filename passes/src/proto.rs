//! The marks that passes put on what they write.

use velora_graph::onnx::schema::StringStringEntryProto;

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
