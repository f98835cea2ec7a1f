//! That a rewritten graph is the original but for its weight gradients, shown from the two graphs alone.
//!
//! The claim: every node of the original that stands is the same message and reads the same values, seen
//! through pins; the only nodes gone are those that made a weight gradient and those that led to nothing
//! else; every node marked as a forward node that is computed again computes what one does, and stands for
//! it; every other new node is marked as the tool's and feeds nothing but the new weight gradients. Hence
//! every value that no rewritten gradient feeds is computed by the same operations from the same inputs.
//!
//! It is an analysis of its own: it looks at what the passes wrote, not at what they meant to write, and
//! takes from the rewrite only the sites of the original and the bodies of the operators.

mod compare;
mod copies;
mod direction;
mod expanded;
mod factors;
mod gradients;
mod masks;
mod pins;
mod surroundings;
mod transposes;

pub use direction::{DirectionState, direction_state};
pub use gradients::{Factors, Form, Gradient};

use crate::pipeline::shapes;
use compare::Seen;
use std::collections::{HashMap, HashSet};
use std::path::Path;
use transposes::Forms;
use velora_graph::analysis::buffers::Buffers;
use velora_graph::analysis::hoist::MASKED;
use velora_graph::analysis::sites::{self, Site};
use velora_graph::analysis::{Analyses, Settings};
use velora_graph::ir::{Graph, Model, Node, NodeId, ValueId};
use velora_graph::shapes::{ShapeErrors, Shapes};

/// One of the two graphs.
#[derive(Clone, Copy, Debug)]
pub struct Side<'a> {
    /// The model.
    pub model: &'a Model,
    /// The folder of its external data.
    pub folder: Option<&'a Path>,
}

impl<'a> Side<'a> {
    fn graph(&self) -> &'a Graph {
        &self.model.graph
    }
}

/// Something that a rewrite may not do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    /// The node's label; empty where no node is at fault.
    pub node: String,
    /// The node's operator, with its domain; empty with the node.
    pub op: String,
    /// The tensor, where one is at fault.
    pub tensor: String,
    /// What is wrong with it, as a clause that follows their names.
    pub problem: String,
}

impl std::fmt::Display for Difference {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match (self.node.as_str(), self.tensor.as_str()) {
            ("", "") => write!(f, "the file {}", self.problem),
            ("", tensor) => write!(f, "tensor '{tensor}' {}", self.problem),
            (node, "") => write!(f, "node '{node}' ({}) {}", self.op, self.problem),
            (node, tensor) => write!(
                f,
                "node '{node}' ({}), tensor '{tensor}': {}",
                self.op, self.problem
            ),
        }
    }
}

/// What the comparison of two graphs found.
#[derive(Clone, Debug, Default)]
pub struct Proof {
    /// Nodes of the original that stand in the rewritten graph.
    pub same: usize,
    /// Of those, how many a pass marked because it moved them.
    pub moved: usize,
    /// Nodes of the original that are gone.
    pub removed: usize,
    /// New nodes, without those of pins.
    pub added: usize,
    /// Nodes of pins.
    pub pins: usize,
    /// Nodes that compute a forward node of the original again; they are not among the new ones.
    pub copies: usize,
    /// The weight gradients that are made otherwise.
    pub gradients: Vec<Gradient>,
    /// What speaks against the claim; it holds where there is nothing.
    pub differences: Vec<Difference>,
}

/// Compares a rewritten graph with its original.
///
/// `analyses` are the original's, made with `settings`.
pub fn prove(
    original: Side<'_>,
    analyses: &Analyses,
    rewritten: Side<'_>,
    settings: &Settings,
) -> Proof {
    let Some(copies) = copies::undo(original.graph(), analyses, rewritten.model) else {
        return without_copies(original, analyses, rewritten, settings);
    };
    let mut proof = match &copies.undone {
        Some(undone) => {
            let side = Side {
                model: &undone.model,
                folder: rewritten.folder,
            };
            let mut proof = without_copies(original, analyses, side, settings);
            undone.restore(&mut proof.gradients, rewritten.graph());
            proof
        }
        None => without_copies(original, analyses, rewritten, settings),
    };
    proof.copies = copies.proven;
    proof.differences.splice(..0, copies.differences);
    if proof.differences.is_empty() {
        // Declarations of what the copies make are not in the graph that has just been looked at.
        let shapes = shapes(rewritten.model, settings);
        proof.differences.extend(contradictions(shapes.err()));
    }
    proof
}

/// The same for a graph in which nothing is computed again.
fn without_copies(
    original: Side<'_>,
    analyses: &Analyses,
    rewritten: Side<'_>,
    settings: &Settings,
) -> Proof {
    let (old, new) = (original.graph(), rewritten.graph());
    let mut makers = HashMap::new();
    for &id in new.order() {
        for &value in new.node(id).outputs.iter().flatten() {
            makers.insert(new.value(value).name.as_str(), id);
        }
    }
    let found = &analyses.sites.sites;
    let mut prover = Prover {
        original,
        rewritten,
        // Pins of the original would be nodes like others.
        forms: [
            Forms::new(old, |value| value),
            Forms::new(new, |value| new.unpinned(value)),
        ],
        makers,
        results: (found.iter())
            .filter_map(|site| match &site.form {
                sites::Form::Weight(weight) => Some((weight.result, site)),
                sites::Form::Scale(scale) => Some((scale.result, site)),
                sites::Form::Reconstructed => None,
            })
            .collect(),
        products: found.iter().map(|site| (site.product, site)).collect(),
        matched: vec![false; new.node_count()],
        derived: HashSet::new(),
        found: Vec::new(),
        proof: Proof::default(),
    };
    let (ways, problems) = factors::ways(old, analyses, new, &settings.hints);
    prover.proof.differences.extend(problems);
    let missing = prover.nodes();
    let missing = prover.factored(&ways, missing);
    prover.missing(&missing);
    let shapes = shapes(rewritten.model, settings);
    prover.added(shapes.as_ref().ok());
    let read = gradients::Rewritten {
        graph: new,
        buffers: Buffers::new(new),
        matched: &prover.matched,
    };
    for found in &prover.found {
        match gradients::read(old, analyses, &read, found) {
            Ok(gradient) => prover.proof.gradients.push(gradient),
            Err(difference) => prover.proof.differences.push(difference),
        }
    }
    let Proof {
        gradients,
        differences,
        ..
    } = &mut prover.proof;
    expanded::check((old, analyses), &read, gradients, differences);
    surroundings::check(original, rewritten, &ways, differences);
    // They come last: whatever else is wrong is nearer to the cause.
    differences.extend(contradictions(shapes.err()));
    prover.proof
}

/// What speaks against a graph by itself.
fn contradictions(errors: Option<ShapeErrors>) -> impl Iterator<Item = Difference> {
    let errors = errors.into_iter().flat_map(|ShapeErrors(errors)| errors);
    errors.map(|error| Difference {
        node: error.node,
        op: error.op,
        tensor: error.tensor,
        problem: format!("{}, but {}", error.found, error.other),
    })
}

/// A weight gradient that the rewritten graph makes otherwise, before it is understood.
struct Found<'a> {
    site: &'a Site,
    form: Form,
    /// The node of the original that makes dW.
    node_before: NodeId,
    /// The node of the rewritten graph that makes it, or P.
    node: NodeId,
    /// v in the rewritten graph, where it leaves with P.
    direction: Option<ValueId>,
}

struct Prover<'a> {
    original: Side<'a>,
    rewritten: Side<'a>,
    /// What is a transposition of what, in the one and in the other.
    forms: [Forms; 2],
    /// By name of a value: the node of the rewritten graph that makes it.
    makers: HashMap<&'a str, NodeId>,
    /// By the node that makes dW: the site.
    results: HashMap<NodeId, &'a Site>,
    /// By product: the site.
    products: HashMap<NodeId, &'a Site>,
    /// By node of the rewritten graph: whether it is one of the original's.
    matched: Vec<bool>,
    /// Reads of the original whose twins read the same value through other transpositions.
    derived: HashSet<(NodeId, usize)>,
    found: Vec<Found<'a>>,
    proof: Proof,
}

/// Whether a node is one that the tool added or marked.
fn is_marked(node: &Node) -> bool {
    let entries = &node.proto.metadata_props;
    node.velora_op().is_some() || entries.iter().any(|e| e.key().starts_with("velora."))
}

/// A difference at a node.
fn at(graph: &Graph, id: NodeId, tensor: &str, problem: impl Into<String>) -> Difference {
    let node = graph.node(id);
    Difference {
        node: node.label(graph),
        op: match node.domain() {
            "" => node.op().to_owned(),
            domain => format!("{domain}.{}", node.op()),
        },
        tensor: tensor.to_owned(),
        problem: problem.into(),
    }
}

impl<'a> Prover<'a> {
    /// Looks for every node of the original, and returns those that are not there.
    fn nodes(&mut self) -> Vec<NodeId> {
        let (old, new) = (self.original.graph(), self.rewritten.graph());
        let mut missing = Vec::new();
        let mut without_outputs = Vec::new();
        for &id in old.order() {
            let first = old.node(id).outputs.iter().flatten().next();
            let Some(&first) = first else {
                without_outputs.push(id);
                continue;
            };
            match self.makers.get(old.value(first).name.as_str()) {
                Some(&twin) => self.compare(id, twin),
                None => missing.push(id),
            }
        }
        // What makes nothing has no name but its message.
        for id in without_outputs {
            let twin = new.order().iter().copied().find(|&twin| {
                !self.matched[twin.index()]
                    && new.node(twin).outputs.iter().flatten().next().is_none()
                    && self.same(id, twin, None).is_ok()
            });
            match twin {
                Some(twin) => self.accept(id, twin, vec![]),
                None => missing.push(id),
            }
        }
        missing
    }

    /// Compares two nodes but for what is read at a place; returns the operands that are the same only through
    /// transpositions.
    fn same(&self, id: NodeId, twin: NodeId, but: Option<usize>) -> Result<Vec<usize>, Difference> {
        let [before, after] = self.seen();
        compare::nodes(before, id, after, twin, but)
    }

    fn seen(&self) -> [Seen<'_>; 2] {
        let [before, after] = &self.forms;
        let seen = |side, forms| Seen { side, forms };
        [seen(self.original, before), seen(self.rewritten, after)]
    }

    fn accept(&mut self, id: NodeId, twin: NodeId, derived: Vec<usize>) {
        self.derived
            .extend(derived.into_iter().map(|slot| (id, slot)));
        self.matched[twin.index()] = true;
        self.proof.same += 1;
        let (was, is) = (
            self.original.graph().node(id),
            self.rewritten.graph().node(twin),
        );
        self.proof.moved += usize::from(is_marked(is) && !is_marked(was));
    }

    /// Compares a node with the one that makes the value of its name.
    fn compare(&mut self, id: NodeId, twin: NodeId) {
        let (old, new) = (self.original.graph(), self.rewritten.graph());
        if self.matched[twin.index()] {
            let name = new.node(twin).label(new);
            let problem = format!("is made by '{name}', which makes more than it did");
            self.proof.differences.push(at(old, id, "", problem));
            return;
        }
        let mut difference = match self.same(id, twin, None) {
            Ok(derived) => return self.accept(id, twin, derived),
            Err(difference) => difference,
        };
        let [before, after] = self.seen();
        if compare::transposes(before, id, after, twin) {
            return self.accept(id, twin, vec![0]);
        }
        if masks::masked(old, id, new, twin)
            && let Ok(derived) = self.same(id, twin, Some(MASKED))
        {
            self.accept(id, twin, derived);
            self.proof.moved += 1;
            return;
        }
        if let Some(&site) = self.products.get(&id)
            && self.reads_ours(twin, site.slot)
        {
            match self.same(id, twin, Some(site.slot)) {
                Ok(derived) => {
                    self.accept(id, twin, derived);
                    self.found.push(Found {
                        site,
                        form: Form::Reconstructed,
                        node_before: id,
                        node: twin,
                        direction: None,
                    });
                    return;
                }
                Err(other) => difference = other,
            }
        }
        if let Some(&site) = self.results.get(&id)
            && is_marked(new.node(twin))
        {
            if new.node(twin).outputs.len() != 1 {
                let problem = "stands for a weight gradient, and makes other values too";
                self.proof.differences.push(at(new, twin, "", problem));
            }
            self.found.push(Found {
                site,
                form: Form::Factored,
                node_before: id,
                node: twin,
                direction: None,
            });
            return;
        }
        // The node named is the original's; where an unmarked node took its place, it says so.
        self.proof.differences.push(difference);
        self.matched[twin.index()] = !is_marked(new.node(twin));
    }

    /// Whether a node of the rewritten graph reads, at a place, what a new node makes.
    fn reads_ours(&self, node: NodeId, slot: usize) -> bool {
        let new = self.rewritten.graph();
        let read = new.node(node).inputs.get(slot).copied().flatten();
        let maker = read.and_then(|value| new.producer(new.unpinned(value)));
        maker.is_some_and(|id| is_marked(new.node(id)))
    }

    /// Judges the nodes that are gone: they led to rewritten weight gradients and nowhere else.
    fn missing(&mut self, missing: &[NodeId]) {
        let (old, new) = (self.original.graph(), self.rewritten.graph());
        let everywhere = reached(old, &|_, _, value| Some(value));
        let replaced: HashMap<NodeId, Option<usize>> = (self.found.iter())
            .map(|found| match found.form {
                Form::Factored | Form::Factors => (found.node_before, None),
                Form::Reconstructed => (found.node_before, Some(found.site.slot)),
            })
            .collect();
        let needed = reached(old, &|node, slot, value| {
            let gone = match replaced.get(&node) {
                Some(None) => true,
                Some(&Some(x)) => slot == Some(x),
                None => false,
            };
            let derived = slot.is_some_and(|slot| self.derived.contains(&(node, slot)));
            match derived {
                // It reads the same through other transpositions, or none.
                true => Some(self.forms[0].of(value).base),
                false => Some(value),
            }
            .filter(|_| !gone)
        });
        self.proof.removed += self.found.len();
        for found in &self.found {
            self.proof.removed -= usize::from(found.form == Form::Reconstructed);
        }
        for &id in missing {
            if everywhere[id.index()] && !needed[id.index()] {
                self.proof.removed += 1;
                continue;
            }
            let made = old.node(id).outputs.iter().flatten().next();
            let tensor = made.map_or("", |&v| old.value(v).name.as_str());
            let name = old.node(id).proto.name();
            let namesake = (new.order().iter())
                .find(|&&twin| !name.is_empty() && new.node(twin).proto.name() == name);
            let problem = match namesake {
                Some(&twin) => {
                    let outputs = new.node(twin).outputs.iter().flatten();
                    let outputs: Vec<&str> = outputs.map(|&v| new.value(v).name.as_str()).collect();
                    self.matched[twin.index()] = true;
                    format!("is made no longer; the node makes {}", outputs.join(", "))
                }
                None => {
                    "is missing, and more than rewritten weight gradients depends on it".to_owned()
                }
            };
            self.proof.differences.push(at(old, id, tensor, problem));
        }
    }

    /// Judges the nodes of the rewritten graph that the original does not have.
    fn added(&mut self, shapes: Option<&Shapes>) {
        let new = self.rewritten.graph();
        for &id in new.order() {
            if self.matched[id.index()] {
                continue;
            }
            let node = new.node(id);
            if node.velora_op() == Some("Pin") {
                self.proof.pins += 1;
                let checked = shapes.map(|shapes| pins::check(new, shapes, id));
                self.proof.differences.extend(checked.and_then(Result::err));
            } else if is_marked(node) {
                self.proof.added += 1;
            } else {
                let problem = "is not in the original, and carries no mark of this tool";
                self.proof.differences.push(at(new, id, "", problem));
            }
        }
    }
}

/// By node: whether an output depends on it, where `follows` says what to go on from for a read: by the node, which of
/// its inputs (`None` for a capture), and the value.
fn reached(
    graph: &Graph,
    follows: &dyn Fn(NodeId, Option<usize>, ValueId) -> Option<ValueId>,
) -> Vec<bool> {
    let mut reached = vec![false; graph.node_count()];
    let maker = |value: ValueId| graph.producer(value);
    let mut pending: Vec<NodeId> = { graph.outputs().iter() }
        .filter_map(|&value| maker(value))
        .collect();
    while let Some(id) = pending.pop() {
        if std::mem::replace(&mut reached[id.index()], true) {
            continue;
        }
        let node = graph.node(id);
        let inputs = node.inputs.iter().enumerate();
        let reads = inputs.filter_map(|(slot, value)| Some((Some(slot), (*value)?)));
        let reads = reads.chain(node.captures.iter().map(|&value| (None, value)));
        let behind = reads.filter_map(|(slot, value)| follows(id, slot, value));
        pending.extend(behind.filter_map(maker));
    }
    reached
}
