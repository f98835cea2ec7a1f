//! Makes any runtime keep the order that frees memory.
//!
//! ONNX has no control edges, and a runtime sorts the graph anew: with ONNX Runtime's default order a
//! rewritten graph keeps every activation until its compressed form is first read, and saves nothing.
//! A *pin* is a dependence that changes no value: an empty int64 vector made from a tensor t (a slice
//! of no rows, cast, summed over all other axes) is concatenated to a shape of zeros, with which a
//! `Reshape` hands a tensor y on as it is (0 keeps an axis, and the empty vector adds none); what
//! reads y now cannot run before t exists.
//!
//! Which pins matter is found by sorting the graph as runtimes do (`runtime.rs`) and comparing the
//! live bytes with those of the file's order, the *schedule*. Where a runtime's peak is higher, some
//! tensor is alive that the schedule has freed or not yet made:
//!
//! - made too early: its producer waits for the node that precedes it in the schedule and that this
//!   runtime runs later;
//! - freed too late: the node that follows its last reader in the schedule and that this runtime runs
//!   earlier waits for that reader.
//!
//! What is [computed again](crate::recompute) in the backward half is pinned from the start: a copy reads what the
//! node reads that it is a copy of, and a runtime that merges equal nodes would make one of the two and save
//! what it makes. Behind a pin their operands differ.
//!
//! Every pin follows the schedule, so no cycle can arise, and rounds end: in the worst case they fix
//! the order completely.

mod emit;
mod runtime;

use emit::emit;
use runtime::{Order, Simulation};
use std::collections::BTreeSet;
use velora_graph::analysis::lifetimes::Sizes;
use velora_graph::analysis::partition::is_copy;
use velora_graph::analysis::recompute::cost::{Class, class};
use velora_graph::ir::{Graph, Node, NodeId, Patch};
use velora_graph::shapes::Shapes;

/// The name of the pass.
pub const NAME: &str = "pin";

/// How far above the schedule's peak a runtime's peak may stay, as a fraction of it.
const SLACK: f64 = 0.01;

/// A tensor smaller than this fraction of the peak is not worth a pin of its own.
const WORTH: f64 = 0.002;

/// The same as a multiple of the peak over the number of nodes. In a deep graph every tensor is a small fraction of
/// the peak: of some ten nodes one makes a tensor that is saved, so that this is less than half of a common one.
const WORTH_NODES: f64 = 4.0;

/// Rounds end before this in practice; a bound for graphs that nobody has seen.
const ROUNDS: usize = 200;

/// `waiter` may not run before `awaited`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Dependence {
    /// The node that waits.
    pub waiter: NodeId,
    /// The node that it waits for.
    pub awaited: NodeId,
}

/// The patch that adds the pins that matter for the order in which the nodes are listed.
pub fn pin(graph: &Graph, shapes: &Shapes, sizes: &Sizes) -> Patch {
    let (pins, above) = dependences(graph, shapes, sizes);
    let reason = format!(
        "{} dependences; the highest peak of the orders tried is {:.1} % above the schedule's",
        pins.len(),
        100.0 * above
    );
    emit(graph, shapes, &pins, reason)
}

/// The dependences that keep the simulated runtimes within the slack of the listed order, and how far
/// the highest of their peaks stays above the schedule's, as a fraction of it.
pub fn dependences(graph: &Graph, shapes: &Shapes, sizes: &Sizes) -> (BTreeSet<Dependence>, f64) {
    let mut simulation = Simulation::new(graph, sizes);
    let mut plan = simulation.plan();
    let bound = plan.allowed as f64;
    plan.allowed += (bound * SLACK) as i64;
    let share = WORTH_NODES / graph.node_count().max(1) as f64;
    plan.worth = (bound * WORTH.min(share)) as i64;
    let can = |d: &Dependence| {
        emit::waits(graph, shapes, d.waiter) && emit::awaited(graph, shapes, d.awaited)
    };
    let mut pins = BTreeSet::new();
    for dependence in copies(graph, can) {
        pins.insert(dependence);
        simulation.add(dependence);
    }
    let mut highest = 0;
    for _ in 0..ROUNDS {
        let mut added = false;
        highest = 0;
        for order in Order::all() {
            let run = simulation.sort(order);
            let (peak, wanted) = simulation.violations(&plan, &run, can);
            highest = highest.max(peak);
            for dependence in wanted {
                if pins.insert(dependence) {
                    simulation.add(dependence);
                    added = true;
                }
            }
        }
        if !added {
            break;
        }
    }
    let above = (highest as f64 / bound.max(1.0) - 1.0).max(0.0);
    (pins, above)
}

/// Dependences that keep what is computed again apart from what it is a copy of: a copy that reads nothing that is
/// apart yet waits for the last matrix product that is listed before it.
///
/// So does a layer normalisation of which the backward half reads mean and deviation. ONNX Runtime (1.19.2 for
/// training) fuses it with a sum in front of it, and forgets those two; other readers of the sum kept it from that
/// until they read a copy.
fn copies(graph: &Graph, can: impl Fn(&Dependence) -> bool) -> Vec<Dependence> {
    let mut dependences = Vec::new();
    let mut apart = vec![false; graph.node_count()];
    let mut last = None;
    if !graph.order().iter().any(|&id| is_copy(graph.node(id))) {
        return dependences;
    }
    for &id in graph.order() {
        let node = graph.node(id);
        let waits = last.map(|awaited| Dependence {
            waiter: id,
            awaited,
        });
        let waits = waits.filter(&can);
        if is_copy(node) {
            let follows = graph.predecessors(id).any(|p| apart[p.index()])
                && !hands_out_statistics(graph, node);
            apart[id.index()] = follows || waits.is_some();
            dependences.extend(waits.filter(|_| !follows));
        } else if hands_out_statistics(graph, node) {
            dependences.extend(waits);
        } else if class(node) == Class::Products {
            last = Some(id);
        }
    }
    dependences
}

/// Whether a node is a layer normalisation of which more is read than the result.
fn hands_out_statistics(graph: &Graph, node: &Node) -> bool {
    let mut statistics = node.outputs.iter().skip(1).flatten();
    node.op() == "LayerNormalization"
        && statistics.any(|&value| !graph.value(value).users.is_empty())
}
