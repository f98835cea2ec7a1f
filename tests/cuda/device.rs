//! The device that the tests run on: the software GPU, or with the feature `gpu-tests` a real one.

#[cfg(not(feature = "gpu-tests"))]
use softgpu::Gpu;
use std::path::{Path, PathBuf};
use velora_runtime::cuda::compile::Cache;
use velora_runtime::cuda::{Cuda, Options, Unavailable};

/// The folder of NVIDIA's packages.
pub fn packages() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("target/venv-cuda/lib/python3.11/site-packages/nvidia")
}

/// Makes NVRTC known to this process, where a system has not its own.
pub fn load_nvrtc() {
    #[cfg(not(feature = "gpu-tests"))]
    Gpu::load_nvrtc().unwrap();
}

/// Options of the tests: kernels are kept beside what cargo builds.
pub fn options() -> Options {
    let target = std::env::current_exe().unwrap();
    Options {
        cache: Cache::in_folder(target.parent().unwrap().join("cuda-kernels")),
        ..Options::default()
    }
}

/// The device for the time of a test.
pub struct Device {
    /// The stand-in; nothing where the device is real.
    #[cfg(not(feature = "gpu-tests"))]
    pub gpu: Gpu,
}

impl Device {
    /// Waits for the device, and begins from nothing.
    ///
    /// `CAPABILITY=100` in the environment makes it one of compute capability 10.0; it is 8.0 without.
    pub fn new() -> Self {
        load_nvrtc();
        #[cfg(not(feature = "gpu-tests"))]
        let gpu = Gpu::exclusive().unwrap();
        #[cfg(not(feature = "gpu-tests"))]
        if let Ok(capability) = std::env::var("CAPABILITY") {
            gpu.set_capability(capability.parse().unwrap());
        }
        Device {
            #[cfg(not(feature = "gpu-tests"))]
            gpu,
        }
    }

    /// Opens it.
    pub fn open(&self, options: Options) -> Result<Cuda, Unavailable> {
        Cuda::open(options)
    }

    /// Whether nothing was reported so far, and, once all is dropped, nothing is left: where the device can
    /// tell.
    pub fn is_clean(&self) -> Result<(), String> {
        #[cfg(not(feature = "gpu-tests"))]
        {
            let mut wrong = self.gpu.reports();
            wrong.extend(self.gpu.leaks());
            if !wrong.is_empty() {
                return Err(wrong.join("\n"));
            }
        }
        Ok(())
    }
}

/// Runs a test on the device, which must find nothing wrong with it.
pub fn with<T>(test: impl FnOnce(&Device, &Cuda) -> T) -> T {
    let device = Device::new();
    let cuda = device.open(options()).unwrap();
    let outcome = test(&device, &cuda);
    drop(cuda);
    device.is_clean().unwrap();
    outcome
}
