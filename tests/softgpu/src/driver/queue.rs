//! Giving operations to streams.

use super::Driver;
use super::clock::Clock;
use super::codes::{Code, Outcome};
use super::races::Op;
use super::streams::LEGACY;
use super::work::Work;

impl Driver {
    /// The next operation of a stream.
    pub(super) fn next_op(&mut self, key: usize, what: &str) -> Op {
        let before = self.clock_of(key);
        let Some(stream) = self.streams.get_mut(&key) else {
            // Callers have looked the stream up; a lane of its own orders the operation with nothing.
            let moment = Clock::default().advance(self.next_lane);
            self.next_lane += 1;
            return Op {
                moment,
                before,
                what: what.into(),
            };
        };
        stream.clock = before.clone();
        let moment = stream.clock.advance(stream.lane);
        Op {
            moment,
            before,
            what: format!("{what} on {}", stream.name).into(),
        }
    }

    /// Runs an operation, or adds it to the graph that the stream builds.
    pub(super) fn submit(&mut self, handle: usize, work: Work) -> Outcome<()> {
        let key = self.stream_key(handle)?;
        if let Some(branch) = self.live_branch(key)? {
            return self.capture_work(key, branch, work);
        }
        if key == LEGACY {
            self.legacy_in_capture()?;
        }
        self.validate(&work)?;
        let launch = matches!(work, Work::Kernel(_) | Work::Matmul(_));
        if launch && self.faults.launch() {
            self.faults.stop(Code::LAUNCH_FAILED);
        }
        let op = self.next_op(key, &work.describe());
        if self.faults.running() {
            self.perform(&work, &op)?;
        }
        // A copy to pageable memory returns when it is complete.
        match work {
            Work::ToHost { to, len, .. } if !self.host.is_pinned(to, len) => {
                let clock = self.clock_of(key);
                self.host_waits(&clock)
            }
            _ => Ok(()),
        }
    }

    /// A copy that is no stream's: on the legacy stream, and complete on return, except that a copy from
    /// pageable memory returns as soon as its source is read.
    pub(super) fn submit_synchronous(&mut self, work: Work) -> Outcome<()> {
        self.unsafe_in_capture("copies synchronously")?;
        let pageable = match work {
            Work::ToDevice { from, len, .. } => !self.host.is_pinned(from, len),
            _ => false,
        };
        if pageable {
            let clock = self.clock_of(LEGACY);
            self.host_waits(&clock)?;
        }
        self.submit(LEGACY, work)?;
        if pageable {
            return Ok(());
        }
        let clock = self.clock_of(LEGACY);
        self.host_waits(&clock)
    }
}
