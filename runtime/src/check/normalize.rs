//! Softmax and normalisations: their formulas in balls.

use super::ball::{Ball, Format, Sum};
use super::bounds::{Allowed, Case, same};
use super::functions::{INVERSE_ROOT, unary};
use crate::ops::elementwise::Unary;
use crate::ops::normalize::{Batch, Layer, Normalize, Softmax, SoftmaxKind};

/// What the outputs may be.
///
/// # Errors
/// Where an operand is missing.
pub(super) fn allowed(case: &Case<'_>, op: &Normalize) -> Result<Vec<Allowed>, String> {
    let outputs = match op {
        // The place of the greatest score.
        Normalize::Softmax(softmax) if softmax.kind == SoftmaxKind::Hard => {
            return Ok(same(case));
        }
        Normalize::Softmax(softmax) => vec![self::softmax(case, softmax)?],
        Normalize::SoftmaxGrad(softmax) => vec![softmax_grad(case, softmax)?],
        Normalize::Layer(layer) => self::layer(case, layer)?,
        Normalize::LayerGrad(layer) => layer_grad(case, layer)?,
        Normalize::Batch(batch) => self::batch(case, batch)?,
        Normalize::BatchGrad(batch) => batch_grad(case, batch)?,
    };
    Ok(stored(case, outputs))
}

/// Rounds every output to its type.
pub(super) fn stored(case: &Case<'_>, outputs: Vec<Vec<Ball>>) -> Vec<Allowed> {
    let format = case.computing();
    let each = outputs.into_iter().enumerate().map(|(place, balls)| {
        Allowed::Near(match case.format(place) {
            Some(stored) if stored.unit > format.unit => {
                balls.into_iter().map(|b| b.rounded(stored)).collect()
            }
            _ => balls,
        })
    });
    each.collect()
}

/// The greatest number, or no number where there is one.
fn greatest(numbers: impl Iterator<Item = f64>) -> f64 {
    numbers.fold(f64::NEG_INFINITY, |most, x| {
        if x > most || x.is_nan() { x } else { most }
    })
}

/// Scores less the greatest one, and the sum of their exponentials.
pub(super) fn shifted(scores: &[f64], format: Format) -> (Vec<Ball>, Ball) {
    let shift = greatest(scores.iter().copied());
    let shifted: Vec<_> = (scores.iter())
        .map(|&x| Ball::exact(x - shift).rounded(format))
        .collect();
    let powers = shifted.iter().map(|&x| unary(Unary::Exp, x, format));
    let sum = Sum::of(powers, format).rounded(format);
    (shifted, sum)
}

/// Calls `work` for the places of every column of [outer, size, inner].
pub(super) fn columns(
    (outer, size, inner): (usize, usize, usize),
    mut work: impl FnMut(&mut dyn Iterator<Item = usize>),
) {
    for block in 0..outer {
        for column in 0..inner {
            let first = block * size * inner + column;
            work(&mut (0..size).map(|row| first + row * inner));
        }
    }
}

/// e^(x - m) / Σ e^(x - m), as a product with the inverse or a quotient; or x - m - log Σ e^(x - m).
fn softmax(case: &Case<'_>, op: &Softmax) -> Result<Vec<Ball>, String> {
    let x = case.input(0)?.to_f64();
    let format = case.computing();
    let mut y = vec![Ball::ZERO; x.len()];
    columns((op.outer, op.size, op.inner), |places| {
        let places: Vec<_> = places.collect();
        let scores: Vec<_> = places.iter().map(|&place| x[place]).collect();
        let (shifted, sum) = self::shifted(&scores, format);
        let log = unary(Unary::Log, sum, format);
        for (&place, &shifted) in places.iter().zip(&shifted) {
            y[place] = match op.kind {
                SoftmaxKind::Log => shifted.minus(log).rounded(format),
                _ => {
                    let power = unary(Unary::Exp, shifted, format);
                    power.over(sum).rounded_by(2.0, format)
                }
            };
        }
    });
    Ok(y)
}

/// Y (dY - Σ dY Y), or for logarithms dY - e^Y Σ dY.
fn softmax_grad(case: &Case<'_>, op: &Softmax) -> Result<Vec<Ball>, String> {
    let (dy, y) = (case.input(0)?.to_f64(), case.input(1)?.to_f64());
    let format = case.computing();
    let mut dx = vec![Ball::ZERO; y.len()];
    let log = op.kind == SoftmaxKind::Log;
    columns((op.outer, op.size, op.inner), |places| {
        let places: Vec<_> = places.collect();
        let terms = places.iter().map(|&place| match log {
            true => Ball::exact(dy[place]),
            false => Ball::exact(dy[place] * y[place]).rounded(format),
        });
        let sum = Sum::of(terms, format).rounded(format);
        for place in places {
            let (dy, y) = (Ball::exact(dy[place]), Ball::exact(y[place]));
            dx[place] = if log {
                let power = unary(Unary::Exp, y, format);
                dy.minus(power.times(sum).rounded(format)).rounded(format)
            } else {
                dy.minus(sum).rounded(format).times(y).rounded(format)
            };
        }
    });
    Ok(dx)
}

/// Mean and variance of numbers, or 0 and the mean square.
///
/// A mean m' = m + δ gives the variance Σ (x - m')² / n = Σ (x - m)² / n + δ²: the error of the mean has no
/// part of first order. Differences and squares have three roundings, the sum n - 1, the quotient one.
fn moments(numbers: &[f64], centred: bool, format: Format) -> (Ball, Ball) {
    let count = (numbers.len() as f64).max(1.0);
    let mean = match centred {
        true => {
            let sum = Sum::of(numbers.iter().map(|&x| Ball::exact(x)), format);
            sum.over(Ball::exact(count)).rounded_by(2.0, format)
        }
        false => Ball::ZERO,
    };
    let squares = numbers.iter().map(|x| (x - mean.mid) * (x - mean.mid));
    let variance = squares.sum::<f64>() / count;
    let rad = format.gamma(count + 4.0) * variance + mean.rad * mean.rad + count * format.tiny;
    (mean, Ball::around(variance, rad))
}

/// 1 / √(variance + ε).
fn inverse_deviation(variance: Ball, epsilon: f32, format: Format) -> Ball {
    let shifted = variance.plus(Ball::exact(epsilon.into())).rounded(format);
    Ball::exact(1.0)
        .over(shifted.root())
        .rounded_by(INVERSE_ROOT, format)
}

/// (x - mean) · inverse deviation.
fn normal(x: f64, mean: Ball, inverse: Ball, format: Format) -> Ball {
    let centred = Ball::exact(x).minus(mean).rounded(format);
    centred.times(inverse).rounded(format)
}

/// x̂ · scale + bias of every row.
fn layer(case: &Case<'_>, op: &Layer) -> Result<Vec<Vec<Ball>>, String> {
    let (x, scale) = (case.input(0)?.to_f64(), case.input(1)?.to_f64());
    let bias = case.numbers(2);
    let format = case.computing();
    let (mut y, mut means, mut inverses) = (Vec::with_capacity(x.len()), Vec::new(), Vec::new());
    for row in x.chunks(op.size.max(1)) {
        let (mean, variance) = moments(row, op.centred, format);
        let inverse = inverse_deviation(variance, op.epsilon, format);
        for (place, &x) in row.iter().enumerate() {
            let normal = normal(x, mean, inverse, format);
            let scaled = normal.times(Ball::exact(scale[place])).rounded(format);
            y.push(match &bias {
                Some(bias) => scaled.plus(Ball::exact(bias[place])).rounded(format),
                None => scaled,
            });
        }
        means.push(mean);
        inverses.push(inverse);
    }
    Ok(vec![y, means, inverses])
}

/// With x̂ and g = dY · scale: dX = inverse (g - mean(g) - x̂ mean(g x̂)), dScale = Σ dY x̂, dBias = Σ dY.
fn layer_grad(case: &Case<'_>, op: &Layer) -> Result<Vec<Vec<Ball>>, String> {
    let [dy, x, scale] = [case.input(0)?, case.input(1)?, case.input(2)?].map(|i| i.to_f64());
    let fourth = case.numbers(3);
    let inverse = case.input(4)?.to_f64();
    let format = case.computing();
    let size = op.size.max(1);
    let count = Ball::exact(size as f64);
    let mut dx = Vec::with_capacity(x.len());
    let mut scales = vec![Sum::default(); op.size];
    let mut biases = scales.clone();
    for (row, (dy, x)) in dy.chunks(size).zip(x.chunks(size)).enumerate() {
        // A mean in more bits is rounded first.
        let given = |of: &[f64]| Ball::exact(of[row]);
        let inverse = given(&inverse);
        let normals: Vec<_> = (x.iter().enumerate())
            .map(|(place, &x)| match (op.from_output, &fourth) {
                (true, bias) => {
                    let bias = bias.as_ref().map_or(0.0, |bias| bias[place]);
                    let shifted = Ball::exact(x - bias).rounded(format);
                    shifted.over(Ball::exact(scale[place])).rounded(format)
                }
                (false, Some(mean)) => normal(x, given(mean), inverse, format),
                (false, None) => normal(x, Ball::ZERO, inverse, format),
            })
            .collect();
        let slopes: Vec<_> = (dy.iter().zip(&scale))
            .map(|(dy, scale)| Ball::exact(dy * scale).rounded(format))
            .collect();
        let mean = |terms: &mut dyn Iterator<Item = Ball>| {
            Sum::of(terms, format).over(count).rounded_by(2.0, format)
        };
        let across = match op.centred {
            true => mean(&mut slopes.iter().copied()),
            false => Ball::ZERO,
        };
        let products = slopes.iter().zip(&normals);
        let along = mean(&mut products.map(|(g, x)| g.times(*x).rounded(format)));
        for (place, (&slope, &normal)) in slopes.iter().zip(&normals).enumerate() {
            let inner = slope.minus(across).rounded(format);
            let part = normal.times(along).rounded(format);
            dx.push(
                inner
                    .minus(part)
                    .rounded(format)
                    .times(inverse)
                    .rounded(format),
            );
            let dy = Ball::exact(dy[place]);
            scales[place].add(dy.times(normal).rounded(format));
            biases[place].add(dy);
        }
    }
    let total = |sum: &Sum| sum.total(format).rounded(format);
    let (scales, biases) = (scales.iter().map(total), biases.iter().map(total));
    Ok(vec![dx, scales.collect(), biases.collect()])
}

/// The places of a channel's elements in [batch, channels, spatial].
fn channel(op: &Batch, channel: usize) -> impl Iterator<Item = usize> + Clone {
    let (channels, spatial) = (op.channels, op.spatial);
    (0..op.batch).flat_map(move |n| {
        let first = (n * channels + channel) * spatial;
        first..first + spatial
    })
}

/// (x - mean) · (scale / √(variance + ε)) + bias of every channel, and new running statistics.
fn batch(case: &Case<'_>, op: &Batch) -> Result<Vec<Vec<Ball>>, String> {
    let x = case.input(0)?.to_f64();
    let [scale, bias, mean, variance] = [1, 2, 3, 4].map(|place| case.numbers(place));
    let (Some(scale), Some(bias), Some(old_mean), Some(old_variance)) =
        (scale, bias, mean, variance)
    else {
        return Err("an operand is missing".to_owned());
    };
    let format = case.computing();
    let count = (op.batch * op.spatial) as f64;
    let mut y = vec![Ball::ZERO; x.len()];
    let mut statistics = [const { Vec::new() }; 4];
    for c in 0..op.channels {
        let (mean, variance) = if op.training {
            let numbers: Vec<_> = channel(op, c).map(|place| x[place]).collect();
            moments(&numbers, true, format)
        } else {
            (Ball::exact(old_mean[c]), Ball::exact(old_variance[c]))
        };
        let inverse = inverse_deviation(variance, op.epsilon, format);
        let factor = inverse.times(Ball::exact(scale[c])).rounded(format);
        for place in channel(op, c) {
            let scaled = normal(x[place], mean, factor, format);
            y[place] = scaled.plus(Ball::exact(bias[c])).rounded(format);
        }
        let corrected = match op.unbiased && count > 1.0 {
            true => variance
                .times(Ball::exact(count / (count - 1.0)))
                .rounded_by(2.0, format),
            false => variance,
        };
        let keep = f64::from(op.momentum);
        let mixed = |old: f64, new: Ball| {
            let kept = Ball::exact(old * keep).rounded(format);
            let new = new.times(Ball::exact(1.0 - keep)).rounded_by(2.0, format);
            kept.plus(new).rounded(format)
        };
        let numbers = [
            mixed(old_mean[c], mean),
            mixed(old_variance[c], corrected),
            mean.rounded(format),
            inverse,
        ];
        for (all, number) in statistics.iter_mut().zip(numbers) {
            all.push(number);
        }
    }
    Ok({ [y].into_iter() }.chain(statistics).collect())
}

/// dScale = Σ dY x̂, dBias = Σ dY, dX = scale · inverse (dY - dBias / count - x̂ dScale / count).
fn batch_grad(case: &Case<'_>, op: &Batch) -> Result<Vec<Vec<Ball>>, String> {
    let (dy, x) = (case.input(0)?.to_f64(), case.input(1)?.to_f64());
    let [scale, mean, inverse] = [case.input(2)?, case.input(3)?, case.input(4)?];
    let [scale, mean, inverse] = [scale, mean, inverse].map(|input| input.to_f64());
    let format = case.computing();
    let count = Ball::exact((op.batch * op.spatial) as f64);
    let mut dx = vec![Ball::ZERO; x.len()];
    let (mut scales, mut biases) = (Vec::new(), Vec::new());
    for c in 0..op.channels {
        let inverse = Ball::exact(inverse[c]);
        let normal = |place: usize| normal(x[place], Ball::exact(mean[c]), inverse, format);
        let products =
            channel(op, c).map(|place| normal(place).times(Ball::exact(dy[place])).rounded(format));
        let along = Sum::of(products, format).rounded(format);
        let across = Sum::of(channel(op, c).map(|place| Ball::exact(dy[place])), format);
        let across = across.rounded(format);
        let factor = inverse.times(Ball::exact(scale[c])).rounded(format);
        let mean_along = along.over(count).rounded(format);
        let mean_across = across.over(count).rounded(format);
        for place in channel(op, c) {
            let inner = Ball::exact(dy[place]).minus(mean_across).rounded(format);
            let part = normal(place).times(mean_along).rounded(format);
            dx[place] = inner
                .minus(part)
                .rounded(format)
                .times(factor)
                .rounded(format);
        }
        scales.push(along);
        biases.push(across);
    }
    Ok(vec![dx, scales, biases])
}
