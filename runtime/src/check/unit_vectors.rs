//! Vectors that are normalised, and rows that are quantised.

use super::ball::{Ball, Format, Sum};
use super::bounds::{Allowed, Case};
use crate::ops::velora::SubTokens;

/// The mean of all sub-tokens, or of those of each group, normalised.
///
/// Sums over `rows · places` numbers for each feature, then over the groups; v = s / √Σ s².
pub(super) fn mean(
    case: &Case<'_>,
    sizes: &SubTokens,
    by_group: bool,
) -> Result<Vec<Allowed>, String> {
    let x = case.input(0)?.to_f64();
    let format = case.computing();
    let SubTokens {
        rows,
        features,
        places,
        ..
    } = *sizes;
    let size = sizes.size().max(1);
    let groups = sizes.groups.max(1);
    let vectors = if by_group { groups } else { 1 };
    let mut sums = vec![Sum::default(); vectors * size];
    for row in 0..rows {
        for feature in 0..features {
            let (group, entry) = (feature / size, feature % size);
            let vector = if by_group { group } else { 0 };
            for place in 0..places {
                let number = x[(row * features + feature) * places + place];
                sums[vector * size + entry].add(Ball::exact(number));
            }
        }
    }
    let even = Ball::exact(1.0 / (size as f64).sqrt());
    let balls = sums.chunks(size).flat_map(|sums| {
        let vector: Vec<_> = sums.iter().map(|sum| sum.total(format)).collect();
        normalised(&vector, &vec![even; size], format)
    });
    Ok(vec![stored(case, balls.collect())])
}

/// `decay · v + (1 - decay) · mean`, normalised, or the mean where that cancels.
pub(super) fn blend(case: &Case<'_>, size: usize, decay: f64) -> Result<Vec<Allowed>, String> {
    let (v, mean) = (case.input(0)?.to_f64(), case.input(1)?.to_f64());
    let format = case.computing();
    let mut balls = Vec::with_capacity(v.len());
    // The factors may be kept in the format.
    let factor = |number: f64| Ball::exact(number).rounded(format);
    for (v, mean) in v.chunks(size.max(1)).zip(mean.chunks(size.max(1))) {
        let mean: Vec<_> = mean.iter().map(|&e| Ball::exact(e)).collect();
        let mixed: Vec<_> = (v.iter().zip(&mean))
            .map(|(&v, &mean)| {
                let kept = factor(decay).times(Ball::exact(v)).rounded(format);
                let new = factor(1.0 - decay).times(mean).rounded(format);
                kept.plus(new).rounded(format)
            })
            .collect();
        balls.extend(normalised(&mixed, &mean, format));
    }
    Ok(vec![stored(case, balls)])
}

/// A vector divided by its norm, or something else where the norm is below the least normal number; either
/// where that is not decided.
fn normalised(vector: &[Ball], otherwise: &[Ball], format: Format) -> Vec<Ball> {
    let squares = vector.iter().map(|e| e.times(*e).rounded(format));
    let norm = Sum::of(squares, format).root().rounded(format);
    let least = f64::from(f32::MIN_POSITIVE);
    let each = vector.iter().zip(otherwise).map(|(&entry, &otherwise)| {
        let divided = entry.over(norm).rounded_by(2.0, format);
        let otherwise = otherwise.rounded(format);
        if norm.low() >= least || norm.mid.is_nan() {
            divided
        } else if norm.high() < least {
            otherwise
        } else {
            divided.hull(otherwise)
        }
    });
    each.collect()
}

/// Rounds to the type of the first output.
fn stored(case: &Case<'_>, balls: Vec<Ball>) -> Allowed {
    let format = case.computing();
    match case.format(0) {
        Some(stored) if stored != format => {
            Allowed::Near(balls.into_iter().map(|b| b.rounded(stored)).collect())
        }
        _ => Allowed::Near(balls),
    }
}

/// A scale for each row, the largest magnitude over 127, and the multiples of it that are nearest: where a
/// quotient lies between two of them within its error, either.
pub(super) fn quantized(case: &Case<'_>, width: usize) -> Result<Vec<Allowed>, String> {
    let z = case.input(0)?;
    let stored = Format::of(z.ty.data_type).unwrap_or(Format::F32);
    let format = Format::computing(z.ty.data_type);
    let (mut scales, mut numbers) = (Vec::new(), Vec::new());
    for row in z.to_f64().chunks(width.max(1)) {
        let largest = row.iter().fold(0.0, |most: f64, z| most.max(z.abs()));
        let least = f64::from(f32::MIN_POSITIVE);
        let mut scale = Ball::exact((largest / 127.0).max(least)).rounded(format);
        if stored != format {
            scale = scale.rounded(stored);
        }
        scales.push(scale);
        for &z in row {
            let quotient = Ball::exact(z).over(scale).rounded(format);
            let nearest = |x: f64| x.round_ties_even().clamp(-128.0, 127.0);
            numbers.push(match quotient.rad.is_finite() && quotient.mid.is_finite() {
                true => Ball::between(nearest(quotient.low()), nearest(quotient.high())),
                false => Ball::UNKNOWN,
            });
        }
    }
    Ok(vec![Allowed::Near(numbers), Allowed::Near(scales)])
}
