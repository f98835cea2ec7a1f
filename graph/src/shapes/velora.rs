//! The operators of domain `ai.velora`: compressed activations and what is computed from them.
//! G is the attribute `groups`, D the features, M = ceil(D / G) the size of a sub-token, R the number of
//! directions. v is [M] where R = 1, or [R, M], or [G, R, M]. The features, and the groups in z, are the last
//! axis, or axis 1 where the attribute `axis` is 1.

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

/// The axis of the features in an input; `None` where its rank is unknown.
fn feature_axis(call: &Call<'_>, slot: usize) -> Result<Option<usize>, Box<Fault>> {
    let Some(rank) = call.rank(slot) else {
        return Ok(None);
    };
    let axis = call.node.int("axis", -1);
    match axis {
        -1 if rank > 0 => Ok(Some(rank - 1)),
        1 if rank > 1 => Ok(Some(1)),
        _ => Err(call.fault(
            call.name(slot),
            format!("it has {rank} axes, and the attribute axis is {axis}"),
            "axis is -1, the last, or 1, and there is such an axis".to_owned(),
            "the node was not written by this tool, or was edited",
        )),
    }
}

/// The size of the feature axis of an input.
fn features_of(call: &Call<'_>, slot: usize) -> Result<Dim, Box<Fault>> {
    let axis = feature_axis(call, slot)?;
    let size = axis.and_then(|axis| call.shape(slot)?.get(axis).cloned());
    Ok(size.unwrap_or_else(unknown))
}

/// The shape of an input with another size of its feature axis.
fn with_features(call: &Call<'_>, slot: usize, size: Dim) -> Result<Option<Vec<Dim>>, Box<Fault>> {
    let axis = feature_axis(call, slot)?;
    let mut shape = call.shape_owned(slot);
    if let (Some(axis), Some(shape)) = (axis, &mut shape)
        && let Some(old) = shape.get_mut(axis)
    {
        *old = size;
    }
    Ok(shape)
}

/// X [..., D], v → z [..., G·R].
pub(super) fn compress(call: &mut Call<'_>) -> Outcome {
    let groups = groups(call)?;
    call.want_rank(0, 1, usize::MAX)?;
    let data_type = call.same_type([0, 1])?;
    let rank = check_direction(call, 1, &features_of(call, 0)?, &groups)?;
    let shape = with_features(call, 0, groups * rank)?;
    call.give(0, data_type, shape);
    Ok(())
}

/// X [..., D] → v [M].
pub(super) fn mean_direction(call: &mut Call<'_>) -> Outcome {
    let groups = groups(call)?;
    call.want_rank(0, 1, usize::MAX)?;
    let size = features_of(call, 0)?.div_ceil(&groups);
    call.give(0, call.dtype(0), Some(vec![size]));
    Ok(())
}

/// X [..., D] → v [G, 1, M].
pub(super) fn mean_directions(call: &mut Call<'_>) -> Outcome {
    let groups = groups(call)?;
    call.want_rank(0, 1, usize::MAX)?;
    let size = features_of(call, 0)?.div_ceil(&groups);
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
    let scales = with_features(call, 0, Dim::from(1))?;
    call.give(1, call.dtype(0), scales);
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
    let shape = with_features(call, 0, features)?;
    call.give(0, data_type, shape);
    Ok(())
}

/// z must have G·R numbers in its feature axis.
fn check_width(call: &Call<'_>, groups: &Dim, rank: &Dim) -> Outcome {
    let width = groups * rank;
    match (features_of(call, 0)?.as_const(), width.as_const()) {
        (Some(have), Some(want)) if have != want => Err(call.fault(
            call.name(0),
            format!("its feature axis is {have}"),
            format!("groups times directions is {want}"),
            "a compressed activation has one number for each group and direction",
        )),
        _ => Ok(()),
    }
}

/// z [N, G·R], dY [N, O], v → dW [D, O], or [O, D] where transposed.
pub(super) fn factored_weight_grad(call: &mut Call<'_>) -> Outcome {
    let (groups, features) = (groups(call)?, positive(call, "features")?);
    let outputs = features_of(call, 1)?;
    let data_type = factored(call, &groups, &features)?;
    let shape = match call.node.int("transposed", 0) {
        0 => vec![features, outputs],
        _ => vec![outputs, features],
    };
    call.give(0, data_type, Some(shape));
    Ok(())
}

/// z [N, G], dY [N, D], v [M] → dγ [D].
pub(super) fn factored_scale_grad(call: &mut Call<'_>) -> Outcome {
    let groups = groups(call)?;
    call.want_rank(2, 1, 1)?;
    let features = features_of(call, 1)?;
    let data_type = factored(call, &groups, &features)?;
    call.give(0, data_type, Some(vec![features]));
    Ok(())
}

/// What factored gradients have in common: z and dY are matrices with a row for each token.
fn factored(call: &Call<'_>, groups: &Dim, features: &Dim) -> Result<Option<DataType>, Box<Fault>> {
    call.want_rank(0, 2, 2)?;
    call.want_rank(1, 2, 2)?;
    let data_type = call.same_type([0, 1, 2])?;
    call.agree((1, 0), (0, 0))?;
    let rank = check_direction(call, 2, features, groups)?;
    check_width(call, groups, &rank)?;
    Ok(data_type)
}
