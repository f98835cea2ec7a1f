//! Arguments of `calibrate`.

use super::run::{positive, threads};
use super::{ParameterInit, SourceArguments};
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
    /// Values of parameters (safetensors or npz), in place of the model's defaults
    #[arg(long, value_name = "F", help_heading = "Parameters")]
    pub params: Option<PathBuf>,
    /// How parameters that have no value are drawn
    #[arg(long, value_name = "KIND", value_enum, help_heading = "Parameters")]
    pub init_params: Option<ParameterInit>,
    /// Seed of parameters, of the order of samples, and of dropout
    #[arg(
        long,
        value_name = "N",
        default_value_t = 0,
        help_heading = "Parameters"
    )]
    pub seed: u64,
    /// Threads of the CPU; 0 is one per core
    #[arg(long, value_name = "N", default_value_t = 0, help_heading = "Device",
          value_parser = threads)]
    pub threads: usize,
}
