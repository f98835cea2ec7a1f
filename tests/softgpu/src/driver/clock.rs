//! Vector clocks: what is known to have finished before what.
//!
//! Every stream is a lane, and the host is where lanes meet. Operations run in the order of their calls, so
//! nothing here decides what happens; it decides what a real device would have been *free* to do.

use std::collections::BTreeMap;

/// A stream, or a branch of one running graph.
pub(crate) type Lane = u32;

/// One operation on a lane; a lane's operations are numbered from 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Moment {
    pub(crate) lane: Lane,
    pub(crate) tick: u64,
}

/// For each lane, the last operation that is known to be over.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Clock(BTreeMap<Lane, u64>);

impl Clock {
    /// From now on, all that `other` knows is known here.
    pub(crate) fn join(&mut self, other: &Clock) {
        for (&lane, &tick) in &other.0 {
            let known = self.0.entry(lane).or_default();
            *known = tick.max(*known);
        }
    }

    /// The next operation of `lane`, with this clock as what comes before it.
    pub(crate) fn advance(&mut self, lane: Lane) -> Moment {
        let tick = self.0.entry(lane).or_default();
        *tick += 1;
        Moment { lane, tick: *tick }
    }

    /// Whether that operation is over, as far as this clock knows.
    pub(crate) fn covers(&self, moment: Moment) -> bool {
        self.0
            .get(&moment.lane)
            .is_some_and(|&tick| tick >= moment.tick)
    }

    /// Whether all that `other` knows is known here.
    pub(crate) fn covers_all(&self, other: &Clock) -> bool {
        other
            .0
            .iter()
            .all(|(&lane, &tick)| tick == 0 || self.covers(Moment { lane, tick }))
    }
}
