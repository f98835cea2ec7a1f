//! What draws random numbers.
//!
//! Every draw is a function of the session's seed, the step, the operation's stream and the position of
//! the element ([`crate::random`]), so it depends neither on threads nor on the order of operations. The
//! stream comes from the name of the node's output: a graph draws the same numbers after a rewrite that
//! keeps the node.

use super::movement::Movement;
use super::movement::copy::{Copy, Part};
use super::{Family, Op};
use crate::lower::{Lowering, Refusal, constants};
use crate::program::TensorId;
use crate::random::stream;
use velora_graph::ir::Node;
use velora_graph::shapes::DataType;

/// The operators, and how they are lowered.
pub const FAMILY: Family = Family {
    operators: &[
        ("", "Dropout"),
        ("com.microsoft", "DropoutGrad"),
        ("", "RandomNormal"),
        ("", "RandomNormalLike"),
        ("", "RandomUniform"),
        ("", "RandomUniformLike"),
        ("", "Bernoulli"),
    ],
    lower,
};

/// An operation of the family.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Random {
    /// Drops elements at random: kept ones are multiplied by 1 / (1 − ratio).
    ///
    /// Inputs: data, ratio, mode (one `bool`). The last two are absent where they are known. Outputs: the
    /// result, and a `bool` per element, whether it was kept.
    Dropout(Dropout),
    /// Its gradient. Inputs: gradient, mask, ratio, mode, as above.
    DropoutGrad(Dropout),
    /// Draws. No inputs.
    Draw(Draw),
    /// 1 with the probability that the element of the input gives, else 0.
    Bernoulli {
        /// The stream of random numbers.
        stream: u64,
    },
}

/// Parameters of [`Random::Dropout`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Dropout {
    /// The stream of random numbers.
    pub stream: u64,
    /// The share of elements that is dropped, where it is known.
    pub ratio: Option<f64>,
    /// Whether elements are dropped at all, where it is known.
    pub training: Option<bool>,
}

/// Parameters of [`Random::Draw`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Draw {
    /// The stream of random numbers.
    pub stream: u64,
    /// How they are distributed.
    pub distribution: Distribution,
}

/// A distribution of numbers.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Distribution {
    /// Equally likely from a lower bound to an upper one.
    Uniform {
        /// The lower bound.
        low: f64,
        /// The upper bound, exclusive.
        high: f64,
    },
    /// The normal distribution.
    Normal {
        /// Its mean.
        mean: f64,
        /// Its standard deviation.
        deviation: f64,
    },
}

impl Random {
    /// The word that profiles and listings use.
    pub fn name(&self) -> &'static str {
        match self {
            Random::Dropout(_) => "Dropout",
            Random::DropoutGrad(_) => "DropoutGrad",
            Random::Draw(_) => "Draw",
            Random::Bernoulli { .. } => "Bernoulli",
        }
    }

    /// Pairs of output and input: the output may be written over the input.
    pub fn in_place(&self) -> Vec<(usize, usize)> {
        match self {
            Random::Dropout(_) | Random::DropoutGrad(_) => vec![(0, 0)],
            Random::Draw(_) | Random::Bernoulli { .. } => Vec::new(),
        }
    }
}

fn lower(lowering: &mut Lowering<'_>, node: &Node) -> Result<(), Refusal> {
    match node.op() {
        "Dropout" => dropout(lowering, node),
        "DropoutGrad" => dropout_grad(lowering, node),
        "Bernoulli" => {
            let probabilities = lowering.input(node, 0)?;
            let given = lowering.ty(probabilities);
            let output = lowering.required_output(node, 0)?;
            let ty = lowering.ty(output);
            if !given.data_type.is_float() || !matches!(ty.data_type.0, 1..=7 | 9..=13 | 16) {
                return Err(Refusal(format!(
                    "cannot draw {ty} with probabilities {given}"
                )));
            }
            let stream = stream_of(lowering, node, output);
            let op = Op::Random(Random::Bernoulli { stream });
            lowering.emit(op, vec![Some(probabilities)], vec![Some(output)]);
            Ok(())
        }
        name => {
            let output = lowering.required_output(node, 0)?;
            let ty = lowering.ty(output);
            if !ty.data_type.is_float() {
                return Err(Refusal(format!(
                    "cannot draw {ty}: expected floating-point numbers"
                )));
            }
            let distribution = match name {
                "RandomUniform" | "RandomUniformLike" => Distribution::Uniform {
                    low: f64::from(node.float("low", 0.0)),
                    high: f64::from(node.float("high", 1.0)),
                },
                _ => Distribution::Normal {
                    mean: f64::from(node.float("mean", 0.0)),
                    deviation: f64::from(node.float("scale", 1.0)),
                },
            };
            let stream = stream_of(lowering, node, output);
            let op = Op::Random(Random::Draw(Draw {
                stream,
                distribution,
            }));
            lowering.emit(op, Vec::new(), vec![Some(output)]);
            Ok(())
        }
    }
}

/// The stream of a node: by its output's name, and the node's own seed where it has one.
fn stream_of(lowering: &Lowering<'_>, node: &Node, output: TensorId) -> u64 {
    let seed = match node.attribute("seed") {
        Some(seed) => format!("{}:{}", seed.i.unwrap_or(0), seed.f.unwrap_or(0.0)),
        None => String::new(),
    };
    let name = &lowering.program.value(output).name;
    stream(&format!("node/{seed}"), name.as_bytes())
}

/// Ratio and mode in the slots from `first` on: known values, and the tensors where they are not.
fn settings(
    lowering: &mut Lowering<'_>,
    node: &Node,
    first: usize,
) -> Result<(Dropout, [Option<TensorId>; 2]), Refusal> {
    let mut dropout = Dropout {
        stream: 0,
        ratio: Some(0.5),
        training: Some(false),
    };
    let mut inputs = [None; 2];
    if let Some(ratio) = lowering.optional_input(node, first)? {
        dropout.ratio = lowering
            .constant_input(node, first)?
            .as_ref()
            .and_then(constants::float);
        if dropout.ratio.is_none() {
            let ty = lowering.ty(ratio);
            if !ty.data_type.is_float() || ty.elements() != 1 {
                return Err(Refusal(format!("the ratio is {ty}: expected one number")));
            }
            inputs[0] = Some(ratio);
        }
    }
    if let Some(mode) = lowering.optional_input(node, first + 1)? {
        let ty = lowering.ty(mode);
        if ty.data_type != DataType::BOOL || ty.elements() != 1 {
            return Err(Refusal(format!("training_mode is {ty}: expected one bool")));
        }
        dropout.training = (lowering.constant_input(node, first + 1)?)
            .and_then(|mode| mode.bytes.first().map(|&mode| mode != 0));
        if dropout.training.is_none() {
            inputs[1] = Some(mode);
        }
    }
    if let Some(ratio) = dropout.ratio {
        check_ratio(ratio).map_err(Refusal)?;
    }
    Ok((dropout, inputs))
}

/// Refuses what is no share.
///
/// # Errors
/// A sentence with the number.
pub fn check_ratio(ratio: f64) -> Result<(), String> {
    match (0.0..=1.0).contains(&ratio) {
        true => Ok(()),
        false => Err(format!("the ratio is {ratio}: expected 0 to 1")),
    }
}

impl Dropout {
    /// Whether all elements are known to be kept.
    fn is_identity(&self) -> bool {
        self.training == Some(false) || self.ratio == Some(0.0)
    }
}

fn dropout(lowering: &mut Lowering<'_>, node: &Node) -> Result<(), Refusal> {
    let data = lowering.input(node, 0)?;
    let ty = lowering.ty(data);
    if !ty.data_type.is_float() {
        return Err(Refusal(format!("{ty}: expected floating-point numbers")));
    }
    let (mut op, inputs) = if lowering.opset("") >= 12 {
        settings(lowering, node, 1)?
    } else {
        // Before version 12 the ratio is an attribute; before version 7 another says that nothing is
        // dropped, and from then on nothing ever is.
        let training = lowering.opset("") < 7 && node.int("is_test", 0) == 0;
        let ratio = f64::from(node.float("ratio", 0.5));
        check_ratio(ratio).map_err(Refusal)?;
        let op = Dropout {
            stream: 0,
            ratio: Some(ratio),
            training: Some(training),
        };
        (op, [None; 2])
    };
    if op.is_identity() || lowering.evaluation() {
        lowering.view(node, 0, data)?;
        return keep_all(lowering, node);
    }
    let output = lowering.required_output(node, 0)?;
    let mask = lowering.output(node, 1)?;
    if mask.is_some_and(|mask| lowering.ty(mask).data_type != DataType::BOOL) {
        return Err(Refusal::new("a mask that is no bool"));
    }
    op.stream = stream_of(lowering, node, output);
    let inputs = vec![Some(data), inputs[0], inputs[1]];
    lowering.emit(
        Op::Random(Random::Dropout(op)),
        inputs,
        vec![Some(output), mask],
    );
    Ok(())
}

/// Makes a mask that keeps all elements.
fn keep_all(lowering: &mut Lowering<'_>, node: &Node) -> Result<(), Refusal> {
    let Some(mask) = lowering.output(node, 1)? else {
        return Ok(());
    };
    let ty = lowering.ty(mask);
    let mut one = [0; 8];
    match ty.data_type.is_float() {
        true => {
            let bytes = constants::scalar(ty.data_type, 1.0)?.bytes;
            one[..bytes.len()].copy_from_slice(&bytes);
        }
        false => one[0] = 1,
    }
    let parts = vec![Part::fill(one, ty.elements())];
    let op = Op::Movement(Movement::Copy(Copy { parts }));
    lowering.emit(op, Vec::new(), vec![Some(mask)]);
    Ok(())
}

fn dropout_grad(lowering: &mut Lowering<'_>, node: &Node) -> Result<(), Refusal> {
    let (gradient, mask) = (lowering.input(node, 0)?, lowering.input(node, 1)?);
    let (ty, kept) = (lowering.ty(gradient), lowering.ty(mask));
    if !ty.data_type.is_float() || kept.data_type != DataType::BOOL || kept.shape != ty.shape {
        return Err(Refusal(format!(
            "the gradient is {ty} and the mask {kept}: expected numbers, and a bool for each"
        )));
    }
    let (op, inputs) = settings(lowering, node, 2)?;
    if op.is_identity() {
        return lowering.view(node, 0, gradient);
    }
    let output = lowering.required_output(node, 0)?;
    let inputs = vec![Some(gradient), Some(mask), inputs[0], inputs[1]];
    lowering.emit(
        Op::Random(Random::DropoutGrad(op)),
        inputs,
        vec![Some(output)],
    );
    Ok(())
}
