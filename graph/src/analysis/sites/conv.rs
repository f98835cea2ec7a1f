//! Convolutions: the weight gradient sums over batch and places, and is computed by a node that reads X
//! itself. Channels are axis 1.

use super::{Form, Kind, Obstacle, Site, Source, Unfit, Walk, product_of};
use crate::analysis::buffers::is_view;
use crate::dim::Dim;
use crate::ir::{Node, NodeId, Use, ValueId};

/// What a convolution's gradient at the end of a walk is.
pub(super) fn source(walk: &Walk<'_>, parameter: ValueId, value: ValueId, id: NodeId) -> Source {
    let node = walk.graph.node(id);
    match (node.domain(), node.op()) {
        // dX and dB come from dY and W: X is read for dW only.
        ("com.microsoft", "ConvGrad") if node.outputs.get(1) == Some(&Some(value)) => {
            let operands = [0, 1].map(|slot| node.inputs.get(slot).copied().flatten());
            let [Some(gradient), Some(x)] = operands else {
                return Source::End;
            };
            let mut straight = true;
            walk.origin(x, |node, below, above| {
                straight &= node.op() != "Transpose" && below.is_some() && below == above;
            });
            let found = site(walk, parameter, (id, 1), x, gradient);
            Source::of(found.and_then(|site| match straight {
                true => Ok(site),
                false => Err(site.unfit("its layout changes on the way to the product")),
            }))
        }
        ("", "Conv") => match written_out(walk, parameter, node) {
            Some((slot, x, gradient)) => Source::of(site(walk, parameter, (id, slot), x, gradient)),
            None => Source::End,
        },
        _ => Source::Other,
    }
}

/// A weight gradient that is itself a convolution, of X by dY or of dY by X, with batch and channels
/// exchanged: the slot of X, its operand, and dY. The parameter must be the filters of a forward
/// convolution of the same X.
fn written_out(
    walk: &Walk<'_>,
    parameter: ValueId,
    node: &Node,
) -> Option<(usize, ValueId, ValueId)> {
    let operands = [0, 1].map(|slot| node.inputs.get(slot).copied().flatten());
    let [Some(a), Some(b)] = operands else {
        return None;
    };
    if node.inputs.get(2).copied().flatten().is_some() {
        return None;
    }
    let filtered = |operand| {
        let origin = walk.origin(operand, |_, _, _| {})?;
        filters(walk, parameter, origin).then_some(origin)
    };
    match [filtered(a), filtered(b)] {
        [Some(_), None] if walk.backward(b) => Some((0, a, b)),
        [None, Some(_)] if walk.backward(a) => Some((1, b, a)),
        _ => None,
    }
}

/// Whether the parameter, or a view of it, filters X in the forward half.
fn filters(walk: &Walk<'_>, parameter: ValueId, input: ValueId) -> bool {
    let same = |x| {
        let root = |value| walk.buffers.root(value);
        root(x) == root(input) && walk.dims(x) == walk.dims(input)
    };
    let mut pending = vec![parameter];
    while let Some(value) = pending.pop() {
        for &Use { node: id, slot } in &walk.graph.value(value).users {
            let node = walk.graph.node(id);
            if !walk.forward(id) || !node.domain().is_empty() {
                continue;
            }
            let x = node.inputs.first().copied().flatten();
            if node.op() == "Conv" && slot == Some(1) {
                if x.is_some_and(same) {
                    return true;
                }
            } else if slot == Some(0) && (is_view(node) || node.op() == "Cast") {
                pending.extend(node.outputs.iter().flatten());
            }
        }
    }
    false
}

/// The site of a reader that takes X [B, C, ...] in a slot.
fn site(
    walk: &Walk<'_>,
    parameter: ValueId,
    (product, slot): (NodeId, usize),
    operand: ValueId,
    gradient: ValueId,
) -> Result<Site, Unfit> {
    let input = walk.origin(operand, |_, _, _| {}).unwrap_or(operand);
    let activation = walk.buffers.root(input);
    let unfit = |why| Unfit {
        parameter,
        kind: Kind::Conv,
        product,
        activation,
        obstacle: Obstacle::Layout,
        why,
    };
    let rank = walk.dims(input).map_or(0, <[Dim]>::len);
    let weights = walk.dims(parameter).unwrap_or(&[]);
    let (Some(filters), true) = (weights.first(), rank > 2 && weights.len() == rank) else {
        return Err(unfit("it is not [batch, channels, places]"));
    };
    let Some((features, tokens)) = walk.features_tokens(input, 1) else {
        return Err(unfit("its number of channels is unknown"));
    };
    // One entry of dW is a sum over batch and the places of dY.
    let places = walk.dims(gradient).and_then(product_of);
    let places = places.and_then(|dy| dy.exact_div(filters));
    let operations = (product_of(weights).zip(places)).map(|(dw, n)| Dim::from(2) * dw * n);
    Ok(Site {
        parameter,
        kind: Kind::Conv,
        product,
        slot,
        activation,
        input,
        axis: 1,
        features,
        outputs: filters.clone(),
        tokens,
        operations,
        form: Form::Reconstructed,
    })
}
