//! What nodes cost in time, by bytes moved and operations computed.
//!
//! The model is coarse on purpose: it has to compare a node that is computed twice with another, before anything
//! is compiled. A matrix product takes its operations (2·m·n·k) at a rate, everything else the bytes that it
//! reads and writes at one. What a runtime does not do costs nothing: views, shape arithmetic, constants,
//! transpositions that only products read (strides), and the tensor between two element-wise nodes of which one
//! alone reads what the other makes (one kernel).
//!
//! [`Rates`] are those of a machine: the defaults are what two cores of an AMD EPYC (Zen 3) did, and
//! `run --profile` measures others.

use crate::analysis::buffers::is_view;
use crate::analysis::hoist::is_product;
use crate::analysis::lifetimes::Sizes;
use crate::analysis::partition::{Half, Partition};
use crate::analysis::saved::{needs_bytes, shape_arithmetic};
use crate::ir::{Graph, Node, NodeId, Origin, ValueId};
use crate::shapes::Shapes;

/// What a machine does in a second.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rates {
    /// Floating-point operations of matrix products and convolutions.
    pub products: f64,
    /// Bytes of softmax, normalisations and reductions.
    pub norms: f64,
    /// Bytes of element-wise chains.
    pub elementwise: f64,
    /// Bytes of what only moves elements.
    pub movement: f64,
}

impl Default for Rates {
    fn default() -> Self {
        Rates {
            products: 150e9,
            norms: 6e9,
            elementwise: 7e9,
            movement: 6e9,
        }
    }
}

/// Kinds of nodes, by what limits them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// Done by no kernel.
    Nothing,
    /// Matrix products and convolutions.
    Products,
    /// Softmax, normalisations, losses and reductions.
    Norms,
    /// Element by element.
    Elementwise,
    /// Elements in other places.
    Movement,
}

/// The kind of a node's operator.
pub fn class(node: &Node) -> Class {
    if is_view(node) || node.velora_op() == Some("Pin") {
        return Class::Nothing;
    }
    match node.op() {
        "Shape" | "Size" | "Constant" => Class::Nothing,
        _ if is_product(node) => Class::Products,
        "ConvGrad" | "LSTMGrad" | "GRUGrad" | "FactoredWeightGrad" => Class::Products,
        "Softmax"
        | "LogSoftmax"
        | "SoftmaxGrad"
        | "SoftmaxGrad_13"
        | "LogSoftmaxGrad"
        | "LogSoftmaxGrad_13"
        | "LayerNormalization"
        | "SimplifiedLayerNormalization"
        | "RMSNormalization"
        | "GroupNormalization"
        | "InstanceNormalization"
        | "BatchNormalization"
        | "LayerNormalizationGrad"
        | "SimplifiedLayerNormalizationGrad"
        | "BatchNormalizationGrad"
        | "SoftmaxCrossEntropyLoss"
        | "SoftmaxCrossEntropyLossInternal"
        | "SoftmaxCrossEntropyLossInternalGrad"
        | "ReduceSum"
        | "ReduceMean"
        | "ReduceMax"
        | "ReduceMin"
        | "ReduceProd"
        | "ReduceSumSquare"
        | "ReduceL1"
        | "ReduceL2"
        | "ReduceLogSumExp"
        | "ArgMax"
        | "ArgMin"
        | "CumSum"
        | "MaxPool"
        | "AveragePool"
        | "GlobalAveragePool"
        | "MaxPoolGrad"
        | "AveragePoolGrad"
        | "Compress"
        | "MeanDirection"
        | "MeanDirections"
        | "RunningDirection"
        | "Reconstruct"
        | "FactoredScaleGrad" => Class::Norms,
        "Transpose" | "Concat" | "Slice" | "SliceGrad" | "Split" | "Gather" | "GatherGrad"
        | "GatherElements" | "GatherElementsGrad" | "GatherND" | "GatherNDGrad" | "ScatterND"
        | "ScatterElements" | "Expand" | "Tile" | "Pad" | "ConcatTraining" | "SplitTraining"
        | "ConstantOfShape" | "Range" | "Trilu" | "OneHot" | "EyeLike" => Class::Movement,
        _ => Class::Elementwise,
    }
}

/// A graph whose nodes have a price in time.
#[derive(Debug)]
pub struct Costs<'a> {
    graph: &'a Graph,
    partition: &'a Partition,
    shapes: &'a Shapes,
    sizes: &'a Sizes,
    rates: Rates,
    /// By value: whether it is made of shapes and constants.
    arithmetic: Vec<bool>,
}

impl<'a> Costs<'a> {
    /// The costs of a graph's nodes at some sizes.
    pub fn new(
        graph: &'a Graph,
        partition: &'a Partition,
        shapes: &'a Shapes,
        sizes: &'a Sizes,
        rates: Rates,
    ) -> Self {
        Costs {
            graph,
            partition,
            shapes,
            sizes,
            rates,
            arithmetic: shape_arithmetic(graph),
        }
    }

    /// Whether a value is made of shapes and constants, and known before a step runs.
    pub fn is_arithmetic(&self, value: ValueId) -> bool {
        self.arithmetic[value.index()]
    }

    /// The seconds of one execution of all nodes that a step needs.
    pub fn step(&self) -> f64 {
        let nodes = self.graph.order().iter();
        let live = nodes.filter(|&&id| self.partition.half(id) != Half::Dead);
        live.map(|&id| self.node(id)).sum()
    }

    /// The seconds of a node.
    pub fn node(&self, id: NodeId) -> f64 {
        let node = self.graph.node(id);
        let mut outputs = node.outputs.iter().flatten();
        if outputs.all(|&value| self.is_arithmetic(value)) {
            return 0.0;
        }
        let rate = match class(node) {
            Class::Nothing => return 0.0,
            Class::Products => {
                let computing = self.operations(node) / self.rates.products;
                return computing.max(self.moved(id) / self.rates.movement);
            }
            Class::Movement if self.is_stride(node) => return 0.0,
            Class::Norms => self.rates.norms,
            Class::Elementwise => self.rates.elementwise,
            Class::Movement => self.rates.movement,
        };
        self.moved(id) / rate
    }

    /// Whether nothing but products reads a transposition, through which they stride.
    fn is_stride(&self, node: &Node) -> bool {
        let users = node.outputs.iter().flatten();
        let mut users = users.flat_map(|&value| &self.graph.value(value).users);
        node.op() == "Transpose"
            && users.all(|user| {
                let next = self.graph.node(user.node);
                class(next) == Class::Products || next.op() == "Transpose" && self.is_stride(next)
            })
    }

    fn bytes(&self, value: ValueId) -> f64 {
        self.sizes.of(value).unwrap_or(0) as f64
    }

    /// The bytes that a node reads and writes, but for those that stay within a chain of element-wise nodes.
    fn moved(&self, id: NodeId) -> f64 {
        let node = self.graph.node(id);
        let reads = node.inputs.iter().enumerate().filter_map(|(slot, value)| {
            let value = (*value)?;
            let counts = needs_bytes(node, Some(slot)) && !self.is_arithmetic(value);
            (counts && !self.is_inside(value)).then(|| self.bytes(value))
        });
        let writes = node.outputs.iter().flatten();
        let writes = writes.filter(|&&value| !self.is_inside(value));
        reads.sum::<f64>() + writes.map(|&value| self.bytes(value)).sum::<f64>()
    }

    /// Whether a value is made by an element-wise node and read by one alone, of the same half: it is never in
    /// memory.
    pub fn is_inside(&self, value: ValueId) -> bool {
        let info = self.graph.value(value);
        let (Origin::Node(producer, _), [user]) = (info.origin, info.users.as_slice()) else {
            return false;
        };
        let elementwise = |id| class(self.graph.node(id)) == Class::Elementwise;
        !info.is_output
            && elementwise(producer)
            && elementwise(user.node)
            && self.partition.half(producer) == self.partition.half(user.node)
    }

    /// The floating-point operations of a product: two for each element of the result and each that is summed
    /// up for it.
    pub fn operations(&self, node: &Node) -> f64 {
        let elements = |value: ValueId| {
            let dims = self.shapes.of(value).shape.iter().flatten();
            let sizes = dims.map(|dim| self.sizes.dim(dim).unwrap_or(1) as f64);
            sizes.product::<f64>()
        };
        let input = |slot: usize| node.inputs.get(slot).copied().flatten();
        let result = node.outputs.iter().flatten().map(|&value| elements(value));
        let result = result.fold(0.0, f64::max);
        let axis = |value: Option<ValueId>, from_end: usize| {
            let rank = self.shapes.of(value?).shape.as_ref()?.len();
            self.size(value?, rank.checked_sub(from_end)?)
        };
        let flag = |name: &str| node.int(name, 0) != 0;
        let summed = match node.op() {
            "Gemm" | "FusedMatMul" if flag("transA") => axis(input(0), 2),
            "FactoredWeightGrad" => {
                // P = zᵀ dY: N·G·O; expanding it is a pass over the result.
                let tokens = axis(input(0), 2).unwrap_or(1.0);
                let width = axis(input(0), 1).unwrap_or(1.0);
                let outputs = axis(input(1), 1).unwrap_or(1.0);
                return 2.0 * tokens * width * outputs;
            }
            // By the weight, which each element of the result goes through but for the channels made.
            "Conv" => input(1).map(|weight| {
                let made = self.size(weight, 0).unwrap_or(1.0);
                elements(weight) / made.max(1.0)
            }),
            "ConvGrad" => {
                let weight = input(2).map_or(1.0, elements);
                return 4.0 * input(0).map_or(1.0, elements) * weight;
            }
            // Each token goes through both weights.
            "LSTM" | "GRU" | "RNN" | "LSTMGrad" | "GRUGrad" => {
                let features = axis(input(0), 1).unwrap_or(1.0).max(1.0);
                let tokens = input(0).map_or(1.0, elements) / features;
                let weights = [1, 2].map(|slot| input(slot).map_or(0.0, elements));
                return 2.0 * tokens * weights.iter().sum::<f64>();
            }
            _ => axis(input(0), 1),
        };
        2.0 * result * summed.unwrap_or(1.0)
    }

    /// The size of an axis, where it is known.
    fn size(&self, value: ValueId, axis: usize) -> Option<f64> {
        let shape = self.shapes.of(value).shape.as_ref()?;
        Some(self.sizes.dim(shape.get(axis)?)? as f64)
    }
}
