//! What becomes of files when something goes wrong: a process that is killed at any system call, calls that
//! fail, full disks, folders that may not be written to, files that change while they are read, several
//! processes that write to one place.
//!
//! `docs/files.md` says what is promised. `FAULTS=all` tries more errors at every call.
#![cfg(all(target_os = "linux", target_arch = "x86_64"))]
#![allow(clippy::unwrap_used)]

mod calls;
mod changed;
mod concurrent;
mod full;
mod place;
mod same;
mod trace;
