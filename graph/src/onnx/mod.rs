//! ONNX files: the protobuf schema, new messages of it, reading by reference out of a mapped file, and
//! writing.

pub mod make;
pub mod read;
mod replace;
pub mod schema;
pub mod signals;
pub mod write;
