//! A device as tests use it: memory, a module, launches.
#![allow(dead_code, clippy::unwrap_used)] // Each test program uses a part of this.

#[cfg(feature = "nvrtc")]
pub mod nvrtc;

use softgpu::ptx::{self, Kernel};
use softgpu::vm::{self, Launch, Mem, Options, Report};

/// The PTX of a file of kernels for each architecture: made by NVRTC now, or as committed.
#[cfg(feature = "nvrtc")]
pub fn texts(name: &str) -> Vec<(u32, String)> {
    use std::collections::HashMap;
    use std::sync::Mutex;
    type Made = HashMap<String, Vec<(u32, String)>>;
    static MADE: Mutex<Option<Made>> = Mutex::new(None);
    let mut made = MADE.lock().unwrap_or_else(|e| e.into_inner());
    let path = format!("{}/kernels/{name}.cu", env!("CARGO_MANIFEST_DIR"));
    let texts = made
        .get_or_insert_with(HashMap::new)
        .entry(name.to_owned())
        .or_insert_with(|| {
            let source = std::fs::read_to_string(path).unwrap();
            let compile =
                |arch| nvrtc::compile(&source, &format!("{name}.cu"), arch, &["-lineinfo"]);
            [80, 90, 100].map(|arch| (arch, compile(arch))).to_vec()
        });
    texts.clone()
}

/// The PTX of a file of kernels for each architecture: made by NVRTC now, or as committed.
#[cfg(not(feature = "nvrtc"))]
pub fn texts(name: &str) -> Vec<(u32, String)> {
    let path = |arch| {
        format!(
            "{}/kernels/ptx/{name}.{arch}.ptx",
            env!("CARGO_MANIFEST_DIR")
        )
    };
    let texts = [80, 90, 100].map(|arch| (arch, std::fs::read_to_string(path(arch))));
    let texts: Vec<_> = texts
        .into_iter()
        .filter_map(|(arch, text)| Some((arch, text.ok()?)))
        .collect();
    assert!(!texts.is_empty(), "no PTX of {name} is committed");
    texts
}

/// Numbers that device memory holds.
pub trait Scalar: Copy {
    fn bytes(self) -> Vec<u8>;
    fn from_bytes(bytes: &[u8]) -> Self;
}

macro_rules! scalar {
    ($($ty:ty),*) => {$(
        impl Scalar for $ty {
            fn bytes(self) -> Vec<u8> {
                self.to_le_bytes().to_vec()
            }
            fn from_bytes(bytes: &[u8]) -> $ty {
                <$ty>::from_le_bytes(bytes.try_into().unwrap())
            }
        }
    )*};
}
scalar!(u8, i8, u16, i16, u32, i32, u64, i64, f32, f64);

/// An argument of a kernel, in its bytes.
pub fn arg<T: Scalar>(value: T) -> Vec<u8> {
    value.bytes()
}

pub struct Device {
    pub mem: Mem,
    pub kernels: Vec<Kernel>,
    pub options: Options,
}

impl Device {
    /// A device with the kernels of `text` loaded.
    pub fn new(text: &str) -> Device {
        Device::with(ptx::parse(text).unwrap_or_else(|e| panic!("{e}")))
    }

    /// A device with `kernels` loaded.
    pub fn with(kernels: Vec<Kernel>) -> Device {
        Device {
            mem: Mem::default(),
            kernels,
            options: Options::default(),
        }
    }

    /// Initialised device memory.
    pub fn upload<T: Scalar>(&mut self, values: &[T]) -> u64 {
        let bytes: Vec<u8> = values.iter().flat_map(|v| v.bytes()).collect();
        let p = self.mem.alloc(bytes.len());
        let (alloc, _) = self.mem.find(p, bytes.len()).unwrap();
        alloc.data.copy_from_slice(&bytes);
        alloc.valid.fill(1);
        p
    }

    /// Device memory that nothing wrote.
    pub fn empty(&mut self, bytes: usize) -> u64 {
        self.mem.alloc(bytes)
    }

    pub fn download<T: Scalar>(&mut self, p: u64, n: usize) -> Vec<T> {
        let size = std::mem::size_of::<T>();
        let (alloc, at) = self.mem.find(p, n * size).unwrap();
        alloc.data[at..at + n * size]
            .chunks(size)
            .map(T::from_bytes)
            .collect()
    }

    pub fn kernel(&self, name: &str) -> &Kernel {
        self.kernels
            .iter()
            .find(|k| k.name == name)
            .unwrap_or_else(|| panic!("no kernel {name}"))
    }

    /// Launches, and returns what was found.
    pub fn launch(
        &mut self,
        name: &str,
        grid: u32,
        block: u32,
        dynamic: usize,
        args: &[Vec<u8>],
    ) -> Report {
        let kernel = self.kernel(name).clone();
        let mut params = vec![0; kernel.param_bytes];
        assert_eq!(
            args.len(),
            kernel.params.len(),
            "{name}: number of arguments"
        );
        for ((at, size), arg) in kernel.params.iter().zip(args) {
            assert_eq!(arg.len(), *size, "{name}: size of an argument");
            params[*at..at + size].copy_from_slice(arg);
        }
        let launch = Launch {
            k: &kernel,
            grid: [grid, 1, 1],
            block: [block, 1, 1],
            params: &params,
            dyn_shared: dynamic,
        };
        let mut report = Report::default();
        let ended = vm::run_with(&launch, &mut self.mem, &mut report, &self.options);
        assert!(
            ended || !report.errors.is_empty() || self.options.checks != vm::Checks::all(),
            "{name} stopped"
        );
        report
    }

    /// As [`Device::launch`], for launches that must be without a finding.
    pub fn clean(
        &mut self,
        name: &str,
        grid: u32,
        block: u32,
        dynamic: usize,
        args: &[Vec<u8>],
    ) -> Report {
        let report = self.launch(name, grid, block, dynamic, args);
        assert!(report.errors.is_empty(), "{}", report.errors.join("\n"));
        report
    }
}

/// Numbers from -1 to 1, the same for the same seed.
pub fn random(n: usize, seed: u64) -> Vec<f32> {
    let mut state = seed * 2 + 1;
    let mut next = || {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / 16_777_216.0 * 2.0 - 1.0
    };
    (0..n).map(|_| next()).collect()
}
