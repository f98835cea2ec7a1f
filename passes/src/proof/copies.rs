//! Forward nodes that are computed again: that each copy computes what its original does, and the graph without
//! them.
//!
//! Values are numbered: two nodes that are functions of their operands, with the same operator and attributes,
//! make the same values where their operands have the same numbers, seen through pins. A node marked as a copy has
//! to share its numbers with a forward node of the original, or with a view. Its marks do not say which: they decide
//! between nodes that have just been shown to make the same values, and word what is said of a copy that makes others.
//!
//! A proven copy is undone: what reads it reads the original, and it is gone. What is left is a graph without
//! copies, for the rest of the proof.

use super::gradients::{Factors, Gradient};
use super::{Difference, at};
use prost::Message;
use std::cell::OnceCell;
use std::collections::{HashMap, HashSet};
use velora_graph::analysis::Analyses;
use velora_graph::analysis::buffers::is_view;
use velora_graph::analysis::partition::{Half, is_copy};
use velora_graph::analysis::recompute::may_recompute;
use velora_graph::ir::{Graph, GraphError, Model, Node, NodeId, Patch, ValueId};
use velora_graph::onnx::schema::AttributeProto;

/// What became of a graph's copies.
pub struct Copies {
    /// How many are what they are marked as.
    pub proven: usize,
    /// What is wrong with the others.
    pub differences: Vec<Difference>,
    /// The model without those that are proven; `None` where there is no such graph.
    pub undone: Option<Undone>,
}

/// A model whose copies are undone.
pub struct Undone {
    /// The model.
    pub model: Model,
    /// By node of it: the same node with the copies there.
    nodes: Vec<NodeId>,
}

/// Proves the copies of a rewritten graph; `None` where it has none.
pub fn undo(old: &Graph, analyses: &Analyses, rewritten: &Model) -> Option<Copies> {
    let new = &rewritten.graph;
    if !{ new.order().iter() }.any(|&id| is_copy(new.node(id))) {
        return None;
    }
    let makers = [old, new].map(makers);
    let original = |id| original(new, &makers[0], id);
    // What stands for a node of the original is that node, whatever its marks say.
    let copies: HashSet<NodeId> = (new.order().iter().copied())
        .filter(|&id| is_copy(new.node(id)) && original(id).is_none())
        .collect();
    if copies.is_empty() {
        return None;
    }
    // What has been indexed has an order.
    let order = new.topological_order().unwrap_or_default();
    let classes = Classes::new(rewritten, &order, |id| {
        original(id).map(|id| analyses.partition.half(id))
    });
    let prover = Prover {
        old,
        new,
        makers,
        copies,
        classes,
        labels: OnceCell::new(),
    };
    Some(prover.prove(&order, rewritten))
}

/// By name of a value: the node that makes it.
fn makers(graph: &Graph) -> HashMap<&str, NodeId> {
    let mut makers = HashMap::new();
    for &id in graph.order() {
        for &value in graph.node(id).outputs.iter().flatten() {
            makers.insert(graph.value(value).name.as_str(), id);
        }
    }
    makers
}

/// The node of the original that makes a value of the name of one that a node makes.
fn original(new: &Graph, makers: &HashMap<&str, NodeId>, id: NodeId) -> Option<NodeId> {
    let mut made = new.node(id).outputs.iter().flatten();
    made.find_map(|&v| makers.get(new.value(v).name.as_str()).copied())
}

/// What a node computes, but for its operands' values.
#[derive(PartialEq, Eq, Hash)]
struct Key<'g> {
    operator: (&'g str, &'g str, &'g str),
    /// As encoded, which tells -0 from 0 and one NaN from another.
    attributes: Vec<u8>,
    /// By operand: the number of its value.
    operands: Vec<Option<ValueId>>,
    /// By output: whether it is there. Some operators compute otherwise without one.
    outputs: Vec<bool>,
}

/// Nodes that make the same values.
#[derive(Default)]
struct Class {
    /// The outputs of the first of them, which number the values.
    outputs: Vec<Option<ValueId>>,
    /// The first forward node or view of the original among them, in the file's order.
    original: Option<NodeId>,
    /// Whether it is not the only one.
    several: bool,
}

struct Classes {
    all: Vec<Class>,
    /// By node: its class, where it is a function of its operands.
    of: Vec<Option<usize>>,
    /// By node: whether it is a forward node or a view of the original.
    originals: Vec<bool>,
    /// By value: its number.
    numbers: Vec<ValueId>,
}

impl Classes {
    /// `original` says which half a node of the original belongs to.
    fn new(model: &Model, order: &[NodeId], original: impl Fn(NodeId) -> Option<Half>) -> Classes {
        let graph = &model.graph;
        let functions = model.shell.functions.iter();
        // Nothing is known of what a file defines itself.
        let own: HashSet<(&str, &str)> = functions
            .map(|f| (standard(f.domain()), f.name()))
            .collect();
        let mut classes = Classes {
            all: Vec::new(),
            of: vec![None; graph.node_count()],
            originals: vec![false; graph.node_count()],
            numbers: graph.values().collect(),
        };
        let mut known: HashMap<Key<'_>, usize> = HashMap::new();
        for &id in order {
            let node = graph.node(id);
            // A pin hands on what it gets: that is shown elsewhere, of pins that are not the original's.
            if let Some((read, made)) = gate(graph, id)
                && original(id).is_none()
            {
                classes.numbers[made.index()] = classes.number(read);
                continue;
            }
            if !may_recompute(node) || own.contains(&(node.domain(), node.op())) {
                continue;
            }
            let number = |value: &Option<ValueId>| value.map(|v| classes.number(v));
            let key = Key {
                operator: (node.domain(), node.op(), node.proto.overload()),
                attributes: encoded(&node.proto.attribute),
                operands: node.inputs.iter().map(number).collect(),
                outputs: node.outputs.iter().map(Option::is_some).collect(),
            };
            let place = *known.entry(key).or_insert_with(|| {
                classes.all.push(Class {
                    outputs: node.outputs.clone(),
                    ..Class::default()
                });
                classes.all.len() - 1
            });
            classes.of[id.index()] = Some(place);
            let Classes { all, numbers, .. } = &mut classes;
            for (&made, &number) in node.outputs.iter().zip(&all[place].outputs) {
                if let (Some(made), Some(number)) = (made, number) {
                    numbers[made.index()] = number;
                }
            }
        }
        for &id in graph.order() {
            // A view hands on the bytes of what is computed again, in whichever half it does so.
            let may_be = match original(id) {
                Some(Half::Forward) => true,
                Some(_) => is_view(graph.node(id)),
                None => false,
            };
            if let Some(place) = classes.of[id.index()].filter(|_| may_be) {
                classes.originals[id.index()] = true;
                let class = &mut classes.all[place];
                class.several = class.original.is_some();
                class.original.get_or_insert(id);
            }
        }
        classes
    }

    /// The number of a value.
    fn number(&self, value: ValueId) -> ValueId {
        self.numbers[value.index()]
    }

    /// Whether a node is one of the original that makes what another makes.
    fn is_original_of(&self, original: NodeId, id: NodeId) -> bool {
        let same = self.of[original.index()] == self.of[id.index()];
        same && self.originals[original.index()]
    }
}

/// The name of a domain; the standard one has two.
fn standard(domain: &str) -> &str {
    match domain {
        "ai.onnx" => "",
        domain => domain,
    }
}

/// What a pin hands on, and under which name, where a node is the one that does.
fn gate(graph: &Graph, id: NodeId) -> Option<(ValueId, ValueId)> {
    let node = graph.node(id);
    let (Some(&Some(read)), &[Some(made)]) = (node.inputs.first(), &node.outputs[..]) else {
        return None;
    };
    let is_gate = (node.velora_op(), node.op()) == (Some("Pin"), "Reshape");
    is_gate.then_some((read, made))
}

fn encoded(attributes: &[AttributeProto]) -> Vec<u8> {
    let encoded = attributes
        .iter()
        .map(Message::encode_length_delimited_to_vec);
    encoded.flatten().collect()
}

struct Prover<'a> {
    old: &'a Graph,
    new: &'a Graph,
    /// By name of a value: the node of the original that makes it, and that of the rewritten graph.
    makers: [HashMap<&'a str, NodeId>; 2],
    copies: HashSet<NodeId>,
    classes: Classes,
    /// By label: the nodes of the rewritten graph that are no copies.
    labels: OnceCell<HashMap<String, NodeId>>,
}

impl Prover<'_> {
    /// The node of the original that a node stands for, by the names of what they make.
    fn original(&self, id: NodeId) -> Option<NodeId> {
        original(self.new, &self.makers[0], id)
    }

    fn prove(&self, order: &[NodeId], rewritten: &Model) -> Copies {
        let new = self.new;
        let mut differences = Vec::new();
        let mut wrong: HashSet<NodeId> = HashSet::new();
        let mut patch = Patch::new("proof", "copies undone");
        // By value: what is read in its place. Pins are seen through: they follow a schedule that may run a copy
        // before its original, for which others would wait in vain.
        let mut instead: Vec<ValueId> = new.values().collect();
        for &id in order {
            let node = new.node(id);
            if let Some((read, made)) = gate(new, id)
                && self.original(id).is_none()
            {
                instead[made.index()] = instead[read.index()];
            }
            if !self.copies.contains(&id) {
                continue;
            }
            let problem = match self.target(id) {
                _ if self.is_handed_on(id) => Some(at(
                    new,
                    id,
                    "",
                    "is marked as computed again, and what it makes leaves the graph or is read by a nested one",
                )),
                Some(original) => {
                    let outputs = node.outputs.iter().zip(&new.node(original).outputs);
                    for (made, original) in outputs {
                        if let (&Some(made), &Some(original)) = (made, original) {
                            instead[made.index()] = original;
                        }
                    }
                    None
                }
                // Of what a wrong copy leads to nothing more can be said.
                None if { node.inputs.iter().flatten() }.any(|&v| self.is_made_by(v, &wrong)) => {
                    wrong.insert(id);
                    continue;
                }
                None => Some(self.explain(id)),
            };
            if let Some(problem) = problem {
                wrong.insert(id);
                differences.push(problem);
            }
        }
        let removed: HashSet<NodeId> = self.copies.difference(&wrong).copied().collect();
        for &id in &removed {
            patch.remove(id);
        }
        for value in new.values().filter(|v| instead[v.index()] != *v) {
            for (reader, slot) in new.reads(value) {
                let name = &new.value(instead[value.index()]).name;
                patch.redirect(reader, slot, name.clone());
            }
        }
        let undone = match removed.is_empty() {
            true => None,
            false => match rewritten.clone().apply(&patch) {
                Ok(model) => Some(Undone {
                    model,
                    nodes: { new.order().iter().copied() }
                        .filter(|id| !removed.contains(id))
                        .collect(),
                }),
                Err(error) => {
                    differences.push(circular(&error));
                    None
                }
            },
        };
        Copies {
            proven: removed.len(),
            differences,
            undone,
        }
    }

    /// Whether something else than an operand of a node is what a copy makes.
    fn is_handed_on(&self, id: NodeId) -> bool {
        let mut made = self.new.node(id).outputs.iter().flatten();
        made.any(|&value| {
            let value = self.new.value(value);
            value.is_output || value.users.iter().any(|user| user.slot.is_none())
        })
    }

    fn is_made_by(&self, value: ValueId, nodes: &HashSet<NodeId>) -> bool {
        let maker = self.new.producer(self.new.unpinned(value));
        maker.is_some_and(|id| nodes.contains(&id))
    }

    /// The node of the original that a copy stands for. Of several that make the same it is the one that the
    /// copy's readers read in the original, or else the one whose label it has.
    fn target(&self, id: NodeId) -> Option<NodeId> {
        let class = &self.classes.all[self.classes.of[id.index()]?];
        let first = class.original?;
        if !class.several {
            return Some(first);
        }
        let labelled = || {
            let label = self.new.node(id).metadata("velora.origin")?;
            let node = self.labels().get(label).copied();
            node.filter(|&node| self.classes.is_original_of(node, id))
        };
        let read = self.read_before(id);
        read.or_else(labelled).or(Some(first))
    }

    /// The first node that makes what a copy makes, and that a reader of the copy reads in the original.
    fn read_before(&self, id: NodeId) -> Option<NodeId> {
        let (old, new) = (self.old, self.new);
        let made = new.node(id).outputs.iter().flatten();
        let mut reads = made.flat_map(|&value| new.reads(value)).map(|read| {
            let behind = gate(new, read.0).and_then(|(_, gated)| new.reads(gated).next());
            behind.unwrap_or(read)
        });
        reads.find_map(|(reader, slot)| {
            let [before, after] = &self.makers;
            let made = new.node(reader).outputs.iter().flatten().next()?;
            let reader = *before.get(new.value(*made).name.as_str())?;
            let read = old.node(reader).inputs.get(slot).copied().flatten()?;
            let node = after.get(old.value(read).name.as_str()).copied()?;
            self.classes.is_original_of(node, id).then_some(node)
        })
    }

    /// By label: the nodes that are no copies, the first of each.
    fn labels(&self) -> &HashMap<String, NodeId> {
        self.labels.get_or_init(|| {
            let nodes = self.new.order().iter().rev();
            { nodes.filter(|id| !self.copies.contains(id)) }
                .map(|&id| (self.new.node(id).label(self.new), id))
                .collect()
        })
    }

    /// Says what is wrong with a copy, beside the node that it is marked as a copy of.
    fn explain(&self, id: NodeId) -> Difference {
        let new = self.new;
        let copy = new.node(id);
        let name = |value: Option<ValueId>| match value {
            Some(value) => new.value(new.unpinned(value)).name.as_str(),
            None => "",
        };
        let made = name(copy.outputs.iter().flatten().next().copied());
        let wrong = |tensor: &str, problem: String| at(new, id, tensor, problem);
        if self.classes.of[id.index()].is_none() {
            let problem =
                "is marked as computed again, and is not known to make the same each time";
            return wrong(made, problem.to_owned());
        }
        let label = copy.metadata("velora.origin").unwrap_or_default();
        let Some(&of) = self.labels().get(label) else {
            let problem =
                "is marked as computed again, and no forward node of the original computes it";
            return wrong(made, problem.to_owned());
        };
        let node = new.node(of);
        if let Some(problem) = differs(node, copy) {
            return wrong(
                made,
                format!("is marked as a copy of '{label}', and {problem}"),
            );
        }
        for (slot, (&was, &is)) in node.inputs.iter().zip(&copy.inputs).enumerate() {
            let number = |value: Option<ValueId>| value.map(|v| self.classes.number(v));
            if number(was) != number(is) {
                let problem = format!(
                    "is operand {slot} of a node marked as a copy of '{label}', which reads '{}' there",
                    name(was)
                );
                return wrong(name(is), problem);
            }
        }
        let problem =
            format!("is marked as a copy of '{label}', which is no forward node of the original");
        wrong(made, problem)
    }
}

/// How two nodes differ in what does not depend on their operands' values.
fn differs(was: &Node, is: &Node) -> Option<String> {
    if (was.domain(), was.op(), was.proto.overload()) != (is.domain(), is.op(), is.proto.overload())
    {
        return Some(format!("that is of the operator {}", was.op()));
    }
    let there = |values: &[Option<ValueId>]| values.iter().map(Option::is_some).collect::<Vec<_>>();
    if there(&was.outputs) != there(&is.outputs) || there(&was.inputs) != there(&is.inputs) {
        return Some("that has other operands or outputs".to_owned());
    }
    for attribute in &was.proto.attribute {
        let name = attribute.name();
        let other = is.attribute(name).map(Message::encode_to_vec);
        if other != Some(attribute.encode_to_vec()) {
            return Some(format!("has another value of its attribute '{name}'"));
        }
    }
    let same = was.proto.attribute.len() == is.proto.attribute.len();
    (!same).then(|| "has an attribute more".to_owned())
}

/// Of nested graphs that capture what a pin hands on, and wait for what reads the copy of what they lead to.
fn circular(error: &GraphError) -> Difference {
    Difference {
        node: String::new(),
        op: String::new(),
        tensor: String::new(),
        problem: format!("is no graph once nothing is computed again: {error}"),
    }
}

impl Undone {
    /// Puts the ids of the graph with its copies in the places of those of this one.
    pub fn restore(&self, gradients: &mut [Gradient], with_copies: &Graph) {
        let graph = &self.model.graph;
        let names = with_copies.values();
        let names: HashMap<&str, ValueId> = names
            .map(|v| (with_copies.value(v).name.as_str(), v))
            .collect();
        // All values of this graph are values of the other: it only lacks some.
        let value = |value: ValueId| names[graph.value(value).name.as_str()];
        for gradient in gradients {
            gradient.node = self.nodes[gradient.node.index()];
            let Factors {
                z,
                v,
                direction,
                reconstructed,
                ..
            } = &mut gradient.factors;
            for id in [z, v, direction].into_iter().chain(reconstructed) {
                *id = value(*id);
            }
        }
    }
}
