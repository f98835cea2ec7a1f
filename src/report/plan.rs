//! A plan of a whole step, tensor by tensor, and the choice between plans.
//!
//! Times are those of the cost model (`velora_graph::analysis::recompute::cost`), at the `--dim` sizes, and at 64 for an
//! open size, as are the peaks: plans are compared somewhere.

use super::table::{Column, Grid, bar};
use super::units::{Unit, number, percent};
use super::{Amount, Style};
use serde::Serialize;
use std::collections::BTreeSet;
use velora_graph::analysis::Analyses;
use velora_graph::analysis::recompute::cost::{Costs, Rates};
use velora_graph::analysis::recompute::may_recompute;
use velora_graph::ir::{Model, NodeId, ValueId};
use velora_passes::pipeline::{Outcome, assumed_sizes};
use velora_passes::planner::Point;

/// A plan, and what it comes to.
#[derive(Clone, Debug, Serialize)]
pub struct StepPlan {
    /// Where the cost model's rates come from: `default`, or the profile's file.
    pub rates: String,
    /// The model that came in.
    pub before: Estimate,
    /// The model that goes out.
    pub after: Estimate,
    /// Bytes that a step holds beside the peak: inputs, weights, and the state of AdamW.
    pub beside_bytes: i64,
    /// Forward nodes that are computed again.
    pub recomputed: usize,
    /// One entry for each tensor that the model that came in saves, the largest first.
    pub tensors: Vec<Planned>,
}

/// What a step comes to.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Estimate {
    /// The most bytes alive at once.
    pub peak_bytes: i64,
    /// Bytes saved for backward.
    pub saved_bytes: i64,
    /// Bytes that copies of forward nodes write: without views, and what stays within an element-wise chain.
    pub recomputed_bytes: i64,
    /// Floating-point operations of matrix products among the copies.
    pub recomputed_flops: f64,
    /// Seconds of a step, by the cost model.
    pub seconds: f64,
}

impl From<Point> for Estimate {
    fn from(point: Point) -> Estimate {
        Estimate {
            peak_bytes: point.peak,
            saved_bytes: point.saved,
            recomputed_bytes: point.again_bytes,
            recomputed_flops: point.again_flops,
            seconds: point.seconds,
        }
    }
}

/// What becomes of a saved tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Fate {
    /// It is saved as it was.
    Kept,
    /// Its node runs again in the backward half.
    Recomputed,
    /// Nothing but its compressed form is saved.
    Compressed,
    /// What reads it runs in the forward half.
    Hoisted,
    /// The backward half reads the weight that it is a transposition of.
    Derived,
}

impl Fate {
    /// As people read it.
    pub(super) fn word(self) -> &'static str {
        match self {
            Fate::Kept => "kept",
            Fate::Recomputed => "computed again",
            Fate::Compressed => "compressed",
            Fate::Hoisted => "hoisted",
            Fate::Derived => "derived",
        }
    }
}

/// A saved tensor in a plan.
#[derive(Clone, Debug, Serialize)]
pub struct Planned {
    /// Its name.
    pub tensor: String,
    /// The operator that makes it.
    pub op: String,
    /// Its bytes.
    pub bytes: i64,
    /// What becomes of it.
    pub decision: Fate,
    /// Why, as a clause.
    pub reason: String,
}

/// The fate of every tensor that the model that came in saves.
pub fn planned(model: &Model, outcome: &Outcome, rates: Rates) -> Vec<Planned> {
    let graph = &model.graph;
    let Analyses {
        partition, shapes, ..
    } = &outcome.before;
    let sizes = assumed_sizes(model, shapes);
    let costs = Costs::new(graph, partition, shapes, &sizes, rates);
    let moved = outcome.moved();
    let again = |id: NodeId| moved.partition.is_recomputed(id);
    let saved: BTreeSet<ValueId> = moved.saved.iter().map(|s| s.buffer).collect();
    let compressed: BTreeSet<ValueId> = { outcome.decisions.iter() }
        .filter(|d| d.rewritten())
        .map(|d| d.activation)
        .collect();
    let hoisted: BTreeSet<ValueId> = { outcome.hoists.iter() }
        .flat_map(|hoist| hoist.released.iter().copied())
        .collect();
    let after: BTreeSet<&str> = { outcome.ran.model.graph.values() }
        .map(|value| outcome.ran.model.graph.value(value).name.as_str())
        .collect();
    let mut tensors: Vec<Planned> = Vec::new();
    for tensor in &outcome.before.saved {
        let Some(producer) = graph.producer(tensor.buffer) else {
            continue;
        };
        let node = graph.node(producer);
        let seconds = costs.node(producer);
        let time = milliseconds(seconds);
        let gone = |id: NodeId| {
            let made = graph.node(id).outputs.iter().flatten();
            node.op() == "Transpose" && { made }
                .all(|&v| !after.contains(graph.value(v).name.as_str()))
        };
        let derived = tensor.readers.iter().all(|reader| gone(reader.node));
        let kept = || match (may_recompute(node), seconds > 0.0) {
            (false, _) => format!("its node ({}) must not run twice", node.op()),
            (true, true) => format!("to compute it again takes {time}"),
            (true, false) => "what it is made of would be saved instead".to_owned(),
        };
        let (decision, reason) = if derived && !tensor.readers.is_empty() {
            (
                Fate::Derived,
                "a transposition of a weight, which is alive in any case".to_owned(),
            )
        } else if again(producer) {
            (Fate::Recomputed, format!("{} takes {time}", node.op()))
        } else if compressed.contains(&tensor.buffer) {
            let whole = outcome.decisions.iter().any(|d| {
                d.activation == tensor.buffer && d.rewritten() && !d.kept_alive_by.is_empty()
            });
            match whole {
                true => (Fate::Kept, "read by more than weight gradients".to_owned()),
                false => (
                    Fate::Compressed,
                    "read by weight gradients alone".to_owned(),
                ),
            }
        } else if hoisted.contains(&tensor.buffer) || !saved.contains(&tensor.buffer) {
            (
                Fate::Hoisted,
                "what it is read for runs in the forward half".to_owned(),
            )
        } else {
            (Fate::Kept, kept())
        };
        tensors.push(Planned {
            tensor: graph.value(tensor.buffer).name.clone(),
            op: node.op().to_owned(),
            bytes: sizes.of(tensor.buffer).unwrap_or(0),
            decision,
            reason,
        });
    }
    tensors.sort_by_key(|tensor| std::cmp::Reverse(tensor.bytes));
    tensors
}

/// `3.1 ms`.
fn milliseconds(seconds: f64) -> String {
    match seconds < 1e-3 {
        true => format!("{:.1} us", seconds * 1e6),
        false => format!("{:.1} ms", seconds * 1e3),
    }
}

/// Tensors listed unless everything is asked for.
const TENSORS: usize = 40;

impl StepPlan {
    /// As a table for people.
    pub fn table(&self, style: Style) -> String {
        let mut grid = Grid::new([
            ("saved tensor", Column::Name),
            ("made by", Column::Word),
            ("bytes", Column::Number),
            ("plan", Column::Word),
            ("because", Column::Name),
        ]);
        let bytes = |bytes: i64| Unit::Bytes.amount(&Amount::from(bytes), style.unicode);
        let shown = if style.everything {
            self.tensors.len()
        } else {
            TENSORS
        };
        for tensor in self.tensors.iter().take(shown) {
            grid.row([
                tensor.tensor.clone(),
                tensor.op.clone(),
                bytes(tensor.bytes),
                tensor.decision.word().to_owned(),
                tensor.reason.clone(),
            ]);
        }
        let mut text = grid.draw(style);
        if let Some(left) = self.tensors.get(shown..).filter(|left| !left.is_empty()) {
            let sum = left.iter().map(|tensor| tensor.bytes).sum();
            text += &format!("and {} more, {} (-v lists them)\n", left.len(), bytes(sum));
        }
        let (before, after) = (&self.before, &self.after);
        let ratio = |after: f64, before: f64| match before > 0.0 {
            true => percent(after / before),
            false => style.dash().to_owned(),
        };
        text += &format!(
            "peak {} of {} ({}); a step takes {} of its time by the cost model ({} rates); {} nodes run twice\n\n",
            bytes(after.peak_bytes),
            bytes(before.peak_bytes),
            ratio(after.peak_bytes as f64, before.peak_bytes as f64),
            ratio(after.seconds, before.seconds),
            self.rates,
            self.recomputed,
        );
        text
    }
}

/// One plan among others.
#[derive(Clone, Debug, Serialize)]
pub struct Candidate {
    /// `original`, a level of `--recompute`, or `cut`.
    pub plan: String,
    /// Whether nothing in it is approximate.
    pub exact: bool,
    /// Forward nodes that run again.
    pub recomputed: usize,
    /// Tensors of which a compressed form is saved.
    pub compressed: usize,
    /// What it comes to.
    #[serde(flatten)]
    pub estimate: Estimate,
    /// The part of the original's peak.
    pub peak_ratio: f64,
    /// The part of the original's time.
    pub time_ratio: f64,
    /// The smallest cosine of an approximate gradient with the exact one among the layers that are compressed, where
    /// it was measured.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub least_cosine: Option<f64>,
    /// Whether no other plan listed is as good in both, and as exact.
    pub pareto: bool,
}

/// Marks the plans that no other one is better than.
pub fn mark(candidates: &mut [Candidate]) {
    let all: Vec<(bool, i64, f64)> = { candidates.iter() }
        .map(|c| (c.exact, c.estimate.peak_bytes, c.estimate.seconds))
        .collect();
    for (place, candidate) in candidates.iter_mut().enumerate() {
        let (exact, peak, seconds) = all[place];
        let beaten = all.iter().enumerate().any(|(at, other)| {
            let as_good = other.1 <= peak && other.2 <= seconds && (other.0 || !exact);
            let better = other.1 < peak || other.2 < seconds || (other.0 && !exact);
            at != place && as_good && (better || at < place)
        });
        candidate.pareto = !beaten;
    }
}

/// The plans as a table, the lowest peak last.
pub fn table(candidates: &[Candidate], style: Style) -> String {
    let mut grid = Grid::new([
        ("plan", Column::Word),
        ("exact", Column::Word),
        ("run twice", Column::Number),
        ("compressed", Column::Number),
        ("saved", Column::Number),
        ("peak", Column::Number),
        ("", Column::Number),
        ("time", Column::Number),
        ("least cosine", Column::Number),
        ("best", Column::Word),
        ("peak, 0 to 100%", Column::Word),
    ]);
    let bytes = |bytes: i64| Unit::Bytes.amount(&Amount::from(bytes), style.unicode);
    for candidate in candidates {
        grid.row([
            candidate.plan.clone(),
            if candidate.exact { "yes" } else { "no" }.to_owned(),
            candidate.recomputed.to_string(),
            candidate.compressed.to_string(),
            bytes(candidate.estimate.saved_bytes),
            bytes(candidate.estimate.peak_bytes),
            percent(candidate.peak_ratio),
            percent(candidate.time_ratio),
            (candidate.least_cosine).map_or(String::new(), |x| number(Some(x), style)),
            if candidate.pareto { "*" } else { "" }.to_owned(),
            bar(candidate.peak_ratio, style),
        ]);
    }
    format!(
        "{}time: of a step, by the cost model, as a part of the original's; *: no plan listed is as exact, as small \
         and as fast\n",
        grid.draw(style)
    )
}
