//! From the analyses of a model before and after the rewrite to a [`Report`].
//!
//! Every number is read off the two models: what is saved after the rewrite is what the analyses find
//! saved in the model that is written, not what the rewrite meant to save.

use super::timeline::{Ordered, Timeline, course, symbol_sizes};
use super::{
    Amount, Decision, Held, Hoisted, KeptAlive, Layer, Reader, Report, Saved, Totals, per_layer,
};
use crate::measure::fidelity::gradients;
use anyhow::Result;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use velora_graph::analysis::hoist::cut::Hoist;
use velora_graph::analysis::hoist::{MASKED, Move};
use velora_graph::analysis::lifetimes::Lifetimes;
use velora_graph::analysis::partition::{Partition, was_moved};
use velora_graph::analysis::roles::Hints;
use velora_graph::analysis::saved::SavedActivation;
use velora_graph::analysis::sites::{Form, Site, sites_behind};
use velora_graph::analysis::{Analyses, Settings};
use velora_graph::dim::Dim;
use velora_graph::ir::{Graph, Model, NodeId, ValueId};
use velora_graph::text::element_type_name;
use velora_passes::pipeline::{Outcome, assumed_sizes};
use velora_passes::schedule::schedule;
use velora_passes::select::{self, Grouping, Selection, sub_token_size};
use velora_runtime::training::Signature;

/// What a report is made of.
#[derive(Clone, Copy, Debug)]
pub struct Sides<'a> {
    /// The model that came in.
    pub before: (&'a Model, &'a Analyses),
    /// The model that goes out.
    pub after: (&'a Model, &'a Analyses),
    /// What became of each contraction.
    pub decisions: &'a [select::Decision],
    /// The analyses of the model that came in, with what was moved in its new place and what is computed again as
    /// such.
    pub moved: &'a Analyses,
    /// Whether the model that goes out is another than the one that came in.
    pub changed: bool,
    /// What was moved into the forward half.
    pub hoists: &'a [Hoist],
    /// What the user asked for.
    pub selection: &'a Selection,
}

impl<'a> Sides<'a> {
    /// Both sides of a rewrite; `after` are the analyses of the model that goes out.
    pub fn new(
        model: &'a Model,
        outcome: &'a Outcome,
        after: &'a Analyses,
        selection: &'a Selection,
    ) -> Self {
        Sides {
            before: (model, &outcome.before),
            after: (&outcome.ran.model, after),
            decisions: &outcome.decisions,
            moved: outcome.moved(),
            changed: !outcome.ran.passes.is_empty(),
            hoists: &outcome.hoists,
            selection,
        }
    }
}

/// The report of a rewrite; `model` is how the user named the file, and `open` what the analyses say without
/// the sizes that are given, where somebody wants to try others.
///
/// # Errors
/// Where the graph cannot be ordered.
pub fn report(
    model: &str,
    sizes: &BTreeMap<Arc<str>, i64>,
    sides: &Sides<'_>,
    open: Option<&Opened>,
) -> Result<Report> {
    let orders = orders(sides)?;
    let mut report = amounts(model, sizes, sides);
    let (before, after) = &orders;
    let totals = &mut report.totals;
    totals.peak_bytes_before = peak(sides.before.1, before);
    totals.peak_bytes_after = match after {
        Some(after) => peak(sides.after.1, after),
        None => totals.peak_bytes_before.clone(),
    };
    report.timeline = Some(timeline(sides, sizes, open, &orders));
    report.open = open.map(|open| Box::new(open.amounts(model, sides)));
    Ok(report)
}

/// All of a report that does not depend on orders.
fn amounts(model: &str, sizes: &BTreeMap<Arc<str>, i64>, sides: &Sides<'_>) -> Report {
    let after = saved_after(sides);
    let halves = &sides.moved.partition;
    let layers: Vec<Layer> = sides
        .decisions
        .iter()
        .map(|d| layer(sides, &after, d))
        .collect();
    Report {
        tool_version: env!("CARGO_PKG_VERSION").to_owned(),
        model: model.to_owned(),
        dims: (sizes.iter())
            .map(|(name, &size)| (name.to_string(), size))
            .collect(),
        groups_default: match sides.selection.defaults.grouping {
            Grouping::Groups(groups) => Some(groups),
            Grouping::SubTokenSize(_) => None,
        },
        totals: totals(sides, &layers),
        layers,
        hoisted: hoisted(sides, &after),
        saved: sides
            .before
            .1
            .saved
            .iter()
            .map(|s| saved(sides, halves, s))
            .collect(),
        plan: None,
        pareto: Vec::new(),
        presets: Vec::new(),
        sweep: Vec::new(),
        batch: None,
        timeline: None,
        open: None,
    }
}

/// The orders that peaks are read off: the best one found for the model that came in, so that what a better
/// order saves does not count as saved by compression; and that of the model that goes out, unless it is the
/// same, since a model that is not rewritten is not reordered either.
fn orders(sides: &Sides<'_>) -> Result<(Ordered, Option<Ordered>)> {
    let after = sides.changed.then(|| ordered(sides.after, false));
    Ok((ordered(sides.before, true)?, after.transpose()?))
}

fn ordered((model, analyses): (&Model, &Analyses), best: bool) -> Result<Ordered> {
    let graph = &model.graph;
    let sizes = assumed_sizes(model, &analyses.shapes);
    let order = match best {
        true => schedule(graph, &analyses.buffers, &sizes)?.order,
        false => graph.order().to_vec(),
    };
    let lifetimes = Lifetimes::new(graph, &analyses.buffers, &sizes, &order);
    Ok(Ordered {
        order,
        sizes,
        lifetimes,
    })
}

/// Memory over those orders.
fn timeline(
    sides: &Sides<'_>,
    given: &BTreeMap<Arc<str>, i64>,
    open: Option<&Opened>,
    (before, after): &(Ordered, Option<Ordered>),
) -> Timeline {
    let course = |(model, analyses), open: Option<&Analyses>, ordered| {
        course(model, analyses, open.map(|o| &o.shapes), given, ordered)
    };
    let after =
        (after.as_ref()).map(|ordered| course(sides.after, open.map(|open| &open.after), ordered));
    let before = course(sides.before, open.map(|open| &open.before), before);
    let courses = [&before].into_iter().chain(&after);
    let (sizes, of_inputs) = symbol_sizes(&sides.before.0.graph, given, courses);
    Timeline {
        sizes,
        of_inputs,
        before,
        after,
    }
}

/// What the analyses say where no size is given: the expressions behind a report's numbers.
#[derive(Clone, Debug)]
pub struct Opened {
    before: Analyses,
    after: Analyses,
    decisions: Vec<select::Decision>,
}

impl Opened {
    /// Analyses both models again; `None` where they cannot be without their sizes.
    pub fn new(sides: &Sides<'_>, hints: &Hints) -> Option<Opened> {
        let settings = Settings {
            hints: hints.clone(),
            sizes: BTreeMap::new(),
        };
        let before = Analyses::new(sides.before.0, &settings).ok()?;
        let after = Analyses::new(sides.after.0, &settings).ok()?;
        let decisions = sides.decisions.iter().map(|decision| {
            let site = before.sites.at(decision.node);
            let mut decision = decision.clone();
            // What cannot be told without sizes stays as it is.
            decision.site = site.cloned().or(decision.site);
            decision
        });
        let decisions = decisions.collect();
        Some(Opened {
            before,
            after,
            decisions,
        })
    }

    /// The report on them, without what depends on orders.
    fn amounts(&self, model: &str, sides: &Sides<'_>) -> Report {
        let open = Sides {
            before: (sides.before.0, &self.before),
            after: (sides.after.0, &self.after),
            decisions: &self.decisions,
            ..*sides
        };
        amounts(model, &BTreeMap::new(), &open)
    }
}

fn totals(sides: &Sides<'_>, layers: &[Layer]) -> Totals {
    let rewritten = layers
        .iter()
        .filter(|l| l.decision == Decision::Rewritten)
        .count();
    let (weight_grad_flops_before, weight_grad_flops_after) = flops(sides.decisions);
    Totals {
        saved_bytes_before: saved_bytes(sides.before.1),
        saved_bytes_after: saved_bytes(sides.after.1),
        // They depend on the orders.
        peak_bytes_before: Amount::default(),
        peak_bytes_after: Amount::default(),
        weight_grad_flops_before,
        weight_grad_flops_after,
        counted_per_layer_before: per_layer::before(sides.before.1, sides.decisions),
        counted_per_layer_after: per_layer::after(sides.before.1, sides.decisions),
        held_before: held(sides.before),
        held_after: held(sides.after),
        sites: layers.len(),
        sites_rewritten: rewritten,
        fidelity: None,
    }
}

/// The bytes of everything that is saved for backward.
pub fn saved_bytes(analyses: &Analyses) -> Amount {
    let saved = analyses.saved.iter();
    let bytes = saved.map(|s| Amount::from(analyses.shapes.bytes(s.buffer)));
    bytes.fold(Amount::from(0), |sum, bytes| &sum + &bytes)
}

/// The bases of adapters, and their scales where they are stored as integers.
pub(super) fn bases(graph: &Graph, analyses: &Analyses) -> Vec<ValueId> {
    let bases = analyses.roles.adapters.iter().flat_map(|adapter| {
        let base = adapter.of.parameter;
        let users = graph
            .value(base)
            .users
            .iter()
            .map(|user| graph.node(user.node));
        let scales = { users }
            .filter(|node| node.op() == "DequantizeLinear")
            .filter_map(|node| node.inputs.get(1).copied().flatten());
        let scales: BTreeSet<ValueId> = scales.collect();
        scales.into_iter().chain([base])
    });
    bases.collect()
}

/// What a step holds of the trained parameters.
fn held((model, analyses): (&Model, &Analyses)) -> Held {
    let graph = &model.graph;
    let signature = Signature::new(graph, &analyses.roles);
    let bytes = |value: ValueId| Amount::from(analyses.shapes.bytes(value));
    let none = || Amount::from(0);
    let trained = signature.trained.iter();
    let trained = trained.map(|parameter| graph.inputs()[parameter.input]);
    let parameters = trained
        .chain(bases(graph, analyses))
        .map(bytes)
        .fold(none(), |sum, bytes| &sum + &bytes);
    let gradients = if signature.trained.is_empty() {
        none()
    } else {
        (gradients(graph, analyses).iter())
            .map(|gradient| bytes(gradient.value))
            .fold(none(), |sum, bytes| &sum + &bytes)
    };
    let optimizer = &gradients + &gradients;
    let held = &(&parameters + &gradients) + &optimizer;
    Held {
        step: &held + &saved_bytes(analyses),
        parameters,
        gradients,
        optimizer,
    }
}

/// The highest of the live bytes over an order.
fn peak(analyses: &Analyses, ordered: &Ordered) -> Amount {
    let Ordered {
        sizes, lifetimes, ..
    } = ordered;
    let known = |value: ValueId| {
        analyses
            .shapes
            .bytes(value)
            .is_some_and(|b| b.as_const().is_some())
    };
    if lifetimes.buffers().all(known) {
        return Amount::from(lifetimes.peak(sizes).0);
    }
    Amount::from(lifetimes.symbolic_peak(&analyses.shapes))
}

/// Operations of all weight-gradient contractions, before and after: for a linear layer 2·N·D·O each, or
/// what takes their place. With R directions that is 2·N·G·R·O for P and R·D·O to expand it; for a scale the
/// same as before, and D to expand; R·N·D where X̂ is reconstructed for a node that stays; and for each tensor
/// 2·R·N·D to compress it and, where the direction is computed in the step, N·D to sum it up.
fn flops(decisions: &[select::Decision]) -> (Amount, Amount) {
    let (mut before, mut after) = (Amount::from(0), Amount::from(0));
    let mut compressed = BTreeSet::new();
    for decision in decisions {
        let Some(site) = &decision.site else {
            continue;
        };
        let full = Amount::from(site.operations.clone());
        before = &before + &full;
        if !decision.rewritten() {
            after = &after + &full;
            continue;
        }
        let tokens_features = &site.tokens * &Dim::from(site.features);
        if compressed.insert(site.activation) {
            let settings = &decision.settings;
            let passes = 2 * settings.rank + i64::from(settings.init.is_computed());
            after = &after + &Amount::from(&tokens_features * &Dim::from(passes));
        }
        let groups = decision.settings.width(site.features).unwrap_or(0);
        let rank = decision.settings.rank;
        let now = match site.form {
            Form::Weight(_) => {
                let product = Dim::from(2) * &site.tokens * Dim::from(groups) * &site.outputs;
                Amount::from(product + &site.outputs * &Dim::from(site.features * rank))
            }
            Form::Scale(_) => &full + &Amount::from(site.features),
            Form::Reconstructed => &full + &Amount::from(tokens_features * Dim::from(rank)),
        };
        after = &after + &now;
    }
    (before, after)
}

/// By tensor of the model that came in: the bytes that the model that goes out saves of it or in its
/// place, and whether it is still saved itself.
fn saved_after(sides: &Sides<'_>) -> HashMap<String, (Amount, bool)> {
    let (model, analyses) = sides.after;
    let mut by_tensor: HashMap<String, (Amount, bool)> = HashMap::new();
    for saved in &analyses.saved {
        let bytes = Amount::from(analyses.shapes.bytes(saved.buffer));
        let producer = model.graph.producer(saved.buffer);
        let compressed = producer.and_then(|n| model.graph.node(n).metadata("velora.tensor"));
        let name = &model.graph.value(saved.buffer).name;
        let tensor = compressed.unwrap_or(name).to_owned();
        let entry = by_tensor.entry(tensor).or_insert((Amount::from(0), false));
        entry.0 = &entry.0 + &bytes;
        entry.1 |= compressed.is_none();
    }
    by_tensor
}

fn layer(
    sides: &Sides<'_>,
    after: &HashMap<String, (Amount, bool)>,
    decision: &select::Decision,
) -> Layer {
    let (model, analyses) = sides.before;
    let graph = &model.graph;
    let kind = analyses.shapes.of(decision.activation);
    let tensor = &graph.value(decision.activation).name;
    // They are listed by the id of the buffer.
    let is_saved = analyses
        .saved
        .binary_search_by_key(&decision.activation, |s| s.buffer)
        .is_ok();
    let before = match is_saved {
        true => Amount::from(analyses.shapes.bytes(decision.activation)),
        false => Amount::from(0),
    };
    let (now, kept) = after
        .get(tensor)
        .cloned()
        .unwrap_or((Amount::from(0), false));
    let rewritten = decision.rewritten();
    let sizes = decision.site.as_ref().filter(|_| rewritten).map(|site| {
        let groups = decision.settings.grouping.groups(site.features);
        (groups, sub_token_size(site.features, groups))
    });
    let outputs = |site: &Site| Some((site.features, site.outputs.as_const()?));
    Layer {
        param: graph.value(decision.parameter).name.clone(),
        kind: decision.kind,
        node: graph.node(decision.node).label(graph),
        activation: tensor.clone(),
        shape: kind.shape.clone(),
        dtype: dtype(analyses, decision.activation),
        features_outputs: decision.site.as_ref().and_then(outputs),
        decision: match rewritten {
            true => Decision::Rewritten,
            false => Decision::Skipped,
        },
        reason: decision.reason.code().to_owned(),
        message: decision.message.clone(),
        groups: sizes.map(|(groups, _)| groups),
        sub_token_size: sizes.map(|(_, size)| size),
        init: rewritten.then(|| decision.settings.init.name().to_owned()),
        gradient: rewritten.then(|| match decision.gradient.route() {
            Some(_) => select::Gradients::Factored.name(),
            None => select::Gradients::Full.name(),
        }),
        freed_bytes: match rewritten && !kept {
            true => &before - &now,
            false => Amount::from(0),
        },
        saved_bytes_before: before,
        saved_bytes_after: now,
        kept_alive_by: (decision.kept_alive_by.iter())
            .map(|keeper| KeptAlive {
                node: keeper
                    .node
                    .map_or(String::new(), |n| graph.node(n).label(graph)),
                op: keeper
                    .node
                    .map_or(String::new(), |n| graph.node(n).op().to_owned()),
                why: keeper.why.clone(),
            })
            .collect(),
        fidelity: None,
    }
}

/// What was moved into the forward half. `after` is what [`saved_after`] finds.
fn hoisted(sides: &Sides<'_>, after: &HashMap<String, (Amount, bool)>) -> Vec<Hoisted> {
    let (graph, now) = (&sides.before.0.graph, &sides.after.0.graph);
    let makers: HashMap<&str, NodeId> = (now.values())
        .filter_map(|value| Some((now.value(value).name.as_str(), now.producer(value)?)))
        .collect();
    let bytes = |name: &str| match after.get(name) {
        Some((bytes, _)) => bytes.clone(),
        None => Amount::from(0),
    };
    let mask = |node: NodeId| {
        let output = graph.node(node).outputs.first().copied().flatten()?;
        let reader = makers.get(graph.value(output).name.as_str())?;
        let mut here = now.node(*reader).inputs.get(MASKED).copied().flatten()?;
        // It is read as numbers, and perhaps behind a pin.
        loop {
            let maker = now.node(now.producer(here)?);
            if was_moved(maker) {
                return Some(now.value(here).name.clone());
            }
            here = maker.inputs.first().copied().flatten()?;
        }
    };
    let entry = |hoist: &Hoist| {
        let name = |&root: &ValueId| graph.value(root).name.clone();
        let mut made: Vec<String> = hoist.made.iter().map(name).collect();
        let masks = hoist.moves.iter().filter_map(|work| match *work {
            Move::Mask(node) => mask(node),
            Move::Node(_) => None,
        });
        made.extend(masks);
        let unlocked: Vec<String> = hoist.released.iter().map(name).collect();
        let saved = (hoist.released.iter()).map(|&root| sides.before.1.shapes.bytes(root));
        let left = made.iter().chain(&unlocked).map(|name| bytes(name));
        let none = || Amount::from(0);
        Hoisted {
            nodes: (hoist.moves.iter())
                .map(|&(Move::Node(node) | Move::Mask(node))| reader(graph, node))
                .collect(),
            bytes_before: saved.fold(none(), |sum, bytes| &sum + &Amount::from(bytes)),
            bytes_after: left.fold(none(), |sum, bytes| &sum + &bytes),
            tensor: (made.iter().rev())
                .max_by_key(|name| bytes(name).nominal())
                .cloned()
                .unwrap_or_default(),
            unlocked,
        }
    };
    sides.hoists.iter().map(entry).collect()
}

fn reader(graph: &Graph, node: NodeId) -> Reader {
    Reader {
        node: graph.node(node).label(graph),
        op: graph.node(node).op().to_owned(),
    }
}

fn saved(sides: &Sides<'_>, halves: &Partition, saved: &SavedActivation) -> Saved {
    let (model, analyses) = sides.before;
    let graph = &model.graph;
    let mut nodes: Vec<_> = saved.readers.iter().map(|r| r.node).collect();
    nodes.dedup();
    let possible = |site: &Site| {
        // They are listed in the order of their products.
        let decisions = sides.decisions;
        let place = decisions.binary_search_by_key(&site.product, |d| d.node);
        let decision = place.ok().and_then(|at| decisions.get(at));
        decision.is_some_and(|d| d.reason.may_be_rewritten())
    };
    let readers = saved.readers.iter();
    let mut late = readers.filter(|r| halves.reads_late(r.node, r.slot));
    let rewritable = late.all(|reader| {
        let behind = sites_behind(graph, &analyses.partition, &analyses.sites, reader);
        behind.is_some_and(|sites| sites.into_iter().all(possible))
    });
    Saved {
        tensor: graph.value(saved.buffer).name.clone(),
        shape: analyses.shapes.of(saved.buffer).shape.clone(),
        dtype: dtype(analyses, saved.buffer),
        bytes: Amount::from(analyses.shapes.bytes(saved.buffer)),
        readers: (nodes.into_iter())
            .map(|node| reader(graph, node))
            .collect(),
        rewritable,
    }
}

fn dtype(analyses: &Analyses, value: ValueId) -> Option<String> {
    let kind = analyses.shapes.of(value).data_type?;
    element_type_name(kind.0).map(str::to_owned)
}
