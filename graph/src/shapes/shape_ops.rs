//! Operators that read or change shapes.

use super::DataType;
use super::call::{Call, join, list, show};
use super::elementwise::at_least;
use super::fact::{Fact, MAX_RANK, unknown};
use super::rules::Outcome;
use crate::dim::Dim;

pub(super) fn product<'d>(sizes: impl IntoIterator<Item = &'d Dim>) -> Dim {
    let product = sizes.into_iter().cloned().reduce(|product, d| product * d);
    product.unwrap_or_else(|| Dim::from(1))
}

pub(super) fn shape(call: &mut Call<'_>) -> Outcome {
    let Some(shape) = call.shape(0) else {
        call.give(0, Some(DataType::INT64), Some(vec![unknown()]));
        return Ok(());
    };
    let rank = i64::try_from(shape.len()).unwrap_or(i64::MAX);
    // Out of range is clamped, not an error.
    let bound = |axis: i64| {
        let front = if axis < 0 {
            axis.saturating_add(rank)
        } else {
            axis
        };
        usize::try_from(front.clamp(0, rank)).unwrap_or(0)
    };
    let start = bound(call.node.int("start", 0));
    let end = bound(call.node.int("end", rank)).max(start);
    call.set(0, Fact::vector(DataType::INT64, shape[start..end].to_vec()));
    Ok(())
}

pub(super) fn size(call: &mut Call<'_>) -> Outcome {
    let count = call.shape(0).map(|s| vec![product(s)]);
    call.set(
        0,
        Fact::new(Some(DataType::INT64), Some(vec![])).with(count),
    );
    Ok(())
}

/// A shape given by the elements of an input; only a rank, where only the length is known.
pub(super) fn given_shape(call: &Call<'_>, slot: usize) -> Option<Vec<Dim>> {
    if let Some(elements) = call.contents(slot) {
        return Some(elements.to_vec());
    }
    let length = match call.shape(slot)? {
        [length] => usize::try_from(length.as_const()?).ok()?,
        _ => return None,
    };
    (length <= MAX_RANK).then(|| vec![unknown(); length])
}

pub(super) fn reshape(call: &mut Call<'_>) -> Outcome {
    let attribute = call.node.ints("shape");
    let target = match attribute {
        Some(shape) if shape.len() <= MAX_RANK => {
            Some(shape.iter().map(|&d| Dim::from(d)).collect())
        }
        Some(_) => None,
        None => given_shape(call, 1),
    };
    let Some(mut target) = target else {
        call.give(0, call.dtype(0), None);
        return Ok(());
    };
    let source = call.shape(0);
    if call.node.int("allowzero", 0) == 0 {
        for (axis, dim) in target.iter_mut().enumerate() {
            if dim.as_const() == Some(0) {
                *dim = match source.map(|s| s.get(axis)) {
                    Some(Some(copied)) => copied.clone(),
                    Some(None) => {
                        return Err(call.fault(
                            call.name(0),
                            format!("the target shape copies axis {axis} (a 0 there)"),
                            format!("the shape is {}", list(source.unwrap_or_default())),
                            "check the target shape of the Reshape",
                        ));
                    }
                    None => unknown(),
                };
            }
        }
    }
    // An element that nothing tells may be the -1 itself; alone, it is the remainder either way.
    let open = |d: &Dim| d.as_const() == Some(-1) || !at_least(d, 0);
    let opens: Vec<usize> = (target.iter().enumerate())
        .filter_map(|(axis, d)| open(d).then_some(axis))
        .collect();
    for &axis in &opens {
        target[axis] = unknown();
    }
    if let Some(source) = source {
        let total = product(source);
        let rest = product(
            (target.iter().enumerate())
                .filter(|(a, _)| !opens.contains(a))
                .map(|(_, d)| d),
        );
        match opens.as_slice() {
            [] => same_count(call, &total, &rest, &target)?,
            [axis] => target[*axis] = remainder(call, &total, &rest, &target)?,
            _ => {}
        }
    }
    let contents = call.contents(0).map(<[Dim]>::to_vec);
    call.set(0, Fact::new(call.dtype(0), Some(target)).with(contents));
    Ok(())
}

fn same_count(call: &Call<'_>, total: &Dim, asked: &Dim, target: &[Dim]) -> Outcome {
    match (total.as_const(), asked.as_const()) {
        (Some(have), Some(want)) if have != want => Err(call.fault(
            call.name(0),
            format!("it has {have} elements"),
            format!("the target shape {} has {want}", list(target)),
            "a Reshape keeps the number of elements: check the target shape",
        )),
        _ => Ok(()),
    }
}

/// What a -1 in a target shape stands for.
fn remainder(
    call: &Call<'_>,
    total: &Dim,
    rest: &Dim,
    target: &[Dim],
) -> Result<Dim, Box<super::rules::Fault>> {
    if rest.as_const() == Some(0) {
        return Ok(unknown());
    }
    if let (Some(have), Some(rest)) = (total.as_const(), rest.as_const())
        && have.checked_rem(rest) != Some(0)
    {
        return Err(call.fault(
            call.name(0),
            format!("it has {have} elements"),
            format!(
                "the sizes of the target shape {} multiply to {rest}",
                list(target)
            ),
            "the one must divide the other: check the target shape",
        ));
    }
    // A run that does not fail has an exact division, which the floor then is.
    Ok(total.div_floor(rest))
}

pub(super) fn flatten(call: &mut Call<'_>) -> Outcome {
    let Some(shape) = call.shape(0) else {
        call.give(0, call.dtype(0), Some(vec![unknown(), unknown()]));
        return Ok(());
    };
    let axis = call.node.int("axis", 1);
    // Unlike elsewhere, the rank itself is an axis.
    let cut = match i64::try_from(shape.len()) {
        Ok(rank) if axis == rank => shape.len(),
        _ => call.axis(axis, shape.len(), 0)?,
    };
    let sizes = vec![product(&shape[..cut]), product(&shape[cut..])];
    call.give(0, call.dtype(0), Some(sizes));
    Ok(())
}

pub(super) fn squeeze(call: &mut Call<'_>) -> Outcome {
    let contents = call.contents(0).map(<[Dim]>::to_vec);
    let shape = match (call.shape(0), call.axes("axes", 1)) {
        (Some(shape), Some(Ok(axes))) => {
            let mut gone = vec![false; shape.len()];
            for axis in axes {
                let axis = call.axis(axis, shape.len(), 0)?;
                if let Some(size) = shape[axis].as_const().filter(|&s| s != 1) {
                    return Err(call.fault(
                        call.name(0),
                        format!("axis {axis} is {size}"),
                        "only an axis of size 1 can be squeezed".to_owned(),
                        "check the axes of the Squeeze",
                    ));
                }
                gone[axis] = true;
            }
            let kept = shape.iter().zip(&gone).filter(|(_, gone)| !**gone);
            Some(kept.map(|(d, _)| d.clone()).collect())
        }
        // Without axes every 1 goes: known where no size may turn out to be 1.
        (Some(shape), None)
            if shape
                .iter()
                .all(|d| d.as_const().is_some() || at_least(d, 2)) =>
        {
            Some(
                shape
                    .iter()
                    .filter(|d| d.as_const() != Some(1))
                    .cloned()
                    .collect(),
            )
        }
        _ => None,
    };
    call.set(0, Fact::new(call.dtype(0), shape).with(contents));
    Ok(())
}

pub(super) fn unsqueeze(call: &mut Call<'_>) -> Outcome {
    let contents = call.contents(0).map(<[Dim]>::to_vec);
    let shape = match (call.shape(0), call.axes("axes", 1)) {
        (Some(shape), Some(Ok(axes))) if shape.len() + axes.len() <= MAX_RANK => {
            let rank = shape.len() + axes.len();
            let mut new = vec![false; rank];
            for &axis in &axes {
                let at = call.resolve(axis, rank).filter(|&a| !new[a]);
                let Some(at) = at else {
                    return Err(call.fault(
                        call.name(0),
                        format!("the axes {axes:?} are to be inserted"),
                        format!("the result has rank {rank}"),
                        "every axis must be in range and listed once",
                    ));
                };
                new[at] = true;
            }
            let mut old = shape.iter();
            let place = |&new: &bool| match new {
                true => Some(Dim::from(1)),
                false => old.next().cloned(),
            };
            new.iter().map(place).collect()
        }
        _ => None,
    };
    call.set(0, Fact::new(call.dtype(0), shape).with(contents));
    Ok(())
}

pub(super) fn transpose(call: &mut Call<'_>) -> Outcome {
    let Some(shape) = call.shape(0) else {
        let rank = call.node.ints("perm").map(<[i64]>::len);
        let rank = rank.filter(|&r| r <= MAX_RANK);
        call.give(0, call.dtype(0), rank.map(|r| vec![unknown(); r]));
        return Ok(());
    };
    let turned: Option<Vec<Dim>> = match call.node.ints("perm") {
        None => Some(shape.iter().rev().cloned().collect()),
        Some(perm) if perm.len() != shape.len() => None,
        Some(perm) => {
            let mut seen = vec![false; shape.len()];
            let axis = |&p: &i64| {
                let axis = call.resolve(p, shape.len())?;
                (!std::mem::replace(&mut seen[axis], true)).then(|| shape[axis].clone())
            };
            perm.iter().map(axis).collect()
        }
    };
    let Some(turned) = turned else {
        let perm = call.node.ints("perm").unwrap_or_default();
        return Err(call.fault(
            call.name(0),
            format!("the shape is {}", list(shape)),
            format!("perm is {}", few(perm)),
            "perm must list every axis once",
        ));
    };
    let contents = call.contents(0).filter(|_| shape.len() <= 1);
    let contents = contents.map(<[Dim]>::to_vec);
    call.set(0, Fact::new(call.dtype(0), Some(turned)).with(contents));
    Ok(())
}

/// A list from the file, cut where it is long.
pub(super) fn few(list: &[i64]) -> String {
    match list.get(..8) {
        Some(head) if list.len() > 8 => format!("{head:?} and {} more", list.len() - 8),
        _ => format!("{list:?}"),
    }
}

pub(super) fn expand(call: &mut Call<'_>) -> Outcome {
    let (source, target) = (call.shape(0), given_shape(call, 1));
    let (Some(source), Some(target)) = (source, target) else {
        call.give(0, call.dtype(0), None);
        return Ok(());
    };
    let rank = source.len().max(target.len());
    let at = |shape: &[Dim], axis: usize| match (axis + shape.len()).checked_sub(rank) {
        Some(axis) => shape[axis].clone(),
        None => Dim::from(1),
    };
    let mut shape = Vec::with_capacity(rank);
    for axis in 0..rank {
        let (from, to) = (at(source, axis), at(&target, axis));
        // Exporters write -1 for "as it is"; ONNX Runtime takes it so.
        let Some(size) = (match to.as_const() {
            Some(-1) => Some(from.clone()),
            _ => join(&from, &to),
        }) else {
            return Err(call.fault(
                call.name(0),
                format!("the shape is {}", list(source)),
                format!(
                    "it is to be expanded to {} ({} against {})",
                    list(&target),
                    show(&from),
                    show(&to)
                ),
                "sizes that are broadcast must be equal or 1",
            ));
        };
        shape.push(size);
    }
    let contents = match (call.contents(0), shape.as_slice()) {
        (Some([only]), [length]) => repeated(only, length),
        (Some(same), _) if source == shape.as_slice() => Some(same.to_vec()),
        _ => None,
    };
    call.set(0, Fact::new(call.dtype(0), Some(shape)).with(contents));
    Ok(())
}

/// One element many times, where they are few.
pub(super) fn repeated(element: &Dim, count: &Dim) -> Option<Vec<Dim>> {
    let count = usize::try_from(count.as_const()?).ok()?;
    (count <= super::fact::MAX_CONTENTS).then(|| vec![element.clone(); count])
}

pub(super) fn tile(call: &mut Call<'_>) -> Outcome {
    let shape = call.shape(0).map(|shape| match call.contents(1) {
        Some(times) if times.len() == shape.len() => {
            shape.iter().zip(times).map(|(d, n)| d * n).collect()
        }
        _ => vec![unknown(); shape.len()],
    });
    call.give(0, call.dtype(0), shape);
    Ok(())
}

pub(super) fn depth_to_space(call: &mut Call<'_>) -> Outcome {
    blocks(call, true)
}

pub(super) fn space_to_depth(call: &mut Call<'_>) -> Outcome {
    blocks(call, false)
}

fn blocks(call: &mut Call<'_>, to_space: bool) -> Outcome {
    call.want_rank(0, 4, 4)?;
    let block = Dim::from(call.node.int("blocksize", 1));
    let square = &block * &block;
    let shape = match call.shape(0) {
        Some([n, c, h, w]) if to_space => Some(vec![
            n.clone(),
            c.div_floor(&square),
            h * &block,
            w * &block,
        ]),
        Some([n, c, h, w]) => Some(vec![
            n.clone(),
            c * &square,
            h.div_floor(&block),
            w.div_floor(&block),
        ]),
        _ => None,
    };
    call.give(0, call.dtype(0), shape);
    Ok(())
}
