//! Operators that put tensors together along an axis, or take pieces of them.

use super::DataType;
use super::call::Call;
use super::elementwise::at_least;
use super::fact::{Fact, MAX_CONTENTS, unknown};
use super::rules::{Fault, Outcome};
use crate::dim::Dim;

pub(super) fn concat(call: &mut Call<'_>) -> Outcome {
    let slots: Vec<usize> = (0..call.node.inputs.len())
        .filter(|&s| call.has(s))
        .collect();
    let data_type = call.same_type(slots.iter().copied())?;
    let Some(&known) = slots.iter().find(|&&s| call.shape(s).is_some()) else {
        call.give(0, data_type, None);
        return Ok(());
    };
    let rank = call.rank(known).unwrap_or(0);
    let axis = call.axis(call.node.int("axis", 1), rank, known)?;
    let mut shape: Vec<Dim> = vec![unknown(); rank];
    let mut total = Dim::from(0);
    for &slot in &slots {
        let Some(piece) = call.shape(slot) else {
            total = unknown();
            continue;
        };
        if piece.len() != rank {
            return Err(call.fault(
                call.name(slot),
                format!("the rank is {}", piece.len()),
                format!("'{}' has rank {rank}", call.name(known)),
                "tensors that are concatenated have one rank",
            ));
        }
        for (at, size) in shape.iter_mut().enumerate().filter(|(at, _)| *at != axis) {
            let dim = call.agree((slot, at), (known, at))?;
            if size.is_undefined() || (size.as_const().is_none() && dim.as_const().is_some()) {
                *size = dim;
            }
        }
        total = total + &piece[axis];
    }
    shape[axis] = total;
    let contents = (rank == 1).then(|| joined(call, &slots)).flatten();
    call.set(0, Fact::new(data_type, Some(shape)).with(contents));
    Ok(())
}

fn joined(call: &Call<'_>, slots: &[usize]) -> Option<Vec<Dim>> {
    let mut all = Vec::new();
    for &slot in slots {
        match (call.contents(slot), call.shape(slot)) {
            (Some(elements), _) => all.extend_from_slice(elements),
            // A vector of known length and unknown elements does not hide its neighbours.
            (None, Some([length])) => {
                let length = usize::try_from(length.as_const()?).ok()?;
                if length > MAX_CONTENTS {
                    return None;
                }
                all.resize(all.len() + length, unknown());
            }
            _ => return None,
        }
        if all.len() > MAX_CONTENTS {
            return None;
        }
    }
    Some(all)
}

/// Concat, with the sizes of the pieces as a second output.
pub(super) fn concat_training(call: &mut Call<'_>) -> Outcome {
    concat(call)?;
    let count = call.node.inputs.len();
    let axis = call.node.int("axis", 1);
    let size = |slot: usize| {
        let shape = call.shape(slot)?;
        Some(shape[call.resolve(axis, shape.len())?].clone())
    };
    let sizes = (count <= MAX_CONTENTS).then(|| {
        let sizes = (0..count).map(|slot| size(slot).unwrap_or_else(unknown));
        sizes.collect::<Vec<_>>()
    });
    let length = i64::try_from(count).map_or_else(|_| unknown(), Dim::from);
    call.set(
        1,
        Fact::new(Some(DataType::INT64), Some(vec![length])).with(sizes),
    );
    Ok(())
}

pub(super) fn split(call: &mut Call<'_>) -> Outcome {
    let count = call.outputs.len();
    let Some(shape) = call.shape(0) else {
        (0..count).for_each(|slot| call.give(slot, call.dtype(0), None));
        return Ok(());
    };
    let axis = call.axis(call.node.int("axis", 0), shape.len(), 0)?;
    let size = &shape[axis];
    let given: Option<Vec<Dim>> = match call.node.ints("split") {
        Some(sizes) => Some(sizes.iter().map(|&s| Dim::from(s)).collect()),
        None => call.contents(1).map(<[Dim]>::to_vec),
    };
    let sizes = match given {
        Some(sizes) if sizes.len() == count => {
            let sum = sizes.iter().fold(Dim::from(0), |sum, s| sum + s);
            if let (Some(have), Some(want)) = (size.as_const(), sum.as_const())
                && have != want
            {
                return Err(call.fault(
                    call.name(0),
                    format!("axis {axis} is {have}"),
                    format!("the pieces add up to {want}"),
                    "check the sizes of the Split",
                ));
            }
            sizes
        }
        Some(sizes) => {
            return Err(call.fault(
                call.name(0),
                format!("{} sizes of pieces are given", sizes.len()),
                format!("the node has {count} outputs"),
                "a Split has one size for each output",
            ));
        }
        None if call.has(1) => vec![unknown(); count],
        None => {
            // Equal pieces, the last one smaller where the division leaves a rest.
            let parts = i64::try_from(count).unwrap_or(i64::MAX);
            let parts = call.node.int("num_outputs", parts);
            let piece = size.div_ceil(&Dim::from(parts));
            let mut sizes = vec![piece.clone(); count];
            if let Some(last) = sizes.last_mut() {
                *last = size - &(piece * Dim::from(parts.saturating_sub(1)));
            }
            sizes
        }
    };
    let mut start = Some(0usize);
    for (slot, size) in sizes.into_iter().enumerate() {
        let end = start.and_then(|s| s.checked_add(usize::try_from(size.as_const()?).ok()?));
        let elements = match (call.contents(0), start, end) {
            (Some(all), Some(start), Some(end)) if shape.len() == 1 => all.get(start..end),
            _ => None,
        };
        start = end;
        let mut piece = shape.to_vec();
        piece[axis] = size;
        let fact = Fact::new(call.dtype(0), Some(piece));
        call.set(slot, fact.with(elements.map(<[Dim]>::to_vec)));
    }
    Ok(())
}

/// The operands of a Slice: starts, ends, axes, steps, by the operator's version. The outer `None`
/// is an operand that is present and unknown.
struct Cuts {
    starts: Vec<Dim>,
    ends: Vec<Dim>,
    axes: Option<Vec<i64>>,
    steps: Option<Vec<Dim>>,
}

fn cuts(call: &Call<'_>) -> Option<Cuts> {
    let attribute = |name: &str| {
        let list = call.node.ints(name)?;
        Some(list.iter().map(|&v| Dim::from(v)).collect::<Vec<_>>())
    };
    if call.opset < 10 {
        return Some(Cuts {
            starts: attribute("starts")?,
            ends: attribute("ends")?,
            axes: call.node.ints("axes").map(<[i64]>::to_vec),
            steps: None,
        });
    }
    let contents = |slot: usize| call.contents(slot).map(<[Dim]>::to_vec);
    // A vector of known length whose elements are not followed still tells which axes are cut.
    let elements =
        |slot: usize| contents(slot).or_else(|| super::shape_ops::given_shape(call, slot));
    let optional = |slot: usize| match call.has(slot) {
        true => elements(slot).map(Some),
        false => Some(None),
    };
    let axes = match call.has(3) {
        true => Some(call.numbers(3)?),
        false => None,
    };
    Some(Cuts {
        starts: elements(1)?,
        ends: elements(2)?,
        axes,
        steps: optional(4)?,
    })
}

pub(super) fn slice(call: &mut Call<'_>) -> Outcome {
    let Some(shape) = call.shape(0) else {
        call.give(0, call.dtype(0), None);
        return Ok(());
    };
    let Some(cuts) = cuts(call) else {
        call.give(0, call.dtype(0), Some(vec![unknown(); shape.len()]));
        return Ok(());
    };
    let count = cuts.starts.len();
    let axes = match cuts.axes {
        Some(axes) => axes,
        None => (0..i64::try_from(count).unwrap_or(0)).collect(),
    };
    let steps = cuts.steps.unwrap_or_else(|| vec![Dim::from(1); count]);
    if cuts.ends.len() != count || axes.len() != count || steps.len() != count {
        return Err(call.fault(
            call.name(0),
            format!("there are {count} starts"),
            format!(
                "there are {} ends, {} axes and {} steps",
                cuts.ends.len(),
                axes.len(),
                steps.len()
            ),
            "a Slice has one of each for every axis that it cuts",
        ));
    }
    let mut sliced = shape.to_vec();
    let mut window = None;
    for (((start, end), &axis), step) in cuts.starts.iter().zip(&cuts.ends).zip(&axes).zip(&steps) {
        let axis = call.axis(axis, shape.len(), 0)?;
        if step.as_const() == Some(0) {
            return Err(call.fault(
                call.name(0),
                format!("the step on axis {axis} is 0"),
                "a step is not 0".to_owned(),
                "check the steps of the Slice",
            ));
        }
        sliced[axis] = cut_length(&shape[axis], start, end, step);
        window = Some((start, step));
    }
    let contents = match (call.contents(0), sliced.as_slice(), window) {
        (Some(all), [length], Some((start, step))) => picked(all, start, step, length),
        (Some(all), _, None) => Some(all.to_vec()),
        _ => None,
    };
    call.set(0, Fact::new(call.dtype(0), Some(sliced)).with(contents));
    Ok(())
}

/// How many elements a cut keeps.
fn cut_length(size: &Dim, start: &Dim, end: &Dim, step: &Dim) -> Dim {
    let zero = Dim::from(0);
    let Some(stride) = step.as_const() else {
        return unknown();
    };
    if stride > 0 {
        // Below 0 counts from the end, and beyond an end is clamped to it. Where a difference that
        // falls below 0 becomes 0 anyway, a start beyond the size and an end before 0 need no clamp.
        let to = match end.as_const() {
            // "To the end", in the way every exporter writes it.
            Some(e) if e >= i64::from(i32::MAX) => size.clone(),
            _ if at_least(end, 0) => end.minimum(size),
            _ if at_least(&-end, 1) => size + end,
            _ => return unknown(),
        };
        let from = match start {
            start if at_least(start, 0) => start.clone(),
            start if at_least(&-start, 1) && to == *size => {
                return (-start).minimum(size).div_ceil(step);
            }
            start if at_least(&-start, 1) => (size + start).maximum(&zero),
            _ => return unknown(),
        };
        return (to - from).div_ceil(step).maximum(&zero);
    }
    // Backwards, with numbers only: the clamping differs (to -1 and size - 1), and no exporter of
    // training graphs reverses an axis of unknown size by halves.
    let (Some(size_value), Some(start), Some(end)) =
        (size.as_const(), start.as_const(), end.as_const())
    else {
        let whole = stride == -1
            && start.as_const() == Some(-1)
            && end.as_const().is_some_and(|e| e <= i64::from(i32::MIN));
        return if whole { size.clone() } else { unknown() };
    };
    let front = |b: i64| {
        if b < 0 {
            b.saturating_add(size_value)
        } else {
            b
        }
    };
    let from = front(start).clamp(-1, size_value.saturating_sub(1));
    let to = front(end).clamp(-1, size_value.saturating_sub(1));
    let length = Dim::from(from.saturating_sub(to)).div_ceil(&-step);
    length.maximum(&zero)
}

/// The elements that a cut of a vector keeps.
fn picked(all: &[Dim], start: &Dim, step: &Dim, length: &Dim) -> Option<Vec<Dim>> {
    let size = i64::try_from(all.len()).ok()?;
    let (start, step, length) = (start.as_const()?, step.as_const()?, length.as_const()?);
    let front = if start < 0 {
        start.saturating_add(size)
    } else {
        start
    };
    let first = front.clamp(
        0,
        if step > 0 {
            size
        } else {
            size.saturating_sub(1).max(0)
        },
    );
    let at = |i: i64| {
        let place = i.checked_mul(step)?.checked_add(first)?;
        all.get(usize::try_from(place).ok()?).cloned()
    };
    (0..length.min(size)).map(at).collect()
}

pub(super) fn pad(call: &mut Call<'_>) -> Outcome {
    let Some(shape) = call.shape(0) else {
        call.give(0, call.dtype(0), None);
        return Ok(());
    };
    let rank = shape.len();
    let attribute = (call
        .node
        .ints("pads")
        .or_else(|| call.node.ints("paddings")))
    .map(|p| p.iter().map(|&v| Dim::from(v)).collect::<Vec<_>>());
    let pads = attribute.or_else(|| call.contents(1).map(<[Dim]>::to_vec));
    let axes = match call.has(3) {
        true => call.numbers(3),
        false => Some((0..i64::try_from(rank).unwrap_or(0)).collect()),
    };
    let (Some(pads), Some(axes)) = (pads, axes) else {
        call.give(0, call.dtype(0), Some(vec![unknown(); rank]));
        return Ok(());
    };
    let padded = padded(call, shape, &pads, &axes)?;
    call.give(0, call.dtype(0), Some(padded));
    Ok(())
}

fn padded(
    call: &Call<'_>,
    shape: &[Dim],
    pads: &[Dim],
    axes: &[i64],
) -> Result<Vec<Dim>, Box<Fault>> {
    let count = axes.len();
    if pads.len() != 2 * count {
        return Err(call.fault(
            call.name(0),
            format!("{} pads are given", pads.len()),
            format!("{count} axes are padded"),
            "a Pad has two pads for every axis, all the front ones first",
        ));
    }
    let mut padded = shape.to_vec();
    for (index, &axis) in axes.iter().enumerate() {
        let axis = call.axis(axis, shape.len(), 0)?;
        padded[axis] = &padded[axis] + &pads[index] + &pads[index + count];
    }
    Ok(padded)
}
