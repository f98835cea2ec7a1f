//! Stands in for `libcuda.so` in tests: the driver's API, stricter than hardware, and a checked interpreter
//! of PTX.
//!
//! The crate is two things. As a `cdylib` it *is* the driver: its SONAME is `libcuda.so`, so a process that
//! has it loaded uses it wherever it would open the real one. As an `rlib` it is what tests hold in their
//! hands: [`Gpu`] loads the library and asks it, through the symbols it exports, what went wrong.

pub mod control;
mod driver;
mod matmul;
pub mod ptx;
pub mod touched;
pub mod vm;

pub use control::{Allocation, Fault, Gpu, LoadError};
