//! From an ONNX graph and sizes to a [`Program`].
//!
//! Nodes are visited in topological order; each operator's family ([`crate::ops`]) adds its operations.
//! A value whose elements shape inference knows becomes a constant, so nothing is left of shape
//! arithmetic; pins order nodes for other runtimes and are passed over.

pub mod constants;

use crate::ops::{Op, family, view};
use crate::plan::Region;
use crate::program::{Operation, Program, Source, TensorId, Value};
use crate::tensor::{Tensor, TensorType};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use thiserror::Error;
use velora_graph::analysis::partition::{Half, Partition};
use velora_graph::ir::{GraphError, Model, Node, NodeId, Origin, ValueId};
use velora_graph::onnx::schema::TensorProto;
use velora_graph::shapes::{Context, DataType, ShapeErrors, Shapes, infer};

/// Why the runtime cannot execute a graph.
#[derive(Debug, Error)]
pub enum LowerError {
    /// No order of the nodes.
    #[error(transparent)]
    Graph(#[from] GraphError),
    /// Shapes contradict each other.
    #[error(transparent)]
    Shapes(#[from] ShapeErrors),
    /// A node cannot be executed.
    #[error("node '{node}' ({op}): {refusal}")]
    Node {
        /// The node's name.
        node: String,
        /// Its operator, with the domain where it is not the standard one.
        op: String,
        /// What is wrong.
        refusal: Refusal,
    },
    /// An input or output has no concrete type.
    #[error("'{name}': {refusal}")]
    Value {
        /// The tensor's name.
        name: String,
        /// What is wrong.
        refusal: Refusal,
    },
}

/// What is wrong with a node: one sentence, with what was expected.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{0}")]
pub struct Refusal(pub String);

impl Refusal {
    /// A refusal with its reason.
    pub fn new(reason: impl Into<String>) -> Self {
        Refusal(reason.into())
    }
}

/// What lowering needs beside the model.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    /// Sizes of the symbols in the inputs' shapes.
    pub sizes: &'a BTreeMap<Arc<str>, i64>,
    /// The halves of the graph, where it is a training graph.
    pub partition: Option<&'a Partition>,
    /// The folder that external data lies in.
    pub folder: Option<&'a Path>,
    /// Whether the program evaluates a trained model: what is random in training is left out.
    pub evaluation: bool,
}

/// Makes the program of a model.
///
/// # Errors
/// [`LowerError`] names the node or tensor that cannot be executed, and why.
pub fn lower(model: &Model, request: &Request<'_>) -> Result<Program, LowerError> {
    let graph = &model.graph;
    let shapes = infer(
        graph,
        &Context {
            opsets: &model.shell.opset_import,
            functions: &model.shell.functions,
            sizes: request.sizes,
        },
    )?;
    let mut lowering = Lowering {
        model,
        shapes: &shapes,
        request,
        program: Program::default(),
        known: vec![None; graph.value_count()],
        node: None,
        producers: BTreeMap::new(),
    };
    for (position, &input) in graph.inputs().iter().enumerate() {
        let name = graph.value(input).name.clone();
        let ty = lowering
            .type_of(input)
            .map_err(|refusal| LowerError::Value {
                name: name.clone(),
                refusal,
            })?;
        let id = lowering.program.add(name, ty, Source::Input(position));
        lowering.known[input.index()] = Some(id);
    }
    for id in graph.topological_order()? {
        let node = graph.node(id);
        if node.velora_op() == Some("Pin") || lowering.is_folded(node) {
            continue;
        }
        lowering.node = Some(id);
        let error = |refusal| LowerError::Node {
            node: node.label(graph),
            op: match node.domain() {
                "" => node.op().to_owned(),
                domain => format!("{domain}.{}", node.op()),
            },
            refusal,
        };
        let Some(family) = family(node.domain(), node.op()) else {
            // Only a value that is needed matters: what reads it will say so.
            continue;
        };
        lowering.check_int4(node).map_err(error)?;
        (family.lower)(&mut lowering, node).map_err(error)?;
    }
    for &output in graph.outputs() {
        let id = lowering
            .tensor(output)
            .map_err(|refusal| LowerError::Value {
                name: graph.value(output).name.clone(),
                refusal,
            })?;
        lowering.program.outputs.push(id);
    }
    let mut program = lowering.program;
    program.drop_dead();
    program.inputs = (graph.inputs().iter())
        .map(|input| lowering.known[input.index()])
        .collect();
    program.input_regions = vec![Region::Inputs; program.inputs.len()];
    program.drop_unread_inputs();
    Ok(program)
}

/// A program in the making.
pub struct Lowering<'a> {
    model: &'a Model,
    shapes: &'a Shapes,
    request: &'a Request<'a>,
    /// What is there so far.
    pub program: Program,
    /// By value of the graph: its tensor.
    known: Vec<Option<TensorId>>,
    node: Option<NodeId>,
    /// By tensor: the operation that writes it.
    producers: BTreeMap<TensorId, usize>,
}

impl<'a> Lowering<'a> {
    /// The version of a domain's operator set that the model imports; 1 where it imports none.
    pub fn opset(&self, domain: &str) -> i64 {
        self.model.opset(domain).unwrap_or(1)
    }

    /// Whether the program evaluates a trained model, see [`Request::evaluation`].
    pub fn evaluation(&self) -> bool {
        self.request.evaluation
    }

    /// The type of a value of the graph.
    fn type_of(&self, value: ValueId) -> Result<TensorType, Refusal> {
        let name = &self.model.graph.value(value).name;
        let kind = self.shapes.of(value);
        let (Some(data_type), Some(dims)) = (kind.data_type, &kind.shape) else {
            return Err(Refusal(format!(
                "the type of '{name}' is unknown: expected a tensor with a known number of dimensions"
            )));
        };
        let mut shape = Vec::with_capacity(dims.len());
        for dim in dims {
            match dim.as_const().map(usize::try_from) {
                Some(Ok(size)) => shape.push(size),
                _ => {
                    return Err(Refusal(format!(
                        "a size of '{name}' is not known: {dim}; give it with --dim NAME=N"
                    )));
                }
            }
        }
        let ty = TensorType::new(data_type, shape);
        match ty.checked_bytes() {
            // Sums of a few sizes must fit as well.
            Some(bytes) if bytes <= isize::MAX as usize / 8 => Ok(ty),
            _ => Err(Refusal(format!(
                "'{name}' is {ty}, which the runtime cannot hold"
            ))),
        }
    }

    /// Refuses integers of 4 bits at operators that take elements to be whole bytes: nearly all.
    fn check_int4(&self, node: &Node) -> Result<(), Refusal> {
        let operator = (node.domain(), node.op());
        let taken = [("", "DequantizeLinear"), ("", "Constant")];
        if taken.contains(&operator) || view::FAMILY.operators.contains(&operator) {
            return Ok(());
        }
        for &value in node.inputs.iter().chain(&node.outputs).flatten() {
            let data_type = self.shapes.of(value).data_type;
            if let Some(data_type) = data_type.filter(|ty| ty.is_int4()) {
                return Err(Refusal(format!(
                    "'{}' is {data_type}, which only DequantizeLinear computes with",
                    self.model.graph.value(value).name
                )));
            }
        }
        Ok(())
    }

    /// Whether all outputs of a node are known numbers.
    fn is_folded(&self, node: &Node) -> bool {
        let outputs = &node.outputs;
        !outputs.is_empty() && outputs.iter().flatten().all(|&v| self.folded(v).is_some())
    }

    /// The elements of a value, where shape inference knows all of them.
    fn folded(&self, value: ValueId) -> Option<Tensor> {
        let ty = self.type_of(value).ok()?;
        let contents = self.shapes.contents(value)?;
        let elements: Option<Vec<i64>> = contents.iter().map(|d| d.as_const()).collect();
        let elements = elements?;
        // Inference keeps the least integer as its neighbour.
        if elements.len() != ty.elements() || elements.contains(&(i64::MIN + 1)) {
            return None;
        }
        constants::from_integers(&ty, &elements)
    }

    /// The tensor of a value of the graph.
    fn tensor(&mut self, value: ValueId) -> Result<TensorId, Refusal> {
        let value = self.model.graph.unpinned(value);
        if let Some(id) = self.known[value.index()] {
            return Ok(id);
        }
        let info = self.model.graph.value(value);
        let tensor = match (self.folded(value), info.origin) {
            (Some(tensor), _) => tensor,
            (None, Origin::Initializer(index)) => {
                let proto = &self.model.graph.initializers()[index];
                constants::from_proto(proto, self.request.folder)?
            }
            (None, _) => {
                return Err(Refusal(match self.model.graph.producer(value) {
                    Some(node) => {
                        let node = self.model.graph.node(node);
                        let domain = match node.domain() {
                            "" => String::new(),
                            domain => format!("{domain}."),
                        };
                        format!(
                            "'{}' is made by {domain}{}, which the runtime has no kernel for",
                            info.name,
                            node.op()
                        )
                    }
                    None => format!("'{}' has no value the runtime can use", info.name),
                }));
            }
        };
        let id = self.constant(info.name.clone(), tensor);
        self.known[value.index()] = Some(id);
        Ok(id)
    }

    /// The tensor that a node reads at a place.
    ///
    /// # Errors
    /// [`Refusal`] where the operand is absent or has no value.
    pub fn input(&mut self, node: &Node, slot: usize) -> Result<TensorId, Refusal> {
        self.optional_input(node, slot)?
            .ok_or_else(|| Refusal(format!("input {slot} is missing")))
    }

    /// The tensor that a node reads at a place, `None` where the operand is absent.
    ///
    /// # Errors
    /// [`Refusal`] where it has no value.
    pub fn optional_input(
        &mut self,
        node: &Node,
        slot: usize,
    ) -> Result<Option<TensorId>, Refusal> {
        let value = node.inputs.get(slot).copied().flatten();
        value.map(|value| self.tensor(value)).transpose()
    }

    /// The node that makes what a node reads at a place, behind pins; `None` for inputs and constants.
    pub fn source(&self, node: &Node, slot: usize) -> Option<&'a Node> {
        let graph = &self.model.graph;
        let value = node.inputs.get(slot).copied().flatten()?;
        graph
            .producer(graph.unpinned(value))
            .map(|id| graph.node(id))
    }

    /// Where `Transpose`s make the tensor that a node reads at a place: what they transpose, and by
    /// which permutation (axis `i` of the result is axis `permutation[i]` of the source).
    ///
    /// # Errors
    /// [`Refusal`] where the source has no value.
    pub fn transposed_input(
        &mut self,
        node: &Node,
        slot: usize,
    ) -> Result<Option<(TensorId, Vec<usize>)>, Refusal> {
        let graph = &self.model.graph;
        let Some(mut value) = node.inputs.get(slot).copied().flatten() else {
            return Ok(None);
        };
        // Exporters transpose a weight for the forward product, and that again for the backward one.
        let mut transposes = Vec::new();
        loop {
            value = graph.unpinned(value);
            let producer = graph.producer(value).map(|id| graph.node(id));
            match producer.map(|node| (node, node.domain(), node.op(), node.inputs.first())) {
                Some((node, "", "Transpose", Some(&Some(source)))) => {
                    transposes.push(node);
                    value = source;
                }
                _ => break,
            }
        }
        if transposes.is_empty() {
            return Ok(None);
        }
        let tensor = self.tensor(value)?;
        let mut permutation: Vec<usize> = (0..self.ty(tensor).shape.len()).collect();
        for node in transposes.into_iter().rev() {
            let axes = self.permutation(node, tensor)?;
            permutation = axes.into_iter().map(|axis| permutation[axis]).collect();
        }
        Ok(Some((tensor, permutation)))
    }

    /// The permutation of a `Transpose`.
    ///
    /// # Errors
    /// [`Refusal`] where `perm` is no permutation of the axes.
    pub fn permutation(&self, node: &Node, source: TensorId) -> Result<Vec<usize>, Refusal> {
        let rank = self.program.ty(source).shape.len();
        let Some(perm) = node.ints("perm") else {
            return Ok((0..rank).rev().collect());
        };
        let axes: Option<Vec<usize>> = { perm.iter() }
            .map(|&axis| self.program.ty(source).axis(axis))
            .collect();
        let axes = axes.unwrap_or_default();
        let mut sorted = axes.clone();
        sorted.sort_unstable();
        if sorted != (0..rank).collect::<Vec<_>>() {
            return Err(Refusal(format!(
                "perm {perm:?} is no permutation of {rank} axes"
            )));
        }
        Ok(axes)
    }

    /// The integers of an operand that must be known when the plan is made, `None` where it is absent.
    ///
    /// # Errors
    /// [`Refusal`] where they are computed from data.
    pub fn constant_ints(&mut self, node: &Node, slot: usize) -> Result<Option<Vec<i64>>, Refusal> {
        let Some(value) = node.inputs.get(slot).copied().flatten() else {
            return Ok(None);
        };
        if let Some(contents) = self.shapes.contents(value) {
            let known: Option<Vec<i64>> = contents.iter().map(|d| d.as_const()).collect();
            if known.is_some() {
                return Ok(known);
            }
        }
        let tensor = self.constant_input(node, slot)?;
        tensor
            .as_ref()
            .and_then(constants::integers)
            .map(Some)
            .ok_or_else(|| {
                let name = &self.model.graph.value(value).name;
                Refusal(format!(
                    "input {slot} ('{name}') must be integers known before the first step"
                ))
            })
    }

    /// The tensor at a place where it is a constant; `None` where it is absent or computed.
    ///
    /// # Errors
    /// [`Refusal`] where it has no value.
    pub fn constant_input(&mut self, node: &Node, slot: usize) -> Result<Option<Tensor>, Refusal> {
        let Some(mut id) = self.optional_input(node, slot)? else {
            return Ok(None);
        };
        let ty = self.program.ty(id).clone();
        loop {
            match &self.program.value(id).source {
                Source::Constant(tensor) => {
                    let mut tensor = tensor.clone();
                    tensor.shape = ty.shape;
                    return Ok(Some(tensor));
                }
                Source::View(of) => id = *of,
                _ => return Ok(None),
            }
        }
    }

    /// The tensor of an attribute.
    ///
    /// # Errors
    /// [`Refusal`] where its data does not fit its type.
    pub fn attribute_tensor(&self, proto: &TensorProto) -> Result<Tensor, Refusal> {
        constants::from_proto(proto, self.request.folder)
    }

    /// The type of a tensor.
    pub fn ty(&self, id: TensorId) -> TensorType {
        self.program.ty(id).clone()
    }

    /// What is known of a tensor.
    pub fn value(&self, id: TensorId) -> &Value {
        self.program.value(id)
    }

    /// Whether somebody wants an output of a node.
    pub fn wants(&self, node: &Node, slot: usize) -> bool {
        node.outputs.get(slot).is_some_and(Option::is_some)
    }

    /// Makes the tensor of an output of a node, with the type that inference found; `None` where the
    /// output is absent.
    ///
    /// # Errors
    /// [`Refusal`] where its type is unknown.
    pub fn output(&mut self, node: &Node, slot: usize) -> Result<Option<TensorId>, Refusal> {
        let Some(value) = node.outputs.get(slot).copied().flatten() else {
            return Ok(None);
        };
        let ty = self.type_of(value)?;
        let name = self.model.graph.value(value).name.clone();
        let id = self.program.add(name, ty, Source::Computed);
        self.known[value.index()] = Some(id);
        Ok(Some(id))
    }

    /// Makes the tensor of an output that the operator always has.
    ///
    /// # Errors
    /// [`Refusal`] where it is absent or its type unknown.
    pub fn required_output(&mut self, node: &Node, slot: usize) -> Result<TensorId, Refusal> {
        self.output(node, slot)?
            .ok_or_else(|| Refusal(format!("output {slot} is missing")))
    }

    /// Makes a tensor that the file does not have.
    pub fn temporary(&mut self, what: &str, ty: TensorType) -> TensorId {
        let node = match self.node {
            Some(id) => self.model.graph.node(id).label(&self.model.graph),
            None => String::new(),
        };
        (self.program).add(format!("{node}/{what}"), ty, Source::Computed)
    }

    /// Makes a tensor whose elements are known.
    pub fn constant(&mut self, name: impl Into<String>, tensor: Tensor) -> TensorId {
        let ty = TensorType::new(tensor.data_type, tensor.shape.clone());
        self.program.add(name, ty, Source::Constant(tensor))
    }

    /// Makes a scalar of a floating-point type.
    pub fn scalar(&mut self, data_type: DataType, number: f64) -> Result<TensorId, Refusal> {
        let tensor = constants::scalar(data_type, number)?;
        Ok(self.constant(format!("{number}"), tensor))
    }

    /// Makes an output of a node share the bytes of a tensor.
    ///
    /// # Errors
    /// [`Refusal`] where the numbers of bytes differ.
    pub fn view(&mut self, node: &Node, slot: usize, of: TensorId) -> Result<(), Refusal> {
        if let Some(id) = self.output(node, slot)? {
            let (from, to) = (self.ty(of), self.ty(id));
            if from.data_type != to.data_type || from.elements() != to.elements() {
                return Err(Refusal(format!(
                    "cannot give {from} the shape of {to}: the numbers of elements differ"
                )));
            }
            self.program.values[id.index()].source = Source::View(of);
        }
        Ok(())
    }

    /// Makes a view of a tensor in another shape of as many elements.
    pub fn reshaped(&mut self, of: TensorId, shape: Vec<usize>) -> TensorId {
        let ty = TensorType::new(self.ty(of).data_type, shape);
        debug_assert_eq!(ty.elements(), self.ty(of).elements());
        let name = self.program.value(of).name.clone();
        self.program.add(name, ty, Source::View(of))
    }

    /// Adds an operation.
    pub fn emit(&mut self, op: Op, inputs: Vec<Option<TensorId>>, outputs: Vec<Option<TensorId>>) {
        let graph = &self.model.graph;
        let backward = match (self.node, self.request.partition) {
            (Some(id), Some(partition)) => partition.half(id) == Half::Backward,
            _ => false,
        };
        for &output in outputs.iter().flatten() {
            self.producers.insert(output, self.program.operations.len());
        }
        self.program.operations.push(Operation {
            op,
            inputs,
            outputs,
            node: self
                .node
                .map(|id| graph.node(id).label(graph))
                .unwrap_or_default(),
            backward,
        });
    }

    /// The operation that writes a tensor, where there is one.
    pub fn producer(&self, id: TensorId) -> Option<&Operation> {
        let place = self.producers.get(&id)?;
        self.program.operations.get(*place)
    }
}
