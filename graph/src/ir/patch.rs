//! Edits of a graph as values.
//!
//! A pass never changes a graph by hand: it returns a [`Patch`], and [`Graph::apply`] makes the new
//! graph from the old one and the patch. The new graph is indexed from scratch, so a patch that
//! leaves a name undefined, defines one twice or closes a cycle is an error, never a broken graph.

use super::{Graph, GraphError, Model, NodeId, Use, ValueId};
use crate::onnx::schema::{
    FunctionProto, NodeProto, OperatorSetIdProto, TensorProto, ValueInfoProto,
};
use std::collections::{HashMap, HashSet};

/// Nodes added and removed, reads redirected, outputs renamed, inputs, outputs and constants added or
/// exchanged, order changed.
#[derive(Clone, Debug, Default)]
pub struct Patch {
    /// The pass that made it.
    pub pass: &'static str,
    /// Why, as a sentence.
    pub reason: String,
    after: HashMap<NodeId, Vec<NodeProto>>,
    before: HashMap<NodeId, Vec<NodeProto>>,
    front: Vec<NodeProto>,
    replaced: HashMap<NodeId, Vec<NodeProto>>,
    redirected: HashMap<(NodeId, usize), String>,
    renamed: HashMap<(NodeId, usize), String>,
    inputs: Vec<ValueInfoProto>,
    outputs: Vec<ValueInfoProto>,
    other_inputs: HashMap<ValueId, ValueInfoProto>,
    other_outputs: HashMap<ValueId, Vec<ValueInfoProto>>,
    initializers: Vec<TensorProto>,
    unread: HashSet<String>,
    infos: Vec<ValueInfoProto>,
    order: Option<Vec<NodeId>>,
    functions: Vec<FunctionProto>,
    imports: Vec<OperatorSetIdProto>,
}

impl Patch {
    /// An empty patch.
    pub fn new(pass: &'static str, reason: impl Into<String>) -> Self {
        Patch {
            pass,
            reason: reason.into(),
            ..Default::default()
        }
    }

    /// Whether applying the patch changes nothing.
    pub fn is_empty(&self) -> bool {
        self.after.is_empty()
            && self.before.is_empty()
            && self.front.is_empty()
            && self.replaced.is_empty()
            && self.redirected.is_empty()
            && self.renamed.is_empty()
            && self.inputs.is_empty()
            && self.outputs.is_empty()
            && self.other_inputs.is_empty()
            && self.other_outputs.is_empty()
            && self.initializers.is_empty()
            && self.unread.is_empty()
            && self.infos.is_empty()
            && self.order.is_none()
            && self.functions.is_empty()
            && self.imports.is_empty()
    }

    /// Adds nodes right behind a node.
    pub fn insert_after(&mut self, node: NodeId, nodes: Vec<NodeProto>) {
        if !nodes.is_empty() {
            self.after.entry(node).or_default().extend(nodes);
        }
    }

    /// Adds nodes right in front of a node.
    pub fn insert_before(&mut self, node: NodeId, nodes: Vec<NodeProto>) {
        if !nodes.is_empty() {
            self.before.entry(node).or_default().extend(nodes);
        }
    }

    /// Adds nodes in front of all others.
    pub fn insert_front(&mut self, nodes: Vec<NodeProto>) {
        self.front.extend(nodes);
    }

    /// Puts nodes in the place of a node; they define what others still read of it.
    pub fn replace(&mut self, node: NodeId, nodes: Vec<NodeProto>) {
        self.replaced.insert(node, nodes);
    }

    /// Removes a node.
    pub fn remove(&mut self, node: NodeId) {
        self.replaced.insert(node, Vec::new());
    }

    /// Lets one input of a node read the value of that name. Captures cannot be redirected.
    pub fn redirect(&mut self, node: NodeId, slot: usize, to: impl Into<String>) {
        self.redirected.insert((node, slot), to.into());
    }

    /// Gives one output of a node another name; its readers stay with the old name.
    pub fn rename_output(&mut self, node: NodeId, slot: usize, to: impl Into<String>) {
        self.renamed.insert((node, slot), to.into());
    }

    /// Adds an input of the graph, behind the others.
    pub fn add_input(&mut self, info: ValueInfoProto) {
        self.inputs.push(info);
    }

    /// Adds an output of the graph, behind the others.
    pub fn add_output(&mut self, info: ValueInfoProto) {
        self.outputs.push(info);
    }

    /// Puts another input in the place of one.
    pub fn exchange_input(&mut self, input: ValueId, info: ValueInfoProto) {
        self.other_inputs.insert(input, info);
    }

    /// Puts other outputs in the place of one.
    pub fn exchange_output(&mut self, output: ValueId, infos: Vec<ValueInfoProto>) {
        self.other_outputs.insert(output, infos);
    }

    /// Adds a constant.
    pub fn add_initializer(&mut self, tensor: TensorProto) {
        self.initializers.push(tensor);
    }

    /// Removes an initialiser that nothing reads any longer.
    pub fn remove_initializer(&mut self, name: impl Into<String>) {
        self.unread.insert(name.into());
    }

    /// Declares the type of a value.
    pub fn add_value_info(&mut self, info: ValueInfoProto) {
        self.infos.push(info);
    }

    /// Adds a model-local function.
    pub fn add_function(&mut self, function: FunctionProto) {
        self.functions.push(function);
    }

    /// Imports an operator set, unless the model does already.
    pub fn import(&mut self, domain: &str, version: i64) {
        self.imports.push(OperatorSetIdProto {
            domain: Some(domain.to_owned()),
            version: Some(version),
        });
    }

    /// Lists the nodes in another order; every node of the graph once.
    pub fn reorder(&mut self, order: Vec<NodeId>) {
        self.order = Some(order);
    }
}

impl Model {
    /// The model with a patch applied. Ids of the old graph are not valid in the new one.
    ///
    /// # Errors
    /// [`GraphError`] where the result would not be a graph.
    pub fn apply(self, patch: &Patch) -> Result<Model, GraphError> {
        let mut shell = self.shell;
        shell.functions.extend(patch.functions.iter().cloned());
        for import in &patch.imports {
            if !shell
                .opset_import
                .iter()
                .any(|o| o.domain() == import.domain())
            {
                shell.opset_import.push(import.clone());
            }
        }
        Ok(Model {
            shell,
            graph: self.graph.apply(patch)?,
        })
    }
}

impl Graph {
    /// The graph with a patch applied. Ids of the old graph are not valid in the new one.
    ///
    /// # Errors
    /// [`GraphError`] where the result would not be a graph.
    pub fn apply(mut self, patch: &Patch) -> Result<Graph, GraphError> {
        let own = std::mem::take(&mut self.order);
        let order = patch.order.as_deref().unwrap_or(&own);
        let mut proto = std::mem::take(&mut self.shell);
        let mut nodes = Vec::with_capacity(order.len() + patch.front.len());
        nodes.extend(patch.front.iter().cloned());
        for id in order {
            let listed = |map: &HashMap<NodeId, Vec<NodeProto>>| {
                map.get(id)
                    .into_iter()
                    .flatten()
                    .cloned()
                    .collect::<Vec<_>>()
            };
            nodes.extend(listed(&patch.before));
            match patch.replaced.get(id) {
                Some(replacement) => nodes.extend(replacement.iter().cloned()),
                None => nodes.push(self.take_patched(*id, patch)),
            }
            nodes.extend(listed(&patch.after));
        }
        let gone = self.gone(patch, &nodes);
        // A file may declare the types of its constants as well.
        (proto.value_info)
            .retain(|info| !gone.contains(info.name()) && !patch.unread.contains(info.name()));
        proto.value_info.extend(patch.infos.iter().cloned());
        proto.node = nodes;
        for (info, value) in proto.input.iter_mut().zip(&self.inputs) {
            if let Some(other) = patch.other_inputs.get(value) {
                info.clone_from(other);
            }
        }
        proto.input.extend(patch.inputs.iter().cloned());
        let declared = std::mem::take(&mut proto.output);
        for (info, value) in declared.into_iter().zip(&self.outputs) {
            match patch.other_outputs.get(value) {
                Some(others) => proto.output.extend(others.iter().cloned()),
                None => proto.output.push(info),
            }
        }
        proto.output.extend(patch.outputs.iter().cloned());
        proto
            .initializer
            .retain(|tensor| !patch.unread.contains(tensor.name()));
        proto.initializer.extend(patch.initializers.iter().cloned());
        Graph::from_proto(proto)
    }

    /// Moves a node's message out, which is most of what a graph holds.
    fn take_patched(&mut self, id: NodeId, patch: &Patch) -> NodeProto {
        let mut node = std::mem::take(&mut self.nodes[id.index()].proto);
        (node.input, node.output) = self.edge_names(id);
        for (slot, name) in node.input.iter_mut().enumerate() {
            if let Some(new) = patch.redirected.get(&(id, slot)) {
                name.clone_from(new);
            }
        }
        for (slot, name) in node.output.iter_mut().enumerate() {
            if let Some(new) = patch.renamed.get(&(id, slot)) {
                name.clone_from(new);
            }
        }
        node
    }

    /// Names that replaced nodes defined and nothing defines any longer.
    fn gone(&self, patch: &Patch, nodes: &[NodeProto]) -> HashSet<String> {
        let outputs = |id: &NodeId| self.node(*id).outputs.iter().flatten().copied();
        let mut gone: HashSet<String> = (patch.replaced.keys())
            .flat_map(outputs)
            .map(|v| self.value(v).name.clone())
            .collect();
        if !gone.is_empty() {
            for name in nodes.iter().flat_map(|n| &n.output) {
                gone.remove(name);
            }
        }
        gone
    }

    /// A node's message with its edges as names.
    pub fn node_proto(&self, id: NodeId) -> NodeProto {
        let (input, output) = self.edge_names(id);
        NodeProto {
            input,
            output,
            ..self.node(id).proto.clone()
        }
    }

    /// The names of what a node reads and makes.
    fn edge_names(&self, id: NodeId) -> (Vec<String>, Vec<String>) {
        let node = self.node(id);
        let name = |value: &Option<ValueId>| match value {
            Some(value) => self.value(*value).name.clone(),
            None => String::new(),
        };
        let names = |values: &[Option<ValueId>]| values.iter().map(name).collect();
        (names(&node.inputs), names(&node.outputs))
    }

    /// The reads of a value by inputs of nodes, without captures by nested graphs.
    pub fn reads(&self, value: ValueId) -> impl Iterator<Item = (NodeId, usize)> {
        let users = self.value(value).users.iter();
        users.filter_map(|&Use { node, slot }| Some((node, slot?)))
    }
}
