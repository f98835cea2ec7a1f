//! Kernels from their source: compiled for the device that is there, once, and kept on disk.

mod cache;
mod nvrtc;

pub use cache::Cache;

use super::driver::{Context, DeviceError, Function, LoadError, Module};
use nvrtc::{Library, Target};
use sha2::{Digest, Sha256};
use std::borrow::Cow;
use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// A text that is compiled into this program.
macro_rules! header {
    ($name:literal, $file:literal) => {
        Unit {
            name: $name,
            text: Cow::Borrowed(include_str!($file)),
        }
    };
}

/// What sources may include, by name.
pub(super) const HEADERS: [Unit; 14] = [
    header!("common.cuh", "../common.cuh"),
    header!("elementwise.cuh", "../elementwise/elementwise.cuh"),
    header!("columns.cuh", "../columns.cuh"),
    header!("rows.cuh", "../rows.cuh"),
    // Kernels for types that the unit names which includes them (`Source`).
    header!("accumulate.cu", "../accumulate.cu"),
    header!("batch.cu", "../normalize/batch.cu"),
    header!("dequantize.cu", "../dequantize.cu"),
    header!("directions.cu", "../directions.cu"),
    header!("layer.cu", "../normalize/layer.cu"),
    header!("loss.cu", "../loss.cu"),
    header!("reduce.cu", "../reduce.cu"),
    header!("scan.cu", "../scan.cu"),
    header!("softmax.cu", "../normalize/softmax.cu"),
    header!("velora.cu", "../velora.cu"),
];

/// A source file of kernels, or a header.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Unit {
    /// The file's name, for messages.
    pub name: &'static str,
    /// Its text.
    pub text: Cow<'static, str>,
}

/// Options of every compilation. Products and sums are not contracted: a value must not depend on what
/// else is computed beside it; kernels say `fmaf` where they mean it.
const OPTIONS: [&str; 3] = ["--std=c++17", "--fmad=false", "--generate-line-info"];

/// Compiles units for one device and hands them to it.
#[derive(Debug)]
pub struct Compiler {
    context: Arc<Context>,
    library: Library,
    cache: Cache,
    /// Sources that take the place of the embedded ones.
    folder: Option<PathBuf>,
    headers: Vec<Unit>,
    loaded: Mutex<HashMap<Unit, Arc<Module>>>,
    /// The driver has refused machine code: only PTX is tried from then on.
    refuses_machine_code: AtomicBool,
}

impl Compiler {
    /// A compiler for a device. Sources and headers of which a folder has a file of the same name are read
    /// there.
    ///
    /// # Errors
    /// [`DeviceError`] where the NVRTC library is missing or does not answer.
    pub fn new(
        context: &Arc<Context>,
        cache: Cache,
        folder: Option<PathBuf>,
    ) -> Result<Self, DeviceError> {
        let headers = HEADERS
            .iter()
            .map(|header| replaced(header, folder.as_deref()));
        Ok(Compiler {
            context: context.clone(),
            headers: headers.collect(),
            folder,
            library: Library::open()?,
            cache,
            loaded: Mutex::default(),
            refuses_machine_code: AtomicBool::new(false),
        })
    }

    /// A kernel of a unit, which is compiled and loaded where it has not been yet.
    ///
    /// # Errors
    /// [`DeviceError`] where it does not compile, the device refuses it, or there is no such kernel.
    pub fn function(&self, unit: &Unit, kernel: &str) -> Result<Function, DeviceError> {
        self.module(unit)?.function(kernel)
    }

    fn module(&self, unit: &Unit) -> Result<Arc<Module>, DeviceError> {
        let mut loaded = self.loaded.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(module) = loaded.get(unit) {
            return Ok(module.clone());
        }
        let module = self.load(unit)?;
        loaded.insert(unit.clone(), module.clone());
        Ok(module)
    }

    fn load(&self, unit: &Unit) -> Result<Arc<Module>, DeviceError> {
        let unit = &replaced(unit, self.folder.as_deref());
        let architecture = self.context.facts().architecture;
        for target in self.library.targets(architecture) {
            let is_machine_code = matches!(target, Target::MachineCode(_));
            if is_machine_code && self.refuses_machine_code.load(Ordering::Relaxed) {
                continue;
            }
            let image = self.image(unit, target)?;
            match Module::load(&self.context, &image) {
                Ok(module) => return Ok(module),
                Err(LoadError::Foreign) if is_machine_code => {
                    self.refuses_machine_code.store(true, Ordering::Relaxed);
                }
                Err(LoadError::Foreign) => break,
                Err(LoadError::Device(error)) => return Err(error),
            }
        }
        Err(DeviceError {
            call: "cuModuleLoadData",
            code: format!(
                "no code that this NVRTC makes of {} is for compute capability {}.{}",
                unit.name,
                architecture / 10,
                architecture % 10
            ),
        })
    }

    /// Compiled code, from the cache or from now on in it.
    fn image(&self, unit: &Unit, target: Target) -> Result<Vec<u8>, DeviceError> {
        let key = key(unit, &self.headers, target, self.library.version);
        if let Some(image) = self.cache.get(&key) {
            return Ok(image);
        }
        let image = (self.library).compile(unit, &self.headers, target, &OPTIONS)?;
        self.cache.put(&key, &image);
        Ok(image)
    }
}

/// A source, or the file of its name in a folder.
fn replaced(unit: &Unit, folder: Option<&Path>) -> Unit {
    let text = folder.and_then(|folder| fs::read_to_string(folder.join(unit.name)).ok());
    match text {
        Some(text) => Unit {
            text: Cow::Owned(text),
            ..*unit
        },
        None => unit.clone(),
    }
}

/// The PTX of a unit for an architecture (80 for compute_80), whatever device there is: for looking at.
///
/// # Errors
/// [`DeviceError`] where the NVRTC library is missing, or the unit does not compile.
pub fn ptx(unit: &Unit, architecture: u32) -> Result<Vec<u8>, DeviceError> {
    Library::open()?.compile(unit, &HEADERS, Target::Ptx(architecture), &OPTIONS)
}

/// The name of compiled code: a hash of all that it depends on.
fn key(unit: &Unit, headers: &[Unit], target: Target, version: (i32, i32)) -> String {
    let mut hash = Sha256::new();
    let mut part = |bytes: &[u8]| {
        // With its length, so that no two lists of parts are one.
        hash.update((bytes.len() as u64).to_le_bytes());
        hash.update(bytes);
    };
    for source in headers.iter().chain([unit]) {
        part(source.name.as_bytes());
        part(source.text.as_bytes());
    }
    OPTIONS.iter().for_each(|option| part(option.as_bytes()));
    part(target.option().as_bytes());
    part(&version.0.to_le_bytes());
    part(&version.1.to_le_bytes());
    let digest = hash.finalize();
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}
