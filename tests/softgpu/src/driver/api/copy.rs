//! Copies and memsets. Of zero bytes they do nothing.

use super::api;
use crate::driver::work::Work;
use crate::driver::{Driver, Outcome};
use std::ffi::c_uint;

impl Driver {
    fn copy(&mut self, len: usize, stream: Option<usize>, work: Work) -> Outcome<()> {
        match stream {
            Some(stream) if len == 0 => self.stream_key(stream).map(drop),
            None if len == 0 => Ok(()),
            Some(stream) => self.submit(stream, work),
            None => self.submit_synchronous(work),
        }
    }
}

/// A memset's operation.
fn set(to: u64, value: u32, width: usize, count: usize) -> Work {
    Work::Set {
        to,
        value,
        width,
        count,
    }
}

api! {
    /// Host to device, on a stream.
    Work cuMemcpyHtoDAsync_v2(to: u64, from: u64, len: usize, stream: usize) |driver| {
        driver.copy(len, Some(stream), Work::ToDevice { to, from, len })?
    };
    /// Device to host, on a stream.
    Work cuMemcpyDtoHAsync_v2(to: u64, from: u64, len: usize, stream: usize) |driver| {
        driver.copy(len, Some(stream), Work::ToHost { to, from, len })?
    };
    /// Device to device, on a stream.
    Work cuMemcpyDtoDAsync_v2(to: u64, from: u64, len: usize, stream: usize) |driver| {
        driver.copy(len, Some(stream), Work::OnDevice { to, from, len })?
    };
    /// Host to device.
    Work cuMemcpyHtoD_v2(to: u64, from: u64, len: usize) |driver| {
        driver.copy(len, None, Work::ToDevice { to, from, len })?
    };
    /// Device to host.
    Work cuMemcpyDtoH_v2(to: u64, from: u64, len: usize) |driver| {
        driver.copy(len, None, Work::ToHost { to, from, len })?
    };
    /// Device to device, without waiting.
    Work cuMemcpyDtoD_v2(to: u64, from: u64, len: usize) |driver| {
        driver.unsafe_in_capture("copies synchronously")?;
        driver.copy(len, Some(0), Work::OnDevice { to, from, len })?
    };
    /// Bytes, on a stream.
    Work cuMemsetD8Async(to: u64, value: u8, count: usize, stream: usize) |driver| {
        driver.copy(count, Some(stream), set(to, value.into(), 1, count))?
    };
    /// Values of 2 bytes, on a stream.
    Work cuMemsetD16Async(to: u64, value: u16, count: usize, stream: usize) |driver| {
        driver.copy(count, Some(stream), set(to, value.into(), 2, count))?
    };
    /// Values of 4 bytes, on a stream.
    Work cuMemsetD32Async(to: u64, value: c_uint, count: usize, stream: usize) |driver| {
        driver.copy(count, Some(stream), set(to, value, 4, count))?
    };
    /// Bytes.
    Work cuMemsetD8_v2(to: u64, value: u8, count: usize) |driver| {
        driver.unsafe_in_capture("sets memory without a stream")?;
        driver.copy(count, Some(0), set(to, value.into(), 1, count))?
    };
    /// Values of 4 bytes.
    Work cuMemsetD32_v2(to: u64, value: c_uint, count: usize) |driver| {
        driver.unsafe_in_capture("sets memory without a stream")?;
        driver.copy(count, Some(0), set(to, value, 4, count))?
    };
}
