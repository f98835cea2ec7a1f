//! A training run: batches in, steps of the optimiser, evaluation, checkpoints.
//!
//! Whatever convention a graph follows ([`crate::training`]), it is driven the same way. Nothing is
//! allocated in [`Session::step`], but where an optimiser looks for singular vectors
//! ([`Optimizer::update_shaped`]).

use super::bind::Bound;
use super::checkpoint::{self, Checkpoint, CheckpointError, Expected, Progress};
use super::directions::{Moments, Unfilled, solve};
use super::evaluation::{Evaluation, Score};
use super::gradient::clip_coefficient;
use super::nonfinite::{NonFinite, Search};
use super::optimizer::{Optimizer, State, Step};
use super::prepare::{Ports, Purpose};
use super::schedule::Schedule;
use crate::backend::{Executable, Fault, Observer, StepContext};
use crate::data::batches::{Batches, WrongLength};
use crate::plan::{Operand, Plan, Region};
use crate::tensor::{Tensor, TensorView};
use std::path::Path;
use thiserror::Error;
use velora_graph::shapes::DataType;

/// What decides how training goes.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    /// The optimiser; `None` where the graph has its own.
    pub optimizer: Option<Optimizer>,
    /// The learning rates.
    pub schedule: Schedule,
    /// Batches whose gradients are averaged for one step.
    pub accumulate: u64,
    /// The greatest norm of all gradients together.
    pub clip: Option<f64>,
    /// Seed of what is random in the graph.
    pub seed: u64,
    /// Which model it is, for checkpoints.
    pub model: String,
}

/// Why training stopped.
#[derive(Debug, Error)]
pub enum SessionError {
    /// A step failed.
    #[error("step {step}: {fault}")]
    Fault {
        /// The step.
        step: u64,
        /// What failed.
        fault: Fault,
    },
    /// The device failed between two steps.
    #[error(transparent)]
    Device(#[from] Fault),
    /// The loss is no number any more.
    #[error(transparent)]
    NonFinite(#[from] NonFinite),
    /// A batch does not fit its place.
    #[error(transparent)]
    Batch(#[from] WrongLength),
    /// A checkpoint could not be written or does not fit.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// An activation is no number, so that its directions cannot be found.
    #[error(
        "the activation '{activation}' is no number somewhere in the first batch, so that it has no \
         direction; check the data and the parameters"
    )]
    Direction {
        /// The activation.
        activation: String,
    },
    /// The data of a checkpoint's position is not this data.
    #[error(transparent)]
    Data(#[from] crate::data::DataError),
}

/// What a step did.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Report {
    /// The step, from 1.
    pub step: u64,
    /// The loss, averaged over the batches accumulated.
    pub loss: f64,
    /// The learning rate used.
    pub learning_rate: f64,
    /// The norm of all gradients together, where it was asked for.
    pub gradient_norm: Option<f64>,
}

/// A tensor that stays from step to step.
#[derive(Clone, Debug)]
pub struct Kept {
    /// The graph's name for it.
    pub name: String,
    /// Where it is.
    pub operand: Operand,
    /// What the optimiser keeps for it.
    pub state: Vec<Operand>,
    /// Whether the optimiser compresses its gradient.
    pub projected: bool,
    /// Whether the optimiser updates it.
    pub trained: bool,
    /// Whether it is state of an optimiser inside the graph, which starts with zeros.
    pub is_state: bool,
}

/// A run in progress.
pub struct Session<'b> {
    executable: Box<dyn Executable + 'b>,
    ports: Vec<Ports>,
    selected: usize,
    /// Parameters and other state, in the order of the graph's inputs.
    kept: Vec<Kept>,
    batches: Batches,
    settings: Settings,
    /// Finished steps of the optimiser.
    step: u64,
    /// By region: the most bytes that a plan selected so far gives it.
    planned: [usize; 6],
    /// Directions that a plan measures, and whether the first batch fills them.
    unfilled: Vec<(Unfilled, bool)>,
}

impl<'b> Session<'b> {
    /// A run on prepared plans: the first of them trains a whole batch.
    pub fn new(
        executable: Box<dyn Executable + 'b>,
        ports: Vec<Ports>,
        kept: Vec<Kept>,
        batches: Batches,
        settings: Settings,
    ) -> Self {
        let planned = Region::ALL.map(|region| executable.plan().bytes(region));
        Session {
            planned,
            executable,
            ports,
            selected: 0,
            kept,
            batches,
            settings,
            step: 0,
            unfilled: Vec::new(),
        }
    }

    /// Lets the first batch fill directions, which a plan measures in that order, other than those that
    /// are given already.
    pub fn fill_first(&mut self, unfilled: Vec<Unfilled>, given: impl Fn(&str) -> bool) {
        let marked = unfilled.into_iter().map(|direction| {
            let fills = !given(&direction.name);
            (direction, fills)
        });
        self.unfilled = marked.collect();
    }

    /// Fills directions from the next batches, which are not used up, and gives them by name.
    ///
    /// # Errors
    /// [`SessionError`] where an operation fails or an activation is no number.
    pub fn fill_directions(&mut self, batches: u64) -> Result<Vec<(String, Tensor)>, SessionError> {
        let unfilled = std::mem::take(&mut self.unfilled);
        if !unfilled.iter().any(|(_, fills)| *fills) {
            return Ok(Vec::new());
        }
        let mut moments = vec![Moments::default(); unfilled.len()];
        let begin = self.batches.position().clone();
        for number in 0..batches {
            self.select(Purpose::Measure)?;
            let ports = &self.ports[self.selected];
            feed(&mut *self.executable, ports, &self.batches)?;
            let context = StepContext {
                seed: self.settings.seed,
                step: self.step + number,
            };
            let step = self.step;
            (self.executable.run(&context, None))
                .map_err(|fault| SessionError::Fault { step, fault })?;
            let operands = ports.measured.clone();
            for (moments, operand) in moments.iter_mut().zip(&operands) {
                moments.add(&self.read(operand)?.to_f32().unwrap_or_default());
            }
            self.batches.advance();
        }
        self.batches.resume(&begin)?;
        let mut filled = Vec::new();
        for ((direction, fills), moments) in unfilled.into_iter().zip(&moments) {
            if !fills {
                continue;
            }
            let entries = solve(&direction, moments).map_err(|_| SessionError::Direction {
                activation: direction.input.clone(),
            })?;
            let tensor = Tensor {
                data_type: DataType::FLOAT,
                shape: direction.shape,
                bytes: entries.iter().flat_map(|e| e.to_le_bytes()).collect(),
            };
            let kept = self.kept.iter().find(|kept| kept.name == direction.name);
            if let Some(kept) = kept {
                self.executable.write(kept.operand.buffer, &tensor.bytes)?;
            }
            filled.push((direction.name, tensor));
        }
        Ok(filled)
    }

    /// Finished steps.
    pub fn steps(&self) -> u64 {
        self.step
    }

    /// Sets the learning rates, before the first step.
    pub fn set_schedule(&mut self, schedule: Schedule) {
        self.settings.schedule = schedule;
    }

    /// Where the next batch begins.
    pub fn batches(&self) -> &Batches {
        &self.batches
    }

    /// The selected plan: that of a whole training batch until another was needed.
    pub fn plan(&self) -> &Plan {
        self.executable.plan()
    }

    /// By region: the bytes that the plans used so far give it, and those that steps have touched.
    pub fn memory(&self) -> [(Region, usize, usize); 6] {
        let touched = self.executable.touched();
        let mut number = 0;
        Region::ALL.map(|region| {
            number += 1;
            (region, self.planned[number - 1], touched[number - 1])
        })
    }

    /// Parameters and other state that stays.
    pub fn kept(&self) -> &[Kept] {
        &self.kept
    }

    /// Writes a kept tensor or a tensor of its state.
    ///
    /// # Errors
    /// [`Fault`] where the device fails.
    pub fn write(&mut self, operand: &Operand, bytes: &[u8]) -> Result<(), Fault> {
        self.executable.write(operand.buffer, bytes)
    }

    /// Reads one.
    ///
    /// # Errors
    /// [`Fault`] where the device fails.
    pub fn read(&self, operand: &Operand) -> Result<Tensor, Fault> {
        let mut bytes = vec![0; operand.ty.bytes()];
        self.executable.read(operand.buffer, &mut bytes)?;
        Ok(Tensor {
            data_type: operand.ty.data_type,
            shape: operand.ty.shape.clone(),
            bytes: bytes.into(),
        })
    }

    /// Trains one step.
    ///
    /// # Errors
    /// [`SessionError`] where data does not fit an operation, or the loss is no number; the parameters
    /// are then those of the step before, unless the graph updates them itself.
    pub fn step(
        &mut self,
        mut observer: Option<&mut dyn Observer>,
    ) -> Result<Report, SessionError> {
        if !self.unfilled.is_empty() {
            self.fill_directions(1)?;
        }
        let number = self.step + 1;
        let accumulate = self.settings.accumulate.max(1);
        let mut sum = 0.0;
        for part in 0..accumulate {
            self.select(Purpose::Train)?;
            let ports = &self.ports[self.selected];
            feed(&mut *self.executable, ports, &self.batches)?;
            if let Some(reset) = &ports.reset {
                (self.executable).write(reset.buffer, &[u8::from(part == 0)])?;
            }
            let context = StepContext {
                seed: self.settings.seed,
                step: self.step * accumulate + part,
            };
            let fault = |fault| SessionError::Fault {
                step: number,
                fault,
            };
            let watch = observer.as_mut().map(|o| &mut **o as &mut dyn Observer);
            self.executable.run(&context, watch).map_err(fault)?;
            let loss = scalar(&*self.executable, &ports.loss)?;
            if !loss.is_finite() {
                return Err(self.diagnose(number, loss, &context)?.into());
            }
            sum += loss;
            self.batches.advance();
        }
        let learning_rate = self.settings.schedule.learning_rate(number);
        let mut norm = None;
        if let Some(optimizer) = self.settings.optimizer {
            let mut scale = 1.0 / accumulate as f64;
            if let Some(limit) = self.settings.clip {
                let gradients = self.executable.gradient_norm()? * scale;
                norm = Some(gradients);
                scale *= clip_coefficient(gradients, limit);
            }
            let step = Step {
                number,
                learning_rate,
                gradient_scale: scale as f32,
            };
            let updated = self.executable.update(&optimizer, &step);
            updated.map_err(|fault| SessionError::Fault {
                step: number,
                fault,
            })?;
        }
        self.step = number;
        Ok(Report {
            step: number,
            loss: sum / accumulate as f64,
            learning_rate,
            gradient_norm: norm,
        })
    }

    /// Selects the plan for the next batch.
    fn select(&mut self, purpose: Purpose) -> Result<(), SessionError> {
        self.select_size(purpose, self.batches.batch().len())
    }

    fn select_size(&mut self, purpose: Purpose, size: usize) -> Result<(), SessionError> {
        let fits = |ports: &Ports| ports.purpose == purpose && ports.size == size;
        if fits(&self.ports[self.selected]) {
            return Ok(());
        }
        let number = self.ports.iter().position(fits).ok_or(WrongLength {
            expected: self.ports[0].size,
            found: size,
        })?;
        self.executable.select(number)?;
        self.selected = number;
        let plan = self.executable.plan();
        for (most, region) in self.planned.iter_mut().zip(Region::ALL) {
            *most = (*most).max(plan.bytes(region));
        }
        Ok(())
    }

    /// Finds what made the loss no number.
    fn diagnose(
        &mut self,
        step: u64,
        loss: f64,
        context: &StepContext,
    ) -> Result<NonFinite, Fault> {
        for kept in &self.kept {
            let tensor = self.read(&kept.operand)?;
            if let Some(found) = super::nonfinite::found(tensor.view()) {
                return Ok(NonFinite::parameter(step, loss, &kept.name, found));
            }
        }
        let mut search = Search::default();
        // The same batch, seed and parameters: the same numbers.
        let again = self.executable.run(context, Some(&mut search));
        Ok(search.outcome(step, loss, again.is_ok()))
    }

    /// Evaluates all samples of a data set, the last of which may make a smaller batch.
    ///
    /// `labels` is the number of the input that has them.
    ///
    /// # Errors
    /// [`SessionError`] where data does not fit.
    pub fn evaluate(
        &mut self,
        data: &mut Batches,
        labels: Option<usize>,
    ) -> Result<Evaluation, SessionError> {
        let mut score = Score::default();
        for _ in 0..data.per_epoch() {
            let size = data.batch().len();
            self.select_size(Purpose::Evaluate, size)?;
            let ports = &self.ports[self.selected];
            feed(&mut *self.executable, ports, data)?;
            let context = StepContext {
                seed: self.settings.seed,
                step: 0,
            };
            let step = self.step;
            (self.executable.run(&context, None))
                .map_err(|fault| SessionError::Fault { step, fault })?;
            let loss = scalar(&*self.executable, &ports.loss)?;
            score.loss(loss, size);
            let labels = labels.and_then(|number| ports.batch.get(number)?.as_ref());
            if let (Some(logits), Some(labels)) = (&ports.logits, labels) {
                let (logits, labels) = (logits.clone(), labels.clone());
                score.predictions(&self.read(&logits)?, &self.read(&labels)?);
            }
            data.advance();
        }
        Ok(score.evaluation())
    }

    /// What must not change between a checkpoint and the run that goes on from it.
    fn checkpoint_settings(&self) -> checkpoint::Settings {
        checkpoint::Settings {
            model: self.settings.model.clone(),
            seed: self.settings.seed,
            optimizer: self.settings.optimizer,
            schedule: self.settings.optimizer.map(|_| self.settings.schedule),
            accumulate: self.settings.accumulate,
            clip: self.settings.clip,
        }
    }

    /// What the optimiser keeps for a tensor.
    fn layout(&self, kept: &Kept) -> Vec<State> {
        let optimizer = self.settings.optimizer.filter(|_| kept.trained);
        // Of a factored gradient it is of P's shape, as are the states of all optimisers that take one.
        let shape = match (kept.projected, kept.state.first()) {
            (false, Some(state)) if optimizer.is_some_and(|o| o.rank().is_none()) => {
                &state.ty.shape
            }
            _ => &kept.operand.ty.shape,
        };
        optimizer.map_or(Vec::new(), |o| o.layout(shape, kept.projected))
    }

    /// Writes a checkpoint.
    ///
    /// # Errors
    /// [`SessionError`] where the file cannot be written.
    pub fn save(&self, path: &Path) -> Result<(), SessionError> {
        let progress = Progress {
            step: self.step,
            batches: Some(self.batches.position().clone()),
        };
        let parameters: Vec<Tensor> = (self.kept.iter())
            .map(|kept| self.read(&kept.operand))
            .collect::<Result<_, Fault>>()?;
        let states: Vec<(&str, &str, Tensor)> = (self.kept.iter())
            .flat_map(|kept| {
                let state = kept.state.iter().zip(self.layout(kept));
                state.map(|(operand, state)| Ok((&kept.name[..], state.name, self.read(operand)?)))
            })
            .collect::<Result<_, Fault>>()?;
        let named = self.kept.iter().zip(&parameters);
        checkpoint::write(
            path,
            &self.checkpoint_settings(),
            &progress,
            named.map(|(kept, tensor)| (&kept.name[..], tensor.view())),
            states
                .iter()
                .map(|(p, name, tensor)| (*p, *name, tensor.view())),
        )?;
        Ok(())
    }

    /// Goes on from a checkpoint.
    ///
    /// # Errors
    /// [`SessionError`] where it is one of another model, other settings, or other data.
    pub fn resume(&mut self, checkpoint: &Checkpoint) -> Result<(), SessionError> {
        let layouts: Vec<Vec<State>> = self.kept.iter().map(|kept| self.layout(kept)).collect();
        let expected: Vec<Expected<'_>> = (self.kept.iter().zip(&layouts))
            .map(|(kept, layout)| Expected {
                name: &kept.name,
                data_type: kept.operand.ty.data_type,
                shape: &kept.operand.ty.shape,
                trained: kept.trained,
                state: layout,
            })
            .collect();
        checkpoint.check(&self.checkpoint_settings(), &expected)?;
        // They are among the checkpoint's tensors.
        self.unfilled.clear();
        if let Some(position) = &checkpoint.progress.batches {
            self.batches.resume(position)?;
        }
        for kept in &self.kept {
            if let Some(tensor) = checkpoint.parameters.get(&kept.name) {
                (self.executable).write(kept.operand.buffer, &tensor.bytes)?;
            }
            let states = checkpoint.state.get(&kept.name).map_or(&[][..], |s| s);
            for (operand, (_, tensor)) in kept.state.iter().zip(states) {
                self.executable.write(operand.buffer, &tensor.bytes)?;
            }
        }
        self.step = checkpoint.progress.step;
        Ok(())
    }
}

/// Copies the next batch to its places.
fn feed(
    executable: &mut dyn Executable,
    ports: &Ports,
    batches: &Batches,
) -> Result<(), SessionError> {
    let mut outcome = Ok(());
    for (number, operand) in ports.batch.iter().enumerate() {
        if let Some(operand) = operand {
            executable.fill(operand.buffer, &mut |bytes| {
                if let Err(error) = batches.copy(number, bytes) {
                    outcome = Err(error);
                }
            })?;
        }
    }
    Ok(outcome?)
}

/// A floating-point scalar, read back; what is no such thing is not a number.
fn scalar(executable: &dyn Executable, operand: &Operand) -> Result<f64, Fault> {
    let mut bytes = [0; 8];
    let length = operand.ty.bytes();
    let Some(place) = bytes.get_mut(..length) else {
        return Ok(f64::NAN);
    };
    executable.read(operand.buffer, place)?;
    let shape = &operand.ty.shape;
    let view = TensorView {
        data_type: operand.ty.data_type,
        shape,
        bytes: place,
    };
    Ok(first(view).unwrap_or(f64::NAN))
}

/// The first element of a floating-point tensor.
pub(super) fn first(tensor: TensorView<'_>) -> Option<f64> {
    let bytes = tensor.bytes;
    Some(match tensor.data_type {
        DataType::FLOAT => f32::from_le_bytes(bytes.get(..4)?.try_into().ok()?).into(),
        DataType::DOUBLE => f64::from_le_bytes(bytes.get(..8)?.try_into().ok()?),
        DataType::FLOAT16 => half::f16::from_le_bytes(bytes.get(..2)?.try_into().ok()?).into(),
        DataType::BFLOAT16 => half::bf16::from_le_bytes(bytes.get(..2)?.try_into().ok()?).into(),
        _ => return None,
    })
}

/// Finds the kept tensors of a plan: what lies in the regions that stay, by the graph's inputs.
pub fn kept(plan: &Plan, names: &[String], bound: &Bound) -> Vec<Kept> {
    let mut kept = Vec::new();
    for (position, operand) in plan.inputs.iter().enumerate() {
        let Some(operand) = operand else { continue };
        let region = plan.buffer(operand.buffer).region;
        let stays = matches!(region, Region::Parameters | Region::Optimizer);
        if bound.batch.contains(&position) || !stays {
            continue;
        }
        let trained = plan
            .trained
            .iter()
            .find(|t| t.parameter.buffer == operand.buffer);
        kept.push(Kept {
            name: names[position].clone(),
            operand: operand.clone(),
            state: trained.map(|t| t.state.clone()).unwrap_or_default(),
            projected: trained.is_some_and(|t| t.projected),
            trained: trained.is_some(),
            is_state: region == Region::Optimizer,
        });
    }
    kept
}
