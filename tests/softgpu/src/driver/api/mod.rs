//! The exported functions, as `cuda.h` declares them. They only translate: arguments to values of Rust, and
//! results to numbers.

mod context;
mod control;
mod copy;
mod graph;
mod launch;
mod memory;
mod module;
mod stream;

use super::codes::{Code, Outcome};

/// Declares functions of the driver: the class of each, its name and arguments, and what it does with the
/// state. The body's value is dropped; `?` returns an error.
macro_rules! api {
    ($($(#[$doc:meta])* $class:ident $name:ident($($arg:ident: $ty:ty),* $(,)?) |$driver:ident| $body:expr;)*) => {$(
        $(#[$doc])*
        // SAFETY: the name is the one that callers of the driver look up, with these arguments.
        #[unsafe(no_mangle)]
        extern "C" fn $name($($arg: $ty),*) -> std::ffi::c_int {
            $crate::driver::enter(stringify!($name), $crate::driver::Class::$class, move |$driver| {
                $body;
                Ok(())
            })
        }
    )*};
}
use api;

/// Where a function of the driver puts a result.
#[repr(transparent)]
#[derive(Clone, Copy)]
struct Out<T>(*mut T);

impl<T> Out<T> {
    /// Writes the result; an error if the caller gave no place.
    fn set(self, value: T) -> Outcome<()> {
        if self.0.is_null() {
            return Err(Code::INVALID_VALUE);
        }
        // SAFETY: the driver's callers promise that the pointer, if not null, is theirs to have written.
        unsafe { self.0.write(value) };
        Ok(())
    }

    /// The same, for results that callers may not want.
    fn set_if_wanted(self, value: T) {
        let _ = self.set(value);
    }
}

/// A text that a caller gives.
#[repr(transparent)]
#[derive(Clone, Copy)]
struct Text(*const std::ffi::c_char);

impl Text {
    fn bytes(self) -> Outcome<Vec<u8>> {
        if self.0.is_null() {
            return Err(Code::INVALID_VALUE);
        }
        // SAFETY: the driver's callers promise a text that ends with a zero byte.
        Ok(unsafe { std::ffi::CStr::from_ptr(self.0) }
            .to_bytes()
            .to_vec())
    }

    fn string(self) -> Outcome<String> {
        self.bytes()
            .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
    }
}
