//! Layer normalisation and its gradient: a row stays in the cache from its first reading to its writing.

use crate::cpu::in_place::{Read, map2};
use crate::cpu::memory::Call;
use crate::cpu::number::{Float, Lane, Number};
use crate::cpu::reduce::Columns;
use crate::cpu::rows::{
    RowsMut, Sum, dispatch, fold, fold_columns, fold_pairs, fold_triples, for_blocks,
    rows_per_block, scratch,
};
use crate::ops::normalize::Layer;

/// Inputs: X, scale, bias; outputs: Y, mean, inverse standard deviation.
pub(super) fn forward<T: Number>(op: &Layer, call: &mut Call<'_>) -> Result<(), String>
where
    T::Lane: Float,
{
    let statistics = call.outputs[1].as_ref().or(call.outputs[2].as_ref());
    let own =
        statistics.is_some_and(|s| Some(s.ty.data_type) == call.inputs[0].map(|x| x.ty.data_type));
    if own {
        forward_with::<T, T>(op, call)
    } else {
        forward_with::<T, f32>(op, call)
    }
}

fn forward_with<T: Number, S: Number>(op: &Layer, call: &mut Call<'_>) -> Result<(), String>
where
    T::Lane: Float,
    S::Lane: Float,
{
    let x = Read::<T>::of(&call.inputs[0])?;
    let (Some(scale), bias) = (&call.inputs[1], &call.inputs[2]) else {
        return Err("the scale is missing".to_owned());
    };
    let (scale, bias) = (scale.elements::<T>(), bias.map(|bias| bias.elements::<T>()));
    let [Some(y), mean, inverse, ..] = &mut call.outputs else {
        return Err("the output is missing".to_owned());
    };
    let written = (
        RowsMut::new(y.elements::<T>(), op.size),
        mean.as_mut()
            .map(|mean| RowsMut::new(mean.elements::<S>(), 1)),
        (inverse.as_mut()).map(|inverse| RowsMut::new(inverse.elements::<S>(), 1)),
    );
    let block = rows_per_block(op.size);
    for_blocks(0..op.rows, block, written, &|range, (y, mean, inverse)| {
        let mean = mean.map(|mean| mean.elements);
        let inverse = inverse.map(|inverse| inverse.elements);
        let rows = Block {
            op,
            x,
            scale,
            bias,
            first: range.start,
            y: y.elements,
            mean,
            inverse,
        };
        dispatch!(T, forward_rows::<T, S>, rows);
    });
    Ok(())
}

/// Some rows, and what is written to them.
struct Block<'a, T, S> {
    op: &'a Layer,
    x: Read<'a, T>,
    scale: &'a [T],
    bias: Option<&'a [T]>,
    first: usize,
    y: &'a mut [T],
    mean: Option<&'a mut [S]>,
    inverse: Option<&'a mut [S]>,
}

#[inline(always)]
fn forward_rows<T: Number, S: Number>(block: Block<'_, T, S>)
where
    T::Lane: Float,
    S::Lane: Float,
{
    let Block {
        op,
        x,
        scale,
        bias,
        first,
        y,
        mut mean,
        mut inverse,
    } = block;
    let size = op.size;
    if size == 0 {
        return;
    }
    let epsilon = f64::from(op.epsilon);
    for (row, y) in y.chunks_exact_mut(size).enumerate() {
        let start = (first + row) * size;
        let range = start..start + size;
        let row_x = x.range(range.clone(), y);
        let average = match op.centred {
            true => fold::<T, Sum>(row_x) / size as f64,
            false => 0.0,
        };
        let shift = T::Lane::narrow(average);
        let square = |x: T, _: T| {
            let x = x.lane().sub(shift);
            x.mul(x)
        };
        let squares = fold_pairs::<T, T, T::Lane, Sum>(row_x, row_x, square);
        let deviation = 1.0 / (squares / size as f64 + epsilon).sqrt();
        let factor = T::Lane::narrow(deviation);
        if let Some(mean) = &mut mean {
            mean[row] = S::narrow(S::Lane::narrow(average));
        }
        if let Some(inverse) = &mut inverse {
            inverse[row] = S::narrow(S::Lane::narrow(deviation));
        }
        let scale = &scale[..size];
        match bias {
            Some(bias) => {
                let bias = &bias[..size];
                map2(y, (x, x), range, |i, x, _| {
                    let normal = x.sub(shift).mul(factor);
                    normal.mul(scale[i].lane()).add(bias[i].lane())
                });
            }
            None => map2(y, (x, x), range, |i, x, _| {
                x.sub(shift).mul(factor).mul(scale[i].lane())
            }),
        }
    }
}

/// Bytes of scratch: sums of the gradients of scale and bias, by block of rows.
pub(super) fn grad_workspace(op: &Layer) -> usize {
    Columns::new(op.rows, op.size).partials() * 2 * 8
}

/// Inputs: dY, X, scale, mean, inverse deviation; outputs: dX, dScale, dBias.
pub(super) fn grad<T: Number>(op: &Layer, call: &mut Call<'_>) -> Result<(), String>
where
    T::Lane: Float,
{
    let types = [&call.inputs[0], &call.inputs[4]].map(|i| i.map(|i| i.ty.data_type));
    match (types[0] == types[1], op.from_output) {
        (true, false) => grad_with::<T, T, false>(op, call),
        (true, true) => grad_with::<T, T, true>(op, call),
        (false, false) => grad_with::<T, f32, false>(op, call),
        (false, true) => grad_with::<T, f32, true>(op, call),
    }
}

fn grad_with<T: Number, S: Number, const INVERTED: bool>(
    op: &Layer,
    call: &mut Call<'_>,
) -> Result<(), String>
where
    T::Lane: Float,
    S::Lane: Float,
{
    let read = (
        Read::<T>::of(&call.inputs[0])?,
        Read::<T>::of(&call.inputs[1])?,
    );
    let (Some(scale), Some(inverse)) = (&call.inputs[2], &call.inputs[4]) else {
        return Err("an operand is missing".to_owned());
    };
    let fourth = &call.inputs[3];
    let given = Given::<T, S> {
        op,
        read,
        scale: scale.elements(),
        inverse: inverse.elements(),
        mean: fourth.filter(|_| !INVERTED).map(|mean| mean.elements()),
        bias: match fourth.filter(|_| INVERTED) {
            Some(bias) => bias.elements(),
            None => scale.elements(),
        },
    };
    let [dx, dscale, dbias, ..] = &mut call.outputs;
    let columns = Columns::new(op.rows, op.size);
    let partials: &mut [f64] = scratch(call.workspace);
    partials.fill(0.0);
    let (scales, biases) = partials.split_at_mut(columns.partials());
    let dx = dx.as_mut().map(|dx| dx.elements::<T>());
    let written = (
        dx.map(|dx| RowsMut::new(dx, op.size * columns.block)),
        RowsMut::new(&mut *scales, op.size),
        RowsMut::new(&mut *biases, op.size),
    );
    let bias_wanted = dbias.is_some();
    // A block of the outer loop is a whole one of the partial sums; the last one may be shorter.
    blocks::<T>(
        0..columns.blocks(),
        written,
        &|block, dx, scales, biases| {
            let start = block * columns.block;
            let rows = start..(start + columns.block).min(op.rows);
            let biases = if bias_wanted { biases } else { &mut [] };
            dispatch!(
                T,
                grad_block::<T, S, INVERTED>,
                (&given, rows, dx, scales, biases),
            );
        },
    );
    for (output, partials) in [(dscale, scales), (dbias, biases)] {
        if let Some(output) = output {
            let totals = columns.join::<T::Lane, Sum>(partials);
            for (y, &total) in output.elements::<T>().iter_mut().zip(totals) {
                *y = T::narrow(T::Lane::narrow(total));
            }
        }
    }
    Ok(())
}

/// Blocks of rows with their parts of dX and of the partial sums.
type Written<'a, T> = (Option<RowsMut<'a, T>>, RowsMut<'a, f64>, RowsMut<'a, f64>);

/// Calls `run` for every block, on the threads of the pool.
fn blocks<T: Number>(
    range: std::ops::Range<usize>,
    written: Written<'_, T>,
    run: &(impl Fn(usize, Option<&mut [T]>, &mut [f64], &mut [f64]) + Sync),
) {
    for_blocks(range, 1, written, &|range, (dx, scales, biases)| {
        let dx = dx.map(|dx| dx.elements);
        run(range.start, dx, scales.elements, biases.elements);
    });
}

/// What the gradient reads.
struct Given<'a, T, S> {
    op: &'a Layer,
    read: (Read<'a, T>, Read<'a, T>),
    scale: &'a [T],
    inverse: &'a [S],
    mean: Option<&'a [S]>,
    bias: &'a [T],
}

/// With x̂ the normalised input and g = dY · scale: dX = inverse (g - mean(g) - x̂ mean(g x̂)), where
/// mean(g) is left out without a centre; dScale = Σ dY x̂ and dBias = Σ dY over the rows.
#[expect(
    clippy::type_complexity,
    reason = "what is dispatched by instruction set takes its arguments as one tuple"
)]
#[inline(always)]
fn grad_block<T: Number, S: Number, const INVERTED: bool>(
    (given, rows, mut dx, scales, biases): (
        &Given<'_, T, S>,
        std::ops::Range<usize>,
        Option<&mut [T]>,
        &mut [f64],
        &mut [f64],
    ),
) where
    T::Lane: Float,
    S::Lane: Float,
{
    let size = given.op.size;
    if size == 0 {
        return;
    }
    let (dy, x) = given.read;
    let first = rows.start;
    let statistic = |of: &[S], row: usize| T::Lane::narrow(of[row].lane().wide());
    let mean = |row: usize| match given.mean {
        Some(mean) => statistic(mean, row),
        None => T::Lane::default(),
    };
    // A few rows at a time, so that they are still near when they are read again.
    let few = (8 * 1024 / size).clamp(4, MAX_FEW) / 4 * 4;
    let mut start = rows.start;
    while start < rows.end {
        let count = few.min(rows.end - start);
        let mut shifts = [T::Lane::default(); MAX_FEW];
        let mut factors = [T::Lane::default(); MAX_FEW];
        for row in 0..count {
            shifts[row] = mean(start + row);
            factors[row] = statistic(given.inverse, start + row);
        }
        {
            let dx: &[T] = dx.as_deref().unwrap_or(&[]);
            let row = |row: usize| {
                let (at, place) = ((start + row) * size, (start + row - first) * size);
                let here = dx.get(place..place + size).unwrap_or(&[]);
                (dy.range(at..at + size, here), x.range(at..at + size, here))
            };
            let product = |row: usize, column: usize, dy: T, x: T| {
                let normal = if INVERTED {
                    let x = x.lane().sub(given.bias[column].lane());
                    T::Lane::narrow(x.wide() / given.scale[column].lane().wide())
                } else {
                    x.lane().sub(shifts[row]).mul(factors[row])
                };
                dy.lane().mul(normal)
            };
            fold_columns::<T, T, T::Lane, Sum>(count, row, product, scales);
            if !biases.is_empty() {
                fold_columns::<T, T, T::Lane, Sum>(count, row, |_, _, dy, _| dy.lane(), biases);
            }
        }
        if let Some(dx) = &mut dx {
            for row in 0..count {
                let at = (start + row) * size;
                let place = (start + row - first) * size;
                let dx = &mut dx[place..place + size];
                let (shift, factor) = (shifts[row], factors[row]);
                let scale = &given.scale[..size];
                let bias = &given.bias[..size];
                let normal = |i: usize, x: T::Lane| {
                    if INVERTED {
                        T::Lane::narrow(x.sub(bias[i].lane()).wide() / scale[i].lane().wide())
                    } else {
                        x.sub(shift).mul(factor)
                    }
                };
                let range = at..at + size;
                let (a, b) = (dy.range(range.clone(), dx), x.range(range.clone(), dx));
                let gradient = |dy: T, scale: T| dy.lane().mul(scale.lane());
                // Where x̂ is worked out from the output, x̂ · scale is that output without the bias.
                let product = if INVERTED {
                    fold_triples::<T, T, T, T::Lane, Sum>(a, b, bias, |dy, y, bias| {
                        dy.lane().mul(y.lane().sub(bias.lane()))
                    })
                } else {
                    fold_triples::<T, T, T, T::Lane, Sum>(a, b, scale, |dy, x, scale| {
                        gradient(dy, scale).mul(x.lane().sub(shift).mul(factor))
                    })
                };
                let along = T::Lane::narrow(product / size as f64);
                let across = match given.op.centred {
                    true => fold_pairs::<T, T, T::Lane, Sum>(a, scale, gradient) / size as f64,
                    false => 0.0,
                };
                let across = T::Lane::narrow(across);
                map2(dx, (dy, x), range, |i, dy, x| {
                    let inner = dy.mul(scale[i].lane()).sub(across);
                    inner.sub(normal(i, x).mul(along)).mul(factor)
                });
            }
        }
        start += count;
    }
}

/// The most rows that are looked at together.
const MAX_FEW: usize = 64;
