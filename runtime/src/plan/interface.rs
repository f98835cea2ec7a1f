//! What a graph's inputs and outputs are to the runtime.

/// What an input is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InputRole {
    /// Comes with every batch.
    Batch,
    /// Stays from step to step: a weight, trained or frozen, or state.
    Parameter,
    /// A buffer that gradients are accumulated in.
    Gradient,
    /// State of an optimiser inside the graph.
    Optimizer,
}

/// What an output is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OutputRole {
    /// Read back after the step: the loss, logits, metrics.
    Result,
    /// The gradient of a parameter: lives in the gradients' region until the update.
    Gradient,
}

/// The roles of all inputs and outputs, in the file's order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interface {
    /// By input.
    pub inputs: Vec<InputRole>,
    /// By output.
    pub outputs: Vec<OutputRole>,
}

impl Interface {
    /// Everything comes with the batch and is read back: how a graph is evaluated once.
    pub fn plain(inputs: usize, outputs: usize) -> Self {
        Interface {
            inputs: vec![InputRole::Batch; inputs],
            outputs: vec![OutputRole::Result; outputs],
        }
    }
}
