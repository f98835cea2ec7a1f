//! NVIDIA's run-time compiler.

use super::Unit;
use crate::cuda::driver::DeviceError;
use cudarc::nvrtc::result::NvrtcError;
use cudarc::nvrtc::{result, sys};
use std::ffi::{CStr, CString, c_char, c_int};
use std::ptr;

/// What code is made for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// Machine code of one architecture: 80 for sm_80.
    MachineCode(u32),
    /// PTX, which the driver compiles for any later architecture.
    Ptx(u32),
}

impl Target {
    /// The compiler's option.
    pub fn option(self) -> String {
        match self {
            Target::MachineCode(architecture) => format!("--gpu-architecture=sm_{architecture}"),
            Target::Ptx(architecture) => format!("--gpu-architecture=compute_{architecture}"),
        }
    }
}

/// The library, once it is known to be there.
#[derive(Debug)]
pub struct Library {
    /// Its major and minor version.
    pub version: (i32, i32),
    /// The architectures that it knows, ascending.
    architectures: Vec<u32>,
}

impl Library {
    /// Looks for the library.
    ///
    /// # Errors
    /// [`DeviceError`] where it is not there.
    pub fn open() -> Result<Self, DeviceError> {
        // SAFETY: looks for a library by its name; loading NVIDIA's runs no code of ours.
        if !unsafe { sys::is_culib_present() } {
            return Err(DeviceError {
                call: "looking for NVRTC",
                code: "no libnvrtc.so.12 found, so that kernels cannot be compiled; install CUDA's NVRTC \
                       (Python's package nvidia-cuda-nvrtc-cu12 has it, too) and name its folder in \
                       LD_LIBRARY_PATH"
                    .to_owned(),
            });
        }
        let (mut major, mut minor) = (0, 0);
        // SAFETY: both places are ours.
        let found = unsafe { sys::nvrtcVersion(&raw mut major, &raw mut minor) };
        check("nvrtcVersion", found.result())?;
        let mut count = 0;
        // SAFETY: the place is ours.
        let counted = unsafe { sys::nvrtcGetNumSupportedArchs(&raw mut count) };
        check("nvrtcGetNumSupportedArchs", counted.result())?;
        let mut known: Vec<c_int> = vec![0; usize::try_from(count).unwrap_or(0)];
        // SAFETY: as many places as the library has just asked for.
        let listed = unsafe { sys::nvrtcGetSupportedArchs(known.as_mut_ptr()) };
        check("nvrtcGetSupportedArchs", listed.result())?;
        let mut architectures: Vec<u32> = known.iter().map(|known| known.unsigned_abs()).collect();
        architectures.sort_unstable();
        Ok(Library {
            version: (major, minor),
            architectures,
        })
    }

    /// What can be made for a device, the best first.
    pub fn targets(&self, architecture: u32) -> impl Iterator<Item = Target> {
        let known = self.architectures.contains(&architecture);
        let below = self.architectures.iter().copied();
        let latest = below.filter(|&known| known <= architecture).max();
        let own = known.then_some(Target::MachineCode(architecture));
        own.into_iter().chain(latest.map(Target::Ptx))
    }

    /// Compiles a unit, which may include headers.
    ///
    /// # Errors
    /// [`DeviceError`] with the compiler's messages where it does not compile.
    pub fn compile(
        &self,
        unit: &Unit,
        headers: &[Unit],
        target: Target,
        options: &[&str],
    ) -> Result<Vec<u8>, DeviceError> {
        let text = c_string(&unit.text)?;
        let name = c_string(unit.name)?;
        let strings = |of: fn(&Unit) -> &str| -> Result<Vec<CString>, DeviceError> {
            headers.iter().map(|header| c_string(of(header))).collect()
        };
        let (names, texts) = (strings(|h| h.name)?, strings(|h| &h.text)?);
        let program = Program::new(&text, &name, &names, &texts)?;
        let mut all: Vec<String> = options.iter().map(|&option| option.to_owned()).collect();
        all.push(target.option());
        // SAFETY: the program lives as long as `program`, and the options are copied.
        let compiled = unsafe { result::compile_program(program.0, &all) };
        if let Err(error) = compiled {
            let messages = program.messages()?;
            let first: Vec<&str> = messages.lines().take(8).collect();
            return Err(DeviceError {
                call: "nvrtcCompileProgram",
                code: format!("{:?}: {}", error.0, first.join("; ")),
            });
        }
        match target {
            Target::MachineCode(_) => program.machine_code(),
            Target::Ptx(_) => {
                // SAFETY: as above, and it was compiled.
                let text = unsafe { result::get_ptx(program.0) };
                Ok(bytes(&check("nvrtcGetPTX", text)?))
            }
        }
    }
}

/// A program of the compiler.
struct Program(sys::nvrtcProgram);

impl Program {
    fn new(
        text: &CStr,
        name: &CStr,
        header_names: &[CString],
        headers: &[CString],
    ) -> Result<Self, DeviceError> {
        let mut program = ptr::null_mut();
        let names: Vec<*const c_char> = header_names.iter().map(|name| name.as_ptr()).collect();
        let headers: Vec<*const c_char> = headers.iter().map(|text| text.as_ptr()).collect();
        // SAFETY: all texts end with zeros, and are copied; there are as many headers as names.
        let created = unsafe {
            sys::nvrtcCreateProgram(
                &raw mut program,
                text.as_ptr(),
                name.as_ptr(),
                headers.len() as c_int,
                headers.as_ptr(),
                names.as_ptr(),
            )
        };
        check("nvrtcCreateProgram", created.result())?;
        Ok(Program(program))
    }

    fn messages(&self) -> Result<String, DeviceError> {
        // SAFETY: the program lives as long as `self`.
        let log = unsafe { result::get_program_log(self.0) };
        let log = bytes(&check("nvrtcGetProgramLog", log)?);
        Ok(String::from_utf8_lossy(&log).into_owned())
    }

    fn machine_code(&self) -> Result<Vec<u8>, DeviceError> {
        let mut size = 0;
        // SAFETY: the program lives as long as `self`, and the place is ours.
        let sized = unsafe { sys::nvrtcGetCUBINSize(self.0, &raw mut size) };
        check("nvrtcGetCUBINSize", sized.result())?;
        let mut image = vec![0u8; size];
        // SAFETY: as above, and as many bytes as the library has just asked for.
        let copied = unsafe { sys::nvrtcGetCUBIN(self.0, image.as_mut_ptr().cast::<c_char>()) };
        check("nvrtcGetCUBIN", copied.result())?;
        Ok(image)
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // SAFETY: created by `new`, and destroyed once.
        let destroyed = unsafe { result::destroy_program(self.0) };
        // It fails for handles that are none, and then nothing is left to be freed.
        if let Err(error) = destroyed {
            eprintln!("velora-opt: nvrtcDestroyProgram failed with {:?}", error.0);
        }
    }
}

fn check<T>(call: &'static str, result: Result<T, NvrtcError>) -> Result<T, DeviceError> {
    result.map_err(|error| DeviceError {
        call,
        code: format!("{:?}", error.0),
    })
}

fn c_string(text: &str) -> Result<CString, DeviceError> {
    CString::new(text).map_err(|error| DeviceError {
        call: "nvrtcCreateProgram",
        code: format!("the source has a zero byte at {}", error.nul_position()),
    })
}

/// Characters as bytes, up to the zero that ends them.
fn bytes(text: &[c_char]) -> Vec<u8> {
    let text = text.iter().map(|&c| c as u8);
    text.take_while(|&byte| byte != 0).collect()
}
