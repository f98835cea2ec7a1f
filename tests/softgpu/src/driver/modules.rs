//! Modules, their functions, and launches.

use super::Driver;
use super::codes::{Code, Outcome};
use super::handles::Kind;
use super::work::{KernelCall, Work};
use crate::ptx::{self, Kernel};
use std::sync::Arc;

/// Shared memory that a block may have without opting in, in bytes.
pub(crate) const SHARED: usize = 48 << 10;

/// The kernels of one text of PTX.
#[derive(Debug)]
pub(crate) struct Module {
    kernels: Vec<Arc<Kernel>>,
    target: u32,
    version: u32,
}

/// A kernel that was asked for by name.
#[derive(Debug)]
pub(crate) struct Function {
    module: usize,
    kernel: Arc<Kernel>,
    /// The dynamic shared memory it has opted in for.
    shared: usize,
}

/// How a launch is cut up.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Shape {
    pub(crate) grid: [u32; 3],
    pub(crate) block: [u32; 3],
    pub(crate) shared: usize,
}

/// `.version 8.8` as 88, `.target sm_90a` as 90 and whether it names features of one device only.
fn header(text: &str) -> Option<(u32, u32, bool)> {
    let word = |name: &str| {
        let line = text
            .lines()
            .map(str::trim)
            .find(|line| line.starts_with(name))?;
        line[name.len()..]
            .split([' ', '\t', ','])
            .find(|word| !word.is_empty())
    };
    let (major, minor) = word(".version")?.split_once('.')?;
    let version = major.parse::<u32>().ok()? * 10 + minor.parse::<u32>().ok()?;
    let target = word(".target")?.strip_prefix("sm_")?;
    let digits = target.trim_end_matches(['a', 'f']);
    Some((version, digits.parse().ok()?, digits.len() < target.len()))
}

impl Driver {
    /// Loads PTX. Code for one kind of device (a cubin, a fat binary) is refused as code for another.
    pub(super) fn load_module(&mut self, text: &str) -> Outcome<usize> {
        self.unsafe_in_capture("loads a module")?;
        let Some((version, target, exact)) = header(text) else {
            self.report("the module has no .version and .target".to_string());
            return Err(Code::INVALID_PTX);
        };
        if version > self.settings.ptx {
            self.report(format!(
                "PTX {version} is newer than the driver's, {} (in tenths)",
                self.settings.ptx
            ));
            return Err(Code::UNSUPPORTED_PTX_VERSION);
        }
        let device = self.settings.capability;
        if target > device || (exact && target != device) {
            self.report(format!(
                "PTX for sm_{target} does not run on this device, sm_{device}"
            ));
            return Err(Code::INVALID_PTX);
        }
        match ptx::parse(text) {
            Ok(kernels) => {
                let handle = self.handles.make(Kind::Module);
                let kernels = kernels.into_iter().map(Arc::new).collect();
                self.modules.insert(
                    handle,
                    Module {
                        kernels,
                        target,
                        version,
                    },
                );
                Ok(handle)
            }
            Err(error) => {
                self.report(format!("cannot load PTX: {error}"));
                Err(Code::INVALID_PTX)
            }
        }
    }

    /// Refuses images that are not text.
    pub(super) fn load_image(&mut self, image: &[u8]) -> Outcome<usize> {
        if image.starts_with(b"\x7fELF") || image.starts_with(&0xba55_ed50_u32.to_le_bytes()) {
            return Err(Code::NO_BINARY_FOR_GPU);
        }
        self.load_module(&String::from_utf8_lossy(image))
    }

    pub(super) fn unload_module(&mut self, handle: usize) -> Outcome<()> {
        self.unsafe_in_capture("unloads a module")?;
        self.check(handle, Kind::Module)?;
        self.handles.destroy(handle);
        self.modules.remove(&handle);
        let gone: Vec<usize> = self
            .functions
            .iter()
            .filter(|(_, function)| function.module == handle)
            .map(|(&key, _)| key)
            .collect();
        for function in gone {
            self.handles.destroy(function);
            self.functions.remove(&function);
        }
        Ok(())
    }

    /// A function's handle, by name.
    pub(super) fn find_function(&mut self, module: usize, name: &str) -> Outcome<usize> {
        self.check(module, Kind::Module)?;
        let kernel = self
            .modules
            .get(&module)
            .and_then(|found| found.kernels.iter().find(|k| k.name == name));
        let Some(kernel) = kernel.cloned() else {
            return Err(Code::NOT_FOUND);
        };
        let known = self
            .functions
            .iter()
            .find(|(_, f)| f.module == module && f.kernel.name == name);
        if let Some((&handle, _)) = known {
            return Ok(handle);
        }
        let handle = self.handles.make(Kind::Function);
        self.functions.insert(
            handle,
            Function {
                module,
                kernel,
                shared: SHARED,
            },
        );
        Ok(handle)
    }

    /// `cuFuncGetAttribute`.
    pub(super) fn function_attribute(&mut self, handle: usize, attribute: i32) -> Outcome<i32> {
        self.check(handle, Kind::Function)?;
        let Some(function) = self.functions.get(&handle) else {
            return Err(Code::INVALID_HANDLE);
        };
        let module = self.modules.get(&function.module);
        Ok(match attribute {
            0 => 1024,
            1 => function.kernel.shared_bytes as i32,
            2 => 0,
            3 => function.kernel.local_bytes as i32,
            4 => 32,
            5 => module.map_or(0, |module| module.version as i32),
            6 => module.map_or(0, |module| module.target as i32),
            7 => 0,
            8 => function.shared as i32 - function.kernel.shared_bytes as i32,
            9 => -1,
            _ => return Err(Code::INVALID_VALUE),
        })
    }

    /// `cuFuncSetAttribute`: dynamic shared memory (8) and preferences.
    pub(super) fn set_function_attribute(
        &mut self,
        handle: usize,
        attribute: i32,
        value: i32,
    ) -> Outcome<()> {
        self.check(handle, Kind::Function)?;
        let limit = self.settings.shared_opt_in();
        let Some(function) = self.functions.get_mut(&handle) else {
            return Err(Code::INVALID_HANDLE);
        };
        match attribute {
            8 => {
                let wanted = function.kernel.shared_bytes as i64 + i64::from(value);
                if value < 0 || wanted > limit as i64 {
                    return Err(Code::INVALID_VALUE);
                }
                function.shared = wanted as usize;
                Ok(())
            }
            9 if (-1..=100).contains(&value) => Ok(()),
            _ => Err(Code::INVALID_VALUE),
        }
    }

    /// Blocks of a function that one multiprocessor holds at a time.
    pub(super) fn occupancy(&mut self, handle: usize, threads: i32, shared: usize) -> Outcome<i32> {
        self.check(handle, Kind::Function)?;
        let limit = self.settings.shared_opt_in();
        let Some(function) = self.functions.get(&handle) else {
            return Err(Code::INVALID_HANDLE);
        };
        if !(1..=1024).contains(&threads) {
            return Err(Code::INVALID_VALUE);
        }
        let warps = (threads as usize).div_ceil(32);
        let shared = function.kernel.shared_bytes + shared;
        Ok((64 / warps)
            .min(32)
            .min(limit.checked_div(shared).unwrap_or(32)) as i32)
    }

    /// `cuLaunchKernel`, without reading the parameters yet: their sizes and offsets, if the launch may be.
    pub(super) fn prepare_launch(
        &mut self,
        handle: usize,
        shape: Shape,
    ) -> Outcome<Vec<(usize, usize)>> {
        self.check(handle, Kind::Function)?;
        let Some(function) = self.functions.get(&handle) else {
            return Err(Code::INVALID_HANDLE);
        };
        let Shape {
            grid,
            block,
            shared,
        } = shape;
        let threads: u64 = block.iter().map(|&n| u64::from(n)).product();
        let needed = function.kernel.shared_bytes + shared;
        let name = &function.kernel.name;
        let wrong = if grid.contains(&0) || block.contains(&0) {
            Some(format!("{name}: an empty grid {grid:?} or block {block:?}"))
        } else if threads > 1024 || block[2] > 64 {
            Some(format!(
                "{name}: a block of {block:?} threads is more than 1024, or deeper than 64"
            ))
        } else if grid[0] > i32::MAX as u32 || grid[1] > 65535 || grid[2] > 65535 {
            Some(format!("{name}: a grid of {grid:?} blocks is too large"))
        } else if needed > function.shared.max(SHARED) {
            Some(format!(
                "{name}: {needed} bytes of shared memory without opting in for so many"
            ))
        } else {
            None
        };
        match wrong {
            None => Ok(function.kernel.params.clone()),
            Some(why) => {
                self.report(why);
                Err(Code::INVALID_VALUE)
            }
        }
    }

    /// Launches what was prepared.
    pub(super) fn launch(
        &mut self,
        handle: usize,
        shape: Shape,
        parameters: Vec<u8>,
        stream: usize,
    ) -> Outcome<()> {
        let Some(function) = self.functions.get(&handle) else {
            return Err(Code::INVALID_HANDLE);
        };
        let Shape {
            grid,
            block,
            shared,
        } = shape;
        let (module, kernel) = (function.module, function.kernel.clone());
        let call = KernelCall {
            module,
            kernel,
            grid,
            block,
            shared,
            parameters,
        };
        self.submit(stream, Work::Kernel(Box::new(call)))
    }
}

#[cfg(test)]
mod tests {
    use super::header;

    #[test]
    fn headers_say_what_a_text_needs() {
        assert_eq!(
            header("// x\n.version 8.8\n.target sm_90a, debug\n"),
            Some((88, 90, true))
        );
        assert_eq!(
            header(".version 7.0\n  .target sm_80\n.address_size 64"),
            Some((70, 80, false))
        );
        assert_eq!(header(".visible .entry f() {}"), None);
    }
}
