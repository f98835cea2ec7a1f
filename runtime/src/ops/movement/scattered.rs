//! A `Transpose` of a `ScatterND` of `Transpose`s: how exporters write a slice along an inner axis. The
//! scatter knows the first axis only, so they bring the slice's axis there and back, which moves a tensor
//! three times. Where the indices are known and evenly spaced it is one copy.

use super::copy::{Axis, Copy, Origin, Part};
use super::rearrange::row_major;
use super::{Movement, expect_shape, width};
use crate::lower::{Lowering, Refusal};
use crate::ops::Op;
use crate::ops::index::{Reduction, reduction};
use crate::program::TensorId;
use velora_graph::ir::Node;

/// Rows of a tensor that are written: every `step`th from `first` on.
struct Rows {
    first: usize,
    step: usize,
    count: usize,
}

/// Adds the copy where a `Transpose` is of that kind; false where it is none.
pub(super) fn transposed_scatter(
    lowering: &mut Lowering<'_>,
    node: &Node,
) -> Result<bool, Refusal> {
    let Some(scatter) = lowering.source(node, 0) else {
        return Ok(false);
    };
    if (scatter.domain(), scatter.op()) != ("", "ScatterND")
        || reduction(scatter) != Ok(Reduction::Replace)
    {
        return Ok(false);
    }
    let scattered = lowering.input(node, 0)?;
    let ty = lowering.ty(scattered);
    let Some(rows) = rows(lowering, scatter, &ty.shape)? else {
        return Ok(false);
    };
    let permutation = lowering.permutation(node, scattered)?;
    let shape: Vec<usize> = permutation.iter().map(|&axis| ty.shape[axis]).collect();
    let Some(output) = lowering.output(node, 0)? else {
        return Ok(true);
    };
    expect_shape(&lowering.ty(output), &shape)?;
    width(&ty)?;
    // By axis of the scattered tensor: its step in the output.
    let mut to = vec![0; shape.len()];
    for (&axis, step) in permutation.iter().zip(row_major(&shape)) {
        to[axis] = step;
    }
    let mut inputs = Vec::new();
    let mut parts = Vec::new();
    // What the updates leave of the data; under them where they have gaps.
    let (origin, from) = match repeated(lowering, scatter)? {
        Some(scalar) => {
            inputs.push(Some(scalar));
            (Origin::Scalar(0), vec![0; shape.len()])
        }
        None => {
            let (data, from) = strides(lowering, scatter, 0)?;
            inputs.push(Some(data));
            (Origin::Input(0), from)
        }
    };
    let behind = rows.first + rows.count;
    let left = match rows.step {
        1 => [0..rows.first, behind..ty.shape[0]],
        _ => [0..ty.shape[0], 0..0],
    };
    for rows in left {
        let axes = axes(&ty.shape, rows.len(), &from, &to, 1);
        let (first, last) = (rows.start * from[0], rows.start * to[0]);
        parts.extend(Part::new(origin, 0, axes, first, last)?);
    }
    if parts.is_empty() {
        inputs.clear();
    }
    let (updates, from) = strides(lowering, scatter, 2)?;
    let axes = axes(&ty.shape, rows.count, &from, &to, rows.step);
    let slot = Origin::Input(inputs.len());
    parts.extend(Part::new(slot, 0, axes, 0, rows.first * to[0])?);
    inputs.push(Some(updates));
    let op = Op::Movement(Movement::Copy(Copy { parts }));
    lowering.emit(op, inputs, vec![Some(output)]);
    Ok(true)
}

/// The axes of some rows of a tensor, of which every `step`th is written.
fn axes<'s>(
    shape: &'s [usize],
    rows: usize,
    from: &'s [usize],
    to: &'s [usize],
    step: usize,
) -> impl Iterator<Item = Axis> + use<'s> {
    (shape.iter().zip(from).zip(to))
        .enumerate()
        .map(move |(axis, ((&size, &from), &to))| Axis {
            size: if axis == 0 { rows } else { size },
            from: from as isize,
            to: if axis == 0 { step * to } else { to },
        })
}

/// The rows that a scatter writes; `None` where they are not known, not evenly spaced or do not fit, which
/// the scatter itself is to say.
fn rows(
    lowering: &mut Lowering<'_>,
    scatter: &Node,
    shape: &[usize],
) -> Result<Option<Rows>, Refusal> {
    let (indices, updates) = (lowering.input(scatter, 1)?, lowering.input(scatter, 2)?);
    let [count, 1] = lowering.ty(indices).shape[..] else {
        return Ok(None);
    };
    let (Some((&size, slice)), Ok(Some(known))) =
        (shape.split_first(), lowering.constant_ints(scatter, 1))
    else {
        return Ok(None);
    };
    let updated = lowering.ty(updates).shape;
    if updated.split_first() != Some((&count, slice)) || known.len() != count {
        return Ok(None);
    }
    let place = |&index: &i64| {
        let index = if index < 0 {
            index.checked_add(i64::try_from(size).ok()?)?
        } else {
            index
        };
        usize::try_from(index).ok().filter(|&index| index < size)
    };
    let places: Option<Vec<usize>> = known.iter().map(place).collect();
    let Some(places) = places else {
        return Ok(None);
    };
    let rows = match places[..] {
        [] => return Ok(None),
        [first] => Rows {
            first,
            step: 1,
            count,
        },
        [first, second, ..] => Rows {
            first,
            step: second.saturating_sub(first),
            count,
        },
    };
    let even = rows.step > 0 && (places.windows(2)).all(|pair| pair[0] + rows.step == pair[1]);
    Ok(even.then_some(rows))
}

/// What an operand of the scatter is a transposition of, and the steps there of the operand's axes.
fn strides(
    lowering: &mut Lowering<'_>,
    scatter: &Node,
    slot: usize,
) -> Result<(TensorId, Vec<usize>), Refusal> {
    Ok(match lowering.transposed_input(scatter, slot)? {
        Some((tensor, permutation)) => {
            let steps = row_major(&lowering.ty(tensor).shape);
            (
                tensor,
                permutation.iter().map(|&axis| steps[axis]).collect(),
            )
        }
        None => {
            let tensor = lowering.input(scatter, slot)?;
            (tensor, row_major(&lowering.ty(tensor).shape))
        }
    })
}

/// The single element that an `Expand` has made the scatter's data of, if so.
fn repeated(lowering: &mut Lowering<'_>, scatter: &Node) -> Result<Option<TensorId>, Refusal> {
    let mut reader = scatter;
    while let Some(node) = lowering.source(reader, 0) {
        match (node.domain(), node.op()) {
            ("", "Transpose") => reader = node,
            ("", "Expand") => {
                let element = lowering.input(node, 0)?;
                return Ok((lowering.ty(element).elements() == 1).then_some(element));
            }
            _ => break,
        }
    }
    Ok(None)
}
