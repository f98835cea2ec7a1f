//! Convolutions as matrix products over blocks of output positions.
//!
//! A block is some output positions of one group of one image. Its columns ([`super::columns`]) are laid
//! out in scratch and multiplied by the filters. Blocks have sizes that depend on shapes only, and what is
//! summed over images and blocks is summed in their order.

use super::PARALLEL;
use super::columns::{gather, scatter};
use crate::cpu::Machine;
use crate::cpu::gemm::{Matrix, Problem};
use crate::cpu::memory::Call;
use crate::cpu::product::{self, Real, multiply};
use crate::cpu::rows::for_chunks;
use crate::ops::window::Conv;
use rayon::prelude::*;

/// Elements of the columns of a block: half of a second-level cache.
const COLUMNS: usize = 1 << 17;

impl Conv {
    /// Rows of the matrix of columns.
    fn rows(&self) -> usize {
        self.channels * self.geometry.taps()
    }

    /// Output positions of a block.
    fn block(&self) -> usize {
        let positions = self.geometry.positions();
        let fit = COLUMNS / self.rows().max(1);
        (fit / 64 * 64).max(64).min(positions.max(1))
    }

    /// Images times groups.
    fn tasks(&self) -> usize {
        self.batch * self.groups
    }

    /// Elements of one group of the filters, of X of a task and of Y of a task.
    fn spans(&self) -> (usize, usize, usize) {
        (
            self.filters * self.rows(),
            self.channels * self.geometry.plane(),
            self.filters * self.geometry.positions(),
        )
    }

    /// Elements of columns that a task needs.
    fn columns(&self) -> usize {
        if self.geometry.is_pointwise() {
            0
        } else {
            self.rows().saturating_mul(self.block())
        }
    }
}

/// Elements of scratch of a product of each block, the last of which may be smaller.
fn products<T: Real>(conv: &Conv, sizes: impl Fn(usize) -> Problem) -> usize {
    let (block, rest) = (conv.block(), conv.geometry.positions() % conv.block());
    product::scratch::<T>(sizes(block)).max(product::scratch::<T>(sizes(rest)))
}

/// Elements of scratch of one task of the forward product or of the gradient of the input.
fn task_scratch<T: Real>(conv: &Conv) -> usize {
    let (m, k) = (conv.filters, conv.rows());
    let forward = products::<T>(conv, |n| Problem { m, n, k });
    let backward = products::<T>(conv, |n| Problem { m: k, n, k: m });
    (conv.columns())
        .saturating_add(forward.max(backward))
        .next_multiple_of(16)
}

/// Elements of scratch of the forward product or of the gradient of the input, which share tasks out
/// among the threads.
pub(super) fn scratch<T: Real>(conv: &Conv, machine: &Machine) -> usize {
    let slots = machine.threads.min(conv.tasks()).max(1);
    task_scratch::<T>(conv).saturating_mul(slots)
}

/// Elements of scratch of the gradient of the filters.
pub(super) fn weight_scratch<T: Real>(conv: &Conv) -> usize {
    let (m, n) = (conv.filters, conv.rows());
    let product = products::<T>(conv, |k| Problem { m, n, k });
    conv.columns().saturating_add(product)
}

/// Shares the tasks out among as many threads as have scratch: consecutive ones each, with their parts of
/// the output.
fn share<T: Real>(
    conv: &Conv,
    span: usize,
    output: &mut [T],
    scratch: &mut [T],
    task: impl Fn(usize, &mut [T], &mut [T]) -> Result<(), String> + Sync,
) -> Result<(), String> {
    let (tasks, each) = (conv.tasks(), task_scratch::<T>(conv));
    if tasks == 0 || span == 0 {
        return Ok(());
    }
    let several = |first: usize, output: &mut [T], scratch: &mut [T]| {
        for (number, output) in output.chunks_mut(span).enumerate() {
            task(first + number, output, scratch)?;
        }
        Ok(())
    };
    let slots = (scratch.len() / each.max(1)).clamp(1, tasks);
    if slots == 1 || tasks.saturating_mul(conv.rows() * conv.geometry.positions()) < PARALLEL {
        return several(0, output, scratch);
    }
    let run = tasks.div_ceil(slots);
    (output.par_chunks_mut(run * span))
        .zip(scratch.par_chunks_mut(each.max(1)))
        .enumerate()
        .try_for_each(|(slot, (output, scratch))| several(slot * run, output, scratch))
}

/// Lays out the columns of a block, `count` positions from `start` on.
fn lay_out<T: Real>(conv: &Conv, x: &[T], start: usize, count: usize, columns: &mut [T]) {
    let (plane, taps) = (conv.geometry.plane(), conv.geometry.taps());
    let row = |(number, to): (usize, &mut [T])| {
        let channel = number / taps;
        let plane = &x[channel * plane..][..plane];
        gather(&conv.geometry, number % taps, plane, start, to);
    };
    let columns = &mut columns[..conv.rows() * count];
    if columns.len() >= PARALLEL {
        for_chunks(columns, count, PARALLEL / 4, &|number, to| {
            row((number, to))
        });
    } else {
        columns.chunks_mut(count.max(1)).enumerate().for_each(row);
    }
}

/// Y from X and W.
pub(super) fn forward<T: Real>(conv: &Conv, mut call: Call<'_>) -> Result<(), String> {
    let ([Some(x), Some(w), bias, ..], [Some(y), ..]) = (&call.inputs, &mut call.outputs) else {
        return Err("an operand is missing".to_owned());
    };
    let (x, w) = (x.elements::<T>(), w.elements::<T>());
    let bias = bias.as_ref().map(|bias| bias.elements::<T>());
    let scratch: &mut [T] = bytemuck::cast_slice_mut(call.workspace);
    let (filter_span, x_span, y_span) = conv.spans();
    let (positions, rows) = (conv.geometry.positions(), conv.rows());
    share(
        conv,
        y_span,
        y.elements::<T>(),
        scratch,
        |task, y, scratch| {
            let group = task % conv.groups;
            let x = &x[task * x_span..][..x_span];
            let w = product::rows(&w[group * filter_span..][..filter_span], rows);
            for (filter, to) in y.chunks_mut(positions).enumerate() {
                to.fill(bias.map_or(T::ZERO, |bias| bias[group * conv.filters + filter]));
            }
            let (columns, scratch) = scratch.split_at_mut(conv.columns());
            for start in (0..positions).step_by(conv.block()) {
                let count = conv.block().min(positions - start);
                let right = columns_of(conv, x, start, count, columns);
                let sizes = Problem {
                    m: conv.filters,
                    n: count,
                    k: rows,
                };
                multiply(sizes, w, right, true, &mut y[start..], positions, scratch)?;
            }
            Ok(())
        },
    )
}

/// The columns of a block of positions: laid out in scratch, or X itself where each is one element of
/// every channel.
fn columns_of<'s, T: Real>(
    conv: &Conv,
    x: &'s [T],
    start: usize,
    count: usize,
    scratch: &'s mut [T],
) -> Matrix<'s, T> {
    if conv.geometry.is_pointwise() {
        return product::rows(&x[start..], conv.geometry.positions());
    }
    lay_out(conv, x, start, count, scratch);
    product::rows(scratch, count)
}

/// dX from dY and W; also the transposed convolution, whose bias it starts from.
pub(super) fn input<T: Real>(conv: &Conv, mut call: Call<'_>) -> Result<(), String> {
    let ([Some(dy), Some(w), bias, ..], [Some(dx), ..]) = (&call.inputs, &mut call.outputs) else {
        return Err("an operand is missing".to_owned());
    };
    let (dy, w) = (dy.elements::<T>(), w.elements::<T>());
    let bias = bias.as_ref().map(|bias| bias.elements::<T>());
    let scratch: &mut [T] = bytemuck::cast_slice_mut(call.workspace);
    let (filter_span, x_span, y_span) = conv.spans();
    let (plane, positions) = (conv.geometry.plane(), conv.geometry.positions());
    let (rows, taps) = (conv.rows(), conv.geometry.taps());
    share(
        conv,
        x_span,
        dx.elements::<T>(),
        scratch,
        |task, dx, scratch| {
            let group = task % conv.groups;
            let dy = &dy[task * y_span..][..y_span];
            let w = product::rows(&w[group * filter_span..][..filter_span], rows).transposed();
            for (channel, to) in dx.chunks_mut(plane).enumerate() {
                to.fill(bias.map_or(T::ZERO, |bias| bias[group * conv.channels + channel]));
            }
            let (columns, scratch) = scratch.split_at_mut(conv.columns());
            for start in (0..positions).step_by(conv.block()) {
                let count = conv.block().min(positions - start);
                let right = product::rows(&dy[start..], positions);
                let sizes = Problem {
                    m: rows,
                    n: count,
                    k: conv.filters,
                };
                if conv.geometry.is_pointwise() {
                    multiply(sizes, w, right, true, &mut dx[start..], positions, scratch)?;
                    continue;
                }
                multiply(sizes, w, right, false, columns, count, scratch)?;
                // A plane takes the rows of its own channel, in the order of the taps.
                let add = |(channel, plane): (usize, &mut [T])| {
                    for tap in 0..taps {
                        let row = &columns[(channel * taps + tap) * count..][..count];
                        scatter(&conv.geometry, tap, row, start, plane);
                    }
                };
                if rows * count >= PARALLEL {
                    for_chunks(dx, plane, 1, &|channel, to| add((channel, to)));
                } else {
                    dx.chunks_mut(plane).enumerate().for_each(add);
                }
            }
            Ok(())
        },
    )
}

/// dW from dY and X, summed over images and blocks in their order.
pub(super) fn weight<T: Real>(conv: &Conv, mut call: Call<'_>) -> Result<(), String> {
    let ([Some(dy), Some(x), ..], [Some(dw), ..]) = (&call.inputs, &mut call.outputs) else {
        return Err("an operand is missing".to_owned());
    };
    let (dy, x) = (dy.elements::<T>(), x.elements::<T>());
    let dw = dw.elements::<T>();
    let scratch: &mut [T] = bytemuck::cast_slice_mut(call.workspace);
    let (columns, scratch) = scratch.split_at_mut(conv.columns());
    let (filter_span, x_span, y_span) = conv.spans();
    let (positions, rows) = (conv.geometry.positions(), conv.rows());
    dw.fill(T::ZERO);
    if filter_span == 0 {
        return Ok(());
    }
    for task in 0..conv.tasks() {
        let x = &x[task * x_span..][..x_span];
        let dy = &dy[task * y_span..][..y_span];
        let dw = &mut dw[task % conv.groups * filter_span..][..filter_span];
        for start in (0..positions).step_by(conv.block()) {
            let count = conv.block().min(positions - start);
            let left = product::rows(&dy[start..], positions);
            let right = columns_of(conv, x, start, count, columns);
            let sizes = Problem {
                m: conv.filters,
                n: rows,
                k: count,
            };
            multiply(sizes, left, right.transposed(), true, dw, rows, scratch)?;
        }
    }
    Ok(())
}

/// The sum of every channel over images and positions: rows in eight lanes, their sums in 64 bits.
pub(super) fn channel_sum<T: Real>(
    batch: usize,
    channels: usize,
    positions: usize,
    mut call: Call<'_>,
) -> Result<(), String> {
    let ([Some(dy), ..], [Some(db), ..]) = (&call.inputs, &mut call.outputs) else {
        return Err("an operand is missing".to_owned());
    };
    let dy = dy.elements::<T>();
    let sum = |(channel, to): (usize, &mut T)| {
        let mut total = 0.0;
        for image in 0..batch {
            let plane = &dy[(image * channels + channel) * positions..][..positions];
            total += plane.chunks(1024).map(lanes).sum::<f64>();
        }
        *to = T::from_f64(total);
    };
    let db = db.elements::<T>();
    if dy.len() >= PARALLEL {
        for_chunks(db, 1, 1, &|channel, to| {
            if let [to] = to {
                sum((channel, to));
            }
        });
    } else {
        db.iter_mut().enumerate().for_each(sum);
    }
    Ok(())
}

fn lanes<T: Real>(elements: &[T]) -> f64 {
    let mut lanes = [T::ZERO; 16];
    for chunk in elements.chunks(16) {
        for (lane, &element) in lanes.iter_mut().zip(chunk) {
            *lane += element;
        }
    }
    lanes.iter().map(|lane| lane.to_f64()).sum()
}
