//! `inspect`: where the memory goes, what could be freed, what keeps it alive, and what it would cost.

use super::{Loaded, deliver, reported, warn_of_doubtful};
use crate::cli::InspectArguments;
use crate::io::folder_of;
use crate::measure::fidelity::{Survey, Variant, survey};
use crate::measure::{Bench, read_inputs};
use crate::report::build::{Sides, saved_bytes};
use crate::report::per_layer;
use crate::report::{Amount, Preset, Report, Trial, View};
use crate::settings::{DEFAULT_GROUPS, grouping, inspection};
use anyhow::{Context, Result, bail};
use std::path::Path;
use velora_graph::analysis::{Analyses, Settings};
use velora_graph::ir::{Graph, NodeId};
use velora_passes::manager::Checks;
use velora_passes::pipeline::{Options, Outcome, already_rewritten, optimise, rewrite, shapes};
use velora_passes::select::{self, Decision, Grouping};
use velora_runtime::cpu::Cpu;

/// Reports on a training graph; writes no model. What could be freed is found by doing it.
///
/// # Errors
/// Where the file cannot be read, is no training graph, or a report cannot be written; with data, where
/// that does not fit the graph or the graph cannot be executed.
pub fn run(arguments: &InspectArguments) -> Result<()> {
    let source = &arguments.graph.source;
    let mut loaded = match &arguments.data {
        Some(_) => Loaded::read_whole(&source.model, source)?,
        None => Loaded::read(source)?,
    };
    let reports = [&arguments.graph.json, &arguments.graph.html];
    loaded.check_spared(reports.into_iter().flatten())?;
    if arguments.data.is_some() {
        loaded.model = loaded.executable()?.into_owned();
    }
    let name = &loaded.name;
    let own = grouping(arguments.groups, arguments.sub_token_size);
    let own = own.unwrap_or(Grouping::Groups(DEFAULT_GROUPS));
    let options = options(&loaded, own, select::Preset::Freeable);
    let outcome = optimise(&loaded.model, &options).with_context(|| name.clone())?;
    warn_of_doubtful(
        &arguments.graph.source,
        &loaded.model,
        &outcome.before.roles,
    );
    let after =
        Analyses::new(&outcome.ran.model, &loaded.settings).with_context(|| name.clone())?;
    let sides = Sides::new(&loaded.model, &outcome, &after, &options.selection);
    let mut report = reported(&loaded, &sides, &arguments.graph)?;
    presets(&loaded, own, &mut report).with_context(|| name.clone())?;
    let groups = tried(arguments, &outcome.before);
    let trials = groups
        .iter()
        .map(|&groups| Tried::new(&loaded, Grouping::Groups(groups)));
    let trials: Vec<Tried> = trials
        .collect::<Result<_>>()
        .with_context(|| name.clone())?;
    let surveys = match &arguments.data {
        Some(data) => {
            let own = Tried::new(&loaded, own).with_context(|| name.clone())?;
            let mut all = vec![&own];
            all.extend(&trials);
            let (mut surveys, samples) = measure(arguments, data, &loaded, &outcome.before, &all)?;
            report.batch = Some((data.display().to_string(), samples));
            let own = surveys.remove(0);
            report.totals.fidelity = Some(own.total);
            for (layer, decision) in report.layers.iter_mut().zip(&outcome.decisions) {
                layer.fidelity = result(&loaded.model.graph, decision)
                    .and_then(|result| own.layers.get(&result).copied());
            }
            surveys.into_iter().map(Some).collect()
        }
        None => vec![None; trials.len()],
    };
    report.sweep = (groups.iter().zip(&trials).zip(surveys))
        .map(|((&groups, tried), survey)| tried.report(groups, &loaded.model.graph, survey))
        .collect();
    deliver(&report, View::Inspected, &arguments.graph, None)
}

fn options(loaded: &Loaded, grouping: Grouping, preset: select::Preset) -> Options {
    let mut selection = inspection(grouping);
    selection.preset = preset;
    Options {
        settings: loaded.settings.clone(),
        selection,
        inline: false,
        hoist: true,
        recompute: None,
        // A pin holds no bytes of its own.
        pin: false,
        adapter: None,
        checks: Checks::default(),
    }
}

/// What each preset would rewrite and free; the report has the graph as it is, and `freeable`, already.
fn presets(loaded: &Loaded, grouping: Grouping, report: &mut Report) -> Result<()> {
    let totals = &report.totals;
    let before = totals.saved_bytes_before.clone();
    let mut add = |preset, sites_rewritten, saved_bytes_after: Amount, counted_per_layer| {
        report.presets.push(Preset {
            preset,
            sites_rewritten,
            freed_bytes: &before - &saved_bytes_after,
            saved_bytes_after,
            counted_per_layer,
        });
    };
    add(
        "none",
        0,
        before.clone(),
        totals.counted_per_layer_before.clone(),
    );
    add(
        "freeable",
        totals.sites_rewritten,
        totals.saved_bytes_after.clone(),
        totals.counted_per_layer_after.clone(),
    );
    for (name, preset) in [
        ("value", select::Preset::Value),
        ("down", select::Preset::Down),
        ("paper", select::Preset::Paper),
        ("all", select::Preset::All),
    ] {
        let (outcome, saved_bytes_after) = rewritten(loaded, grouping, preset)?;
        let sites = outcome.decisions.iter().filter(|d| d.rewritten()).count();
        let counted = per_layer::after(&outcome.before, &outcome.decisions);
        add(name, sites, saved_bytes_after, counted);
    }
    Ok(())
}

/// A rewritten graph, and the bytes that it saves for backward.
fn rewritten(
    loaded: &Loaded,
    grouping: Grouping,
    preset: select::Preset,
) -> Result<(Outcome, Amount)> {
    let outcome = rewrite(&loaded.model, &options(loaded, grouping, preset))?;
    let bytes = saved_bytes(&Analyses::new(&outcome.ran.model, &loaded.settings)?);
    Ok((outcome, bytes))
}

/// The numbers of groups to compare.
fn tried(arguments: &InspectArguments, analyses: &Analyses) -> Vec<i64> {
    let Some(sweep) = &arguments.sweep else {
        return Vec::new();
    };
    if !sweep.0.is_empty() {
        return sweep.0.clone();
    }
    let sites = analyses.sites.sites.iter();
    let widest = sites.map(|site| site.features).max().unwrap_or(0);
    let powers = (0..62).map(|power| 1i64 << power);
    powers.take_while(|&groups| groups <= widest).collect()
}

/// A graph rewritten with one grouping.
struct Tried {
    selected: Outcome,
    saved_bytes: Amount,
    all: Outcome,
}

impl Tried {
    fn new(loaded: &Loaded, grouping: Grouping) -> Result<Tried> {
        let (selected, saved_bytes) = rewritten(loaded, grouping, select::Preset::Freeable)?;
        let (all, _) = rewritten(loaded, grouping, select::Preset::All)?;
        Ok(Tried {
            selected,
            saved_bytes,
            all,
        })
    }

    /// The decisions about layers that are rewritten where everything is that can be, and what their
    /// contractions make.
    fn results<'a>(&'a self, graph: &'a Graph) -> impl Iterator<Item = (&'a Decision, String)> {
        let decisions = self.all.decisions.iter().filter(|d| d.rewritten());
        decisions.filter_map(|decision| Some((decision, result(graph, decision)?)))
    }

    fn report(&self, groups: i64, graph: &Graph, survey: Option<Survey>) -> Trial {
        let decisions = self.selected.decisions.iter();
        let layers = self.results(graph).filter_map(|(decision, result)| {
            let fidelity = *survey.as_ref()?.layers.get(&result)?;
            let param = graph.value(decision.parameter).name.clone();
            Some((param, label(graph, decision.node), fidelity))
        });
        Trial {
            groups,
            sites_rewritten: decisions.filter(|d| d.rewritten()).count(),
            saved_bytes_after: self.saved_bytes.clone(),
            layers: layers.collect(),
            fidelity: survey.as_ref().map(|survey| survey.total),
        }
    }
}

fn label(graph: &Graph, node: NodeId) -> String {
    graph.node(node).label(graph)
}

/// The name of what a contraction makes.
fn result(graph: &Graph, decision: &Decision) -> Option<String> {
    let value = decision.site.as_ref()?.result(graph)?;
    Some(graph.value(value).name.clone())
}

/// Measures the fidelity of graphs on a batch; also gives the number of samples.
fn measure(
    arguments: &InspectArguments,
    data: &Path,
    loaded: &Loaded,
    analyses: &Analyses,
    tried: &[&Tried],
) -> Result<(Vec<Survey>, usize)> {
    let name = &loaded.name;
    if already_rewritten(&loaded.model) {
        bail!(
            "{name} is already rewritten: fidelity is measured against exact gradients, so inspect the original"
        );
    }
    let source = &arguments.graph.source;
    let folder = (!crate::cli::is_stream(&source.model)).then(|| folder_of(&source.model));
    let halves = (&analyses.roles, &analyses.partition);
    let (settings, given) = (&loaded.settings, &arguments.batch);
    let inputs = read_inputs(data, given, &loaded.model, folder, halves, &settings.sizes);
    let inputs = inputs.with_context(|| name.clone())?;
    for note in inputs.notes.iter().filter(|_| !source.quiet) {
        eprintln!("velora-opt: {note}");
    }
    let cpu = Cpu::new(0).context("cannot start threads")?;
    let bench = |model| Bench {
        model,
        folder,
        inputs: &inputs,
        cpu: &cpu,
    };
    let sized = Settings {
        sizes: inputs.bound.sizes.clone(),
        ..settings.clone()
    };
    let types = shapes(&loaded.model, &sized)?;
    let variants: Vec<Variant<'_>> = (tried.iter())
        .map(|tried| Variant {
            selected: bench(&tried.selected.ran.model),
            all: bench(&tried.all.ran.model),
            results: tried
                .results(&loaded.model.graph)
                .map(|(_, name)| name)
                .collect(),
        })
        .collect();
    let surveys = survey(&bench(&loaded.model), analyses, &types, &variants);
    Ok((surveys.with_context(|| name.clone())?, inputs.bound.size))
}
