//! Compiled code on the device.

use super::{Context, DeviceError, Stream, check, describe};
use cudarc::driver::{result, sys};
use std::ffi::{CString, c_void};
use std::sync::Arc;

/// Compiled code that was handed to the driver.
#[derive(Debug)]
pub struct Module {
    context: Arc<Context>,
    raw: sys::CUmodule,
}

// SAFETY: a module may be used from any thread on which its context is current.
unsafe impl Send for Module {}
// SAFETY: nothing of it changes after it was loaded.
unsafe impl Sync for Module {}

/// The driver's refusal to load code that is not for this device: other code may do.
#[derive(Clone, Debug)]
pub enum LoadError {
    /// The image is machine code for other devices, or none that this driver reads.
    Foreign,
    /// Anything else.
    Device(DeviceError),
}

impl Module {
    /// Loads machine code (a cubin) or PTX.
    ///
    /// # Errors
    /// [`LoadError`] where the driver cannot use it.
    pub fn load(context: &Arc<Context>, image: &[u8]) -> Result<Arc<Self>, LoadError> {
        // PTX is text that ends with a zero; a zero behind a cubin is beyond the sizes in its header.
        let mut terminated = Vec::with_capacity(image.len() + 1);
        terminated.extend_from_slice(image);
        terminated.push(0);
        // SAFETY: the image is a whole cubin or terminated text, and the driver copies what it keeps.
        let loaded = unsafe { result::module::load_data(terminated.as_ptr().cast::<c_void>()) };
        use sys::CUresult::{CUDA_ERROR_INVALID_IMAGE, CUDA_ERROR_NO_BINARY_FOR_GPU};
        match loaded {
            Ok(raw) => Ok(Arc::new(Module {
                context: context.clone(),
                raw,
            })),
            Err(error)
                if [CUDA_ERROR_INVALID_IMAGE, CUDA_ERROR_NO_BINARY_FOR_GPU].contains(&error.0) =>
            {
                Err(LoadError::Foreign)
            }
            Err(error) => Err(LoadError::Device(DeviceError {
                call: "cuModuleLoadData",
                code: describe(error),
            })),
        }
    }

    /// A kernel by its name.
    ///
    /// # Errors
    /// [`DeviceError`] where there is none of that name.
    pub fn function(self: &Arc<Self>, name: &str) -> Result<Function, DeviceError> {
        let name = CString::new(name).map_err(|_| DeviceError {
            call: "cuModuleGetFunction",
            code: format!("a name with a zero byte: {name:?}"),
        })?;
        // SAFETY: the module lives as long as `self`.
        let raw = unsafe { result::module::get_function(self.raw, name) };
        Ok(Function {
            raw: check("cuModuleGetFunction", raw)?,
            _module: self.clone(),
        })
    }
}

impl Drop for Module {
    fn drop(&mut self) {
        self.context.enter_to_drop();
        // SAFETY: loaded by `load`, and unloaded once; functions hold a reference to the module.
        let unloaded = unsafe { result::module::unload(self.raw) };
        self.context.defer(check("cuModuleUnload", unloaded));
    }
}

/// A kernel.
#[derive(Clone, Debug)]
pub struct Function {
    raw: sys::CUfunction,
    _module: Arc<Module>,
}

// SAFETY: as for modules.
unsafe impl Send for Function {}

impl Function {
    /// Enqueues the kernel over a grid of blocks. `arguments` holds the bytes of all its parameters, each
    /// at a multiple of its alignment.
    ///
    /// # Errors
    /// [`DeviceError`] where the driver refuses; what fails on the device shows later.
    ///
    /// # Safety
    /// The arguments are those of the kernel's signature, and the addresses among them those of memory that
    /// the kernel may use and that stays until it has ended.
    pub unsafe fn launch(
        &self,
        grid: [u32; 3],
        block: [u32; 3],
        shared: u32,
        arguments: &[u8],
        stream: &Stream,
    ) -> Result<(), DeviceError> {
        let mut bytes = arguments.len();
        // CU_LAUNCH_PARAM_BUFFER_POINTER, CU_LAUNCH_PARAM_BUFFER_SIZE and CU_LAUNCH_PARAM_END.
        let mut extra: [*mut c_void; 5] = [
            std::ptr::without_provenance_mut(1),
            arguments.as_ptr().cast_mut().cast(),
            std::ptr::without_provenance_mut(2),
            (&raw mut bytes).cast(),
            std::ptr::null_mut(),
        ];
        // SAFETY: the driver copies the arguments before it returns; the rest is the caller's promise.
        let launched = unsafe {
            sys::cuLaunchKernel(
                self.raw,
                grid[0],
                grid[1],
                grid[2],
                block[0],
                block[1],
                block[2],
                shared,
                stream.raw(),
                std::ptr::null_mut(),
                extra.as_mut_ptr(),
            )
        };
        check("cuLaunchKernel", launched.result())
    }
}
