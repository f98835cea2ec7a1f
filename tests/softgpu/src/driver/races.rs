//! Accesses to a block of memory that nothing orders.

use super::clock::{Clock, Moment};
use crate::touched::{Touch, covers, overlap};
use std::ops::Range;
use std::sync::Arc;

/// One operation on its way to the device: when it runs, what is over by then, and what to call it.
#[derive(Clone, Debug)]
pub(crate) struct Op {
    pub(crate) moment: Moment,
    pub(crate) before: Clock,
    pub(crate) what: Arc<str>,
}

/// An operation that touched a block.
#[derive(Debug)]
struct Access {
    moment: Moment,
    what: Arc<str>,
    reads: Vec<Range<u64>>,
    writes: Vec<Range<u64>>,
}

/// What happened to a block of device memory or pinned host memory.
#[derive(Debug, Default)]
pub(crate) struct History {
    /// The operation that allocated the block, if a stream did.
    pub(crate) born: Option<(Moment, Arc<str>)>,
    /// One more than the highest byte touched, counted from the block's first.
    pub(crate) high_water: u64,
    accesses: Vec<Access>,
}

impl History {
    /// Adds an operation; says why it is wrong if another one may run at the same time.
    pub(crate) fn add(&mut self, op: &Op, touch: Touch) -> Option<String> {
        let mut fault = None;
        if let Some((born, by)) = &self.born
            && !op.before.covers(*born)
        {
            fault = Some(format!(
                "{} uses memory whose allocation by {by} is not ordered before it",
                op.what
            ));
        }
        for access in self
            .accesses
            .iter()
            .filter(|access| !op.before.covers(access.moment))
        {
            let found = overlap(&touch.writes, &access.writes)
                .map(|range| (range, "both write"))
                .or_else(|| {
                    overlap(&touch.writes, &access.reads)
                        .map(|r| (r, "the first writes, the second reads"))
                })
                .or_else(|| {
                    overlap(&touch.reads, &access.writes)
                        .map(|r| (r, "the first reads, the second writes"))
                });
            if let Some((range, how)) = found {
                let (from, to) = (range.start - touch.base, range.end - touch.base);
                fault = fault.or(Some(format!(
                    "stream race: {} and {} are in no order, {how} bytes {from}..{to} of the block at {:#x}",
                    op.what, access.what, touch.base
                )));
            }
        }
        self.high_water = self.high_water.max(touch.end() - touch.base);
        // What this operation is ordered after and covers can only race with what races with this one.
        self.accesses.retain(|old| {
            !(op.before.covers(old.moment)
                && covers(&touch.writes, &old.writes)
                && (covers(&touch.writes, &old.reads) || covers(&touch.reads, &old.reads)))
        });
        let Touch { reads, writes, .. } = touch;
        self.accesses.push(Access {
            moment: op.moment,
            what: op.what.clone(),
            reads,
            writes,
        });
        fault
    }

    /// Forgets what the host has waited for: all later operations come after it.
    pub(crate) fn forget(&mut self, host: &Clock) {
        self.accesses.retain(|access| !host.covers(access.moment));
    }

    /// An operation that the host has not waited for.
    pub(crate) fn running(&self, host: &Clock) -> Option<Arc<str>> {
        self.accesses
            .iter()
            .find(|access| !host.covers(access.moment))
            .map(|access| access.what.clone())
    }
}
