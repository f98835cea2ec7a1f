//! Memory of the device, and memory of the host that the device reads and writes itself.

use super::{Context, DeviceError, Stream, check};
use cudarc::driver::{result, sys};
use std::sync::Arc;

/// A block of the device's memory.
#[derive(Debug)]
pub struct DeviceMemory {
    context: Arc<Context>,
    address: sys::CUdeviceptr,
    bytes: usize,
}

impl DeviceMemory {
    /// A block of at least one byte, with unknown contents.
    ///
    /// # Errors
    /// [`DeviceError`] where the device has not that much.
    pub fn new(context: &Arc<Context>, bytes: usize) -> Result<Self, DeviceError> {
        // The driver refuses blocks of no bytes.
        let bytes = bytes.max(1);
        // SAFETY: the block is freed once, by `drop`.
        let address = check("cuMemAlloc", unsafe { result::malloc_sync(bytes) })?;
        Ok(DeviceMemory {
            context: context.clone(),
            address,
            bytes,
        })
    }

    /// The address of its first byte.
    pub fn address(&self) -> u64 {
        self.address
    }

    /// Its bytes.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Enqueues a copy of pinned bytes into the block; `from` must stay as it is until it is done.
    ///
    /// # Errors
    /// [`DeviceError`] where the spans do not fit the blocks, or the driver refuses.
    pub fn write(
        &self,
        at: usize,
        from: &PinnedMemory,
        bytes: usize,
        stream: &Stream,
    ) -> Result<(), DeviceError> {
        self.within(at, bytes)?;
        let source = from.within(bytes)?;
        // SAFETY: both spans lie in their blocks; the owner of the staging memory waits before it reuses or
        // frees it.
        let copied = unsafe {
            sys::cuMemcpyHtoDAsync_v2(self.address + at as u64, source.cast(), bytes, stream.raw())
        };
        check("cuMemcpyHtoDAsync", copied.result())
    }

    /// Enqueues a copy of bytes of the block into pinned memory, which must not be read before it is done.
    ///
    /// # Errors
    /// [`DeviceError`] where the spans do not fit the blocks, or the driver refuses.
    pub fn read(
        &self,
        at: usize,
        to: &mut PinnedMemory,
        bytes: usize,
        stream: &Stream,
    ) -> Result<(), DeviceError> {
        self.within(at, bytes)?;
        let target = to.within(bytes)?;
        // SAFETY: as in `write`.
        let copied = unsafe {
            sys::cuMemcpyDtoHAsync_v2(target.cast(), self.address + at as u64, bytes, stream.raw())
        };
        check("cuMemcpyDtoHAsync", copied.result())
    }

    fn within(&self, at: usize, bytes: usize) -> Result<(), DeviceError> {
        let end = at.checked_add(bytes);
        match end.is_some_and(|end| end <= self.bytes) {
            true => Ok(()),
            false => Err(DeviceError {
                call: "a copy",
                code: format!("{bytes} bytes at {at}, beyond a block of {}", self.bytes),
            }),
        }
    }
}

impl Drop for DeviceMemory {
    fn drop(&mut self) {
        self.context.enter_to_drop();
        // SAFETY: allocated by `new`, and freed once.
        let freed = unsafe { result::free_sync(self.address) };
        self.context.defer(check("cuMemFree", freed));
    }
}

/// Memory of the host at a fixed place, which copies read and write while the host does other things.
#[derive(Debug)]
pub struct PinnedMemory {
    context: Arc<Context>,
    start: *mut u8,
    bytes: usize,
}

// SAFETY: plain bytes of the host that `self` owns alone.
unsafe impl Send for PinnedMemory {}

impl PinnedMemory {
    /// A block of zeros, of at least one byte.
    ///
    /// # Errors
    /// [`DeviceError`] where the driver cannot give it.
    pub fn new(context: &Arc<Context>, bytes: usize) -> Result<Self, DeviceError> {
        let bytes = bytes.max(1);
        // SAFETY: the block is freed once, by `drop`.
        let start = check("cuMemHostAlloc", unsafe { result::malloc_host(bytes, 0) })?;
        let start = start.cast::<u8>();
        // SAFETY: the driver gave that many bytes; they become initialised here.
        unsafe { start.write_bytes(0, bytes) };
        Ok(PinnedMemory {
            context: context.clone(),
            start,
            bytes,
        })
    }

    /// Its bytes. No copy from the device may be under way.
    pub fn bytes(&self) -> &[u8] {
        // SAFETY: initialised in `new`; copies write whole bytes, and are waited for.
        unsafe { std::slice::from_raw_parts(self.start, self.bytes) }
    }

    /// Its bytes, to be written. No copy may be under way.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `bytes`, and borrowed alone.
        unsafe { std::slice::from_raw_parts_mut(self.start, self.bytes) }
    }

    fn within(&self, bytes: usize) -> Result<*mut u8, DeviceError> {
        match bytes <= self.bytes {
            true => Ok(self.start),
            false => Err(DeviceError {
                call: "a copy",
                code: format!(
                    "{bytes} bytes, more than the staging block of {}",
                    self.bytes
                ),
            }),
        }
    }
}

impl Drop for PinnedMemory {
    fn drop(&mut self) {
        self.context.enter_to_drop();
        // SAFETY: allocated by `new`, and freed once.
        let freed = unsafe { result::free_host(self.start.cast()) };
        self.context.defer(check("cuMemFreeHost", freed));
    }
}
