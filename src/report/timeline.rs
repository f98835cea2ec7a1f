//! Memory over the schedule: every buffer of a step with its lifetime, for charts and what-if.
//!
//! It is read off the same lifetimes that the peak in the totals comes from. Lifetimes and not bytes by step
//! are kept: a step's categories and the tensors alive in it follow from them, at any sizes.

mod build;
mod json;
mod plot;
#[cfg(test)]
mod tests;

pub use build::{course, symbol_sizes};
pub use json::rows;
pub use plot::plot;

use super::Amount;
use std::collections::BTreeMap;
use std::sync::Arc;
use velora_graph::analysis::lifetimes::Lifetimes;
use velora_graph::analysis::partition::Half;
use velora_graph::dim::Dim;

/// What bytes are for, from the bottom of a chart to its top.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Category {
    /// The batch, weights that are not trained, constants of the file: what is there and is none of the others.
    Inputs,
    /// Trained parameters, and their new values where the graph updates them itself.
    Parameters,
    /// State of an optimiser inside the graph, old and new.
    Optimizer,
    /// Saved for backward: what weight-gradient contractions read, or the compressed form of it.
    SavedLinear,
    /// Saved for backward: everything else.
    SavedOther,
    /// Gradients of parameters, and the buffers that accumulate them.
    Gradients,
    /// What is made and read within one half, and outputs that are no gradients.
    Temporaries,
}

impl Category {
    /// All of them, from the bottom of a chart to its top.
    pub const ALL: [Category; 7] = [
        Category::Inputs,
        Category::Parameters,
        Category::Optimizer,
        Category::SavedLinear,
        Category::SavedOther,
        Category::Gradients,
        Category::Temporaries,
    ];

    /// The word of the schema.
    pub fn word(self) -> &'static str {
        match self {
            Category::Inputs => "inputs",
            Category::Parameters => "parameters",
            Category::Optimizer => "optimizer",
            Category::SavedLinear => "saved-linear",
            Category::SavedOther => "saved-other",
            Category::Gradients => "gradients",
            Category::Temporaries => "temporaries",
        }
    }

    /// How people read it.
    pub fn title(self) -> &'static str {
        match self {
            Category::Inputs => "inputs and constants",
            Category::Parameters => "parameters",
            Category::Optimizer => "optimiser state",
            Category::SavedLinear => "saved linear inputs",
            Category::SavedOther => "other saved",
            Category::Gradients => "gradients",
            Category::Temporaries => "temporaries",
        }
    }
}

/// Memory over the schedule, before and after the rewrite.
#[derive(Clone, Debug)]
pub struct Timeline {
    /// The size of every symbol at which the orders were chosen.
    pub sizes: BTreeMap<Arc<str>, i64>,
    /// The symbols of the graph's inputs.
    pub of_inputs: Vec<Arc<str>>,
    /// The model that came in, in the best order found for it.
    pub before: Course,
    /// The model that goes out, in its order; `None` where that is the one that came in.
    pub after: Option<Course>,
}

/// One schedule.
#[derive(Clone, Debug)]
pub struct Course {
    /// The nodes in their order.
    pub steps: Vec<Step>,
    /// What the steps make, in the order in which it is born.
    pub buffers: Vec<Buffer>,
    /// What lies in memory from the first step to the last, outside the peak.
    pub held: Vec<Resident>,
}

/// One step of a schedule.
#[derive(Clone, Debug)]
pub struct Step {
    /// The node's label.
    pub node: String,
    /// Its operator.
    pub op: String,
    /// The half that it belongs to.
    pub half: Half,
}

/// A tensor's name, type and bytes.
#[derive(Clone, Debug)]
pub struct Described {
    /// Its name; of views that share bytes, the root.
    pub tensor: String,
    /// Its shape at the given sizes, `None` where the rank is unknown.
    pub shape: Option<Vec<Dim>>,
    /// The same with every dimension open.
    pub open_shape: Option<Vec<Dim>>,
    /// The element type, as ONNX text calls it.
    pub dtype: Option<String>,
    /// What it is for.
    pub category: Category,
    /// Its bytes at the given sizes.
    pub bytes: Amount,
    /// Its bytes as an expression over all symbols, those that `--dim` gave a size included; a number where no
    /// expression is known, or where the expression says something else at the given sizes.
    pub open_bytes: Amount,
    /// Whether it may depend on a size that was given, in a way that no expression says.
    pub is_fixed: bool,
    /// Its bytes at [`Timeline::sizes`], as the lifetimes count them.
    pub counted: Option<i64>,
}

/// What lies in memory throughout.
#[derive(Clone, Debug)]
pub struct Resident {
    /// The tensor.
    pub tensor: Described,
    /// Whether the totals count it as a trained parameter, or as the base of one.
    pub trained: bool,
}

/// A buffer that a step makes.
#[derive(Clone, Debug)]
pub struct Buffer {
    /// The tensor.
    pub tensor: Described,
    /// The step that makes it.
    pub born: usize,
    /// The last step that needs it, inclusive; the number of steps where it leaves the graph.
    pub last: usize,
    /// The buffer that it is written over, which does not count in `born` any longer.
    pub over: Option<usize>,
    /// The buffers that it would be written over if their bytes were equal; the first that is equal is.
    pub over_if_equal: Vec<usize>,
    /// The steps that read it, each once.
    pub readers: Vec<usize>,
}

/// Bytes by category, in the order of [`Category::ALL`].
pub type Shares = [i64; Category::ALL.len()];

impl Course {
    /// The bytes that are alive in each step, by category, without what is held throughout; at the sizes at
    /// which the order was chosen. Buffers of unknown size count nothing.
    pub fn live(&self) -> Vec<Shares> {
        let mut changes = vec![Shares::default(); self.steps.len() + 1];
        let mut add = |step: usize, buffer: &Buffer, sign: i64| {
            let bytes = buffer.tensor.counted.unwrap_or(0);
            if let Some(change) = changes.get_mut(step) {
                change[buffer.tensor.category as usize] += sign * bytes;
            }
        };
        for buffer in &self.buffers {
            add(buffer.born, buffer, 1);
            add(buffer.last + 1, buffer, -1);
            if let Some(old) = buffer.over.and_then(|old| self.buffers.get(old)) {
                // It makes room a step early.
                add(buffer.born, old, -1);
                add(buffer.born + 1, old, 1);
            }
        }
        let mut live = Shares::default();
        changes.truncate(self.steps.len());
        for change in &mut changes {
            for (sum, change) in live.iter_mut().zip(change.iter_mut()) {
                *sum += *change;
                *change = *sum;
            }
        }
        changes
    }

    /// The most bytes alive at once, and the first step in which they are.
    pub fn peak(&self) -> (i64, usize) {
        let mut best = (0, 0);
        for (step, shares) in self.live().iter().enumerate() {
            let bytes = shares.iter().sum();
            if bytes > best.0 {
                best = (bytes, step);
            }
        }
        best
    }
}

/// An order and its lifetimes: what both the peak and a course are read off.
#[derive(Clone, Debug)]
pub struct Ordered {
    /// Every node once.
    pub order: Vec<velora_graph::ir::NodeId>,
    /// The bytes that the order was judged by.
    pub sizes: velora_graph::analysis::lifetimes::Sizes,
    /// The lifetimes.
    pub lifetimes: Lifetimes,
}
