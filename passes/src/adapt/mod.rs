//! Adapters: a weight W = W₀ + v ⊗ A of which A is trained and W₀ stays.
//!
//! Where the gradient of W is v ⊗ P, that of A is P as it stands: with features z = X·v the layer is
//! X·W₀ + z·A, and the gradient of A is zᵀdY. The pass makes A a parameter of the graph, zeros at first, and
//! lets every reader of W read `W₀ + v ⊗ A`: made once for the forward half and once more for the backward
//! half, so that no full weight lives between them. W₀ is read only and may be stored in fewer bits
//! ([`base`]).

pub mod base;

use crate::names::Names;
use crate::outer::Outer;
use crate::proto::{metadata, version};
use base::{Base, BaseError, Stored};
use std::collections::BTreeMap;
use std::path::Path;
use thiserror::Error;
use velora_graph::analysis::Analyses;
use velora_graph::analysis::partition::Half;
use velora_graph::analysis::roles::Factored;
use velora_graph::dim::Dim;
use velora_graph::ir::{Graph, Model, NodeId, Patch, ValueId};
use velora_graph::onnx::make::{float_tensor, node, tensor_info};
use velora_graph::onnx::schema::{NodeProto, StringStringEntryProto};
use velora_graph::shapes::DataType;

/// The name of the pass.
pub const NAME: &str = "adapt";

/// Why a weight cannot become a base with an adapter.
#[derive(Debug, Error)]
pub enum AdaptError {
    /// It is read where nothing else can be put in its place, or has a type that is not trained.
    #[error("parameter '{parameter}' cannot have an adapter: {problem}")]
    Weight {
        /// The parameter.
        parameter: String,
        /// Why not.
        problem: String,
    },
    /// Its values cannot be stored in fewer bits.
    #[error(transparent)]
    Base(#[from] BaseError),
}

/// Makes adapters of all factored gradients of a model; `folder` has its external data.
///
/// # Errors
/// [`AdaptError`] where a weight cannot have one.
pub fn adapt(
    model: &Model,
    analyses: &Analyses,
    base: Base,
    folder: Option<&Path>,
) -> Result<Patch, AdaptError> {
    let graph = &model.graph;
    let factored = &analyses.roles.factored;
    let mut emit = Emit {
        graph,
        analyses,
        names: Names::new(graph),
        patch: Patch::new(NAME, format!("{} adapters", factored.len())),
        before: BTreeMap::new(),
    };
    for factored in factored {
        let weight = emit.weight(factored)?;
        let stored = base::stored(model, weight.value, factored.features_last, base, folder)?;
        emit.adapter(&weight, stored);
    }
    for (reader, nodes) in std::mem::take(&mut emit.before) {
        emit.patch.insert_before(reader, nodes);
    }
    Ok(emit.patch)
}

/// A weight that is to have an adapter.
struct Weight<'a> {
    factored: &'a Factored,
    value: ValueId,
    features: i64,
    outputs: i64,
    /// What makes its gradient.
    maker: NodeId,
    /// What v is a copy of.
    v: ValueId,
    reads: Vec<(NodeId, usize)>,
}

struct Emit<'a> {
    graph: &'a Graph,
    analyses: &'a Analyses,
    names: Names,
    patch: Patch,
    /// By reader: what stands in front of it.
    before: BTreeMap<NodeId, Vec<NodeProto>>,
}

impl<'a> Emit<'a> {
    fn name(&self, value: ValueId) -> &'a str {
        &self.graph.value(value).name
    }

    fn weight(&self, factored: &'a Factored) -> Result<Weight<'a>, AdaptError> {
        let (graph, value) = (self.graph, factored.parameter);
        let wrong = |problem: &str| AdaptError::Weight {
            parameter: self.name(value).to_owned(),
            problem: problem.to_owned(),
        };
        let kind = self.analyses.shapes.of(value);
        let direction = self.analyses.shapes.of(factored.direction).data_type;
        if kind.data_type != Some(DataType::FLOAT) || direction != Some(DataType::FLOAT) {
            return Err(wrong("it or its gradient is not of 32-bit floats"));
        }
        let sizes: Option<Vec<i64>> = kind.shape.as_ref().and_then(|shape| {
            let sizes = shape.iter().map(Dim::as_const);
            sizes.collect()
        });
        let Some(&[rows, columns]) = sizes.as_deref() else {
            return Err(wrong("its shape is not known"));
        };
        let (features, outputs) = match factored.features_last {
            true => (columns, rows),
            false => (rows, columns),
        };
        let read = graph.value(value);
        if read.is_output || read.users.iter().any(|user| user.slot.is_none()) {
            return Err(wrong("the graph hands it out, or a nested graph reads it"));
        }
        let made = |value: ValueId| graph.producer(graph.unpinned(value));
        // What is handed out is a copy behind the last contraction: too late for the forward half.
        let mut copied = None;
        while let Some(id) = made(copied.unwrap_or(factored.direction))
            && graph.node(id).velora_op() == Some("FactoredGradient")
            && let Some(&Some(read)) = graph.node(id).inputs.first()
        {
            copied = Some(read);
        }
        let (Some(maker), Some(v)) = (made(factored.gradient), copied) else {
            return Err(wrong("nothing makes its gradient"));
        };
        // It is read before it is brought to the gradient's type.
        if self.analyses.shapes.of(v).data_type != Some(DataType::FLOAT) {
            return Err(wrong("its direction is not of 32-bit floats"));
        }
        Ok(Weight {
            factored,
            value,
            features,
            outputs,
            maker,
            v,
            reads: graph.reads(value).collect(),
        })
    }

    /// Makes A an input of the graph, with zeros as its default, and lets readers of the weight read the
    /// sum.
    fn adapter(&mut self, weight: &Weight<'_>, stored: Stored) {
        let name = self.names.fresh(format!("{}.A", self.name(weight.value)));
        let (g, o) = (weight.factored.groups, weight.outputs);
        let sizes = match weight.factored.features_last {
            true => vec![o, g],
            false => vec![g, o],
        };
        let zeros = vec![0.0; sizes.iter().product::<i64>().max(0) as usize];
        self.patch
            .add_input(tensor_info(&name, DataType::FLOAT, sizes.iter().copied()));
        self.patch
            .add_initializer(float_tensor(&name, sizes, &zeros));
        let old = self.name(weight.value);
        let reading = stored.put(&mut self.patch, self.graph, weight.value, &mut self.names);
        for half in [Half::Forward, Half::Backward] {
            let reads = weight.reads.iter().copied();
            let reads: Vec<(NodeId, usize)> = reads
                .filter(|(node, _)| self.analyses.partition.half(*node) == half)
                .collect();
            // The sum comes right before its first reader.
            let order = self.graph.order();
            let place = |node: NodeId| order.iter().position(|&id| id == node);
            let first = reads
                .iter()
                .map(|&(node, _)| node)
                .min_by_key(|&n| place(n));
            let Some(first) = first else { continue };
            let half = match half {
                Half::Forward => "forward",
                _ => "backward",
            };
            let metadata = [
                metadata("parameter", old),
                metadata("op", "Adapt"),
                version(),
            ];
            let mut inner = |what: &str| self.names.fresh(format!("velora.{old}.{half}.{what}"));
            let base = inner("base");
            let mut nodes: Vec<NodeProto> = Vec::new();
            let base = match reading.clone() {
                Some(read) => {
                    nodes.push(marked(
                        NodeProto {
                            output: vec![base.clone()],
                            ..read
                        },
                        &metadata,
                    ));
                    base
                }
                None => old.to_owned(),
            };
            let (made, sum) = self.sum(weight, &name, &base, half, &metadata);
            nodes.extend(made);
            self.before.entry(first).or_default().extend(nodes);
            for (node, slot) in reads {
                self.patch.redirect(node, slot, sum.clone());
            }
        }
        let mut maker = self.graph.node_proto(weight.maker);
        maker.metadata_props.push(metadata("adapter", &name));
        self.patch.replace(weight.maker, vec![maker]);
    }

    /// `base + v ⊗ A`.
    fn sum(
        &mut self,
        weight: &Weight<'_>,
        adapter: &str,
        base: &str,
        half: &str,
        metadata: &[StringStringEntryProto],
    ) -> (Vec<NodeProto>, String) {
        let (old, v) = (self.name(weight.value), self.name(weight.v));
        let mut inner = |what: &str| self.names.fresh(format!("velora.{old}.{half}.{what}"));
        let [delta, sum] = ["delta", "sum"].map(&mut inner);
        let outer = Outer {
            factor: adapter,
            direction: v,
            groups: weight.factored.groups,
            features: weight.features,
            outputs: weight.outputs,
            features_last: weight.factored.features_last,
        };
        let (mut nodes, constants) = outer.expand(&delta, inner);
        for constant in constants {
            self.patch.add_initializer(constant);
        }
        nodes.push(node("Add", &[base, &delta], &sum));
        let nodes = nodes.into_iter().map(|node| marked(node, metadata));
        (nodes.collect(), sum)
    }
}

/// A node of ours, named after what it makes.
fn marked(node: NodeProto, metadata: &[StringStringEntryProto]) -> NodeProto {
    NodeProto {
        name: node.output.first().cloned(),
        metadata_props: metadata.to_vec(),
        ..node
    }
}
