//! Trains ONNX training graphs.
//!
//! A graph with concrete sizes becomes a [`plan`]: operations in an order with a low peak, and for every
//! buffer a place in one of a few regions. A backend executes the plan; nothing is allocated in a step.

pub mod plan;
pub mod tensor;
