//! The real NVRTC, loaded at run time.

use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::sync::OnceLock;

unsafe extern "C" {
    fn dlopen(name: *const c_char, flags: c_int) -> *mut c_void;
    fn dlsym(library: *mut c_void, name: *const c_char) -> *mut c_void;
    fn dlerror() -> *const c_char;
}

type Program = *mut c_void;

struct Nvrtc {
    create: unsafe extern "C" fn(
        *mut Program,
        *const c_char,
        *const c_char,
        c_int,
        *const *const c_char,
        *const *const c_char,
    ) -> c_int,
    compile: unsafe extern "C" fn(Program, c_int, *const *const c_char) -> c_int,
    log_size: unsafe extern "C" fn(Program, *mut usize) -> c_int,
    log: unsafe extern "C" fn(Program, *mut c_char) -> c_int,
    ptx_size: unsafe extern "C" fn(Program, *mut usize) -> c_int,
    ptx: unsafe extern "C" fn(Program, *mut c_char) -> c_int,
    destroy: unsafe extern "C" fn(*mut Program) -> c_int,
}

/// Where the wheel of NVRTC puts its library, in the environment that the CUDA backend's tests make.
fn default_path() -> String {
    let root = concat!(env!("CARGO_MANIFEST_DIR"), "/../../target/venv-cuda/lib");
    let python = std::fs::read_dir(root)
        .ok()
        .and_then(|mut d| d.next())
        .and_then(Result::ok);
    let python = python.map_or("python3".into(), |d| {
        d.file_name().to_string_lossy().into_owned()
    });
    format!("{root}/{python}/site-packages/nvidia/cuda_nvrtc/lib/libnvrtc.so.12")
}

// The types of the functions are those of the fields.
#[allow(clippy::missing_transmute_annotations)]
fn nvrtc() -> &'static Nvrtc {
    static LOADED: OnceLock<Nvrtc> = OnceLock::new();
    LOADED.get_or_init(|| {
        let path = std::env::var("VELORA_NVRTC").unwrap_or_else(|_| default_path());
        let name = CString::new(path.clone()).unwrap();
        // SAFETY: the name is a C string; the library's initialisers are NVIDIA's and need nothing of ours.
        let library = unsafe { dlopen(name.as_ptr(), 2) };
        if library.is_null() {
            // SAFETY: after a failed dlopen this is a C string.
            let why = unsafe { CStr::from_ptr(dlerror()) };
            panic!("cannot load NVRTC from {path}; set VELORA_NVRTC to its path: {why:?}");
        }
        let symbol = |name: &CStr| {
            // SAFETY: the library is open and stays so.
            let found = unsafe { dlsym(library, name.as_ptr()) };
            assert!(!found.is_null(), "NVRTC has no {name:?}");
            found
        };
        // SAFETY: these are the signatures of nvrtc.h.
        unsafe {
            Nvrtc {
                create: std::mem::transmute(symbol(c"nvrtcCreateProgram")),
                compile: std::mem::transmute(symbol(c"nvrtcCompileProgram")),
                log_size: std::mem::transmute(symbol(c"nvrtcGetProgramLogSize")),
                log: std::mem::transmute(symbol(c"nvrtcGetProgramLog")),
                ptx_size: std::mem::transmute(symbol(c"nvrtcGetPTXSize")),
                ptx: std::mem::transmute(symbol(c"nvrtcGetPTX")),
                destroy: std::mem::transmute(symbol(c"nvrtcDestroyProgram")),
            }
        }
    })
}

/// The PTX of `source` for `compute_<arch>`.
pub fn compile(source: &str, name: &str, arch: u32, options: &[&str]) -> String {
    let nvrtc = nvrtc();
    let (source, name) = (CString::new(source).unwrap(), CString::new(name).unwrap());
    let mut options: Vec<CString> = options.iter().map(|o| CString::new(*o).unwrap()).collect();
    options.push(CString::new(format!("--gpu-architecture=compute_{arch}")).unwrap());
    let pointers: Vec<*const c_char> = options.iter().map(|o| o.as_ptr()).collect();
    let mut program = std::ptr::null_mut();
    // SAFETY: all strings outlive the calls, and buffers have the sizes that NVRTC asked for.
    unsafe {
        let none = std::ptr::null();
        assert_eq!(
            (nvrtc.create)(&mut program, source.as_ptr(), name.as_ptr(), 0, none, none),
            0
        );
        let result = (nvrtc.compile)(program, pointers.len() as c_int, pointers.as_ptr());
        let text = |size: unsafe extern "C" fn(Program, *mut usize) -> c_int,
                    get: unsafe extern "C" fn(Program, *mut c_char) -> c_int| {
            let mut n = 0;
            assert_eq!(size(program, &mut n), 0);
            let mut bytes = vec![0u8; n];
            assert_eq!(get(program, bytes.as_mut_ptr().cast()), 0);
            String::from_utf8_lossy(&bytes)
                .trim_end_matches('\0')
                .to_owned()
        };
        assert_eq!(result, 0, "{}", text(nvrtc.log_size, nvrtc.log));
        let ptx = text(nvrtc.ptx_size, nvrtc.ptx);
        (nvrtc.destroy)(&mut program);
        ptx
    }
}
