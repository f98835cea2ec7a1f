//! What executes a plan.

use crate::ops::Op;
use crate::plan::{BufferId, Plan};
use crate::tensor::TensorType;
use thiserror::Error;

/// A device and its kernels.
pub trait Backend {
    /// The device in words, for reports.
    fn name(&self) -> String;

    /// Bytes of scratch that the kernel of an operation needs, whatever the data.
    fn workspace(
        &self,
        op: &Op,
        inputs: &[Option<&TensorType>],
        outputs: &[Option<&TensorType>],
    ) -> usize;

    /// Allocates the plan's block and puts the constants in place.
    ///
    /// # Errors
    /// [`Fault`] where the device lacks the memory.
    fn prepare(&self, plan: Plan) -> Result<Box<dyn Executable + '_>, Fault>;
}

/// A plan on a device.
pub trait Executable {
    /// The plan.
    fn plan(&self) -> &Plan;

    /// Copies bytes into a buffer.
    fn write(&mut self, buffer: BufferId, bytes: &[u8]);

    /// Copies a buffer's bytes out.
    fn read(&self, buffer: BufferId, bytes: &mut [u8]);

    /// Executes all steps.
    ///
    /// # Errors
    /// [`Fault`] where data does not fit an operation.
    fn run(&mut self, context: &StepContext) -> Result<(), Fault>;
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
    /// The device has less memory than the plan takes.
    #[error("the plan takes {bytes} bytes, which {device} cannot give")]
    Memory {
        /// What was asked for.
        bytes: usize,
        /// Of whom.
        device: String,
    },
}
