//! The plans of a training run, and how their operands are found again.

use super::bind::Bound;
use super::start::StartError;
use crate::backend::Backend;
use crate::lower::{LowerError, Request};
use crate::plan::{Operand, Plan, PlanError, build};
use crate::program::TensorId;
use crate::training::{Gradients, Keeps, Signature, Wired, wire};
use std::path::Path;
use velora_graph::analysis::partition::Partition;
use velora_graph::ir::Model;

/// What a plan is made for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// Loss and gradients.
    Train,
    /// Loss and logits only.
    Evaluate,
    /// What directions are to be filled with, as in the forward half of a training step.
    Measure,
}

/// Where a plan's operands are.
#[derive(Clone, Debug)]
pub struct Ports {
    /// What the plan is made for.
    pub purpose: Purpose,
    /// Samples in a batch.
    pub size: usize,
    /// Of the inputs that get data, by their number in the batch: the operand, where the plan reads it.
    pub batch: Vec<Option<Operand>>,
    /// The flag that starts sums of gradients anew.
    pub reset: Option<Operand>,
    /// The loss; of a plan that measures, whatever comes first.
    pub loss: Operand,
    /// The logits.
    pub logits: Option<Operand>,
    /// The measurements, of a plan that makes them.
    pub measured: Vec<Operand>,
}

/// What all plans of a run have in common.
#[derive(Clone, Copy)]
pub struct Common<'a> {
    /// The model.
    pub model: &'a Model,
    /// Its halves.
    pub partition: &'a Partition,
    /// What its inputs and outputs are.
    pub signature: &'a Signature,
    /// The folder of external data.
    pub folder: Option<&'a Path>,
    /// How gradients are kept.
    pub gradients: Gradients,
    /// What is kept for the optimiser.
    pub keeps: Keeps<'a>,
}

/// Makes a plan.
///
/// # Errors
/// [`LowerError`] or [`PlanError`] where the graph cannot be executed.
pub fn plan(
    common: &Common<'_>,
    bound: &Bound,
    purpose: Purpose,
    backend: &dyn Backend,
) -> Result<(Plan, Ports), PrepareError> {
    let request = Request {
        sizes: &bound.sizes,
        partition: Some(common.partition),
        folder: common.folder,
        evaluation: purpose == Purpose::Evaluate,
    };
    let mut wired = wire(
        common.model,
        common.signature,
        &request,
        &bound.batch,
        common.gradients,
        common.keeps,
    )?;
    match purpose {
        Purpose::Train => wired.forget_measurements(),
        Purpose::Evaluate => {
            wired.forget_measurements();
            wired.forget_gradients();
        }
        Purpose::Measure => wired.measure(),
    }
    let plan = build(&mut wired.program, backend)?;
    let ports = ports(&wired, &plan, bound, purpose);
    Ok((plan, ports))
}

fn ports(wired: &Wired, plan: &Plan, bound: &Bound, purpose: Purpose) -> Ports {
    let output = |id: TensorId| {
        let place = wired.program.outputs.iter().position(|&o| o == id);
        place.and_then(|place| plan.outputs.get(place)).cloned()
    };
    Ports {
        purpose,
        size: bound.size,
        batch: (bound.batch.iter())
            .map(|&position| plan.inputs.get(position).cloned().flatten())
            .collect(),
        reset: plan.reset.clone(),
        // The loss is the first output of every wired program.
        loss: output(wired.loss).unwrap_or_else(|| plan.outputs[0].clone()),
        logits: wired.logits.and_then(output),
        measured: match purpose {
            Purpose::Measure => plan.outputs.clone(),
            _ => Vec::new(),
        },
    }
}

/// Whether an optimiser that compresses gradients has one to compress; a note where it has none.
///
/// # Errors
/// [`StartError::Projects`] where none of those that it is to compress can be.
pub(super) fn check_projected(
    common: &Common<'_>,
    plan: &Plan,
    names: &[String],
) -> Result<Option<String>, StartError> {
    let Some((optimizer, rank)) = common.keeps.optimizer.and_then(|o| Some((o, o.rank()?))) else {
        return Ok(None);
    };
    if plan.trained.iter().any(|trained| trained.projected) {
        return Ok(None);
    }
    if common.keeps.project.is_none() {
        return Ok(Some(format!(
            "no trained matrix has both sides above the rank, {rank}: {} compresses nothing",
            optimizer.name()
        )));
    }
    let trained = common.signature.trained.iter().zip(&plan.trained);
    let matrices = trained
        .filter(|(_, trained)| optimizer.projects(&trained.parameter.ty.shape))
        .map(|(parameter, _)| names[parameter.input].clone());
    Err(StartError::Projects {
        rank,
        matrices: matrices.collect(),
    })
}

/// Why a run could not be prepared.
#[derive(Debug, thiserror::Error)]
pub enum PrepareError {
    /// The graph cannot be executed.
    #[error(transparent)]
    Lower(#[from] LowerError),
    /// There is no plan.
    #[error(transparent)]
    Plan(#[from] PlanError),
}
