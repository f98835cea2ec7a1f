//! How large bodies of nodes are, so that what copies them can stop before it does.

use crate::onnx::schema::{AttributeProto, FunctionProto, GraphProto, NodeProto, TensorProto};
use prost::Message;

/// The size of some nodes, those of graphs in their attributes included.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Extent {
    /// Nodes.
    pub nodes: usize,
    /// Bytes in a file, without the payloads, which copies share.
    pub bytes: usize,
    /// Names of values and nodes, each of which may be a longer one in a call.
    pub names: usize,
    /// Attributes that get their value from a call.
    pub references: usize,
}

impl Extent {
    /// The extent of nodes.
    pub fn of(nodes: &[NodeProto]) -> Self {
        let mut extent = Extent::default();
        extent.add(nodes);
        extent
    }

    /// The extent of a function's body and of the values of its attributes.
    pub fn of_function(function: &FunctionProto) -> Self {
        let mut extent = Extent::of(&function.node);
        for attribute in &function.attribute_proto {
            extent.bytes = extent.bytes.saturating_add(attribute.encoded_len());
        }
        extent
    }

    /// Adds the extent of more nodes.
    pub fn add(&mut self, nodes: &[NodeProto]) {
        for node in nodes {
            let own = node.encoded_len().saturating_sub(payload(node));
            self.bytes = self.bytes.saturating_add(own);
        }
        self.count(nodes);
    }

    fn count(&mut self, nodes: &[NodeProto]) {
        for node in nodes {
            self.nodes += 1;
            self.names += 1 + node.input.len() + node.output.len();
            let refers = |a: &&AttributeProto| a.ref_attr_name.is_some();
            self.references += node.attribute.iter().filter(refers).count();
            for graph in graphs(node) {
                let infos = graph.input.len() + graph.output.len() + graph.value_info.len();
                let tensors = graph.initializer.len() + graph.sparse_initializer.len();
                self.names += infos + tensors + graph.quantization_annotation.len();
                self.count(&graph.node);
            }
        }
    }

    /// The most bytes that a body of this extent has in a call of a function.
    pub fn called(&self, call: &NodeProto, label: &str, function: &FunctionProto) -> usize {
        /// What stands between the name of the call and that of the body, and the number behind.
        const AROUND: usize = 24;
        let given = call.input.iter().chain(&call.output).map(String::len);
        let name = given.fold(label.len().saturating_add(AROUND), usize::max);
        let values = call.attribute.iter().chain(&function.attribute_proto);
        let value = values.map(Message::encoded_len).max().unwrap_or(0);
        (self.bytes)
            .saturating_add(self.names.saturating_mul(name))
            .saturating_add(self.references.saturating_mul(value))
    }
}

/// The graphs in a node's attributes.
fn graphs(node: &NodeProto) -> impl Iterator<Item = &GraphProto> {
    let attributes = node.attribute.iter();
    attributes.flat_map(|attribute| attribute.g.as_deref().into_iter().chain(&attribute.graphs))
}

/// The bytes that copies of a node share. Nesting is bounded by the reader.
fn payload(node: &NodeProto) -> usize {
    let raw = |tensor: &TensorProto| tensor.raw_data.as_ref().map_or(0, |data| data.len());
    let mut bytes = 0usize;
    for attribute in &node.attribute {
        let tensors = attribute.t.as_deref().into_iter().chain(&attribute.tensors);
        bytes += tensors.map(raw).sum::<usize>();
        bytes += attribute.s.as_ref().map_or(0, |text| text.len());
    }
    for graph in graphs(node) {
        bytes += graph.initializer.iter().map(raw).sum::<usize>();
        bytes += graph.node.iter().map(payload).sum::<usize>();
    }
    bytes
}
