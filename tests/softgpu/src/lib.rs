#![allow(unused_braces, missing_docs, clippy::all, unsafe_op_in_unsafe_fn)]
//! Stands in for `libcuda.so` in tests: the driver's API, and a checked interpreter of PTX.
pub mod driver;
pub mod ptx;
pub mod vm;

unsafe extern "C" {
    fn dlopen(n: *const std::ffi::c_char, f: i32) -> *mut std::ffi::c_void;
    fn dlerror() -> *const std::ffi::c_char;
}
/// Loads the stand-ins and NVRTC into this process.
pub fn load() {
    let exe = std::env::current_exe().unwrap();
    let deps = exe.parent().unwrap();
    let nvrtc = std::path::PathBuf::from(
        std::env::var("VELORA_NVRTC").expect("VELORA_NVRTC names the folder of libnvrtc.so.12"),
    );
    for p in [
        deps.join("libsoftgpu.so"),
        deps.join("libsoftlt.so"),
        nvrtc.join("libnvrtc-builtins.so.12.9"),
        nvrtc.join("libnvrtc.so.12"),
    ] {
        let c = std::ffi::CString::new(p.to_str().unwrap()).unwrap();
        // SAFETY: prototype.
        unsafe {
            if dlopen(c.as_ptr(), 0x102).is_null() {
                panic!("{p:?}: {:?}", std::ffi::CStr::from_ptr(dlerror()));
            }
        }
    }
}
