//! Backward work that depends on forward values only, and what its place costs.
//!
//! A ReLU mask recomputed as `x <= 0`, the derivative of an activation function, a normalised input
//! computed again: such nodes read saved activations, yet could as well run in the forward half, where
//! those are born. What is saved then is what they make, and a mask has one byte for the four of a
//! float. Which of them are moved is a minimum cut ([`cut`]); moving changes no value.
//!
//! A backward node is a *candidate* where
//!
//! - it is a standard operator without nested graphs, not random, and none of ours;
//! - it is no matrix product or the like: behind one stand gradients, and what is computed again on
//!   purpose;
//! - no output of the graph is made by it, and no constant: those are known at any time, whichever half
//!   their nodes stand in, and keep no bytes;
//! - everything that it reads is known before the forward half is over: inputs, constants, what other
//!   candidates make, and forward values that a later forward product depends on. The gradient of the
//!   loss is computed from forward values too, but from the last ones;
//! - it is no transposition on the way to a contraction that could be rewritten.

pub mod cut;

use super::buffers::Buffers;
use super::lifetimes::Sizes;
use super::partition::{Half, Partition, is_copy};
use super::saved::{Reader, readers};
use super::sites::{Sites, sites_behind};
use crate::ir::{Graph, Node, NodeId, ValueId};
use crate::onnx::schema::AttributeType;
use crate::shapes::{DataType, Shapes};
use std::collections::BTreeMap;

/// Work that can be done in the forward half.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Move {
    /// The whole node.
    Node(NodeId),
    /// The comparison with zero that a `ReluGrad` begins with: it needs of its second input only which
    /// elements are positive. The node itself stays, and reads a mask.
    Mask(NodeId),
}

/// The input of a `ReluGrad` of which it needs the mask only.
pub const MASKED: usize = 1;

/// Bytes saved of a tensor that contractions read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Held {
    /// As it is, while something else reads the tensor as well.
    pub now: i64,
    /// Once nothing but the contractions reads it.
    pub then: i64,
}

/// What is known of a graph; all parts are of one graph.
#[derive(Clone, Copy, Debug)]
pub struct Context<'a> {
    /// The graph.
    pub graph: &'a Graph,
    /// Its halves.
    pub partition: &'a Partition,
    /// Which values share bytes.
    pub buffers: &'a Buffers,
    /// Types of the values.
    pub shapes: &'a Shapes,
    /// Bytes of the buffers, at some sizes.
    pub sizes: &'a Sizes,
    /// The contractions.
    pub sites: &'a Sites,
    /// By root of a buffer: bytes saved of those whose contractions are all to be rewritten. Other
    /// contractions keep the tensor that they read.
    pub held: &'a BTreeMap<ValueId, Held>,
}

impl Context<'_> {
    fn is_backward(&self, node: NodeId) -> bool {
        self.partition.half(node) == Half::Backward
    }

    pub(super) fn readers(&self, root: ValueId) -> Vec<Reader> {
        readers(self.graph, self.partition, self.buffers, root)
    }

    /// Whether nothing but contractions depends on a read.
    pub(super) fn contracts(&self, reader: &Reader) -> bool {
        sites_behind(self.graph, self.partition, self.sites, reader).is_some()
    }
}

/// What can be known before the forward half is over.
pub(crate) struct Early {
    /// By node: whether it is a candidate, see the module.
    candidates: Vec<bool>,
    /// By node: whether a forward product depends on it.
    leads: Vec<bool>,
}

impl Early {
    /// Finds the candidates; `order` is an order of all nodes.
    pub(crate) fn new(context: &Context<'_>, order: &[NodeId]) -> Self {
        let Context { graph, .. } = *context;
        let mut early = Early {
            candidates: vec![false; graph.node_count()],
            leads: leads_to_product(context, order),
        };
        let mut contracts = vec![false; graph.node_count()];
        for root in context.buffers.roots(graph) {
            for reader in context.readers(root) {
                contracts[reader.node.index()] |= context.contracts(&reader);
            }
        }
        for &id in order {
            let node = graph.node(id);
            let mut outputs = node.outputs.iter().flatten();
            early.candidates[id.index()] = context.is_backward(id)
                && !contracts[id.index()]
                && may_move(node)
                && outputs.all(|&v| !graph.value(v).is_output && !graph.is_constant(v))
                && (node.inputs.iter().flatten()).all(|&value| early.knows(context, value));
        }
        early
    }

    /// Whether a node is a candidate.
    pub(crate) fn is_candidate(&self, node: NodeId) -> bool {
        self.candidates[node.index()]
    }

    /// Whether a value is there before the forward half is over, or could be.
    fn knows(&self, context: &Context<'_>, value: ValueId) -> bool {
        let producer = context.graph.producer(value);
        let Some(producer) = producer.filter(|_| !context.graph.is_constant(value)) else {
            return true;
        };
        match context.partition.half(producer) {
            Half::Forward => self.leads[producer.index()],
            Half::Backward => self.candidates[producer.index()],
            Half::Dead => false,
        }
    }

    /// Whether a read is that of a `ReluGrad` whose mask could be there before the forward half is over.
    pub(crate) fn masks(&self, context: &Context<'_>, reader: &Reader) -> bool {
        let node = context.graph.node(reader.node);
        let relu = (node.domain(), node.op()) == ("com.microsoft", "ReluGrad");
        let float = context.shapes.of(reader.value).data_type == Some(DataType::FLOAT);
        let known = self.knows(context, reader.value);
        relu && reader.slot == Some(MASKED) && float && known
    }
}

/// Whether a node may stand in either half, as far as its operator goes.
fn may_move(node: &Node) -> bool {
    node.domain().is_empty() && !is_copy(node) && !is_product(node) && depends_on_inputs_only(node)
}

/// Whether what a node makes is known by its inputs: it draws no random numbers, has no nested graph, and is none of
/// ours.
pub(super) fn depends_on_inputs_only(node: &Node) -> bool {
    let nested =
        |kind: i32| kind == AttributeType::Graph as i32 || kind == AttributeType::Graphs as i32;
    let mut attributes = node.proto.attribute.iter();
    node.velora_op().is_none()
        && !is_random(node)
        && node.captures.is_empty()
        && !attributes.any(|a| a.r#type.is_some_and(nested))
}

/// Draws numbers: what it makes is not known by its inputs.
fn is_random(node: &Node) -> bool {
    matches!(
        node.op(),
        "RandomNormal"
            | "RandomNormalLike"
            | "RandomUniform"
            | "RandomUniformLike"
            | "Bernoulli"
            | "Multinomial"
            | "Dropout"
            | "BiasDropout"
            | "BitmaskDropout"
            | "BitmaskBiasDropout"
    )
}

/// Multiplies matrices, whatever else it does.
pub(in crate::analysis) fn is_product(node: &Node) -> bool {
    matches!(
        node.op(),
        "MatMul"
            | "Gemm"
            | "FusedMatMul"
            | "Einsum"
            | "MatMulInteger"
            | "QLinearMatMul"
            | "Conv"
            | "ConvTranspose"
            | "ConvInteger"
            | "QLinearConv"
            | "DeformConv"
            | "Attention"
            | "MultiHeadAttention"
            | "RNN"
            | "GRU"
            | "LSTM"
    )
}

/// By node: whether a forward product depends on it.
fn leads_to_product(context: &Context<'_>, order: &[NodeId]) -> Vec<bool> {
    let Context { graph, .. } = *context;
    let mut leads = vec![false; graph.node_count()];
    for &id in order.iter().rev() {
        let mut later = graph.successors(id);
        leads[id.index()] = later.any(|next| {
            let forward = context.partition.half(next) == Half::Forward;
            forward && (leads[next.index()] || is_product(graph.node(next)))
        });
    }
    leads
}
