#![allow(unused_braces, missing_docs, clippy::all, unsafe_op_in_unsafe_fn)]
//! Stands in for `libcuda.so` in tests: the driver's API, and a checked interpreter of PTX.
pub mod driver;
pub mod ptx;
pub mod vm;
