//! Rows read and written at given places.

use super::number::{Number, with_number};
use super::{Indices, start};
use crate::cpu::memory::Call;
use crate::cpu::movement::{GRAIN, missing};
use crate::cpu::rows::for_chunks;
use crate::ops::index::{Reduction, Rows};
use bytemuck::Pod;

/// Columns that are summed at once.
const COLUMNS: usize = 64;

/// The row of a lane's data that a tuple of indices means.
#[inline]
fn row(op: &Rows, indices: &Indices<'_>, tuple: usize) -> usize {
    let depth = op.bounds.len();
    (op.bounds.iter().enumerate()).fold(0, |row, (axis, &bound)| {
        row * bound + indices.place(tuple * depth + axis, bound)
    })
}

pub(super) fn gather(op: &Rows, call: &mut Call<'_>) -> Result<(), String> {
    let ([Some(data), Some(indices), ..], [Some(output), ..]) = (&call.inputs, &mut call.outputs)
    else {
        return Err(missing());
    };
    let indices = Indices::new(indices);
    if output.bytes.is_empty() {
        return Ok(());
    }
    indices.check(&op.bounds)?;
    match output.ty.data_type.bits() {
        Some(8) => gather_rows::<u8>(op, data.elements(), &indices, output.elements()),
        Some(16) => gather_rows::<u16>(op, data.elements(), &indices, output.elements()),
        Some(32) => gather_rows::<u32>(op, data.elements(), &indices, output.elements()),
        _ => gather_rows::<u64>(op, data.elements(), &indices, output.elements()),
    }
    Ok(())
}

fn gather_rows<T: Pod + Send + Sync>(
    op: &Rows,
    data: &[T],
    indices: &Indices<'_>,
    output: &mut [T],
) {
    let (slice, count) = (op.slice, op.count);
    let rows: usize = op.bounds.iter().product();
    for_chunks(output, slice, GRAIN, &|number, to| {
        let (lane, tuple) = (number / count, number % count);
        let from = lane * rows + row(op, indices, lane % op.batch * count + tuple);
        to.copy_from_slice(&data[from * slice..][..slice]);
    });
}

/// Whether updates are sorted by the row that they go to, so that threads can share the rows. Depends on
/// shapes only.
fn sorts(op: &Rows) -> bool {
    op.slice >= 8 && op.outer * op.batch * op.count * op.slice > GRAIN
}

/// First entry of each row, and the updates in the order of rows.
pub(super) fn workspace(op: &Rows) -> usize {
    let rows: usize = op.batch * op.bounds.iter().product::<usize>();
    match sorts(op) {
        true => (rows + 1 + op.batch * op.count) * size_of::<u32>(),
        false => 0,
    }
}

/// How the updates of a row are worked into it, in their order.
trait Combine<T>: Sync {
    fn combine<'u>(&self, row: &mut [T], updates: impl Iterator<Item = &'u [T]> + Clone)
    where
        T: 'u;
}

/// The last one stays.
struct Replace;

impl<T: Pod> Combine<T> for Replace {
    fn combine<'u>(&self, row: &mut [T], updates: impl Iterator<Item = &'u [T]> + Clone)
    where
        T: 'u,
    {
        if let Some(last) = updates.last() {
            row.copy_from_slice(last);
        }
    }
}

/// All are added, in a wider type where there are several.
struct Sum;

impl<T: Number> Combine<T> for Sum {
    fn combine<'u>(&self, row: &mut [T], mut updates: impl Iterator<Item = &'u [T]> + Clone)
    where
        T: 'u,
    {
        let all = updates.clone();
        let Some(first) = updates.next() else {
            return;
        };
        if updates.next().is_none() {
            for (to, &update) in row.iter_mut().zip(first) {
                *to = to.combine(update, Reduction::Add);
            }
            return;
        }
        for (number, row) in row.chunks_mut(COLUMNS).enumerate() {
            let columns = number * COLUMNS..number * COLUMNS + row.len();
            let mut sums = [T::zeroed().widen(); COLUMNS];
            for (sum, &element) in sums.iter_mut().zip(row.iter()) {
                *sum = element.widen();
            }
            for update in all.clone() {
                for (sum, &element) in sums.iter_mut().zip(&update[columns.clone()]) {
                    *sum = T::plus(*sum, element.widen());
                }
            }
            for (to, &sum) in row.iter_mut().zip(&sums) {
                *to = T::narrow(sum);
            }
        }
    }
}

/// One after the other.
struct Fold(Reduction);

impl<T: Number> Combine<T> for Fold {
    fn combine<'u>(&self, row: &mut [T], updates: impl Iterator<Item = &'u [T]> + Clone)
    where
        T: 'u,
    {
        for update in updates {
            for (to, &update) in row.iter_mut().zip(update) {
                *to = to.combine(update, self.0);
            }
        }
    }
}

pub(super) fn scatter(op: &Rows, reduction: Reduction, call: &mut Call<'_>) -> Result<(), String> {
    let Some(output) = &call.outputs[0] else {
        return Err(missing());
    };
    let data_type = output.ty.data_type;
    match reduction {
        Reduction::Replace => match data_type.bits() {
            Some(8) => scatter_rows::<u8>(op, &Replace, call),
            Some(16) => scatter_rows::<u16>(op, &Replace, call),
            Some(32) => scatter_rows::<u32>(op, &Replace, call),
            _ => scatter_rows::<u64>(op, &Replace, call),
        },
        Reduction::Add => with_number!(data_type, add_rows::<_>(op, call)),
        _ => with_number!(data_type, fold_rows::<_>(op, reduction, call)),
    }
}

fn add_rows<T: Number>(op: &Rows, call: &mut Call<'_>) -> Result<(), String> {
    scatter_rows::<T>(op, &Sum, call)
}

fn fold_rows<T: Number>(op: &Rows, fold: Reduction, call: &mut Call<'_>) -> Result<(), String> {
    scatter_rows::<T>(op, &Fold(fold), call)
}

fn scatter_rows<T: Pod + Send + Sync>(
    op: &Rows,
    combine: &impl Combine<T>,
    call: &mut Call<'_>,
) -> Result<(), String> {
    let ([data, Some(indices), Some(updates), ..], [Some(output), ..]) =
        (&call.inputs, &mut call.outputs)
    else {
        return Err(missing());
    };
    let indices = Indices::new(indices);
    indices.check(&op.bounds)?;
    let updates = updates.elements::<T>();
    let output = output.elements::<T>();
    start(data.as_ref(), output);
    let (slice, count) = (op.slice, op.count);
    if updates.is_empty() || output.is_empty() {
        return Ok(());
    }
    let rows: usize = op.bounds.iter().product();
    if !sorts(op) {
        for (number, update) in updates.chunks(slice).enumerate() {
            let (lane, tuple) = (number / count, number % count);
            let to = lane * rows + row(op, &indices, lane % op.batch * count + tuple);
            combine.combine(&mut output[to * slice..][..slice], std::iter::once(update));
        }
        return Ok(());
    }
    // A counting sort: stable, so each row sees its updates in their order.
    let scratch: &mut [u32] = bytemuck::cast_slice_mut(call.workspace);
    let (first, order) = scratch.split_at_mut(op.batch * rows + 1);
    let order = &mut order[..op.batch * count];
    first.fill(0);
    let key = |tuple: usize| tuple / count * rows + row(op, &indices, tuple);
    for tuple in 0..order.len() {
        first[key(tuple) + 1] += 1;
    }
    for row in 1..first.len() {
        first[row] += first[row - 1];
    }
    for tuple in 0..order.len() {
        let place = &mut first[key(tuple)];
        order[*place as usize] = tuple as u32;
        *place += 1;
    }
    // Each entry has moved to the start of the next row.
    let (first, order) = (&*first, &*order);
    let span = |row: usize| {
        let start = row
            .checked_sub(1)
            .map_or(0, |before| first[before] as usize);
        start..first[row] as usize
    };
    for_chunks(output, slice, GRAIN, &|number, to| {
        let lane = number / rows;
        let batch = lane % op.batch;
        let tuples = &order[span(batch * rows + number % rows)];
        let updates = tuples.iter().map(|&tuple| {
            let from = lane * count + tuple as usize % count;
            &updates[from * slice..][..slice]
        });
        combine.combine(to, updates);
    });
    Ok(())
}
