//! Reductions.

use super::DataType;
use super::call::Call;
use super::fact::{Fact, unknown};
use super::rules::{Fault, Outcome};
use super::shape_ops::product;
use crate::dim::Dim;

pub(super) fn reduce(call: &mut Call<'_>) -> Outcome {
    let keep = call.node.int("keepdims", 1) != 0;
    let shape = reduced_shape(call, keep)?;
    // The product of a shape's sizes is a count of elements.
    let contents = match (call.node.op(), call.contents(0), &shape) {
        ("ReduceProd", Some(all), Some(shape)) if product(shape).as_const() == Some(1) => {
            Some(vec![product(all)])
        }
        ("ReduceSum", Some(all), Some(shape)) if product(shape).as_const() == Some(1) => {
            Some(vec![all.iter().fold(Dim::from(0), |sum, d| sum + d)])
        }
        ("ReduceMax" | "ReduceMin", Some([only]), Some(_)) => Some(vec![only.clone()]),
        _ => None,
    };
    call.set(0, Fact::new(call.dtype(0), shape).with(contents));
    Ok(())
}

fn reduced_shape(call: &Call<'_>, keep: bool) -> Result<Option<Vec<Dim>>, Box<Fault>> {
    let Some(shape) = call.shape(0) else {
        return Ok(None);
    };
    let axes = match call.axes("axes", 1) {
        Some(Ok(axes)) => axes,
        // Which axes go is unknown; with keepdims the rank is not.
        Some(Err(())) => return Ok(keep.then(|| vec![unknown(); shape.len()])),
        None => Vec::new(),
    };
    if axes.is_empty() {
        if call.node.int("noop_with_empty_axes", 0) != 0 {
            return Ok(Some(shape.to_vec()));
        }
        return Ok(Some(if keep {
            vec![Dim::from(1); shape.len()]
        } else {
            Vec::new()
        }));
    }
    let mut gone = vec![false; shape.len()];
    for axis in axes {
        gone[call.axis(axis, shape.len(), 0)?] = true;
    }
    let sizes = shape
        .iter()
        .zip(gone)
        .filter_map(|(size, gone)| match (gone, keep) {
            (false, _) => Some(size.clone()),
            (true, true) => Some(Dim::from(1)),
            (true, false) => None,
        });
    Ok(Some(sizes.collect()))
}

/// All elements of all inputs to one number.
pub(super) fn reduce_all(call: &mut Call<'_>) -> Outcome {
    call.give(0, Some(DataType::FLOAT), Some(Vec::new()));
    Ok(())
}

pub(super) fn arg(call: &mut Call<'_>) -> Outcome {
    let keep = call.node.int("keepdims", 1) != 0;
    let mut shape = call.shape_owned(0);
    if let Some(shape) = &mut shape {
        let axis = call.axis(call.node.int("axis", 0), shape.len(), 0)?;
        if keep {
            shape[axis] = Dim::from(1);
        } else {
            shape.remove(axis);
        }
    }
    call.give(0, Some(DataType::INT64), shape);
    Ok(())
}
