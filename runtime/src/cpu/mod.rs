//! The CPU backend: the embedded default, and the reference for other devices.
//!
//! One file per family of operations, under the name that it has in [`crate::ops`].

pub mod accumulate;
pub(crate) mod apart;
pub mod dequantize;
pub mod directions;
pub mod elementwise;
pub mod gemm;
pub(crate) mod in_place;
pub mod index;
pub mod loss;
pub mod math;
pub mod matmul;
pub mod memory;
pub mod movement;
pub mod normalize;
pub(crate) mod number;
mod prepared;
pub mod product;
pub mod random;
pub mod recurrent;
pub mod reduce;
pub(crate) mod rows;
pub mod velora;
pub mod window;

use crate::backend::{Backend, Executable, Fault, StepContext};
use crate::ops::Op;
use crate::plan::Plan;
use crate::tensor::TensorType;
use memory::Call;

/// The CPU and its threads.
pub struct Cpu {
    pool: rayon::ThreadPool,
}

impl Cpu {
    /// A backend with a number of threads, 0 for as many as there are cores; `None` where they cannot be
    /// started.
    pub fn new(threads: usize) -> Option<Self> {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads);
        let pool = pool.build().ok()?;
        // A thread that looks for work for the first time allocates what it keeps for that: now, rather
        // than in a step.
        pool.broadcast(|_| rayon::yield_now());
        Some(Cpu { pool })
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

    fn compresses_gradients(&self) -> bool {
        true
    }

    fn enter(&self, work: &mut (dyn FnMut() + Send)) {
        self.pool.install(work);
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
            Op::Directions(op) => directions::workspace(op, &machine, inputs, outputs),
            Op::Movement(op) => movement::workspace(op, &machine, inputs, outputs),
            Op::Index(op) => index::workspace(op, &machine, inputs, outputs),
            Op::Random(op) => random::workspace(op, &machine, inputs, outputs),
            Op::Accumulate(op) => accumulate::workspace(op, &machine, inputs, outputs),
            Op::Window(op) => window::workspace(op, &machine, inputs, outputs),
            Op::Recurrent(op) => recurrent::workspace(op, &machine, inputs, outputs),
            Op::Dequantize(op) => dequantize::workspace(op, &machine, inputs, outputs),
        }
    }

    fn prepare(&self, plans: Vec<Plan>) -> Result<Box<dyn Executable + '_>, Fault> {
        Ok(Box::new(prepared::Prepared::new(self, plans)?))
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
        Op::Directions(op) => directions::execute(op, context, call),
        Op::Movement(op) => movement::execute(op, context, call),
        Op::Index(op) => index::execute(op, context, call),
        Op::Random(op) => random::execute(op, context, call),
        Op::Accumulate(op) => accumulate::execute(op, context, call),
        Op::Window(op) => window::execute(op, context, call),
        Op::Recurrent(op) => recurrent::execute(op, context, call),
        Op::Dequantize(op) => dequantize::execute(op, context, call),
    }
}
