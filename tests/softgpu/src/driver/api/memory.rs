//! Device memory and pinned host memory.

use super::{Out, api};
use std::ffi::c_uint;

api! {
    /// Device memory.
    Work cuMemAlloc_v2(at: Out<u64>, bytes: usize) |driver| at.set(driver.allocate(bytes, None)?)?;
    /// Device memory from a point in a stream on.
    Work cuMemAllocAsync(at: Out<u64>, bytes: usize, stream: usize) |driver| {
        at.set(driver.allocate(bytes, Some(stream))?)?
    };
    /// Gives device memory back.
    Release cuMemFree_v2(at: u64) |driver| driver.free(at, None)?;
    /// Gives device memory back at a point in a stream.
    Release cuMemFreeAsync(at: u64, stream: usize) |driver| driver.free(at, Some(stream))?;
    /// Free and total device memory.
    Work cuMemGetInfo_v2(free: Out<usize>, total: Out<usize>) |driver| {
        let (left, all) = driver.memory_info();
        free.set(left)?;
        total.set(all)?
    };
    /// Pinned host memory.
    Work cuMemHostAlloc(at: Out<u64>, bytes: usize, _flags: c_uint) |driver| at.set(driver.pin(bytes)?)?;
    /// Pinned host memory.
    Work cuMemAllocHost_v2(at: Out<u64>, bytes: usize) |driver| at.set(driver.pin(bytes)?)?;
    /// Gives pinned host memory back.
    Release cuMemFreeHost(at: u64) |driver| driver.unpin(at)?;
    /// Pins memory of the program.
    Work cuMemHostRegister_v2(at: u64, bytes: usize, _flags: c_uint) |driver| driver.register(at, bytes)?;
    /// Ends that.
    Release cuMemHostUnregister(at: u64) |driver| driver.unregister(at)?;
}
