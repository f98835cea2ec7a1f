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

/// The bytes of all parameters, as the list `extra` gives them: a buffer, its size, and the end of the list.
/// `None` where the list is another.
///
/// # Safety
///
/// `from` leads to a list that ends as the driver says, and the buffer has as many bytes as its size tells.
unsafe fn read_buffer(from: *const usize) -> Option<Vec<u8>> {
    let (mut buffer, mut size) = (None, None);
    for pair in 0.. {
        // SAFETY: not behind the end, which the caller promises.
        let kind = unsafe { *from.add(2 * pair) };
        if kind == 0 {
            break;
        }
        // SAFETY: as above; a kind that is not the end has a value.
        let value = unsafe { *from.add(2 * pair + 1) };
        match kind {
            1 => buffer = Some(value as *const u8),
            2 => size = Some(value as *const usize),
            _ => return None,
        }
    }
    let (buffer, size) = (buffer?, size?);
    // SAFETY: the caller promises a size, and a buffer of it.
    Some(unsafe { std::slice::from_raw_parts(buffer, *size) }.to_vec())
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
            let expected = (sizes.iter().map(|(offset, size)| offset + size))
                .max()
                .unwrap_or(0);
            // SAFETY: the caller of the driver promises such a list.
            let given = unsafe { read_buffer(extra.cast()) };
            let given = given.filter(|_| parameters.is_null());
            let Some(given) = given else {
                self.report("parameters are given in two ways, or in none".to_string());
                return Err(Code::INVALID_VALUE);
            };
            // Hardware takes what is there.
            if given.len() != expected {
                let found = given.len();
                self.report(format!(
                    "a kernel with {expected} bytes of arguments is launched with {found}"
                ));
                return Err(Code::INVALID_VALUE);
            }
            return self.launch(function, shape, given, stream);
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
