//! Files from strangers: every one is refused with one message that names what is wrong with it, nothing is
//! written, and memory stays within a multiple of what the files take.
//!
//! docs/security.md says which attacks these are, and what the bounds are.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used)]

mod arrays;
mod functions;
mod messages;
mod places;
mod references;
mod tool;
