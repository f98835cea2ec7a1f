//! Activation functions of recurrent layers.

use super::Cell;
use crate::lower::Refusal;
use velora_graph::ir::Node;

/// A function of a gate.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Activation {
    /// `1 / (1 + e^-x)`
    Sigmoid,
    /// `tanh x`
    Tanh,
    /// `max(x, 0)`
    Relu,
    /// `alpha · x + beta`
    Affine(f32, f32),
    /// `x`, and `alpha · x` below 0
    LeakyRelu(f32),
    /// `x`, and 0 below alpha
    ThresholdedRelu(f32),
    /// `alpha · tanh(beta · x)`
    ScaledTanh(f32, f32),
    /// `alpha · x + beta` between 0 and 1
    HardSigmoid(f32, f32),
    /// `x`, and `alpha · (e^x - 1)` below 0
    Elu(f32),
    /// `x / (1 + |x|)`
    Softsign,
    /// `log(1 + e^x)`
    Softplus,
}

/// The functions of every direction of a node.
///
/// Parameters are taken in order by the functions that have them, as ONNX Runtime does.
pub(super) fn activations(
    node: &Node,
    cell: Cell,
    directions: usize,
) -> Result<Vec<[Activation; 3]>, Refusal> {
    let defaults = match cell {
        Cell::Rnn => [Activation::Tanh; 3],
        _ => [Activation::Sigmoid, Activation::Tanh, Activation::Tanh],
    };
    let each = match cell {
        Cell::Rnn => 1,
        Cell::Gru { .. } => 2,
        Cell::Lstm { .. } => 3,
    };
    let names = node.attribute("activations").map(|a| a.strings.as_slice());
    let Some(names) = names.filter(|names| !names.is_empty()) else {
        return Ok(vec![defaults; directions]);
    };
    if names.len() != each * directions {
        return Err(Refusal(format!(
            "{} activations: expected {each} for each of {directions} directions",
            names.len()
        )));
    }
    let list = |name: &str| {
        node.attribute(name)
            .map_or(&[][..], |a| a.floats.as_slice())
    };
    let mut alphas = list("activation_alpha").iter().copied();
    let mut betas = list("activation_beta").iter().copied();
    let mut all = vec![defaults; directions];
    for (number, name) in names.iter().enumerate() {
        let name = std::str::from_utf8(name).unwrap_or("");
        let mut alpha = |default: f32| alphas.next().unwrap_or(default);
        let mut beta = |default: f32| betas.next().unwrap_or(default);
        let activation = match name.to_ascii_lowercase().as_str() {
            "sigmoid" => Activation::Sigmoid,
            "tanh" => Activation::Tanh,
            "relu" => Activation::Relu,
            "affine" => Activation::Affine(alpha(1.0), beta(0.0)),
            "leakyrelu" => Activation::LeakyRelu(alpha(0.01)),
            "thresholdedrelu" => Activation::ThresholdedRelu(alpha(1.0)),
            "scaledtanh" => Activation::ScaledTanh(alpha(1.0), beta(1.0)),
            "hardsigmoid" => Activation::HardSigmoid(alpha(0.2), beta(0.5)),
            "elu" => Activation::Elu(alpha(1.0)),
            "softsign" => Activation::Softsign,
            "softplus" => Activation::Softplus,
            _ => return Err(Refusal(format!("activation '{name}' is not known"))),
        };
        all[number / each][number % each] = activation;
    }
    Ok(all)
}
