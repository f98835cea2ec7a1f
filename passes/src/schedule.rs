//! The order of the nodes in the file.
//!
//! A compression runs right behind the tensor that it compresses, and as soon as it can what was moved into
//! the forward half and what needs only a shape. For the rest several [orders](velora_graph::analysis::order) are made, and the one
//! with the lowest peak is taken; of equal ones the one nearest to the file's own.

use velora_graph::analysis::buffers::Buffers;
use velora_graph::analysis::lifetimes::{Sizes, Uses};
use velora_graph::analysis::order::{self, Buffer, Task, TaskError, Tasks};
use velora_graph::analysis::partition::runs_early;
use velora_graph::ir::{Graph, GraphError, NodeId, Patch, ValueId};

/// The name of the pass.
pub const NAME: &str = "schedule";

/// An order of all nodes and its peak.
#[derive(Clone, Debug)]
pub struct Schedule {
    /// Every node once, after what it reads.
    pub order: Vec<NodeId>,
    /// The peak of the live bytes, at the sizes given.
    pub peak: i64,
}

/// The best order found for a graph.
///
/// # Errors
/// [`GraphError::Cycle`] where there is no order at all.
pub fn schedule(graph: &Graph, buffers: &Buffers, sizes: &Sizes) -> Result<Schedule, GraphError> {
    let given = graph.topological_order()?;
    // Numbers in the order given lead from what is read to what reads it, and the sizes can be summed
    // up: that is what `topological_order` and `Sizes` promise.
    #[allow(clippy::expect_used)]
    let tasks = tasks(graph, buffers, sizes, &given).expect("nodes in a topological order");
    let found = order::order(&tasks);
    Ok(Schedule {
        order: found.order.into_iter().map(|task| given[task]).collect(),
        peak: found.peak,
    })
}

/// The patch that lists the nodes in an order.
pub fn reorder(graph: &Graph, schedule: &Schedule) -> Patch {
    let mut patch = Patch::new(NAME, "nodes in the order with the lowest peak found");
    if schedule.order != graph.order() {
        patch.reorder(schedule.order.clone());
    }
    patch
}

/// Runs as soon as it can: compressions and what was moved into the forward half, so that their inputs can
/// die, and what reads only a shape.
fn is_eager(graph: &Graph, id: NodeId) -> bool {
    let node = graph.node(id);
    runs_early(node) || node.domain().is_empty() && matches!(node.op(), "Shape" | "Size")
}

/// The nodes as tasks, numbered by their places in an order, in which each comes after what it reads.
///
/// # Errors
/// [`TaskError`] where that is no such order.
pub fn tasks(
    graph: &Graph,
    buffers: &Buffers,
    sizes: &Sizes,
    given: &[NodeId],
) -> Result<Tasks, TaskError> {
    let mut place = vec![0usize; graph.node_count()];
    for (index, id) in given.iter().enumerate() {
        place[id.index()] = index;
    }
    let uses = Uses::new(graph, buffers);
    let mut tasks = Tasks::default();
    let mut number: Vec<Option<usize>> = vec![None; graph.value_count()];
    let mut reads = vec![Vec::new(); given.len()];
    let mut makes = vec![Vec::new(); given.len()];
    for buffer in uses.buffers() {
        let index = tasks.buffer(Buffer {
            bytes: sizes.of(buffer.root).unwrap_or(0),
            lives_to_end: buffer.is_output,
            born_before: false,
        })?;
        number[buffer.root.index()] = Some(index);
        makes[place[buffer.producer.index()]].push(index);
        for reader in uses.readers(buffer) {
            reads[place[reader.index()]].push(index);
        }
    }
    let known = |root: ValueId| number[root.index()].filter(|_| sizes.of(root).is_some());
    let mut overwrites: Vec<Option<(usize, Vec<usize>)>> = vec![None; given.len()];
    for (node, output, over) in uses.overwrites() {
        if let Some(made) = known(output) {
            let over = over.iter().filter_map(|&root| known(root)).collect();
            overwrites[place[node.index()]] = Some((made, over));
        }
    }
    let mut after = Vec::new();
    for (index, &id) in given.iter().enumerate() {
        after.clear();
        after.extend(graph.predecessors(id).map(|node| place[node.index()]));
        let outputs = graph.node(id).outputs.iter().flatten();
        let overwrites = overwrites[index]
            .as_ref()
            .map(|(made, over)| (*made, over.as_slice()));
        tasks.task(Task {
            reads: &reads[index],
            makes: &makes[index],
            after: &after,
            after_is_all: true,
            eager: is_eager(graph, id),
            is_result: { outputs }.any(|&value| graph.value(value).is_output),
            overwrites: overwrites.as_slice(),
        })?;
    }
    Ok(tasks)
}
