//! One batch and a value for every other input of a graph: what a single evaluation of a training graph
//! needs, found as a training run would find it.

use super::bind::{Bound, bind};
use super::init::Scheme;
use super::start::{Sources, StartError, Wanted, batches_of, values};
use crate::data::batches::{self, Last};
use crate::data::{DataError, Dataset};
use crate::lower::{Request, lower};
use crate::session::prepare::PrepareError;
use crate::tensor::{Tensor, TensorType};
use crate::training::Signature;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;
use velora_graph::analysis::partition::{Half, Partition};
use velora_graph::analysis::roles::Roles;
use velora_graph::ir::Model;
use velora_graph::shapes::DataType;

/// What values are taken from.
#[derive(Clone, Copy, Debug)]
pub struct Given<'a> {
    /// The samples; the first of them make the batch.
    pub data: &'a Dataset,
    /// Samples in the batch.
    pub batch: Option<usize>,
    /// Sizes given to symbols.
    pub sizes: &'a BTreeMap<Arc<str>, i64>,
    /// Values of parameters; they win over those of the model's file.
    pub parameters: Option<&'a Dataset>,
    /// How parameters without a value are drawn.
    pub init: Option<Scheme>,
    /// The seed of that.
    pub seed: u64,
    /// The folder of external data.
    pub folder: Option<&'a Path>,
}

/// Values of inputs.
#[derive(Clone, Debug)]
pub struct Inputs {
    /// By name of the input.
    pub tensors: BTreeMap<String, Tensor>,
    /// Which of them are data, and the sizes of the batch.
    pub bound: Bound,
    /// What a user should know.
    pub notes: Vec<String>,
}

/// Finds a value for every input that a graph reads.
///
/// The batch is the first of the data, in the file's order. Sums of gradients start anew, and state of an
/// optimiser inside the graph is 0 where the file has no value for it.
///
/// # Errors
/// [`StartError`] as when a run starts: data or parameters do not fit, or are missing.
pub fn inputs(
    model: &Model,
    roles: &Roles,
    partition: &Partition,
    given: &Given<'_>,
) -> Result<Inputs, StartError> {
    let graph = &model.graph;
    let signature = Signature::new(graph, roles);
    let bound = bind(model, &signature, given.data, given.batch, given.sizes)?;
    let request = Request {
        sizes: &bound.sizes,
        partition: Some(partition),
        folder: given.folder,
        evaluation: false,
    };
    let program = lower(model, &request).map_err(PrepareError::from)?;
    let types: Vec<Option<TensorType>> = (program.inputs.iter())
        .map(|input| Some(program.ty((*input)?).clone()))
        .collect();
    let names: Vec<String> = (graph.inputs().iter())
        .map(|&value| graph.value(value).name.clone())
        .collect();
    let order = batches::Settings {
        size: bound.size,
        last: Last::Drop,
        shuffle: None,
    };
    let batches = batches_of(given.data, &types, &bound, &names, order)?;
    let mut tensors = BTreeMap::new();
    let read = |position: usize| types.get(position).and_then(Option::as_ref);
    let mut number = 0;
    for &position in &bound.batch {
        let Some(ty) = read(position) else {
            // Data that nothing reads still has its number among the batches.
            number += 1;
            continue;
        };
        let mut bytes = vec![0; ty.bytes()];
        (batches.copy(number, &mut bytes)).map_err(|error| DataError::Batches {
            file: given.data.file.clone(),
            problem: format!("input '{}': {error}", names[position]),
            hint: "give the batch size that the graph was exported with",
        })?;
        number += 1;
        tensors.insert(names[position].clone(), tensor(ty, bytes));
    }
    let trained: BTreeSet<usize> = signature.trained.iter().map(|p| p.input).collect();
    let updated: BTreeSet<usize> = signature.updated.iter().map(|&(input, _)| input).collect();
    let others: BTreeSet<usize> = signature.others.iter().copied().collect();
    let forward = |position: usize| {
        let mut users = graph.value(graph.inputs()[position]).users.iter();
        users.any(|user| partition.half(user.node) == Half::Forward)
    };
    let mut stay = Vec::new();
    for position in (0..names.len()).filter(|position| !bound.batch.contains(position)) {
        let Some(ty) = read(position) else { continue };
        let has_value = [&trained, &updated, &others];
        if has_value.iter().any(|set| set.contains(&position)) {
            stay.push(Wanted {
                name: &names[position],
                ty,
                trained: trained.contains(&position),
                is_state: updated.contains(&position) && !forward(position),
            });
            continue;
        }
        // The buffer of an accumulator, or the flag that lets it start anew.
        let start = u8::from(ty.data_type == DataType::BOOL);
        tensors.insert(names[position].clone(), tensor(ty, vec![start; ty.bytes()]));
    }
    let sources = Sources {
        data: given.data,
        parameters: given.parameters,
        init: given.init,
        seed: given.seed,
        folder: given.folder,
    };
    let mut notes = Vec::new();
    let found = values(model, &stay, &sources, &mut notes)?;
    let named = stay.iter().map(|wanted| wanted.name.to_owned());
    tensors.extend(named.zip(found));
    Ok(Inputs {
        tensors,
        bound,
        notes,
    })
}

fn tensor(ty: &TensorType, bytes: Vec<u8>) -> Tensor {
    Tensor {
        data_type: ty.data_type,
        shape: ty.shape.clone(),
        bytes: bytes.into(),
    }
}
