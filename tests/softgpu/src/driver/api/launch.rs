//! Launches of kernels, and cuBLASLt's products.

use super::api;
use crate::driver::codes::Code;
use crate::driver::modules::Shape;
use crate::driver::work::Work;
use crate::driver::{Driver, Outcome};
use crate::matmul::Matmul;
use std::ffi::{c_uint, c_void};

/// The head of a `CUlaunchConfig`.
#[repr(C)]
struct Config {
    grid: [c_uint; 3],
    block: [c_uint; 3],
    shared: c_uint,
    stream: usize,
    attributes: *const c_void,
    count: c_uint,
}

/// Copies the values that an array of pointers leads to, each to its offset.
fn read_parameters(sizes: &[(usize, usize)], from: *const *const u8) -> Outcome<Vec<u8>> {
    let len = sizes
        .iter()
        .map(|(offset, size)| offset + size)
        .max()
        .unwrap_or(0);
    let mut bytes = vec![0; len];
    for (index, &(offset, size)) in sizes.iter().enumerate() {
        if from.is_null() {
            return Err(Code::INVALID_VALUE);
        }
        // SAFETY: the caller promises a pointer for each parameter of the kernel...
        let value = unsafe { *from.add(index) };
        if value.is_null() {
            return Err(Code::INVALID_VALUE);
        }
        // SAFETY: ... and behind each a value of the parameter's size.
        bytes[offset..offset + size]
            .copy_from_slice(unsafe { std::slice::from_raw_parts(value, size) });
    }
    Ok(bytes)
}

impl Driver {
    fn launch_call(
        &mut self,
        function: usize,
        shape: Shape,
        stream: usize,
        parameters: *const *const u8,
        extra: *const c_void,
    ) -> Outcome<()> {
        let sizes = self.prepare_launch(function, shape)?;
        if !extra.is_null() {
            self.report("parameters by `extra` are not supported here".to_string());
            return Err(Code::NOT_SUPPORTED);
        }
        if !sizes.is_empty() && parameters.is_null() {
            self.report("a kernel with parameters is launched without".to_string());
        }
        let parameters = read_parameters(&sizes, parameters)?;
        self.launch(function, shape, parameters, stream)
    }
}

api! {
    /// Launches a kernel.
    Work cuLaunchKernel(
        function: usize, grid_x: c_uint, grid_y: c_uint, grid_z: c_uint, block_x: c_uint, block_y: c_uint,
        block_z: c_uint, shared: c_uint, stream: usize, parameters: *const *const u8, extra: *const c_void,
    ) |driver| {
        let (grid, block) = ([grid_x, grid_y, grid_z], [block_x, block_y, block_z]);
        driver.launch_call(function, Shape { grid, block, shared: shared as usize }, stream, parameters, extra)?
    };
    /// Launches a kernel; attributes are not supported.
    Work cuLaunchKernelEx(
        config: *const Config, function: usize, parameters: *const *const u8, extra: *const c_void,
    ) |driver| {
        if config.is_null() {
            return Err(Code::INVALID_VALUE);
        }
        // SAFETY: not null, and the caller promises a configuration.
        let config = unsafe { &*config };
        if config.count > 0 && !config.attributes.is_null() {
            driver.report("launch attributes are not supported here".to_string());
            return Err(Code::NOT_SUPPORTED);
        }
        let shape = Shape { grid: config.grid, block: config.block, shared: config.shared as usize };
        driver.launch_call(function, shape, config.stream, parameters, extra)?
    };
    /// A matrix product of cuBLASLt's stand-in.
    Work softgpu_matmul(call: *const Matmul, stream: usize) |driver| {
        driver.current = "cublasLtMatmul";
        // SAFETY: cuBLASLt's stand-in, the only caller, passes a reference.
        let call = unsafe { *call };
        driver.submit(stream, Work::Matmul(Box::new(call)))?
    };
}
