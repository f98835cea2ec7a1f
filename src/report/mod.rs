//! What a command found out, as data (schema `velora-report/1`), and its renderers.
//!
//! A [`Report`] is filled from the analyses by [`build`]; the renderers read nothing else.

mod amount;
pub mod build;
#[cfg(test)]
mod examples;
mod html;
mod json;
pub mod per_layer;
pub mod plan;
pub mod run;
mod table;
mod timeline;
mod units;
pub mod verify;

pub use amount::Amount;
pub use html::html;
pub use json::json;
pub use table::{Style, inspected, optimized};
pub use units::{bytes, percent};

use crate::measure::fidelity::Fidelity;
use serde::Serialize;
use std::collections::BTreeMap;
use timeline::Timeline;
use units::Unit;
use velora_graph::analysis::sites::Kind;
use velora_graph::dim::Dim;

/// The name of the JSON schema.
pub const SCHEMA: &str = "velora-report/1";

/// A whole report.
#[derive(Clone, Debug)]
pub struct Report {
    /// The tool's version.
    pub tool_version: String,
    /// The model as the user named it.
    pub model: String,
    /// Sizes given with `--dim`.
    pub dims: BTreeMap<String, i64>,
    /// G of layers without a setting of their own; `None` where a sub-token size was given instead.
    pub groups_default: Option<i64>,
    /// Sums.
    pub totals: Totals,
    /// One entry for each site (parameter and contraction), in the graph's order.
    pub layers: Vec<Layer>,
    /// What was moved into the forward half, in the graph's order.
    pub hoisted: Vec<Hoisted>,
    /// One entry for each saved tensor (views counted once). Renderers list the biggest first.
    pub saved: Vec<Saved>,
    /// The plan of the whole step, where one was asked for.
    pub plan: Option<plan::StepPlan>,
    /// The plans to choose from, where that was asked.
    pub pareto: Vec<plan::Candidate>,
    /// What each preset would do, where that was asked.
    pub presets: Vec<Preset>,
    /// What other numbers of groups would do, where that was asked.
    pub sweep: Vec<Trial>,
    /// The batch that fidelity was measured on: the file, and the samples taken from it.
    pub batch: Option<(String, usize)>,
    /// Memory over the schedule.
    pub timeline: Option<Timeline>,
    /// The same report with no size given, where some were and somebody wants to try others.
    pub open: Option<Box<Report>>,
}

/// What a preset would do.
#[derive(Clone, Debug)]
pub struct Preset {
    /// Its name on the command line.
    pub preset: &'static str,
    /// How many sites it rewrites.
    pub sites_rewritten: usize,
    /// Bytes of all saved tensors then.
    pub saved_bytes_after: Amount,
    /// What that is less than now; negative where compressed forms lie beside what they stand for.
    pub freed_bytes: Amount,
    /// Bytes of the linear layers' inputs then, as the paper counts them ([`per_layer`]).
    pub counted_per_layer: Amount,
}

/// What a number of groups would do, with the preset `freeable`.
#[derive(Clone, Debug)]
pub struct Trial {
    /// G.
    pub groups: i64,
    /// How many sites are rewritten.
    pub sites_rewritten: usize,
    /// Bytes of all saved tensors then.
    pub saved_bytes_after: Amount,
    /// Of all trained parameters together, where there was data.
    pub fidelity: Option<Fidelity>,
    /// Parameter, contraction and fidelity of every layer that can be rewritten.
    pub layers: Vec<(String, String, Fidelity)>,
}

/// Sums over the graph. Bytes of a tensor that several layers share count once.
#[derive(Clone, Debug, Default)]
pub struct Totals {
    /// Bytes of all saved tensors.
    pub saved_bytes_before: Amount,
    /// The same after the rewrite, compressed tensors and computed directions included.
    pub saved_bytes_after: Amount,
    /// The most bytes of activations alive at once, over the schedule.
    pub peak_bytes_before: Amount,
    /// The same after the rewrite.
    pub peak_bytes_after: Amount,
    /// Floating-point operations of all weight-gradient contractions (2NDO each).
    pub weight_grad_flops_before: Amount,
    /// The same after the rewrite (2NGO each).
    pub weight_grad_flops_after: Amount,
    /// Bytes of the linear layers' inputs, as the paper counts them ([`per_layer`]).
    pub counted_per_layer_before: Amount,
    /// The same after the rewrite.
    pub counted_per_layer_after: Amount,
    /// What else a step with AdamW holds.
    pub held_before: Held,
    /// The same after the rewrite.
    pub held_after: Held,
    /// How many sites there are.
    pub sites: usize,
    /// How many of them were (or, for `inspect`, would be) rewritten.
    pub sites_rewritten: usize,
    /// How near the gradient of all parameters together is to the exact one, where it was measured.
    pub fidelity: Option<Fidelity>,
}

/// Bytes that a step holds from its start to its end, of the trained parameters. Where the optimiser is in
/// the graph, nothing is counted.
#[derive(Clone, Debug, Default)]
pub struct Held {
    /// The parameters.
    pub parameters: Amount,
    /// Their gradients, as the graph hands them out.
    pub gradients: Amount,
    /// What Adam and AdamW keep: two tensors of the gradient's shape for each.
    pub optimizer: Amount,
    /// All of these and what is saved for backward.
    pub step: Amount,
}

/// Whether a layer was rewritten.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// It was, or for `inspect` would be.
    Rewritten,
    /// It was not.
    Skipped,
}

impl Decision {
    /// The word of the schema.
    pub fn word(self) -> &'static str {
        match self {
            Decision::Rewritten => "rewritten",
            Decision::Skipped => "skipped",
        }
    }
}

/// One layer.
#[derive(Clone, Debug)]
pub struct Layer {
    /// The parameter's name.
    pub param: String,
    /// What it computes.
    pub kind: Kind,
    /// The label of the weight-gradient contraction.
    pub node: String,
    /// The name of the saved tensor that the contraction reads.
    pub activation: String,
    /// The shape of `activation`, `None` where its rank is unknown.
    pub shape: Option<Vec<Dim>>,
    /// The element type of `activation`, as ONNX text calls it.
    pub dtype: Option<String>,
    /// D and O. Not part of the JSON.
    pub features_outputs: Option<(i64, i64)>,
    /// Whether it was rewritten.
    pub decision: Decision,
    /// A stable code for why.
    pub reason: String,
    /// The same as a sentence.
    pub message: String,
    /// G, where it was rewritten.
    pub groups: Option<i64>,
    /// M, where it was rewritten.
    pub sub_token_size: Option<i64>,
    /// The kind of direction, where it was rewritten.
    pub init: Option<String>,
    /// `full` or `factored`: how the gradient leaves the graph; `None` where nothing is rewritten.
    pub gradient: Option<&'static str>,
    /// Bytes of `activation`; shared ones are repeated by every layer.
    pub saved_bytes_before: Amount,
    /// Bytes saved in place of `activation`.
    pub saved_bytes_after: Amount,
    /// The difference, 0 while the tensor is kept alive.
    pub freed_bytes: Amount,
    /// The readers that keep `activation` alive.
    pub kept_alive_by: Vec<KeptAlive>,
    /// How near the rewritten gradient is to the exact one, where it was measured.
    pub fidelity: Option<Fidelity>,
}

/// A reader that keeps a tensor alive.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct KeptAlive {
    /// The node's label; empty for the graph's outputs.
    pub node: String,
    /// The node's operator; empty for the graph's outputs.
    pub op: String,
    /// Why it needs the tensor.
    pub why: String,
}

/// Backward work that was moved into the forward half together.
#[derive(Clone, Debug)]
pub struct Hoisted {
    /// The nodes.
    pub nodes: Vec<Reader>,
    /// The biggest tensor that is saved in the place of what they read.
    pub tensor: String,
    /// Saved bytes of `unlocked`.
    pub bytes_before: Amount,
    /// Bytes saved in their place, compressed forms included.
    pub bytes_after: Amount,
    /// The saved tensors that nothing in backward reads any longer, but for rewritten layers.
    pub unlocked: Vec<String>,
}

/// A saved tensor.
#[derive(Clone, Debug)]
pub struct Saved {
    /// Its name.
    pub tensor: String,
    /// Its shape, `None` where the rank is unknown.
    pub shape: Option<Vec<Dim>>,
    /// The element type, as ONNX text calls it.
    pub dtype: Option<String>,
    /// The bytes of its buffer.
    pub bytes: Amount,
    /// Its readers in backward.
    pub readers: Vec<Reader>,
    /// Whether all of them can be rewritten.
    pub rewritable: bool,
}

/// A node that reads a saved tensor.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Reader {
    /// The node's label.
    pub node: String,
    /// The node's operator.
    pub op: String,
}

/// What a report tells: what a rewrite did, or what one could do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum View {
    /// Of the default verb.
    Optimized,
    /// Of `inspect`.
    Inspected,
}

impl View {
    fn before_after(self) -> (&'static str, &'static str) {
        match self {
            View::Optimized => ("before", "after"),
            View::Inspected => ("now", "if rewritten"),
        }
    }

    fn moved(self) -> &'static str {
        match self {
            View::Optimized => "moved into forward",
            View::Inspected => "could move into forward",
        }
    }

    fn freed(self) -> &'static str {
        match self {
            View::Optimized => "freed",
            View::Inspected => "could free",
        }
    }
}

/// A longer expression is shown as its value at nominal sizes.
const EXPRESSION: usize = 40;

/// The totals as people read them.
struct Shown<'a> {
    /// Without what is not known.
    rows: Vec<ShownRow<'a>>,
    /// What a `~` in them means, where there is one.
    note: Option<String>,
}

/// A line of the totals.
struct ShownRow<'a> {
    name: &'static str,
    unit: Unit,
    before: &'a Amount,
    after: &'a Amount,
    /// What is compared, before, after, and the ratio.
    cells: [String; 4],
}

/// What the totals compare.
struct Compared<'a> {
    name: &'static str,
    unit: Unit,
    before: &'a Amount,
    after: &'a Amount,
}

impl Totals {
    /// All that is compared.
    fn compared(&self) -> Vec<Compared<'_>> {
        let compared = |name, unit, before, after| Compared {
            name,
            unit,
            before,
            after,
        };
        let (was, is) = (&self.held_before, &self.held_after);
        let (bytes, flops) = (Unit::Bytes, Unit::Flops);
        let (saved, peak) = (&self.saved_bytes_before, &self.peak_bytes_before);
        let operations = &self.weight_grad_flops_before;
        let mut all = vec![
            compared("saved for backward", bytes, saved, &self.saved_bytes_after),
            compared("peak", bytes, peak, &self.peak_bytes_after),
            compared(
                "weight-gradient operations",
                flops,
                operations,
                &self.weight_grad_flops_after,
            ),
        ];
        // They are of interest where the rewrite changes them.
        if was.gradients != is.gradients {
            all.extend([
                compared("gradients", bytes, &was.gradients, &is.gradients),
                compared("AdamW state", bytes, &was.optimizer, &is.optimizer),
                compared("all that a step holds", bytes, &was.step, &is.step),
            ]);
        }
        all
    }

    /// The totals for a table.
    fn shown(&self, unicode: bool) -> Shown<'_> {
        let unknown = Amount::default();
        let compared = self.compared();
        let known =
            { compared.into_iter() }.filter(|row| *row.before != unknown || *row.after != unknown);
        let mut shown = Shown {
            rows: Vec::new(),
            note: None,
        };
        for Compared {
            name,
            unit,
            before,
            after,
        } in known
        {
            let long = |a: &Amount| a.symbolic().is_some_and(|e| e.len() > EXPRESSION);
            let nominal = before.nominal().zip(after.nominal());
            let nominal = nominal.filter(|_| long(before) || long(after));
            let (mark, was, is) = match nominal {
                Some((was, is)) => ("~", Amount::from(was), Amount::from(is)),
                None => ("", before.clone(), after.clone()),
            };
            let amount = |amount| format!("{mark}{}", unit.amount(amount, unicode));
            let ratio = is.ratio(&was);
            let ratio = ratio.map_or(String::new(), |r| format!("{mark}{}", units::percent(r)));
            shown.rows.push(ShownRow {
                name,
                unit,
                before,
                after,
                cells: [name.to_owned(), amount(&was), amount(&is), ratio],
            });
            if nominal.is_some() {
                shown.note = Some(format!(
                    "~: with every open dimension at {}; --dim NAME=N sets one, --json has the expressions",
                    amount::NOMINAL
                ));
            }
        }
        shown
    }
}

impl Report {
    /// The saved tensors, biggest first. Open dimensions count as [`amount::NOMINAL`] for this;
    /// tensors of unknown size come last, and ties keep their order.
    fn biggest_first(&self) -> Vec<&Saved> {
        let mut saved: Vec<&Saved> = self.saved.iter().collect();
        saved.sort_by_key(|s| std::cmp::Reverse(s.bytes.nominal()));
        saved
    }

    /// Whether some saved tensor's size is symbolic, so that orders and bars use nominal sizes.
    fn has_open_sizes(&self) -> bool {
        self.saved.iter().any(|s| s.bytes.symbolic().is_some())
    }

    /// Every code of a skipped layer with the message of its first layer and their number, by code.
    fn skip_reasons(&self) -> BTreeMap<&str, (&str, usize)> {
        let mut reasons = BTreeMap::new();
        let skipped = |l: &&Layer| l.decision == Decision::Skipped;
        for layer in self.layers.iter().filter(skipped) {
            let entry = reasons.entry(layer.reason.as_str());
            entry.or_insert((layer.message.as_str(), 0)).1 += 1;
        }
        reasons
    }
}
