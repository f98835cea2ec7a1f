//! Graphs evaluated on a batch: which values are the same, and how far weight gradients are from exact.
//!
//! A [`Bench`] gives any values of a graph by name. They are made outputs of a copy of it, as many at once
//! as [`CHUNK`] bytes hold, so that memory stays bounded whatever is asked for.

pub mod bits;
pub mod factors;
pub mod fidelity;
pub mod layers;

use crate::cli::BatchArguments;
use anyhow::{Context, Result};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use velora_graph::analysis::partition::Partition;
use velora_graph::analysis::roles::Roles;
use velora_graph::ir::{Model, ValueId};
use velora_graph::onnx::make::tensor_info;
use velora_graph::onnx::schema::ValueInfoProto;
use velora_graph::shapes::Shapes;
use velora_runtime::cpu::Cpu;
use velora_runtime::data;
use velora_runtime::evaluate::evaluate;
use velora_runtime::lower::Request;
use velora_runtime::session::init::Scheme;
use velora_runtime::session::inputs::{Given, Inputs, inputs};
use velora_runtime::tensor::Tensor;

/// Bytes of values that one evaluation hands out.
const CHUNK: i64 = 128 << 20;

/// Reads data and parameters, and fits them to a graph.
///
/// # Errors
/// Where a file cannot be read, or does not fit the graph.
pub fn read_inputs(
    data: &Path,
    arguments: &BatchArguments,
    model: &Model,
    folder: Option<&Path>,
    (roles, partition): (&Roles, &Partition),
    sizes: &BTreeMap<Arc<str>, i64>,
) -> Result<Inputs> {
    let read = |path: &Path| data::read(path).context("cannot use the data");
    let data = read(data)?;
    let parameters = arguments.params.as_deref().map(read).transpose()?;
    let given = Given {
        data: &data,
        batch: arguments.batch,
        sizes,
        parameters: parameters.as_ref(),
        init: arguments.init_params.map(Scheme::from),
        seed: arguments.seed,
        folder,
    };
    Ok(inputs(model, roles, partition, &given)?)
}

/// A graph that can be evaluated on a batch.
pub struct Bench<'a> {
    /// The graph, without functions but the tool's own.
    pub model: &'a Model,
    /// The folder of its external data.
    pub folder: Option<&'a Path>,
    /// The batch.
    pub inputs: &'a Inputs,
    /// The device.
    pub cpu: &'a Cpu,
}

impl Bench<'_> {
    /// The named values of the graph. They are computed by one evaluation: see [`chunks`].
    ///
    /// # Errors
    /// Where the graph cannot be executed.
    pub fn values<'n>(
        &self,
        names: impl IntoIterator<Item = &'n str>,
    ) -> Result<BTreeMap<String, Tensor>> {
        let names: Vec<String> = names.into_iter().map(str::to_owned).collect();
        if names.is_empty() {
            return Ok(BTreeMap::new());
        }
        let mut proto = self.model.to_proto();
        if let Some(graph) = &mut proto.graph {
            let outputs = names.iter().map(|name| ValueInfoProto {
                name: Some(name.clone()),
                ..Default::default()
            });
            graph.output = outputs.collect();
        }
        let model = Model::from_proto(proto)?;
        let request = Request {
            sizes: &self.inputs.bound.sizes,
            partition: None,
            folder: self.folder,
            evaluation: false,
        };
        let values = evaluate(&model, &request, &self.inputs.tensors, self.cpu)?;
        Ok(names.into_iter().zip(values).collect())
    }

    /// One value of the graph, where a node reads another tensor at one place; the node is the one that makes
    /// a value of that name.
    ///
    /// # Errors
    /// Where there is no such node, or the graph cannot be executed.
    pub fn substituted(
        &self,
        (maker, slot): (&str, usize),
        tensor: &Tensor,
        wanted: &str,
    ) -> Result<Tensor> {
        const NAME: &str = "velora.substitute";
        let mut proto = self.model.to_proto();
        let graph = proto.graph.get_or_insert_default();
        let mut nodes = graph.node.iter_mut();
        let node = nodes.find(|node| node.output.iter().any(|output| output == maker));
        let read = node.and_then(|node| node.input.get_mut(slot));
        let read = read.with_context(|| format!("no node makes '{maker}' from {slot} operands"))?;
        NAME.clone_into(read);
        let dims = tensor.shape.iter().map(|&size| size as i64);
        graph.input.push(tensor_info(NAME, tensor.data_type, dims));
        let mut inputs = self.inputs.clone();
        inputs.tensors.insert(NAME.to_owned(), tensor.clone());
        let bench = Bench {
            model: &Model::from_proto(proto)?,
            inputs: &inputs,
            ..*self
        };
        let values = bench.values([wanted])?;
        values.into_values().next().context("nothing was computed")
    }
}

/// Cuts a list of values into chunks that hold at most [`CHUNK`] bytes each, or one value.
pub fn chunks<T>(items: Vec<T>, bytes: impl Fn(&T) -> i64) -> Vec<Vec<T>> {
    let mut chunks: Vec<Vec<T>> = Vec::new();
    let mut left = 0;
    for item in items {
        let size = bytes(&item);
        match chunks.last_mut().filter(|_| size <= left) {
            Some(chunk) => chunk.push(item),
            None => {
                left = CHUNK;
                chunks.push(vec![item]);
            }
        }
        left -= size.min(left);
    }
    chunks
}

/// The bytes of a value with the batch's sizes; a whole chunk where they are unknown.
pub fn bytes_of(shapes: &Shapes, value: ValueId) -> i64 {
    let bytes = shapes.bytes(value).and_then(|bytes| bytes.as_const());
    bytes.unwrap_or(CHUNK)
}
