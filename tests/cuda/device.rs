//! The device that the tests run on.

use velora_runtime::cuda::compile::Cache;
use velora_runtime::cuda::{Cuda, Options};

/// Makes the libraries known to this process: those of the software GPU, and NVRTC.
pub fn load() {
    #[cfg(not(feature = "gpu-tests"))]
    softgpu::load();
}

/// Options of the tests: kernels are kept beside what cargo builds.
pub fn options() -> Options {
    let target = std::env::current_exe().unwrap();
    Options {
        cache: Cache::in_folder(target.parent().unwrap().join("cuda-kernels")),
        ..Options::default()
    }
}

/// Opens the device.
pub fn open() -> Cuda {
    load();
    Cuda::open(options()).unwrap()
}
