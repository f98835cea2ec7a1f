//! What a step needs beside its tensors: a small block on the device, and its copy on the host.
//!
//! Captured work is replayed as it was captured: what changes from step to step is read from here.

use super::driver::{Context, DeviceError, DeviceMemory, Event, PinnedMemory, Stream};
use crate::backend::StepContext;
use bytemuck::{Pod, Zeroable};
use std::sync::Arc;

/// Numbers of an optimiser, as many as any has.
pub const NUMBERS: usize = 16;

/// Places for partial sums of a norm.
pub const PARTIALS: usize = 256;

/// What the host writes before a step.
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
struct Written {
    /// `StepContext` of `common.cuh`.
    seed: u64,
    step: u64,
    /// The numbers of the optimiser.
    numbers: [f32; NUMBERS],
}

/// What the host reads after a step.
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
pub struct Outcome {
    /// `Report` of `common.cuh`: the check that failed, or 0.
    pub check: u32,
    unused: u32,
    /// Numbers for its message.
    pub position: i64,
    /// The second.
    pub value: i64,
    /// The sum of the squares of all gradients, where it was asked for.
    pub squares: f64,
}

const WRITTEN: usize = 0;
const OUTCOME: usize = 128;
const PARTIAL_SUMS: usize = 256;
const BYTES: usize = PARTIAL_SUMS + 8 * PARTIALS;

/// The block.
#[derive(Debug)]
pub struct Control {
    device: DeviceMemory,
    written: PinnedMemory,
    /// The last copy of what was written.
    copied: Event,
    outcome: PinnedMemory,
}

impl Control {
    /// A block, with nothing reported.
    ///
    /// # Errors
    /// [`DeviceError`] where there is no memory.
    pub fn new(context: &Arc<Context>, stream: &Stream) -> Result<Self, DeviceError> {
        let control = Control {
            device: DeviceMemory::new(context, BYTES)?,
            written: PinnedMemory::new(context, size_of::<Written>())?,
            copied: Event::new(context)?,
            outcome: PinnedMemory::new(context, size_of::<Outcome>())?,
        };
        control.clear(stream)?;
        Ok(control)
    }

    /// The address of `StepContext`.
    pub fn context(&self) -> u64 {
        self.device.address() + WRITTEN as u64
    }

    /// The address of the optimiser's numbers.
    pub fn numbers(&self) -> u64 {
        self.context() + std::mem::offset_of!(Written, numbers) as u64
    }

    /// The address of `Report`.
    pub fn report(&self) -> u64 {
        self.device.address() + OUTCOME as u64
    }

    /// The address of the sum of squares.
    pub fn squares(&self) -> u64 {
        self.report() + std::mem::offset_of!(Outcome, squares) as u64
    }

    /// The address of [`PARTIALS`] doubles.
    pub fn partial_sums(&self) -> u64 {
        self.device.address() + PARTIAL_SUMS as u64
    }

    /// Enqueues that nothing is reported, and the sum of squares is 0.
    ///
    /// # Errors
    /// [`DeviceError`] where the device fails.
    pub fn clear(&self, stream: &Stream) -> Result<(), DeviceError> {
        stream.fill(self.report(), 0, size_of::<Outcome>())
    }

    /// Enqueues the numbers of a step.
    ///
    /// # Errors
    /// [`DeviceError`] where the device fails.
    pub fn write(
        &mut self,
        context: &StepContext,
        numbers: [f32; NUMBERS],
        stream: &Stream,
    ) -> Result<(), DeviceError> {
        let written = Written {
            seed: context.seed,
            step: context.step,
            numbers,
        };
        // The copy before may still be reading.
        self.copied.synchronize()?;
        let bytes = size_of::<Written>();
        self.written.bytes_mut()[..bytes].copy_from_slice(bytemuck::bytes_of(&written));
        self.device.write(WRITTEN, &self.written, bytes, stream)?;
        self.copied.record(stream)
    }

    /// Waits for the stream, and reads what came of its work.
    ///
    /// # Errors
    /// [`DeviceError`] where the device fails, also in what was enqueued before.
    pub fn outcome(&mut self, stream: &Stream) -> Result<Outcome, DeviceError> {
        let bytes = size_of::<Outcome>();
        self.device
            .read(OUTCOME, &mut self.outcome, bytes, stream)?;
        stream.synchronize()?;
        Ok(bytemuck::pod_read_unaligned(&self.outcome.bytes()[..bytes]))
    }
}
