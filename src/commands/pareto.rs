//! `pareto`: plans between the fastest and the smallest.

use super::{Loaded, planned, reported, warn_of_doubtful, write_reports};
use crate::cli::{Level, ParetoArguments};
use crate::io::print;
use crate::plan_file;
use crate::report::build::Sides;
use crate::report::plan::{Candidate, Estimate, mark, table};
use crate::report::{Report, Style, View};
use crate::settings::selection;
use anyhow::{Context, Result};
use clap::ValueEnum;
use velora_graph::analysis::Analyses;
use velora_passes::manager::Checks;
use velora_passes::pipeline::{Options, optimise};
use velora_passes::planner::{Plan, Planner, Point, Subject};

/// Draws memory against time.
///
/// # Errors
/// Where the file cannot be read or is no training graph, or a report cannot be written.
pub fn run(arguments: &ParetoArguments) -> Result<()> {
    let loaded = Loaded::read(&arguments.graph.source)?;
    let name = &loaded.name;
    let reports = [&arguments.graph.json, &arguments.graph.html];
    loaded.check_spared(reports.into_iter().flatten())?;
    let read = arguments.selection.plan.as_ref();
    let given = read.map(|path| plan_file::Plan::read(path)).transpose()?;
    let options = Options {
        settings: loaded.settings.clone(),
        selection: selection(&arguments.method, &arguments.selection, given)?,
        inline: false,
        hoist: true,
        recompute: None,
        // A pin holds no bytes of its own.
        pin: false,
        adapter: None,
        checks: Checks::default(),
    };
    let (_, rates) = planned::rates(arguments.profile.as_deref())?;
    let subject = Subject::new(&loaded.model, &options).with_context(|| name.clone())?;
    warn_of_doubtful(
        &arguments.graph.source,
        &loaded.model,
        &subject.analyses.roles,
    );
    let planner = Planner::new(&loaded.model, &options, &subject, rates)?;
    let candidates = candidates(&planner, arguments).with_context(|| name.clone())?;
    if reports.into_iter().any(Option::is_some) {
        let outcome = optimise(&loaded.model, &options).with_context(|| name.clone())?;
        let after = Analyses::new(&outcome.ran.model, &loaded.settings)?;
        let sides = Sides::new(&loaded.model, &outcome, &after, &options.selection);
        let report = Report {
            pareto: candidates.clone(),
            ..reported(&loaded, &sides, &arguments.graph)?
        };
        write_reports(&report, View::Inspected, &arguments.graph)?;
    }
    if arguments.graph.source.quiet || arguments.graph.is_streamed() {
        return Ok(());
    }
    let style = Style::of(&std::io::stdout(), arguments.graph.source.verbose);
    print(&table(&candidates, style))
}

/// The plans to choose from, by falling peak.
fn candidates(planner: &Planner<'_>, arguments: &ParetoArguments) -> Result<Vec<Candidate>> {
    let before = planner.before()?;
    let measured = arguments
        .fidelity
        .as_deref()
        .map(planned::cosines)
        .transpose()?;
    let candidate = |name: &str, exact, plan: &Plan, point: Point| Candidate {
        plan: name.to_owned(),
        exact,
        recomputed: plan.recompute.len(),
        compressed: plan.compress.len(),
        estimate: Estimate::from(point),
        peak_ratio: point.peak as f64 / before.peak.max(1) as f64,
        time_ratio: match before.seconds > 0.0 {
            true => point.seconds / before.seconds,
            false => 1.0,
        },
        least_cosine: measured.as_ref().and_then(|measured| {
            let layers = planner.approximated(plan);
            let cosines = layers.filter_map(|layer| measured.get(layer).copied());
            cosines.min_by(f64::total_cmp)
        }),
        pareto: false,
    };
    let mut all = vec![candidate("original", true, &Plan::default(), before)];
    let kinds: &[bool] = if arguments.exact {
        &[true]
    } else {
        &[true, false]
    };
    for &exact in kinds {
        let mut known: Vec<Plan> = Vec::new();
        for (name, plan) in plans(planner, arguments, exact) {
            if known.contains(&plan) {
                continue;
            }
            // Without a compression it is the exact plan of that name.
            if exact || !plan.compress.is_empty() {
                let point = planner.measure(&plan)?;
                all.push(candidate(name, exact, &plan, point));
            }
            known.push(plan);
        }
    }
    mark(&mut all);
    all.sort_by(|a, b| {
        let peaks = b.estimate.peak_bytes.cmp(&a.estimate.peak_bytes);
        peaks.then(a.estimate.seconds.total_cmp(&b.estimate.seconds))
    });
    Ok(all)
}

/// The levels, the cuts, and plans between two of these, some of them perhaps the same.
fn plans(
    planner: &Planner<'_>,
    arguments: &ParetoArguments,
    exact: bool,
) -> Vec<(&'static str, Plan)> {
    let levels = Level::value_variants().iter();
    let levels = levels.filter_map(|&level| {
        let plan = planner.level(level.into(), exact)?;
        Some((level.word(), plan))
    });
    let frontier = planner.frontier(exact);
    let between: Vec<Plan> = frontier
        .windows(2)
        .flat_map(|pair| planner.steps(&pair[0], &pair[1], usize::from(arguments.between)))
        .collect();
    let cuts = frontier.into_iter().map(|plan| ("cut", plan));
    let between = between.into_iter().map(|plan| ("between", plan));
    levels.chain(cuts).chain(between).collect()
}
