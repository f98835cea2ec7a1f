//! Stands in for `libcublasLt.so` in tests. It keeps layouts, descriptors and preferences, chooses "algorithms",
//! and checks calls; the products themselves are operations of the software GPU (`softgpu_matmul`), like
//! kernels.

mod api;
mod attributes;
mod driver;
#[allow(dead_code)]
#[path = "../../src/matmul.rs"]
mod matmul;
mod objects;
mod problem;
mod status;
