//! Names, scopes and order.

use super::{Checker, Crumb, NESTING_LIMIT, describe, tensors};
use crate::ir::{Graph, ValueId};
use crate::onnx::schema::{GraphProto, NodeProto, ValueInfoProto};
use std::collections::HashSet;
use std::collections::hash_map::{Entry, HashMap};

/// Names of a node's inputs or outputs, in its message or behind an index.
#[derive(Clone, Copy)]
pub(super) enum Names<'a> {
    Message(&'a [String]),
    Indexed(&'a Graph, &'a [Option<ValueId>]),
}

impl<'a> Names<'a> {
    pub(super) fn len(self) -> usize {
        match self {
            Names::Message(names) => names.len(),
            Names::Indexed(_, values) => values.len(),
        }
    }

    /// All names that are not empty.
    pub(super) fn given(self) -> impl Iterator<Item = &'a str> {
        let name = move |index: usize| match self {
            Names::Message(names) => names.get(index).map(String::as_str),
            Names::Indexed(graph, values) => {
                let value = values.get(index).copied().flatten()?;
                Some(graph.value(value).name.as_str())
            }
        };
        (0..self.len()).filter_map(name).filter(|n| !n.is_empty())
    }
}

/// A node whose names may be behind an index.
#[derive(Clone, Copy)]
pub(super) struct NodeRef<'a> {
    pub(super) proto: &'a NodeProto,
    pub(super) inputs: Names<'a>,
    pub(super) outputs: Names<'a>,
}

impl<'a> NodeRef<'a> {
    pub(super) fn new(proto: &'a NodeProto) -> Self {
        NodeRef {
            proto,
            inputs: Names::Message(&proto.input),
            outputs: Names::Message(&proto.output),
        }
    }
}

/// A graph with such nodes.
pub(super) struct GraphRef<'a> {
    shell: &'a GraphProto,
    nodes: Vec<NodeRef<'a>>,
}

impl<'a> GraphRef<'a> {
    pub(super) fn new(graph: &'a GraphProto) -> Self {
        GraphRef {
            shell: graph,
            nodes: graph.node.iter().map(NodeRef::new).collect(),
        }
    }

    pub(super) fn indexed(graph: &'a Graph) -> Self {
        let nodes = graph.order().iter().map(|&id| {
            let node = graph.node(id);
            NodeRef {
                proto: &node.proto,
                inputs: Names::Indexed(graph, &node.inputs),
                outputs: Names::Indexed(graph, &node.outputs),
            }
        });
        GraphRef {
            shell: graph.shell(),
            nodes: nodes.collect(),
        }
    }
}

/// What defines a name.
#[derive(Clone, Copy)]
enum Definition<'a> {
    Input,
    Initializer,
    Node(usize, &'a NodeProto),
}

impl Definition<'_> {
    fn describe(self) -> String {
        match self {
            Definition::Input => "an input".to_owned(),
            Definition::Initializer => "an initialiser".to_owned(),
            Definition::Node(index, node) => describe(index, node),
        }
    }
}

/// What was said about a value already.
#[derive(Clone, Copy, Default)]
struct Marks {
    has_info: bool,
    is_annotated: bool,
}

/// The names of one graph, and how far the walk through its nodes has come.
#[derive(Default)]
pub(super) struct Scope<'a> {
    defined: HashMap<&'a str, (Definition<'a>, Marks)>,
    /// The node being checked; its outputs and those of later nodes are not yet made.
    here: usize,
}

impl<'a> Scope<'a> {
    fn sized(names: usize) -> Self {
        Scope {
            defined: HashMap::with_capacity(names),
            here: 0,
        }
    }

    fn made(&self, name: &str) -> Result<Definition<'a>, Option<Definition<'a>>> {
        match self.defined.get(name) {
            Some(&(later @ Definition::Node(index, _), _)) if index >= self.here => {
                Err(Some(later))
            }
            Some(&(definition, _)) => Ok(definition),
            None => Err(None),
        }
    }
}

impl<'a> Checker<'a> {
    /// Checks a graph; the scopes are those around it.
    pub(super) fn graph(&mut self, graph: &GraphRef<'a>) {
        let main = self.scopes.is_empty();
        let shell = graph.shell;
        self.scopes.push(Scope::sized(
            shell.input.len() + shell.initializer.len() + graph.nodes.len(),
        ));
        self.inputs(shell.input.iter().map(|i| i.name()));
        self.initializers(shell, main);
        self.outputs(&graph.nodes);
        for (list, infos) in [("input", &shell.input), ("output", &shell.output)] {
            for info in infos {
                if main && info.r#type.as_ref().is_none_or(|t| t.value.is_none()) {
                    let name = info.name();
                    self.report(format!("{list} '{name}' has no type; expected one"));
                }
                self.value_type(list, info);
            }
        }
        self.infos(&shell.value_info);
        self.annotations(shell);
        self.nodes(&graph.nodes);
        self.results(shell.output.iter().map(|o| o.name()));
        self.scopes.pop();
    }

    /// Defines the inputs of a graph or a function.
    pub(super) fn inputs(&mut self, names: impl Iterator<Item = &'a str>) {
        for (index, name) in names.enumerate() {
            if name.is_empty() {
                self.report(format!("input {index} has no name"));
            } else {
                self.define(name, Definition::Input);
            }
        }
    }

    fn initializers(&mut self, shell: &'a GraphProto, main: bool) {
        let mut names = HashSet::new();
        let inputs: HashSet<_> = shell.input.iter().map(|i| i.name()).collect();
        for (index, tensor) in shell.initializer.iter().enumerate() {
            let name = tensor.name();
            for problem in tensors::problems(tensor) {
                self.report(format!("initialiser '{name}': {problem}"));
            }
            if name.is_empty() {
                self.report(format!("initialiser {index} has no name"));
            } else if !names.insert(name) || !inputs.contains(name) {
                self.define(name, Definition::Initializer);
                if main && self.model.ir_version() < 4 && !inputs.contains(name) {
                    let version = self.model.ir_version();
                    self.report(format!(
                        "initialiser '{name}' is not among the inputs; in files of IR version \
                         {version} (before 4) it must be"
                    ));
                }
            }
        }
        for (index, sparse) in shell.sparse_initializer.iter().enumerate() {
            let name = sparse.values.as_ref().map_or("", |v| v.name());
            for problem in tensors::sparse_problems(sparse) {
                self.report(format!("sparse initialiser '{name}': {problem}"));
            }
            if name.is_empty() {
                self.report(format!("sparse initialiser {index} has no name"));
            } else if !names.insert(name) || !inputs.contains(name) {
                self.define(name, Definition::Initializer);
            }
        }
    }

    /// Defines what nodes make.
    pub(super) fn outputs(&mut self, nodes: &[NodeRef<'a>]) {
        for (index, node) in nodes.iter().enumerate() {
            for name in node.outputs.given() {
                self.define(name, Definition::Node(index, node.proto));
            }
        }
    }

    fn define(&mut self, name: &'a str, definition: Definition<'a>) {
        let outer = self.scopes.len().saturating_sub(1);
        let hidden = self.scopes[..outer]
            .iter()
            .rev()
            .find_map(|s| s.made(name).ok());
        let Some(scope) = self.scopes.last_mut() else {
            return;
        };
        let first = match scope.defined.entry(name) {
            Entry::Occupied(first) => Some(first.get().0),
            Entry::Vacant(free) => {
                free.insert((definition, Marks::default()));
                None
            }
        };
        if first.is_none() && hidden.is_none() {
            return;
        }
        let what = match definition {
            Definition::Input => format!("input '{name}'"),
            Definition::Initializer => format!("initialiser '{name}'"),
            Definition::Node(..) => format!("output '{name}'"),
        };
        let message = match (first, hidden) {
            (Some(Definition::Node(index, node)), _) if matches!(definition, Definition::Node(i, _) if i == index) =>
            {
                format!("{what} is made twice by {}", describe(index, node))
            }
            (Some(first), _) => format!("{what} is already defined by {}", first.describe()),
            (None, Some(hidden)) => format!(
                "{what} hides the one of an enclosing graph defined by {}; expected a new name",
                hidden.describe()
            ),
            (None, None) => return,
        };
        match definition {
            Definition::Node(index, node) => self.at_node(index, node, |c| c.report(message)),
            _ => self.report(message),
        }
    }

    fn at_node(&mut self, index: usize, node: &'a NodeProto, work: impl FnOnce(&mut Self)) {
        self.place.node = Some(index);
        self.trail.push(Crumb::Node(index, node));
        work(self);
        self.trail.pop();
        self.place.node = None;
    }

    /// Value infos name values of the graph or function, each once.
    pub(super) fn infos(&mut self, infos: &'a [ValueInfoProto]) {
        for info in infos {
            let name = info.name();
            self.value_type("value info", info);
            match self.marks(name) {
                None => self.report(format!("value info '{name}' names no value of this graph")),
                Some(marks) if marks.has_info => {
                    self.report(format!("value info '{name}' is given twice"));
                }
                Some(marks) => marks.has_info = true,
            }
        }
    }

    fn annotations(&mut self, shell: &'a GraphProto) {
        for annotation in &shell.quantization_annotation {
            let name = annotation.tensor_name();
            match self.marks(name) {
                None => self.report(format!(
                    "quantisation annotation of '{name}', which is no value of this graph"
                )),
                Some(marks) if marks.is_annotated => {
                    self.report(format!(
                        "quantisation annotation of '{name}' is given twice"
                    ));
                }
                Some(marks) => marks.is_annotated = true,
            }
            for entry in &annotation.quant_parameter_tensor_names {
                if self.marks(entry.value()).is_none() {
                    self.report(format!(
                        "quantisation annotation of '{name}': {} is '{}', which is no value of \
                         this graph",
                        entry.key(),
                        entry.value()
                    ));
                }
            }
        }
    }

    /// The marks of a value that the current graph defines.
    fn marks(&mut self, name: &str) -> Option<&mut Marks> {
        let scope = self.scopes.last_mut()?;
        scope.defined.get_mut(name).map(|(_, marks)| marks)
    }

    fn value_type(&mut self, list: &str, info: &ValueInfoProto) {
        if let Some(problem) = info
            .r#type
            .as_ref()
            .and_then(|t| tensors::type_problem(t, 0))
        {
            self.report(format!("{list} '{}': {problem}", info.name()));
        }
    }

    pub(super) fn nodes(&mut self, nodes: &[NodeRef<'a>]) {
        for (index, node) in nodes.iter().enumerate() {
            if let Some(scope) = self.scopes.last_mut() {
                scope.here = index;
            }
            self.at_node(index, node.proto, |c| c.node(node));
        }
        if let Some(scope) = self.scopes.last_mut() {
            scope.here = nodes.len();
        }
    }

    fn node(&mut self, node: &NodeRef<'a>) {
        if node.proto.op_type().is_empty() {
            self.report("the node has no operator");
        }
        if node.inputs.len() == 0 && node.outputs.len() == 0 {
            self.report("the node has neither inputs nor outputs");
        }
        for name in node.inputs.given() {
            self.read(name, "reads");
        }
        self.imported(node.proto.domain());
        self.operator(node);
        self.attributes(&node.proto.attribute);
    }

    /// The outputs of a graph or a function are defined.
    pub(super) fn results(&mut self, names: impl Iterator<Item = &'a str>) {
        for (index, name) in names.enumerate() {
            if name.is_empty() {
                self.report(format!("output {index} has no name"));
            } else {
                self.read(name, "lists the output");
            }
        }
    }

    /// Reports a name that is not visible here.
    fn read(&mut self, name: &str, reads: &str) {
        let mut later = None;
        for scope in self.scopes.iter().rev() {
            match scope.made(name) {
                Ok(_) => return,
                Err(found) => later = later.or(found.map(|d| (d, scope.here))),
            }
        }
        self.report(match later {
            Some((Definition::Node(index, _), here)) if index == here => {
                format!("{reads} '{name}', which this very node makes")
            }
            Some((definition, _)) => format!(
                "{reads} '{name}', which {} makes only later; nodes must stand behind what they \
                 read",
                definition.describe()
            ),
            None => format!(
                "{reads} '{name}', which is defined nowhere; expected an input, an initialiser or \
                 the output of a node"
            ),
        });
    }

    /// Checks a graph that an attribute holds.
    pub(super) fn nested(
        &mut self,
        attribute: usize,
        name: &'a str,
        position: usize,
        graph: &'a GraphProto,
    ) {
        if self.place.nested.len() >= NESTING_LIMIT {
            self.report(format!(
                "graphs are nested deeper than {NESTING_LIMIT} levels"
            ));
            return;
        }
        let node = self.place.node.take();
        self.place.nested.push(crate::text::Nested {
            node,
            attribute,
            graph: position,
        });
        self.trail.push(Crumb::Attribute(name));
        self.graph(&GraphRef::new(graph));
        self.trail.pop();
        self.place.nested.pop();
        self.place.node = node;
    }
}
