//! What the planner is asked: bounds, and what it may do to keep them.

use super::{GraphArguments, MethodArguments, SelectionArguments};
use clap::{Args, ValueEnum};
use std::path::PathBuf;

/// Bounds on a plan of the whole step.
#[derive(Args, Debug)]
pub struct PlannerArguments {
    /// The most bytes that a step may hold, as in 6GiB: parameters, the state of AdamW, and the peak of what is
    /// computed
    #[arg(long, value_name = "BYTES", value_parser = bytes, help_heading = "Planner")]
    pub budget: Option<i64>,
    /// The part of the peak that is to be saved, as in 40%
    #[arg(long, value_name = "PART", value_parser = part, conflicts_with = "budget",
          help_heading = "Planner")]
    pub target_saving: Option<f64>,
    /// By how much a step may take longer, by the cost model, as in 10% [default: 5%, where nothing approximate
    /// is needed]
    #[arg(long, value_name = "PART", value_parser = part, help_heading = "Planner")]
    pub max_slowdown: Option<f64>,
    /// Compress no layer whose gradient would be further from the exact one; needs --fidelity
    #[arg(long, value_name = "COSINE", value_parser = cosine, requires = "fidelity",
          help_heading = "Planner")]
    pub min_cosine: Option<f64>,
    /// The cosines: a report that `inspect --data D --json F` wrote
    #[arg(long, value_name = "F", help_heading = "Planner")]
    pub fidelity: Option<PathBuf>,
    /// Nothing approximate: keep, compute again, hoist, and compress nothing
    #[arg(long, help_heading = "Planner")]
    pub exact: bool,
    /// Compute so much again in the backward half, instead of what a bound asks for
    #[arg(long, value_name = "LEVEL", value_enum,
          conflicts_with_all = ["budget", "target_saving", "max_slowdown"], help_heading = "Planner")]
    pub recompute: Option<Level>,
    /// What this machine does in a second: a profile that `run --profile F` wrote
    #[arg(long, value_name = "F", help_heading = "Planner")]
    pub profile: Option<PathBuf>,
}

impl PlannerArguments {
    /// Whether a plan is asked for.
    pub fn is_asked(&self) -> bool {
        self.exact
            || self.budget.is_some()
            || self.target_saving.is_some()
            || self.max_slowdown.is_some()
            || self.recompute.is_some()
    }
}

/// How much is computed again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Level {
    /// Nothing
    None,
    /// What takes little: element-wise chains, normalisations, masks; no matrix product
    Cheap,
    /// Everything within a block but what enters it (gradient checkpointing)
    Layers,
    /// The same, with a checkpoint at every so manieth block only: about the square root of their number
    Sqrt,
}

impl Level {
    /// The word of the command line.
    pub fn word(self) -> &'static str {
        match self {
            Level::None => "none",
            Level::Cheap => "cheap",
            Level::Layers => "layers",
            Level::Sqrt => "sqrt",
        }
    }
}

/// Arguments of `pareto`.
#[derive(Args, Debug)]
pub struct ParetoArguments {
    /// The graph and the reports.
    #[command(flatten)]
    pub graph: GraphArguments,
    /// The method.
    #[command(flatten)]
    pub method: MethodArguments,
    /// Which layers may be compressed.
    #[command(flatten)]
    pub selection: SelectionArguments,
    /// Exact plans only
    #[arg(long, help_heading = "Planner")]
    pub exact: bool,
    /// How near each layer's gradient would be to the exact one: a report that `inspect --data D --json F` wrote
    #[arg(long, value_name = "F", help_heading = "Planner")]
    pub fidelity: Option<PathBuf>,
    /// So many more plans between each two
    #[arg(long, value_name = "N", default_value_t = 0, hide_default_value = true,
          value_parser = clap::value_parser!(u8).range(..=32), help_heading = "Planner")]
    pub between: u8,
    /// What this machine does in a second: a profile that `run --profile F` wrote
    #[arg(long, value_name = "F", help_heading = "Planner")]
    pub profile: Option<PathBuf>,
}

/// `6GiB`, `1.5 GB`, `4096`.
fn bytes(text: &str) -> Result<i64, String> {
    let expected = || "expected a number of bytes, as in 4096, 512MiB or 6GiB".to_owned();
    let text = text.trim();
    let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.');
    let (number, unit) = text.split_at(digits.unwrap_or(text.len()));
    let number: f64 = number.parse().map_err(|_| expected())?;
    let unit: f64 = match unit.trim() {
        "" | "B" => 1.0,
        "KiB" => 1024.0,
        "MiB" => 1_048_576.0,
        "GiB" => 1_073_741_824.0,
        "TiB" => 1_099_511_627_776.0,
        "kB" | "KB" => 1e3,
        "MB" => 1e6,
        "GB" => 1e9,
        "TB" => 1e12,
        _ => return Err(expected()),
    };
    let bytes = number * unit;
    match bytes.is_finite() && (1.0..9e18).contains(&bytes) {
        true => Ok(bytes as i64),
        false => Err(expected()),
    }
}

/// `40%` or `0.4`.
fn part(text: &str) -> Result<f64, String> {
    let (number, scale) = match text.trim().strip_suffix('%') {
        Some(number) => (number, 100.0),
        None => (text.trim(), 1.0),
    };
    match number.parse::<f64>() {
        Ok(number) if number.is_finite() && number >= 0.0 => Ok(number / scale),
        _ => Err("expected a part, as in 40% or 0.4".to_owned()),
    }
}

fn cosine(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(number) if (-1.0..=1.0).contains(&number) => Ok(number),
        _ => Err("expected a cosine, from -1 to 1".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_are_read_as_they_are_written() {
        assert_eq!(bytes("6GiB"), Ok(6 << 30));
        assert_eq!(bytes("1.5 MiB"), Ok(3 << 19));
        assert_eq!(bytes("2GB"), Ok(2_000_000_000));
        assert_eq!(bytes("4096"), Ok(4096));
        for wrong in ["", "GiB", "-1", "1XB", "1e3", "0", "99999999TiB"] {
            assert!(bytes(wrong).is_err(), "{wrong}");
        }
        assert_eq!(part("40%"), Ok(0.4));
        assert_eq!(part("0.05"), Ok(0.05));
        for wrong in ["", "%", "-1%", "nan", "x"] {
            assert!(part(wrong).is_err(), "{wrong}");
        }
        assert!(cosine("0.9").is_ok() && cosine("1.1").is_err());
    }
}
