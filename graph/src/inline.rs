//! Calls of model-local functions replaced by their bodies.
//!
//! Functions of the domain `ai.velora` stay: they say what the tool's own operators compute, and those
//! are kernels here.

use std::collections::{HashMap, HashSet};

mod calls;

pub use calls::check_calls;
use prost::Message;

use crate::extent::Extent;
use crate::onnx::schema::{
    AttributeProto, FunctionProto, GraphProto, ModelProto, NodeProto, OperatorSetIdProto,
};

/// The domain of the functions that are not inlined.
const KEPT: &str = "ai.velora";

/// How deep calls may nest: deeper ones are no work of an exporter, and would exhaust the stack.
const MAX_CALLS: usize = 64;

/// What calls may expand to: functions that call others twice grow as powers of two. Any model may have
/// so many nodes and bytes of calls, and one of many nodes and bytes a multiple of its own.
const NODES_OF_ANY: usize = 50_000;
const BYTES_OF_ANY: usize = 64 << 20;
const MULTIPLE: usize = 16;

/// Why a model's functions cannot be inlined.
#[derive(Debug, thiserror::Error)]
pub enum InlineError {
    /// A function calls itself, perhaps through others.
    #[error("function `{0}` calls itself, through {1}: functions may not recurse")]
    Recursion(String, String),
    /// Calls nest too deep.
    #[error("calls of functions nest deeper than {MAX_CALLS} at `{0}`")]
    Depth(String),
    /// The bodies are too many, or too long.
    #[error(
        "inlining `{function}` would make more than {most} {what} of function calls, in a model that has \
         {own}: expected {MULTIPLE} times as many at most, or functions that call each other less"
    )]
    Size {
        /// The function whose body is one too many.
        function: String,
        /// Nodes or bytes.
        what: &'static str,
        /// How many there may be.
        most: usize,
        /// How many the model has before.
        own: usize,
    },
    /// A call that its function does not fit.
    #[error("node `{node}` calls function `{function}` with {given} {what}; it has {expected}")]
    Arity {
        /// The calling node.
        node: String,
        /// The function.
        function: String,
        /// Inputs or outputs.
        what: &'static str,
        /// How many the call has.
        given: usize,
        /// How many the function has.
        expected: usize,
    },
    /// An output without a producer.
    #[error("function `{function}` has the output `{output}`, which no node of it produces")]
    Output {
        /// The function.
        function: String,
        /// Its output.
        output: String,
    },
    /// A value from nowhere.
    #[error(
        "function `{function}` reads `{value}`, which is neither an input nor made by a node of it"
    )]
    Undefined {
        /// The function.
        function: String,
        /// What is read.
        value: String,
    },
    /// An attribute of the wrong type.
    #[error(
        "node `{node}` gives function `{function}` the attribute `{attribute}` with type {given}; \
         its body expects type {expected} (numbers of AttributeProto.AttributeType)"
    )]
    Attribute {
        /// The calling node.
        node: String,
        /// The function.
        function: String,
        /// The attribute of the function.
        attribute: String,
        /// The type that is given.
        given: i32,
        /// The type that is expected.
        expected: i32,
    },
    /// Two versions of an operator set.
    #[error(
        "function `{function}` imports version {wanted} of domain `{domain}`, the model version \
         {present}: convert one of them to the other's version before inlining"
    )]
    Opset {
        /// The function.
        function: String,
        /// The domain.
        domain: String,
        /// The function's version.
        wanted: i64,
        /// The model's version.
        present: i64,
    },
    /// Two functions with one name.
    #[error("the model has two functions `{0}`: expected one for each domain, name and overload")]
    Duplicate(String),
}

/// Domain, name and overload.
type Key = (String, String, String);

fn key(domain: &Option<String>, name: &Option<String>, overload: &Option<String>) -> Key {
    let text = |text: &Option<String>| text.clone().unwrap_or_default();
    (normal(text(domain)), text(name), text(overload))
}

/// The standard domain has two names.
fn normal(domain: String) -> String {
    if domain == "ai.onnx" {
        String::new()
    } else {
        domain
    }
}

fn shown((domain, name, overload): &Key) -> String {
    let mut shown = match domain.as_str() {
        "" => name.clone(),
        domain => format!("{domain}.{name}"),
    };
    if !overload.is_empty() {
        shown = format!("{shown}:{overload}");
    }
    shown
}

/// Replaces the calls of all functions but those of the domain `ai.velora` by their bodies, and removes
/// these functions. Names of values and nodes in the bodies are made unique.
///
/// # Errors
///
/// Where functions recurse, a call does not fit its function, or a called function imports another
/// version of an operator set than the model.
pub fn inline(mut model: ModelProto) -> Result<ModelProto, InlineError> {
    let (kept, inlined): (Vec<_>, Vec<_>) = std::mem::take(&mut model.functions)
        .into_iter()
        .partition(|function| function.domain.as_deref() == Some(KEPT));
    model.functions = kept;
    if inlined.is_empty() {
        return Ok(model);
    }
    let mut functions = HashMap::new();
    for function in inlined {
        let key = key(&function.domain, &function.name, &function.overload);
        let name = shown(&key);
        if functions.insert(key, function).is_some() {
            return Err(InlineError::Duplicate(name));
        }
    }
    let mut own = Extent::default();
    let mut bytes = model.encoded_len();
    for function in functions.values() {
        own.add(&function.node);
        bytes = bytes.saturating_add(function.encoded_len());
    }
    let mut names = Names::default();
    for graph in graphs(&mut model) {
        names.of_graph(graph);
        own.add(&graph.node);
    }
    own.bytes = bytes;
    for function in &model.functions {
        names.values.names.extend(function.input.iter().cloned());
        names.of_nodes(&function.node);
    }
    let extents = functions.iter();
    let extents = extents.map(|(key, function)| (key, Extent::of_function(function)));
    let mut inliner = Inliner {
        functions: &functions,
        extents: extents.collect(),
        own,
        made: Extent::default(),
        opsets: std::mem::take(&mut model.opset_import),
        names,
        calls: Vec::new(),
    };
    for graph in graphs(&mut model) {
        inliner.graph(graph)?;
    }
    for function in &mut model.functions {
        function.node = inliner.expand(std::mem::take(&mut function.node))?;
    }
    model.opset_import = inliner.opsets;
    Ok(model)
}

fn graphs(model: &mut ModelProto) -> impl Iterator<Item = &mut GraphProto> {
    let training = model.training_info.iter_mut();
    let training =
        training.flat_map(|info| info.initialization.iter_mut().chain(&mut info.algorithm));
    model.graph.iter_mut().chain(training)
}

/// The graphs of a node's attributes.
fn nested(node: &NodeProto) -> impl Iterator<Item = &GraphProto> {
    let attributes = node.attribute.iter();
    attributes.flat_map(|attribute| attribute.g.as_deref().into_iter().chain(&attribute.graphs))
}

fn nested_mut(attribute: &mut AttributeProto) -> impl Iterator<Item = &mut GraphProto> {
    let one = attribute.g.as_deref_mut().into_iter();
    one.chain(&mut attribute.graphs)
}

/// Names in use.
#[derive(Default)]
struct Names {
    values: Used,
    nodes: Used,
}

impl Names {
    fn of_graph(&mut self, graph: &GraphProto) {
        self.values.names.extend(defined(graph).map(str::to_owned));
        self.of_nodes(&graph.node);
    }

    fn of_nodes(&mut self, nodes: &[NodeProto]) {
        for node in nodes {
            self.values.names.extend(node.input.iter().cloned());
            self.values.names.extend(node.output.iter().cloned());
            self.nodes.names.extend(node.name.clone());
            for graph in nested(node) {
                self.of_graph(graph);
            }
        }
    }
}

/// Names in use of one kind.
#[derive(Default)]
struct Used {
    names: HashSet<String>,
    /// The last number that a name got to be unique: many calls of one function want the same names.
    last: HashMap<String, usize>,
}

impl Used {
    /// A name that is not in use, and now is.
    fn fresh(&mut self, scope: &str, name: &str) -> String {
        let wanted = format!("{scope}/{name}");
        if self.names.insert(wanted.clone()) {
            return wanted;
        }
        let number = self.last.entry(wanted.clone()).or_insert(1);
        loop {
            *number += 1;
            let name = format!("{wanted}_{number}");
            if self.names.insert(name.clone()) {
                return name;
            }
        }
    }
}

/// The names that a graph gives to values, but for those in graphs of its nodes.
fn defined(graph: &GraphProto) -> impl Iterator<Item = &str> {
    let inputs = graph.input.iter().filter_map(|input| input.name.as_deref());
    let initializers = (graph.initializer.iter()).filter_map(|tensor| tensor.name.as_deref());
    let sparse = (graph.sparse_initializer.iter())
        .filter_map(|sparse| sparse.values.as_ref()?.name.as_deref());
    let outputs = graph.node.iter().flat_map(|node| &node.output);
    (inputs.chain(initializers).chain(sparse)).chain(outputs.map(String::as_str))
}

struct Inliner<'f> {
    functions: &'f HashMap<Key, FunctionProto>,
    /// How large the bodies are.
    extents: HashMap<&'f Key, Extent>,
    /// How large the model was.
    own: Extent,
    /// What calls have expanded to.
    made: Extent,
    opsets: Vec<OperatorSetIdProto>,
    names: Names,
    /// The functions whose bodies are being expanded, from the outermost.
    calls: Vec<Key>,
}

impl Inliner<'_> {
    fn graph(&mut self, graph: &mut GraphProto) -> Result<(), InlineError> {
        graph.node = self.expand(std::mem::take(&mut graph.node))?;
        Ok(())
    }

    fn expand(&mut self, nodes: Vec<NodeProto>) -> Result<Vec<NodeProto>, InlineError> {
        let mut expanded = Vec::with_capacity(nodes.len());
        for mut node in nodes {
            for graph in node.attribute.iter_mut().flat_map(nested_mut) {
                self.graph(graph)?;
            }
            let key = key(&node.domain, &node.op_type, &node.overload);
            let Some(function) = self.functions.get(&key) else {
                expanded.push(node);
                continue;
            };
            if self.calls.contains(&key) {
                let path: Vec<_> = self.calls.iter().map(shown).collect();
                return Err(InlineError::Recursion(shown(&key), path.join(", ")));
            }
            if self.calls.len() == MAX_CALLS {
                return Err(InlineError::Depth(shown(&key)));
            }
            self.charge(&node, function, &key)?;
            let body = self.body(&node, function, &shown(&key))?;
            self.calls.push(key);
            expanded.extend(self.expand(body)?);
            self.calls.pop();
        }
        Ok(expanded)
    }

    /// Counts a body before it is made.
    fn charge(
        &mut self,
        call: &NodeProto,
        function: &FunctionProto,
        key: &Key,
    ) -> Result<(), InlineError> {
        let extent = self.extents.get(key).copied().unwrap_or_default();
        let bytes = extent.called(call, label(call), function);
        self.made.nodes = self.made.nodes.saturating_add(extent.nodes);
        self.made.bytes = self.made.bytes.saturating_add(bytes);
        for (what, made, own, any) in [
            ("nodes", self.made.nodes, self.own.nodes, NODES_OF_ANY),
            ("bytes", self.made.bytes, self.own.bytes, BYTES_OF_ANY),
        ] {
            let most = own.saturating_mul(MULTIPLE).saturating_add(any);
            if made > most {
                let function = shown(key);
                return Err(InlineError::Size {
                    function,
                    what,
                    most,
                    own,
                });
            }
        }
        Ok(())
    }

    /// The nodes of a function in the names of a call.
    fn body(
        &mut self,
        call: &NodeProto,
        function: &FunctionProto,
        shown: &str,
    ) -> Result<Vec<NodeProto>, InlineError> {
        self.import(function, shown)?;
        let label = label(call).to_owned();
        for (what, given, expected) in [
            ("inputs", call.input.len(), function.input.len()),
            ("outputs", call.output.len(), function.output.len()),
        ] {
            if given > expected {
                return Err(InlineError::Arity {
                    node: label,
                    function: shown.to_owned(),
                    what,
                    given,
                    expected,
                });
            }
        }
        let mut names = HashMap::new();
        for (place, name) in function.input.iter().enumerate() {
            // An input that is not given is an absent one in the body as well.
            let actual = call.input.get(place).cloned().unwrap_or_default();
            names.insert(name.clone(), actual);
        }
        let made: HashSet<&String> = function.node.iter().flat_map(|node| &node.output).collect();
        // Outputs that are an input, or another output: copied at the end.
        let mut copies = Vec::new();
        for (place, name) in function.output.iter().enumerate() {
            let actual = call.output.get(place).filter(|actual| !actual.is_empty());
            if names.contains_key(name) {
                copies.extend(actual.map(|actual| (name, actual)));
            } else if !made.contains(name) {
                return Err(InlineError::Output {
                    function: shown.to_owned(),
                    output: name.clone(),
                });
            } else if let Some(actual) = actual {
                names.insert(name.clone(), actual.clone());
            }
        }
        // In the order of the nodes, so that names do not change from run to run.
        for name in function.node.iter().flat_map(|node| &node.output) {
            if !name.is_empty() && !names.contains_key(name) {
                let fresh = self.names.values.fresh(&label, name);
                names.insert(name.clone(), fresh);
            }
        }
        let call = Call {
            node: call,
            function,
            label: &label,
            shown,
        };
        let mut body = function.node.clone();
        for node in &mut body {
            self.node(node, &names, &call)?;
        }
        for (name, actual) in copies {
            let source = names.get(name).cloned().unwrap_or_default();
            body.push(NodeProto {
                name: Some(self.names.nodes.fresh(&label, "Identity")),
                op_type: Some("Identity".to_owned()),
                input: vec![source],
                output: vec![actual.clone()],
                ..NodeProto::default()
            });
        }
        Ok(body)
    }

    /// Puts a node of a body in the names and attributes of a call.
    fn node(
        &mut self,
        node: &mut NodeProto,
        names: &HashMap<String, String>,
        call: &Call<'_>,
    ) -> Result<(), InlineError> {
        for name in node.input.iter_mut().chain(&mut node.output) {
            match names.get(name) {
                Some(actual) => name.clone_from(actual),
                None if name.is_empty() => {}
                // It must not become a value of the caller's that happens to have this name.
                None => {
                    return Err(InlineError::Undefined {
                        function: call.shown.to_owned(),
                        value: name.clone(),
                    });
                }
            }
        }
        node.name = Some(self.names.nodes.fresh(call.label, label(node)));
        let mut attributes = Vec::with_capacity(node.attribute.len());
        for mut attribute in std::mem::take(&mut node.attribute) {
            match attribute.ref_attr_name.as_deref() {
                None | Some("") => {
                    for graph in nested_mut(&mut attribute) {
                        self.nested(graph, names, call)?;
                    }
                    attributes.push(attribute);
                }
                // Without a value there or in the function, the node has none either.
                Some(reference) => attributes.extend(call.attribute(&attribute, reference)?),
            }
        }
        node.attribute = attributes;
        Ok(())
    }

    /// Puts a graph in a body in the names of a call; what the graph itself names is made unique.
    fn nested(
        &mut self,
        graph: &mut GraphProto,
        names: &HashMap<String, String>,
        call: &Call<'_>,
    ) -> Result<(), InlineError> {
        let mut names = names.clone();
        let own: Vec<String> = defined(graph).map(str::to_owned).collect();
        for name in own {
            // An input with a default is an initializer as well, under one name.
            if !name.is_empty() {
                let fresh = self.names.values.fresh(call.label, &name);
                names.insert(name, fresh);
            }
        }
        let rename = |name: &mut String| {
            if let Some(actual) = names.get(name) {
                name.clone_from(actual);
            }
        };
        let infos = graph.input.iter_mut().chain(&mut graph.output);
        infos
            .chain(&mut graph.value_info)
            .filter_map(|info| info.name.as_mut())
            .chain((graph.initializer.iter_mut()).filter_map(|tensor| tensor.name.as_mut()))
            .chain(
                (graph.sparse_initializer.iter_mut())
                    .filter_map(|sparse| sparse.values.as_mut()?.name.as_mut()),
            )
            .chain(
                (graph.quantization_annotation.iter_mut())
                    .filter_map(|annotation| annotation.tensor_name.as_mut()),
            )
            .for_each(rename);
        for node in &mut graph.node {
            self.node(node, &names, call)?;
        }
        Ok(())
    }

    /// Imports the operator sets of a function that is called.
    fn import(&mut self, function: &FunctionProto, shown: &str) -> Result<(), InlineError> {
        for import in &function.opset_import {
            let domain = normal(import.domain.clone().unwrap_or_default());
            let wanted = import.version.unwrap_or_default();
            let present = (self.opsets.iter())
                .find(|opset| normal(opset.domain.clone().unwrap_or_default()) == domain);
            match present.map(|opset| opset.version.unwrap_or_default()) {
                None => self.opsets.push(import.clone()),
                Some(present) if present == wanted => {}
                Some(present) => {
                    return Err(InlineError::Opset {
                        function: shown.to_owned(),
                        domain,
                        wanted,
                        present,
                    });
                }
            }
        }
        Ok(())
    }
}

/// What a node is called: by its name, or its operator.
fn label(node: &NodeProto) -> &str {
    match node.name.as_deref() {
        None | Some("") => node.op_type.as_deref().unwrap_or_default(),
        Some(name) => name,
    }
}

/// A call and its function.
struct Call<'c> {
    node: &'c NodeProto,
    function: &'c FunctionProto,
    /// What the calling node is called.
    label: &'c str,
    /// What the function is called.
    shown: &'c str,
}

impl Call<'_> {
    /// The attribute that one of the body refers to, under that one's name.
    fn attribute(
        &self,
        of_body: &AttributeProto,
        reference: &str,
    ) -> Result<Option<AttributeProto>, InlineError> {
        let named = |attribute: &&AttributeProto| attribute.name.as_deref() == Some(reference);
        let given = self.node.attribute.iter().find(named);
        let Some(value) = given.or_else(|| self.function.attribute_proto.iter().find(named)) else {
            return Ok(None);
        };
        let (expected, given) = (
            of_body.r#type.unwrap_or_default(),
            value.r#type.unwrap_or_default(),
        );
        if expected != 0 && given != 0 && expected != given {
            return Err(InlineError::Attribute {
                node: self.label.to_owned(),
                function: self.shown.to_owned(),
                attribute: reference.to_owned(),
                given,
                expected,
            });
        }
        let mut value = value.clone();
        value.name.clone_from(&of_body.name);
        Ok(Some(value))
    }
}
