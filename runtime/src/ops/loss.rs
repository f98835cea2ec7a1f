//! Losses, with their gradients.

use super::{Family, Op};
use crate::lower::{Lowering, Refusal};
use crate::program::TensorId;
use crate::tensor::TensorType;
use velora_graph::ir::Node;
use velora_graph::shapes::DataType;

/// The operators, and how they are lowered.
pub const FAMILY: Family = Family {
    operators: &[
        ("", "SoftmaxCrossEntropyLoss"),
        ("", "NegativeLogLikelihoodLoss"),
        ("com.microsoft", "SoftmaxCrossEntropyLossInternal"),
        ("com.microsoft", "SoftmaxCrossEntropyLossGrad"),
        ("com.microsoft", "SoftmaxCrossEntropyLossInternalGrad"),
    ],
    lower,
};

/// An operation of the family.
#[derive(Clone, Debug, PartialEq)]
pub enum Loss {
    /// The loss of scores against labels. Inputs: scores [batch, classes, inner], labels [batch, inner],
    /// weights of the classes, the label that is ignored (the last two may be absent); outputs: the
    /// loss, and the logarithms of the probabilities, which may be absent.
    CrossEntropy(CrossEntropy),
    /// Its gradient. Inputs: gradient of the loss, logarithms of the probabilities, labels, weights, the
    /// label that is ignored, what is added to the result (the last three may be absent); output: the
    /// gradient of the scores.
    CrossEntropyGrad(CrossEntropy),
}

/// The sizes of a loss, and how it is worked out.
#[derive(Clone, Debug, PartialEq)]
pub struct CrossEntropy {
    /// The size of the batch.
    pub batch: usize,
    /// The number of classes.
    pub classes: usize,
    /// The product of the sizes behind the classes.
    pub inner: usize,
    /// How the losses of the labels become one.
    pub reduction: Reduction,
    /// Labels of this number count nothing, where it is no input.
    pub ignore: Option<i64>,
    /// The scores are not yet logarithms of probabilities.
    pub softmax: bool,
}

/// How the losses of all labels become one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reduction {
    /// Not at all.
    None,
    /// They are added.
    Sum,
    /// They are added, and divided by the sum of the weights; 0 where all labels are ignored.
    Mean,
}

impl Loss {
    /// The word that profiles and listings use.
    pub fn name(&self) -> &'static str {
        match self {
            Loss::CrossEntropy(_) => "CrossEntropy",
            Loss::CrossEntropyGrad(_) => "CrossEntropyGrad",
        }
    }

    /// Pairs of output and input: the output may be written over the input.
    pub fn in_place(&self) -> Vec<(usize, usize)> {
        match self {
            Loss::CrossEntropy(_) => vec![(1, 0)],
            Loss::CrossEntropyGrad(_) => vec![(0, 1)],
        }
    }
}

fn reduction(node: &Node) -> Result<Reduction, Refusal> {
    let text = node.attribute("reduction").and_then(|a| a.s.as_deref());
    match text {
        None | Some(b"mean") => Ok(Reduction::Mean),
        Some(b"sum") => Ok(Reduction::Sum),
        Some(b"none") => Ok(Reduction::None),
        Some(other) => Err(Refusal(format!(
            "reduction '{}': expected none, sum or mean",
            String::from_utf8_lossy(other)
        ))),
    }
}

fn expect(
    lowering: &Lowering<'_>,
    what: &str,
    id: TensorId,
    want: &TensorType,
) -> Result<(), Refusal> {
    let ty = lowering.ty(id);
    if ty.data_type == want.data_type && ty.elements() == want.elements() {
        return Ok(());
    }
    Err(Refusal(format!("{what} is {ty}: expected {want}")))
}

fn lower(lowering: &mut Lowering<'_>, node: &Node) -> Result<(), Refusal> {
    let grad = node.op().ends_with("Grad");
    let at = usize::from(grad);
    let scores = lowering.input(node, at)?;
    let ty = lowering.ty(scores);
    let &[batch, classes, ref inner @ ..] = ty.shape.as_slice() else {
        return Err(Refusal(format!(
            "the scores are {ty}: expected a batch and classes"
        )));
    };
    let inner = inner.iter().product();
    let labels = lowering.input(node, at + 1)?;
    let of_labels = lowering.ty(labels);
    if !matches!(of_labels.data_type, DataType::INT32 | DataType::INT64)
        || of_labels.elements() != batch * inner
    {
        return Err(Refusal(format!(
            "the labels are {of_labels}: expected {} integers",
            batch * inner
        )));
    }
    let weights = lowering.optional_input(node, at + 2)?;
    if let Some(weights) = weights {
        let want = TensorType::new(ty.data_type, [classes]);
        expect(lowering, "the tensor of weights", weights, &want)?;
    }
    let ignore = lowering.optional_input(node, at + 3)?;
    if let Some(ignore) = ignore {
        let want = TensorType::new(DataType::INT64, []);
        expect(lowering, "the ignored label", ignore, &want)?;
    }
    let op = CrossEntropy {
        batch,
        classes,
        inner,
        reduction: reduction(node)?,
        ignore: node.attribute("ignore_index").and_then(|a| a.i),
        softmax: node.op() != "NegativeLogLikelihoodLoss",
    };
    let losses = match op.reduction {
        Reduction::None => TensorType::new(ty.data_type, [batch * inner]),
        _ => TensorType::new(ty.data_type, []),
    };
    let mut inputs = vec![Some(scores), Some(labels), weights, ignore];
    let (op, outputs) = if grad {
        let dy = lowering.input(node, 0)?;
        expect(lowering, "the gradient of the loss", dy, &losses)?;
        inputs.insert(0, Some(dy));
        let added = lowering.optional_input(node, 5)?;
        if let Some(added) = added {
            expect(lowering, "what is added", added, &ty)?;
        }
        inputs.push(added);
        let output = lowering.required_output(node, 0)?;
        expect(lowering, "the gradient of the scores", output, &ty)?;
        (Loss::CrossEntropyGrad(op), vec![Some(output)])
    } else {
        let loss = lowering.required_output(node, 0)?;
        expect(lowering, "the loss", loss, &losses)?;
        let probabilities = match op.softmax {
            true => lowering.output(node, 1)?,
            false => None,
        };
        (Loss::CrossEntropy(op), vec![Some(loss), probabilities])
    };
    lowering.emit(Op::Loss(op), inputs, outputs);
    Ok(())
}
