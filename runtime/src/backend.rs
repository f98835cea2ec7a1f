//! What executes a plan.

use crate::ops::Op;
use crate::plan::{BufferId, Plan, Step};
use crate::session::optimizer::{Optimizer, Step as OptimizerStep};
use crate::tensor::TensorType;
use std::time::Instant;
use thiserror::Error;

/// A device and its kernels.
pub trait Backend: Sync {
    /// The device in words, for reports.
    fn name(&self) -> String;

    /// Whether its updates can be those of optimisers that compress gradients
    /// ([`Optimizer::update_shaped`]).
    fn compresses_gradients(&self) -> bool {
        false
    }

    /// Does some work on a thread of the device's own, where executions start without a hand-over.
    fn enter(&self, work: &mut (dyn FnMut() + Send));

    /// Bytes of scratch that the kernel of an operation needs, whatever the data.
    fn workspace(
        &self,
        op: &Op,
        inputs: &[Option<&TensorType>],
        outputs: &[Option<&TensorType>],
    ) -> usize;

    /// Allocates one block for some plans of one model, and selects the first.
    ///
    /// The plans differ in batch size or purpose; their parameters, gradients and optimiser state lie in
    /// the same places ([`Plan::persistent`]), and stay when another plan is selected.
    ///
    /// # Errors
    /// [`Fault`] where the device lacks the memory, or the plans have different persistent parts.
    fn prepare(&self, plans: Vec<Plan>) -> Result<Box<dyn Executable + '_>, Fault>;
}

/// Some plans of one model on a device.
pub trait Executable: Send {
    /// The selected plan.
    fn plan(&self) -> &Plan;

    /// Selects another plan by its number, and puts its constants in place.
    ///
    /// # Errors
    /// [`Fault`] where the device fails, here and in what follows.
    fn select(&mut self, number: usize) -> Result<(), Fault>;

    /// Copies bytes into a buffer of the selected plan.
    fn write(&mut self, buffer: BufferId, bytes: &[u8]) -> Result<(), Fault>;

    /// Has a buffer of the selected plan filled by its caller; all of it, since it may show anything before.
    fn fill(&mut self, buffer: BufferId, write: &mut dyn FnMut(&mut [u8])) -> Result<(), Fault>;

    /// Copies a buffer's bytes out.
    fn read(&self, buffer: BufferId, bytes: &mut [u8]) -> Result<(), Fault>;

    /// Executes all steps of the selected plan.
    ///
    /// # Errors
    /// [`Fault`] where data does not fit an operation, or the device fails.
    fn run(
        &mut self,
        context: &StepContext,
        observer: Option<&mut dyn Observer>,
    ) -> Result<(), Fault>;

    /// The root of the sum of the squares of all gradients.
    fn gradient_norm(&mut self) -> Result<f64, Fault>;

    /// Updates all trained parameters from their gradients, which may be overwritten.
    ///
    /// # Errors
    /// [`Fault`] where the plan was made for another optimiser.
    fn update(&mut self, optimizer: &Optimizer, step: &OptimizerStep) -> Result<(), Fault>;

    /// The most bytes of each region that executions have touched so far, in the order of
    /// [`crate::plan::Region::ALL`]: counted, not planned.
    fn touched(&self) -> [usize; 6];
}

/// What watches an execution, step by step.
pub trait Observer: Send {
    /// Whether it wants to see what a step reads, before the step. A device that lies apart copies all of
    /// that for it.
    fn wants_inputs(&self) -> bool {
        false
    }

    /// A step is about to start: its number, and what it reads.
    fn starting(
        &mut self,
        _number: usize,
        _step: &Step,
        _read: &mut dyn Iterator<Item = (usize, &[u8])>,
    ) {
    }

    /// A step has finished: its number, when it began and ended, and what it wrote.
    fn finished(
        &mut self,
        number: usize,
        step: &Step,
        times: (Instant, Instant),
        written: &mut dyn Iterator<Item = (usize, &[u8])>,
    );
}

/// What changes from step to step without being a tensor.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StepContext {
    /// Seed of what is random.
    pub seed: u64,
    /// Counts the executions; part of what is random.
    pub step: u64,
}

/// Why a step failed.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Fault {
    /// Data that an operation cannot work with.
    #[error("node '{node}' ({op}): {message}")]
    Data {
        /// The node.
        node: String,
        /// Its operation.
        op: &'static str,
        /// What is wrong.
        message: String,
    },
    /// An operation that the device has no kernel for.
    #[error("node '{node}' ({op}): {message}; --device cpu can execute it")]
    Unsupported {
        /// The node.
        node: String,
        /// Its operation.
        op: &'static str,
        /// What there is no kernel for.
        message: String,
    },
    /// A device that failed. What it held may be lost.
    #[error("{device}: {message}")]
    Device {
        /// The device in words.
        device: String,
        /// What failed.
        message: String,
    },
    /// Plans that do not belong together.
    #[error("the plans' parameters lie in different places")]
    Plans,
    /// The device has less memory than the plan takes.
    #[error("the plan takes {bytes} bytes, which {device} cannot give")]
    Memory {
        /// What was asked for.
        bytes: usize,
        /// Of whom.
        device: String,
    },
}
