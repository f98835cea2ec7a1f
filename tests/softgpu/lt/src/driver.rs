//! The driver's stand-in, as this library sees it: functions of the loaded `libcuda.so`.

use crate::matmul::Matmul;
use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::sync::OnceLock;

unsafe extern "C" {
    fn dlopen(name: *const c_char, flags: c_int) -> *mut c_void;
    fn dlsym(library: *mut c_void, name: *const c_char) -> *mut c_void;
}

/// The functions of the driver's stand-in that this library uses.
pub(crate) struct Driver {
    matmul: extern "C" fn(*const Matmul, usize) -> c_int,
    report: extern "C" fn(*const c_char),
    call: extern "C" fn(*const c_char) -> c_int,
    objects: extern "C" fn(*const c_char, i64),
    has_context: extern "C" fn() -> c_int,
    generation: extern "C" fn() -> u64,
}

/// Finds a function; its absence means that `libcuda.so` is another driver, which this library cannot use.
fn find(library: *mut c_void, name: &CStr) -> *mut c_void {
    // SAFETY: a live library, or null, which means all loaded ones; and a text.
    let found = unsafe { dlsym(library, name.as_ptr()) };
    assert!(
        !found.is_null(),
        "libcuda.so is not the software GPU: it lacks {name:?}"
    );
    found
}

/// The loaded driver.
pub(crate) fn driver() -> &'static Driver {
    static DRIVER: OnceLock<Driver> = OnceLock::new();
    DRIVER.get_or_init(|| {
        // SAFETY: a text; RTLD_NOW. The software GPU has no initialisers.
        let library = unsafe { dlopen(c"libcuda.so".as_ptr(), 2) };
        // SAFETY: the software GPU declares its functions (`driver/api`) with these types.
        unsafe {
            Driver {
                matmul: std::mem::transmute::<
                    *mut c_void,
                    extern "C" fn(*const Matmul, usize) -> c_int,
                >(find(library, c"softgpu_matmul")),
                report: std::mem::transmute::<*mut c_void, extern "C" fn(*const c_char)>(find(
                    library,
                    c"softgpu_report",
                )),
                call: std::mem::transmute::<*mut c_void, extern "C" fn(*const c_char) -> c_int>(
                    find(library, c"softgpu_lt_call"),
                ),
                objects: std::mem::transmute::<*mut c_void, extern "C" fn(*const c_char, i64)>(
                    find(library, c"softgpu_objects"),
                ),
                has_context: std::mem::transmute::<*mut c_void, extern "C" fn() -> c_int>(find(
                    library,
                    c"softgpu_has_context",
                )),
                generation: std::mem::transmute::<*mut c_void, extern "C" fn() -> u64>(find(
                    library,
                    c"softgpu_generation",
                )),
            }
        }
    })
}

fn text(text: &str) -> CString {
    CString::new(text).unwrap_or_default()
}

impl Driver {
    /// Gives a product to a stream; a `CUresult`.
    pub(crate) fn matmul(&self, call: &Matmul, stream: usize) -> c_int {
        (self.matmul)(call, stream)
    }

    /// Notes that something is wrong.
    pub(crate) fn report(&self, what: &str) {
        (self.report)(text(what).as_ptr());
    }

    /// Counts a call; a status that a test injected, or 0.
    pub(crate) fn call(&self, name: &str) -> c_int {
        (self.call)(text(name).as_ptr())
    }

    /// One object more or less, for the report of leaks.
    pub(crate) fn objects(&self, kind: &str, change: i64) {
        (self.objects)(text(kind).as_ptr(), change);
    }

    /// Whether the thread has a context.
    pub(crate) fn has_context(&self) -> bool {
        (self.has_context)() != 0
    }

    /// Changes when a test begins anew.
    pub(crate) fn generation(&self) -> u64 {
        (self.generation)()
    }
}
