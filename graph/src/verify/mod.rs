//! Whether a model keeps the rules of the format.
//!
//! [`verify`] checks an indexed graph and the model around it, [`verify_model`] a model as it was
//! read. Both collect every violation rather than stop at the first, and
//! [`Violations::listing`] prints them in the model's text, each on a comment line under the node
//! (or the head of the graph or function) that it is about.
//!
//! # Invariants
//!
//! **Model.** It has a graph and an `ir_version` of at least 1. No operator set is imported twice
//! and every version is at least 1. The domain of every node of the main graph, nested graphs
//! included, and of every function is imported.
//!
//! **Names.** Every value has one definition in its graph: an input, an initialiser (which may
//! give an input its default), a sparse initialiser or the output of a node. A name that is read
//! is defined in the graph that reads it or in a graph around it; a function's body sees nothing
//! outside itself. A nested graph gives no name to a value of its own that it can see outside; two
//! branches may use the same names. Inputs, outputs and initialisers have names. Before IR
//! version 4 every initialiser is an input.
//!
//! **Order.** A node stands behind the nodes that make what it, or a graph in it, reads. A cycle
//! shows as a breach of this rule.
//!
//! **Graphs.** Inputs and outputs of the main graph have types. Value infos and quantisation
//! annotations name values of their graph, each value once. Graphs nest 32 levels at most.
//!
//! **Nodes.** A node has an operator, and inputs or outputs. A node with an overload calls a
//! function of the model.
//!
//! **Functions.** Domain, name and overload together occur once. Inputs have distinct names and
//! outputs are defined in the body. Attributes are declared once, with or without default. A call
//! gives no more inputs and takes no more outputs than there are. The function imports the domains
//! of its nodes. No function calls itself, directly or through others.
//!
//! **Attributes.** They have names, each once on a node. The type is known, the field that it
//! names is set and no other is; an int, a float or a string may be absent where it is the default,
//! since proto3 writers omit those. An attribute without type (IR version 1) has one field set. A
//! reference to an attribute of the enclosing function stands in a function, names one that it
//! declares, and has no value beside it.
//!
//! **Tensors.** The element type is known. No size is negative and their product fits 64 bits.
//! An external tensor has a location and no payload. Another has its payload in one field, the one
//! for its type, of the length that the sizes ask for. Sparse tensors have values in one axis,
//! int64 indices for each of them, and positive sizes.
//!
//! **Types.** Element types are known, sequences, optionals and maps have content, map keys are
//! integers or strings, no size is negative, and types nest 32 levels at most.
//!
//! **Operators.** Standard operators have a number of inputs and outputs that some version of
//! them has. Those of the domain `ai.velora` (version 1) exist, have exactly their inputs and
//! outputs, and only their attributes, with type and range.
//!
//! # Not checked
//!
//! Types and shapes along the edges (shape inference's task), attributes of other operators,
//! training information and device configurations, and the content of external files (see
//! [`check_external_data`](crate::onnx::read::check_external_data)). The index of a [`Graph`] is
//! built by the crate from the messages, never edited, and needs no check.

mod arity;
mod attributes;
mod functions;
mod graphs;
mod operators;
mod tensors;

use crate::ir::Graph;
use crate::onnx::schema::{FunctionProto, ModelProto, NodeProto, OperatorSetIdProto};
use crate::text::{Part, Place, print_annotated};
use graphs::{GraphRef, Scope};
use std::borrow::Cow;
use std::collections::{HashMap, HashSet};
use std::fmt;

/// No exporter nests graphs or types this deep; a file that does is hostile.
const NESTING_LIMIT: usize = 32;

/// One rule broken at one place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// The line of the model's text that it belongs to.
    pub place: Place,
    /// The place in words: `node 3 'fc1' (Gemm)`.
    pub subject: String,
    /// What is wrong and what was expected.
    pub message: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.subject, self.message)
    }
}

/// Every rule that a model breaks, in the order of its text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violations {
    /// At least one.
    pub list: Vec<Violation>,
}

impl Violations {
    /// The text of the model with a line `# error: …` for each violation. The model is the one that
    /// was verified; where that was an indexed graph, with the graph put back into it.
    pub fn listing(&self, model: &ModelProto) -> String {
        let notes: Vec<_> = (self.list.iter())
            .map(|v| (&v.place, format!("error: {}", v.message)))
            .collect();
        print_annotated(
            model,
            notes.iter().map(|(place, note)| (*place, note.as_str())),
        )
    }
}

/// One violation a line; the first of many.
impl fmt::Display for Violations {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const SHOWN: usize = 20;
        let plural = if self.list.len() == 1 { "" } else { "s" };
        write!(
            f,
            "the model breaks the rules of ONNX at {} place{plural}",
            self.list.len()
        )?;
        for violation in self.list.iter().take(SHOWN) {
            write!(f, "\n  {violation}")?;
        }
        match self.list.len().checked_sub(SHOWN) {
            None | Some(0) => Ok(()),
            Some(more) => write!(f, "\n  and {more} more"),
        }
    }
}

impl std::error::Error for Violations {}

/// Checks an indexed graph and the model around it, whose own graph is not looked at.
///
/// # Errors
/// Everything that breaks an invariant of the [module's list](self).
pub fn verify(model: &ModelProto, graph: &Graph) -> Result<(), Violations> {
    run(model, Some(GraphRef::indexed(graph)))
}

/// Checks a model as it was read.
///
/// # Errors
/// Everything that breaks an invariant of the [module's list](self).
pub fn verify_model(model: &ModelProto) -> Result<(), Violations> {
    run(model, model.graph.as_ref().map(GraphRef::new))
}

fn run<'a>(model: &'a ModelProto, graph: Option<GraphRef<'a>>) -> Result<(), Violations> {
    let mut checker = Checker {
        model,
        functions: functions::Table::new(&model.functions),
        arities: HashMap::new(),
        root: Root::default(),
        scopes: Vec::new(),
        place: Place::default(),
        trail: Vec::new(),
        found: Vec::new(),
    };
    checker.model();
    match &graph {
        Some(graph) => {
            checker.root = Root::new(&model.opset_import, "the model");
            checker.place.part = Part::Graph;
            checker.graph(graph);
        }
        None => checker.report("the model has no graph; expected one"),
    }
    checker.functions();
    if checker.found.is_empty() {
        return Ok(());
    }
    let mut list = checker.found;
    list.sort_by(|a, b| a.place.cmp(&b.place));
    Err(Violations { list })
}

/// A step on the way from the model to what is being checked.
#[derive(Clone, Copy)]
enum Crumb<'a> {
    Function(usize, &'a FunctionProto),
    Node(usize, &'a NodeProto),
    Attribute(&'a str),
}

/// What is common to the main graph and all graphs in it, or to a function and all graphs in it.
#[derive(Default)]
struct Root<'a> {
    /// `the model` or `the function`, which imports the domains.
    importer: &'static str,
    /// The domains imported, sorted: most models have two or three.
    domains: Vec<&'a str>,
    /// Domains that were reported as not imported.
    missing: HashSet<&'a str>,
    /// In a function, the attributes that it declares.
    attributes: Option<HashSet<&'a str>>,
    /// The functions called, by position.
    calls: Vec<usize>,
}

impl<'a> Root<'a> {
    fn new(opsets: &'a [OperatorSetIdProto], importer: &'static str) -> Self {
        let mut domains: Vec<_> = opsets.iter().map(|o| domain(o.domain())).collect();
        domains.sort_unstable();
        Root {
            importer,
            domains,
            ..Default::default()
        }
    }
}

struct Checker<'a> {
    model: &'a ModelProto,
    functions: functions::Table<'a>,
    /// Arities already looked up: a model has many nodes and few operators.
    arities: HashMap<&'a str, Option<[usize; 4]>>,
    root: Root<'a>,
    /// The graph being checked, last, and the graphs around it.
    scopes: Vec<Scope<'a>>,
    place: Place,
    trail: Vec<Crumb<'a>>,
    found: Vec<Violation>,
}

impl<'a> Checker<'a> {
    /// Records a violation at the current place.
    fn report(&mut self, message: impl Into<String>) {
        let mut subject = String::new();
        for crumb in &self.trail {
            if !subject.is_empty() {
                subject.push_str(", ");
            }
            subject.push_str(&match crumb {
                Crumb::Function(i, f) => {
                    format!("function {i} '{}.{}'", short(f.domain()), short(f.name()))
                }
                Crumb::Node(i, node) => describe(*i, node),
                Crumb::Attribute(name) => format!("graph in attribute '{}'", short(name)),
            });
        }
        if subject.is_empty() {
            let graph = self.place.part == Part::Graph;
            subject.push_str(if graph { "graph" } else { "model" });
        }
        self.found.push(Violation {
            place: self.place.clone(),
            subject,
            message: message.into(),
        });
    }

    fn model(&mut self) {
        match self.model.ir_version {
            None => self.report("ir_version is missing; expected a number of at least 1"),
            Some(version) if version < 1 => {
                self.report(format!("ir_version is {version}; expected at least 1"));
            }
            Some(_) => {}
        }
        self.opsets(&self.model.opset_import);
    }

    fn opsets(&mut self, opsets: &'a [OperatorSetIdProto]) {
        let mut seen = HashSet::new();
        for opset in opsets {
            let name = domain(opset.domain());
            if !seen.insert(name) {
                self.report(format!(
                    "operator set '{name}' is imported twice; once is allowed"
                ));
            }
            if opset.version() < 1 {
                let version = opset.version();
                let message = format!(
                    "operator set '{name}' is imported with version {version}; expected at least 1"
                );
                self.report(message);
            }
        }
    }

    /// Reports a domain that the current root does not import, the first time only.
    fn imported(&mut self, name: &'a str) {
        let name = domain(name);
        // The operator sets of files before IR version 3 are implied.
        let implied = self.model.ir_version() < 3 && self.root.domains.is_empty();
        if implied
            || self.root.domains.binary_search(&name).is_ok()
            || !self.root.missing.insert(name)
        {
            return;
        }
        let importer = self.root.importer;
        self.report(format!("{importer} does not import the domain '{name}'"));
    }
}

/// The standard domain has two spellings.
fn domain(name: &str) -> &str {
    match name {
        "ai.onnx" => "",
        name => name,
    }
}

fn describe(index: usize, node: &NodeProto) -> String {
    let op = short(node.op_type());
    match node.name() {
        "" => format!("node {index} ({op})"),
        name => format!("node {index} '{}' ({op})", short(name)),
    }
}

/// A name as other violations than its own quote it: cut, or a long name that many refer to would
/// make messages much larger than the model.
fn short(name: &str) -> Cow<'_, str> {
    const LONGEST: usize = 120;
    match name.char_indices().nth(LONGEST) {
        None => Cow::Borrowed(name),
        Some((end, _)) => Cow::Owned(format!("{}…", &name[..end])),
    }
}
