//! Batch normalisation and its gradient, channel by channel.

use crate::cpu::memory::Call;
use crate::cpu::number::{Float, Lane, Number};
use crate::cpu::rows::{RowsMut, Sum, dispatch, fold, fold_pairs, for_blocks, rows_per_block};
use crate::ops::normalize::Batch;

/// Statistics of channels that are kept on the stack at once.
const CHANNELS: usize = 64;

/// Inputs: X, scale, bias, mean, variance; outputs: Y, running mean, running variance, mean and inverse
/// deviation of the batch.
pub(super) fn forward<T: Number>(op: &Batch, call: &mut Call<'_>) -> Result<(), String>
where
    T::Lane: Float,
{
    let [
        Some(x),
        Some(scale),
        Some(bias),
        Some(mean),
        Some(variance),
        ..,
    ] = &call.inputs
    else {
        return Err("an operand is missing".to_owned());
    };
    let [x, scale, bias, mean, variance] =
        [x, scale, bias, mean, variance].map(|input| input.elements::<T>());
    let [
        y,
        running_mean,
        running_variance,
        saved_mean,
        saved_inverse,
        ..,
    ] = &mut call.outputs;
    let Some(y) = y else {
        return Err("the output is missing".to_owned());
    };
    let y = y.elements::<T>();
    let (spatial, count) = (op.spatial, op.batch * op.spatial);
    let mut first = 0;
    while first < op.channels {
        let some = CHANNELS.min(op.channels - first);
        let mut statistics = [(0.0, 0.0); CHANNELS];
        let statistics = &mut statistics[..some];
        for (c, of_channel) in statistics.iter_mut().enumerate() {
            let place = first + c;
            *of_channel = (mean[place].lane().wide(), variance[place].lane().wide());
        }
        if op.training {
            for_blocks(
                0..some,
                rows_per_block(count),
                RowsMut::new(&mut *statistics, 1),
                &|range, statistics| {
                    for (c, of_channel) in range.zip(statistics.elements) {
                        *of_channel = dispatch!(T, moments::<T>, (op, x, first + c));
                    }
                },
            );
        }
        for (c, &(average, spread)) in statistics.iter().enumerate() {
            let place = first + c;
            let keep = f64::from(op.momentum);
            let corrected = match op.unbiased && count > 1 {
                true => spread * count as f64 / (count - 1) as f64,
                false => spread,
            };
            let mixed = |old: T, new: f64| old.lane().wide() * keep + new * (1.0 - keep);
            let inverse = 1.0 / (spread + f64::from(op.epsilon)).sqrt();
            let numbers = [
                (&mut *running_mean, mixed(mean[place], average)),
                (&mut *running_variance, mixed(variance[place], corrected)),
                (&mut *saved_mean, average),
                (&mut *saved_inverse, inverse),
            ];
            for (output, number) in numbers {
                if let Some(output) = output {
                    output.elements::<T>()[place] = T::narrow(T::Lane::narrow(number));
                }
            }
        }
        let statistics = &*statistics;
        for_blocks(
            0..op.batch * op.channels,
            rows_per_block(spatial),
            RowsMut::new(&mut *y, spatial),
            &|range, y| {
                for (plane, y) in range.zip(y.elements.chunks_exact_mut(spatial.max(1))) {
                    let place = plane % op.channels;
                    let Some(&(average, spread)) =
                        place.checked_sub(first).and_then(|c| statistics.get(c))
                    else {
                        continue;
                    };
                    let factor =
                        scale[place].lane().wide() / (spread + f64::from(op.epsilon)).sqrt();
                    let x = &x[plane * spatial..(plane + 1) * spatial];
                    dispatch!(T, affine::<T>, (x, y, average, factor, bias[place]));
                }
            },
        );
        first += some;
    }
    Ok(())
}

/// The planes of a channel.
#[inline(always)]
fn planes<'a, T>(op: &Batch, x: &'a [T], channel: usize) -> impl Iterator<Item = &'a [T]> {
    let (spatial, channels) = (op.spatial, op.channels);
    (0..op.batch).map(move |n| {
        let start = (n * channels + channel) * spatial;
        &x[start..start + spatial]
    })
}

/// Mean and variance of a channel.
#[inline(always)]
fn moments<T: Number>((op, x, channel): (&Batch, &[T], usize)) -> (f64, f64)
where
    T::Lane: Float,
{
    let count = (op.batch * op.spatial) as f64;
    let mut sum = 0.0;
    for plane in planes(op, x, channel) {
        sum += fold::<T, Sum>(plane);
    }
    let average = sum / count;
    let shift = T::Lane::narrow(average);
    let mut squares = 0.0;
    for plane in planes(op, x, channel) {
        squares += fold_pairs::<T, T, T::Lane, Sum>(plane, plane, |x, _| {
            let x = x.lane().sub(shift);
            x.mul(x)
        });
    }
    (average, squares / count)
}

#[inline(always)]
fn affine<T: Number>((x, y, average, factor, bias): (&[T], &mut [T], f64, f64, T))
where
    T::Lane: Float,
{
    let (shift, factor, bias) = (
        T::Lane::narrow(average),
        T::Lane::narrow(factor),
        bias.lane(),
    );
    for (y, x) in y.iter_mut().zip(x) {
        *y = T::narrow(x.lane().sub(shift).mul(factor).add(bias));
    }
}

/// Inputs: dY, X, scale, mean, inverse deviation; outputs: dX, dScale, dBias.
///
/// With x̂ the normalised input: dScale = Σ dY x̂, dBias = Σ dY, and
/// dX = scale · inverse (dY - dBias / count - x̂ dScale / count).
pub(super) fn grad<T: Number>(op: &Batch, call: &mut Call<'_>) -> Result<(), String>
where
    T::Lane: Float,
{
    let [
        Some(dy),
        Some(x),
        Some(scale),
        Some(mean),
        Some(inverse),
        ..,
    ] = &call.inputs
    else {
        return Err("an operand is missing".to_owned());
    };
    let [dy, x, scale, mean, inverse] =
        [dy, x, scale, mean, inverse].map(|input| input.elements::<T>());
    let [dx, dscale, dbias, ..] = &mut call.outputs;
    let (spatial, count) = (op.spatial, op.batch * op.spatial);
    let mut first = 0;
    while first < op.channels {
        let some = CHANNELS.min(op.channels - first);
        let mut sums = [(0.0, 0.0); CHANNELS];
        let sums = &mut sums[..some];
        for_blocks(
            0..some,
            rows_per_block(count),
            RowsMut::new(&mut *sums, 1),
            &|range, sums| {
                for (c, of_channel) in range.zip(sums.elements) {
                    let place = first + c;
                    let of = (mean[place].lane(), inverse[place].lane());
                    *of_channel = dispatch!(T, channel_sums::<T>, (op, dy, x, place, of));
                }
            },
        );
        for (c, &(of_scale, of_bias)) in sums.iter().enumerate() {
            for (output, number) in [(&mut *dscale, of_scale), (&mut *dbias, of_bias)] {
                if let Some(output) = output {
                    output.elements::<T>()[first + c] = T::narrow(T::Lane::narrow(number));
                }
            }
        }
        let sums = &*sums;
        if let Some(dx) = dx {
            for_blocks(
                0..op.batch * op.channels,
                rows_per_block(spatial),
                RowsMut::new(dx.elements::<T>(), spatial),
                &|range, dx| {
                    for (plane, dx) in range.zip(dx.elements.chunks_exact_mut(spatial.max(1))) {
                        let place = plane % op.channels;
                        let Some(&sums) = place.checked_sub(first).and_then(|c| sums.get(c)) else {
                            continue;
                        };
                        let at = plane * spatial..(plane + 1) * spatial;
                        let channel = Channel {
                            mean: mean[place].lane().wide(),
                            inverse: inverse[place].lane().wide(),
                            scale: scale[place].lane().wide(),
                            along: sums.0 / count as f64,
                            across: sums.1 / count as f64,
                        };
                        dispatch!(T, grad_plane::<T>, (&dy[at.clone()], &x[at], dx, channel),);
                    }
                },
            );
        }
        first += some;
    }
    Ok(())
}

/// Numbers of a channel.
struct Channel {
    mean: f64,
    inverse: f64,
    scale: f64,
    along: f64,
    across: f64,
}

#[expect(
    clippy::type_complexity,
    reason = "what is dispatched by instruction set takes its arguments as one tuple"
)]
#[inline(always)]
fn channel_sums<T: Number>(
    (op, dy, x, channel, (mean, inverse)): (&Batch, &[T], &[T], usize, (T::Lane, T::Lane)),
) -> (f64, f64)
where
    T::Lane: Float,
{
    let mut sums = (0.0, 0.0);
    for (dy, x) in planes(op, dy, channel).zip(planes(op, x, channel)) {
        sums.0 += fold_pairs::<T, T, T::Lane, Sum>(dy, x, |dy, x| {
            dy.lane().mul(x.lane().sub(mean).mul(inverse))
        });
        sums.1 += fold::<T, Sum>(dy);
    }
    sums
}

#[inline(always)]
fn grad_plane<T: Number>((dy, x, dx, channel): (&[T], &[T], &mut [T], Channel))
where
    T::Lane: Float,
{
    let narrow = T::Lane::narrow;
    let (mean, across) = (narrow(channel.mean), narrow(channel.across));
    let inverse = narrow(channel.inverse);
    let (along, factor) = (
        narrow(channel.along),
        narrow(channel.scale * channel.inverse),
    );
    for ((dx, dy), x) in dx.iter_mut().zip(dy).zip(x) {
        let normal = x.lane().sub(mean).mul(inverse);
        *dx = T::narrow(dy.lane().sub(across).sub(normal.mul(along)).mul(factor));
    }
}
