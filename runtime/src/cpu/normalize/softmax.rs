//! Softmax and its gradient: a row stays in the cache while it is read, summed and written.

use crate::cpu::in_place::{Read, map2};
use crate::cpu::memory::Call;
use crate::cpu::number::{Float, Lane, Number};
use crate::cpu::rows::{self, RowsMut, dispatch, fold, fold_pairs, for_blocks, rows_per_block};
use crate::ops::normalize::{Softmax, SoftmaxKind};

/// Inputs: X; output: Y.
pub(super) fn forward<T: Number>(op: &Softmax, call: &mut Call<'_>) -> Result<(), String>
where
    T::Lane: Float,
{
    let x = Read::<T>::of(&call.inputs[0])?;
    let Some(y) = &mut call.outputs[0] else {
        return Err("the output is missing".to_owned());
    };
    // An output element is written after all of its row have been read.
    let matrix = op.size * op.inner;
    let block = rows_per_block(matrix);
    let written = RowsMut::new(y.elements::<T>(), matrix);
    for_blocks(0..op.outer, block, written, &|range, y| {
        if op.inner == 1 {
            dispatch!(T, forward_rows::<T>, (op, x, range.start, y.elements));
        } else {
            dispatch!(T, forward_columns::<T>, (op, x, range.start, y.elements));
        }
    });
    Ok(())
}

#[inline(always)]
fn forward_rows<T: Number>((op, x, first, y): (&Softmax, Read<'_, T>, usize, &mut [T]))
where
    T::Lane: Float,
{
    let size = op.size;
    if size == 0 {
        return;
    }
    for (row, y) in y.chunks_exact_mut(size).enumerate() {
        let start = (first + row) * size;
        let range = start..start + size;
        let row = x.range(range.clone(), y);
        let greatest = T::Lane::narrow(fold::<T, rows::Max>(row));
        let power = |x: T::Lane| x.sub(greatest).exp();
        match op.kind {
            SoftmaxKind::Plain if T::EXACT => {
                map2(y, (x, x), range, |_, x, _| power(x));
                let sum = fold::<T, rows::Sum>(y);
                let factor = T::Lane::narrow(1.0 / sum);
                for y in y {
                    *y = T::narrow(y.lane().mul(factor));
                }
            }
            // A stored power would be rounded: it is worked out twice.
            SoftmaxKind::Plain => {
                let sum = fold_pairs::<T, T, T::Lane, rows::Sum>(row, row, |x, _| power(x.lane()));
                let factor = T::Lane::narrow(1.0 / sum);
                map2(y, (x, x), range, |_, x, _| power(x).mul(factor));
            }
            SoftmaxKind::Log => {
                let sum = fold_pairs::<T, T, T::Lane, rows::Sum>(row, row, |x, _| power(x.lane()));
                let shift = T::Lane::narrow(sum.ln());
                map2(y, (x, x), range, |_, x, _| x.sub(greatest).sub(shift));
            }
            SoftmaxKind::Hard => {
                let place = row.iter().position(|x| x.lane() == greatest).unwrap_or(0);
                y.fill(T::narrow(T::Lane::default()));
                y[place] = T::narrow(T::Lane::ONE);
            }
        }
    }
}

/// Columns that are worked on at once.
const TILE: usize = 32;

#[inline(always)]
fn forward_columns<T: Number>((op, x, first, y): (&Softmax, Read<'_, T>, usize, &mut [T]))
where
    T::Lane: Float,
{
    let (size, inner) = (op.size, op.inner);
    if size * inner == 0 {
        return;
    }
    for (matrix, y) in y.chunks_exact_mut(size * inner).enumerate() {
        let base = (first + matrix) * size * inner;
        let mut start = 0;
        while start < inner {
            let width = TILE.min(inner - start);
            let at = |row: usize| row * inner + start..row * inner + start + width;
            let apart = |row: usize| base + at(row).start..base + at(row).end;
            let mut greatest = [T::Lane::LOWEST; TILE];
            let mut places = [0usize; TILE];
            for row in 0..size {
                let x = x.range(apart(row), &y[at(row)]);
                for (c, x) in x.iter().enumerate() {
                    let more = rows::greater(greatest[c], x.lane());
                    if more != greatest[c] {
                        places[c] = row;
                    }
                    greatest[c] = more;
                }
            }
            let mut sums = [0.0f64; TILE];
            for row in 0..size {
                let x = x.range(apart(row), &y[at(row)]);
                for (c, x) in x.iter().enumerate() {
                    sums[c] += x.lane().sub(greatest[c]).exp().wide();
                }
            }
            let mut last = [T::Lane::default(); TILE];
            for (last, sum) in last.iter_mut().zip(sums) {
                let number = match op.kind {
                    SoftmaxKind::Plain => 1.0 / sum,
                    _ => sum.ln(),
                };
                *last = T::Lane::narrow(number);
            }
            for row in 0..size {
                let y = &mut y[at(row)];
                match op.kind {
                    SoftmaxKind::Plain => map2(y, (x, x), apart(row), |c, x, _| {
                        x.sub(greatest[c]).exp().mul(last[c])
                    }),
                    SoftmaxKind::Log => map2(y, (x, x), apart(row), |c, x, _| {
                        x.sub(greatest[c]).sub(last[c])
                    }),
                    SoftmaxKind::Hard => map2(y, (x, x), apart(row), |c, _, _| {
                        if places[c] == row {
                            T::Lane::ONE
                        } else {
                            T::Lane::default()
                        }
                    }),
                }
            }
            start += width;
        }
    }
}

/// Inputs: dY, Y; output: dX.
pub(super) fn grad<T: Number>(op: &Softmax, call: &mut Call<'_>) -> Result<(), String>
where
    T::Lane: Float,
{
    let dy = Read::<T>::of(&call.inputs[0])?;
    let y = Read::<T>::of(&call.inputs[1])?;
    let Some(dx) = &mut call.outputs[0] else {
        return Err("the output is missing".to_owned());
    };
    let matrix = op.size * op.inner;
    let block = rows_per_block(matrix);
    let written = RowsMut::new(dx.elements::<T>(), matrix);
    for_blocks(0..op.outer, block, written, &|range, dx| {
        dispatch!(
            T,
            grad_matrices::<T>,
            (op, (dy, y), range.start, dx.elements)
        );
    });
    Ok(())
}

/// dX = Y (dY - Σ dY Y), or for logarithms dY - e^Y Σ dY.
#[expect(
    clippy::type_complexity,
    reason = "what is dispatched by instruction set takes its arguments as one tuple"
)]
#[inline(always)]
fn grad_matrices<T: Number>(
    (op, (dy, y), first, dx): (&Softmax, (Read<'_, T>, Read<'_, T>), usize, &mut [T]),
) where
    T::Lane: Float,
{
    let (size, inner) = (op.size, op.inner);
    if size * inner == 0 {
        return;
    }
    let log = op.kind == SoftmaxKind::Log;
    let product = |dy: T, y: T| match log {
        true => dy.lane(),
        false => dy.lane().mul(y.lane()),
    };
    for (matrix, dx) in dx.chunks_exact_mut(size * inner).enumerate() {
        let base = (first + matrix) * size * inner;
        if inner == 1 {
            let range = base..base + size;
            let (a, b) = (dy.range(range.clone(), dx), y.range(range.clone(), dx));
            let sum = fold_pairs::<T, T, T::Lane, rows::Sum>(a, b, product);
            let sum = T::Lane::narrow(sum);
            match log {
                true => map2(dx, (dy, y), range, |_, dy, y| dy.sub(y.exp().mul(sum))),
                false => map2(dx, (dy, y), range, |_, dy, y| dy.sub(sum).mul(y)),
            }
            continue;
        }
        let mut start = 0;
        while start < inner {
            let width = TILE.min(inner - start);
            let at = |row: usize| row * inner + start..row * inner + start + width;
            let apart = |row: usize| base + at(row).start..base + at(row).end;
            let mut sums = [0.0f64; TILE];
            for row in 0..size {
                let (a, b) = (
                    dy.range(apart(row), &dx[at(row)]),
                    y.range(apart(row), &dx[at(row)]),
                );
                for ((sum, &a), &b) in sums.iter_mut().zip(a).zip(b) {
                    *sum += product(a, b).wide();
                }
            }
            let sums = sums.map(T::Lane::narrow);
            for row in 0..size {
                let dx = &mut dx[at(row)];
                match log {
                    true => map2(dx, (dy, y), apart(row), |c, dy, y| {
                        dy.sub(y.exp().mul(sums[c]))
                    }),
                    false => map2(dx, (dy, y), apart(row), |c, dy, y| dy.sub(sums[c]).mul(y)),
                }
            }
            start += width;
        }
    }
}
