//! From a model, data and settings to a session: everything is checked before any work.

use super::bind::{BindError, Bound, bind};
use super::init::{InitError, Scheme, distribution, draw};
use super::prepare::{Common, Ports, PrepareError, Purpose, plan, samples};
use super::trainer::{Kept, Session, Settings, kept};
use crate::backend::{Backend, Fault};
use crate::data::batches::{self, Batches, Input, Last};
use crate::data::{DataError, Dataset};
use crate::lower::constants;
use crate::plan::Plan;
use crate::tensor::{Tensor, TensorType};
use crate::training::{Gradients, Signature};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use thiserror::Error;
use velora_graph::analysis::partition::Partition;
use velora_graph::analysis::roles::Roles;
use velora_graph::ir::Model;

/// What is asked for.
pub struct Options<'a> {
    /// The batches to train on.
    pub data: &'a Dataset,
    /// Samples to evaluate on.
    pub evaluation: Option<&'a Dataset>,
    /// Samples in a batch.
    pub batch: Option<usize>,
    /// Sizes given to symbols.
    pub sizes: &'a BTreeMap<Arc<str>, i64>,
    /// What becomes of samples that do not fill a batch.
    pub last: Last,
    /// Whether the samples of an epoch are shuffled.
    pub shuffle: bool,
    /// Values of parameters; they win over those of the model's file.
    pub parameters: Option<&'a Dataset>,
    /// How parameters without a value are drawn.
    pub init: Option<Scheme>,
    /// How training goes.
    pub settings: Settings,
    /// The folder of external data.
    pub folder: Option<&'a Path>,
}

/// Why a session could not start.
#[derive(Debug, Error)]
pub enum StartError {
    /// Data and graph do not fit.
    #[error(transparent)]
    Bind(#[from] BindError),
    /// The graph cannot be executed.
    #[error(transparent)]
    Prepare(#[from] PrepareError),
    /// The device cannot.
    #[error(transparent)]
    Fault(#[from] Fault),
    /// The data cannot be used.
    #[error(transparent)]
    Data(#[from] DataError),
    /// A parameter cannot be drawn.
    #[error(transparent)]
    Init(#[from] InitError),
    /// Parameters without a value.
    #[error(
        "no value for {}: the file has no default for {}; give them with --params, or draw them with \
         --init-params", .names.join(", "), if .names.len() == 1 { "it" } else { "them" }
    )]
    Values {
        /// Their names.
        names: Vec<String>,
    },
    /// A value of another type.
    #[error("{source_name}: '{name}' is {found}, and the graph's parameter is {expected}")]
    Value {
        /// Where the value comes from.
        source_name: String,
        /// The parameter.
        name: String,
        /// The graph's type.
        expected: String,
        /// The value's type.
        found: String,
    },
}

/// A session and its evaluation.
pub struct Started<'b> {
    /// The session.
    pub session: Session<'b>,
    /// The held-out samples.
    pub evaluation: Option<Batches>,
    /// The number of the input with labels, where one can be told.
    pub labels: Option<usize>,
    /// Whether the inputs are sequences of tokens, so that the exponential of the loss is a perplexity.
    pub is_text: bool,
    /// The sizes of a batch.
    pub bound: Bound,
    /// What a user should know.
    pub notes: Vec<String>,
}

/// Starts a session.
///
/// # Errors
/// [`StartError`] where anything does not fit; nothing was executed then.
pub fn start<'b>(
    model: &Model,
    roles: &Roles,
    partition: &Partition,
    options: Options<'_>,
    backend: &'b dyn Backend,
) -> Result<Started<'b>, StartError> {
    let graph = &model.graph;
    let signature = Signature::new(graph, roles);
    let names: Vec<String> = (graph.inputs().iter())
        .map(|&value| graph.value(value).name.clone())
        .collect();
    let bound = bind(
        model,
        &signature,
        options.data,
        options.batch,
        options.sizes,
    )?;
    let mut settings = options.settings;
    let mut notes = Vec::new();
    if !signature.updated.is_empty() {
        notes.push(
            "the graph updates its parameters itself: its optimiser and learning rate are used"
                .to_owned(),
        );
        settings.optimizer = None;
        settings.accumulate = 1;
        settings.clip = None;
    }
    let common = Common {
        model,
        partition,
        signature: &signature,
        folder: options.folder,
        gradients: match settings.accumulate {
            0 | 1 => Gradients::Fresh,
            _ => Gradients::Summed,
        },
        state: settings.optimizer.map_or(0, |o| o.state().len()),
    };
    let total = samples(options.data, &bound, model);
    let mut plans = Plans::default();
    plans.add(&common, &bound, Purpose::Train, backend)?;
    let batches = inputs(&plans.plans[0], &bound, &names, options.data, |inputs| {
        let settings = batches::Settings {
            size: bound.size,
            last: options.last,
            shuffle: options.shuffle.then_some(settings.seed),
        };
        Batches::new(options.data, inputs, settings)
    })?;
    let resized =
        |size: usize, data: &Dataset| bind(model, &signature, data, Some(size), options.sizes);
    let rest = total % bound.size;
    if options.last == Last::Keep && rest > 0 {
        plans.add(
            &common,
            &resized(rest, options.data)?,
            Purpose::Train,
            backend,
        )?;
    }
    let mut evaluation = None;
    if let Some(data) = options.evaluation {
        let held_out = samples(data, &bound, model);
        let size = bound.size.min(held_out.max(1));
        let (whole, last) = match resized(size, data) {
            Ok(whole) => (whole, Last::Keep),
            // The graph has one batch size.
            Err(_) => (bound.clone(), Last::Drop),
        };
        plans.add(&common, &whole, Purpose::Evaluate, backend)?;
        let first = plans.plans.len() - 1;
        let rest = held_out % whole.size;
        let mut last = last;
        if last == Last::Keep && rest > 0 {
            match resized(rest, data) {
                Ok(smaller) => plans.add(&common, &smaller, Purpose::Evaluate, backend)?,
                Err(_) => last = Last::Drop,
            }
        }
        if last == Last::Drop && rest > 0 {
            notes.push(format!(
                "the graph's batch size is fixed: {rest} of {held_out} samples are not evaluated"
            ));
        }
        let plan = &plans.plans[first];
        evaluation = Some(inputs(plan, &whole, &names, data, |inputs| {
            let settings = batches::Settings {
                size: whole.size,
                last,
                shuffle: None,
            };
            Batches::new(data, inputs, settings)
        })?);
    }
    let Plans { plans, ports } = plans;
    let kept = kept(&plans[0], &names, &bound);
    let values = values(
        model,
        &kept,
        &options.parameters,
        options.init,
        settings.seed,
        options.folder,
    )?;
    let labels = labels(&ports[0], &bound, &names);
    let is_text = (ports[0].batch.iter().flatten())
        .any(|operand| !operand.ty.data_type.is_float() && operand.ty.shape.len() > 1);
    let executable = backend.prepare(plans)?;
    let mut session = Session::new(executable, ports, kept.clone(), batches, settings);
    for (kept, value) in kept.iter().zip(&values) {
        session.write(&kept.operand, &value.bytes);
    }
    Ok(Started {
        session,
        evaluation,
        labels,
        is_text,
        bound,
        notes,
    })
}

/// Plans of one model.
#[derive(Default)]
struct Plans {
    plans: Vec<Plan>,
    ports: Vec<Ports>,
}

impl Plans {
    fn add(
        &mut self,
        common: &Common<'_>,
        bound: &Bound,
        purpose: Purpose,
        backend: &dyn Backend,
    ) -> Result<(), PrepareError> {
        let (plan, ports) = plan(common, bound, purpose, backend)?;
        self.plans.push(plan);
        self.ports.push(ports);
        Ok(())
    }
}

/// Has batches made for the inputs that get data.
fn inputs(
    plan: &Plan,
    bound: &Bound,
    names: &[String],
    data: &Dataset,
    make: impl FnOnce(&[Input<'_>]) -> Result<Batches, DataError>,
) -> Result<Batches, DataError> {
    let mut types: Vec<(&str, TensorType)> = Vec::new();
    for &position in &bound.batch {
        let name = names[position].as_str();
        let ty = match plan.inputs.get(position).and_then(Option::as_ref) {
            Some(operand) => operand.ty.clone(),
            // Nothing reads it: whatever the data is will do.
            None => match data.arrays.get(name) {
                Some(array) => {
                    let mut shape = array.shape.clone();
                    if let Some(first) = shape.first_mut() {
                        *first = bound.size;
                    }
                    TensorType::new(array.data_type, shape)
                }
                None => continue,
            },
        };
        types.push((name, ty));
    }
    let inputs: Vec<Input<'_>> = (types.iter())
        .map(|(name, ty)| Input {
            name,
            data_type: ty.data_type,
            shape: &ty.shape,
            axis: 0,
        })
        .collect();
    make(&inputs)
}

/// The first value of every kept tensor.
fn values(
    model: &Model,
    kept: &[Kept],
    parameters: &Option<&Dataset>,
    init: Option<Scheme>,
    seed: u64,
    folder: Option<&Path>,
) -> Result<Vec<Tensor>, StartError> {
    let graph = &model.graph;
    let mut missing = Vec::new();
    let mut values = Vec::new();
    for kept in kept {
        let ty = &kept.operand.ty;
        let given = parameters.and_then(|data| {
            let tensor = data.arrays.get(&kept.name)?;
            Some((data.file.display().to_string(), tensor.clone()))
        });
        let default = || {
            let proto = graph
                .initializers()
                .iter()
                .find(|t| t.name() == kept.name)?;
            let tensor = constants::from_proto(proto, folder).ok()?;
            Some(("the model's default".to_owned(), tensor))
        };
        let value = match given.or_else(default) {
            Some((source_name, tensor)) => {
                let found = TensorType::new(tensor.data_type, tensor.shape.clone());
                if found != *ty {
                    return Err(StartError::Value {
                        source_name,
                        name: kept.name.clone(),
                        expected: ty.to_string(),
                        found: found.to_string(),
                    });
                }
                tensor
            }
            None if kept.is_state => Tensor {
                data_type: ty.data_type,
                shape: ty.shape.clone(),
                bytes: vec![0; ty.bytes()].into(),
            },
            None => {
                let value = graph
                    .inputs()
                    .iter()
                    .find(|&&v| graph.value(v).name == kept.name);
                match (init, value) {
                    (Some(scheme), Some(&value)) => {
                        let from = distribution(scheme, graph, value, &ty.shape);
                        draw(from, seed, &kept.name, ty.data_type, &ty.shape)?
                    }
                    _ => {
                        missing.push(kept.name.clone());
                        continue;
                    }
                }
            }
        };
        values.push(value);
    }
    if !missing.is_empty() {
        return Err(StartError::Values { names: missing });
    }
    Ok(values)
}

/// The input with the labels: the only one with an integer for every row of logits, or of several the
/// one whose name says so.
fn labels(ports: &Ports, bound: &Bound, names: &[String]) -> Option<usize> {
    let logits = ports.logits.as_ref()?;
    let (_, rows) = logits.ty.shape.split_last()?;
    let rows: usize = rows.iter().product();
    let fits = |number: &usize| {
        let operand = ports.batch.get(*number).and_then(Option::as_ref);
        operand.is_some_and(|o| !o.ty.data_type.is_float() && o.ty.elements() == rows)
    };
    let candidates: Vec<usize> = (0..ports.batch.len()).filter(fits).collect();
    if let [only] = candidates[..] {
        return Some(only);
    }
    let named = |number: &usize| {
        let position = bound.batch.iter().nth(*number);
        let name = position.map(|&position| names[position].to_lowercase());
        name.is_some_and(|name| name == "y" || name.contains("label") || name.contains("target"))
    };
    candidates.into_iter().find(named)
}
