//! Recurrent layers, with their gradients.

mod activation;
mod lower;

use super::Family;
pub use activation::Activation;

/// The operators, and how they are lowered.
pub const FAMILY: Family = Family {
    operators: &[
        ("", "RNN"),
        ("", "GRU"),
        ("", "LSTM"),
        ("com.microsoft", "LSTMTraining"),
        ("com.microsoft", "LSTMGrad"),
        ("com.microsoft", "GRUTraining"),
        ("com.microsoft", "GRUGrad"),
    ],
    lower: lower::lower,
};

/// What a step of a layer computes; the equations are those of the ONNX operators.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cell {
    /// One gate.
    Rnn,
    /// The gates z, r and h.
    Gru {
        /// Whether the reset gate is applied behind the recurrent product and its bias.
        linear_before_reset: bool,
    },
    /// The gates i, o, f and c.
    Lstm {
        /// Whether the forget gate is `1 - i`.
        input_forget: bool,
    },
}

impl Cell {
    /// How many gates it has.
    pub fn gates(self) -> usize {
        match self {
            Cell::Rnn => 1,
            Cell::Gru { .. } => 3,
            Cell::Lstm { .. } => 4,
        }
    }
}

/// The sizes of a layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sizes {
    /// Steps of the longest sequence.
    pub steps: usize,
    /// Sequences.
    pub batch: usize,
    /// Features of the input.
    pub input: usize,
    /// Features of the state.
    pub hidden: usize,
}

/// One direction of a layer.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Direction {
    /// Whether it goes from the last step to the first.
    pub reverse: bool,
    /// The functions f, g and h of the equations; a cell with fewer uses the first of them.
    pub activations: [Activation; 3],
}

/// A layer over all steps.
///
/// X is `[steps, batch, input]`, or `[batch, steps, input]` where the batch is first, W
/// `[directions, gates · hidden, input]`, R `[directions, gates · hidden, hidden]`, the bias
/// `[directions, 2 · gates · hidden]`, the peepholes `[directions, 3 · hidden]`.
#[derive(Clone, Debug, PartialEq)]
pub struct Layer {
    /// What a step computes.
    pub cell: Cell,
    /// The sizes.
    pub sizes: Sizes,
    /// One or two.
    pub directions: Vec<Direction>,
    /// Whether the batch is the first axis of X, Y and the states.
    pub batch_first: bool,
    /// The bound of what the activations get, where there is one.
    pub clip: Option<f32>,
}

/// An operation of the family.
#[derive(Clone, Debug, PartialEq)]
pub enum Recurrent {
    /// X, W, R, and optionally bias, lengths, first hidden state, first cell state, peepholes → all
    /// hidden states, the last one, the last cell state, all cell states, all gates. Any output may be
    /// absent; the last two are there with one direction only.
    Forward(Layer),
    /// X, W, R, H0?, C0?, all hidden states, all cell states, gates `[i, o, f, c]`, and the gradients of
    /// all hidden states?, the last one?, the last cell state? → dX?, dW?, dR?, dB?, dH0?, dC0?.
    LstmGrad(Sizes),
    /// X, W, R, B?, H0?, all hidden states, gates `[z, r, h]`, and the gradients of all hidden states?, the
    /// last one? → dX?, dW?, dR?, dB?, dH0?.
    GruGrad {
        /// The sizes.
        sizes: Sizes,
        /// As in [`Cell::Gru`].
        linear_before_reset: bool,
    },
}

impl Recurrent {
    /// The word that profiles and listings use.
    pub fn name(&self) -> &'static str {
        match self {
            Recurrent::Forward(layer) => match layer.cell {
                Cell::Rnn => "RNN",
                Cell::Gru { .. } => "GRU",
                Cell::Lstm { .. } => "LSTM",
            },
            Recurrent::LstmGrad(_) => "LSTMGrad",
            Recurrent::GruGrad { .. } => "GRUGrad",
        }
    }

    /// Pairs of output and input: the output may be written over the input.
    pub fn in_place(&self) -> Vec<(usize, usize)> {
        Vec::new()
    }
}
