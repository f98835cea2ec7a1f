//! Recurrent layers: `LSTMGrad` and `GRUGrad` of ONNX Runtime read X for the gradient of W only. States
//! and gates, which they also read, are needed for more.

use super::{Form, Kind, Obstacle, Site, Source, Unfit, Walk};
use crate::dim::Dim;
use crate::ir::{NodeId, ValueId};

/// What a recurrent layer's gradient at the end of a walk is: only that of the input weights, its second
/// output, is a contraction of X.
pub(super) fn source(walk: &Walk<'_>, parameter: ValueId, value: ValueId, id: NodeId) -> Source {
    let node = walk.graph.node(id);
    let operands = [0, 1].map(|slot| node.inputs.get(slot).copied().flatten());
    match operands {
        [Some(x), Some(weights)] if node.outputs.get(1) == Some(&Some(value)) => {
            Source::of(site(walk, parameter, id, x, weights))
        }
        _ => Source::End,
    }
}

/// X is [steps, batch, D], the weights [1, gates · H, D].
fn site(
    walk: &Walk<'_>,
    parameter: ValueId,
    product: NodeId,
    operand: ValueId,
    weights: ValueId,
) -> Result<Site, Unfit> {
    let input = walk.origin(operand, |_, _, _| {}).unwrap_or(operand);
    let activation = walk.buffers.root(input);
    let unfit = |why| Unfit {
        parameter,
        kind: Kind::Recurrent,
        product,
        activation,
        obstacle: Obstacle::Layout,
        why,
    };
    let rank = walk.dims(input).map_or(0, <[Dim]>::len);
    // Steps and batch may change places on the way: X̂ goes the same way.
    let mut features_last = rank > 1;
    walk.origin(operand, |node, below, above| {
        let end = |dims: Option<&[Dim]>| dims?.last().cloned();
        features_last &= match node.ints("perm") {
            Some(perm) => perm.last() == Some(&(perm.len() as i64 - 1)),
            None => node.op() != "Transpose" && end(below).is_some() && end(below) == end(above),
        };
    });
    if !features_last {
        return Err(unfit("its layout changes on the way to the layer"));
    }
    let Some((features, tokens)) = walk.features_tokens(input, rank - 1) else {
        return Err(unfit("its number of features is unknown"));
    };
    let Some(rows) = walk.dims(weights).and_then(|w| w.get(1)) else {
        return Err(unfit("the shape of its weights is unknown"));
    };
    Ok(Site {
        parameter,
        kind: Kind::Recurrent,
        product,
        slot: 0,
        activation,
        input,
        axis: rank - 1,
        features,
        outputs: rows.clone(),
        operations: Some(Dim::from(2) * &tokens * Dim::from(features) * rows),
        tokens,
        form: Form::Reconstructed,
    })
}
