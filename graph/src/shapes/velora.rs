//! The operators of domain `ai.velora`: compressed activations and what is computed from them.
//! G is the attribute `groups`, D the features, M = ceil(D / G) the size of a sub-token, R the number of
//! directions. v is [M] where R = 1, or [R, M], or [G, R, M].

use super::call::Call;
use super::fact::unknown;
use super::rules::{Fault, Outcome};
use super::types::DataType;
use crate::dim::Dim;

fn groups(call: &Call<'_>) -> Result<Dim, Box<Fault>> {
    positive(call, "groups")
}

fn positive(call: &Call<'_>, name: &str) -> Result<Dim, Box<Fault>> {
    let value = call.node.int(name, 0);
    if value < 1 {
        return Err(call.fault(
            call.output_name(0),
            format!("the attribute {name} is {value}"),
            "it must be at least 1".to_owned(),
            "the node was not written by this tool, or was edited",
        ));
    }
    Ok(Dim::from(value))
}

/// v must have M = ceil(features / groups) elements in its last axis; it is [M], or [R, M], or
/// [G, R, M]. Gives R.
fn check_direction(
    call: &Call<'_>,
    slot: usize,
    features: &Dim,
    groups: &Dim,
) -> Result<Dim, Box<Fault>> {
    call.want_rank(slot, 1, 3)?;
    let Some(shape) = call.shape(slot) else {
        return Ok(unknown());
    };
    let fault = |found: String, wanted: String| {
        let hint = "v, groups and the features belong together: rewrite the original graph again";
        Err(call.fault(call.name(slot), found, wanted, hint))
    };
    let size = features.div_ceil(groups).as_const();
    match (shape.last().and_then(Dim::as_const), size) {
        (Some(have), Some(want)) if have != want => {
            return fault(
                format!("the direction has {have} elements"),
                format!("sub-tokens have {want} (ceil({features} / {groups}))"),
            );
        }
        _ => {}
    }
    let sets = shape.first().filter(|_| shape.len() == 3);
    match (sets.and_then(Dim::as_const), groups.as_const()) {
        (Some(have), Some(want)) if have != want => {
            return fault(
                format!("there are directions for {have} groups"),
                format!("groups is {want}"),
            );
        }
        _ => {}
    }
    Ok(match shape.len() {
        1 => Dim::from(1),
        axes => shape[axes - 2].clone(),
    })
}

fn last(call: &Call<'_>, slot: usize) -> Dim {
    call.shape(slot)
        .and_then(|s| s.last())
        .cloned()
        .unwrap_or_else(unknown)
}

/// The shape of an input with another last axis.
fn with_last(call: &Call<'_>, slot: usize, size: Dim) -> Option<Vec<Dim>> {
    let mut shape = call.shape_owned(slot)?;
    *shape.last_mut()? = size;
    Some(shape)
}

/// X [..., D], v → z [..., G·R].
pub(super) fn compress(call: &mut Call<'_>) -> Outcome {
    let groups = groups(call)?;
    call.want_rank(0, 1, usize::MAX)?;
    let data_type = call.same_type([0, 1])?;
    let rank = check_direction(call, 1, &last(call, 0), &groups)?;
    call.give(0, data_type, with_last(call, 0, groups * rank));
    Ok(())
}

/// X [..., D] → v [M].
pub(super) fn mean_direction(call: &mut Call<'_>) -> Outcome {
    let groups = groups(call)?;
    call.want_rank(0, 1, usize::MAX)?;
    call.give(
        0,
        call.dtype(0),
        Some(vec![last(call, 0).div_ceil(&groups)]),
    );
    Ok(())
}

/// X [..., D] → v [G, 1, M].
pub(super) fn mean_directions(call: &mut Call<'_>) -> Outcome {
    let groups = groups(call)?;
    call.want_rank(0, 1, usize::MAX)?;
    let size = last(call, 0).div_ceil(&groups);
    call.give(0, call.dtype(0), Some(vec![groups, Dim::from(1), size]));
    Ok(())
}

/// v, mean → v, all of one shape.
pub(super) fn running_direction(call: &mut Call<'_>) -> Outcome {
    let data_type = call.same_type([0, 1])?;
    let shape = call.shape_owned(0).or_else(|| call.shape_owned(1));
    call.give(0, data_type, shape);
    Ok(())
}

/// z [N, K] → z as int8 [N, K], scale [N, 1].
pub(super) fn quantize(call: &mut Call<'_>) -> Outcome {
    call.want_rank(0, 1, usize::MAX)?;
    call.give(0, Some(DataType::INT8), call.shape_owned(0));
    call.give(1, call.dtype(0), with_last(call, 0, Dim::from(1)));
    Ok(())
}

/// z as int8 [N, K], scale [N, 1] → z [N, K].
pub(super) fn dequantize(call: &mut Call<'_>) -> Outcome {
    call.give(0, call.dtype(1), call.shape_owned(0));
    Ok(())
}

/// z [..., G·R], v → X̂ [..., D].
pub(super) fn reconstruct(call: &mut Call<'_>) -> Outcome {
    let (groups, features) = (groups(call)?, positive(call, "features")?);
    call.want_rank(0, 1, usize::MAX)?;
    let data_type = call.same_type([0, 1])?;
    let rank = check_direction(call, 1, &features, &groups)?;
    check_width(call, &groups, &rank)?;
    call.give(0, data_type, with_last(call, 0, features));
    Ok(())
}

/// z must have G·R numbers in its last axis.
fn check_width(call: &Call<'_>, groups: &Dim, rank: &Dim) -> Outcome {
    let width = groups * rank;
    match (last(call, 0).as_const(), width.as_const()) {
        (Some(have), Some(want)) if have != want => Err(call.fault(
            call.name(0),
            format!("its last axis is {have}"),
            format!("groups times directions is {want}"),
            "a compressed activation has one number for each group and direction",
        )),
        _ => Ok(()),
    }
}

/// z [N, G·R], dY [N, O], v → dW [D, O], or [O, D] where transposed.
pub(super) fn factored_weight_grad(call: &mut Call<'_>) -> Outcome {
    let (groups, features) = (groups(call)?, positive(call, "features")?);
    call.want_rank(0, 2, 2)?;
    call.want_rank(1, 2, 2)?;
    let data_type = call.same_type([0, 1, 2])?;
    call.agree((1, 0), (0, 0))?;
    let rank = check_direction(call, 2, &features, &groups)?;
    check_width(call, &groups, &rank)?;
    let outputs = last(call, 1);
    let shape = match call.node.int("transposed", 0) {
        0 => vec![features, outputs],
        _ => vec![outputs, features],
    };
    call.give(0, data_type, Some(shape));
    Ok(())
}
