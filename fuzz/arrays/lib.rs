//! The modules of velora-runtime that read files of arrays.
#![allow(dead_code)]

#[path = "../../runtime/src/data/mod.rs"]
pub mod data;
#[path = "../../runtime/src/random.rs"]
mod random;
#[path = "../../runtime/src/tensor.rs"]
pub mod tensor;
