//! Projections on several directions, moving directions, stored projections: the large operand is read or
//! written once, in order.

use super::Machine;
use super::memory::Call;
use super::number::{Float, Lane, Number, with_float};
use super::reduce::Columns;
use super::rows::{RowsMut, Sum, dispatch, fold_pairs, for_blocks, rows_per_block, scratch};
use crate::backend::StepContext;
use crate::ops::directions::{Directions, Sets};
use crate::ops::velora::SubTokens;
use crate::tensor::TensorType;

/// Bytes of scratch that an operation needs.
pub fn workspace(
    op: &Directions,
    _machine: &Machine,
    _inputs: &[Option<&TensorType>],
    _outputs: &[Option<&TensorType>],
) -> usize {
    match op {
        // Sums of the features, by block of rows.
        Directions::Means(op) => Columns::new(op.rows, op.features).partials() * 8,
        _ => 0,
    }
}

/// Executes an operation; the error says what is wrong with the data.
pub fn execute(op: &Directions, _context: &StepContext, call: Call<'_>) -> Result<(), String> {
    let ty = match op {
        // The other operand is integers.
        Directions::Dequantize { .. } => call.outputs[0].as_ref().map(|o| o.ty),
        _ => call.inputs[0].as_ref().map(|i| i.ty),
    };
    let Some(ty) = ty else {
        return Err("the first operand is missing".to_owned());
    };
    with_float!(ty.data_type, T => typed::<T>(op, call))
}

fn typed<T: Number>(op: &Directions, mut call: Call<'_>) -> Result<(), String>
where
    T::Lane: Float,
{
    let ([Some(x), second, ..], [Some(y), other, ..]) = (&call.inputs, &mut call.outputs) else {
        return Err("an operand is missing".to_owned());
    };
    let second = second.map_or(&[][..], |v| v.elements::<T>());
    match op {
        Directions::Project(sets) => {
            let (x, y) = (x.elements::<T>(), y.elements::<T>());
            let features = sets.sizes.features;
            let written = RowsMut::new(y, sets.width());
            for_blocks(
                0..sets.sizes.rows,
                rows_per_block(features),
                written,
                &|rows, z| {
                    let x = &x[rows.start * features..rows.end * features];
                    dispatch!(T, project::<T>, (sets, x, second, z.elements));
                },
            );
        }
        Directions::Spread { sets, scale } => {
            let (p, y) = (x.elements::<T>(), y.elements::<T>());
            let SubTokens { rows, features, .. } = sets.sizes;
            let written = RowsMut::new(y, features);
            for_blocks(0..rows, rows_per_block(features), written, &|rows, y| {
                let p = &p[rows.start * sets.width()..rows.end * sets.width()];
                dispatch!(T, spread::<T>, (sets, *scale, p, second, y.elements));
            });
        }
        Directions::Repeat { sets, scale } => {
            let (p, y) = (x.elements::<T>(), y.elements::<T>());
            let SubTokens { rows, features, .. } = sets.sizes;
            let written = RowsMut::new(y, rows);
            for_blocks(
                0..features,
                rows_per_block(rows),
                written,
                &|features, y| {
                    let place = (features.start, y.elements);
                    dispatch!(T, repeat::<T>, (sets, *scale, p, second, place));
                },
            );
        }
        Directions::Means(sizes) => {
            let (x, v) = (x.elements::<T>(), y.elements::<T>());
            means(sizes, x, v, scratch(call.workspace));
        }
        Directions::Blend { size, decay } => {
            let (v, next) = (x.elements::<T>(), y.elements::<T>());
            let vectors = v.chunks(*size).zip(second.chunks(*size));
            for ((v, mean), next) in vectors.zip(next.chunks_mut(*size)) {
                blend(f64::from(*decay), v, mean, next);
            }
        }
        Directions::Quantize { width } => {
            let z = x.elements::<T>();
            let Some(scales) = other else {
                return Err("the scales are missing".to_owned());
            };
            let written = (
                RowsMut::new(y.elements::<i8>(), *width),
                RowsMut::new(scales.elements::<T>(), 1),
            );
            let rows = z.len() / width;
            for_blocks(0..rows, rows_per_block(*width), written, &|rows, (q, s)| {
                let z = &z[rows.start * width..rows.end * width];
                let parts = z.chunks(*width).zip(q.elements.chunks_mut(*width));
                for ((z, q), scale) in parts.zip(s.elements) {
                    quantize(z, q, scale);
                }
            });
        }
        Directions::Dequantize { width } => {
            let (q, z) = (x.elements::<i8>(), y.elements::<T>());
            let rows = z.chunks_mut(*width).zip(q.chunks(*width));
            for ((z, q), scale) in rows.zip(second) {
                for (z, q) in z.iter_mut().zip(q) {
                    *z = T::narrow(T::Lane::from_f64((*q).into()).mul(scale.lane()));
                }
            }
        }
    }
    Ok(())
}

#[inline(always)]
fn project<T: Number>((sets, x, v, z): (&Sets, &[T], &[T], &mut [T])) {
    let sizes = &sets.sizes;
    if sizes.features == 0 {
        z.fill(T::narrow(T::Lane::default()));
        return;
    }
    let rows = x.chunks_exact(sizes.features);
    for (x, z) in rows.zip(z.chunks_exact_mut(sets.width().max(1))) {
        for (group, z) in z.chunks_exact_mut(sets.rank.max(1)).enumerate() {
            let x = &x[sizes.span(group)];
            for (k, z) in z.iter_mut().enumerate() {
                let v = &v[sets.direction(group, k)][..x.len()];
                let sum = fold_pairs::<T, T, T::Lane, Sum>(x, v, |x, v| x.lane().mul(v.lane()));
                *z = T::narrow(T::Lane::narrow(sum));
            }
        }
    }
}

#[inline(always)]
fn spread<T: Number>((sets, scale, p, v, y): (&Sets, f32, &[T], &[T], &mut [T]))
where
    T::Lane: Float,
{
    let scale = T::Lane::from_f64(scale.into());
    let sizes = &sets.sizes;
    let rows = y.chunks_exact_mut(sizes.features.max(1));
    for (y, p) in rows.zip(p.chunks_exact(sets.width().max(1))) {
        for (group, p) in p.chunks_exact(sets.rank.max(1)).enumerate() {
            let y = &mut y[sizes.span(group)];
            for (m, y) in y.iter_mut().enumerate() {
                let mut sum = T::Lane::default();
                for (k, p) in p.iter().enumerate() {
                    let v = v[sets.direction(group, k)][m].lane();
                    sum = sum.add(v.mul(scale).mul(p.lane()));
                }
                *y = T::narrow(sum);
            }
        }
    }
}

#[expect(
    clippy::type_complexity,
    reason = "what is dispatched by instruction set takes its arguments as one tuple"
)]
#[inline(always)]
fn repeat<T: Number>((sets, scale, p, v, (first, y)): (&Sets, f32, &[T], &[T], (usize, &mut [T])))
where
    T::Lane: Float,
{
    let scale = T::Lane::from_f64(scale.into());
    let (size, width) = (sets.sizes.size(), sets.sizes.rows);
    if size == 0 || width == 0 {
        return;
    }
    for (row, y) in y.chunks_exact_mut(width).enumerate() {
        let (group, m) = ((first + row) / size, (first + row) % size);
        for k in 0..sets.rank {
            let factor = v[sets.direction(group, k)][m].lane().mul(scale);
            let p = &p[(group * sets.rank + k) * width..][..width];
            for (y, p) in y.iter_mut().zip(p) {
                let term = factor.mul(p.lane());
                *y = T::narrow(if k == 0 { term } else { y.lane().add(term) });
            }
        }
    }
}

fn means<T: Number>(op: &SubTokens, x: &[T], v: &mut [T], partials: &mut [f64])
where
    T::Lane: Float,
{
    let size = op.size().max(1);
    let features = Columns::new(op.rows, op.features).fold::<T, Sum>(x, partials);
    for (group, v) in v.chunks_mut(size).enumerate() {
        let sums = &features[op.span(group)];
        normalised(sums.iter().copied(), v, |_| 1.0 / (size as f64).sqrt());
    }
}

/// `decay · v + (1 - decay) · mean`, normalised.
fn blend<T: Number>(decay: f64, v: &[T], mean: &[T], next: &mut [T])
where
    T::Lane: Float,
{
    let share = 1.0 - decay;
    let sum = |(v, mean): (&T, &T)| decay * v.lane().to_f64() + share * mean.lane().to_f64();
    let even = |place: usize| mean.get(place).map_or(0.0, |e| e.lane().to_f64());
    normalised(v.iter().zip(mean).map(sum), next, even);
}

/// Writes a vector of length 1; entries that the vector does not have are 0. `otherwise` gives the
/// entries where its norm is below the least normal number.
pub(super) fn normalised<T: Number>(
    vector: impl Iterator<Item = f64> + Clone,
    to: &mut [T],
    otherwise: impl Fn(usize) -> f64,
) where
    T::Lane: Float,
{
    let norm = vector.clone().map(|e| e * e).sum::<f64>().sqrt();
    let mut entries = vector;
    for (place, to) in to.iter_mut().enumerate() {
        let entry = entries.next().unwrap_or(0.0);
        let entry = match norm < f64::from(f32::MIN_POSITIVE) {
            true => otherwise(place),
            false => entry / norm,
        };
        *to = T::narrow(T::Lane::narrow(entry));
    }
}

/// One row: the largest magnitude becomes 127.
fn quantize<T: Number>(z: &[T], q: &mut [i8], scale: &mut T)
where
    T::Lane: Float,
{
    let largest = { z.iter() }.fold(0.0, |m: f64, z| m.max(z.lane().abs().to_f64()));
    // As the operator's body has it: a row of zeros has no scale, and any will do.
    let step = T::Lane::from_f64((largest / 127.0).max(f32::MIN_POSITIVE.into()));
    *scale = T::narrow(step);
    let step = scale.lane().to_f64();
    for (q, z) in q.iter_mut().zip(z) {
        // Rounding the scale may make a part a little more than 127; the conversion saturates.
        *q = (z.lane().to_f64() / step).round_ties_even() as i8;
    }
}
