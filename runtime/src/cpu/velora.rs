//! Compressed activations: every kernel reads or writes the large operand once, in order.

use super::Machine;
use super::directions::normalised;
use super::memory::Call;
use super::number::{Float, Lane, Number, with_float};
use super::reduce::Columns;
use super::rows::{
    RowsMut, Sum, dispatch, fold, fold_columns, fold_pairs, for_blocks, rows_per_block, scratch,
};
use crate::backend::StepContext;
use crate::ops::velora::{SubTokens, Velora};
use crate::tensor::TensorType;

/// Bytes of scratch that an operation needs.
pub fn workspace(
    op: &Velora,
    _machine: &Machine,
    _inputs: &[Option<&TensorType>],
    _outputs: &[Option<&TensorType>],
) -> usize {
    match op {
        // Sums of the features by block of rows, and of the entries of a sub-token.
        Velora::MeanDirection(op) => (sums_of_features(op) + op.size()) * 8,
        Velora::ScaleGrad { sizes, .. } => Columns::new(sizes.rows, sizes.features).partials() * 8,
        _ => 0,
    }
}

/// Executes an operation; the error says what is wrong with the data.
pub fn execute(op: &Velora, _context: &StepContext, call: Call<'_>) -> Result<(), String> {
    let Some(first) = &call.inputs[0] else {
        return Err("the first input is missing".to_owned());
    };
    with_float!(first.ty.data_type, T => typed::<T>(op, call))
}

fn typed<T: Number>(op: &Velora, mut call: Call<'_>) -> Result<(), String>
where
    T::Lane: Float,
{
    let ([Some(x), second, third, ..], [Some(y), ..]) = (&call.inputs, &mut call.outputs) else {
        return Err("an operand is missing".to_owned());
    };
    let (x, y) = (x.elements::<T>(), y.elements::<T>());
    let v = second.map_or(&[][..], |v| v.elements::<T>());
    match op {
        Velora::Compress(op) if op.places != 1 => {
            let block = rows_per_block(op.size() * op.places);
            let written = RowsMut::new(y, op.places);
            for_blocks(0..op.rows * op.groups, block, written, &|rows, z| {
                dispatch!(T, compress_channels::<T>, (op, x, v, rows, z.elements));
            });
        }
        Velora::Spread { sizes, scale } if sizes.places != 1 => {
            let block = rows_per_block(sizes.places);
            let written = RowsMut::new(y, sizes.places);
            for_blocks(
                0..sizes.rows * sizes.features,
                block,
                written,
                &|rows, y| {
                    let call = (sizes, *scale, x, v, rows, y.elements);
                    dispatch!(T, spread_channels::<T>, call);
                },
            );
        }
        Velora::ScaleGrad { sizes, scale } => {
            let Some(direction) = third else {
                return Err("the direction is missing".to_owned());
            };
            let direction = direction.elements::<T>();
            scale_grad(sizes, *scale, [x, v, direction], y, scratch(call.workspace));
        }
        Velora::Compress(op) => {
            let block = rows_per_block(op.features);
            for_blocks(0..op.rows, block, RowsMut::new(y, op.groups), &|rows, z| {
                let x = &x[rows.start * op.features..rows.end * op.features];
                // Sub-tokens that are shorter than a vector are added across sub-tokens.
                let short = if T::VECTOR { op.size() } else { 0 };
                match (short, op.features % op.size().max(1)) {
                    (1, _) => dispatch!(T, compress_short::<T, 1>, (op, x, v, z.elements)),
                    (2, 0) => dispatch!(T, compress_short::<T, 2>, (op, x, v, z.elements)),
                    (3, 0) => dispatch!(T, compress_short::<T, 3>, (op, x, v, z.elements)),
                    (4, 0) => dispatch!(T, compress_short::<T, 4>, (op, x, v, z.elements)),
                    (6, 0) => dispatch!(T, compress_short::<T, 6>, (op, x, v, z.elements)),
                    (8, 0) => dispatch!(T, compress_short::<T, 8>, (op, x, v, z.elements)),
                    (size, _) if size % 8 == 4 => {
                        dispatch!(T, compress::<T, 4>, (op, x, v, z.elements))
                    }
                    _ => dispatch!(T, compress::<T, 8>, (op, x, v, z.elements)),
                }
            });
        }
        Velora::MeanDirection(op) => direction(op, x, y, scratch(call.workspace)),
        Velora::Spread { sizes, scale } => {
            let block = rows_per_block(sizes.features);
            let written = RowsMut::new(y, sizes.features);
            for_blocks(0..sizes.rows, block, written, &|rows, y| {
                let p = &x[rows.start * sizes.groups..rows.end * sizes.groups];
                dispatch!(T, spread::<T>, (sizes, *scale, p, v, y.elements));
            });
        }
        Velora::Repeat { sizes, scale } => {
            let block = rows_per_block(sizes.rows);
            let written = RowsMut::new(y, sizes.rows);
            for_blocks(0..sizes.features, block, written, &|features, y| {
                dispatch!(T, repeat::<T>, (sizes, *scale, x, v, features, y.elements));
            });
        }
    }
    Ok(())
}

/// Sub-tokens of any size, of which `L` elements at a time are multiplied.
#[inline(always)]
fn compress<T: Number, const L: usize>((op, x, v, z): (&SubTokens, &[T], &[T], &mut [T])) {
    let size = op.size();
    if size == 0 {
        z.fill(T::narrow(T::Lane::default()));
        return;
    }
    if op.features == op.groups * size {
        return dots::<T, L>(x, v, z);
    }
    let rows = x
        .chunks_exact(op.features)
        .zip(z.chunks_exact_mut(op.groups));
    for (x, z) in rows {
        let (full, others) = z.split_at_mut(op.features / size);
        let (wholes, rest) = x.split_at(full.len() * size);
        dots::<T, L>(wholes, v, full);
        others.fill(T::narrow(T::Lane::default()));
        if !rest.is_empty() {
            dots::<T, L>(rest, &v[..rest.len()], &mut others[..1]);
        }
    }
}

/// Sub-tokens whose partial sums are kept on the stack together.
const TOGETHER: usize = 32;
/// Longer sub-tokens are summed in blocks of wider numbers, one by one.
const LONG: usize = 256;

/// The products of sub-tokens that lie side by side with a direction of their size.
///
/// The lanes of one are not added up before those of several others are there: then many additions are
/// side by side again.
#[inline(always)]
fn dots<T: Number, const L: usize>(x: &[T], v: &[T], z: &mut [T]) {
    let size = v.len();
    if size > LONG {
        for (x, z) in x.chunks_exact(size).zip(z) {
            let sum = fold_pairs::<T, T, T::Lane, Sum>(x, v, |x, v| x.lane().mul(v.lane()));
            *z = T::narrow(T::Lane::narrow(sum));
        }
        return;
    }
    let (wholes, rest) = v.as_chunks::<L>();
    let mut sums = [[T::Lane::default(); L]; TOGETHER];
    for (z, x) in z.chunks_mut(TOGETHER).zip(x.chunks(TOGETHER * size)) {
        for (sums, x) in sums.iter_mut().zip(x.chunks_exact(size)) {
            let mut lanes = [T::Lane::default(); L];
            let (x, x_rest) = x.as_chunks::<L>();
            for (x, v) in x.iter().zip(wholes) {
                for lane in 0..L {
                    lanes[lane] = lanes[lane].add(x[lane].lane().mul(v[lane].lane()));
                }
            }
            for (lane, (x, v)) in lanes.iter_mut().zip(x_rest.iter().zip(rest)) {
                *lane = lane.add(x.lane().mul(v.lane()));
            }
            *sums = lanes;
        }
        for (z, lanes) in z.iter_mut().zip(&sums) {
            let mut sum = lanes[0];
            for &lane in &lanes[1..] {
                sum = sum.add(lane);
            }
            *z = T::narrow(sum);
        }
    }
}

/// Sub-tokens of a few elements, none of them padded but empty ones at the end of a row.
#[inline(always)]
fn compress_short<T: Number, const M: usize>((op, x, v, z): (&SubTokens, &[T], &[T], &mut [T])) {
    let mut direction = [T::Lane::default(); M];
    for (entry, v) in direction.iter_mut().zip(v) {
        *entry = v.lane();
    }
    let dot = |x: &[T; M]| {
        let mut sum = x[0].lane().mul(direction[0]);
        for m in 1..M {
            sum = sum.add(x[m].lane().mul(direction[m]));
        }
        T::narrow(sum)
    };
    if op.features == op.groups * M {
        let (sub_tokens, _) = x.as_chunks::<M>();
        for (z, x) in z.iter_mut().zip(sub_tokens) {
            *z = dot(x);
        }
        return;
    }
    let rows = x
        .chunks_exact(op.features.max(1))
        .zip(z.chunks_exact_mut(op.groups));
    for (x, z) in rows {
        let (sub_tokens, _) = x.as_chunks::<M>();
        let (full, empty) = z.split_at_mut(sub_tokens.len());
        for (z, x) in full.iter_mut().zip(sub_tokens) {
            *z = dot(x);
        }
        empty.fill(T::narrow(T::Lane::default()));
    }
}

/// Sub-tokens across channels: rows `[batch · groups]` of z, each with an element for every place.
#[inline(always)]
fn compress_channels<T: Number>((op, x, v, rows, z): Channels<'_, T>) {
    let mut tile = [T::Lane::default(); TILE];
    for (row, z) in rows.zip(z.chunks_exact_mut(op.places.max(1))) {
        let (batch, group) = (row / op.groups, row % op.groups);
        let span = op.span(group);
        let x = &x[(batch * op.features + span.start) * op.places..][..span.len() * op.places];
        for first in (0..op.places).step_by(TILE) {
            let width = TILE.min(op.places - first);
            let sums = &mut tile[..width];
            sums.fill(T::Lane::default());
            for (x, v) in x.chunks_exact(op.places).zip(v) {
                let v = v.lane();
                for (sum, x) in sums.iter_mut().zip(&x[first..first + width]) {
                    *sum = sum.add(x.lane().mul(v));
                }
            }
            for (z, sum) in z[first..first + width].iter_mut().zip(sums) {
                *z = T::narrow(*sum);
            }
        }
    }
}

/// Places that are summed at once, on the stack.
const TILE: usize = 256;

/// Sizes, X, v, the numbers of the rows of z, and these rows.
type Channels<'a, T> = (
    &'a SubTokens,
    &'a [T],
    &'a [T],
    std::ops::Range<usize>,
    &'a mut [T],
);

/// The wide numbers in which the features of X are summed up.
fn sums_of_features(op: &SubTokens) -> usize {
    match op.places {
        1 => Columns::new(op.rows, op.features).partials(),
        _ => op.features,
    }
}

fn direction<T: Number>(op: &SubTokens, x: &[T], v: &mut [T], work: &mut [f64])
where
    T::Lane: Float,
{
    let size = op.size();
    let (partials, sums) = work.split_at_mut(sums_of_features(op));
    let features: &[f64] = match op.places {
        1 => Columns::new(op.rows, op.features).fold::<T, Sum>(x, partials),
        _ => {
            let block = rows_per_block(op.rows * op.places);
            let written = RowsMut::new(&mut *partials, 1);
            for_blocks(0..op.features, block, written, &|features, sums| {
                dispatch!(T, sum_channels::<T>, (op, x, features, sums.elements));
            });
            partials
        }
    };
    let sums = &mut sums[..size];
    sums.fill(0.0);
    for sub_token in features.chunks(size.max(1)) {
        for (sum, feature) in sums.iter_mut().zip(sub_token) {
            *sum += feature;
        }
    }
    // The norm of the mean is that of the sum over the number of sub-tokens, which falls out.
    let even = 1.0 / (size as f64).sqrt();
    normalised(sums.iter().copied(), v, |_| even);
}

/// The sums over rows and places of some channels.
#[inline(always)]
fn sum_channels<T: Number>(
    (op, x, features, sums): (&SubTokens, &[T], std::ops::Range<usize>, &mut [f64]),
) where
    T::Lane: Float,
{
    for (feature, sum) in features.zip(sums) {
        *sum = 0.0;
        for row in 0..op.rows {
            *sum += fold::<T, Sum>(&x[(row * op.features + feature) * op.places..][..op.places]);
        }
    }
}

/// `dγ`, from z, dY and v.
fn scale_grad<T: Number>(
    op: &SubTokens,
    scale: f32,
    [z, dy, v]: [&[T]; 3],
    y: &mut [T],
    work: &mut [f64],
) where
    T::Lane: Float,
{
    let columns = Columns::new(op.rows, op.features);
    let partials = &mut work[..columns.partials()];
    partials.fill(0.0);
    let written = RowsMut::new(&mut *partials, op.features);
    for_blocks(0..columns.blocks(), 1, written, &|blocks, sums| {
        let start = blocks.start * columns.block;
        let rows = start..op.rows.min(start + columns.block);
        dispatch!(T, weighted_columns::<T>, (op, z, dy, rows, sums.elements));
    });
    let sums = columns.join::<T::Lane, Sum>(partials);
    let scale = T::Lane::from_f64(scale.into());
    let size = op.size().max(1);
    for (y, sums) in y.chunks_mut(size).zip(sums.chunks(size)) {
        for ((y, &sum), v) in y.iter_mut().zip(sums).zip(v) {
            *y = T::narrow(v.lane().mul(scale).mul(T::Lane::narrow(sum)));
        }
    }
}

/// Adds up rows of dY, the part of each sub-token multiplied by its number in z.
#[inline(always)]
fn weighted_columns<T: Number>(
    (op, z, dy, rows, sums): (&SubTokens, &[T], &[T], std::ops::Range<usize>, &mut [f64]),
) where
    T::Lane: Float,
{
    for group in 0..op.groups {
        let span = op.span(group);
        let row = |r: usize| {
            let dy = &dy[(rows.start + r) * op.features..][span.clone()];
            (dy, dy)
        };
        let weighted = |r: usize, _, dy: T, _| {
            z[(rows.start + r) * op.groups + group]
                .lane()
                .mul(dy.lane())
        };
        fold_columns::<T, T, T::Lane, Sum>(rows.len(), row, weighted, &mut sums[span.clone()]);
    }
}

#[inline(always)]
fn spread<T: Number>((op, scale, p, v, y): (&SubTokens, f32, &[T], &[T], &mut [T]))
where
    T::Lane: Float,
{
    let scale = T::Lane::from_f64(scale.into());
    let size = op.size();
    if size == 0 {
        return;
    }
    let rows = y.chunks_exact_mut(op.features);
    for (y, p) in rows.zip(p.chunks_exact(op.groups)) {
        for (y, p) in y.chunks_mut(size).zip(p) {
            let p = p.lane();
            for (y, v) in y.iter_mut().zip(v) {
                *y = T::narrow(v.lane().mul(scale).mul(p));
            }
        }
    }
}

/// Multiples of a direction across channels: rows `[batch · features]`, each with an element for every place.
#[expect(
    clippy::type_complexity,
    reason = "what is dispatched by instruction set takes its arguments as one tuple"
)]
#[inline(always)]
fn spread_channels<T: Number>(
    (op, scale, p, v, rows, y): (
        &SubTokens,
        f32,
        &[T],
        &[T],
        std::ops::Range<usize>,
        &mut [T],
    ),
) where
    T::Lane: Float,
{
    let scale = T::Lane::from_f64(scale.into());
    let (size, places) = (op.size().max(1), op.places);
    for (row, y) in rows.zip(y.chunks_exact_mut(places.max(1))) {
        let (batch, feature) = (row / op.features, row % op.features);
        let factor = v[feature % size].lane().mul(scale);
        let p = &p[(batch * op.groups + feature / size) * places..][..places];
        for (y, p) in y.iter_mut().zip(p) {
            *y = T::narrow(factor.mul(p.lane()));
        }
    }
}

#[expect(
    clippy::type_complexity,
    reason = "what is dispatched by instruction set takes its arguments as one tuple"
)]
#[inline(always)]
fn repeat<T: Number>(
    (op, scale, p, v, features, y): (
        &SubTokens,
        f32,
        &[T],
        &[T],
        std::ops::Range<usize>,
        &mut [T],
    ),
) where
    T::Lane: Float,
{
    let scale = T::Lane::from_f64(scale.into());
    let (size, width) = (op.size(), op.rows);
    if size == 0 || width == 0 {
        return;
    }
    for (feature, y) in features.zip(y.chunks_exact_mut(width)) {
        let (group, entry) = (feature / size, feature % size);
        let factor = v[entry].lane().mul(scale);
        let p = &p[group * width..(group + 1) * width];
        for (y, p) in y.iter_mut().zip(p) {
            *y = T::narrow(factor.mul(p.lane()));
        }
    }
}
