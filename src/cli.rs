//! Arguments only; what they do is in `commands/`.

mod calibrate;
mod planner;
mod run;
mod verify;

pub use calibrate::CalibrateArguments;
pub use planner::{Level, ParetoArguments, PlannerArguments};
pub use run::{Device, OptimizerKind, ParameterInit, RunArguments, ScheduleKind};
pub use verify::{BatchArguments, VerifyArguments};

use crate::io::is_one_place;
use clap::error::ErrorKind;
use clap::{Args, CommandFactory, Parser, Subcommand, ValueEnum};
use regex::Regex;
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

/// The whole command line: a subcommand, or the arguments of the default verb.
///
/// Rewrites an ONNX training graph so that its linear layers save compressed activations for
/// backward (VeLoRA, arXiv 2405.17991).
#[derive(Parser, Debug)]
#[command(
    name = "velora-opt",
    version,
    about = "Rewrites an ONNX training graph so that its linear layers save compressed activations \
             for backward (VeLoRA, arXiv 2405.17991)",
    long_about = None,
    after_help = "Without a command, MODEL is rewritten into OUT. `-` is standard input or output.\n\
                  Exit status: 0 done, 1 the model cannot be handled, 2 wrong usage.",
    args_conflicts_with_subcommands = true,
    subcommand_negates_reqs = true,
    disable_help_subcommand = true,
    max_term_width = 100
)]
pub struct Arguments {
    /// Something else than the default verb.
    #[command(subcommand)]
    pub command: Option<Command>,
    /// The default verb; absent exactly where `command` is present.
    #[command(flatten)]
    pub optimize: Option<OptimizeArguments>,
}

/// The commands beside the default one.
#[derive(Subcommand, Debug)]
pub enum Command {
    /// Show where the memory goes, what could be freed, and what keeps it alive
    Inspect(InspectArguments),
    /// Fill the directions of a graph rewritten with --init first-batch or svd, from a batch of data
    Calibrate(CalibrateArguments),
    /// Prove what a rewrite left unchanged, and measure what it did not
    Verify(Box<VerifyArguments>),
    /// Put adapters that `run --save-adapter` wrote into a model
    Merge(MergeArguments),
    /// Train a graph, original or rewritten, on this machine
    Run(Box<RunArguments>),
    /// Show what memory could be saved for how much time: plans between the fastest and the smallest
    Pareto(Box<ParetoArguments>),
    /// Print a model in the ONNX textual syntax
    Print(PrintArguments),
    /// Print a completion script for a shell
    Completions {
        /// The shell
        #[arg(value_enum)]
        shell: clap_complete::Shell,
    },
    /// Print the manual page, in roff
    Man {
        /// The command whose page to print, instead of the main one
        #[arg(value_name = "COMMAND")]
        command: Option<String>,
    },
}

/// What every command that takes a training graph wants to know of it.
#[derive(Args, Debug)]
pub struct SourceArguments {
    /// The training graph: forward, loss and backward in one ONNX file; `-` is standard input
    pub model: PathBuf,
    /// The loss output, where it cannot be told
    #[arg(long, value_name = "NAME", help_heading = "Graph")]
    pub loss: Option<String>,
    /// The output that is the gradient of a parameter, where it cannot be told; repeatable
    #[arg(long = "grad", value_name = "PARAM=OUTPUT", value_parser = pair, help_heading = "Graph")]
    pub gradients: Vec<(String, String)>,
    /// The size of a symbolic dimension of the graph's inputs; repeatable
    #[arg(long = "dim", value_name = "NAME=N", value_parser = dim, help_heading = "Graph")]
    pub dims: Vec<(String, i64)>,
    /// Drop fields that are newer than this tool's ONNX schema, instead of stopping
    #[arg(long, help_heading = "Graph")]
    pub allow_unknown_fields: bool,
    /// Print no table
    #[arg(short, long, help_heading = "Output", conflicts_with = "verbose")]
    pub quiet: bool,
    /// Say on standard error what is done; list every tensor and every reader
    #[arg(short, long, help_heading = "Output")]
    pub verbose: bool,
}

/// What every command that analyses a graph takes.
#[derive(Args, Debug)]
pub struct GraphArguments {
    /// The training graph.
    #[command(flatten)]
    pub source: SourceArguments,
    /// Write the report as JSON (schema velora-report/1); `-` is standard output, without the table
    #[arg(long, value_name = "F", help_heading = "Output")]
    pub json: Option<PathBuf>,
    /// Write the report as one self-contained HTML file
    #[arg(long, value_name = "F", help_heading = "Output")]
    pub html: Option<PathBuf>,
}

impl GraphArguments {
    /// Whether a report takes standard output.
    pub fn is_streamed(&self) -> bool {
        let reports = [&self.json, &self.html];
        reports.into_iter().flatten().any(|path| is_stream(path))
    }
}

/// Arguments of the default verb.
// clap's derive leaves groups with nested arguments empty; `Option<OptimizeArguments>` is present
// where a member of the group is, and -o is required.
#[derive(Args, Debug)]
#[group(id = "optimize", arg = "output")]
pub struct OptimizeArguments {
    /// The graph and the reports.
    #[command(flatten)]
    pub graph: GraphArguments,
    /// Where to write the rewritten graph; `-` is standard output
    #[arg(short, long, value_name = "OUT", help_heading = "Output")]
    pub output: PathBuf,
    /// The method.
    #[command(flatten)]
    pub method: MethodArguments,
    /// Which layers.
    #[command(flatten)]
    pub selection: SelectionArguments,
    /// The whole step.
    #[command(flatten)]
    pub planner: PlannerArguments,
    /// Write new nodes as standard operators, instead of functions of the domain ai.velora
    #[arg(long, help_heading = "Output")]
    pub inline: bool,
    /// Do not move backward nodes that need forward values only into the forward half
    #[arg(long, help_heading = "Output")]
    pub no_hoist: bool,
    /// Do not force the schedule by data dependences
    #[arg(long, help_heading = "Output")]
    pub no_pin: bool,
    /// What becomes of tensors that are stored beside the model
    #[arg(long, value_name = "MODE", value_enum, default_value_t = ExternalData::Keep,
          help_heading = "Output")]
    pub external_data: ExternalData,
    /// Check the graph's invariants after every pass
    #[arg(long, help_heading = "Passes")]
    pub verify_each: bool,
    /// Print the graph after a pass, to standard error
    #[arg(long, value_name = "PASS", help_heading = "Passes")]
    pub print_after: Option<String>,
    /// Print how long each pass took, to standard error
    #[arg(long, help_heading = "Passes")]
    pub time_passes: bool,
}

/// What `merge` is asked.
#[derive(Args, Debug)]
pub struct MergeArguments {
    /// The model with the weights that the adapters belong to; `-` is standard input
    pub model: PathBuf,
    /// The adapters: a file that `run --save-adapter` wrote
    pub adapter: PathBuf,
    /// Where to write the model; `-` is standard output
    #[arg(short, long, value_name = "OUT", help_heading = "Output")]
    pub output: PathBuf,
    /// Drop fields that are newer than this tool's ONNX schema, instead of stopping
    #[arg(long, help_heading = "Graph")]
    pub allow_unknown_fields: bool,
    /// Print errors only
    #[arg(short, long, help_heading = "Output")]
    pub quiet: bool,
}

/// How activations are compressed, for layers that a plan says nothing else about.
#[derive(Args, Debug)]
pub struct MethodArguments {
    /// Groups (sub-tokens) per token: that many scalars are saved instead of the features
    /// [default: 32]
    #[arg(long, value_name = "N", conflicts_with = "sub_token_size",
          value_parser = clap::value_parser!(i64).range(1..), help_heading = "Method")]
    pub groups: Option<i64>,
    /// Features per sub-token, instead of --groups
    #[arg(long, value_name = "M", value_parser = clap::value_parser!(i64).range(1..),
          help_heading = "Method")]
    pub sub_token_size: Option<i64>,
    /// The direction that sub-tokens are projected on [default: batch-average]
    #[arg(long, value_name = "KIND", value_enum, help_heading = "Method")]
    pub init: Option<Init>,
    /// Factor on the approximated weight gradients [default: 1]
    #[arg(long, value_name = "S", value_parser = finite, allow_negative_numbers = true,
          help_heading = "Method")]
    pub scale: Option<f64>,
    /// How compressed activations are stored [default: activation]
    #[arg(long, value_name = "TYPE", value_enum, help_heading = "Method")]
    pub storage: Option<Storage>,
    /// Directions that each sub-token is projected on [default: 1]
    #[arg(long, value_name = "R", value_parser = clap::value_parser!(i64).range(1..),
          help_heading = "Method")]
    pub rank: Option<i64>,
    /// Which sub-tokens share directions [default: shared]
    #[arg(long, value_name = "WHICH", value_enum, help_heading = "Method")]
    pub directions: Option<Directions>,
    /// How much of a running average stays in a step, from 0 to below 1 [default: 0.9]
    #[arg(long, value_name = "X", value_parser = finite, help_heading = "Method")]
    pub decay: Option<f64>,
    /// How gradients of rewritten weights leave the graph; factored ones need a direction that stays, and
    /// make first-batch the default of --init [default: full]
    #[arg(
        id = "gradient_form",
        long = "gradients",
        value_name = "FORM",
        value_enum,
        help_heading = "Method"
    )]
    pub gradients: Option<Gradients>,
    /// Train adapters in the places of the rewritten weights, whose bases stay as they are, stored in this
    /// type; implies --gradients factored
    #[arg(long, value_name = "BASE", value_enum, help_heading = "Method")]
    pub adapter: Option<Base>,
    /// Seed of random directions [default: 0]
    // Up to what TOML can hold, so that every seed fits a plan.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(..=i64::MAX as u64),
          help_heading = "Method")]
    pub seed: Option<u64>,
}

/// Which layers are rewritten.
#[derive(Args, Debug)]
pub struct SelectionArguments {
    /// Which of the possible layers
    #[arg(long, value_name = "KIND", value_enum, default_value_t = Select::Freeable,
          help_heading = "Selection")]
    pub select: Select,
    /// Only parameters that match one of these; repeatable
    #[arg(long, value_name = "RE", help_heading = "Selection")]
    pub include: Vec<Regex>,
    /// No parameters that match one of these; repeatable
    #[arg(long, value_name = "RE", help_heading = "Selection")]
    pub exclude: Vec<Regex>,
    /// Leave saved tensors alone that are smaller; open sizes count as large enough
    #[arg(long, value_name = "N", default_value_t = 0, hide_default_value = true,
          value_parser = clap::value_parser!(i64).range(0..), help_heading = "Selection")]
    pub min_bytes: i64,
    /// Read settings by layer from a TOML file
    #[arg(long, value_name = "F", help_heading = "Selection")]
    pub plan: Option<PathBuf>,
    /// Write the settings used, by layer, as a TOML file for --plan
    #[arg(long, value_name = "F", help_heading = "Selection")]
    pub emit_plan: Option<PathBuf>,
}

/// Arguments of `inspect`.
#[derive(Args, Debug)]
pub struct InspectArguments {
    /// The graph and the reports.
    #[command(flatten)]
    pub graph: GraphArguments,
    /// Groups (sub-tokens) per token, for the question what could be freed [default: 32]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(i64).range(1..),
          conflicts_with = "sub_token_size", help_heading = "Method")]
    pub groups: Option<i64>,
    /// Features per sub-token, instead of --groups
    #[arg(long, value_name = "M", value_parser = clap::value_parser!(i64).range(1..),
          help_heading = "Method")]
    pub sub_token_size: Option<i64>,
    /// Numbers of groups to compare, by bytes and with --data by fidelity, separated by commas; without
    /// them, powers of two up to the largest number of features
    #[arg(long, value_name = "N,N", num_args = 0..=1, default_missing_value = "",
          value_parser = sweep, help_heading = "Method")]
    pub sweep: Option<Sweep>,
    /// Samples to measure fidelity on: npz or safetensors, arrays named after the graph's batch inputs, of
    /// which the first axis counts samples
    #[arg(long, value_name = "F", help_heading = "Data")]
    pub data: Option<PathBuf>,
    /// The batch and the parameters.
    #[command(flatten)]
    pub batch: BatchArguments,
}

/// Numbers of groups to compare; none where the graph is to say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sweep(pub Vec<i64>);

/// Arguments of `print`.
#[derive(Args, Debug)]
pub struct PrintArguments {
    /// The model; `-` is standard input
    pub model: PathBuf,
    /// Drop fields that are newer than this tool's ONNX schema, instead of stopping
    #[arg(long)]
    pub allow_unknown_fields: bool,
}

/// Kinds of direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Init {
    /// The normalised mean over the sub-tokens of each batch, computed in the graph
    BatchAverage,
    /// The same of the first batch, then fixed; `run` fills it in its first step, `calibrate` in the file
    FirstBatch,
    /// A moving average of the means, from step to step: one more input and output for each tensor
    RunningAverage,
    /// The first right singular vectors of a batch's sub-tokens; filled as first-batch is
    Svd,
    /// A fixed random unit vector, uniform on the sphere
    Random,
    /// A fixed random unit vector of positive entries
    Uniform,
    /// All entries equal
    None,
}

/// How compressed activations are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Storage {
    /// In the activation's own type
    Activation,
    /// As 16-bit floats
    #[value(name = "f16")]
    #[serde(rename = "f16")]
    Float16,
    /// As bfloat16
    #[value(name = "bf16")]
    #[serde(rename = "bf16")]
    BFloat16,
    /// As 8-bit integers with one scale for each token
    #[value(name = "int8")]
    #[serde(rename = "int8")]
    Int8,
}

/// Which sub-tokens share directions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Directions {
    /// All sub-tokens of a tensor
    Shared,
    /// Each group has its own
    Group,
}

/// In which form gradients of rewritten weights leave the graph.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Gradients {
    /// As dW, as in the graph that came in
    Full,
    /// As P and v with dW = v ⊗ P, where nothing on the way to the output needs dW
    Factored,
}

/// How a weight with an adapter is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Base {
    /// As 32-bit floats
    #[value(name = "f32")]
    Float32,
    /// As bfloat16
    #[value(name = "bf16")]
    BFloat16,
    /// As 4-bit integers with a scale for each 32 features (DequantizeLinear of opset 21)
    #[value(name = "int4")]
    Int4,
}

impl From<Base> for velora_passes::adapt::base::Base {
    fn from(base: Base) -> Self {
        match base {
            Base::Float32 => Self::Float32,
            Base::BFloat16 => Self::BFloat16,
            Base::Int4 => Self::Int4,
        }
    }
}

/// Which of the possible layers are rewritten.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Select {
    /// All layers of every saved tensor whose backward readers can all be rewritten
    Freeable,
    /// Value and MLP-down projections, as in the paper
    Paper,
    /// Value projections alone
    Value,
    /// MLP-down projections alone
    Down,
    /// Every layer that can be rewritten, even where nothing is freed
    All,
}

/// What becomes of external data.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ExternalData {
    /// Stays where it is; OUT must be in the model's folder
    Keep,
    /// Copied beside OUT, replacing files of the same name
    Copy,
    /// Moved into OUT
    Inline,
}

impl Arguments {
    /// What clap's declarations cannot say.
    ///
    /// # Errors
    /// A usage error, for [`clap::Error::exit`].
    pub fn validate(&self) -> Result<(), clap::Error> {
        let reports = |graph: &'_ GraphArguments| {
            [
                ("--json", graph.json.clone()),
                ("--html", graph.html.clone()),
            ]
        };
        let conflict = |message: String| {
            let error = Arguments::command().error(ErrorKind::ArgumentConflict, message);
            Err(error)
        };
        // What an output would not be made anew from: --save may replace --params, and not --data.
        let mut inputs: Vec<(&str, &PathBuf)> = Vec::new();
        let (graph, outputs, plan) = match (&self.command, &self.optimize) {
            (Some(Command::Inspect(inspect)), _) => {
                inputs.extend(inspect.data.iter().map(|data| ("--data", data)));
                let outputs = reports(&inspect.graph).to_vec();
                (&inspect.graph.source, outputs, None)
            }
            (Some(Command::Pareto(pareto)), _) => {
                inputs.extend(pareto.profile.iter().map(|profile| ("--profile", profile)));
                inputs.extend(pareto.fidelity.iter().map(|report| ("--fidelity", report)));
                let outputs = reports(&pareto.graph).to_vec();
                (
                    &pareto.graph.source,
                    outputs,
                    pareto.selection.plan.as_ref(),
                )
            }
            (Some(Command::Run(run)), _) => {
                inputs.push(("--data", &run.data));
                inputs.extend(run.eval.iter().map(|data| ("--eval", data)));
                (&run.source, run.outputs(), None)
            }
            (Some(Command::Calibrate(calibrate)), _) => {
                inputs.push(("--data", &calibrate.data));
                let outputs = vec![("-o", Some(calibrate.output.clone()))];
                (&calibrate.source, outputs, None)
            }
            (Some(Command::Verify(verify)), _) => {
                verify.validate()?;
                inputs.extend(verify.data.iter().map(|data| ("--data", data)));
                (&verify.source, vec![("--json", verify.json.clone())], None)
            }
            (None, Some(optimize)) => {
                let selection = &optimize.selection;
                let planner = &optimize.planner;
                inputs.extend(planner.profile.iter().map(|profile| ("--profile", profile)));
                inputs.extend(planner.fidelity.iter().map(|report| ("--fidelity", report)));
                let mut outputs = vec![
                    ("-o", Some(optimize.output.clone())),
                    ("--emit-plan", selection.emit_plan.clone()),
                ];
                outputs.extend(reports(&optimize.graph));
                (&optimize.graph.source, outputs, selection.plan.as_ref())
            }
            (Some(Command::Merge(merge)), _) if is_one_file(&merge.output, &merge.adapter) => {
                return conflict("-o would overwrite ADAPTER".to_owned());
            }
            _ => return Ok(()),
        };
        let outputs: Vec<(&str, &PathBuf)> = (outputs.iter())
            .filter_map(|(option, path)| Some((*option, path.as_ref()?)))
            .collect();
        for (i, (first, path)) in outputs.iter().enumerate() {
            if let Some((second, _)) = outputs
                .iter()
                .skip(i + 1)
                .find(|(_, p)| is_one_file(p, path))
            {
                let place = match is_stream(path) {
                    true => "standard output".to_owned(),
                    false => format!("'{}'", path.display()),
                };
                return conflict(format!("{first} and {second} would both write to {place}"));
            }
        }
        let onto_model = |(option, path): &&(&str, &PathBuf)| {
            // Rewriting a model in place is what `-o MODEL` asks for.
            *option != "-o" && is_one_file(path, &graph.model) && !is_stream(path)
        };
        if let Some((option, _)) = outputs.iter().find(onto_model) {
            return conflict(format!("{option} would overwrite MODEL"));
        }
        for (option, path) in &outputs {
            let written = inputs.iter().filter(|_| !is_stream(path));
            if let Some((input, _)) = { written }.find(|(_, input)| is_one_file(input, path)) {
                return conflict(format!("{option} would overwrite {input}"));
            }
        }
        if is_stream(&graph.model) && plan.is_some_and(|p| is_stream(p)) {
            return conflict("MODEL and --plan would both read standard input".to_owned());
        }
        for (i, (name, _)) in graph.dims.iter().enumerate() {
            if graph.dims.iter().take(i).any(|(n, _)| n == name) {
                return conflict(format!("--dim {name} is given twice"));
            }
        }
        for (i, (parameter, output)) in graph.gradients.iter().enumerate() {
            let before = || graph.gradients.iter().take(i);
            if before().any(|(p, _)| p == parameter) {
                return conflict(format!("--grad gives {parameter} two outputs"));
            }
            if before().any(|(_, o)| o == output) {
                return conflict(format!("--grad gives {output} to two parameters"));
            }
        }
        Ok(())
    }
}

/// Whether a path argument means standard input or output.
pub fn is_stream(path: &Path) -> bool {
    path.as_os_str() == "-"
}

/// Whether two path arguments mean one file, or both the standard stream.
fn is_one_file(a: &Path, b: &Path) -> bool {
    a == b || !is_stream(a) && !is_stream(b) && is_one_place(a, b)
}

/// Parameter and output; the first `=` separates.
fn pair(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((parameter, output)) if !parameter.is_empty() && !output.is_empty() => {
            Ok((parameter.to_owned(), output.to_owned()))
        }
        _ => Err("expected PARAM=OUTPUT".to_owned()),
    }
}

fn dim(text: &str) -> Result<(String, i64), String> {
    let expected = || "expected NAME=N with N a whole number of at least 1".to_owned();
    let (name, size) = text.rsplit_once('=').ok_or_else(expected)?;
    match size.parse::<i64>() {
        Ok(size) if size >= 1 && !name.is_empty() => Ok((name.to_owned(), size)),
        _ => Err(expected()),
    }
}

fn sweep(text: &str) -> Result<Sweep, String> {
    let numbers = text.split(',').filter(|_| !text.is_empty());
    let numbers: Option<Vec<i64>> = { numbers }
        .map(|number| number.trim().parse().ok().filter(|&n: &i64| n >= 1))
        .collect();
    let mut numbers = numbers.ok_or("expected whole numbers of at least 1, with commas between")?;
    numbers.sort_unstable();
    numbers.dedup();
    Ok(Sweep(numbers))
}

fn finite(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(number) if number.is_finite() => Ok(number),
        _ => Err("expected a finite number".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_declarations_are_consistent() {
        Arguments::command().debug_assert();
    }

    fn parse(line: &str) -> Result<Arguments, clap::Error> {
        let arguments = Arguments::try_parse_from(line.split_whitespace())?;
        arguments.validate().map(|()| arguments)
    }

    #[test]
    fn a_subcommand_and_the_default_verb_exclude_each_other() {
        let default = parse("velora-opt m.onnx -o out.onnx --dim a=b=3").unwrap();
        assert!(default.command.is_none());
        let optimize = default.optimize.unwrap();
        assert_eq!(optimize.graph.source.dims, [("a=b".to_owned(), 3)]);
        let inspect = parse("velora-opt inspect m.onnx").unwrap();
        assert!(inspect.optimize.is_none() && inspect.command.is_some());
        // A model called like a command is given with its folder.
        assert!(parse("velora-opt ./inspect -o out.onnx").is_ok());
        assert!(parse("velora-opt m.onnx").is_err());
        assert!(parse("velora-opt").is_err());
    }

    #[test]
    fn one_place_is_written_once_and_read_once() {
        for line in [
            "velora-opt m.onnx -o - --json -",
            "velora-opt m.onnx -o out --html out",
            "velora-opt m.onnx -o out --emit-plan - --json -",
            "velora-opt inspect m.onnx --html - --json -",
            "velora-opt - -o out --plan -",
            "velora-opt m.onnx -o out --json m.onnx",
            "velora-opt m.onnx -o out --json ./m.onnx",
            "velora-opt inspect src/m.onnx --html src/../src/m.onnx",
            "velora-opt m.onnx -o out --emit-plan ./out",
            "velora-opt inspect m.onnx --dim a=1 --dim a=2",
            "velora-opt inspect m.onnx --data d.npz --json ./d.npz",
            "velora-opt run m.onnx --data d.npz --log d.npz",
            "velora-opt run m.onnx --data d.npz --eval e.npz --save src/../e.npz",
            "velora-opt calibrate m.onnx --data d.npz -o d.npz",
            "velora-opt verify m.onnx r.onnx --data d.npz --json d.npz",
            "velora-opt merge m.onnx a.safetensors -o ./a.safetensors",
            "velora-opt inspect m.onnx --grad a=b --grad a=c",
            "velora-opt inspect m.onnx --grad a=b --grad c=b",
        ] {
            let error = parse(line).unwrap_err();
            assert_eq!(error.exit_code(), 2, "{line}");
        }
        assert!(parse("velora-opt m.onnx -o m.onnx").is_ok());
        assert!(parse("velora-opt merge m.onnx a.safetensors -o m.onnx").is_ok());
        assert!(
            parse("velora-opt run m.onnx --data d --params p --save p --checkpoint c --resume c")
                .is_ok()
        );
        assert!(parse("velora-opt - -o - --plan p --json j --html h").is_ok());
    }
}
