//! Losses: their formulas in balls.

use super::ball::{Ball, Sum};
use super::bounds::{Allowed, Case};
use super::functions::unary;
use super::normalize::{columns, shifted, stored};
use crate::cpu::apart::integers;
use crate::ops::elementwise::Unary;
use crate::ops::loss::{CrossEntropy, Loss, Reduction};

/// What the outputs may be.
///
/// # Errors
/// Where an operand is missing.
pub(super) fn allowed(case: &Case<'_>, op: &Loss) -> Result<Vec<Allowed>, String> {
    let outputs = match op {
        Loss::CrossEntropy(op) => forward(case, op)?,
        Loss::CrossEntropyGrad(op) => vec![grad(case, op)?],
    };
    Ok(stored(case, outputs))
}

/// Class and weight by label; `None` where it is ignored.
struct Targets {
    labels: Vec<Option<(usize, f64)>>,
    /// The sum of the weights.
    total: Ball,
}

impl Targets {
    fn new(
        case: &Case<'_>,
        op: &CrossEntropy,
        [labels, weights, ignore]: [usize; 3],
    ) -> Result<Self, String> {
        let whole = |place: usize| {
            let input = case.input(place).ok()?;
            Some(integers(input.ty.data_type, input.bytes()))
        };
        let labels = whole(labels).ok_or("an operand is missing")?;
        let weights = case.numbers(weights);
        let ignore = match whole(ignore) {
            Some(given) => given.first().copied(),
            None => op.ignore.map(i128::from),
        };
        let labels: Vec<_> = { labels.into_iter() }
            .map(|label| {
                let class = usize::try_from(label).ok();
                let class = class.filter(|_| Some(label) != ignore)?;
                let weight = weights
                    .as_ref()
                    .map_or(Some(1.0), |w| w.get(class).copied());
                Some((class, weight?))
            })
            .collect();
        let each = labels
            .iter()
            .flatten()
            .map(|&(_, weight)| Ball::exact(weight));
        let format = case.computing();
        // A sum of ones is exact.
        let total = match weights {
            Some(_) => Sum::of(each, format).rounded(format),
            None => Ball::exact(each.count() as f64),
        };
        Ok(Targets { labels, total })
    }
}

/// Scores, labels, weights, ignored label; the loss is the sum of -log p · weight, over that of the weights
/// for a mean, with log p = x - m - log Σ e^(x - m).
fn forward(case: &Case<'_>, op: &CrossEntropy) -> Result<Vec<Vec<Ball>>, String> {
    let scores = case.input(0)?.to_f64();
    let targets = Targets::new(case, op, [1, 2, 3])?;
    let format = case.computing();
    let mut logs = vec![Ball::ZERO; scores.len()];
    let mut losses = Vec::with_capacity(targets.labels.len());
    let mut label = targets.labels.iter();
    columns((op.batch, op.classes, op.inner), |places| {
        let places: Vec<_> = places.collect();
        let column: Vec<_> = places.iter().map(|&place| scores[place]).collect();
        if op.softmax {
            let (shifted, sum) = shifted(&column, format);
            let log = unary(Unary::Log, sum, format);
            for (&place, shifted) in places.iter().zip(shifted) {
                logs[place] = shifted.minus(log).rounded(format);
            }
        } else {
            places
                .iter()
                .for_each(|&place| logs[place] = Ball::exact(scores[place]));
        }
        losses.push(match label.next() {
            Some(&Some((class, weight))) => {
                let log = logs[places[class]].negated();
                log.times(Ball::exact(weight)).rounded(format)
            }
            _ => Ball::ZERO,
        });
    });
    let loss = match op.reduction {
        Reduction::None => losses,
        reduction => {
            let sum = Sum::of(losses.into_iter(), format).rounded(format);
            vec![match reduction {
                Reduction::Mean if targets.total.mid != 0.0 => {
                    sum.over(targets.total).rounded(format)
                }
                _ => sum,
            }]
        }
    };
    Ok(vec![loss, logs])
}

/// Gradient of the loss, log p, labels, weights, ignored label, what is added:
/// (p - [class = label]) · weight · dY / the sum of weights.
fn grad(case: &Case<'_>, op: &CrossEntropy) -> Result<Vec<Ball>, String> {
    let (dy, logs) = (case.input(0)?.to_f64(), case.input(1)?.to_f64());
    let targets = Targets::new(case, op, [2, 3, 4])?;
    let added = case.numbers(5);
    let format = case.computing();
    let over = match op.reduction {
        Reduction::Mean if targets.total.mid != 0.0 => targets.total,
        _ => Ball::exact(1.0),
    };
    let mut d = vec![Ball::ZERO; logs.len()];
    let mut number = 0;
    columns((op.batch, op.classes, op.inner), |places| {
        let label = targets.labels.get(number).copied().flatten();
        let slope = match op.reduction {
            Reduction::None => dy.get(number).copied().unwrap_or(0.0),
            _ => dy[0],
        };
        number += 1;
        for (class, place) in places.enumerate() {
            if let Some((of, weight)) = label {
                let factor = Ball::exact(slope * weight).rounded(format);
                let factor = factor.over(over).rounded(format);
                let power = unary(Unary::Exp, Ball::exact(logs[place]), format);
                let less = match of == class {
                    true => power.minus(Ball::exact(1.0)).rounded(format),
                    false => power,
                };
                d[place] = less.times(factor).rounded(format);
            }
            if let Some(added) = &added {
                d[place] = d[place].plus(Ball::exact(added[place])).rounded(format);
            }
        }
    });
    Ok(d)
}
