//! Elements read and written at given places along an axis.

use super::number::{Number, with_number};
use super::{Indices, start};
use crate::cpu::memory::Call;
use crate::cpu::movement::{GRAIN, missing};
use crate::cpu::rows::for_chunks;
use crate::ops::index::{Elements, Reduction};
use bytemuck::Pod;

/// Where the elements of a row of indices (its last axis) are in the data.
struct Row {
    /// The element of index 0 and the row's first position.
    base: usize,
    /// The step of the index.
    step: usize,
    /// The step from one position in the row to the next.
    along: usize,
}

impl Row {
    /// The row with a number, counted row-major over the axes of the indices but the last.
    fn new(data: &[usize], indices: &[usize], axis: usize, mut number: usize) -> Self {
        let last = data.len().saturating_sub(1);
        let (mut base, mut stride) = (0, data.get(last).copied().unwrap_or(1));
        let mut step = 1;
        for other in (0..last).rev() {
            let position = number % indices[other];
            number /= indices[other];
            if other == axis {
                step = stride;
            } else {
                base += position * stride;
            }
            stride *= data[other];
        }
        Row {
            base,
            step,
            along: usize::from(axis != last),
        }
    }

    #[inline]
    fn place(&self, position: usize, index: usize) -> usize {
        self.base + position * self.along + index * self.step
    }
}

pub(super) fn gather(op: &Elements, call: &mut Call<'_>) -> Result<(), String> {
    let ([Some(data), Some(indices), ..], [Some(output), ..]) = (&call.inputs, &mut call.outputs)
    else {
        return Err(missing());
    };
    let indices = Indices::new(indices);
    if output.bytes.is_empty() {
        return Ok(());
    }
    indices.check(&[op.data[op.axis]])?;
    match output.ty.data_type.bits() {
        Some(8) => gather_elements::<u8>(op, data.elements(), &indices, output.elements()),
        Some(16) => gather_elements::<u16>(op, data.elements(), &indices, output.elements()),
        Some(32) => gather_elements::<u32>(op, data.elements(), &indices, output.elements()),
        _ => gather_elements::<u64>(op, data.elements(), &indices, output.elements()),
    }
    Ok(())
}

fn gather_elements<T: Pod + Send + Sync>(
    op: &Elements,
    data: &[T],
    indices: &Indices<'_>,
    output: &mut [T],
) {
    let width = op.indices.last().copied().unwrap_or(1);
    let bound = op.data[op.axis];
    for_chunks(output, width, GRAIN, &|number, to| {
        let row = Row::new(&op.data, &op.indices, op.axis, number);
        for (position, to) in to.iter_mut().enumerate() {
            let index = indices.place(number * width + position, bound);
            *to = data[row.place(position, index)];
        }
    });
}

pub(super) fn scatter(
    op: &Elements,
    reduction: Reduction,
    call: &mut Call<'_>,
) -> Result<(), String> {
    let Some(output) = &call.outputs[0] else {
        return Err(missing());
    };
    let data_type = output.ty.data_type;
    match reduction {
        Reduction::Replace => match data_type.bits() {
            Some(8) => scatter_elements(op, |_, update: u8| update, call),
            Some(16) => scatter_elements(op, |_, update: u16| update, call),
            Some(32) => scatter_elements(op, |_, update: u32| update, call),
            _ => scatter_elements(op, |_, update: u64| update, call),
        },
        _ => with_number!(data_type, fold::<_>(op, reduction, call)),
    }
}

fn fold<T: Number>(op: &Elements, reduction: Reduction, call: &mut Call<'_>) -> Result<(), String> {
    scatter_elements(
        op,
        |element: T, update| element.combine(update, reduction),
        call,
    )
}

fn scatter_elements<T: Pod + Send + Sync>(
    op: &Elements,
    combine: impl Fn(T, T) -> T + Sync,
    call: &mut Call<'_>,
) -> Result<(), String> {
    let ([data, Some(indices), Some(updates), ..], [Some(output), ..]) =
        (&call.inputs, &mut call.outputs)
    else {
        return Err(missing());
    };
    let indices = Indices::new(indices);
    let bound = op.data[op.axis];
    indices.check(&[bound])?;
    let updates = updates.elements::<T>();
    let output = output.elements::<T>();
    start(data.as_ref(), output);
    if updates.is_empty() || output.is_empty() {
        return Ok(());
    }
    // In front of the axis every update has its own block of the data, where the sizes are equal.
    let shared = match op.data[..op.axis] == op.indices[..op.axis] {
        true => op.axis,
        false => 0,
    };
    let (data_shape, index_shape) = (&op.data[shared..], &op.indices[shared..]);
    let block: usize = data_shape.iter().product();
    let part: usize = index_shape.iter().product();
    let width = index_shape.last().copied().unwrap_or(1);
    // As many updates as make up a piece of work, counted in elements of the data.
    let grain = GRAIN.div_ceil(part).saturating_mul(block);
    for_chunks(output, block, grain, &|number, output| {
        let Some(updates) = updates.get(number * part..(number + 1) * part) else {
            return;
        };
        for (line, updates) in updates.chunks(width).enumerate() {
            let row = Row::new(data_shape, index_shape, op.axis - shared, line);
            for (position, &update) in updates.iter().enumerate() {
                let index = indices.place(number * part + line * width + position, bound);
                let to = &mut output[row.place(position, index)];
                *to = combine(*to, update);
            }
        }
    });
    Ok(())
}
