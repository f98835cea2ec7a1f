//! The plan that keeps a bound.

use super::{Plan, Planner, Point};
use crate::pipeline::JobError;
use thiserror::Error;
use velora_graph::ir::{NodeId, ValueId};

/// What is asked of a plan.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Goal {
    /// The most bytes that may be alive at once; `None`: as few as the other bounds allow.
    pub peak: Option<i64>,
    /// By how much a step may take longer, as a part of what it takes now.
    pub slowdown: Option<f64>,
    /// Nothing approximate.
    pub exact: bool,
}

/// Where neither bound is given, and while an exact plan is looked for, a step may take so much longer.
pub const SLOWDOWN: f64 = 0.05;

/// A plan, and what it comes to.
#[derive(Clone, Debug, PartialEq)]
pub struct Found {
    /// The plan.
    pub plan: Plan,
    /// What it comes to.
    pub point: Point,
}

/// Why there is no plan.
#[derive(Debug, Error)]
pub enum PlanError {
    /// A model that cannot be handled.
    #[error(transparent)]
    Job(#[from] JobError),
    /// A bound that no plan keeps.
    #[error("no plan keeps the bound: the smallest peak found is {} bytes", .least.point.peak)]
    Impossible {
        /// The plan with the smallest peak.
        least: Box<Found>,
    },
    /// A bound that is kept by plans that take too long.
    #[error("no plan that is fast enough keeps the bound")]
    Slow {
        /// The fastest that keeps it.
        fastest: Box<Found>,
    },
}

/// How often the work between two plans is halved.
const HALVINGS: usize = 5;

impl Planner<'_> {
    /// The plan that keeps a goal's bounds: of those that do, the one that takes least time; an exact one where there
    /// is one that takes no more than [`SLOWDOWN`] longer (or what the goal says). Without a bound on the peak,
    /// the plan with the lowest peak among those that are fast enough.
    ///
    /// # Errors
    /// [`PlanError`] where there is none.
    pub fn find(&self, goal: &Goal) -> Result<Found, PlanError> {
        let before = self.before()?;
        let within = |slowdown: f64| before.seconds * (1.0 + slowdown);
        let preferred = within(goal.slowdown.unwrap_or(SLOWDOWN));
        let Some(peak) = goal.peak else {
            return Ok(self.lowest(goal.exact, preferred)?);
        };
        let exact = self.fastest(true, peak)?;
        if let Ok(found) = &exact
            && found.point.seconds <= preferred
        {
            return Ok(found.clone());
        }
        let mut tried = vec![exact];
        if !goal.exact {
            tried.push(self.fastest(false, peak)?);
        }
        let seconds = |found: &Found| found.point.seconds;
        let kept = tried.iter().filter_map(|found| found.as_ref().ok());
        let fastest = kept.min_by(|a, b| seconds(a).total_cmp(&seconds(b)));
        let least = tried.iter().filter_map(|found| found.as_ref().err());
        let least = least.min_by_key(|found| found.point.peak);
        match (fastest, least) {
            (Some(found), _) if goal.slowdown.is_none() || seconds(found) <= preferred => {
                Ok(found.clone())
            }
            (Some(found), _) => Err(PlanError::Slow {
                fastest: Box::new(found.clone()),
            }),
            (None, Some(least)) => Err(PlanError::Impossible {
                least: Box::new(least.clone()),
            }),
            // One of the two there is for each that was tried.
            (None, None) => Ok(self.found(self.nothing(goal.exact))?),
        }
    }

    fn found(&self, plan: Plan) -> Result<Found, JobError> {
        let point = self.measure(&plan)?;
        Ok(Found { plan, point })
    }

    /// The plan with the lowest peak among those that take no longer.
    fn lowest(&self, exact: bool, seconds: f64) -> Result<Found, JobError> {
        let plans = self.frontier(exact);
        let mut best = self.found(self.nothing(exact))?;
        // Along the frontier time grows.
        let (mut low, mut high) = (0usize, plans.len());
        while low < high {
            let middle = low.midpoint(high);
            let found = self.found(plans[middle].clone())?;
            if found.point.seconds > seconds {
                high = middle;
                continue;
            }
            low = middle + 1;
            if found.point.peak <= best.point.peak {
                best = found;
            }
        }
        let Some(beyond) = plans.get(high) else {
            return Ok(best);
        };
        let fits = |found: &Found| found.point.seconds <= seconds;
        let (fits, _) = self.between(&best.plan, beyond, fits)?;
        Ok(match fits {
            Some(found) if found.point.peak < best.point.peak => found,
            _ => best,
        })
    }

    /// The plan of the least time that keeps a peak, or else the one with the smallest peak.
    fn fastest(&self, exact: bool, peak: i64) -> Result<Result<Found, Found>, JobError> {
        let first = self.found(self.nothing(exact))?;
        if first.point.peak <= peak {
            return Ok(Ok(first));
        }
        let mut least = first;
        let mut failed = least.plan.clone();
        let mut passed_over: Vec<Plan> = Vec::new();
        for choice in self.choices(exact) {
            // What is saved is alive when the halves meet.
            if choice.saved > peak {
                failed = choice.into();
                passed_over.push(failed.clone());
                continue;
            }
            let found = self.found(choice.into())?;
            if found.point.peak <= peak {
                // Less of it may do.
                let above = |found: &Found| found.point.peak > peak;
                let (_, kept) = self.between(&failed, &found.plan, above)?;
                return Ok(Ok(match kept {
                    Some(part) if part.point.seconds < found.point.seconds => part,
                    _ => found,
                }));
            }
            failed.clone_from(&found.plan);
            if found.point.peak < least.point.peak {
                least = found;
            }
        }
        for plan in passed_over {
            let found = self.found(plan)?;
            if found.point.peak < least.point.peak {
                least = found;
            }
        }
        Ok(Err(least))
    }

    /// Plans between two: the second's work is added to the first node by node, the earliest first, whose tensors
    /// live longest, and the number of nodes is halved between one of which `below` holds and one of which it does
    /// not. Returns the last of either kind.
    fn between(
        &self,
        from: &Plan,
        to: &Plan,
        below: impl Fn(&Found) -> bool,
    ) -> Result<(Option<Found>, Option<Found>), JobError> {
        let more = self.more(from, to);
        let (mut low, mut high) = (0usize, more.len());
        let (mut last_below, mut last_above) = (None, None);
        for _ in 0..HALVINGS {
            let middle = low.midpoint(high);
            if middle == low || middle == high {
                break;
            }
            let found = self.found(self.part(from, to, &more[..middle]))?;
            match below(&found) {
                true => (low, last_below) = (middle, Some(found)),
                false => (high, last_above) = (middle, Some(found)),
            }
        }
        Ok((last_below, last_above))
    }

    /// So many plans between two, evenly spaced in nodes.
    pub fn steps(&self, from: &Plan, to: &Plan, count: usize) -> Vec<Plan> {
        let more = self.more(from, to);
        let steps = (1..=count).map(|step| more.len() * step / (count + 1));
        steps
            .map(|nodes| self.part(from, to, &more[..nodes]))
            .collect()
    }

    /// The nodes that a plan computes again beyond another, in the order of the forward half.
    fn more(&self, from: &Plan, to: &Plan) -> Vec<NodeId> {
        let order = self.graph().order().iter();
        let more = |id: &&NodeId| to.recompute.contains(id) && !from.recompute.contains(id);
        order.filter(more).copied().collect()
    }

    /// A plan, and some of the work of another that does more. What both compress stays compressed, and what only
    /// the first does unless it is computed again.
    fn part(&self, from: &Plan, to: &Plan, more: &[NodeId]) -> Plan {
        let mut recompute = from.recompute.clone();
        recompute.extend(more);
        let again = |tensor: &ValueId| {
            let producer = self.graph().producer(*tensor);
            producer.is_some_and(|id| recompute.contains(&id))
        };
        let kept = from.compress.iter().filter(|tensor| !again(tensor));
        let compress = kept.chain(&to.compress).copied().collect();
        Plan {
            recompute,
            compress,
        }
    }
}
