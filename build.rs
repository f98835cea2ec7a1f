//! Links GCC's unwinder into the program, where Rust's standard library would have `libgcc_s.so.1` loaded: the
//! binary then needs the C library alone.
//!
//! The standard library asks the linker for `gcc_s`. A linker script of that name, in a folder that is searched
//! first, answers with GCC's two static libraries, which hold the same. Where they are missing, or the target is
//! another, nothing is done, and the build is the usual one.

use std::env;
use std::error::Error;
use std::fs;
use std::path::Path;
use std::process::Command;

/// What `libgcc_s.so` is made of.
const STATIC: [&str; 2] = ["libgcc_eh.a", "libgcc.a"];

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-env-changed=CC");
    let is = |name, value: &str| env::var(name).is_ok_and(|found| found == value);
    let is_linux = is("CARGO_CFG_TARGET_OS", "linux") && is("CARGO_CFG_TARGET_ENV", "gnu");
    // Another machine's libraries are where another linker says.
    if !is_linux || env::var("TARGET")? != env::var("HOST")? {
        return Ok(());
    }
    let linker = env::var("RUSTC_LINKER").unwrap_or_else(|_| "cc".to_owned());
    let mut paths = Vec::new();
    for library in STATIC {
        let Some(path) = path_of(&linker, library) else {
            return Ok(());
        };
        paths.push(path);
    }
    let folder = env::var("OUT_DIR")?;
    let script = format!("GROUP ( {} )\n", paths.join(" "));
    fs::write(Path::new(&folder).join("libgcc_s.so"), script)?;
    println!("cargo::rustc-link-search=native={folder}");
    Ok(())
}

/// Where the linker finds a library; `None` where it does not, or where a linker script cannot name the place.
fn path_of(linker: &str, library: &str) -> Option<String> {
    let output = Command::new(linker)
        .arg(format!("-print-file-name={library}"))
        .output()
        .ok()?;
    let path = String::from_utf8(output.stdout).ok()?.trim().to_owned();
    let is_plain = path
        .chars()
        .all(|c| c.is_ascii_alphanumeric() || "/._+-".contains(c));
    (is_plain && Path::new(&path).is_absolute() && Path::new(&path).is_file()).then_some(path)
}
