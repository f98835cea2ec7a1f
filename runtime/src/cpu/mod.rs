//! The CPU backend: the embedded default, and the reference for other devices.
//!
//! One file per family of operations, under the name that it has in [`crate::ops`].

pub mod accumulate;
pub mod elementwise;
pub mod index;
pub mod loss;
pub mod math;
pub mod matmul;
pub mod memory;
pub mod movement;
pub mod normalize;
pub mod random;
pub mod recurrent;
pub mod reduce;
pub mod velora;
pub mod window;

use crate::backend::{Backend, Executable, Fault, StepContext};
use crate::ops::Op;
use crate::plan::{BufferId, Plan};
use crate::tensor::TensorType;
use memory::{Call, Cut, Memory};

/// The CPU and its threads.
pub struct Cpu {
    pool: rayon::ThreadPool,
}

impl Cpu {
    /// A backend with a number of threads, 0 for as many as there are cores; `None` where they cannot be
    /// started.
    pub fn new(threads: usize) -> Option<Self> {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads);
        Some(Cpu {
            pool: pool.build().ok()?,
        })
    }
}

/// What kernels may know of where they run.
#[derive(Clone, Copy, Debug)]
pub struct Machine {
    /// Threads of the pool. Results must not depend on it; scratch may.
    pub threads: usize,
}

impl Backend for Cpu {
    fn name(&self) -> String {
        format!("cpu, {} threads", self.pool.current_num_threads())
    }

    fn workspace(
        &self,
        op: &Op,
        inputs: &[Option<&TensorType>],
        outputs: &[Option<&TensorType>],
    ) -> usize {
        let machine = Machine {
            threads: self.pool.current_num_threads(),
        };
        match op {
            Op::MatMul(op) => matmul::workspace(op, &machine, inputs, outputs),
            Op::Elementwise(op) => elementwise::workspace(op, &machine, inputs, outputs),
            Op::Reduce(op) => reduce::workspace(op, &machine, inputs, outputs),
            Op::Normalize(op) => normalize::workspace(op, &machine, inputs, outputs),
            Op::Loss(op) => loss::workspace(op, &machine, inputs, outputs),
            Op::Velora(op) => velora::workspace(op, &machine, inputs, outputs),
            Op::Movement(op) => movement::workspace(op, &machine, inputs, outputs),
            Op::Index(op) => index::workspace(op, &machine, inputs, outputs),
            Op::Random(op) => random::workspace(op, &machine, inputs, outputs),
            Op::Accumulate(op) => accumulate::workspace(op, &machine, inputs, outputs),
            Op::Window(op) => window::workspace(op, &machine, inputs, outputs),
            Op::Recurrent(op) => recurrent::workspace(op, &machine, inputs, outputs),
        }
    }

    fn prepare(&self, plan: Plan) -> Result<Box<dyn Executable + '_>, Fault> {
        let memory = Memory::new(plan.total()).ok_or_else(|| Fault::Memory {
            bytes: plan.total(),
            device: self.name(),
        })?;
        let cuts = plan.steps.iter().map(|step| Cut::new(&plan, step));
        let mut prepared = Prepared {
            cuts: cuts.collect(),
            cpu: self,
            memory,
            plan,
        };
        for (operand, tensor) in std::mem::take(&mut prepared.plan.constants) {
            prepared.write(operand.buffer, &tensor.bytes);
        }
        Ok(Box::new(prepared))
    }
}

/// A plan with its memory.
struct Prepared<'c> {
    cpu: &'c Cpu,
    plan: Plan,
    cuts: Vec<Cut>,
    memory: Memory,
}

impl Executable for Prepared<'_> {
    fn plan(&self) -> &Plan {
        &self.plan
    }

    fn write(&mut self, buffer: BufferId, bytes: &[u8]) {
        let buffer = self.plan.buffer(buffer);
        let start = buffer.offset;
        self.memory.bytes_mut()[start..start + buffer.bytes].copy_from_slice(bytes);
    }

    fn read(&self, buffer: BufferId, bytes: &mut [u8]) {
        let buffer = self.plan.buffer(buffer);
        let start = buffer.offset;
        bytes.copy_from_slice(&self.memory.bytes()[start..start + buffer.bytes]);
    }

    fn run(&mut self, context: &StepContext) -> Result<(), Fault> {
        let Prepared {
            cpu,
            plan,
            cuts,
            memory,
        } = self;
        let memory = memory.bytes_mut();
        cpu.pool.install(|| {
            for (step, cut) in plan.steps.iter().zip(cuts.iter()) {
                execute(&step.op, cut.call(step, memory), context).map_err(|message| {
                    Fault::Data {
                        node: step.node.clone(),
                        op: step.op.name(),
                        message,
                    }
                })?;
            }
            Ok(())
        })
    }
}

/// Runs the kernel of an operation; the error says what is wrong with the data.
fn execute(op: &Op, call: Call<'_>, context: &StepContext) -> Result<(), String> {
    match op {
        Op::MatMul(op) => matmul::execute(op, context, call),
        Op::Elementwise(op) => elementwise::execute(op, context, call),
        Op::Reduce(op) => reduce::execute(op, context, call),
        Op::Normalize(op) => normalize::execute(op, context, call),
        Op::Loss(op) => loss::execute(op, context, call),
        Op::Velora(op) => velora::execute(op, context, call),
        Op::Movement(op) => movement::execute(op, context, call),
        Op::Index(op) => index::execute(op, context, call),
        Op::Random(op) => random::execute(op, context, call),
        Op::Accumulate(op) => accumulate::execute(op, context, call),
        Op::Window(op) => window::execute(op, context, call),
        Op::Recurrent(op) => recurrent::execute(op, context, call),
    }
}
