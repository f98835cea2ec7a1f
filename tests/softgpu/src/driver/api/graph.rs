//! Graphs.

use super::{Out, api};

api! {
    /// A graph that can be launched.
    Work cuGraphInstantiateWithFlags(exec: Out<usize>, graph: usize, flags: u64) |driver| {
        exec.set(driver.instantiate(graph, flags)?)?
    };
    /// Launches a graph.
    Work cuGraphLaunch(exec: usize, stream: usize) |driver| driver.launch_graph(exec, stream)?;
    /// Prepares a launch.
    Work cuGraphUpload(exec: usize, stream: usize) |driver| driver.upload(exec, stream)?;
    /// The nodes of a graph: here only how many there are.
    Work cuGraphGetNodes(graph: usize, _nodes: Out<usize>, count: Out<usize>) |driver| {
        count.set(driver.graph_nodes(graph)?)?
    };
    /// Ends a graph; what was made of it stays.
    Release cuGraphDestroy(graph: usize) |driver| driver.destroy_graph(graph)?;
    /// Ends a graph that can be launched.
    Release cuGraphExecDestroy(exec: usize) |driver| driver.destroy_exec(exec)?;
}
