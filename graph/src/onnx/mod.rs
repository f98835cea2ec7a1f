//! ONNX files: the protobuf schema, reading by reference out of a mapped file, and writing.

pub mod read;
pub mod schema;
pub mod write;
