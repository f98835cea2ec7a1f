//! The `velora-opt` command: an exported training graph in, a compressed training graph out.

mod cli;
mod commands;

use clap::Parser;
use std::process::ExitCode;

fn main() -> ExitCode {
    let arguments = cli::Arguments::parse();
    match commands::optimize::run(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("velora-opt: {error:#}");
            ExitCode::FAILURE
        }
    }
}
