//! Dependences as nodes.

use super::{Dependence, NAME};
use crate::names::Names;
use crate::proto::{metadata, version};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use velora_graph::analysis::buffers::is_view;
use velora_graph::analysis::partition::is_copy;
use velora_graph::dim::Dim;
use velora_graph::ir::{Graph, NodeId, Origin, Patch, ValueId};
use velora_graph::onnx::make::{int, int_vector, node};
use velora_graph::onnx::schema::tensor_shape_proto::{Dimension, dimension};
use velora_graph::onnx::schema::{
    NodeProto, TensorShapeProto, TypeProto, ValueInfoProto, type_proto,
};
use velora_graph::shapes::{DataType, Shapes};

/// Whether a node can be made to wait.
pub fn waits(graph: &Graph, shapes: &Shapes, node: NodeId) -> bool {
    gate(graph, shapes, node).is_some()
}

/// Whether a node can be waited for.
pub fn awaited(graph: &Graph, shapes: &Shapes, node: NodeId) -> bool {
    awaited_value(graph, node).is_some_and(|v| rank(shapes, v).is_some())
}

/// The output that stands for a node's being done.
pub fn awaited_value(graph: &Graph, node: NodeId) -> Option<ValueId> {
    let node = graph.node(node);
    let constant = node.domain().is_empty() && node.op() == "Constant";
    node.outputs
        .iter()
        .flatten()
        .copied()
        .next()
        .filter(|_| !constant)
}

fn rank(shapes: &Shapes, value: ValueId) -> Option<usize> {
    shapes.of(value).shape.as_ref().map(Vec::len)
}

/// The input through which a node waits: a tensor that other nodes make, rather than a parameter,
/// and never a constant or a shape, whose value a runtime may want to know beforehand.
fn gate(graph: &Graph, shapes: &Shapes, node: NodeId) -> Option<usize> {
    // ONNX Runtime merges a chain of views into one, and the dependence with it.
    if is_view(graph.node(node)) {
        return None;
    }
    let copy = is_copy(graph.node(node));
    let inputs = graph.node(node).inputs.iter().enumerate();
    let usable = inputs.filter_map(|(slot, value)| {
        let value = (*value)?;
        // What is computed again reads data, whatever its type.
        let float = shapes.of(value).data_type.is_some_and(DataType::is_float);
        let float = float || copy && slot == 0;
        rank(shapes, value)?;
        match graph.value(value).origin {
            Origin::Node(..) if graph.is_constant(value) => None,
            Origin::Node(..) if float => Some((0, slot)),
            Origin::Input(_) if float => Some((1, slot)),
            _ => None,
        }
    });
    usable.min().map(|(_, slot)| slot)
}

/// The patch for a set of dependences.
pub fn emit(graph: &Graph, shapes: &Shapes, pins: &BTreeSet<Dependence>, reason: String) -> Patch {
    let mut emit = Emit {
        graph,
        names: Names::new(graph),
        patch: Patch::new(NAME, reason),
        constants: BTreeMap::new(),
        types: (graph.value_infos().iter().chain(graph.input_infos()))
            .chain(graph.output_infos())
            .filter_map(|info| Some((info.name(), info.r#type.as_ref()?)))
            .collect(),
    };
    let mut by_waiter: BTreeMap<NodeId, Vec<NodeId>> = BTreeMap::new();
    for pin in pins {
        by_waiter.entry(pin.waiter).or_default().push(pin.awaited);
    }
    let mut empty: BTreeMap<NodeId, String> = BTreeMap::new();
    for (waiter, all) in by_waiter {
        let Some(slot) = gate(graph, shapes, waiter) else {
            continue;
        };
        let mut vectors = Vec::new();
        for awaited in all {
            if !empty.contains_key(&awaited)
                && let Some(vector) = emit.empty_vector(shapes, awaited)
            {
                empty.insert(awaited, vector);
            }
            vectors.extend(empty.get(&awaited).cloned());
        }
        emit.gate(shapes, waiter, slot, &vectors);
    }
    emit.patch
}

struct Emit<'g> {
    graph: &'g Graph,
    names: Names,
    patch: Patch,
    /// Shared integer vectors, by their entries.
    constants: BTreeMap<Vec<i64>, String>,
    /// Types that the file declares.
    types: HashMap<&'g str, &'g TypeProto>,
}

impl<'g> Emit<'g> {
    fn fresh(&mut self, wanted: String) -> String {
        self.names.fresh(wanted)
    }

    fn constant(&mut self, entries: Vec<i64>) -> String {
        if let Some(name) = self.constants.get(&entries) {
            return name.clone();
        }
        let digits: Vec<String> = entries.iter().map(i64::to_string).collect();
        let name = self.fresh(format!("velora.pin.ints_{}", digits.join("_")));
        self.patch.add_initializer(int_vector(&name, &entries));
        self.constants.insert(entries, name.clone());
        name
    }

    /// An empty vector that exists once a node has run.
    fn empty_vector(&mut self, shapes: &Shapes, awaited: NodeId) -> Option<String> {
        let value = awaited_value(self.graph, awaited)?;
        let rank = rank(shapes, value)?;
        let tensor = self.graph.value(value).name.clone();
        let zero = self.constant(vec![0]);
        let mut nodes = Vec::new();
        // A loss is a scalar, which has no axis to cut.
        let sliced = match rank {
            0 => {
                let vector = self.fresh(format!("velora.pin.{tensor}.vector"));
                nodes.push(part("Unsqueeze", &[&tensor, &zero], &vector, &tensor));
                vector
            }
            _ => tensor.clone(),
        };
        let rows = self.fresh(format!("velora.pin.{tensor}.rows"));
        nodes.push(part(
            "Slice",
            &[&sliced, &zero, &zero, &zero],
            &rows,
            &tensor,
        ));
        let last = self.fresh(format!("velora.pin.{tensor}"));
        let whole = if rank > 1 {
            self.fresh(format!("velora.pin.{tensor}.ints"))
        } else {
            last.clone()
        };
        nodes.push(NodeProto {
            attribute: vec![int("to", i64::from(DataType::INT64.0))],
            ..part("Cast", &[&rows], &whole, &tensor)
        });
        if rank > 1 {
            let axes = self.constant((1..rank as i64).collect());
            nodes.push(NodeProto {
                attribute: vec![int("keepdims", 0)],
                ..part("ReduceSum", &[&whole, &axes], &last, &tensor)
            });
        }
        self.patch.insert_after(awaited, nodes);
        Some(last)
    }

    /// The type that a gated value is declared to have: without it a runtime does not know the shape
    /// behind a `Reshape` to a computed shape, and works nothing in place from there on. None where
    /// ONNX Runtime would merge the gate with a view in front of it, as it does where the shape is
    /// static.
    fn declared(&self, shapes: &Shapes, value: ValueId) -> Option<TypeProto> {
        let shape = shapes.of(value).shape.as_ref()?;
        let behind_view = self
            .graph
            .producer(value)
            .is_some_and(|n| is_view(self.graph.node(n)));
        if behind_view && shape.iter().all(|d| d.as_const().is_some()) {
            return None;
        }
        if let Some(declared) = self.types.get(self.graph.value(value).name.as_str()) {
            return Some((*declared).clone());
        }
        let dim = |dim: &Dim| {
            let value = match dim.as_const() {
                Some(size) => dimension::Value::DimValue(size),
                // A runtime takes two sizes for equal where their names are.
                None => dimension::Value::DimParam(dim.to_string()),
            };
            Dimension {
                value: Some(value),
                ..Default::default()
            }
        };
        Some(TypeProto {
            value: Some(type_proto::Value::TensorType(type_proto::Tensor {
                elem_type: Some(shapes.of(value).data_type?.0),
                shape: Some(TensorShapeProto {
                    dim: shape.iter().map(dim).collect(),
                }),
            })),
            ..Default::default()
        })
    }

    /// Whether a value comes out of a `Reshape`. onnxslim merges that with the gate's and keeps the shape of
    /// the gate: zeros would then keep the axes of what was there before the first, so that the whole shape
    /// is said.
    fn behind_reshape(&self, value: ValueId) -> bool {
        let producer = self.graph.producer(value).map(|n| self.graph.node(n));
        producer.is_some_and(|node| node.domain().is_empty() && node.op() == "Reshape")
    }

    /// Hands one input of a node on once the vectors exist.
    fn gate(&mut self, shapes: &Shapes, waiter: NodeId, slot: usize, vectors: &[String]) {
        let Some(value) = self.graph.node(waiter).inputs.get(slot).copied().flatten() else {
            return;
        };
        let (Some(rank), false) = (rank(shapes, value), vectors.is_empty()) else {
            return;
        };
        let tensor = self.graph.value(value).name.clone();
        let mut nodes = Vec::new();
        let same = match self.behind_reshape(value) {
            true => {
                let same = self.fresh(format!("velora.pin.{tensor}.same"));
                nodes.push(part("Shape", &[&tensor], &same, &tensor));
                same
            }
            false => self.constant(vec![0; rank]),
        };
        let shape = self.fresh(format!("velora.pin.{tensor}.shape"));
        let inputs: Vec<&str> = std::iter::once(same.as_str())
            .chain(vectors.iter().map(String::as_str))
            .collect();
        let gated = self.fresh(format!("velora.pin.{tensor}.gated"));
        nodes.push(NodeProto {
            attribute: vec![int("axis", 0)],
            ..part("Concat", &inputs, &shape, &tensor)
        });
        nodes.push(part("Reshape", &[&tensor, &shape], &gated, &tensor));
        self.patch.insert_before(waiter, nodes);
        if let Some(r#type) = self.declared(shapes, value) {
            self.patch.add_value_info(ValueInfoProto {
                name: Some(gated.clone()),
                r#type: Some(r#type),
                ..Default::default()
            });
        }
        self.patch.redirect(waiter, slot, gated);
    }
}

/// A node of a pin.
fn part(op: &str, inputs: &[&str], output: &str, origin: &str) -> NodeProto {
    NodeProto {
        name: Some(output.to_owned()),
        metadata_props: vec![metadata("op", "Pin"), metadata("origin", origin), version()],
        ..node(op, inputs, output)
    }
}
