//! Modules and functions.

use super::{Out, Text, api};
use crate::driver::codes::Code;
use crate::driver::handles::Kind;
use std::ffi::{c_int, c_uint, c_void};

api! {
    /// Loads a text of PTX.
    Work cuModuleLoadData(module: Out<usize>, image: Text) |driver| {
        module.set(driver.load_image(&image.bytes()?)?)?
    };
    /// Loads a text of PTX; what options ask for is not needed here.
    Work cuModuleLoadDataEx(
        module: Out<usize>, image: Text, _count: c_uint, _options: *const c_int, _values: *const *mut c_void,
    ) |driver| module.set(driver.load_image(&image.bytes()?)?)?;
    /// Loads a file.
    Work cuModuleLoad(module: Out<usize>, path: Text) |driver| {
        let image = std::fs::read(path.string()?).map_err(|_| Code::FILE_NOT_FOUND)?;
        module.set(driver.load_image(&image)?)?
    };
    /// Ends a module.
    Release cuModuleUnload(module: usize) |driver| driver.unload_module(module)?;
    /// A function by name.
    Work cuModuleGetFunction(function: Out<usize>, module: usize, name: Text) |driver| {
        function.set(driver.find_function(module, &name.string()?)?)?
    };
    /// A variable by name; modules have none.
    Work cuModuleGetGlobal_v2(_at: Out<u64>, _len: Out<usize>, module: usize, _name: Text) |driver| {
        driver.check(module, Kind::Module)?;
        Err::<(), Code>(Code::NOT_FOUND)?
    };
    /// A property of a function.
    Work cuFuncGetAttribute(value: Out<c_int>, attribute: c_int, function: usize) |driver| {
        value.set(driver.function_attribute(function, attribute)?)?
    };
    /// Asks for dynamic shared memory.
    Work cuFuncSetAttribute(function: usize, attribute: c_int, value: c_int) |driver| {
        driver.set_function_attribute(function, attribute, value)?
    };
    /// A preference; nothing here depends on it.
    Work cuFuncSetCacheConfig(_function: usize, _config: c_int) |_driver| {};
    /// Blocks that a multiprocessor holds at a time.
    Work cuOccupancyMaxActiveBlocksPerMultiprocessor(
        blocks: Out<c_int>, function: usize, threads: c_int, shared: usize,
    ) |driver| blocks.set(driver.occupancy(function, threads, shared)?)?;
    /// The same.
    Work cuOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(
        blocks: Out<c_int>, function: usize, threads: c_int, shared: usize, _flags: c_uint,
    ) |driver| blocks.set(driver.occupancy(function, threads, shared)?)?;
}
