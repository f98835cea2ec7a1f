//! Checkpoints: all that training needs to go on as if it had not stopped, in one safetensors file.
//!
//! Tensors are named `parameter.NAME` and `optimizer.STATE.NAME`; the metadata has one entry, `velora`,
//! with the rest as JSON. A file is written beside its target, synced and renamed, so that a process killed
//! at any moment leaves the old checkpoint or the new one.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use velora_graph::shapes::DataType;

use super::optimizer::{Optimizer, State};
use super::schedule::Schedule;
use crate::data::batches::Position;
use crate::data::{DataError, Dataset, safetensors};
use crate::tensor::{Tensor, TensorView};

const KEY: &str = "velora";
const FORMAT: &str = "velora checkpoint";
/// Files with another number are refused; it changes when their meaning does.
pub const VERSION: u32 = 1;

/// What decides how training goes on, and may not change where it is to go on to the bit.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// Which model it is, in words or as a hash: compared, and shown where it differs.
    pub model: String,
    /// The seed of dropout and whatever else is drawn, other than the order of the samples.
    pub seed: u64,
    /// The optimiser; `None` where the graph has its own, whose state is among the parameters.
    pub optimizer: Option<Optimizer>,
    /// The learning rates.
    pub schedule: Option<Schedule>,
    /// The number of batches whose gradients are added up for one step.
    pub accumulate: u64,
    /// The greatest norm of all gradients together.
    pub clip: Option<f64>,
}

/// How far training has come.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Progress {
    /// The number of finished steps of the optimiser.
    pub step: u64,
    /// Where in which order of the samples the next batch begins.
    pub batches: Option<Position>,
}

/// What the metadata holds.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Header {
    format: String,
    version: u32,
    settings: Settings,
    progress: Progress,
}

/// To tell the version of a file whose other fields may be unknown.
#[derive(Deserialize)]
struct Preamble {
    format: String,
    version: u32,
}

/// A checkpoint that was read; its tensors lie in the mapped file.
#[derive(Clone, Debug, PartialEq)]
pub struct Checkpoint {
    /// The file, for messages.
    pub file: PathBuf,
    /// What must not change.
    pub settings: Settings,
    /// How far training had come.
    pub progress: Progress,
    /// Parameters and buffers by name.
    pub parameters: BTreeMap<String, Tensor>,
    /// By parameter, the tensors of state with their names, in the order of [`Optimizer::state`]; parameters
    /// that are not trained have none.
    pub state: BTreeMap<String, Vec<(&'static str, Tensor)>>,
}

/// A parameter or buffer that the model has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Expected<'a> {
    /// Its name.
    pub name: &'a str,
    /// The type of its elements.
    pub data_type: DataType,
    /// Its shape.
    pub shape: &'a [usize],
    /// Whether the optimiser updates it.
    pub trained: bool,
    /// What the optimiser keeps for it: [`Optimizer::layout`].
    pub state: &'a [State],
}

/// Why a checkpoint could not be written, read or used.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    /// The file itself.
    #[error(transparent)]
    Data(#[from] DataError),
    /// A file of tensors, but no checkpoint of this version.
    #[error("{}: {problem}; {hint}", file.display())]
    NotACheckpoint {
        /// The file.
        file: PathBuf,
        /// What was found and what was expected.
        problem: String,
        /// What may help.
        hint: &'static str,
    },
    /// One tensor is not what it should be.
    #[error("{}: {tensor}: {problem}; is the checkpoint one of this model?", file.display())]
    Tensor {
        /// The file.
        file: PathBuf,
        /// The tensor's name in the file.
        tensor: String,
        /// What was found and what was expected.
        problem: String,
    },
    /// Other settings than those of the run.
    #[error(
        "{}: the checkpoint was made with {setting} {saved}, and now it is {now}; resume with the \
         settings of the checkpoint, or begin anew from its parameters", file.display()
    )]
    Differs {
        /// The file.
        file: PathBuf,
        /// The setting's name.
        setting: &'static str,
        /// The checkpoint's value.
        saved: String,
        /// The run's value.
        now: String,
    },
}

/// Writes a checkpoint. It replaces an older one at once and completely; when this returns, it is on
/// the disk.
///
/// `state` gives parameter, name of the state, and tensor, in any order.
pub fn write<'a>(
    path: &Path,
    settings: &Settings,
    progress: &Progress,
    parameters: impl IntoIterator<Item = (&'a str, TensorView<'a>)>,
    state: impl IntoIterator<Item = (&'a str, &'a str, TensorView<'a>)>,
) -> Result<(), CheckpointError> {
    let header = Header {
        format: FORMAT.to_owned(),
        version: VERSION,
        settings: settings.clone(),
        progress: progress.clone(),
    };
    let header = serde_json::to_string(&header).map_err(|error| DataError::Malformed {
        file: path.to_path_buf(),
        problem: error.to_string(),
        hint: "the settings must be finite numbers",
    })?;
    let parameters = parameters.into_iter();
    let parameters = parameters.map(|(name, tensor)| (format!("parameter.{name}"), tensor));
    let state = state.into_iter();
    let state = state.map(|(name, state, tensor)| (format!("optimizer.{state}.{name}"), tensor));
    let tensors: Vec<(String, TensorView<'_>)> = parameters.chain(state).collect();
    safetensors::write(
        path,
        &BTreeMap::from([(KEY.to_owned(), header)]),
        tensors.iter().map(|(name, tensor)| (&name[..], *tensor)),
    )?;
    Ok(())
}

/// Reads a checkpoint, and checks that it is whole in itself.
pub fn read(path: &Path) -> Result<Checkpoint, CheckpointError> {
    decode(safetensors::read(path)?)
}

/// Takes a file of tensors as a checkpoint, and checks that it is whole in itself.
pub fn decode(dataset: Dataset) -> Result<Checkpoint, CheckpointError> {
    let file = dataset.file;
    let not = |problem: String, hint| CheckpointError::NotACheckpoint {
        file: file.clone(),
        problem,
        hint,
    };
    const NO_CHECKPOINT: &str = "training can begin with such parameters, but not resume from them";
    let Some(text) = dataset.metadata.get(KEY) else {
        let problem = format!("it has tensors, but no metadata '{KEY}'");
        return Err(not(problem, NO_CHECKPOINT));
    };
    let invalid = |error: serde_json::Error| {
        let problem = format!("its metadata '{KEY}' cannot be read: {error}");
        not(problem, "is the file damaged?")
    };
    let preamble: Preamble = serde_json::from_str(text).map_err(invalid)?;
    if preamble.format != FORMAT {
        let problem = format!("its format is '{}', expected '{FORMAT}'", preamble.format);
        return Err(not(problem, NO_CHECKPOINT));
    }
    if preamble.version != VERSION {
        let problem = format!(
            "it is a checkpoint of version {}, and this program reads version {VERSION}",
            preamble.version
        );
        return Err(not(problem, "resume with the program that wrote it"));
    }
    let header: Header = serde_json::from_str(text).map_err(invalid)?;
    let states = header.settings.optimizer.map_or(&[][..], |o| o.state());
    // Otherwise the model says which of them a parameter has: `Checkpoint::check`.
    let each_has_all = (header.settings.optimizer).is_none_or(|o| o.rank().is_none());

    let mut parameters = BTreeMap::new();
    let mut loose: BTreeMap<String, Vec<Option<Tensor>>> = BTreeMap::new();
    for (name, tensor) in dataset.arrays {
        if let Some(parameter) = name.strip_prefix("parameter.") {
            parameters.insert(parameter.to_owned(), tensor);
            continue;
        }
        // No name of a state has a dot in it.
        let state = name.strip_prefix("optimizer.");
        let state = state.and_then(|name| name.split_once('.'));
        let known = state.and_then(|(state, parameter)| {
            Some((states.iter().position(|known| *known == state)?, parameter))
        });
        let Some((index, parameter)) = known else {
            return Err(CheckpointError::Tensor {
                file,
                tensor: name,
                problem: "neither a parameter nor a state of the checkpoint's optimiser".to_owned(),
            });
        };
        let slots = loose.entry(parameter.to_owned());
        let slots = slots.or_insert_with(|| vec![None; states.len()]);
        slots[index] = Some(tensor);
    }
    let mut state = BTreeMap::new();
    for (name, slots) in loose {
        let mut tensors = Vec::with_capacity(slots.len());
        for (slot, &kind) in slots.into_iter().zip(states) {
            let problem = match (slot, parameters.contains_key(&name)) {
                (_, false) => format!("there is no parameter '{name}'"),
                (None, _) if each_has_all => "it is missing".to_owned(),
                (None, _) => continue,
                (Some(tensor), true) => {
                    tensors.push((kind, tensor));
                    continue;
                }
            };
            return Err(CheckpointError::Tensor {
                file,
                tensor: format!("optimizer.{kind}.{name}"),
                problem,
            });
        }
        state.insert(name, tensors);
    }
    Ok(Checkpoint {
        file,
        settings: header.settings,
        progress: header.progress,
        parameters,
        state,
    })
}

impl Checkpoint {
    /// Whether a run with these settings and this model can go on from here; the first difference is the
    /// error.
    pub fn check(
        &self,
        settings: &Settings,
        parameters: &[Expected<'_>],
    ) -> Result<(), CheckpointError> {
        self.check_settings(settings)?;
        let tensor = |tensor: String, problem: String| {
            Err(CheckpointError::Tensor {
                file: self.file.clone(),
                tensor,
                problem,
            })
        };
        for expected in parameters {
            let name = format!("parameter.{}", expected.name);
            let Some(found) = self.parameters.get(expected.name) else {
                return tensor(name, "it is missing, but the model has it".to_owned());
            };
            if found.data_type != expected.data_type || found.shape != expected.shape {
                let problem = format!(
                    "it is {}{:?}, but the model has {}{:?}",
                    found.data_type, found.shape, expected.data_type, expected.shape
                );
                return tensor(name, problem);
            }
            let state = self.state.get(expected.name).map_or(&[][..], |s| &s[..]);
            let trained = expected.trained && !expected.state.is_empty();
            match (trained, state.is_empty()) {
                (true, true) => {
                    let kinds: Vec<&str> = expected.state.iter().map(|s| s.name).collect();
                    let name = format!("optimizer.{}.{}", kinds.join("|"), expected.name);
                    return tensor(
                        name,
                        "it is missing, but the parameter is trained".to_owned(),
                    );
                }
                (false, false) => {
                    let problem = "it has optimiser state, but is not to be trained".to_owned();
                    return tensor(name, problem);
                }
                _ => {}
            }
            if let Some((_, state)) = state.iter().find(|(_, s)| s.data_type != DataType::FLOAT) {
                let problem = format!("its optimiser state is {}, not float", state.data_type);
                return tensor(name, problem);
            }
            let wanted = expected.state.iter();
            for State { name: kind, shape } in wanted.filter(|_| trained) {
                let name = format!("optimizer.{kind}.{}", expected.name);
                let problem = match state.iter().find(|(name, _)| name == kind) {
                    Some((_, found)) if found.shape == *shape => continue,
                    Some((_, found)) => {
                        let other = match self.settings.optimizer.and_then(|o| o.rank()) {
                            Some(_) => ", as with another --project",
                            None => "",
                        };
                        let found = &found.shape;
                        format!("it has shape {found:?}, but the optimiser {shape:?}{other}")
                    }
                    // Of the optimisers whose parameters differ in what they have.
                    None => "it is missing: --project selected other parameters".to_owned(),
                };
                return tensor(name, problem);
            }
            let known = |kind: &str| expected.state.iter().any(|state| state.name == kind);
            if let Some((kind, _)) = state.iter().find(|(kind, _)| !known(kind)) {
                let problem = "it is not expected: --project selected other parameters".to_owned();
                return tensor(format!("optimizer.{kind}.{}", expected.name), problem);
            }
        }
        let known: BTreeSet<&str> = parameters.iter().map(|p| p.name).collect();
        match self
            .parameters
            .keys()
            .find(|name| !known.contains(&name[..]))
        {
            Some(name) => tensor(
                format!("parameter.{name}"),
                "the model has no such parameter".to_owned(),
            ),
            None => Ok(()),
        }
    }

    fn check_settings(&self, now: &Settings) -> Result<(), CheckpointError> {
        // Taken apart without `..`, so that no field is forgotten.
        let Settings {
            model,
            seed,
            optimizer,
            schedule,
            accumulate,
            clip,
        } = &self.settings;
        fn json(value: &impl Serialize) -> String {
            serde_json::to_string(value).unwrap_or_else(|error| error.to_string())
        }
        let settings = [
            ("model", json(model), json(&now.model)),
            ("seed", json(seed), json(&now.seed)),
            ("optimizer", json(optimizer), json(&now.optimizer)),
            ("schedule", json(schedule), json(&now.schedule)),
            ("accumulation over", json(accumulate), json(&now.accumulate)),
            ("clipping at norm", json(clip), json(&now.clip)),
        ];
        match settings.into_iter().find(|(_, saved, now)| saved != now) {
            Some((setting, saved, now)) => Err(CheckpointError::Differs {
                file: self.file.clone(),
                setting,
                saved,
                now,
            }),
            None => Ok(()),
        }
    }
}
