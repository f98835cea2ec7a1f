//! Stream capture: streams that build a graph instead of running anything.

use super::Driver;
use super::codes::{Code, Outcome};
use super::graphs::Node;
use super::streams::LEGACY;
use super::work::Work;
use std::collections::BTreeSet;
use std::thread::{self, ThreadId};

/// A graph in the making.
#[derive(Debug)]
pub(crate) struct Capture {
    /// The stream that it began on, and has to end on.
    origin: usize,
    mode: u32,
    thread: ThreadId,
    nodes: Vec<Node>,
    /// Streams that have been part of it.
    branches: u32,
    invalid: bool,
}

/// The part of a stream in a capture.
#[derive(Clone, Debug)]
pub(crate) struct Branch {
    pub(crate) capture: u32,
    /// The nodes that the stream's next node depends on.
    pub(crate) tails: Vec<usize>,
    lane: u32,
}

/// `CU_STREAM_CAPTURE_MODE_RELAXED`.
const RELAXED: u32 = 2;

impl Driver {
    /// `cuStreamBeginCapture`.
    pub(super) fn begin_capture(&mut self, handle: usize, mode: u32) -> Outcome<()> {
        if mode > RELAXED {
            return Err(Code::INVALID_VALUE);
        }
        let key = self.stream_key(handle)?;
        if key == LEGACY {
            self.report("the legacy stream cannot be captured".to_string());
            return Err(Code::CAPTURE_UNSUPPORTED);
        }
        if self.branch(key).is_some() {
            self.report("the stream is being captured already".to_string());
            return Err(Code::ILLEGAL_STATE);
        }
        self.next_capture += 1;
        let id = self.next_capture;
        let thread = thread::current().id();
        let capture = Capture {
            origin: key,
            mode,
            thread,
            nodes: Vec::new(),
            branches: 1,
            invalid: false,
        };
        self.captures.insert(id, capture);
        self.set_branch(
            key,
            Some(Branch {
                capture: id,
                tails: Vec::new(),
                lane: 0,
            }),
        );
        Ok(())
    }

    /// `cuStreamEndCapture`; the graph's handle.
    pub(super) fn end_capture(&mut self, handle: usize) -> Outcome<usize> {
        let key = self.stream_key(handle)?;
        let Some(branch) = self.branch(key) else {
            self.report("the stream is not being captured".to_string());
            return Err(Code::ILLEGAL_STATE);
        };
        let Some(capture) = self.captures.get(&branch.capture) else {
            return Err(Code::UNKNOWN);
        };
        let wrong = if capture.origin != key {
            Some((
                "the capture did not begin on this stream",
                Code::CAPTURE_UNMATCHED,
            ))
        } else if capture.mode != RELAXED && capture.thread != thread::current().id() {
            Some((
                "the capture was begun by another thread",
                Code::CAPTURE_WRONG_THREAD,
            ))
        } else {
            None
        };
        if let Some((why, code)) = wrong {
            self.report(why.to_string());
            self.invalidate(branch.capture);
            return Err(code);
        }
        let unjoined = self.unjoined(&branch);
        for stream in self.streams.values_mut() {
            stream
                .capture
                .take_if(|other| other.capture == branch.capture);
        }
        let Some(capture) = self.captures.remove(&branch.capture) else {
            return Err(Code::UNKNOWN);
        };
        if capture.invalid {
            return Err(Code::CAPTURE_INVALIDATED);
        }
        if let Some(what) = unjoined {
            self.report(format!(
                "the capture ends without joining {what} of a forked stream"
            ));
            return Err(Code::CAPTURE_UNJOINED);
        }
        Ok(self.add_graph(capture.nodes, capture.branches))
    }

    /// A node that the capture's first stream does not wait for.
    fn unjoined(&self, origin: &Branch) -> Option<String> {
        let nodes = &self.captures.get(&origin.capture)?.nodes;
        let mut reached: BTreeSet<usize> = BTreeSet::new();
        let mut open = origin.tails.clone();
        while let Some(node) = open.pop() {
            if reached.insert(node) {
                open.extend(&nodes[node].after);
            }
        }
        let left = (0..nodes.len()).find(|node| !reached.contains(node))?;
        Some(nodes[left].work.describe())
    }

    fn branch(&self, key: usize) -> Option<Branch> {
        self.streams
            .get(&key)
            .and_then(|stream| stream.capture.clone())
    }

    fn set_branch(&mut self, key: usize, branch: Option<Branch>) {
        if let Some(stream) = self.streams.get_mut(&key) {
            stream.capture = branch;
        }
    }

    /// The stream's part in a capture; an error if that capture is invalid already.
    pub(super) fn live_branch(&self, key: usize) -> Outcome<Option<Branch>> {
        let branch = self.branch(key);
        let capture = branch
            .as_ref()
            .and_then(|branch| self.captures.get(&branch.capture));
        match capture {
            Some(capture) if capture.invalid => Err(Code::CAPTURE_INVALIDATED),
            _ => Ok(branch),
        }
    }

    /// 0: not capturing, 1: capturing, 2: capturing, but invalid.
    pub(super) fn capture_status(&mut self, handle: usize) -> Outcome<(i32, u64)> {
        let key = self.stream_key(handle)?;
        if key == LEGACY && self.captures_thread() {
            self.report("asks whether the legacy stream is captured, during a capture".to_string());
            return Err(Code::CAPTURE_IMPLICIT);
        }
        let Some(branch) = self.branch(key) else {
            return Ok((0, 0));
        };
        let invalid = self
            .captures
            .get(&branch.capture)
            .is_some_and(|capture| capture.invalid);
        Ok((1 + i32::from(invalid), u64::from(branch.capture)))
    }

    /// Adds an operation to the graph that a stream builds.
    pub(super) fn capture_work(&mut self, key: usize, branch: Branch, work: Work) -> Outcome<()> {
        let checked = self.capturable(&work).and_then(|()| self.validate(&work));
        if let Err(code) = checked {
            self.invalidate(branch.capture);
            return Err(code);
        }
        let holds = self.blocks_of(&work);
        let Some(capture) = self.captures.get_mut(&branch.capture) else {
            return Err(Code::UNKNOWN);
        };
        capture.nodes.push(Node {
            work,
            after: branch.tails.clone(),
            lane: branch.lane,
            holds,
        });
        let tails = vec![capture.nodes.len() - 1];
        self.set_branch(key, Some(Branch { tails, ..branch }));
        Ok(())
    }

    /// Copies of pageable memory cannot be captured.
    fn capturable(&mut self, work: &Work) -> Outcome<()> {
        let pageable = match *work {
            Work::ToDevice { from, len, .. } => len > 0 && !self.host.is_pinned(from, len),
            Work::ToHost { to, len, .. } => len > 0 && !self.host.is_pinned(to, len),
            _ => false,
        };
        if pageable {
            self.report(format!(
                "{} copies pageable host memory in a capture",
                work.describe()
            ));
            return Err(Code::CAPTURE_UNSUPPORTED);
        }
        Ok(())
    }

    /// A stream waits for an event that was recorded in a capture.
    pub(super) fn join_capture(
        &mut self,
        key: usize,
        branch: Option<Branch>,
        capture: u32,
        nodes: Vec<usize>,
    ) -> Outcome<()> {
        let Some(target) = self.captures.get_mut(&capture) else {
            self.report("the event was recorded in a capture that has ended".to_string());
            return Err(Code::CAPTURED_EVENT);
        };
        match branch {
            None if key == LEGACY => {
                target.invalid = true;
                self.report("the legacy stream would join a capture".to_string());
                Err(Code::CAPTURE_IMPLICIT)
            }
            None => {
                let lane = target.branches;
                target.branches += 1;
                self.set_branch(
                    key,
                    Some(Branch {
                        capture,
                        tails: nodes,
                        lane,
                    }),
                );
                Ok(())
            }
            Some(mut branch) if branch.capture == capture => {
                for node in nodes {
                    if !branch.tails.contains(&node) {
                        branch.tails.push(node);
                    }
                }
                self.set_branch(key, Some(branch));
                Ok(())
            }
            Some(branch) => {
                self.report("two captures would become one".to_string());
                self.invalidate(branch.capture);
                self.invalidate(capture);
                Err(Code::CAPTURE_MERGE)
            }
        }
    }

    fn invalidate(&mut self, capture: u32) {
        if let Some(capture) = self.captures.get_mut(&capture) {
            capture.invalid = true;
        }
    }

    /// Spoils the capture that a stream is part of.
    pub(super) fn invalidate_capture_of(&mut self, key: usize) {
        if let Some(branch) = self.branch(key) {
            self.invalidate(branch.capture);
        }
    }

    /// For what cannot be done with a stream that is being captured.
    pub(super) fn not_captured(&mut self, key: usize, what: &str) -> Outcome<()> {
        if self.live_branch(key)?.is_none() {
            return Ok(());
        }
        self.report(what.to_string());
        self.invalidate_capture_of(key);
        Err(Code::CAPTURE_UNSUPPORTED)
    }

    /// Captures whose mode forbids unsafe calls to this thread.
    fn captures_thread(&self) -> bool {
        let here = thread::current().id();
        self.captures.values().any(|capture| match capture.mode {
            0 => true,
            RELAXED => false,
            _ => capture.thread == here,
        })
    }

    /// For what a capturing thread may not do, with whatever stream: it might wait for work that is not run.
    pub(super) fn unsafe_in_capture(&mut self, what: &str) -> Outcome<()> {
        if !self.captures_thread() {
            return Ok(());
        }
        self.report(format!("{what} while this thread captures a stream"));
        let here = thread::current().id();
        for capture in self.captures.values_mut() {
            capture.invalid |=
                capture.mode == 0 || (capture.mode != RELAXED && capture.thread == here);
        }
        Err(Code::CAPTURE_UNSUPPORTED)
    }

    /// The legacy stream waits for all blocking streams: it cannot while one of them is captured. With others
    /// it can, but what a capturing thread does there is hardly meant to stay outside of the graph.
    pub(super) fn legacy_in_capture(&mut self) -> Outcome<()> {
        let here = thread::current().id();
        let blocking = |id: &u32| {
            let mut streams = self.streams.values();
            streams.any(|stream| {
                stream.blocking
                    && stream
                        .capture
                        .as_ref()
                        .is_some_and(|branch| branch.capture == *id)
            })
        };
        let hit = |(id, capture): (&u32, &Capture)| {
            (capture.thread == here || blocking(id)).then_some(*id)
        };
        let hit: Vec<u32> = self.captures.iter().filter_map(hit).collect();
        if hit.is_empty() {
            return Ok(());
        }
        self.report("uses the legacy stream during a capture that it would wait for".to_string());
        hit.into_iter().for_each(|id| self.invalidate(id));
        Err(Code::CAPTURE_IMPLICIT)
    }
}
