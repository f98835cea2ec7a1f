//! Arguments of `verify`, and of what else takes a batch.

use super::run::positive;
use super::{Arguments, ParameterInit, SourceArguments, is_one_file, is_stream};
use clap::error::ErrorKind;
use clap::{Args, CommandFactory};
use std::path::PathBuf;

/// Arguments of `verify`.
#[derive(Args, Debug)]
#[command(mut_arg("model", |arg| arg
    .index(1)
    .value_name("ORIGINAL")
    .help("The training graph as it was exported")))]
pub struct VerifyArguments {
    /// The original.
    #[command(flatten)]
    pub source: SourceArguments,
    /// What the rewrite made of it
    #[arg(index = 2)]
    pub rewritten: PathBuf,
    /// Samples to compare the numbers on: npz or safetensors, arrays named after the graph's batch inputs,
    /// of which the first axis counts samples; without them, only the graphs are compared
    #[arg(long, value_name = "F", help_heading = "Data")]
    pub data: Option<PathBuf>,
    /// The batch and the parameters.
    #[command(flatten)]
    pub batch: BatchArguments,
    /// Write the certificate as JSON (schema velora-verify/1); `-` is standard output, without the table
    #[arg(long, value_name = "F", help_heading = "Output")]
    pub json: Option<PathBuf>,
}

/// A batch of data, and the parameters that it is run with.
#[derive(Args, Debug)]
pub struct BatchArguments {
    /// Samples in the batch, the first of the data [default: what the graph fixes, or 32]
    #[arg(long, value_name = "N", requires = "data", value_parser = positive, help_heading = "Data")]
    pub batch: Option<usize>,
    /// Values of parameters (safetensors or npz), in place of the model's defaults
    #[arg(long, value_name = "F", requires = "data", help_heading = "Parameters")]
    pub params: Option<PathBuf>,
    /// How parameters that have no value are drawn
    #[arg(
        long,
        value_name = "KIND",
        value_enum,
        requires = "data",
        help_heading = "Parameters"
    )]
    pub init_params: Option<ParameterInit>,
    /// Seed of drawn parameters
    #[arg(
        long,
        value_name = "N",
        default_value_t = 0,
        help_heading = "Parameters"
    )]
    pub seed: u64,
}

impl VerifyArguments {
    /// What clap's declarations cannot say.
    pub(super) fn validate(&self) -> Result<(), clap::Error> {
        let wrong = |message: &str| {
            let error = Arguments::command().error(ErrorKind::ValueValidation, message);
            Err(error)
        };
        if [&self.source.model, &self.rewritten]
            .into_iter()
            .any(|path| is_stream(path))
        {
            return wrong(
                "verify names both files with their hashes: neither can be standard input",
            );
        }
        match &self.json {
            Some(json) if is_one_file(json, &self.rewritten) => {
                wrong("--json would overwrite REWRITTEN")
            }
            _ => Ok(()),
        }
    }
}
