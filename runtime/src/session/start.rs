//! From a model, data and settings to a session: everything is checked before any work.

use super::bind::{BindError, Bound, bind, samples};
use super::directions::Unfilled;
use super::init::{InitError, Scheme, distribution, draw};
use super::optimizer::OptimizerError;
use super::prepare::{Common, Ports, PrepareError, Purpose, check_projected, plan};
use super::trainer::{Session, Settings, kept};
use crate::backend::{Backend, Fault};
use crate::data::batches::{self, Batches, Input, Last};
use crate::data::{DataError, Dataset};
use crate::lower::constants;
use crate::plan::Plan;
use crate::tensor::{Tensor, TensorType};
use crate::training::{Gradients, Keeps, Signature};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
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
    /// By name, whether the gradient of a trained parameter is to be compressed, where the optimiser does so;
    /// without it all are that can be.
    pub project: Option<&'a dyn Fn(&str) -> bool>,
    /// Directions that the first batch is to fill; the model then is one that
    /// [`super::directions::measuring`] made.
    pub unfilled: &'a [Unfilled],
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
        "no value for {}: the file has no default for {}; give {1} with --params, or draw {1} with \
         --init-params", list(.names), if .names.len() == 1 { "it" } else { "them" }
    )]
    Values {
        /// Their names.
        names: Vec<String>,
    },
    /// Gradients were to be accumulated or clipped, but do not come out of the graph.
    #[error(
        "the graph updates its parameters itself, so that its gradients can neither be accumulated nor \
         clipped; leave out --accumulate and --clip"
    )]
    Inside,
    /// The optimiser needs gradients at full size, and some come as factors.
    #[error("the gradient of '{parameter}' is factored: {problem}")]
    Factored {
        /// The first parameter with a factored gradient.
        parameter: String,
        /// Why the optimiser cannot.
        problem: OptimizerError,
    },
    /// The optimiser has no kernels on the device.
    #[error(
        "{optimizer} runs on the CPU only, not on {device}; use --device cpu, or another --optimizer"
    )]
    Device {
        /// The optimiser.
        optimizer: &'static str,
        /// The device.
        device: String,
    },
    /// Nothing that could be projected was named.
    #[error(
        "--project names no trained matrix with both sides above the rank, {rank}; there {}",
        match .matrices.is_empty() {
            true => "is none".to_owned(),
            false => format!("are {}", list(.matrices)),
        }
    )]
    Projects {
        /// The rank.
        rank: u64,
        /// The matrices that could be.
        matrices: Vec<String>,
    },
    /// A default that cannot be read.
    #[error("the default of parameter '{name}': {problem}")]
    Default {
        /// The parameter.
        name: String,
        /// What is wrong.
        problem: String,
    },
    /// Values for other parameters.
    #[error(
        "{}: no array is named after a parameter of the graph; the file has {}, and the parameters \
         are {}", file.display(), list(.arrays), list(.parameters)
    )]
    NoParameter {
        /// The file.
        file: PathBuf,
        /// Its arrays.
        arrays: Vec<String>,
        /// The graph's parameters.
        parameters: Vec<String>,
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

/// Some names in a line.
fn list(names: &[String]) -> String {
    const SHOWN: usize = 6;
    let shown: Vec<String> = (names.iter().take(SHOWN))
        .map(|name| format!("'{name}'"))
        .collect();
    let shown = shown.join(", ");
    match names.len().checked_sub(SHOWN) {
        _ if names.is_empty() => "none".to_owned(),
        None | Some(0) => shown,
        Some(more) => format!("{shown} and {more} more"),
    }
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
    let resized =
        |size: usize, data: &Dataset| bind(model, &signature, data, Some(size), options.sizes);
    let mut bound = bind(
        model,
        &signature,
        options.data,
        options.batch,
        options.sizes,
    )?;
    let total = samples(options.data, model, &bound.batch).unwrap_or(0);
    if options.last == Last::Keep && total > 0 && total < bound.size {
        // Each batch is the smaller one.
        bound = resized(total, options.data)?;
    }
    let mut settings = options.settings.clone();
    let mut notes = Vec::new();
    if !signature.updated.is_empty() {
        if settings.accumulate > 1 || settings.clip.is_some() {
            return Err(StartError::Inside);
        }
        notes.push(
            "the graph updates its parameters itself: its optimiser and learning rate are used"
                .to_owned(),
        );
        settings.optimizer = None;
    }
    let factored = signature.trained.iter().find(|p| p.factor.is_some());
    if let (Some(parameter), Some(optimizer)) = (factored, settings.optimizer) {
        let parameter = names[parameter.input].clone();
        let problem = optimizer.check_factored();
        problem.map_err(|problem| StartError::Factored { parameter, problem })?;
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
        keeps: Keeps {
            optimizer: settings.optimizer,
            project: options.project,
        },
    };
    if let Some(optimizer) = settings.optimizer.filter(|o| o.rank().is_some())
        && !backend.compresses_gradients()
    {
        return Err(StartError::Device {
            optimizer: optimizer.name(),
            device: backend.name(),
        });
    }
    let mut plans = Plans::default();
    plans.add(&common, &bound, Purpose::Train, backend)?;
    notes.extend(check_projected(&common, &plans.plans[0], &names)?);
    let order = batches::Settings {
        size: bound.size,
        last: options.last,
        shuffle: options.shuffle.then_some(settings.seed),
    };
    let batches = batches_of(
        options.data,
        &types_of(&plans.plans[0]),
        &bound,
        &names,
        order,
    )?;
    let rest = total % bound.size;
    if options.last == Last::Keep && rest > 0 {
        plans.add(
            &common,
            &resized(rest, options.data)?,
            Purpose::Train,
            backend,
        )?;
    }
    if !options.unfilled.is_empty() {
        plans.add(&common, &bound, Purpose::Measure, backend)?;
    }
    let mut evaluation = None;
    if let Some(data) = options.evaluation {
        let absent = |position: &&usize| !data.arrays.contains_key(&names[**position]);
        if let Some(&position) = bound.batch.iter().find(absent) {
            let operand = plans.plans[0].inputs.get(position).and_then(Option::as_ref);
            let expected = operand.map_or("data".to_owned(), |o| o.ty.to_string());
            return Err(no_array(&names[position], expected, data).into());
        }
        let held_out = samples(data, model, &bound.batch).unwrap_or(0);
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
            // Inside the graph, too, a size may be fixed.
            let smaller = resized(rest, data).map_err(StartError::from);
            let added = smaller.and_then(|smaller| {
                Ok(plans.add(&common, &smaller, Purpose::Evaluate, backend)?)
            });
            if added.is_err() {
                last = Last::Drop;
            }
        }
        if last == Last::Drop && rest > 0 {
            notes.push(format!(
                "the graph's batch size is fixed: {rest} of {held_out} samples are not evaluated"
            ));
        }
        let plan = &plans.plans[first];
        let order = batches::Settings {
            size: whole.size,
            last,
            shuffle: None,
        };
        evaluation = Some(batches_of(data, &types_of(plan), &whole, &names, order)?);
    }
    let Plans { plans, ports } = plans;
    let kept = kept(&plans[0], &names, &bound);
    let wanted: Vec<Wanted<'_>> = (kept.iter())
        .map(|kept| Wanted {
            name: &kept.name,
            ty: &kept.operand.ty,
            trained: kept.trained,
            is_state: kept.is_state,
        })
        .collect();
    let sources = Sources {
        data: options.data,
        parameters: options.parameters,
        init: options.init,
        seed: settings.seed,
        folder: options.folder,
    };
    let values = values(model, &wanted, &sources, &mut notes)?;
    let labels = labels(&ports[0], &bound, &names);
    let is_text = (ports[0].batch.iter().flatten())
        .any(|operand| !operand.ty.data_type.is_float() && operand.ty.shape.len() > 1);
    let executable = backend.prepare(plans)?;
    let mut session = Session::new(executable, ports, kept.clone(), batches, settings);
    for (kept, value) in kept.iter().zip(&values) {
        session.write(&kept.operand, &value.bytes)?;
    }
    // Directions that come with the parameters are those of an earlier run.
    let given = |name: &str| {
        options
            .parameters
            .is_some_and(|p| p.arrays.contains_key(name))
    };
    session.fill_first(options.unfilled.to_vec(), given);
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

/// The types of a plan's inputs.
fn types_of(plan: &Plan) -> Vec<Option<TensorType>> {
    let inputs = plan.inputs.iter();
    inputs
        .map(|input| Some(input.as_ref()?.ty.clone()))
        .collect()
}

/// Batches for the inputs that get data; `read` has the types of those that are read.
pub(super) fn batches_of(
    data: &Dataset,
    read: &[Option<TensorType>],
    bound: &Bound,
    names: &[String],
    order: batches::Settings,
) -> Result<Batches, DataError> {
    let mut types: Vec<(&str, TensorType)> = Vec::new();
    for &position in &bound.batch {
        let name = names[position].as_str();
        let ty = match read.get(position).and_then(Option::as_ref) {
            Some(ty) => ty.clone(),
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
    Batches::new(data, &inputs, order)
}

/// An input that stays from step to step.
pub(super) struct Wanted<'a> {
    pub name: &'a str,
    pub ty: &'a TensorType,
    /// Whether it is trained.
    pub trained: bool,
    /// Whether it is state of an optimiser inside the graph, which starts with zeros.
    pub is_state: bool,
}

/// Where values come from.
pub(super) struct Sources<'a> {
    pub data: &'a Dataset,
    pub parameters: Option<&'a Dataset>,
    pub init: Option<Scheme>,
    pub seed: u64,
    pub folder: Option<&'a Path>,
}

/// The first value of every input that stays.
pub(super) fn values(
    model: &Model,
    wanted: &[Wanted<'_>],
    sources: &Sources<'_>,
    notes: &mut Vec<String>,
) -> Result<Vec<Tensor>, StartError> {
    let graph = &model.graph;
    if let Some(given) = sources.parameters {
        check_names(wanted, given, notes)?;
    }
    let mut missing = Vec::new();
    let mut values = Vec::new();
    for kept in wanted {
        let ty = kept.ty;
        let (source_name, value) = match given(model, kept.name, sources)? {
            Some(found) => found,
            None if kept.is_state => {
                let bytes = vec![0; ty.bytes()].into();
                let (data_type, shape) = (ty.data_type, ty.shape.clone());
                values.push(Tensor {
                    data_type,
                    shape,
                    bytes,
                });
                continue;
            }
            None => {
                // Numbers of classes or tokens are no parameters: it is data that is missing.
                if !kept.trained && !ty.data_type.is_float() {
                    return Err(no_array(kept.name, ty.to_string(), sources.data).into());
                }
                let value = graph
                    .inputs()
                    .iter()
                    .find(|&&v| graph.value(v).name == kept.name);
                match (sources.init, value) {
                    (Some(scheme), Some(&value)) => {
                        let from = distribution(scheme, graph, value, &ty.shape);
                        let seed = sources.seed;
                        values.push(draw(from, seed, kept.name, ty.data_type, &ty.shape)?);
                    }
                    _ => missing.push(kept.name.to_owned()),
                }
                continue;
            }
        };
        let found = TensorType::new(value.data_type, value.shape.clone());
        if found != *ty {
            return Err(StartError::Value {
                source_name,
                name: kept.name.to_owned(),
                expected: ty.to_string(),
                found: found.to_string(),
            });
        }
        values.push(value);
    }
    match missing.is_empty() {
        true => Ok(values),
        false => Err(StartError::Values { names: missing }),
    }
}

/// A parameter's value, and where it is from: the user's file, or the model's default.
fn given(
    model: &Model,
    name: &str,
    sources: &Sources<'_>,
) -> Result<Option<(String, Tensor)>, StartError> {
    if let Some(data) = sources.parameters
        && let Some(tensor) = data.arrays.get(name)
    {
        return Ok(Some((data.file.display().to_string(), tensor.clone())));
    }
    let Some(tensor) = constants::default(&model.graph, name, sources.folder) else {
        return Ok(None);
    };
    let tensor = tensor.map_err(|problem| StartError::Default {
        name: name.to_owned(),
        problem: problem.to_string(),
    })?;
    Ok(Some(("the model's default".to_owned(), tensor)))
}

/// Whether a file of parameters is one for this graph.
fn check_names(
    wanted: &[Wanted<'_>],
    given: &Dataset,
    notes: &mut Vec<String>,
) -> Result<(), StartError> {
    let known = |name: &String| wanted.iter().any(|wanted| wanted.name == name);
    let arrays: Vec<String> = given.arrays.keys().cloned().collect();
    let unknown: Vec<String> = arrays.iter().filter(|name| !known(name)).cloned().collect();
    if unknown.len() == arrays.len() {
        return Err(StartError::NoParameter {
            file: given.file.clone(),
            arrays,
            parameters: wanted.iter().map(|wanted| wanted.name.to_owned()).collect(),
        });
    }
    if !unknown.is_empty() {
        notes.push(format!(
            "{}: the graph has no parameter {}",
            given.file.display(),
            list(&unknown)
        ));
    }
    Ok(())
}

/// An input that data has nothing for.
fn no_array(name: &str, expected: String, data: &Dataset) -> DataError {
    let arrays: Vec<String> = data.arrays.keys().cloned().collect();
    DataError::Missing {
        file: data.file.clone(),
        input: name.to_owned(),
        expected,
        found: list(&arrays),
    }
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
