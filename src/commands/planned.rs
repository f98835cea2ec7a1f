//! A plan for the whole step, by the bounds on the command line.

use super::Loaded;
use crate::cli::{Level, PlannerArguments};
use crate::report::bytes;
use anyhow::{Result, bail};
use velora_graph::analysis::recompute::cost::Rates;
use velora_passes::pipeline::Options;
use velora_passes::planner::{self, Found, Goal, PlanError, Planner, Point, Subject};

/// What was planned.
#[derive(Clone, Debug)]
pub struct Step {
    /// The model that came in.
    pub before: Point,
    /// The plan.
    pub found: Found,
}

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

/// The options that carry out the plan asked for.
///
/// # Errors
/// Where no plan keeps the bounds.
pub fn options(
    loaded: &Loaded,
    arguments: &PlannerArguments,
    options: &Options,
) -> Result<(Options, Step)> {
    let subject = Subject::new(&loaded.model, options)?;
    let planner = Planner::new(&loaded.model, options, &subject, Rates::default())?;
    let before = planner.before()?;
    let found = match arguments.recompute {
        Some(level) => {
            let Some(plan) = planner.level(level.into(), arguments.exact) else {
                bail!("no repeated blocks were found in the graph; --recompute cheap needs none");
            };
            let point = planner.measure(&plan)?;
            Found { plan, point }
        }
        None => {
            let saving = arguments.target_saving;
            let peak = saving.map(|saving| (before.peak as f64 * (1.0 - saving)) as i64);
            let goal = Goal {
                peak: arguments.budget.or(peak),
                slowdown: arguments.max_slowdown,
                exact: arguments.exact,
            };
            match planner.find(&goal) {
                Ok(found) => found,
                Err(PlanError::Job(error)) => return Err(error.into()),
                Err(PlanError::Impossible { least }) => bail!(
                    "no plan keeps the bound: the smallest peak found is {}",
                    bytes(least.point.peak as u64)
                ),
            }
        }
    };
    Ok((planner.options(&found.plan), Step { before, found }))
}
