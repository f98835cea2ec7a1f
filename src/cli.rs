//! Arguments only; what they do is in `commands/`.

use clap::{Parser, ValueEnum};
use std::path::PathBuf;

/// Rewrites an ONNX training graph so that its linear layers save compressed activations for
/// backward (VeLoRA, arXiv 2405.17991).
#[derive(Parser, Debug)]
#[command(version)]
pub struct Arguments {
    /// The training graph: forward, loss and backward in one ONNX file.
    pub model: PathBuf,
    /// Where to write the rewritten graph.
    #[arg(short, long, value_name = "OUT")]
    pub output: PathBuf,
    /// Groups (sub-tokens) per token: that many scalars are saved instead of the features.
    #[arg(long, value_name = "N", default_value_t = 32,
          value_parser = clap::value_parser!(i64).range(1..))]
    pub groups: i64,
    /// How the direction that sub-tokens are projected on is chosen.
    #[arg(long, value_name = "KIND", value_enum, default_value_t = Init::BatchAverage)]
    pub init: Init,
    /// Seed of `--init random`.
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub seed: u64,
    /// The loss output, where it cannot be told.
    #[arg(long, value_name = "NAME")]
    pub loss: Option<String>,
    /// The output that is the gradient of a parameter, where it cannot be told.
    #[arg(long = "grad", value_name = "PARAM=OUTPUT", value_parser = pair)]
    pub gradients: Vec<(String, String)>,
    /// Print no table.
    #[arg(short, long)]
    pub quiet: bool,
}

/// Kinds of direction.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum Init {
    /// The normalised mean over the sub-tokens of each batch, computed in the graph.
    BatchAverage,
    /// A fixed random unit vector.
    Random,
    /// All entries equal.
    None,
}

fn pair(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((parameter, output)) if !parameter.is_empty() && !output.is_empty() => {
            Ok((parameter.to_owned(), output.to_owned()))
        }
        _ => Err("expected PARAM=OUTPUT".to_owned()),
    }
}
