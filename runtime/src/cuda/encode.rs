//! From the operations of a plan to what the device is told: launches, products, copies.
//!
//! Every family of operations has an `encode`, which is called once for a step of a plan and puts commands
//! into a [`Sink`]. Addresses are final then: a plan's block has one place. What changes from step to step
//! lies in the [`super::control::Control`] block, which kernels read.

use super::compile::Unit;
use super::driver::Facts;
use super::lt::Product;
use crate::tensor::TensorType;
use bytemuck::NoUninit;

/// Threads of a block where nothing asks for another number.
pub const BLOCK: u32 = 256;

/// What a backend has no kernel for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unsupported(pub String);

/// A tensor on the device.
#[derive(Clone, Copy, Debug)]
pub struct Operand<'p> {
    /// Element type and dimensions.
    pub ty: &'p TensorType,
    /// Where its bytes are; a multiple of 64.
    pub address: u64,
}

/// Memory for the time of one step.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Scratch {
    /// Where it is; a multiple of 64.
    pub address: u64,
    /// As many bytes as the family's `workspace` has asked for.
    pub bytes: usize,
}

/// The operands of one step. Inputs may lie where outputs do only as [`crate::ops::Op::in_place`] allows.
#[derive(Clone, Debug)]
pub struct Call<'p> {
    /// What is read; `None` where an optional operand is absent.
    pub inputs: Vec<Option<Operand<'p>>>,
    /// What is written; `None` where nobody wants it.
    pub outputs: Vec<Option<Operand<'p>>>,
    /// Scratch.
    pub workspace: Scratch,
}

impl<'p> Call<'p> {
    /// An input that must be there.
    ///
    /// # Errors
    /// [`Unsupported`] where it is absent.
    pub fn input(&self, number: usize) -> Result<Operand<'p>, Unsupported> {
        let input = self.optional_input(number);
        input.ok_or_else(|| Unsupported(format!("input {number} is missing")))
    }

    /// An input that may be absent.
    pub fn optional_input(&self, number: usize) -> Option<Operand<'p>> {
        self.inputs.get(number).copied().flatten()
    }

    /// An output that must be there.
    ///
    /// # Errors
    /// [`Unsupported`] where nobody wants it.
    pub fn output(&self, number: usize) -> Result<Operand<'p>, Unsupported> {
        let output = self.optional_output(number);
        output.ok_or_else(|| Unsupported(format!("output {number} is missing")))
    }

    /// An output that may be absent.
    pub fn optional_output(&self, number: usize) -> Option<Operand<'p>> {
        self.outputs.get(number).copied().flatten()
    }
}

/// The address of an operand, or 0 for one that is absent.
pub fn address(operand: Option<Operand<'_>>) -> u64 {
    operand.map_or(0, |operand| operand.address)
}

/// The arguments of a kernel, in the order of its parameters.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Arguments {
    bytes: Vec<u8>,
    /// Offset and size of each.
    places: Vec<(usize, usize)>,
}

impl Arguments {
    /// No arguments yet.
    pub fn new() -> Self {
        Arguments::default()
    }

    fn push(mut self, bytes: &[u8], alignment: usize) -> Self {
        let start = self.bytes.len().next_multiple_of(alignment);
        self.bytes.resize(start, 0);
        self.bytes.extend_from_slice(bytes);
        self.places.push((start, bytes.len()));
        self
    }

    /// A pointer.
    pub fn address(self, address: u64) -> Self {
        self.push(&address.to_le_bytes(), 8)
    }

    /// A `u32`.
    pub fn u32(self, number: u32) -> Self {
        self.push(&number.to_le_bytes(), 4)
    }

    /// An `i32`.
    pub fn i32(self, number: i32) -> Self {
        self.push(&number.to_le_bytes(), 4)
    }

    /// A `u64`.
    pub fn u64(self, number: u64) -> Self {
        self.push(&number.to_le_bytes(), 8)
    }

    /// A size, as a `u64`.
    pub fn size(self, number: usize) -> Self {
        self.u64(number as u64)
    }

    /// An `i64`.
    pub fn i64(self, number: i64) -> Self {
        self.push(&number.to_le_bytes(), 8)
    }

    /// A `float`.
    pub fn f32(self, number: f32) -> Self {
        self.push(&number.to_le_bytes(), 4)
    }

    /// A `double`.
    pub fn f64(self, number: f64) -> Self {
        self.push(&number.to_le_bytes(), 8)
    }

    /// A structure by value, which has the same layout in C.
    pub fn structure<T: NoUninit>(self, value: &T) -> Self {
        self.push(bytemuck::bytes_of(value), align_of::<T>())
    }

    /// The bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Offset and size of each argument, to be compared with the parameters of the compiled kernel.
    pub fn places(&self) -> &[(usize, usize)] {
        &self.places
    }
}

/// A kernel over a grid.
#[derive(Clone, Debug, PartialEq)]
pub struct Launch {
    /// The source that has it.
    pub unit: Unit,
    /// Its name there.
    pub kernel: String,
    /// Blocks.
    pub grid: [u32; 3],
    /// Threads of a block.
    pub block: [u32; 3],
    /// Bytes of dynamic shared memory, at most 48 KiB.
    pub shared: u32,
    /// What it is called with.
    pub arguments: Arguments,
}

/// One thing for the device to do.
#[derive(Clone, Debug)]
pub enum Command {
    /// Launches a kernel.
    Launch(Launch),
    /// Multiplies matrices.
    Product(Product),
    /// Copies bytes from one place to another; the two are disjoint or the same.
    Copy {
        /// Where to.
        to: u64,
        /// Where from.
        from: u64,
        /// How many bytes.
        bytes: usize,
    },
    /// Sets all bytes to a value.
    Fill {
        /// Where to.
        to: u64,
        /// The value.
        byte: u8,
        /// How many bytes.
        bytes: usize,
    },
}

/// A check of data that a kernel makes, and what it means when it fails.
pub struct Check {
    /// The message, of the two numbers that the kernel reports.
    pub message: Box<dyn Fn(i64, i64) -> String + Send>,
    /// The step of the plan.
    pub step: usize,
}

/// Collects the commands of a plan.
pub struct Sink<'d> {
    facts: &'d Facts,
    /// The device's address of [`crate::backend::StepContext`] and of the report.
    context: u64,
    report: u64,
    step: usize,
    commands: Vec<Command>,
    checks: Vec<Check>,
}

impl<'d> Sink<'d> {
    /// An empty one, for a device; the addresses are those of the step's context and of the report.
    pub fn new(facts: &'d Facts, context: u64, report: u64) -> Self {
        Sink {
            facts,
            context,
            report,
            step: 0,
            commands: Vec::new(),
            checks: Vec::new(),
        }
    }

    /// What is known of the device.
    pub fn facts(&self) -> &Facts {
        self.facts
    }

    /// The address of `const StepContext*`.
    pub fn context(&self) -> u64 {
        self.context
    }

    /// The address of `Report*`, and the number of a new check for the kernel to report.
    pub fn check(&mut self, message: impl Fn(i64, i64) -> String + Send + 'static) -> (u64, u32) {
        self.checks.push(Check {
            message: Box::new(message),
            step: self.step,
        });
        (self.report, self.checks.len() as u32)
    }

    /// Launches a kernel over blocks of one dimension.
    pub fn launch(
        &mut self,
        unit: &Unit,
        kernel: impl Into<String>,
        grid: u32,
        block: u32,
        arguments: Arguments,
    ) {
        self.launch_with(Launch {
            unit: unit.clone(),
            kernel: kernel.into(),
            grid: [grid, 1, 1],
            block: [block, 1, 1],
            shared: 0,
            arguments,
        });
    }

    /// Launches a kernel. One over no blocks has nothing to do, and the driver would refuse it.
    pub fn launch_with(&mut self, launch: Launch) {
        if !launch.grid.contains(&0) {
            self.commands.push(Command::Launch(launch));
        }
    }

    /// Multiplies matrices.
    pub fn product(&mut self, product: Product) {
        self.commands.push(Command::Product(product));
    }

    /// Copies bytes, where there are any and they are not there already.
    pub fn copy(&mut self, to: u64, from: u64, bytes: usize) {
        if bytes > 0 && to != from {
            self.commands.push(Command::Copy { to, from, bytes });
        }
    }

    /// Sets bytes to a value, where there are any.
    pub fn fill(&mut self, to: u64, byte: u8, bytes: usize) {
        if bytes > 0 {
            self.commands.push(Command::Fill { to, byte, bytes });
        }
    }

    /// Begins the next step; gives the number of commands so far.
    pub(super) fn begin(&mut self, step: usize) -> usize {
        self.step = step;
        self.commands.len()
    }

    /// All commands and checks.
    pub(super) fn finish(self) -> (Vec<Command>, Vec<Check>) {
        (self.commands, self.checks)
    }

    /// Blocks for a kernel whose threads take `elements` in turns: all at once up to many waves of the
    /// device's, at least one where there is anything to do.
    pub fn blocks(&self, elements: usize, per_block: usize) -> u32 {
        let most = self.facts.multiprocessors.max(1) as usize * 64;
        // At most `most`, which is no more than 64 times a few hundred.
        elements.div_ceil(per_block.max(1)).min(most) as u32
    }
}
