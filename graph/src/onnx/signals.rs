//! What the system says about files by signals, whose usual effect is that the process ends without a word.

/// Makes errors of files that come as signals end the process with a message, or become errors; for programs,
/// at their start.
///
/// Reading a mapped file that has become shorter, or whose disk fails, then prints `message`, with a newline
/// after it, to standard error, and ends the process with status 1. (There is nowhere to go back to: what
/// reads a mapping takes it for memory.) Writing more than the limit of file sizes (`ulimit -f`) becomes an
/// error of that write.
///
/// Does something on Linux only.
pub fn report_file_signals(message: &'static str) {
    #[cfg(target_os = "linux")]
    linux::install(message);
    #[cfg(not(target_os = "linux"))]
    let _ = message;
}

#[cfg(target_os = "linux")]
mod linux {
    use libc::{c_int, c_void, siginfo_t};
    use std::sync::OnceLock;

    /// Made before the handler is installed, and only read in it.
    static MESSAGE: OnceLock<String> = OnceLock::new();
    /// `BUS_ADRERR`: the address is mapped, and nothing is behind it. The crate `libc` lacks it.
    const NOTHING_BEHIND: c_int = 2;

    pub fn install(message: &str) {
        let _ = MESSAGE.set(format!("{message}\n"));
        // SAFETY: `action` is a plain struct that all zeros are a value of, and is complete when it is
        // handed over; the handler has the signature that SA_SIGINFO asks for, and calls only what may be
        // called in a handler. It runs on the stack that Rust's threads have for signals.
        unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = on_bus_error as *const () as usize;
            action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
            libc::sigaction(libc::SIGBUS, &action, std::ptr::null_mut());
            libc::signal(libc::SIGXFSZ, libc::SIG_IGN);
        }
    }

    extern "C" fn on_bus_error(_: c_int, info: *mut siginfo_t, _: *mut c_void) {
        // SAFETY: the system hands over a valid `info`; write, _exit and signal may be called in a handler,
        // and reading a OnceLock that was set is one load.
        unsafe {
            if (*info).si_code == NOTHING_BEHIND {
                let text = MESSAGE.get().map_or(&[][..], |text| text.as_bytes());
                libc::write(libc::STDERR_FILENO, text.as_ptr().cast(), text.len());
                libc::_exit(1);
            }
            // Another kind of fault, which happens again when this returns, with its usual effect.
            libc::signal(libc::SIGBUS, libc::SIG_DFL);
        }
    }
}
