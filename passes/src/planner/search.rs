//! The plan that keeps a bound.

use super::{Plan, Planner, Point};
use crate::pipeline::JobError;
use petgraph::unionfind::UnionFind;
use std::collections::{BTreeMap, BTreeSet};
use thiserror::Error;
use velora_graph::ir::NodeId;

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
        /// The plan with the smallest peak, among those that are not too slow.
        least: Box<Found>,
    },
}

/// Groups of work that are added to a plan one by one are at most so many times halved.
const HALVINGS: usize = 6;

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
        let mut least = match self.fastest(true, peak, preferred)? {
            Ok(found) => return Ok(found),
            Err(least) => least,
        };
        let any = goal.slowdown.map_or(f64::INFINITY, within);
        // What was too slow as an exact plan may be all there is.
        for (exact, seconds) in [(false, preferred), (true, any), (false, any)] {
            if exact != goal.exact && (goal.exact || exact) {
                continue;
            }
            match self.fastest(exact, peak, seconds)? {
                Ok(found) => return Ok(found),
                Err(other) if other.point.peak < least.point.peak => least = other,
                Err(_) => {}
            }
        }
        Err(PlanError::Impossible {
            least: Box::new(least),
        })
    }

    fn found(&self, plan: Plan) -> Result<Found, JobError> {
        let point = self.measure(&plan)?;
        Ok(Found { plan, point })
    }

    /// The plan with the lowest peak among those that take no longer.
    fn lowest(&self, exact: bool, seconds: f64) -> Result<Found, JobError> {
        let plans = self.frontier(exact);
        let mut best = self.found(self.nothing(exact))?;
        let mut beyond = None;
        for plan in plans {
            let found = self.found(plan)?;
            if found.point.seconds > seconds {
                beyond = Some(found.plan);
                break;
            }
            if found.point.peak <= best.point.peak {
                best = found;
            }
        }
        let Some(beyond) = beyond else {
            return Ok(best);
        };
        let fits = |found: &Found| found.point.seconds <= seconds;
        let (fits, _) = self.between(&best.plan, &beyond, fits)?;
        Ok(match fits {
            Some(found) if found.point.peak < best.point.peak => found,
            _ => best,
        })
    }

    /// The plan of the least time that keeps a peak, or the one with the smallest peak.
    fn fastest(
        &self,
        exact: bool,
        peak: i64,
        seconds: f64,
    ) -> Result<Result<Found, Found>, JobError> {
        let first = self.found(self.nothing(exact))?;
        if first.point.peak <= peak {
            return Ok(Ok(first));
        }
        let mut least = first;
        let mut failed = least.plan.clone();
        for plan in self.frontier(exact) {
            let found = self.found(plan)?;
            if found.point.peak <= peak {
                // Less of it may do.
                let keeps = |found: &Found| found.point.peak > peak;
                let (_, kept) = self.between(&failed, &found.plan, keeps)?;
                let best = match kept {
                    Some(part) if part.point.seconds < found.point.seconds => part,
                    _ => found,
                };
                return Ok(match best.point.seconds <= seconds {
                    true => Ok(best),
                    false => Err(least),
                });
            }
            failed.clone_from(&found.plan);
            if found.point.peak < least.point.peak && found.point.seconds <= seconds {
                least = found;
            }
        }
        Ok(Err(least))
    }

    /// Plans between two: the second's work is added to the first group by group, the earliest blocks first, whose
    /// tensors live longest, and the number of groups is halved between one of which `below` holds and one of
    /// which it does not. Returns the last of either kind.
    fn between(
        &self,
        from: &Plan,
        to: &Plan,
        below: impl Fn(&Found) -> bool,
    ) -> Result<(Option<Found>, Option<Found>), JobError> {
        let groups = self.groups(from, to);
        let part = |count: usize| part(from, to, &groups[..count]);
        let (mut low, mut high) = (0usize, groups.len());
        let (mut last_below, mut last_above) = (None, None);
        for _ in 0..HALVINGS {
            let middle = low.midpoint(high);
            if middle == low || middle == high {
                break;
            }
            let found = self.found(part(middle))?;
            match below(&found) {
                true => (low, last_below) = (middle, Some(found)),
                false => (high, last_above) = (middle, Some(found)),
            }
        }
        Ok((last_below, last_above))
    }

    /// So many plans between two, evenly spaced in pieces of work.
    pub fn steps(&self, from: &Plan, to: &Plan, count: usize) -> Vec<Plan> {
        let groups = self.groups(from, to);
        let steps = (1..=count).map(|step| groups.len() * step / (count + 1));
        steps
            .map(|pieces| part(from, to, &groups[..pieces]))
            .collect()
    }

    /// The work that a plan does beyond another, in pieces that belong together, in the order of the forward half.
    fn groups(&self, from: &Plan, to: &Plan) -> Vec<BTreeSet<NodeId>> {
        let graph = &self.model.graph;
        let more: Vec<NodeId> = to.recompute.difference(&from.recompute).copied().collect();
        let numbers: BTreeMap<NodeId, usize> =
            more.iter().enumerate().map(|(at, &id)| (id, at)).collect();
        let mut joined = UnionFind::<usize>::new(more.len());
        for (&id, &number) in &numbers {
            for other in graph.predecessors(id).filter_map(|p| numbers.get(&p)) {
                joined.union(number, *other);
            }
        }
        let labels = joined.into_labeling();
        let mut place = vec![0usize; graph.node_count()];
        for (at, id) in graph.order().iter().enumerate() {
            place[id.index()] = at;
        }
        let mut groups: BTreeMap<usize, BTreeSet<NodeId>> = BTreeMap::new();
        for (&id, &number) in &numbers {
            groups.entry(labels[number]).or_default().insert(id);
        }
        let mut groups: Vec<BTreeSet<NodeId>> = groups.into_values().collect();
        groups.sort_by_key(|group| group.iter().map(|id| place[id.index()]).min());
        groups
    }
}

/// A plan, and some of the work of another that does more.
fn part(from: &Plan, to: &Plan, groups: &[BTreeSet<NodeId>]) -> Plan {
    let mut plan = Plan {
        recompute: from.recompute.clone(),
        compress: to.compress.clone(),
    };
    plan.recompute.extend(groups.iter().flatten());
    plan
}
