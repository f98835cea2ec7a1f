//! The CUDA backend on the graphs of `models/`: executed by the software GPU (feature `softgpu`), or by a
//! real one (feature `gpu-tests`).
#![allow(clippy::unwrap_used)]

mod device;
#[cfg(not(feature = "gpu-tests"))]
mod faults;
#[allow(dead_code)]
#[path = "../runtime/graphs.rs"]
mod graphs;
mod kernels;
#[cfg(not(feature = "gpu-tests"))]
mod lifetimes;
#[cfg(not(feature = "gpu-tests"))]
mod planted;
mod resources;
mod training;
