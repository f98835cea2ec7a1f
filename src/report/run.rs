//! The outcome of `run`: a table, and JSON of the schema velora-run/1.

use anyhow::Result;
use serde::Serialize;
use serde_json::json;
use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::Arc;
use velora_runtime::plan::{Footprint, Plan};
use velora_runtime::session::profile::Row;

/// An evaluation on held-out samples.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Scored {
    /// The mean loss.
    pub loss: f64,
    /// The part of labels that are right; needs an output `logits`.
    pub accuracy: Option<f64>,
    /// The exponential of the loss, where the inputs are sequences of tokens.
    pub perplexity: Option<f64>,
}

/// Bytes of a region.
#[derive(Clone, Copy, Debug)]
pub struct RegionBytes {
    /// Its name.
    pub region: &'static str,
    /// What the plan gives it.
    pub predicted: usize,
    /// What the steps have touched.
    pub measured: usize,
}

/// What a run did.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    /// The model's file.
    pub model: String,
    /// The device.
    pub device: String,
    /// Steps of the optimiser, those before a checkpoint included.
    pub steps: u64,
    /// By step: the loss.
    pub loss: Vec<(u64, f64)>,
    /// Evaluations on the way.
    pub evaluations: Vec<(u64, Scored)>,
    /// The one at the end.
    pub evaluation: Option<Scored>,
    /// By region.
    pub memory: Vec<RegionBytes>,
    /// The arena.
    pub footprint: Footprint,
    /// Number and bytes of allocations during steps, outside the plan.
    pub allocations: (u64, u64),
    /// The mean.
    pub seconds_per_step: f64,
    /// Time by operation, where it was asked for.
    pub profile: Vec<Row>,
}

impl Outcome {
    /// An outcome without steps.
    pub fn new(plan: &Plan) -> Self {
        Outcome {
            footprint: plan.footprint,
            ..Outcome::default()
        }
    }

    /// The JSON of the schema velora-run/1.
    ///
    /// # Errors
    /// Where a number has no JSON.
    pub fn json(&self, sizes: &BTreeMap<Arc<str>, i64>) -> Result<String> {
        let memory: BTreeMap<&str, _> = (self.memory.iter())
            .map(|r| {
                (
                    r.region,
                    json!({ "predicted": r.predicted, "measured": r.measured }),
                )
            })
            .collect();
        let sizes: BTreeMap<&str, i64> = sizes.iter().map(|(name, n)| (&**name, *n)).collect();
        let report = json!({
            "schema": "velora-run/1",
            "tool_version": env!("CARGO_PKG_VERSION"),
            "model": self.model,
            "device": self.device,
            "dims": sizes,
            "steps": self.steps,
            "loss": self.loss,
            "eval": self.evaluation,
            "evaluations": self.evaluations,
            "memory": memory,
            "arena": {
                "bytes": self.footprint.arena,
                "lower_bound": self.footprint.lower_bound,
                "file_order": self.footprint.file_order,
            },
            "allocated_in_steps": { "count": self.allocations.0, "bytes": self.allocations.1 },
            "seconds_per_step": self.seconds_per_step,
            "profile": self.profile,
        });
        Ok(serde_json::to_string_pretty(&report)? + "\n")
    }
}

/// The table.
pub fn table(outcome: &Outcome) -> String {
    let mut text = String::new();
    // Writing to a string does not fail.
    let _ = write!(
        text,
        "{}: {} steps on {}",
        outcome.model, outcome.steps, outcome.device
    );
    let _ = writeln!(text, ", {:.4} s per step", outcome.seconds_per_step);
    if let (Some((_, first)), Some((_, last))) = (outcome.loss.first(), outcome.loss.last()) {
        let _ = writeln!(text, "loss {first:.4} -> {last:.4}");
    }
    if let Some(scored) = &outcome.evaluation {
        let _ = write!(text, "held out: loss {:.4}", scored.loss);
        if let Some(accuracy) = scored.accuracy {
            let _ = write!(text, ", accuracy {:.2} %", 100.0 * accuracy);
        }
        if let Some(perplexity) = scored.perplexity {
            let _ = write!(text, ", perplexity {perplexity:.3}");
        }
        text.push('\n');
    }
    let _ = writeln!(
        text,
        "\n{:<12} {:>14} {:>14}",
        "memory", "predicted", "measured"
    );
    let (mut predicted, mut measured) = (0, 0);
    for row in &outcome.memory {
        let _ = writeln!(
            text,
            "{:<12} {:>14} {:>14}",
            row.region, row.predicted, row.measured
        );
        predicted += row.predicted;
        measured += row.measured;
    }
    let _ = writeln!(text, "{:<12} {predicted:>14} {measured:>14}", "total");
    let Footprint {
        arena,
        lower_bound,
        file_order,
        ..
    } = outcome.footprint;
    let ratio = |a: usize, b: usize| a as f64 / b.max(1) as f64;
    let _ = writeln!(
        text,
        "arena {:.4} of its lower bound; in the file's order the bound is {:.4} of ours",
        ratio(arena, lower_bound),
        ratio(file_order, lower_bound),
    );
    let (count, bytes) = outcome.allocations;
    let _ = writeln!(
        text,
        "allocated during steps, outside the plan: {bytes} bytes in {count}"
    );
    if !outcome.profile.is_empty() {
        let _ = writeln!(
            text,
            "\n{:<16} {:>6} {:>10} {:>7}",
            "operation", "count", "seconds", "part"
        );
        for row in &outcome.profile {
            let part = 100.0 * row.part;
            let _ = writeln!(
                text,
                "{:<16} {:>6} {:>10.4} {part:>6.2}%",
                row.op, row.count, row.seconds
            );
        }
    }
    text
}
