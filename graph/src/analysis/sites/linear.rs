//! Linear layers: a matrix product `XᵀdY` that sums over all token axes.

use super::{
    Form, Kind, Obstacle, Site, Source, Unfit, Walk, WeightGrad, product_of, swaps_last_two,
};
use crate::dim::Dim;
use crate::ir::{Node, NodeId, ValueId};

/// What a product at the end of a walk is; a batched one stands above the sum over its batch axes.
pub(super) fn source(walk: &Walk<'_>, parameter: ValueId, id: NodeId) -> Source {
    let node = walk.graph.node(id);
    let found = match product(node) {
        Some(_) => contraction(walk, parameter, id, id),
        None => match batched_product(walk, node) {
            Some(batched) => contraction(walk, parameter, batched, id),
            None => return Source::Other,
        },
    };
    found.map_or(Source::End, Source::of)
}

/// The batched product that a `ReduceSum` over all batch axes sums up.
fn batched_product(walk: &Walk<'_>, node: &Node) -> Option<NodeId> {
    if node.int("keepdims", 1) != 0 {
        return None;
    }
    let (input, rank, axes) = walk.summed_axes(node)?;
    let batch = rank.checked_sub(2).filter(|&b| b > 0)?;
    let all = axes.len() == batch && axes.iter().enumerate().all(|(i, a)| *a == i as i64);
    let producer = walk.graph.producer(input)?;
    (all && walk.has_one_reader(input) && product(walk.graph.node(producer)).is_some())
        .then_some(producer)
}

/// The contraction that a product is, if it reads a forward value; `None` if it reads none.
fn contraction(
    walk: &Walk<'_>,
    parameter: ValueId,
    id: NodeId,
    result: NodeId,
) -> Option<Result<Site, Unfit>> {
    let node = walk.graph.node(id);
    let kind = product(node)?;
    let operands = [
        node.inputs.first().copied().flatten()?,
        node.inputs.get(1).copied().flatten()?,
    ];
    let forward = [0, 1].map(|slot| forward_value(walk, operands[slot]));
    // A gradient of a weight has exactly one operand that the forward half made.
    let (slot, (input, straight)) = match forward {
        [Some(x), None] if walk.backward(operands[1]) => (0, x),
        [None, Some(x)] if walk.backward(operands[0]) => (1, x),
        _ => return None,
    };
    let activation = walk.buffers.root(input);
    let unfit = |why| {
        Some(Err(Unfit {
            parameter,
            kind: Kind::Linear,
            product: id,
            activation,
            obstacle: Obstacle::Layout,
            why,
        }))
    };
    let Some(straight) = straight else {
        return unfit("its layout changes on the way to the product");
    };
    // After its own flag, operand 0 is [.., D, N] and operand 1 [.., N, D].
    let features_last = (slot == 1) != kind.transposes[slot];
    if features_last != straight {
        return unfit("the product does not sum over its leading axes");
    }
    let (Some(x), Some(dy)) = (walk.dims(input), walk.dims(operands[1 - slot])) else {
        return unfit("its shape is unknown");
    };
    let Some((features, tokens)) = walk.features_tokens(input, x.len().saturating_sub(1)) else {
        return unfit("its number of features is unknown");
    };
    let Some(operand) = walk.dims(operands[slot]) else {
        return unfit("its shape is unknown");
    };
    let batched = result != id;
    let matrices = [operand, dy].map(<[Dim]>::len) == [2, 2];
    if operand.len() < 2 || dy.len() < 2 || (!batched && !matrices) {
        return None;
    }
    let outputs_last = (slot == 0) != kind.transposes[1 - slot];
    let outputs = dy[if outputs_last {
        dy.len() - 1
    } else {
        dy.len() - 2
    }]
    .clone();
    // [1, B, ..] by [B, 1, ..] has as many tokens on both sides, but pairs each with all.
    let broadcast = batch_axes(operand) != batch_axes(dy);
    if batched && (broadcast || product_of(dy) != Some(&tokens * &outputs)) {
        return unfit("one operand of its product is broadcast over the batch");
    }
    let (gradient, gradient_flipped) = match (outputs_last, walk.graph.producer(operands[1 - slot]))
    {
        (true, _) => (operands[1 - slot], false),
        (false, Some(producer)) if swaps_last_two(walk.graph.node(producer)) => {
            let source = walk.graph.node(producer).inputs.first().copied().flatten();
            match source {
                Some(source) => (source, false),
                None => return None,
            }
        }
        (false, _) => (operands[1 - slot], true),
    };
    Some(Ok(Site {
        parameter,
        kind: Kind::Linear,
        product: id,
        slot,
        activation,
        input,
        axis: x.len() - 1,
        features,
        operations: Some(Dim::from(2) * &tokens * Dim::from(features) * &outputs),
        outputs: outputs.clone(),
        tokens,
        form: match kind.plain {
            true => Form::Weight(WeightGrad {
                result,
                gradient,
                gradient_flipped,
                transposed: slot == 1,
                scale: kind.scale,
            }),
            false => Form::Reconstructed,
        },
    }))
}

/// The first value of the forward half (or input or initialiser) that an operand comes from
/// through backward views and transpositions, and whether its last axis is still the operand's
/// last (`Some(true)`) or now the one before (`Some(false)`); `None` inside where its layout changes
/// in another way.
fn forward_value(walk: &Walk<'_>, operand: ValueId) -> Option<(ValueId, Option<bool>)> {
    let mut last = Some(true);
    // Whether a view nearer to the product has cut the axes anew.
    let mut merged = false;
    let origin = walk.origin(operand, |node, below, above| {
        if swaps_last_two(node) {
            // Flattening a transposed [B, S, D] mixes features with tokens; transposing what was
            // flattened does not.
            last = last.filter(|_| !merged).map(|l| !l);
        } else if node.op() == "Transpose" {
            last = None;
        } else {
            let end = |dims: Option<&[Dim]>| dims?.last().cloned();
            if end(below).is_none() || end(below) != end(above) {
                last = None;
            }
            let one = Dim::from(1);
            let long = |dims: Option<&[Dim]>| {
                let long = dims.into_iter().flatten().filter(|&d| *d != one);
                long.cloned().collect::<Vec<_>>()
            };
            merged |= long(below) != long(above);
        }
    })?;
    Some((origin, last))
}

/// The axes before the matrices, without leading ones, which broadcasting adds in any case.
fn batch_axes(dims: &[Dim]) -> &[Dim] {
    let one = Dim::from(1);
    let batch = &dims[..dims.len().saturating_sub(2)];
    let ones = batch.iter().take_while(|&d| *d == one).count();
    &batch[ones..]
}

/// What a matrix product does to its operands.
struct Product {
    transposes: [bool; 2],
    scale: f32,
    /// Whether nothing is added.
    plain: bool,
}

fn product(node: &Node) -> Option<Product> {
    let flags = || [node.int("transA", 0) != 0, node.int("transB", 0) != 0];
    match (node.domain(), node.op()) {
        ("", "MatMul") => Some(Product {
            transposes: [false; 2],
            scale: 1.0,
            plain: true,
        }),
        ("", "Gemm") => Some(Product {
            transposes: flags(),
            scale: node.float("alpha", 1.0),
            plain: node.inputs.get(2).copied().flatten().is_none(),
        }),
        ("com.microsoft", "FusedMatMul")
            if node.int("transBatchA", 0) == 0 && node.int("transBatchB", 0) == 0 =>
        {
            Some(Product {
                transposes: flags(),
                scale: node.float("alpha", 1.0),
                plain: true,
            })
        }
        _ => None,
    }
}
