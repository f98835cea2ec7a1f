//! The driver's objects with owners: contexts, streams, events, memory, modules, captured graphs.
//!
//! Everything that the driver reports becomes a [`DeviceError`]. What fails while an object is dropped
//! cannot be returned there: the context keeps it, and the next call through that context gives it back.

mod memory;
mod module;
mod stream;

pub use memory::{DeviceMemory, PinnedMemory};
pub use module::{Function, LoadError, Module};
pub use stream::{Capture, Event, Replay, Stream};

use cudarc::driver::{result, sys};
use std::ffi::CStr;
use std::sync::{Arc, Mutex, PoisonError};
use thiserror::Error;

/// A failed call of one of CUDA's libraries.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{call} failed with {code}{}", hint(code))]
pub struct DeviceError {
    /// What was called.
    pub call: &'static str,
    /// The library's name of the error, and what it says about it.
    pub code: String,
}

/// What a user can do about an error, where there is something.
fn hint(code: &str) -> &'static str {
    match code.split(' ').next() {
        Some("CUDA_ERROR_OUT_OF_MEMORY") => {
            "; a smaller batch takes less memory, and other programs may hold some"
        }
        Some("CUDA_ERROR_UNSUPPORTED_PTX_VERSION") => {
            "; the NVRTC library is newer than the driver: use one of the driver's CUDA version"
        }
        _ => "",
    }
}

/// The result of a call, with its name where it failed.
pub(super) fn check<T>(
    call: &'static str,
    result: Result<T, result::DriverError>,
) -> Result<T, DeviceError> {
    result.map_err(|error| DeviceError {
        call,
        code: describe(error),
    })
}

/// An error in words: its name, and the driver's text.
fn describe(error: result::DriverError) -> String {
    let text = |text: Result<&CStr, _>| {
        let text: Option<&CStr> = text.ok();
        text.map(|text| text.to_string_lossy().into_owned())
    };
    match (text(error.error_name()), text(error.error_string())) {
        (Some(name), Some(text)) => format!("{name} ({text})"),
        (Some(name), None) => name,
        _ => format!("error {}", error.0 as u32),
    }
}

/// What is known of a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Facts {
    /// Its name.
    pub name: String,
    /// Its compute capability, 80 for 8.0.
    pub architecture: u32,
    /// Multiprocessors.
    pub multiprocessors: u32,
    /// Bytes of its memory.
    pub memory: usize,
}

/// A device's primary context.
#[derive(Debug)]
pub struct Context {
    device: sys::CUdevice,
    raw: sys::CUcontext,
    facts: Facts,
    /// What failed in a drop.
    deferred: Mutex<Option<DeviceError>>,
}

// SAFETY: the driver allows a context to be used from any thread on which it is current; every method that
// needs that makes it current first.
unsafe impl Send for Context {}
// SAFETY: as above; the driver serialises calls, and what is ours is behind a mutex.
unsafe impl Sync for Context {}

impl Context {
    /// Opens a device by its number.
    ///
    /// # Errors
    /// [`DeviceError`] where there is no such device, or it cannot be used.
    pub fn open(number: i32) -> Result<Arc<Self>, DeviceError> {
        check("cuInit", result::init())?;
        let device = check("cuDeviceGet", result::device::get(number))?;
        let attribute = |attribute| {
            // SAFETY: the device is one that the driver just gave.
            let value = unsafe { result::device::get_attribute(device, attribute) };
            check("cuDeviceGetAttribute", value).map(|value| value.unsigned_abs())
        };
        use sys::CUdevice_attribute as Attribute;
        let major = attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?;
        let minor = attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?;
        let facts = Facts {
            name: check("cuDeviceGetName", result::device::get_name(device))?,
            architecture: 10 * major + minor,
            multiprocessors: attribute(Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?,
            // SAFETY: as above.
            memory: check("cuDeviceTotalMem", unsafe {
                result::device::total_mem(device)
            })?,
        };
        // SAFETY: as above; the context is released once, when it is dropped.
        let raw = check("cuDevicePrimaryCtxRetain", unsafe {
            result::primary_ctx::retain(device)
        })?;
        let context = Arc::new(Context {
            device,
            raw,
            facts,
            deferred: Mutex::new(None),
        });
        context.enter()?;
        Ok(context)
    }

    /// Makes the context current on this thread, and gives back what failed in a drop since.
    ///
    /// # Errors
    /// [`DeviceError`] where it cannot be made current, or a drop failed.
    pub fn enter(&self) -> Result<(), DeviceError> {
        let mut deferred = self.deferred.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(error) = deferred.take() {
            return Err(error);
        }
        drop(deferred);
        // SAFETY: the context is retained until it is dropped.
        check("cuCtxSetCurrent", unsafe {
            result::ctx::set_current(self.raw)
        })
    }

    /// What is known of the device.
    pub fn facts(&self) -> &Facts {
        &self.facts
    }

    /// Keeps the error of a drop for the next call; the first one counts.
    pub fn defer(&self, dropped: Result<(), DeviceError>) {
        if let Err(error) = dropped {
            let mut deferred = self.deferred.lock().unwrap_or_else(PoisonError::into_inner);
            deferred.get_or_insert(error);
        }
    }

    /// For drops: makes the context current, whatever is deferred.
    fn enter_to_drop(&self) {
        // SAFETY: the context is retained until it is dropped.
        let entered = unsafe { result::ctx::set_current(self.raw) };
        self.defer(check("cuCtxSetCurrent", entered));
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        // SAFETY: retained once, in `open`; what used it held a reference to `self`.
        let released = unsafe { result::primary_ctx::release(self.device) };
        let mut deferred = self.deferred.lock().unwrap_or_else(PoisonError::into_inner);
        let error = deferred
            .take()
            .or(check("cuDevicePrimaryCtxRelease", released).err());
        // Nobody is left to be told otherwise.
        if let Some(error) = error {
            eprintln!("velora-opt: when the device was closed, {error}");
        }
    }
}

/// How many devices the driver has.
///
/// # Errors
/// [`DeviceError`] where the driver cannot be used; a driver without devices may say so as an error.
pub fn device_count() -> Result<i32, DeviceError> {
    check("cuInit", result::init())?;
    check("cuDeviceGetCount", result::device::get_count())
}
