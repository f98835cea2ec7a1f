//! Operators that pick or place elements by position.

use super::DataType;
use super::call::Call;
use super::fact::{Fact, unknown};
use super::rules::Outcome;
use crate::dim::Dim;

pub(super) fn gather(call: &mut Call<'_>) -> Outcome {
    let (Some(data), Some(indices)) = (call.shape(0), call.shape(1)) else {
        call.give(0, call.dtype(0), None);
        return Ok(());
    };
    let axis = call.axis(call.node.int("axis", 0), data.len(), 0)?;
    let mut shape = data[..axis].to_vec();
    shape.extend_from_slice(indices);
    shape.extend_from_slice(&data[axis + 1..]);
    let contents = (data.len() == 1).then(|| gathered(call)).flatten();
    call.set(0, Fact::new(call.dtype(0), Some(shape)).with(contents));
    Ok(())
}

fn gathered(call: &Call<'_>) -> Option<Vec<Dim>> {
    let (data, indices) = (call.contents(0)?, call.contents(1)?);
    let pick = |index: &Dim| {
        let place = call.resolve(index.as_const()?, data.len())?;
        Some(data[place].clone())
    };
    Some(
        indices
            .iter()
            .map(|i| pick(i).unwrap_or_else(unknown))
            .collect(),
    )
}

pub(super) fn gather_elements(call: &mut Call<'_>) -> Outcome {
    same_rank(call, 0, 1)?;
    call.give(0, call.dtype(0), call.shape_owned(1));
    Ok(())
}

fn same_rank(call: &Call<'_>, slot: usize, other: usize) -> Outcome {
    match (call.rank(slot), call.rank(other)) {
        (Some(a), Some(b)) if a != b => Err(call.fault(
            call.name(slot),
            format!("the rank is {a}"),
            format!("'{}' has rank {b}", call.name(other)),
            "the operator needs equal ranks",
        )),
        _ => Ok(()),
    }
}

pub(super) fn gather_nd(call: &mut Call<'_>) -> Outcome {
    let (Some(data), Some(indices)) = (call.shape(0), call.shape(1)) else {
        call.give(0, call.dtype(0), None);
        return Ok(());
    };
    let batch = usize::try_from(call.node.int("batch_dims", 0)).unwrap_or(usize::MAX);
    let depth = indices.last().and_then(Dim::as_const);
    let depth = depth.and_then(|d| usize::try_from(d).ok());
    let rest = depth.and_then(|d| data.get(batch.checked_add(d)?..));
    let shape = rest.map(|rest| {
        let lead = &indices[..indices.len().saturating_sub(1)];
        lead.iter().chain(rest).cloned().collect()
    });
    call.give(0, call.dtype(0), shape);
    Ok(())
}

pub(super) fn scatter(call: &mut Call<'_>) -> Outcome {
    call.same_type([
        0,
        if call.node.op() == "TensorScatter" {
            1
        } else {
            2
        },
    ])?;
    call.like(0, 0);
    Ok(())
}

pub(super) fn one_hot(call: &mut Call<'_>) -> Outcome {
    let depth = match call.contents(1) {
        Some([only]) => only.clone(),
        _ => unknown(),
    };
    let shape = match call.shape(0) {
        Some(indices) => {
            let axis = call.axis(call.node.int("axis", -1), indices.len() + 1, 0)?;
            let mut shape = indices.to_vec();
            shape.insert(axis, depth);
            Some(shape)
        }
        None => None,
    };
    call.give(0, call.dtype(2), shape);
    Ok(())
}

pub(super) fn non_zero(call: &mut Call<'_>) -> Outcome {
    let rank = call.rank(0).and_then(|r| i64::try_from(r).ok());
    let rank = rank.map_or_else(unknown, Dim::from);
    call.give(0, Some(DataType::INT64), Some(vec![rank, unknown()]));
    Ok(())
}

pub(super) fn top_k(call: &mut Call<'_>) -> Outcome {
    let count = match (call.node.attribute("k"), call.contents(1)) {
        (Some(k), _) => k.i.map_or_else(unknown, Dim::from),
        (None, Some([only])) => only.clone(),
        _ => unknown(),
    };
    let mut shape = call.shape_owned(0);
    if let Some(shape) = &mut shape {
        let axis = call.axis(call.node.int("axis", -1), shape.len(), 0)?;
        shape[axis] = count;
    }
    call.give(0, call.dtype(0), shape.clone());
    call.give(1, Some(DataType::INT64), shape);
    Ok(())
}

/// The standard operator of that name: it drops entries by a mask.
pub(super) fn compress(call: &mut Call<'_>) -> Outcome {
    let shape = match (call.node.attribute("axis"), call.shape_owned(0)) {
        (None, _) => Some(vec![unknown()]),
        (Some(axis), Some(mut shape)) => {
            let axis = call.axis(axis.i.unwrap_or(0), shape.len(), 0)?;
            shape[axis] = unknown();
            Some(shape)
        }
        _ => None,
    };
    call.give(0, call.dtype(0), shape);
    Ok(())
}

pub(super) fn unique(call: &mut Call<'_>) -> Outcome {
    compress(call)?;
    for slot in 1..4 {
        call.give(slot, Some(DataType::INT64), Some(vec![unknown()]));
    }
    Ok(())
}
