//! What a training graph is: ONNX files and text, the indexed graph, symbolic shapes, the verifier,
//! and the analyses (roles, partition, saved activations, sites, liveness).

pub mod analysis;
pub mod dim;
mod extent;
pub mod inline;
pub mod ir;
pub mod onnx;
pub mod shapes;
pub mod text;
pub mod verify;
