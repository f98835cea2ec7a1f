//! A plan for the whole step, by the bounds on the command line.

use super::Loaded;
use crate::cli::{Level, PlannerArguments};
use crate::report::plan::{Estimate, StepPlan, planned};
use crate::report::{bytes, percent};
use anyhow::{Context, Result, anyhow, bail};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::BufReader;
use std::path::Path;
use velora_graph::analysis::Analyses;
use velora_graph::analysis::lifetimes::Sizes;
use velora_graph::analysis::recompute::cost::Rates;
use velora_graph::ir::{Model, Origin, ValueId};
use velora_passes::pipeline::{Options, Outcome};
use velora_passes::planner::{self, Found, Goal, PlanError, Planner, Point, Subject};
use velora_passes::select::Selection;
use velora_runtime::session::profile;
use velora_runtime::training::Signature;

impl From<Level> for planner::Level {
    fn from(level: Level) -> Self {
        match level {
            Level::None => planner::Level::None,
            Level::Cheap => planner::Level::Cheap,
            Level::Layers => planner::Level::Layers,
            Level::Sqrt => planner::Level::Sqrt,
        }
    }
}

/// A plan that keeps what the command line asks for.
#[derive(Clone, Debug)]
pub struct Step {
    before: Point,
    found: Found,
    beside: i64,
    rates: (String, Rates),
}

/// The options that carry out the plan asked for; `options` are those without one.
///
/// # Errors
/// Where a file cannot be read, or no plan keeps the bounds.
pub fn options(
    loaded: &Loaded,
    arguments: &PlannerArguments,
    options: &Options,
) -> Result<(Options, Step)> {
    let model = &loaded.model;
    let mut options = options.clone();
    if let (Some(least), Some(path)) = (arguments.min_cosine, &arguments.fidelity) {
        exclude(&mut options.selection, path, least)?;
    }
    let rates = rates(arguments.profile.as_deref())?;
    let subject = Subject::new(model, &options)?;
    let planner = Planner::new(model, &options, &subject, rates.1)?;
    let before = planner.before()?;
    let beside = beside(model, &subject.analyses, &subject.sizes);
    let found = match arguments.recompute {
        Some(level) => {
            let Some(plan) = planner.level(level.into(), arguments.exact) else {
                bail!(
                    "--recompute {}: the graph has no run of equal blocks; --recompute cheap and bounds \
                     (--budget, --target-saving, --max-slowdown) need none",
                    level.word()
                );
            };
            let point = planner.measure(&plan)?;
            Found { plan, point }
        }
        None => {
            let bound = match (arguments.budget, arguments.target_saving) {
                (Some(budget), _) => Some(budget.saturating_sub(beside)),
                (None, Some(saving)) => Some((before.peak as f64 * (1.0 - saving)) as i64),
                (None, None) => None,
            };
            let goal = Goal {
                peak: bound,
                slowdown: arguments.max_slowdown,
                exact: arguments.exact,
            };
            planner.find(&goal).map_err(|error| match error {
                PlanError::Job(error) => error.into(),
                PlanError::Impossible { least } => {
                    impossible(&planner, arguments, &least, beside, bound.unwrap_or(0))
                }
                PlanError::Slow { fastest } => anyhow!(
                    "--max-slowdown: the fastest plan that keeps the bound takes {} of a step's time by the cost model; \
                     {}raise it, or the bound",
                    percent(fastest.point.seconds / before.seconds),
                    if arguments.exact { "allow compression (no --exact), " } else { "" }
                ),
            })?
        }
    };
    let step = Step {
        before,
        found,
        beside,
        rates,
    };
    Ok((planner.options(&step.found.plan), step))
}

/// What a plan came to, for the report.
pub fn report(model: &Model, outcome: &Outcome, step: &Step) -> StepPlan {
    let (name, rates) = &step.rates;
    StepPlan {
        rates: name.clone(),
        before: Estimate::from(step.before),
        after: Estimate::from(step.found.point),
        beside_bytes: step.beside,
        recomputed: step.found.plan.recompute.len(),
        tensors: planned(model, outcome, *rates),
    }
}

/// The smallest step that there is, and what dominates it.
fn impossible(
    planner: &Planner<'_>,
    arguments: &PlannerArguments,
    least: &Found,
    beside: i64,
    bound: i64,
) -> anyhow::Error {
    let shown = |count: i64| bytes(u64::try_from(count).unwrap_or(0));
    let peak = least.point.peak;
    let asked = match (arguments.budget, arguments.target_saving) {
        (Some(budget), _) => format!(
            "--budget {}: a step holds at least {}, of which {} are inputs, weights and the state of AdamW, and {} \
             the smallest peak found",
            shown(budget),
            shown(beside.saturating_add(peak)),
            shown(beside),
            shown(peak)
        ),
        _ => format!(
            "--target-saving: the smallest peak found is {}, and {} are asked for",
            shown(peak),
            shown(bound)
        ),
    };
    let dominates = planner.dominates(&least.plan).unwrap_or_default();
    let dominates: Vec<String> = { dominates.iter().take(3) }
        .map(|(name, count)| format!("'{name}' ({})", shown(*count)))
        .collect();
    let mut hints = Vec::new();
    if arguments.exact {
        hints.push("allow compression (no --exact)");
    }
    hints.push("take a smaller batch (--dim)");
    anyhow!(
        "{asked}; the largest tensors alive there are {}; {}",
        dominates.join(", "),
        hints.join(", or ")
    )
}

/// Bytes that a step holds beside the peak of what it computes: inputs, weights, and the two tensors of the size of
/// each trained parameter that AdamW keeps.
fn beside(model: &Model, analyses: &Analyses, sizes: &Sizes) -> i64 {
    let graph = &model.graph;
    let signature = Signature::new(graph, &analyses.roles);
    let inputs = graph.inputs().iter().copied();
    let inputs: i64 = { inputs }.filter_map(|input| sizes.of(input)).sum();
    let trained = signature.trained.iter().map(|p| graph.inputs()[p.input]);
    let trained: i64 = { trained }.filter_map(|input| sizes.of(input)).sum();
    let stored = |value: &ValueId| matches!(graph.value(*value).origin, Origin::Initializer(_));
    let constants = graph.values().filter(stored);
    let constants: i64 = { constants }.filter_map(|value| sizes.of(value)).sum();
    // Each of the three fits; together they might not.
    let state = trained.saturating_mul(2);
    inputs.saturating_add(constants).saturating_add(state)
}

/// Leaves alone what is further from the exact gradient than is wanted.
fn exclude(selection: &mut Selection, path: &Path, least: f64) -> Result<()> {
    for (param, cosine) in cosines(path)? {
        if cosine < least {
            selection.layers.entry(param).or_default().rewrite = Some(false);
        }
    }
    Ok(())
}

/// By parameter: the cosine of its approximate gradient with the exact one, the smaller one where it has two.
///
/// # Errors
/// Where the file is no report in which they were measured.
pub fn cosines(path: &Path) -> Result<BTreeMap<String, f64>> {
    #[derive(Deserialize)]
    struct Cosine {
        cosine: Option<f64>,
    }
    #[derive(Deserialize)]
    struct Layer {
        param: String,
        fidelity: Option<Cosine>,
    }
    #[derive(Deserialize)]
    struct Report {
        layers: Vec<Layer>,
    }
    let report: Report = parse(path).with_context(|| {
        format!(
            "{}: expected a report of `inspect --data D --json F`",
            path.display()
        )
    })?;
    if report.layers.iter().all(|layer| layer.fidelity.is_none()) {
        bail!(
            "{}: no layer's fidelity was measured; expected a report of `inspect --data D --json F`",
            path.display()
        );
    }
    let mut measured: BTreeMap<String, f64> = BTreeMap::new();
    for layer in report.layers {
        // What was not measured is not known to be near enough.
        let cosine = layer.fidelity.and_then(|f| f.cosine).unwrap_or(-1.0);
        let known = measured.entry(layer.param).or_insert(cosine);
        *known = known.min(cosine);
    }
    Ok(measured)
}

/// What a machine does in a second, and how that is called: by a profile, else by default.
///
/// # Errors
/// Where the profile cannot be read.
pub fn rates(path: Option<&Path>) -> Result<(String, Rates)> {
    #[derive(Deserialize)]
    struct Other {
        schema: String,
        rates: Measured,
    }
    #[derive(Deserialize)]
    struct Measured {
        products: Option<f64>,
        norms: Option<f64>,
        elementwise: Option<f64>,
        movement: Option<f64>,
    }
    #[derive(Deserialize)]
    struct Trace {
        #[serde(rename = "otherData")]
        other: Other,
    }
    let usual = Rates::default();
    let Some(path) = path else {
        return Ok(("default".to_owned(), usual));
    };
    let place = || {
        format!(
            "{}: expected a profile of `run --profile F`",
            path.display()
        )
    };
    let Other { schema, rates } = parse::<Trace>(path).with_context(place)?.other;
    if schema != profile::SCHEMA {
        bail!("{}, of schema {}", place(), profile::SCHEMA);
    }
    let rate = |measured: Option<f64>, usual: f64| match measured {
        // What no machine does would say nothing of this one.
        Some(rate) if (1.0..1e18).contains(&rate) => rate,
        _ => usual,
    };
    let rates = Rates {
        products: rate(rates.products, usual.products),
        norms: rate(rates.norms, usual.norms),
        elementwise: rate(rates.elementwise, usual.elementwise),
        movement: rate(rates.movement, usual.movement),
    };
    Ok((path.display().to_string(), rates))
}

fn parse<T: for<'d> Deserialize<'d>>(path: &Path) -> Result<T> {
    let file = File::open(path).with_context(|| format!("cannot read {}", path.display()))?;
    Ok(serde_json::from_reader(BufReader::new(file))?)
}
