//! Trains ONNX training graphs.
//!
//! A graph with concrete sizes is lowered to a [`program`] of operations ([`ops`]), and placed as a
//! [`plan`]: operations in an order with a low peak, and for every buffer a place in one of a few
//! regions. A [`backend`] executes the plan; nothing is allocated in a step.

pub mod backend;
pub mod check;
pub mod cost;
pub mod cpu;
#[cfg(feature = "cuda")]
pub mod cuda;
pub mod data;
pub mod evaluate;
pub mod lower;
pub mod ops;
pub mod plan;
pub mod program;
pub mod random;
pub mod session;
pub mod tensor;
pub mod training;
