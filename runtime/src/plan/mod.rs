//! The plan of a training step: operations in an order, buffers with places.
//!
//! A plan is a value: it says everything that a backend does, and how many bytes it takes, before
//! anything runs. Buffers lie in regions, one behind the other in a single block of memory, so that
//! what the plan predicts is what a backend allocates.

pub mod arena;
mod build;
pub mod fuse;
mod order;
pub mod show;

pub use build::{PlanError, build, build_unfused};

use crate::ops::Op;
use crate::program::Factor;
use crate::tensor::{Tensor, TensorType};

/// Every buffer starts at a multiple of this many bytes: a cache line, and the widest vector.
pub const ALIGNMENT: usize = 64;

/// The most inputs, and the most outputs, of one operation; families lower wider nodes to several.
pub const MAX_OPERANDS: usize = 32;

/// What a buffer is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Region {
    /// Weights, trained or frozen, and other state the graph hands on.
    Parameters,
    /// One gradient per trained parameter.
    Gradients,
    /// What the optimiser keeps per parameter.
    Optimizer,
    /// Tensors of the file that are no parameters.
    Constants,
    /// The batch, and numbers that change with every step.
    Inputs,
    /// What is computed and dies within the step, and the outputs: the arena.
    Activations,
}

impl Region {
    /// All regions, in the order in which they lie.
    pub const ALL: [Region; 6] = [
        Region::Parameters,
        Region::Gradients,
        Region::Optimizer,
        Region::Constants,
        Region::Inputs,
        Region::Activations,
    ];

    /// The name in reports.
    pub fn name(self) -> &'static str {
        match self {
            Region::Parameters => "parameters",
            Region::Gradients => "gradients",
            Region::Optimizer => "optimizer",
            Region::Constants => "constants",
            Region::Inputs => "inputs",
            Region::Activations => "activations",
        }
    }
}

/// A buffer of a [`Plan`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BufferId(pub u32);

impl BufferId {
    /// The position in the plan's list.
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

/// A span of bytes with a purpose.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Buffer {
    /// The name of the tensor that owns the bytes.
    pub name: String,
    /// What it is for.
    pub region: Region,
    /// Its bytes.
    pub bytes: usize,
    /// Its first byte, counted from the start of the whole block; a multiple of [`ALIGNMENT`].
    pub offset: usize,
    /// The step that makes it, and the last one that needs it; 0 and the number of steps for what
    /// lives on.
    pub lifetime: (usize, usize),
}

/// A tensor that a step reads or writes: a whole buffer, seen with a type.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Operand {
    /// Where the bytes lie.
    pub buffer: BufferId,
    /// How they are seen.
    pub ty: TensorType,
}

/// One operation at its place in the order.
#[derive(Clone, Debug)]
pub struct Step {
    /// What is done.
    pub op: Op,
    /// What is read.
    pub inputs: Vec<Option<Operand>>,
    /// What is written.
    pub outputs: Vec<Option<Operand>>,
    /// Scratch of the kernel.
    pub workspace: Option<BufferId>,
    /// The node of the file it comes from.
    pub node: String,
    /// Whether that node belongs to the backward half.
    pub backward: bool,
}

/// What an optimiser works on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TrainedOperands {
    /// The weight.
    pub parameter: Operand,
    /// Its gradient, or P of a factored one.
    pub gradient: Operand,
    /// What the optimiser keeps for it: [`Optimizer::layout`].
    ///
    /// [`Optimizer::layout`]: crate::session::optimizer::Optimizer::layout
    pub state: Vec<Operand>,
    /// Whether the optimiser is to compress its gradient, where it does so.
    pub projected: bool,
    /// What makes the gradient of P.
    pub factor: Option<Factor<Operand>>,
}

/// What memory a plan takes, and what the least would be.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Footprint {
    /// Bytes of the arena.
    pub arena: usize,
    /// The most bytes that live at once in the plan's order: no placement can do with less.
    pub lower_bound: usize,
    /// The same in the file's order.
    pub file_order: usize,
    /// What found the places.
    pub method: &'static str,
}

/// A training step, ready to be executed.
#[derive(Clone, Debug)]
pub struct Plan {
    /// All buffers.
    pub buffers: Vec<Buffer>,
    /// What is done, in order.
    pub steps: Vec<Step>,
    /// By graph input: its operand, where anything reads it.
    pub inputs: Vec<Option<Operand>>,
    /// What is read back, in the order of [`crate::program::Program::outputs`].
    pub outputs: Vec<Operand>,
    /// What the optimiser trains.
    pub trained: Vec<TrainedOperands>,
    /// The flag that starts the sums of gradients anew, where there are any.
    pub reset: Option<Operand>,
    /// What the optimiser's updates need beside what stays; all parameters share it.
    pub scratch: Option<Operand>,
    /// Tensors to be put in place before the first step.
    pub constants: Vec<(Operand, Tensor)>,
    /// Start and bytes of each region, in the order of [`Region::ALL`].
    pub regions: [(usize, usize); 6],
    /// Bytes of the arena and what they compare with.
    pub footprint: Footprint,
}

/// Whether what stays from step to step lies in the same places in all plans, so that they can share a block.
pub fn share_persistent(plans: &[Plan]) -> bool {
    let persistent = |plan: &Plan| [plan.regions[0], plan.regions[1], plan.regions[2]];
    let mut pairs = plans.windows(2);
    pairs.all(|pair| persistent(&pair[0]) == persistent(&pair[1]))
}

/// Notes in the marks of the regions, each the end of what was touched from its start, that a span of the
/// block was.
pub fn touch(touched: &mut [usize; 6], regions: &[(usize, usize); 6], start: usize, end: usize) {
    for (mark, &(first, bytes)) in touched.iter_mut().zip(regions) {
        if first <= start && end <= first + bytes {
            *mark = (*mark).max(end - first);
            return;
        }
    }
}

impl Plan {
    /// A buffer.
    pub fn buffer(&self, id: BufferId) -> &Buffer {
        &self.buffers[id.index()]
    }

    /// The bytes of a region.
    pub fn bytes(&self, region: Region) -> usize {
        let place = Region::ALL.iter().position(|&r| r == region);
        place.map_or(0, |place| self.regions[place].1)
    }

    /// The bytes of what stays when another plan of the model is selected: parameters, gradients and
    /// optimiser state, in front of everything else.
    pub fn persistent(&self) -> usize {
        let (start, bytes) = self.regions[2];
        start + bytes
    }

    /// The bytes of the whole block.
    pub fn total(&self) -> usize {
        let (start, bytes) = self.regions[self.regions.len() - 1];
        start + bytes
    }
}
