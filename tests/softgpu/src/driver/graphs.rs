//! Graphs: operations with what each waits for, and their launch.

use super::Driver;
use super::clock::{Clock, Lane};
use super::codes::{Code, Outcome};
use super::handles::Kind;
use super::races::Op;
use super::work::Work;
use std::sync::Arc;

/// An operation of a graph.
#[derive(Clone, Debug)]
pub(crate) struct Node {
    pub(crate) work: Work,
    /// The nodes that it waits for; they come before it.
    pub(crate) after: Vec<usize>,
    /// The branch of the capture that it was added by.
    pub(crate) lane: u32,
    /// The blocks of memory that it was given addresses of.
    pub(crate) holds: Vec<u64>,
}

/// What a capture makes.
#[derive(Clone, Debug)]
pub(crate) struct Graph {
    nodes: Arc<[Node]>,
    branches: u32,
}

/// A graph that can be launched.
#[derive(Debug)]
pub(crate) struct Exec {
    graph: Graph,
    first_lane: Lane,
    /// What is over when its last launch is.
    last: Clock,
}

impl Driver {
    pub(super) fn add_graph(&mut self, nodes: Vec<Node>, branches: u32) -> usize {
        let handle = self.handles.make(Kind::Graph);
        self.graphs.insert(
            handle,
            Graph {
                nodes: nodes.into(),
                branches,
            },
        );
        handle
    }

    pub(super) fn destroy_graph(&mut self, handle: usize) -> Outcome<()> {
        self.check(handle, Kind::Graph)?;
        self.handles.destroy(handle);
        self.graphs.remove(&handle);
        Ok(())
    }

    /// Nodes of a graph.
    pub(super) fn graph_nodes(&mut self, handle: usize) -> Outcome<usize> {
        self.check(handle, Kind::Graph)?;
        Ok(self
            .graphs
            .get(&handle)
            .map_or(0, |graph| graph.nodes.len()))
    }

    /// `cuGraphInstantiateWithFlags`.
    pub(super) fn instantiate(&mut self, handle: usize, flags: u64) -> Outcome<usize> {
        self.check(handle, Kind::Graph)?;
        // AUTO_FREE_ON_LAUNCH (1) and DEVICE_LAUNCH (4) exclude each other.
        if flags > 15 || flags & 5 == 5 {
            return Err(Code::INVALID_VALUE);
        }
        let Some(graph) = self.graphs.get(&handle).cloned() else {
            return Err(Code::INVALID_HANDLE);
        };
        let first_lane = self.new_lanes(graph.branches);
        let exec = self.handles.make(Kind::GraphExec);
        self.execs.insert(
            exec,
            Exec {
                graph,
                first_lane,
                last: Clock::default(),
            },
        );
        Ok(exec)
    }

    pub(super) fn destroy_exec(&mut self, handle: usize) -> Outcome<()> {
        self.check(handle, Kind::GraphExec)?;
        self.handles.destroy(handle);
        self.execs.remove(&handle);
        Ok(())
    }

    /// `cuGraphUpload`: checks its arguments.
    pub(super) fn upload(&mut self, exec: usize, stream: usize) -> Outcome<()> {
        self.check(exec, Kind::GraphExec)?;
        let key = self.stream_key(stream)?;
        self.not_captured(key, "uploads a graph on a stream that is being captured")
    }

    /// `cuGraphLaunch`.
    pub(super) fn launch_graph(&mut self, handle: usize, stream: usize) -> Outcome<()> {
        self.check(handle, Kind::GraphExec)?;
        let key = self.stream_key(stream)?;
        self.not_captured(key, "launches a graph on a stream that is being captured")?;
        let Some(exec) = self.execs.get(&handle) else {
            return Err(Code::INVALID_HANDLE);
        };
        let (nodes, first_lane, last) =
            (exec.graph.nodes.clone(), exec.first_lane, exec.last.clone());
        if self.faults.launch() {
            self.faults.stop(Code::LAUNCH_FAILED);
        }
        let mut start = self.clock_of(key);
        start.join(&last);
        let mut done: Vec<Clock> = Vec::new();
        let mut end = start.clone();
        for (index, node) in nodes.iter().enumerate() {
            let mut before = start.clone();
            node.after
                .iter()
                .for_each(|&other| before.join(&done[other]));
            let mut after = before.clone();
            let moment = after.advance(first_lane + node.lane);
            let what = format!("{} (node {index} of a graph)", node.work.describe()).into();
            let op = Op {
                moment,
                before,
                what,
            };
            self.run_node(node, &op);
            end.join(&after);
            done.push(after);
        }
        self.finish_graph(key, handle, end);
        Ok(())
    }

    fn run_node(&mut self, node: &Node, op: &Op) {
        if !self.faults.running() {
            return;
        }
        let stale = node
            .holds
            .iter()
            .find(|base| !self.blocks.contains_key(base) && !self.host.has(**base));
        if let Some(base) = stale {
            self.report(format!(
                "stale graph: {} uses memory freed since its capture ({base:#x})",
                op.what
            ));
            return self.faults.stop(Code::ILLEGAL_ADDRESS);
        }
        if let Work::Kernel(kernel) = &node.work
            && !self.modules.contains_key(&kernel.module)
        {
            self.report(format!(
                "stale graph: the module of {} was unloaded",
                op.what
            ));
            return self.faults.stop(Code::LAUNCH_FAILED);
        }
        if self.validate(&node.work).is_err() || self.perform(&node.work, op).is_err() {
            self.faults.stop(Code::ILLEGAL_ADDRESS);
        }
    }

    /// The stream goes on where all nodes have ended.
    fn finish_graph(&mut self, key: usize, exec: usize, mut end: Clock) {
        if let Some(stream) = self.streams.get_mut(&key) {
            end.advance(stream.lane);
            stream.clock = end.clone();
        }
        if let Some(exec) = self.execs.get_mut(&exec) {
            exec.last = end;
        }
    }
}
