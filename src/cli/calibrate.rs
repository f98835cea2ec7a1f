//! Arguments of `calibrate`.

use super::SourceArguments;
use super::run::{ParameterArguments, positive, threads};
use clap::Args;
use std::path::PathBuf;

/// Arguments of `calibrate`.
#[derive(Args, Debug)]
pub struct CalibrateArguments {
    /// The rewritten graph.
    #[command(flatten)]
    pub source: SourceArguments,
    /// Where to write the model with its directions filled; `-` is standard output
    #[arg(short, long, value_name = "OUT", help_heading = "Output")]
    pub output: PathBuf,
    /// Samples: npz or safetensors, as for `run`
    #[arg(long, value_name = "F", help_heading = "Data")]
    pub data: PathBuf,
    /// Samples in a batch [default: what the graph fixes, or 32]
    #[arg(long, value_name = "N", help_heading = "Data", value_parser = positive)]
    pub batch: Option<usize>,
    /// Batches to take together
    #[arg(long, value_name = "N", default_value_t = 1, help_heading = "Data",
          value_parser = clap::value_parser!(u64).range(1..))]
    pub batches: u64,
    /// Take samples in the order of the file, instead of the one that `run` takes with the same seed
    #[arg(long, help_heading = "Data")]
    pub no_shuffle: bool,
    /// The parameters.
    #[command(flatten)]
    pub parameters: ParameterArguments,
    /// Threads of the CPU; 0 is one per core
    #[arg(long, value_name = "N", default_value_t = 0, help_heading = "Device",
          value_parser = threads)]
    pub threads: usize,
}
