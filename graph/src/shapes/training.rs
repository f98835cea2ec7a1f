//! Gradient and training operators of ONNX Runtime.

use super::DataType;
use super::call::{Call, list};
use super::fact::{Fact, unknown};
use super::rules::Outcome;
use super::shape_ops::given_shape;
use crate::dim::Dim;

/// The gradient of an operator that works element by element: as the incoming gradient, or as the
/// other operand where that says more.
pub(super) fn pointwise_grad(call: &mut Call<'_>) -> Outcome {
    let data_type = call.same_type([0, 1])?;
    let shape = match (call.shape(0), call.shape(1)) {
        (Some(a), Some(b)) if a.len() == b.len() => {
            let axes = 0..a.len();
            let sizes = axes.map(|axis| call.agree((0, axis), (1, axis)));
            Some(sizes.collect::<Result<Vec<_>, _>>()?)
        }
        (Some(a), Some(b)) => {
            return Err(call.fault(
                call.name(0),
                format!("the gradient is {}", list(a)),
                format!("'{}' is {}", call.name(1), list(b)),
                "a gradient has the shape of what it is the gradient of",
            ));
        }
        (a, b) => a.or(b).map(<[Dim]>::to_vec),
    };
    call.give(0, data_type, shape);
    Ok(())
}

/// Inputs: gradient of the loss, logarithms of the probabilities, labels.
pub(super) fn cross_entropy_grad(call: &mut Call<'_>) -> Outcome {
    call.give(0, call.dtype(1), call.shape_owned(1));
    Ok(())
}

/// Inputs: dY, X, scale, statistics. Outputs: dX, dScale, and dBias where there is a bias.
pub(super) fn layer_norm_grad(call: &mut Call<'_>) -> Outcome {
    call.like(0, 1);
    call.like(1, 2);
    call.like(2, 2);
    Ok(())
}

/// Inputs: dY, Y, scale, bias, inverse deviation.
pub(super) fn invertible_layer_norm_grad(call: &mut Call<'_>) -> Outcome {
    layer_norm_grad(call)
}

/// Inputs: the shape of the gathered tensor, indices, dY.
pub(super) fn gather_grad(call: &mut Call<'_>) -> Outcome {
    let shape = given_shape(call, 0);
    call.give(0, call.dtype(2), shape);
    Ok(())
}

/// Inputs: dY, the shape of what was sliced or gathered from.
pub(super) fn slice_grad(call: &mut Call<'_>) -> Outcome {
    let shape = given_shape(call, 1);
    call.give(0, call.dtype(0), shape);
    Ok(())
}

/// Inputs: dY, X, W. Outputs: dX, dW, dB.
pub(super) fn conv_grad(call: &mut Call<'_>) -> Outcome {
    call.like(0, 1);
    call.like(1, 2);
    let filters = call.shape(2).and_then(|w| w.first()).cloned();
    call.give(
        2,
        call.dtype(2),
        Some(vec![filters.unwrap_or_else(unknown)]),
    );
    Ok(())
}

/// The same; the filters of a transposed convolution stand on axis 1, in groups.
pub(super) fn conv_transpose_grad(call: &mut Call<'_>) -> Outcome {
    conv_grad(call)?;
    let group = Dim::from(call.node.int("group", 1));
    let filters = call
        .shape(2)
        .and_then(|w| w.get(1))
        .map(|each| each * &group);
    call.give(
        2,
        call.dtype(2),
        Some(vec![filters.unwrap_or_else(unknown)]),
    );
    Ok(())
}

/// Inputs: dY, and the indices that the forward MaxPool gave. The gradient's shape is that of the
/// MaxPool's input, which is not an input here: it is looked up at the producer of the indices.
pub(super) fn max_pool_grad(call: &mut Call<'_>) -> Outcome {
    let forward = call
        .value(1)
        .and_then(|indices| call.graph.producer(indices));
    let forward = forward.map(|id| call.graph.node(id));
    let pooled = forward
        .filter(|n| n.op() == "MaxPool")
        .and_then(|n| *n.inputs.first()?);
    let shape = pooled.and_then(|x| call.facts[x.index()].shape.clone());
    let rank = call.rank(0);
    call.give(
        0,
        call.dtype(0),
        shape.or_else(|| rank.map(|r| vec![unknown(); r])),
    );
    Ok(())
}

/// Inputs: X, W, R, lengths, H0, C0, all hidden states, all cell states, gates, dY, dH, dC.
/// Outputs: dX, dW, dR, dB, dH0, dC0.
pub(super) fn lstm_grad(call: &mut Call<'_>) -> Outcome {
    recurrent_grad(call, 8);
    call.like(4, 4);
    call.like(5, 5);
    Ok(())
}

/// Inputs: X, W, R, B, lengths, H0, all hidden states, gates, dY, dH. Outputs: dX, dW, dR, dB, dH0.
pub(super) fn gru_grad(call: &mut Call<'_>) -> Outcome {
    recurrent_grad(call, 6);
    call.like(4, 5);
    Ok(())
}

fn recurrent_grad(call: &mut Call<'_>, biases: i64) {
    for slot in 0..3 {
        call.like(slot, slot);
    }
    let bias = call.shape(2).and_then(|r| match r {
        [directions, _, hidden] => Some(vec![directions.clone(), hidden * &Dim::from(biases)]),
        _ => None,
    });
    call.give(3, call.dtype(0), bias);
}

/// Inputs: a buffer, what is added to it, whether to overwrite. Outputs: a flag, and the buffer.
pub(super) fn accumulate_in_place(call: &mut Call<'_>) -> Outcome {
    if let (Some(buffer), Some(added)) = (call.shape(0), call.shape(1)) {
        if buffer.len() != added.len() {
            return Err(call.fault(
                call.name(1),
                format!("the gradient is {}", list(added)),
                format!("the buffer '{}' is {}", call.name(0), list(buffer)),
                "a buffer has the shape of what it accumulates",
            ));
        }
        for axis in 0..buffer.len() {
            call.agree((1, axis), (0, axis))?;
        }
    }
    let flag = Fact::new(Some(DataType::BOOL), Some(vec![Dim::from(1)]));
    call.set(0, flag);
    call.like(1, 0);
    Ok(())
}

/// Which axes of two shapes a gradient must be summed over.
pub(super) fn broadcast_gradient_args(call: &mut Call<'_>) -> Outcome {
    for slot in 0..2 {
        call.give(slot, Some(DataType::INT64), Some(vec![unknown()]));
    }
    Ok(())
}

/// Optimisers of `ai.onnx.preview.training`: rate and step, then n parameters, n gradients, and one
/// or two lists of n state tensors; new parameters and states, without the gradients, come out.
pub(super) fn optimiser(call: &mut Call<'_>) -> Outcome {
    let lists = if call.node.op() == "Adam" { 3 } else { 2 };
    let count = call.outputs.len() / lists;
    for slot in 0..count * lists {
        // The gradients stand behind the parameters.
        let gradients = if slot < count { 0 } else { count };
        call.like(slot, 2 + slot + gradients);
    }
    Ok(())
}

/// Whether all numbers are finite: a flag.
pub(super) fn flag(call: &mut Call<'_>) -> Outcome {
    call.give(0, Some(DataType::BOOL), Some(Vec::new()));
    Ok(())
}

/// Inputs: dY, X, and how X was resized.
pub(super) fn resize_grad(call: &mut Call<'_>) -> Outcome {
    call.give(0, call.dtype(0), call.shape_owned(1));
    Ok(())
}
