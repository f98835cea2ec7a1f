//! Arguments of `run`.

use super::{SourceArguments, finite, is_stream};
use clap::{Args, ValueEnum};
use regex::Regex;
use std::path::PathBuf;

/// Arguments of `run`.
#[derive(Args, Debug)]
pub struct RunArguments {
    /// The graph.
    #[command(flatten)]
    pub source: SourceArguments,
    /// Samples to train on: npz or safetensors, arrays named after the graph's batch inputs, of which
    /// the first axis counts samples
    #[arg(long, value_name = "F", help_heading = "Data")]
    pub data: PathBuf,
    /// Held-out samples, evaluated at the end
    #[arg(long, value_name = "F", help_heading = "Data")]
    pub eval: Option<PathBuf>,
    /// Evaluate also after every N steps
    #[arg(long, value_name = "N", requires = "eval", help_heading = "Data",
          value_parser = clap::value_parser!(u64).range(1..))]
    pub eval_every: Option<u64>,
    /// Samples in a batch [default: what the graph fixes, or 32]
    #[arg(long, value_name = "N", help_heading = "Data", value_parser = positive)]
    pub batch: Option<usize>,
    /// Take samples in the order of the file
    #[arg(long, help_heading = "Data")]
    pub no_shuffle: bool,
    /// Make a smaller batch of the samples left at the end of an epoch, instead of leaving them out
    #[arg(long, help_heading = "Data")]
    pub keep_last: bool,
    /// Steps of the optimiser to reach, those before a checkpoint included [default: one epoch]
    #[arg(long, value_name = "N", help_heading = "Training",
          value_parser = clap::value_parser!(u64).range(1..))]
    pub steps: Option<u64>,
    /// The optimiser
    #[arg(long, value_name = "KIND", value_enum, default_value_t = OptimizerKind::Adamw,
          help_heading = "Training")]
    pub optimizer: OptimizerKind,
    /// The learning rate, or its peak
    #[arg(long, value_name = "X", default_value_t = 1e-3, value_parser = amount,
          help_heading = "Training")]
    pub lr: f64,
    /// How the learning rate goes on after the warm-up
    #[arg(long, value_name = "KIND", value_enum, default_value_t = ScheduleKind::Constant,
          help_heading = "Training")]
    pub schedule: ScheduleKind,
    /// Steps in which the learning rate rises to its peak
    #[arg(long, value_name = "N", default_value_t = 0, help_heading = "Training")]
    pub warmup: u64,
    /// Momentum of sgd
    #[arg(long, value_name = "X", default_value_t = 0.9, value_parser = amount,
          help_heading = "Training")]
    pub momentum: f64,
    /// Decay of the running means of adam, adamw and galore; of flora the first counts
    #[arg(long, value_name = "X,X", default_value = "0.9,0.999", value_parser = betas,
          help_heading = "Training")]
    pub betas: [f64; 2],
    /// Weight decay [default: 0.01 for adamw, otherwise 0]
    #[arg(long, value_name = "X", value_parser = amount, help_heading = "Training")]
    pub weight_decay: Option<f64>,
    /// What is left of the smaller side of a matrix's gradient; needed for galore and flora
    #[arg(long, value_name = "R", help_heading = "Training",
          value_parser = clap::value_parser!(u64).range(1..))]
    pub rank: Option<u64>,
    /// Steps between two projections of galore and flora [default: 200 for galore, 1000 for flora]
    #[arg(long, value_name = "T", help_heading = "Training",
          value_parser = clap::value_parser!(u64).range(1..))]
    pub update_period: Option<u64>,
    /// What galore's updates of projected matrices are multiplied with [default: 0.25]
    #[arg(long, value_name = "X", value_parser = above_zero, help_heading = "Training")]
    pub projection_scale: Option<f64>,
    /// Parameters that galore and flora project, by name [default: each matrix with both sides above R]
    #[arg(long, value_name = "REGEX", help_heading = "Training")]
    pub project: Option<Regex>,
    /// Batches whose gradients are averaged for one step
    #[arg(long, value_name = "N", default_value_t = 1, help_heading = "Training",
          value_parser = clap::value_parser!(u64).range(1..))]
    pub accumulate: u64,
    /// The greatest norm of all gradients together; longer ones are scaled down
    #[arg(long, value_name = "X", value_parser = above_zero, help_heading = "Training")]
    pub clip: Option<f64>,
    /// The parameters.
    #[command(flatten)]
    pub parameters: ParameterArguments,
    /// Write the trained parameters, as safetensors
    #[arg(long, value_name = "F", help_heading = "Parameters")]
    pub save: Option<PathBuf>,
    /// Write what was trained of a graph with adapters, as safetensors; --params reads it
    #[arg(long, value_name = "F", help_heading = "Parameters")]
    pub save_adapter: Option<PathBuf>,
    /// Write a checkpoint here at the end, and after every --checkpoint-every steps
    #[arg(long, value_name = "F", help_heading = "Checkpoints")]
    pub checkpoint: Option<PathBuf>,
    /// Steps between checkpoints
    #[arg(long, value_name = "N", requires = "checkpoint", help_heading = "Checkpoints",
          value_parser = clap::value_parser!(u64).range(1..))]
    pub checkpoint_every: Option<u64>,
    /// Go on from a checkpoint, bit for bit
    #[arg(long, value_name = "F", help_heading = "Checkpoints")]
    pub resume: Option<PathBuf>,
    /// Where to run
    #[arg(long, value_name = "KIND", value_enum, default_value_t = Device::Auto,
          help_heading = "Device")]
    pub device: Device,
    /// On a GPU, round the operands of 32-bit matrix products to TF32 (10 bits), which is faster
    #[arg(long, help_heading = "Device")]
    pub tf32: bool,
    /// Compare every tensor of the first step with what another device makes of the same operands; a
    /// difference beyond the rounding of both is an error
    #[arg(long, value_name = "DEVICE", value_enum, help_heading = "Device")]
    pub check_against: Option<Reference>,
    /// Threads of the CPU; 0 is one per core
    #[arg(long, value_name = "N", default_value_t = 0, help_heading = "Device",
          value_parser = threads)]
    pub threads: usize,
    /// Write the outcome as JSON (schema velora-run/1); `-` is standard output, without the table
    #[arg(long, value_name = "F", help_heading = "Output")]
    pub json: Option<PathBuf>,
    /// Write a line of JSON per step
    #[arg(long, value_name = "F", help_heading = "Output")]
    pub log: Option<PathBuf>,
    /// Write the plan as JSON (schema velora-plan/1)
    #[arg(long, value_name = "F", help_heading = "Output")]
    pub plan_json: Option<PathBuf>,
    /// Print the time by operation, and write a trace for Perfetto
    #[arg(long, value_name = "F", help_heading = "Output")]
    pub profile: Option<PathBuf>,
}

/// The parameters that training starts from.
#[derive(Args, Debug)]
pub struct ParameterArguments {
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
}

/// Optimisers for graphs that have none inside.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum OptimizerKind {
    /// Stochastic gradient descent with momentum
    Sgd,
    /// Adam
    Adam,
    /// Adam with decoupled weight decay
    Adamw,
    /// GaLore: adamw in the space of each matrix gradient's first singular vectors; CPU only
    Galore,
    /// FLORA: Adafactor, its first moment compressed by random projections; CPU only
    Flora,
}

/// Learning rates after the warm-up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ScheduleKind {
    /// The same for all steps
    Constant,
    /// Along half a cosine down to 0 at the last step
    Cosine,
}

/// How parameters are drawn.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ParameterInit {
    /// Normal with deviation 0.02
    Normal,
    /// Uniform by the number of inputs, as PyTorch's linear layers
    Kaiming,
}

/// Devices.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Device {
    /// The fastest that is there
    Auto,
    /// This processor
    Cpu,
    /// An NVIDIA GPU
    Cuda,
}

/// Devices to compare with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Reference {
    /// This processor
    Cpu,
}

impl RunArguments {
    /// Options that write, and where to.
    pub fn outputs(&self) -> Vec<(&'static str, Option<PathBuf>)> {
        vec![
            ("--save", self.save.clone()),
            ("--save-adapter", self.save_adapter.clone()),
            ("--checkpoint", self.checkpoint.clone()),
            ("--json", self.json.clone()),
            ("--log", self.log.clone()),
            ("--plan-json", self.plan_json.clone()),
            ("--profile", self.profile.clone()),
        ]
    }

    /// Whether the outcome itself goes to standard output.
    pub fn streams_outcome(&self) -> bool {
        let outputs = [&self.json, &self.log, &self.plan_json];
        outputs.into_iter().flatten().any(|path| is_stream(path))
    }
}

pub(super) fn positive(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(number) if number > 0 => Ok(number),
        _ => Err("expected a whole number of at least 1".to_owned()),
    }
}

/// Each thread has a stack of its own, so that a slip of the finger could take all memory.
pub(super) fn threads(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(number) if number <= 1024 => Ok(number),
        _ => Err("expected a whole number up to 1024".to_owned()),
    }
}

fn betas(text: &str) -> Result<[f64; 2], String> {
    let fraction = |text: &str| finite(text).ok().filter(|x| (0.0..1.0).contains(x));
    (text.split_once(','))
        .and_then(|(first, second)| Some([fraction(first)?, fraction(second)?]))
        .ok_or_else(|| {
            "expected two numbers of at least 0 and below 1, with a comma between".to_owned()
        })
}

fn above_zero(text: &str) -> Result<f64, String> {
    match finite(text)? {
        number if number > 0.0 => Ok(number),
        _ => Err("expected a number above 0".to_owned()),
    }
}

fn amount(text: &str) -> Result<f64, String> {
    match finite(text)? {
        number if number >= 0.0 => Ok(number),
        _ => Err("expected a number of at least 0".to_owned()),
    }
}
