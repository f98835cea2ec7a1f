//! Operators of ONNX Runtime: activations and their gradients.

use super::draft::Draft;
use super::lower::Operands;
use super::{Binary, Comparison, Register, Unary};
use crate::lower::Refusal;
use velora_graph::ir::Node;

/// The value of a node of the domain `com.microsoft`.
pub(super) fn compute(
    node: &Node,
    draft: &mut Draft,
    operands: &Operands,
) -> Result<Register, Refusal> {
    let first = operands.wide(draft, 0)?;
    if !draft.ty(first).is_float() {
        return Err(Refusal(format!(
            "{} of elements of type {}: expected floating-point numbers",
            node.op(),
            draft.ty(first).0
        )));
    }
    let alpha = f64::from(node.float("alpha", 1.702));
    Ok(match node.op() {
        "Gelu" => gelu(draft, first),
        "BiasGelu" => {
            let bias = operands.wide(draft, 1)?;
            let x = draft.add(first, bias);
            gelu(draft, x)
        }
        "FastGelu" | "BiasFastGelu" => {
            let x = biased(draft, first, operands, 1)?;
            fast_gelu(draft, x)
        }
        "QuickGelu" => {
            let scaled = draft.times(first, alpha);
            let gate = draft.unary(Unary::Sigmoid, scaled);
            draft.mul(first, gate)
        }
        "BiasAdd" => {
            let bias = operands.wide(draft, 1)?;
            let skip = operands.wide(draft, 2)?;
            let sum = draft.add(first, bias);
            draft.add(sum, skip)
        }
        "Scale" => {
            let scale = operands.wide(draft, 1)?;
            let scale = draft.convert(scale, draft.ty(first));
            match node.int("scale_down", 0) {
                0 => draft.mul(first, scale),
                _ => draft.binary(Binary::Div, first, scale),
            }
        }
        "GeluGrad" | "BiasGeluGrad_dX" => {
            let x = operands.wide(draft, 1)?;
            let x = biased(draft, x, operands, 2)?;
            let slope = gelu_slope(draft, x);
            draft.mul(first, slope)
        }
        "FastGeluGrad" | "BiasFastGeluGrad_dX" => {
            let x = operands.wide(draft, 1)?;
            let x = biased(draft, x, operands, 2)?;
            let slope = fast_gelu_slope(draft, x);
            draft.mul(first, slope)
        }
        "QuickGeluGrad" => {
            // d/dx x s(αx) = s (1 + αx (1 - s))
            let x = operands.wide(draft, 1)?;
            let scaled = draft.times(x, alpha);
            let gate = draft.unary(Unary::Sigmoid, scaled);
            let rest = complement(draft, gate);
            let slope = draft.mul(scaled, rest);
            let slope = draft.plus(slope, 1.0);
            let slope = draft.mul(gate, slope);
            draft.mul(first, slope)
        }
        "ReluGrad" => {
            let x = operands.wide(draft, 1)?;
            let zero = draft.number(draft.ty(first), 0.0);
            let above = draft.compare(Comparison::Less, zero, x);
            draft.select(above, first, zero)
        }
        "SigmoidGrad" => {
            let y = operands.wide(draft, 1)?;
            let rest = complement(draft, y);
            let slope = draft.mul(y, rest);
            draft.mul(first, slope)
        }
        "TanhGrad" => {
            let y = operands.wide(draft, 1)?;
            let square = draft.mul(y, y);
            let slope = complement(draft, square);
            draft.mul(first, slope)
        }
        op => return Err(Refusal(format!("{op} has no lowering"))),
    })
}

/// `x` plus an operand that may be absent.
fn biased(
    draft: &mut Draft,
    x: Register,
    operands: &Operands,
    slot: usize,
) -> Result<Register, Refusal> {
    if operands.optional(slot).is_none() {
        return Ok(x);
    }
    let bias = operands.wide(draft, slot)?;
    Ok(draft.add(x, bias))
}

/// `1 - x`.
fn complement(draft: &mut Draft, x: Register) -> Register {
    let one = draft.number(draft.ty(x), 1.0);
    draft.sub(one, x)
}

/// `½ (1 + erf(x / √2))`: the normal distribution.
fn normal(draft: &mut Draft, x: Register) -> Register {
    let scaled = draft.times(x, std::f64::consts::FRAC_1_SQRT_2);
    let erf = draft.unary(Unary::Erf, scaled);
    let sum = draft.plus(erf, 1.0);
    draft.times(sum, 0.5)
}

/// `x Φ(x)`.
pub(super) fn gelu(draft: &mut Draft, x: Register) -> Register {
    let normal = normal(draft, x);
    draft.mul(x, normal)
}

/// `Φ(x) + x φ(x)`, with the density `φ(x) = exp(-x²/2) / √(2π)`.
fn gelu_slope(draft: &mut Draft, x: Register) -> Register {
    let normal = normal(draft, x);
    let square = draft.mul(x, x);
    let square = draft.times(square, -0.5);
    let density = draft.unary(Unary::Exp, square);
    let density = draft.times(density, 0.398_942_280_401_432_7);
    let product = draft.mul(x, density);
    draft.add(normal, product)
}

/// `√(2/π)`.
const ROOT: f64 = 0.797_884_560_802_865_4;

/// `tanh(√(2/π) (x + 0.044715 x³))`, and `x²`.
fn fast_normal(draft: &mut Draft, x: Register) -> (Register, Register) {
    let square = draft.mul(x, x);
    let inner = draft.times(square, ROOT * 0.044715);
    let inner = draft.plus(inner, ROOT);
    let inner = draft.mul(x, inner);
    (draft.unary(Unary::Tanh, inner), square)
}

/// `½ x (1 + tanh(√(2/π) (x + 0.044715 x³)))`.
pub(super) fn fast_gelu(draft: &mut Draft, x: Register) -> Register {
    let (tanh, _) = fast_normal(draft, x);
    let sum = draft.plus(tanh, 1.0);
    let half = draft.times(x, 0.5);
    draft.mul(half, sum)
}

/// The derivative of [`fast_gelu`]: `½ (1 + t) + ½ x (1 - t²) √(2/π) (1 + 0.134145 x²)`.
fn fast_gelu_slope(draft: &mut Draft, x: Register) -> Register {
    let (tanh, square) = fast_normal(draft, x);
    let inner = draft.times(square, ROOT * 0.5 * 0.134145);
    let inner = draft.plus(inner, ROOT * 0.5);
    let tanh_square = draft.mul(tanh, tanh);
    let rest = complement(draft, tanh_square);
    let slope = draft.mul(rest, inner);
    let slope = draft.mul(x, slope);
    let sum = draft.plus(tanh, 1.0);
    let half = draft.times(sum, 0.5);
    draft.add(half, slope)
}
