//! `print`: a model in the ONNX textual syntax.

use crate::cli::PrintArguments;
use crate::io::{Input, print};
use anyhow::Result;
use velora_graph::text::print_model;

/// Prints a model to standard output.
///
/// # Errors
/// Where the model cannot be read, or standard output not be written.
pub fn run(arguments: &PrintArguments) -> Result<()> {
    let input = Input::read(&arguments.model, arguments.allow_unknown_fields)?;
    let mut text = print_model(&input.model);
    if !text.ends_with('\n') {
        text.push('\n');
    }
    print(&text)
}
