//! The operators of domain `ai.velora`: compressed activations and what is computed from them.
//! G is the attribute `groups`, D the features, M = ceil(D / G) the size of a sub-token.

use super::call::Call;
use super::fact::unknown;
use super::rules::{Fault, Outcome};
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

/// v must have M = ceil(features / groups) elements.
fn check_direction(call: &Call<'_>, slot: usize, features: &Dim, groups: &Dim) -> Outcome {
    call.want_rank(slot, 1, 1)?;
    let length = call
        .shape(slot)
        .and_then(|s| s.first())
        .and_then(Dim::as_const);
    let want = features.div_ceil(groups).as_const();
    match (length, want) {
        (Some(have), Some(want)) if have != want => Err(call.fault(
            call.name(slot),
            format!("the direction has {have} elements"),
            format!("sub-tokens have {want} (ceil({features} / {groups}))"),
            "v, groups and the features belong together: rewrite the original graph again",
        )),
        _ => Ok(()),
    }
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

/// X [..., D], v [M] → z [..., G].
pub(super) fn compress(call: &mut Call<'_>) -> Outcome {
    let groups = groups(call)?;
    call.want_rank(0, 1, usize::MAX)?;
    let data_type = call.same_type([0, 1])?;
    check_direction(call, 1, &last(call, 0), &groups)?;
    call.give(0, data_type, with_last(call, 0, groups));
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

/// z [..., G], v [M] → X̂ [..., D].
pub(super) fn reconstruct(call: &mut Call<'_>) -> Outcome {
    let (groups, features) = (groups(call)?, positive(call, "features")?);
    call.want_rank(0, 1, usize::MAX)?;
    let data_type = call.same_type([0, 1])?;
    check_groups(call, &groups)?;
    check_direction(call, 1, &features, &groups)?;
    call.give(0, data_type, with_last(call, 0, features));
    Ok(())
}

fn check_groups(call: &Call<'_>, groups: &Dim) -> Outcome {
    match (last(call, 0).as_const(), groups.as_const()) {
        (Some(have), Some(want)) if have != want => Err(call.fault(
            call.name(0),
            format!("its last axis is {have}"),
            format!("groups is {want}"),
            "a compressed activation has one number for each group",
        )),
        _ => Ok(()),
    }
}

/// z [N, G], dY [N, O], v [M] → dW [D, O], or [O, D] where transposed.
pub(super) fn factored_weight_grad(call: &mut Call<'_>) -> Outcome {
    let (groups, features) = (groups(call)?, positive(call, "features")?);
    call.want_rank(0, 2, 2)?;
    call.want_rank(1, 2, 2)?;
    let data_type = call.same_type([0, 1, 2])?;
    call.agree((1, 0), (0, 0))?;
    check_groups(call, &groups)?;
    check_direction(call, 2, &features, &groups)?;
    let outputs = last(call, 1);
    let shape = match call.node.int("transposed", 0) {
        0 => vec![features, outputs],
        _ => vec![outputs, features],
    };
    call.give(0, data_type, Some(shape));
    Ok(())
}
