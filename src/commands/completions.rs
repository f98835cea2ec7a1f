//! `completions`: a completion script for a shell.

use crate::cli::Arguments;
use crate::io::print;
use anyhow::{Context, Result};
use clap::CommandFactory;
use clap_complete::Shell;

/// Prints the script to standard output.
///
/// # Errors
/// Where standard output cannot be written.
pub fn run(shell: Shell) -> Result<()> {
    // The generator panics where its writer fails; memory does not.
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Arguments::command(), "velora-opt", &mut script);
    print(&String::from_utf8(script).context("the completion script is not UTF-8")?)
}
