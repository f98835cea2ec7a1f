//! Scales: a factor for each feature, whose gradient is the sum over tokens of `X ∘ dY`.

use super::{Form, Kind, Obstacle, ScaleGrad, Site, Source, Unfit, Walk};
use crate::analysis::buffers::is_view;
use crate::dim::Dim;
use crate::ir::{NodeId, ValueId};
use std::collections::HashSet;

/// What a sum at the end of a walk is.
pub(super) fn source(walk: &Walk<'_>, parameter: ValueId, result: NodeId) -> Source {
    match contraction(walk, parameter, result) {
        Some(found) => Source::of(found),
        None => Source::Other,
    }
}

/// The contraction behind a `ReduceSum` of a product, where the product is one of X and a gradient
/// and the parameter a factor of X; `None` where it is something else.
fn contraction(walk: &Walk<'_>, parameter: ValueId, result: NodeId) -> Option<Result<Site, Unfit>> {
    let (summed, rank, axes) = walk.summed_axes(walk.graph.node(result))?;
    let product = multiplication_above(walk, summed)?;
    let node = walk.graph.node(product);
    let (&[Some(a), Some(b)], &[Some(made)]) = (node.inputs.as_slice(), node.outputs.as_slice())
    else {
        return None;
    };
    let forward = |operand| {
        let mut rearranged = false;
        let origin = walk.origin(operand, |node, below, above| {
            rearranged |= node.op() == "Transpose" || below.is_none() || below != above;
        });
        origin.map(|input| (input, rearranged))
    };
    let (slot, (input, rearranged), gradient) = match [forward(a), forward(b)] {
        [Some(x), None] if walk.backward(b) => (0, x, b),
        [None, Some(x)] if walk.backward(a) => (1, x, a),
        _ => return None,
    };
    let activation = walk.buffers.root(input);
    // A sum of dY ∘ (something saved) may as well be the gradient of a bias, dY being masked: what
    // makes it that of a scale is the forward half.
    if !scales(walk, parameter, activation) {
        return None;
    }
    let unfit = |why| {
        Some(Err(Unfit {
            parameter,
            kind: Kind::Scale,
            product,
            activation,
            obstacle: Obstacle::Layout,
            why,
        }))
    };
    let (Some(x), Some(dy), Some(sum)) = (walk.dims(input), walk.dims(gradient), walk.dims(made))
    else {
        return unfit("its shape is unknown");
    };
    if rearranged {
        return unfit("its layout changes on the way to the product");
    }
    if x != dy || x != sum {
        return unfit("one operand of its product is broadcast");
    }
    let Some((features, tokens)) = walk.features_tokens(input, x.len().saturating_sub(1)) else {
        return unfit("its number of features is unknown");
    };
    // The sum leaves the last axis, whatever views lie between it and the product.
    let leading = axes.iter().enumerate().all(|(at, axis)| *axis == at as i64);
    let last = walk.dims(summed).and_then(<[Dim]>::last);
    if !leading || axes.len() + 1 != rank || last != x.last() {
        return unfit("the sum does not run over its leading axes");
    }
    Some(Ok(Site {
        parameter,
        kind: Kind::Scale,
        product,
        slot,
        activation,
        input,
        axis: x.len() - 1,
        features,
        operations: Some(Dim::from(2) * &tokens * Dim::from(features)),
        outputs: Dim::from(1),
        tokens,
        form: Form::Scale(ScaleGrad { result, gradient }),
    }))
}

/// The `Mul` that a value comes from, through views that nothing else reads.
fn multiplication_above(walk: &Walk<'_>, value: ValueId) -> Option<NodeId> {
    let mut here = value;
    loop {
        let producer = walk.graph.producer(here)?;
        let node = walk.graph.node(producer);
        if !walk.has_one_reader(here) || !node.domain().is_empty() {
            return None;
        }
        match node.op() {
            "Mul" => return Some(producer),
            _ if is_view(node) => here = node.inputs.first().copied().flatten()?,
            _ => return None,
        }
    }
}

/// Whether the forward half multiplies an activation by a parameter, or by what is made of the
/// parameter alone (1 + γ, say).
fn scales(walk: &Walk<'_>, parameter: ValueId, activation: ValueId) -> bool {
    let size = |value| super::product_of(walk.dims(value)?)?.as_const();
    let (own, activation) = (size(parameter), uncast(walk, activation));
    let mut seen = HashSet::from([parameter]);
    let mut pending = vec![parameter];
    while let Some(value) = pending.pop() {
        for user in &walk.graph.value(value).users {
            let node = walk.graph.node(user.node);
            if !walk.forward(user.node) || !node.domain().is_empty() {
                continue;
            }
            let others = || (node.inputs.iter().flatten()).filter(|&&input| input != value);
            if node.op() == "Mul" && others().any(|&x| uncast(walk, x) == activation) {
                return true;
            }
            let alone = is_view(node)
                || matches!(
                    node.op(),
                    "Cast" | "Expand" | "Add" | "Sub" | "Mul" | "Neg" | "Exp" | "Softplus"
                );
            let outputs = node.outputs.iter().flatten().copied();
            pending.extend(outputs.filter(|&v| alone && size(v) == own && seen.insert(v)));
        }
    }
    false
}

/// The buffer behind a value and behind casts of it: forward and backward may read different copies.
fn uncast(walk: &Walk<'_>, value: ValueId) -> ValueId {
    let mut here = walk.buffers.root(value);
    // Each step goes to a producer, so the walk ends with the acyclic graph.
    while let Some(producer) = walk.graph.producer(here) {
        let node = walk.graph.node(producer);
        match node.inputs.first().copied().flatten() {
            Some(source) if node.op() == "Cast" => here = walk.buffers.root(source),
            _ => break,
        }
    }
    here
}
