//! Softmax and normalisations, with their gradients.

use super::reduce::around;
use super::{Family, Op};
use crate::lower::{Lowering, Refusal};
use crate::program::TensorId;
use crate::tensor::TensorType;
use velora_graph::ir::Node;

/// The operators, and how they are lowered.
pub const FAMILY: Family = Family {
    operators: &[
        ("", "Softmax"),
        ("", "LogSoftmax"),
        ("", "Hardmax"),
        ("com.microsoft", "SoftmaxGrad"),
        ("com.microsoft", "SoftmaxGrad_13"),
        ("com.microsoft", "LogSoftmaxGrad"),
        ("com.microsoft", "LogSoftmaxGrad_13"),
        ("", "LayerNormalization"),
        ("", "SimplifiedLayerNormalization"),
        ("", "RMSNormalization"),
        ("com.microsoft", "LayerNormalizationGrad"),
        ("com.microsoft", "SimplifiedLayerNormalizationGrad"),
        ("com.microsoft", "InvertibleLayerNormalizationGrad"),
        ("", "BatchNormalization"),
        ("com.microsoft", "BatchNormInternal"),
        ("com.microsoft", "BatchNormalizationGrad"),
    ],
    lower,
};

/// An operation of the family.
#[derive(Clone, Debug, PartialEq)]
pub enum Normalize {
    /// Probabilities from scores. Input: X; output: Y.
    Softmax(Softmax),
    /// Its gradient. Inputs: dY, Y; output: dX.
    SoftmaxGrad(Softmax),
    /// Layer normalisation. Inputs: X, scale, bias (may be absent); outputs: Y, mean, inverse standard
    /// deviation, the last two with one number per row and absent where nobody reads them.
    Layer(Layer),
    /// Its gradient. Inputs: dY, X (or Y, see [`Layer::from_output`]), scale, mean (or bias), inverse
    /// standard deviation; outputs: dX, dScale, dBias.
    LayerGrad(Layer),
    /// Batch normalisation. Inputs: X, scale, bias, mean, variance; outputs: Y, running mean, running
    /// variance, mean of the batch, inverse standard deviation of the batch; all but Y in training only.
    Batch(Batch),
    /// Its gradient. Inputs: dY, X, scale, mean and inverse standard deviation of the batch; outputs: dX,
    /// dScale, dBias.
    BatchGrad(Batch),
}

/// A softmax over the middle axis of [outer, size, inner].
#[derive(Clone, Debug, PartialEq)]
pub struct Softmax {
    /// The product of the sizes of the axes in front.
    pub outer: usize,
    /// The size of the axis.
    pub size: usize,
    /// The product of the sizes of the axes behind.
    pub inner: usize,
    /// What is given of the probabilities.
    pub kind: SoftmaxKind,
}

/// What is given of the probabilities.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SoftmaxKind {
    /// Themselves.
    Plain,
    /// Their logarithms.
    Log,
    /// 1 at the greatest (the first of them), else 0.
    Hard,
}

/// A normalisation of every row of [rows, size].
#[derive(Clone, Debug, PartialEq)]
pub struct Layer {
    /// The number of rows.
    pub rows: usize,
    /// The elements of a row.
    pub size: usize,
    /// What is added to the variance.
    pub epsilon: f32,
    /// Whether the mean is subtracted; without, the mean square stands for the variance.
    pub centred: bool,
    /// For gradients: X is worked out from the output of the normalisation.
    pub from_output: bool,
}

/// A normalisation of every channel of [batch, channels, spatial].
#[derive(Clone, Debug, PartialEq)]
pub struct Batch {
    /// The size of the batch.
    pub batch: usize,
    /// The number of channels.
    pub channels: usize,
    /// The product of the other sizes.
    pub spatial: usize,
    /// What is added to the variance.
    pub epsilon: f32,
    /// The share of the old running statistics in the new ones.
    pub momentum: f32,
    /// Statistics of the batch, not the running ones.
    pub training: bool,
    /// The running variance takes the variance over n - 1 elements, as ONNX Runtime's operator does.
    pub unbiased: bool,
}

impl Normalize {
    /// The word that profiles and listings use.
    pub fn name(&self) -> &'static str {
        match self {
            Normalize::Softmax(_) => "Softmax",
            Normalize::SoftmaxGrad(_) => "SoftmaxGrad",
            Normalize::Layer(_) => "LayerNorm",
            Normalize::LayerGrad(_) => "LayerNormGrad",
            Normalize::Batch(_) => "BatchNorm",
            Normalize::BatchGrad(_) => "BatchNormGrad",
        }
    }

    /// Pairs of output and input: the output may be written over the input.
    pub fn in_place(&self) -> Vec<(usize, usize)> {
        match self {
            Normalize::Softmax(_) | Normalize::Layer(_) => vec![(0, 0)],
            Normalize::SoftmaxGrad(_) | Normalize::LayerGrad(_) => vec![(0, 0), (0, 1)],
            Normalize::Batch(_) | Normalize::BatchGrad(_) => Vec::new(),
        }
    }
}

fn lower(lowering: &mut Lowering<'_>, node: &Node) -> Result<(), Refusal> {
    match node.op() {
        "Softmax" => softmax(lowering, node, SoftmaxKind::Plain, false),
        "LogSoftmax" => softmax(lowering, node, SoftmaxKind::Log, false),
        "Hardmax" => softmax(lowering, node, SoftmaxKind::Hard, false),
        "SoftmaxGrad" | "SoftmaxGrad_13" => softmax(lowering, node, SoftmaxKind::Plain, true),
        "LogSoftmaxGrad" | "LogSoftmaxGrad_13" => softmax(lowering, node, SoftmaxKind::Log, true),
        "LayerNormalization" | "SimplifiedLayerNormalization" | "RMSNormalization" => {
            layer(lowering, node)
        }
        "BatchNormalization" | "BatchNormInternal" => batch(lowering, node),
        "BatchNormalizationGrad" => batch_grad(lowering, node),
        _ => layer_grad(lowering, node),
    }
}

fn axis_of(ty: &TensorType, axis: i64) -> Result<usize, Refusal> {
    ty.axis(axis)
        .ok_or_else(|| Refusal(format!("axis {axis} of {ty}")))
}

/// Refuses operands of another type or of another number of elements.
fn want(
    lowering: &Lowering<'_>,
    what: &str,
    id: TensorId,
    like: &TensorType,
    elements: usize,
) -> Result<(), Refusal> {
    let ty = lowering.ty(id);
    if ty.data_type == like.data_type && ty.elements() == elements {
        return Ok(());
    }
    Err(Refusal(format!(
        "{what} is {ty}: expected {elements} elements of the type of {like}"
    )))
}

fn softmax(
    lowering: &mut Lowering<'_>,
    node: &Node,
    kind: SoftmaxKind,
    grad: bool,
) -> Result<(), Refusal> {
    let input = lowering.input(node, 0)?;
    let ty = lowering.ty(input);
    // The older operators see a matrix: the axes in front of `axis`, and the others.
    let matrix = match node.domain() {
        "" => lowering.opset("") < 13,
        _ => !node.op().ends_with("_13"),
    };
    let axis = node.int("axis", if matrix { 1 } else { -1 });
    let (outer, size, inner) = if matrix {
        // The axis may be behind the last one.
        let rank = ty.shape.len();
        let place = match usize::try_from(axis) {
            Ok(place) if place <= rank => place,
            _ => axis_of(&ty, axis)?,
        };
        let (front, back) = ty.shape.split_at(place);
        (front.iter().product(), back.iter().product(), 1)
    } else if ty.shape.is_empty() {
        (1, 1, 1)
    } else {
        around(&ty.shape, axis_of(&ty, axis)?)
    };
    let op = Softmax {
        outer,
        size,
        inner,
        kind,
    };
    let mut inputs = vec![Some(input)];
    if grad {
        let y = lowering.input(node, 1)?;
        want(lowering, "the output of the softmax", y, &ty, ty.elements())?;
        inputs.push(Some(y));
    }
    let output = lowering.required_output(node, 0)?;
    let op = match grad {
        true => Normalize::SoftmaxGrad(op),
        false => Normalize::Softmax(op),
    };
    lowering.emit(Op::Normalize(op), inputs, vec![Some(output)]);
    Ok(())
}

/// Rows and elements of a row of a tensor whose axes from `axis` on are normalised.
fn row_sizes(node: &Node, ty: &TensorType) -> Result<(usize, usize), Refusal> {
    let axis = axis_of(ty, node.int("axis", -1))?;
    let (rows, size) = ty.shape.split_at(axis);
    Ok((rows.iter().product(), size.iter().product()))
}

fn layer(lowering: &mut Lowering<'_>, node: &Node) -> Result<(), Refusal> {
    let x = lowering.input(node, 0)?;
    let ty = lowering.ty(x);
    let (rows, size) = row_sizes(node, &ty)?;
    let centred = node.op() == "LayerNormalization";
    let scale = lowering.input(node, 1)?;
    want(lowering, "the scale", scale, &ty, size)?;
    let bias = match centred {
        true => lowering.optional_input(node, 2)?,
        false => None,
    };
    if let Some(bias) = bias {
        want(lowering, "the bias", bias, &ty, size)?;
    }
    let output = lowering.required_output(node, 0)?;
    let (mean, inverse) = match (centred, node.op()) {
        (true, _) => (lowering.output(node, 1)?, lowering.output(node, 2)?),
        (false, "RMSNormalization") => (None, None),
        (false, _) => (None, lowering.output(node, 1)?),
    };
    for statistic in [mean, inverse].into_iter().flatten() {
        let found = lowering.ty(statistic);
        if found.data_type != statistics_type(&ty) && found.data_type != ty.data_type {
            return Err(Refusal(format!(
                "statistics of type {found}: expected stash_type 1, or the type of {ty}"
            )));
        }
    }
    let op = Op::Normalize(Normalize::Layer(Layer {
        rows,
        size,
        epsilon: node.float("epsilon", 1e-5),
        centred,
        from_output: false,
    }));
    let inputs = vec![Some(x), Some(scale), bias];
    lowering.emit(op, inputs, vec![Some(output), mean, inverse]);
    Ok(())
}

/// What statistics are kept in, unless they have the type of the data.
fn statistics_type(_data: &TensorType) -> velora_graph::shapes::DataType {
    velora_graph::shapes::DataType::FLOAT
}

fn layer_grad(lowering: &mut Lowering<'_>, node: &Node) -> Result<(), Refusal> {
    let dy = lowering.input(node, 0)?;
    let x = lowering.input(node, 1)?;
    let ty = lowering.ty(x);
    want(lowering, "the gradient", dy, &ty, ty.elements())?;
    let (rows, size) = row_sizes(node, &ty)?;
    let centred = node.op() != "SimplifiedLayerNormalizationGrad";
    let from_output = node.op() == "InvertibleLayerNormalizationGrad";
    let scale = lowering.input(node, 2)?;
    want(lowering, "the scale", scale, &ty, size)?;
    // Without a mean there is one input less.
    let (mean, inverse) = match centred {
        true => (Some(lowering.input(node, 3)?), lowering.input(node, 4)?),
        false => (None, lowering.input(node, 3)?),
    };
    let statistics = lowering.ty(inverse);
    want(
        lowering,
        "the inverse deviation",
        inverse,
        &statistics,
        rows,
    )?;
    if let Some(mean) = mean {
        match from_output {
            true => want(lowering, "the bias", mean, &ty, size)?,
            false => want(lowering, "the mean", mean, &statistics, rows)?,
        }
    }
    if statistics.data_type != statistics_type(&ty) && statistics.data_type != ty.data_type {
        return Err(Refusal(format!(
            "statistics of type {statistics}: expected float, or the type of {ty}"
        )));
    }
    let dx = lowering.output(node, 0)?;
    let (dscale, dbias) = (lowering.output(node, 1)?, lowering.output(node, 2)?);
    let op = Op::Normalize(Normalize::LayerGrad(Layer {
        rows,
        size,
        epsilon: node.float("epsilon", 1e-5),
        centred,
        from_output,
    }));
    let inputs = vec![Some(dy), Some(x), Some(scale), mean, Some(inverse)];
    lowering.emit(op, inputs, vec![dx, dscale, dbias]);
    Ok(())
}

fn batch_sizes(ty: &TensorType) -> Result<(usize, usize, usize), Refusal> {
    match ty.shape.as_slice() {
        [] => Err(Refusal::new("a scalar has no channels")),
        [batch] => Ok((*batch, 1, 1)),
        [batch, channels, spatial @ ..] => Ok((*batch, *channels, spatial.iter().product())),
    }
}

fn batch(lowering: &mut Lowering<'_>, node: &Node) -> Result<(), Refusal> {
    let x = lowering.input(node, 0)?;
    let ty = lowering.ty(x);
    let (batch, channels, spatial) = batch_sizes(&ty)?;
    let mut inputs = vec![Some(x)];
    for (slot, what) in (1..).zip(["the scale", "the bias", "the mean", "the variance"]) {
        let id = lowering.input(node, slot)?;
        want(lowering, what, id, &ty, channels)?;
        inputs.push(Some(id));
    }
    let internal = node.op() == "BatchNormInternal";
    let training = match (internal, lowering.opset("")) {
        (true, _) | (false, 14..) => node.int("training_mode", internal.into()) != 0,
        // Before version 14 statistics are asked for by naming their outputs, before 7 by is_test.
        (false, 7..) => (1..5).any(|slot| lowering.wants(node, slot)),
        (false, _) => node.int("is_test", 0) == 0,
    };
    if node.int("spatial", 1) == 0 {
        return Err(Refusal::new("spatial = 0 has no kernel: expected 1"));
    }
    let mut outputs = Vec::new();
    for slot in 0..5 {
        outputs.push(lowering.output(node, slot)?);
    }
    if !training && outputs[1..].iter().any(Option::is_some) {
        return Err(Refusal::new(
            "statistics of the batch without training_mode: expected the result only",
        ));
    }
    let op = Op::Normalize(Normalize::Batch(Batch {
        batch,
        channels,
        spatial,
        epsilon: node.float("epsilon", 1e-5),
        momentum: node.float("momentum", 0.9),
        training,
        unbiased: internal,
    }));
    lowering.emit(op, inputs, outputs);
    Ok(())
}

fn batch_grad(lowering: &mut Lowering<'_>, node: &Node) -> Result<(), Refusal> {
    let dy = lowering.input(node, 0)?;
    let x = lowering.input(node, 1)?;
    let ty = lowering.ty(x);
    want(lowering, "the gradient", dy, &ty, ty.elements())?;
    let (batch, channels, spatial) = batch_sizes(&ty)?;
    let mut inputs = vec![Some(dy), Some(x)];
    for (slot, what) in (2..).zip(["the scale", "the mean", "the inverse deviation"]) {
        let id = lowering.input(node, slot)?;
        want(lowering, what, id, &ty, channels)?;
        inputs.push(Some(id));
    }
    let mut outputs = Vec::new();
    for slot in 0..3 {
        outputs.push(lowering.output(node, slot)?);
    }
    let op = Op::Normalize(Normalize::BatchGrad(Batch {
        batch,
        channels,
        spatial,
        epsilon: node.float("epsilon", 1e-5),
        momentum: 0.0,
        training: true,
        unbiased: false,
    }));
    lowering.emit(op, inputs, outputs);
    Ok(())
}
