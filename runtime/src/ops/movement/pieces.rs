//! `Concat`, `Split`, `Slice` with its gradient, and `Pad`: boxes of a larger tensor.

use super::copy::{Axis, Copy, Origin, Part};
use super::rearrange::row_major;
use super::{Movement, copied, expect_shape, known, width};
use crate::lower::{Lowering, Refusal};
use crate::ops::Op;
use crate::plan::MAX_OPERANDS;
use crate::program::{Source, TensorId};
use crate::tensor::{Tensor, TensorType};
use velora_graph::ir::Node;

/// The most boxes that a `Pad` may fall into; where there are more, the padding is written first.
const MAX_PARTS: usize = 256;

pub(super) fn concat(lowering: &mut Lowering<'_>, node: &Node) -> Result<(), Refusal> {
    let mut tensors = Vec::with_capacity(node.inputs.len());
    for slot in 0..node.inputs.len() {
        tensors.push(lowering.input(node, slot)?);
    }
    let Some(&first) = tensors.first() else {
        return Err(Refusal::new("there is nothing to concatenate"));
    };
    let like = lowering.ty(first);
    // Before version 4 the axis had a default; the training form has one too.
    let default = if node.op() == "Concat" { 1 } else { 0 };
    let at = axis_of(node, &like, default)?;
    let mut sizes = Vec::with_capacity(tensors.len());
    for &tensor in &tensors {
        let ty = lowering.ty(tensor);
        let mut shape = ty.shape.clone();
        let fits = shape.len() == like.shape.len() && ty.data_type == like.data_type;
        if fits {
            sizes.push(shape[at]);
            shape[at] = like.shape[at];
        }
        if !fits || shape != like.shape {
            return Err(Refusal(format!(
                "cannot concatenate {like} and {ty} along axis {at}"
            )));
        }
    }
    if node.op() == "ConcatTraining" {
        let lengths: Vec<i64> = sizes.iter().map(|&size| size as i64).collect();
        known(
            lowering,
            node,
            1,
            Tensor::from_i64(&[lengths.len()], &lengths),
        )?;
    }
    let full: Vec<usize> = (tensors.iter().zip(&sizes))
        .filter(|&(_, &size)| size != 0)
        .map(|(_, &size)| size)
        .collect();
    if let ([_], Some(only)) = (&full[..], sizes.iter().position(|&size| size != 0)) {
        return lowering.view(node, 0, tensors[only]);
    }
    let output = lowering.required_output(node, 0)?;
    let ty = lowering.ty(output);
    let mut shape = like.shape.clone();
    shape[at] = sizes
        .iter()
        .fold(0usize, |sum, &size| sum.saturating_add(size));
    expect_shape(&ty, &shape)?;
    width(&ty)?;
    let steps = row_major(&shape);
    let mut start = 0;
    let mut boxes = Vec::with_capacity(tensors.len());
    for (&tensor, &size) in tensors.iter().zip(&sizes) {
        if size != 0 {
            boxes.push((tensor, size, start * steps[at]));
            start += size;
        }
    }
    // Where there are many, each operation writes some of them over what the ones before have left,
    // which is one operand more.
    let mut before: Option<TensorId> = None;
    let groups = boxes.chunks(MAX_OPERANDS - 1);
    let last = groups.len().saturating_sub(1);
    for (group, boxes) in groups.enumerate() {
        let into = match group == last {
            true => output,
            false => lowering.temporary("part", ty.clone()),
        };
        if let Some(before) = before {
            lowering.program.values[into.index()].source = Source::Update(before);
        }
        let mut parts = Vec::with_capacity(boxes.len());
        for (number, &(_, size, to)) in boxes.iter().enumerate() {
            let mut own = shape.clone();
            own[at] = size;
            let axes = dense(&own, &steps);
            parts.extend(Part::new(Origin::Input(number), 0, axes, 0, to)?);
        }
        let mut inputs: Vec<_> = boxes.iter().map(|&(tensor, ..)| Some(tensor)).collect();
        inputs.extend(before.map(Some));
        let op = Op::Movement(Movement::Copy(Copy { parts }));
        lowering.emit(op, inputs, vec![Some(into)]);
        before = Some(into);
    }
    Ok(())
}

/// The axes of a dense tensor, at other steps in the output.
fn dense<'a>(shape: &'a [usize], to: &'a [usize]) -> impl Iterator<Item = Axis> + use<'a> {
    let from = row_major(shape);
    (shape.iter().zip(from).zip(to)).map(|((&size, from), &to)| Axis {
        size,
        from: from as isize,
        to,
    })
}

fn axis_of(node: &Node, ty: &TensorType, default: i64) -> Result<usize, Refusal> {
    let axis = node.int("axis", default);
    ty.axis(axis)
        .ok_or_else(|| Refusal(format!("axis {axis} is none of {ty}")))
}

pub(super) fn split(lowering: &mut Lowering<'_>, node: &Node) -> Result<(), Refusal> {
    let source = lowering.input(node, 0)?;
    let ty = lowering.ty(source);
    let at = axis_of(node, &ty, 0)?;
    let given = match node.ints("split") {
        Some(sizes) => Some(sizes.to_vec()),
        None => lowering.constant_ints(node, 1)?,
    };
    let (count, size) = (node.outputs.len(), ty.shape[at]);
    let sizes: Vec<usize> = match given {
        Some(sizes) => {
            let sizes: Result<_, _> = sizes.iter().map(|&n| usize::try_from(n)).collect();
            sizes.map_err(|_| Refusal::new("a part of negative size"))?
        }
        None => {
            // The last part is smaller where the parts cannot be equal.
            let each = size.div_ceil(count.max(1));
            (0..count)
                .map(|part| each.min(size.saturating_sub(part * each)))
                .collect()
        }
    };
    let sum = sizes.iter().fold(0usize, |sum, &n| sum.saturating_add(n));
    if sum != size || sizes.len() != count {
        return Err(Refusal(format!(
            "{} parts of together {sum} for {count} outputs and a size of {size}",
            sizes.len()
        )));
    }
    let strides = row_major(&ty.shape);
    if sizes.iter().filter(|&&n| n != 0).count() == 1 && size != 0 {
        for (slot, &n) in sizes.iter().enumerate() {
            if n != 0 {
                lowering.view(node, slot, source)?;
            } else if let Some(output) = lowering.output(node, slot)? {
                let op = Op::Movement(Movement::Copy(Copy { parts: Vec::new() }));
                lowering.emit(op, Vec::new(), vec![Some(output)]);
            }
        }
        return Ok(());
    }
    width(&ty)?;
    let mut start = 0;
    let mut outputs = Vec::with_capacity(count);
    for (slot, &n) in sizes.iter().enumerate() {
        if let Some(output) = lowering.output(node, slot)? {
            let mut shape = ty.shape.clone();
            shape[at] = n;
            expect_shape(&lowering.ty(output), &shape)?;
            outputs.push((output, shape, start * strides[at]));
        }
        start += n;
    }
    for outputs in outputs.chunks(MAX_OPERANDS) {
        let mut parts = Vec::with_capacity(outputs.len());
        for (number, (_, shape, from)) in outputs.iter().enumerate() {
            let to = row_major(shape);
            let axes = (shape.iter().zip(&strides).zip(to)).map(|((&size, &from), to)| Axis {
                size,
                from: from as isize,
                to,
            });
            parts.extend(Part::new(Origin::Input(0), number, axes, *from, 0)?);
        }
        let outputs = outputs.iter().map(|(output, ..)| Some(*output)).collect();
        let op = Op::Movement(Movement::Copy(Copy { parts }));
        lowering.emit(op, vec![Some(source)], outputs);
    }
    Ok(())
}

/// What a slice takes of one axis.
#[derive(Clone, Copy)]
struct Span {
    start: usize,
    step: isize,
    size: usize,
}

/// The spans of a slice of a tensor; starts, ends, axes and steps are in slots from `first` on.
fn spans(
    lowering: &mut Lowering<'_>,
    node: &Node,
    shape: &[usize],
    first: usize,
) -> Result<Vec<Span>, Refusal> {
    let ty = TensorType::new(velora_graph::shapes::DataType::FLOAT, shape);
    let mut given = [None, None, None, None];
    if let Some(starts) = node.ints("starts") {
        given[0] = Some(starts.to_vec());
        given[1] = node.ints("ends").map(<[i64]>::to_vec);
        given[2] = node.ints("axes").map(<[i64]>::to_vec);
    } else {
        for (place, given) in given.iter_mut().enumerate() {
            *given = lowering.constant_ints(node, first + place)?;
        }
    }
    let [Some(starts), Some(ends), axes, steps] = given else {
        return Err(Refusal::new("starts and ends are missing"));
    };
    let axes = axes.unwrap_or_else(|| (0..starts.len() as i64).collect());
    let steps = steps.unwrap_or_else(|| vec![1; starts.len()]);
    if [ends.len(), axes.len(), steps.len()] != [starts.len(); 3] {
        return Err(Refusal::new(
            "starts, ends, axes and steps must be of equal number",
        ));
    }
    let mut spans: Vec<Span> = (shape.iter())
        .map(|&size| Span {
            start: 0,
            step: 1,
            size,
        })
        .collect();
    for (place, &axis) in axes.iter().enumerate() {
        let axis = ty
            .axis(axis)
            .ok_or_else(|| Refusal(format!("axis {axis} is none of the {} axes", shape.len())))?;
        spans[axis] = span(shape[axis], starts[place], ends[place], steps[place])?;
    }
    Ok(spans)
}

/// Bounds count from the end where negative, and are then clamped to what the step can reach.
fn span(size: usize, start: i64, end: i64, step: i64) -> Result<Span, Refusal> {
    let n = size as i64;
    let (lowest, highest) = if step > 0 { (0, n) } else { (-1, n - 1) };
    let clamp = |bound: i64| {
        let bound = if bound < 0 {
            bound.saturating_add(n)
        } else {
            bound
        };
        bound.clamp(lowest, highest.max(lowest))
    };
    // A start in front of the first element is the first one, with whatever step.
    let (start, end) = (clamp(start).max(0), clamp(end));
    let size = match step {
        0 => return Err(Refusal::new("a slice with a step of 0")),
        1.. => (end - start)
            .max(0)
            .unsigned_abs()
            .div_ceil(step.unsigned_abs()),
        _ => (start - end)
            .max(0)
            .unsigned_abs()
            .div_ceil(step.unsigned_abs()),
    };
    let size = if n == 0 { 0 } else { size as usize };
    Ok(Span {
        start: start as usize,
        // With one element the step does not matter, and may be as large as an integer can be.
        step: if size > 1 { step as isize } else { 1 },
        size,
    })
}

pub(super) fn slice(lowering: &mut Lowering<'_>, node: &Node) -> Result<(), Refusal> {
    let source = lowering.input(node, 0)?;
    let ty = lowering.ty(source);
    let spans = spans(lowering, node, &ty.shape, 1)?;
    let strides = row_major(&ty.shape);
    let shape: Vec<usize> = spans.iter().map(|span| span.size).collect();
    let to = row_major(&shape);
    let mut parts = Vec::new();
    if !shape.contains(&0) {
        let start = (spans.iter().zip(&strides))
            .map(|(span, stride)| span.start * stride)
            .sum();
        let axes = (spans.iter().zip(&strides).zip(to)).map(|((span, &stride), to)| Axis {
            size: span.size,
            from: span.step * stride as isize,
            to,
        });
        parts.extend(Part::new(Origin::Input(0), 0, axes, start, 0)?);
    }
    copied(lowering, node, 0, source, &shape, parts)
}

/// A slice of an axis of an output, and what it is filled with: elements of the input from a place on
/// in steps, or padding.
#[derive(Clone, Copy)]
struct Segment {
    to: usize,
    size: usize,
    from: Option<(usize, isize)>,
}

/// The gradient of a slice: the incoming gradient where the slice was taken, 0 elsewhere.
///
/// Inputs: gradient, shape, starts, ends, axes, steps.
pub(super) fn slice_grad(lowering: &mut Lowering<'_>, node: &Node) -> Result<(), Refusal> {
    let source = lowering.input(node, 0)?;
    let ty = lowering.ty(source);
    let shape = lowering
        .constant_ints(node, 1)?
        .ok_or_else(|| Refusal::new("the shape is missing"))?;
    let shape: Result<Vec<usize>, _> = shape.iter().map(|&n| usize::try_from(n)).collect();
    let shape = shape.map_err(|_| Refusal::new("a negative size"))?;
    let spans = spans(lowering, node, &shape, 2)?;
    let sizes: Vec<usize> = spans.iter().map(|span| span.size).collect();
    if sizes != ty.shape {
        return Err(Refusal(format!(
            "the gradient is {ty}, and the slice {}",
            TensorType::new(ty.data_type, sizes)
        )));
    }
    let axes = (spans.iter().zip(&shape)).map(|(span, &size)| {
        let mut segments = Vec::new();
        let piece = |to, size, from| Segment { to, size, from };
        match span.step {
            1 => {
                let end = span.start + span.size;
                segments.push(piece(0, span.start.min(size), None));
                segments.push(piece(span.start, span.size, Some((0, 1))));
                segments.push(piece(end, size.saturating_sub(end), None));
            }
            step => {
                // Ascending in the output, so descending in the gradient where the step is negative.
                let every = step.unsigned_abs();
                let down = step < 0;
                let first = match down {
                    true => span.start - (span.size - 1) * every,
                    false => span.start,
                };
                segments.push(piece(0, first, None));
                for element in 0..span.size {
                    let from = if down {
                        span.size - 1 - element
                    } else {
                        element
                    };
                    let to = first + element * every;
                    segments.push(piece(to, 1, Some((from, 1))));
                    let gap = (every - 1).min(size - to - 1);
                    segments.push(piece(to + 1, gap, None));
                }
                let end = first + (span.size - 1) * every + every;
                segments.push(piece(end, size.saturating_sub(end), None));
            }
        }
        segments
    });
    let axes: Vec<Vec<Segment>> = axes.collect();
    let zero = Origin::Element([0; 8]);
    let parts = segments_to_parts(&ty.shape, &shape, &axes, zero)?;
    copied(lowering, node, 0, source, &shape, parts)
}

/// The boxes of all combinations of the axes' segments.
fn segments_to_parts(
    from_shape: &[usize],
    to_shape: &[usize],
    axes: &[Vec<Segment>],
    padding: Origin,
) -> Result<Vec<Part>, Refusal> {
    let (from_steps, to_steps) = (row_major(from_shape), row_major(to_shape));
    if to_shape.contains(&0) {
        return Ok(Vec::new());
    }
    let axes: Vec<Vec<Segment>> = (axes.iter())
        .map(|axis| axis.iter().filter(|s| s.size > 0).copied().collect())
        .collect();
    let count = (axes.iter()).fold(1usize, |n, axis| n.saturating_mul(axis.len()));
    let mut parts = Vec::new();
    // Padding in one go is cheaper than in very many boxes.
    let padded_first = count > MAX_PARTS;
    if padded_first {
        let to = row_major(to_shape);
        let axes = to_shape
            .iter()
            .zip(to)
            .map(|(&size, to)| Axis { size, from: 0, to });
        parts.extend(Part::new(padding, 0, axes, 0, 0)?);
    }
    let copied = axes
        .iter()
        .map(|axis| axis.iter().filter(|s| s.from.is_some()).count());
    let copies = copied.fold(1usize, usize::saturating_mul);
    if copies > MAX_PARTS * MAX_PARTS {
        return Err(Refusal(format!("the result falls into {copies} pieces")));
    }
    // Counts through the combinations, last axis fastest. An axis of padding makes all of it padding:
    // the axes behind it are then taken whole.
    let mut chosen: Vec<usize> = vec![0; axes.len()];
    'all: loop {
        let mut box_axes = Vec::with_capacity(axes.len());
        let (mut from, mut to, mut pad) = (0, 0, None);
        for (axis, &place) in chosen.iter().enumerate() {
            let segment = axes[axis][place];
            if pad.is_some() {
                box_axes.push((to_shape[axis], 0, to_steps[axis]));
                continue;
            }
            to += segment.to * to_steps[axis];
            let mut step = 0;
            match segment.from {
                Some((start, every)) => {
                    from += start * from_steps[axis];
                    step = every * from_steps[axis] as isize;
                }
                None => pad = Some(axis),
            }
            box_axes.push((segment.size, step, to_steps[axis]));
        }
        let box_axes = box_axes.into_iter().map(|(size, from, to)| Axis {
            size,
            from: if pad.is_some() { 0 } else { from },
            to,
        });
        match pad {
            Some(_) if padded_first => {}
            Some(_) => parts.extend(Part::new(padding, 0, box_axes, 0, to)?),
            None => parts.extend(Part::new(Origin::Input(0), 0, box_axes, from, to)?),
        }
        let mut axis = pad.map_or(axes.len(), |axis| axis + 1);
        loop {
            if axis == 0 {
                break 'all;
            }
            axis -= 1;
            chosen[axis] += 1;
            chosen[axis + 1..].fill(0);
            if chosen[axis] < axes[axis].len() {
                break;
            }
        }
    }
    Ok(parts)
}

pub(super) fn pad(lowering: &mut Lowering<'_>, node: &Node) -> Result<(), Refusal> {
    let source = lowering.input(node, 0)?;
    let ty = lowering.ty(source);
    let attribute = node.ints("pads").or_else(|| node.ints("paddings"));
    let from_attribute = attribute.is_some();
    let pads = match attribute {
        Some(pads) => pads.to_vec(),
        None => lowering
            .constant_ints(node, 1)?
            .ok_or_else(|| Refusal::new("the pads are missing"))?,
    };
    let axes = match lowering.constant_ints(node, 3)? {
        Some(axes) => axes
            .iter()
            .map(|&axis| ty.axis(axis))
            .collect::<Option<Vec<usize>>>()
            .ok_or_else(|| Refusal(format!("an axis that is none of {ty}")))?,
        None => (0..ty.shape.len()).collect(),
    };
    if pads.len() != 2 * axes.len() {
        return Err(Refusal(format!(
            "{} pads for {} axes: expected two per axis",
            pads.len(),
            axes.len()
        )));
    }
    let mode = node.attribute("mode").and_then(|mode| mode.s.clone());
    let mode = mode.as_deref().unwrap_or(b"constant");
    let value = match from_attribute {
        true => {
            let value = f64::from(node.float("value", 0.0));
            let tensor = crate::lower::constants::scalar(ty.data_type, value)?;
            Origin::Element(super::make::element(&tensor)?)
        }
        false => match lowering.optional_input(node, 2)? {
            Some(_) => Origin::Scalar(1),
            None => Origin::Element([0; 8]),
        },
    };
    let mut shape = ty.shape.clone();
    let mut segments: Vec<Vec<Segment>> = (ty.shape.iter())
        .map(|&size| {
            vec![Segment {
                to: 0,
                size,
                from: Some((0, 1)),
            }]
        })
        .collect();
    for (place, &axis) in axes.iter().enumerate() {
        let (before, after) = (pads[place], pads[axes.len() + place]);
        let size = ty.shape[axis];
        let padded = (size as i64)
            .checked_add(before)
            .and_then(|n| n.checked_add(after))
            // Larger ones are no tensors, and would take long to find out.
            .filter(|n| (0..1 << 32).contains(n))
            .ok_or_else(|| Refusal(format!("pads of {before} and {after} for a size of {size}")))?;
        shape[axis] = padded as usize;
        segments[axis] = padding(size, before, padded as usize, mode)?;
    }
    let parts = segments_to_parts(&ty.shape, &shape, &segments, value)?;
    let reads_value = parts.iter().any(|part| part.origin == Origin::Scalar(1));
    if !reads_value {
        return copied(lowering, node, 0, source, &shape, parts);
    }
    let value = lowering.input(node, 2)?;
    if lowering.ty(value).data_type != ty.data_type || lowering.ty(value).elements() != 1 {
        return Err(Refusal(format!(
            "the padding is {}: expected one element of the data's type",
            lowering.ty(value)
        )));
    }
    let output = lowering.required_output(node, 0)?;
    expect_shape(&lowering.ty(output), &shape)?;
    width(&ty)?;
    let op = Op::Movement(Movement::Copy(Copy { parts }));
    lowering.emit(op, vec![Some(source), Some(value)], vec![Some(output)]);
    Ok(())
}

/// The segments of a padded axis: runs of elements with one step.
fn padding(size: usize, before: i64, padded: usize, mode: &[u8]) -> Result<Vec<Segment>, Refusal> {
    let n = size as i64;
    let source = |to: usize| -> Option<i64> {
        let place = to as i64 - before;
        Some(match mode {
            b"edge" => place.clamp(0, n - 1),
            b"wrap" => place.rem_euclid(n),
            b"reflect" if n == 1 => 0,
            b"reflect" => {
                let place = place.rem_euclid(2 * (n - 1));
                place.min(2 * (n - 1) - place)
            }
            _ => return (0..n).contains(&place).then_some(place),
        })
    };
    if !matches!(mode, b"constant" | b"edge" | b"wrap" | b"reflect") {
        return Err(Refusal(format!(
            "mode '{}' is none of constant, reflect, edge and wrap",
            String::from_utf8_lossy(mode)
        )));
    }
    if size == 0 && mode != b"constant" && padded > 0 {
        return Err(Refusal::new("an axis of size 0 has no elements to repeat"));
    }
    let mut segments: Vec<Segment> = Vec::new();
    for to in 0..padded {
        let place = source(to);
        if let Some(run) = segments.last_mut() {
            let extended = match (run.from, place) {
                (None, None) => true,
                (Some((start, step)), Some(place)) => {
                    let next = place - (start as i64 + step as i64 * (run.size as i64 - 1));
                    if run.size == 1 && next.abs() <= 1 {
                        run.from = Some((start, next as isize));
                        true
                    } else {
                        next == step as i64
                    }
                }
                _ => false,
            };
            if extended {
                run.size += 1;
                continue;
            }
        }
        segments.push(Segment {
            to,
            size: 1,
            from: place.map(|place| (place as usize, 1)),
        });
    }
    Ok(segments)
}
