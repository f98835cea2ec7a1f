//! What tests hold: loads the driver's stand-in into the process and asks it what happened.
//!
//! The test binary has its own copy of this crate's code; the state is in the library's. All goes through
//! functions that the library exports.

use std::collections::BTreeMap;
use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::fmt;
use std::io;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

/// What can be asked.
#[repr(u32)]
#[derive(Clone, Copy, Debug)]
pub(crate) enum Query {
    Reports,
    Allocations,
    Calls,
    Leaks,
    Counts,
}

/// What can be set.
#[repr(u32)]
#[derive(Clone, Copy, Debug)]
pub(crate) enum Setting {
    Capability,
    Memory,
    Seed,
    Ptx,
    Devices,
    Pools,
}

/// A library that could not be loaded.
#[derive(Clone, Debug)]
pub struct LoadError(String);

impl fmt::Display for LoadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for LoadError {}

/// An error that the driver is to come to, counted from when it is asked for (1: the next).
#[derive(Clone, Copy, Debug)]
pub enum Fault<'a> {
    /// The n-th allocation, of device or pinned memory, finds none left (2).
    Memory(u64),
    /// The n-th launch fails on the device: the host learns of it when it next waits, and from then on all
    /// calls return 719.
    Launch(u64),
    /// The device is gone at the n-th call: this and all later calls return 46.
    Lost(u64),
    /// The n-th call of a function, named as exported (`cuMemAlloc_v2`, `cublasLtMatmul`), returns a number
    /// and does nothing.
    Call(&'a str, u64, i32),
}

/// A live block of device memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Allocation {
    /// Its address.
    pub at: u64,
    /// Its bytes.
    pub len: u64,
    /// One more than the offset of the highest byte that anything read or wrote.
    pub high_water: u64,
}

unsafe extern "C" {
    fn dlopen(name: *const c_char, flags: c_int) -> *mut c_void;
    fn dlsym(library: *mut c_void, name: *const c_char) -> *mut c_void;
    fn dlerror() -> *const c_char;
}

const RTLD_NOW: c_int = 2;
const RTLD_GLOBAL: c_int = 0x100;

/// Loads a library for good; later requests for its SONAME find it.
fn open(path: &Path) -> Result<*mut c_void, LoadError> {
    let name = CString::new(path.as_os_str().as_encoded_bytes())
        .map_err(|_| LoadError(format!("{} is no path", path.display())))?;
    // SAFETY: a path that ends with a zero byte; the libraries have no initialisers that need anything.
    let library = unsafe { dlopen(name.as_ptr(), RTLD_NOW | RTLD_GLOBAL) };
    if !library.is_null() {
        return Ok(library);
    }
    // SAFETY: after a failure, the function returns a text, or null.
    let why = unsafe { dlerror() };
    let why = if why.is_null() {
        "no reason given".into()
    } else {
        // SAFETY: not null, so a text that ends with a zero byte and lives until the next call.
        unsafe { CStr::from_ptr(why) }
            .to_string_lossy()
            .into_owned()
    };
    Err(LoadError(format!("cannot load {}: {why}", path.display())))
}

/// The functions of `driver/api/control.rs`.
struct Symbols {
    query: extern "C" fn(u32, *mut u8, usize) -> usize,
    forget_reports: extern "C" fn(usize),
    set: extern "C" fn(u32, u64),
    inject: extern "C" fn(*const c_char, u64, i32),
    undefine: extern "C" fn(u64, usize) -> i32,
    reset: extern "C" fn(),
}

/// Looks a function up.
fn symbol(library: *mut c_void, name: &CStr) -> Result<*mut c_void, LoadError> {
    // SAFETY: a live library and a text.
    let found = unsafe { dlsym(library, name.as_ptr()) };
    if found.is_null() {
        return Err(LoadError(format!(
            "the software GPU's library lacks {}",
            name.to_string_lossy()
        )));
    }
    Ok(found)
}

impl Symbols {
    fn find(library: *mut c_void) -> Result<Self, LoadError> {
        let symbol = |name| symbol(library, name);
        // SAFETY: `driver/api/control.rs` declares each with this type, in a library made from this source.
        unsafe {
            Ok(Self {
                query: std::mem::transmute::<
                    *mut c_void,
                    extern "C" fn(u32, *mut u8, usize) -> usize,
                >(symbol(c"softgpu_query")?),
                forget_reports: std::mem::transmute::<*mut c_void, extern "C" fn(usize)>(symbol(
                    c"softgpu_forget_reports",
                )?),
                set: std::mem::transmute::<*mut c_void, extern "C" fn(u32, u64)>(symbol(
                    c"softgpu_set",
                )?),
                inject: std::mem::transmute::<*mut c_void, extern "C" fn(*const c_char, u64, i32)>(
                    symbol(c"softgpu_inject")?,
                ),
                undefine: std::mem::transmute::<*mut c_void, extern "C" fn(u64, usize) -> i32>(
                    symbol(c"softgpu_undefine")?,
                ),
                reset: std::mem::transmute::<*mut c_void, extern "C" fn()>(symbol(
                    c"softgpu_reset",
                )?),
            })
        }
    }
}

/// Where Cargo puts the libraries: beside the test executable.
fn beside_executable(name: &str) -> Result<PathBuf, LoadError> {
    let executable = std::env::current_exe().map_err(|error| LoadError(error.to_string()))?;
    let folders = [
        executable.parent().map(|folder| folder.join(name)),
        executable
            .parent()
            .and_then(|folder| Some(folder.parent()?.join(name))),
    ];
    folders.into_iter().flatten().find(|path| path.exists()).ok_or_else(|| {
        LoadError(format!(
            "{name} is not beside {}: the test's package needs velora-softgpu and velora-softlt among its \
             dev-dependencies",
            executable.display()
        ))
    })
}

/// The variable that names the folder of NVRTC's libraries.
const NVRTC: &str = "VELORA_NVRTC";

/// The folder that `VELORA_NVRTC` names; without it that of the package in `target/venv-cuda`.
fn nvrtc_folder() -> Result<PathBuf, LoadError> {
    if let Some(folder) = std::env::var_os(NVRTC) {
        return Ok(folder.into());
    }
    let environment = beside_executable("../venv-cuda")
        .or_else(|_| beside_executable("../../venv-cuda"))
        .map(|folder| folder.join("lib/python3.11/site-packages/nvidia/cuda_nvrtc/lib"));
    environment.map_err(|_| {
        LoadError(format!(
            "there is no target/venv-cuda (see docs/cuda.md), and {NVRTC} is not set: it has to name the folder \
             that holds libnvrtc.so.12"
        ))
    })
}

/// `libnvrtc.so.*` and `libnvrtc-builtins.so.*` in their folder.
fn nvrtc_files() -> Result<Vec<PathBuf>, LoadError> {
    let folder = nvrtc_folder()?;
    let fail = |why: String| LoadError(format!("NVRTC in {}: {why}", folder.display()));
    let entries = std::fs::read_dir(&folder).map_err(|error| fail(error.to_string()))?;
    let mut files: Vec<PathBuf> = entries
        .filter_map(|entry| entry.ok().map(|entry| entry.path()))
        .collect();
    let named = |path: &PathBuf, start: &str| {
        path.file_name()
            .is_some_and(|name| name.to_string_lossy().starts_with(start))
    };
    files.retain(|path| named(path, "libnvrtc.so") || named(path, "libnvrtc-builtins.so"));
    if !files.iter().any(|path| named(path, "libnvrtc.so")) {
        return Err(fail("there is no libnvrtc.so".to_string()));
    }
    // The built-in headers first: NVRTC looks for them by name, and finds what is loaded.
    files.sort_by_key(|path| !named(path, "libnvrtc-builtins"));
    Ok(files)
}

/// Loads the driver once in a process.
fn library() -> Result<&'static Symbols, LoadError> {
    static LOADED: OnceLock<Result<Symbols, LoadError>> = OnceLock::new();
    LOADED
        .get_or_init(|| {
            let driver = open(&beside_executable("libsoftgpu.so")?)?;
            if let Ok(path) = beside_executable("libsoftlt.so") {
                open(&path)?;
            }
            Symbols::find(driver)
        })
        .as_ref()
        .map_err(Clone::clone)
}

static EXCLUSIVE: Mutex<()> = Mutex::new(());

/// The software GPU, for one test at a time.
///
/// A process has one. While a test holds it, other tests of the process that want it wait; each finds it as
/// new. Drop all of CUDA's objects before it.
pub struct Gpu {
    symbols: &'static Symbols,
    _turn: MutexGuard<'static, ()>,
}

impl fmt::Debug for Gpu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Gpu")
            .field("reports", &self.reports())
            .finish()
    }
}

impl Gpu {
    /// Loads the software GPU in the place of `libcuda.so` (and cuBLASLt's stand-in, where the test's package
    /// depends on it), waits for its turn and begins from nothing.
    ///
    /// # Errors
    ///
    /// If the library is not beside the test executable, or cannot be loaded.
    pub fn exclusive() -> Result<Self, LoadError> {
        let turn = EXCLUSIVE.lock().unwrap_or_else(PoisonError::into_inner);
        let symbols = library()?;
        (symbols.reset)();
        Ok(Self {
            symbols,
            _turn: turn,
        })
    }

    /// Loads the real NVRTC, from the folder that `VELORA_NVRTC` names or from `target/venv-cuda`.
    ///
    /// # Errors
    ///
    /// If there is no NVRTC.
    pub fn load_nvrtc() -> Result<(), LoadError> {
        static LOADED: OnceLock<Result<(), LoadError>> = OnceLock::new();
        LOADED
            .get_or_init(|| {
                nvrtc_files()?
                    .iter()
                    .try_for_each(|path| open(path).map(drop))
            })
            .clone()
    }

    /// Fills a folder with links under the names that programs open, for the `LD_LIBRARY_PATH` of a process
    /// that a test starts; NVRTC's, too, if `VELORA_NVRTC` is set. Such a process is told what the device is
    /// by `SOFTGPU_CAPABILITY` (80), `SOFTGPU_MEMORY` (bytes), `SOFTGPU_SEED`, `SOFTGPU_FAULT` (as `launch:2`
    /// or `cuMemAlloc_v2:1:2`), and appends its reports to the file `SOFTGPU_LOG`.
    ///
    /// # Errors
    ///
    /// If a library is missing or a link cannot be made.
    pub fn link_into(folder: &Path) -> io::Result<()> {
        let link = |library: &str, names: &[&str]| {
            let path = beside_executable(library).map_err(|error| io::Error::other(error.0))?;
            names
                .iter()
                .try_for_each(|name| symlink(&path, folder.join(name)))
        };
        // Not `libcuda.so.1`: NVRTC opens that, and takes functions from it that are not in any header.
        link("libsoftgpu.so", &["libcuda.so"])?;
        link("libsoftlt.so", &["libcublasLt.so", "libcublasLt.so.12"])?;
        for path in nvrtc_files().unwrap_or_default() {
            if let Some(name) = path.file_name() {
                symlink(path.canonicalize()?, folder.join(name))?;
            }
        }
        Ok(())
    }

    fn ask(&self, query: Query) -> Vec<String> {
        let mut bytes = Vec::new();
        loop {
            let len = (self.symbols.query)(query as u32, bytes.as_mut_ptr(), bytes.len());
            let complete = len <= bytes.len();
            bytes.resize(len, 0);
            if complete {
                break;
            }
        }
        let text = String::from_utf8_lossy(&bytes);
        text.lines().map(str::to_string).collect()
    }

    fn numbers(&self, query: Query) -> BTreeMap<String, u64> {
        let pair = |line: &String| {
            let (name, count) = line.rsplit_once(' ')?;
            Some((name.to_string(), count.parse().ok()?))
        };
        self.ask(query).iter().filter_map(pair).collect()
    }

    /// All that was wrong so far, in order; empty if nothing was.
    pub fn reports(&self) -> Vec<String> {
        self.ask(Query::Reports)
    }

    /// The same, and forgets them.
    pub fn take_reports(&self) -> Vec<String> {
        let reports = self.reports();
        (self.symbols.forget_reports)(reports.len());
        reports
    }

    /// What has been made and not been given back, as "2 streams".
    pub fn leaks(&self) -> Vec<String> {
        self.ask(Query::Leaks)
    }

    /// How often each function was called.
    pub fn calls(&self) -> BTreeMap<String, u64> {
        self.numbers(Query::Calls)
    }

    /// Work done: `launches` of kernels, `products`, `instructions`, `loads`, `stores`, `bytes_read` and
    /// `bytes_written` by kernels, and `copied` bytes.
    pub fn counts(&self) -> BTreeMap<String, u64> {
        self.numbers(Query::Counts)
    }

    /// The live blocks of device memory, by address.
    pub fn allocations(&self) -> Vec<Allocation> {
        let parse = |line: &String| {
            let mut numbers = line.split(' ').map(|number| number.parse::<u64>().ok());
            let mut next = || numbers.next().flatten();
            Some(Allocation {
                at: next()?,
                len: next()?,
                high_water: next()?,
            })
        };
        self.ask(Query::Allocations)
            .iter()
            .filter_map(parse)
            .collect()
    }

    fn set(&self, setting: Setting, value: u64) {
        (self.symbols.set)(setting as u32, value);
    }

    /// The compute capability × 10, as 90; 80 at first.
    pub fn set_capability(&self, capability: u32) {
        self.set(Setting::Capability, capability.into());
    }

    /// Bytes of device memory; 8 GiB at first.
    pub fn set_memory(&self, bytes: u64) {
        self.set(Setting::Memory, bytes);
    }

    /// The order of blocks (bit 0) and of threads (bit 1) in kernels: reversed where the bit is set.
    pub fn set_seed(&self, seed: u64) {
        self.set(Setting::Seed, seed);
    }

    /// The newest version of PTX × 10 that the driver takes; 88 at first.
    pub fn set_ptx_version(&self, version: u32) {
        self.set(Setting::Ptx, version.into());
    }

    /// The number of devices: 1, or 0 for a driver without any.
    pub fn set_devices(&self, count: u32) {
        self.set(Setting::Devices, count.into());
    }

    /// Whether the device has memory pools, so that allocation on streams is offered; it has at first.
    pub fn set_pools(&self, pools: bool) {
        self.set(Setting::Pools, pools.into());
    }

    /// Arms a fault, besides those armed before.
    pub fn inject(&self, fault: Fault<'_>) {
        let (name, nth, code) = match fault {
            Fault::Memory(nth) => ("memory", nth, 0),
            Fault::Launch(nth) => ("launch", nth, 0),
            Fault::Lost(nth) => ("lost", nth, 0),
            Fault::Call(name, nth, code) => (name, nth, code),
        };
        if let Ok(name) = CString::new(name) {
            (self.symbols.inject)(name.as_ptr(), nth, code);
        }
    }

    /// Takes the value from bytes of device memory, as at the end of a tensor's life in an arena: what reads
    /// them before they are written again is reported. False if they are not all in one block.
    pub fn undefine(&self, at: u64, len: usize) -> bool {
        (self.symbols.undefine)(at, len) == 0
    }
}

impl Drop for Gpu {
    fn drop(&mut self) {
        if std::thread::panicking() {
            for report in self.reports() {
                eprintln!("softgpu: {report}");
            }
        }
    }
}
