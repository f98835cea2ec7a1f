//! The indexed graph: dense ids over nodes and values, with definitions and uses.
//!
//! A [`Graph`] owns the protobuf messages it was built from and adds an index. What nobody edits is
//! therefore written back exactly as it was read; names appear only at the two borders,
//! [`Graph::from_proto`] and [`Graph::to_proto`].

mod build;
mod model;
mod order;
mod patch;

use crate::onnx::schema::{AttributeProto, GraphProto, NodeProto, TensorProto, ValueInfoProto};
pub use model::Model;
pub use order::View;
pub use patch::Patch;
use thiserror::Error;

/// A node of a [`Graph`]; valid only for the graph that gave it out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NodeId(u32);

/// A value (tensor) of a [`Graph`]; valid only for the graph that gave it out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ValueId(u32);

impl NodeId {
    /// The position in the arena, for side tables.
    pub fn index(self) -> usize {
        self.0 as usize
    }

    /// An id, for tests of what needs no graph.
    #[cfg(test)]
    pub(crate) fn from_index(index: usize) -> Self {
        NodeId(index as u32)
    }
}

impl ValueId {
    /// The position in the arena, for side tables.
    pub fn index(self) -> usize {
        self.0 as usize
    }

    /// The id at a position of a side table over all values of a graph; the number of values fits
    /// an id, since [`Graph::from_proto`] refuses more.
    pub(crate) fn from_index(index: usize) -> Self {
        ValueId(index as u32)
    }
}

/// Where a value comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Origin {
    /// An output slot of a node.
    Node(NodeId, usize),
    /// A graph input; the index is its position among the inputs. It may have a default, in which
    /// case an initialiser of the same name exists.
    Input(usize),
    /// An initialiser that is not also an input.
    Initializer(usize),
    /// A sparse initialiser.
    SparseInitializer(usize),
    /// A value of an enclosing graph, read by a nested one.
    Outer,
}

/// One read of a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Use {
    /// The reading node.
    pub node: NodeId,
    /// Which of its inputs, or `None` where a graph nested in the node captures the value.
    pub slot: Option<usize>,
}

/// A value: a name, an origin, and who reads it.
#[derive(Clone, Debug)]
pub struct Value {
    /// The tensor's name in the file.
    pub name: String,
    /// Where it comes from.
    pub origin: Origin,
    /// Its readers, by node id and then slot.
    pub users: Vec<Use>,
    /// Whether it is an output of the graph.
    pub is_output: bool,
}

/// A node: its message with the edges taken out, and the edges as ids.
#[derive(Clone, Debug)]
pub struct Node {
    /// Name, operator, attributes, documentation and metadata as in the file; `input` and `output`
    /// are empty, since [`Node::inputs`] and [`Node::outputs`] hold the truth.
    pub proto: NodeProto,
    /// The values read, `None` where an optional input is absent.
    pub inputs: Vec<Option<ValueId>>,
    /// The values made, `None` where an optional output is absent.
    pub outputs: Vec<Option<ValueId>>,
    /// Values of this graph that graphs nested in the node read.
    pub captures: Vec<ValueId>,
}

impl Node {
    /// The value of a metadata entry of the node.
    pub fn metadata(&self, key: &str) -> Option<&str> {
        let entry = self.proto.metadata_props.iter().find(|e| e.key() == key);
        entry.map(|e| e.value())
    }

    /// The operator of the domain `ai.velora` that the node is, or that it was expanded from; `Pin`
    /// for a part of a pin.
    pub fn velora_op(&self) -> Option<&str> {
        match self.domain() {
            "ai.velora" => Some(self.op()),
            _ => self.metadata("velora.op"),
        }
    }

    /// The operator's name.
    pub fn op(&self) -> &str {
        self.proto.op_type()
    }

    /// The operator's domain, the empty string for standard operators.
    pub fn domain(&self) -> &str {
        match self.proto.domain() {
            "ai.onnx" => "",
            domain => domain,
        }
    }

    /// The attribute of that name.
    pub fn attribute(&self, name: &str) -> Option<&AttributeProto> {
        self.proto.attribute.iter().find(|a| a.name() == name)
    }

    /// An integer attribute, or the operator's default.
    pub fn int(&self, name: &str, default: i64) -> i64 {
        self.attribute(name).and_then(|a| a.i).unwrap_or(default)
    }

    /// A floating point attribute, or the operator's default.
    pub fn float(&self, name: &str, default: f32) -> f32 {
        self.attribute(name).and_then(|a| a.f).unwrap_or(default)
    }

    /// A list of integers, where the attribute is present.
    pub fn ints(&self, name: &str) -> Option<&[i64]> {
        self.attribute(name).map(|a| a.ints.as_slice())
    }

    /// How messages refer to the node: its name, or its first output where it has none.
    pub fn label(&self, graph: &Graph) -> String {
        if !self.proto.name().is_empty() {
            return self.proto.name().to_owned();
        }
        match self.outputs.iter().flatten().next() {
            Some(&value) => format!("producer of {}", graph.value(value).name),
            None => format!("unnamed {}", self.op()),
        }
    }
}

/// What makes a graph impossible to index.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum GraphError {
    /// A node or an output reads a name that nothing defines.
    #[error(
        "tensor '{tensor}', read by {reader}, is defined nowhere; expected a graph input, an \
         initialiser or the output of a node (was the file cut out of a larger model?)"
    )]
    Undefined {
        /// The missing name.
        tensor: String,
        /// The node or output that reads it.
        reader: String,
    },
    /// Two definitions of one name.
    #[error(
        "tensor '{tensor}' is defined twice: by {first} and by {second}; every name may be defined once"
    )]
    Redefined {
        /// The name.
        tensor: String,
        /// The first definition.
        first: String,
        /// The second definition.
        second: String,
    },
    /// Nodes that wait for each other.
    #[error("the graph has a cycle through {}; an ONNX graph must be acyclic", .nodes.join(" -> "))]
    Cycle {
        /// Nodes of one cycle, in order.
        nodes: Vec<String>,
    },
    /// More nodes or values than the ids can count.
    #[error("the graph has more than 4294967294 {what}")]
    TooLarge {
        /// `nodes` or `values`.
        what: &'static str,
    },
    /// Graphs inside graphs, deeper than any exporter makes them.
    #[error("graphs are nested deeper than {limit} levels, at {node}")]
    TooDeep {
        /// The node that holds the graph beyond the limit.
        node: String,
        /// The limit.
        limit: usize,
    },
}

/// A graph with its index.
#[derive(Clone, Debug)]
pub struct Graph {
    /// Name, documentation, value infos, annotations and metadata as in the file; `node` is empty.
    shell: GraphProto,
    nodes: Vec<Node>,
    order: Vec<NodeId>,
    values: Vec<Value>,
    inputs: Vec<ValueId>,
    outputs: Vec<ValueId>,
}

impl Graph {
    /// The message around the nodes; it has none itself.
    pub(crate) fn shell(&self) -> &GraphProto {
        &self.shell
    }

    /// The node behind an id.
    pub fn node(&self, id: NodeId) -> &Node {
        &self.nodes[id.index()]
    }

    /// The value behind an id.
    pub fn value(&self, id: ValueId) -> &Value {
        &self.values[id.index()]
    }

    /// Node ids in the order in which the file lists them.
    pub fn order(&self) -> &[NodeId] {
        &self.order
    }

    /// How many nodes there are; ids are dense below it.
    pub fn node_count(&self) -> usize {
        self.nodes.len()
    }

    /// Whether a value is an initialiser, or what a `Constant` node makes.
    pub fn is_constant(&self, value: ValueId) -> bool {
        match self.value(value).origin {
            Origin::Initializer(_) | Origin::SparseInitializer(_) => true,
            Origin::Node(node, _) => {
                self.node(node).domain().is_empty() && self.node(node).op() == "Constant"
            }
            _ => false,
        }
    }

    /// The entries of a small constant of type INT64, where the value is one.
    pub fn constant_ints(&self, value: ValueId) -> Option<Vec<i64>> {
        let tensor = match self.value(value).origin {
            Origin::Initializer(index) => self.shell.initializer.get(index)?,
            Origin::Node(node, 0) if self.is_constant(value) => {
                let node = self.node(node);
                if let Some(ints) = node.ints("value_ints") {
                    return Some(ints.to_vec());
                }
                if let Some(int) = node.attribute("value_int") {
                    return int.i.map(|i| vec![i]);
                }
                node.attribute("value")?.t.as_deref()?
            }
            _ => return None,
        };
        if tensor.data_type() != 7 || !tensor.external_data.is_empty() {
            return None;
        }
        match &tensor.raw_data {
            Some(raw) => {
                let (entries, rest) = raw.as_chunks::<8>();
                let small = rest.is_empty() && entries.len() <= 1 << 16;
                small.then(|| entries.iter().map(|e| i64::from_le_bytes(*e)).collect())
            }
            None => Some(tensor.int64_data.clone()),
        }
    }

    /// How many values there are; ids are dense below it.
    pub fn value_count(&self) -> usize {
        self.values.len()
    }

    /// Every value id.
    pub fn values(&self) -> impl ExactSizeIterator<Item = ValueId> + use<> {
        (0..self.values.len() as u32).map(ValueId)
    }

    /// The graph's inputs, in order.
    pub fn inputs(&self) -> &[ValueId] {
        &self.inputs
    }

    /// The graph's outputs, in order; one value may be listed twice.
    pub fn outputs(&self) -> &[ValueId] {
        &self.outputs
    }

    /// The declarations of the graph's inputs, in order.
    pub fn input_infos(&self) -> &[ValueInfoProto] {
        &self.shell.input
    }

    /// The declarations of the graph's outputs, in order.
    pub fn output_infos(&self) -> &[ValueInfoProto] {
        &self.shell.output
    }

    /// The declarations of inner values that the file carries.
    pub fn value_infos(&self) -> &[ValueInfoProto] {
        &self.shell.value_info
    }

    /// The initialisers, in order.
    pub fn initializers(&self) -> &[TensorProto] {
        &self.shell.initializer
    }

    /// The node that makes a value, where a node does.
    pub fn producer(&self, value: ValueId) -> Option<NodeId> {
        match self.value(value).origin {
            Origin::Node(node, _) => Some(node),
            _ => None,
        }
    }

    /// What a pin hands on, or the value itself: pins order nodes for other runtimes and change no value.
    pub fn unpinned(&self, mut value: ValueId) -> ValueId {
        while let Some(gate) = self.producer(value).map(|id| self.node(id))
            && (gate.velora_op(), gate.op()) == (Some("Pin"), "Reshape")
            && let Some(&Some(source)) = gate.inputs.first()
        {
            value = source;
        }
        value
    }
}
