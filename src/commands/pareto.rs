//! `pareto`: plans between the fastest and the smallest.

use super::Loaded;
use crate::cli::ParetoArguments;
use crate::report::bytes;
use crate::settings::selection;
use anyhow::{Context, Result};
use velora_graph::analysis::recompute::cost::Rates;
use velora_passes::manager::Checks;
use velora_passes::pipeline::Options;
use velora_passes::planner::{Planner, Subject};

/// Draws memory against time.
///
/// # Errors
/// Where the file cannot be read or is no training graph.
pub fn run(arguments: &ParetoArguments) -> Result<()> {
    let loaded = Loaded::read(&arguments.graph.source)?;
    let name = &loaded.name;
    let options = Options {
        settings: loaded.settings.clone(),
        selection: selection(&arguments.method, &arguments.selection, None)?,
        inline: false,
        hoist: true,
        recompute: None,
        pin: false,
        adapter: None,
        checks: Checks::default(),
    };
    let subject = Subject::new(&loaded.model, &options).with_context(|| name.clone())?;
    let planner = Planner::new(&loaded.model, &options, &subject, Rates::default())?;
    let before = planner.before()?;
    println!(
        "before peak {} saved {} {:.3} s",
        bytes(before.peak as u64),
        bytes(before.saved as u64),
        before.seconds
    );
    for exact in [true, false] {
        for found in planner.points(exact)? {
            let point = found.point;
            println!(
                "{exact} again {} compressed {} peak {} ({:.1}%) saved {} ({:.1}%) time {:.3}",
                found.plan.recompute.len(),
                found.plan.compress.len(),
                bytes(point.peak as u64),
                100.0 * point.peak as f64 / before.peak as f64,
                bytes(point.saved as u64),
                100.0 * point.saved as f64 / before.saved as f64,
                point.seconds / before.seconds
            );
        }
        use velora_passes::planner::Level;
        for level in [Level::Cheap, Level::Layers, Level::Sqrt] {
            if let Some(plan) = planner.level(level, exact) {
                let point = planner.measure(&plan)?;
                println!(
                    "{level:?} {exact} again {} compressed {} peak {} ({:.1}%) saved {} ({:.1}%) time {:.3}",
                    plan.recompute.len(),
                    plan.compress.len(),
                    bytes(point.peak as u64),
                    100.0 * point.peak as f64 / before.peak as f64,
                    bytes(point.saved as u64),
                    100.0 * point.saved as f64 / before.saved as f64,
                    point.seconds / before.seconds
                );
            }
        }
    }
    Ok(())
}
