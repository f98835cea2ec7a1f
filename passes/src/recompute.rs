//! Computes forward nodes again in the backward half, in the place of saving what they make.
//!
//! Which ones is [chosen](crate::planner) beforehand. A copy is the node that it is of, with other names: it reads what
//! is saved or what other copies make, so that every value is the same bit for bit, and stands right in front of
//! its first reader. `velora.half = backward` in its metadata says what it is, since by what it reads it could as
//! well run in the forward half: no other pass moves it there, and pins hold it behind the gradients in runtimes
//! that would.
//!
//! **One copy or several.** Readers that are near each other share a copy. A tensor that all layers read (a mask, a
//! table of positions) would be as good as saved if they all shared one: it would live from the first backward
//! layer to the last. So a copy serves readers while no more than eight matrix products lie between one and the
//! next, and the reader after that gets a new one. Copies that matrix products stand behind are not made twice: that
//! would take longer than was bargained for.

use crate::names::Names;
use crate::proto::{metadata, version};
use std::collections::{BTreeSet, HashMap};
use velora_graph::analysis::buffers::{Buffers, is_view};
use velora_graph::analysis::partition::{Half, Partition};
use velora_graph::analysis::recompute::cost::{Class, class};
use velora_graph::analysis::recompute::may_recompute;
use velora_graph::analysis::saved::needs_shape_only;
use velora_graph::ir::{Graph, GraphError, Model, NodeId, Patch, ValueId};
use velora_graph::onnx::schema::NodeProto;

/// The name of the pass.
pub const NAME: &str = "recompute";

/// Readers share a copy while no more matrix products lie between them: about half of what a layer of a transformer
/// has in backward.
const NEAR: usize = 8;

/// The nodes of a list, named by their first outputs.
///
/// # Errors
/// The first name that stands for no forward node that could be computed again, and why.
pub fn listed(
    model: &Model,
    partition: &Partition,
    names: &BTreeSet<String>,
) -> Result<BTreeSet<NodeId>, (String, &'static str)> {
    let graph = &model.graph;
    let calls = calls(model);
    let mut left = names.clone();
    let mut nodes = BTreeSet::new();
    for &id in graph.order() {
        let Some(name) = first(graph, id).filter(|&name| left.remove(name)) else {
            continue;
        };
        let may = may_recompute(graph.node(id)) && !calls.contains(&id);
        let why = match (partition.half(id), may) {
            (Half::Forward, true) => {
                nodes.insert(id);
                continue;
            }
            (Half::Forward, false) => "is made by a node that must not run twice",
            _ => "is not made by the forward half",
        };
        return Err((name.to_owned(), why));
    }
    match left.pop_first() {
        Some(name) => Err((name, "is made by no node of the graph")),
        None => Ok(nodes),
    }
}

/// The nodes that call functions of the model, whatever their domain: those may do anything.
pub fn calls(model: &Model) -> BTreeSet<NodeId> {
    let graph = &model.graph;
    let functions = model.shell.functions.iter();
    let functions: BTreeSet<(&str, &str)> = functions.map(|f| (f.domain(), f.name())).collect();
    let calls = graph.order().iter().copied().filter(|&id| {
        let proto = &graph.node(id).proto;
        functions.contains(&(proto.domain(), proto.op_type()))
    });
    calls.collect()
}

/// The name of a node's first output.
pub fn first(graph: &Graph, node: NodeId) -> Option<&str> {
    let value = graph.node(node).outputs.first().copied().flatten()?;
    Some(&graph.value(value).name)
}

/// The patch that adds the copies, and lets the backward half read them.
///
/// # Errors
/// [`GraphError::Cycle`] where the graph has no order.
pub fn recompute(
    graph: &Graph,
    partition: &Partition,
    again: &BTreeSet<NodeId>,
) -> Result<Patch, GraphError> {
    let buffers = Buffers::new(graph);
    let mut copies = Copies {
        graph,
        partition,
        buffers: &buffers,
        again,
        names: Names::new(graph),
        known: HashMap::new(),
        products: 0,
        made: Vec::new(),
        count: 0,
    };
    let mut patch = Patch::new(NAME, "");
    for id in graph.topological_order()? {
        if partition.half(id) != Half::Backward {
            continue;
        }
        let node = graph.node(id);
        for (slot, value) in node.inputs.iter().enumerate() {
            if let Some(value) = *value
                && !needs_shape_only(node, Some(slot))
                && let Some(name) = copies.of(value)
            {
                patch.redirect(id, slot, name);
            }
        }
        patch.insert_before(id, std::mem::take(&mut copies.made));
        copies.products += usize::from(class(node) == Class::Products);
    }
    patch.reason = format!(
        "{} forward nodes again in the backward half, by {} copies",
        again.len(),
        copies.count
    );
    Ok(patch)
}

/// The copy of a node.
struct Copy {
    /// What its outputs are called, by slot; empty where an optional one is absent.
    outputs: Vec<String>,
    /// The products in front of its last reader.
    used: usize,
    /// Whether a matrix product stands behind it.
    is_dear: bool,
}

struct Copies<'g> {
    graph: &'g Graph,
    partition: &'g Partition,
    buffers: &'g Buffers,
    again: &'g BTreeSet<NodeId>,
    names: Names,
    known: HashMap<NodeId, Copy>,
    /// The products of the backward half so far.
    products: usize,
    /// The copies that stand in front of the reader at hand.
    made: Vec<NodeProto>,
    count: usize,
}

impl Copies<'_> {
    /// The node to copy for a value: what makes it, where the bytes behind it are computed again.
    fn source(&self, value: ValueId) -> Option<NodeId> {
        let maker = self.graph.producer(self.buffers.root(value))?;
        let own = self.graph.producer(value)?;
        // A view of the backward half reads a copy itself.
        let forward = self.partition.half(own) == Half::Forward;
        (forward && self.again.contains(&maker)).then_some(own)
    }

    /// The copy's name for a value; `None` where the value itself is to be read.
    fn of(&mut self, value: ValueId) -> Option<String> {
        let wanted = self.source(value)?;
        // What it reads first; the stack replaces recursion.
        let mut stack = vec![(wanted, false)];
        while let Some((node, ready)) = stack.pop() {
            if self.is_fresh(node) {
                continue;
            }
            if ready {
                self.copy(node);
                continue;
            }
            stack.push((node, true));
            let inputs = self.graph.node(node).inputs.iter().enumerate();
            let behind = inputs.filter(|&(slot, _)| self.is_copied(node, slot));
            let behind = behind.filter_map(|(_, value)| self.source((*value)?));
            stack.extend(behind.map(|node| (node, false)));
        }
        self.name(value)
    }

    /// Whether an input of a copy is one itself: of a view the tensor, not the shape.
    fn is_copied(&self, node: NodeId, slot: usize) -> bool {
        let node = self.graph.node(node);
        !needs_shape_only(node, Some(slot)) && (slot == 0 || !is_view(node))
    }

    /// Whether there is a copy that can still be used.
    fn is_fresh(&mut self, node: NodeId) -> bool {
        let now = self.products;
        let Some(copy) = self.known.get_mut(&node) else {
            return false;
        };
        let fresh = copy.is_dear || now - copy.used <= NEAR;
        if fresh {
            copy.used = now;
        }
        fresh
    }

    /// The name of a value's copy.
    fn name(&self, value: ValueId) -> Option<String> {
        let node = self.source(value)?;
        let outputs = &self.graph.node(node).outputs;
        let slot = outputs.iter().position(|&output| output == Some(value))?;
        self.known.get(&node)?.outputs.get(slot).cloned()
    }

    fn copy(&mut self, id: NodeId) {
        let node = self.graph.node(id);
        let mut proto = self.graph.node_proto(id);
        let mut is_dear = class(node) == Class::Products;
        for (slot, value) in node.inputs.iter().enumerate() {
            let copied = value.filter(|_| self.is_copied(id, slot));
            if let Some(name) = copied.and_then(|value| self.name(value)) {
                let source = copied.and_then(|value| self.source(value));
                let dear = source.and_then(|node| self.known.get(&node));
                is_dear |= dear.is_some_and(|copy| copy.is_dear);
                proto.input[slot] = name;
            }
        }
        for name in proto.output.iter_mut().filter(|name| !name.is_empty()) {
            *name = self.names.fresh(format!("velora.again.{name}"));
        }
        let outputs = proto.output.clone();
        proto.name = outputs.iter().find(|name| !name.is_empty()).cloned();
        proto.metadata_props = vec![
            metadata("half", "backward"),
            metadata("origin", &node.label(self.graph)),
            version(),
        ];
        self.made.push(proto);
        self.count += 1;
        let copy = Copy {
            outputs,
            used: self.products,
            is_dear,
        };
        self.known.insert(id, copy);
    }
}
