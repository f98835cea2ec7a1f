//! Stands in for `libcuda.so` in tests: the driver's API, and a checked interpreter of PTX.

#[allow(
    missing_docs,
    clippy::all,
    clippy::unwrap_used,
    clippy::undocumented_unsafe_blocks
)]
#[allow(unsafe_op_in_unsafe_fn, unused_braces)]
pub mod driver;
pub mod ptx;
pub mod vm;
