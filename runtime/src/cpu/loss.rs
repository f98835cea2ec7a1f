//! Losses, with their gradients: the scores are read once.

use super::Machine;
use super::in_place::{Read, map2};
use super::memory::{Call, Input};
use super::number::{Float, Lane, Number, with_float};
use super::rows::{self, RowsMut, dispatch, fold, fold_pairs, for_blocks, rows_per_block, scratch};
use crate::backend::StepContext;
use crate::ops::loss::{CrossEntropy, Loss, Reduction};
use crate::tensor::TensorType;

/// Bytes of scratch that an operation needs.
pub fn workspace(
    op: &Loss,
    _machine: &Machine,
    _inputs: &[Option<&TensorType>],
    _outputs: &[Option<&TensorType>],
) -> usize {
    match op {
        // The sum of every block.
        Loss::CrossEntropy(op) => op.batch.div_ceil(block(op)) * 8,
        Loss::CrossEntropyGrad(_) => 0,
    }
}

/// Batch entries of a block.
fn block(op: &CrossEntropy) -> usize {
    rows_per_block(op.classes * op.inner)
}

/// Executes an operation; the error says what is wrong with the data.
pub fn execute(op: &Loss, _context: &StepContext, mut call: Call<'_>) -> Result<(), String> {
    match op {
        Loss::CrossEntropy(op) => {
            let Some(scores) = &call.inputs[0] else {
                return Err("the scores are missing".to_owned());
            };
            with_float!(scores.ty.data_type, T => forward::<T>(op, &mut call))
        }
        Loss::CrossEntropyGrad(op) => {
            let Some(scores) = &call.inputs[1] else {
                return Err("the probabilities are missing".to_owned());
            };
            with_float!(scores.ty.data_type, T => grad::<T>(op, &mut call))
        }
    }
}

/// Labels of either type.
#[derive(Clone, Copy)]
enum Labels<'a> {
    Short(&'a [i32]),
    Long(&'a [i64]),
}

impl Labels<'_> {
    fn get(&self, place: usize) -> i64 {
        match self {
            Labels::Short(labels) => labels[place].into(),
            Labels::Long(labels) => labels[place],
        }
    }
}

/// Labels with what they count.
#[derive(Clone, Copy)]
struct Targets<'a, T> {
    labels: Labels<'a>,
    weights: Option<&'a [T]>,
    ignore: Option<i64>,
    /// The sum of the weights of all labels.
    total: f64,
}

impl<'a, T: Number> Targets<'a, T> {
    /// Checks all labels.
    fn new(
        op: &CrossEntropy,
        [labels, weights, ignore]: [&Option<Input<'a>>; 3],
    ) -> Result<Self, String> {
        let Some(labels) = labels else {
            return Err("the labels are missing".to_owned());
        };
        let mut targets = Targets {
            labels: match labels.ty.data_type {
                velora_graph::shapes::DataType::INT32 => Labels::Short(labels.elements()),
                _ => Labels::Long(labels.elements()),
            },
            weights: weights.map(|weights| weights.elements::<T>()),
            ignore: match ignore {
                Some(ignore) => ignore.elements::<i64>().first().copied(),
                None => op.ignore,
            },
            total: 0.0,
        };
        for place in 0..op.batch * op.inner {
            let label = targets.labels.get(place);
            let valid = usize::try_from(label).is_ok_and(|label| label < op.classes);
            if !valid && Some(label) != targets.ignore {
                return Err(format!(
                    "label {label} at place {place}: expected 0 to {} ({} classes){}",
                    op.classes as i64 - 1,
                    op.classes,
                    match targets.ignore {
                        Some(ignore) => format!(", or {ignore} to be ignored"),
                        None => ", and no label is ignored: set ignore_index".to_owned(),
                    }
                ));
            }
            targets.total += targets.at(place).map_or(0.0, |(_, weight)| weight);
        }
        Ok(targets)
    }

    /// The class and the weight of a label; `None` where it is ignored.
    #[inline(always)]
    fn at(&self, place: usize) -> Option<(usize, f64)> {
        let label = self.labels.get(place);
        if Some(label) == self.ignore {
            return None;
        }
        // Checked to be a class.
        let class = label as usize;
        let weight = self.weights.map_or(1.0, |w| w[class].lane().to_f64());
        Some((class, weight))
    }
}

/// Inputs: scores, labels, weights, ignored label; outputs: loss, logarithms of the probabilities.
fn forward<T: Number>(op: &CrossEntropy, call: &mut Call<'_>) -> Result<(), String>
where
    T::Lane: Float,
{
    let [scores, labels, weights, ignore, ..] = &call.inputs;
    let targets = Targets::<T>::new(op, [labels, weights, ignore])?;
    let scores = Read::<T>::of(scores)?;
    let [Some(loss), probabilities, ..] = &mut call.outputs else {
        return Err("the loss is missing".to_owned());
    };
    let loss = loss.elements::<T>();
    let single = op.reduction == Reduction::None;
    let block = block(op);
    let sums: &mut [f64] = scratch(call.workspace);
    let sums = &mut sums[..op.batch.div_ceil(block)];
    let matrix = op.classes * op.inner;
    let probabilities =
        (probabilities.as_mut()).map(|output| RowsMut::new(output.elements::<T>(), matrix * block));
    let losses = single.then(|| RowsMut::new(&mut *loss, op.inner * block));
    let written = (RowsMut::new(&mut *sums, 1), probabilities, losses);
    for_blocks(0..sums_len(op, block), 1, written, &|range, written| {
        let (sum, probabilities, losses) = written;
        let first = range.start * block;
        let part = Part {
            op,
            scores,
            targets,
            entries: first..(first + block).min(op.batch),
            probabilities: probabilities.map(|p| p.elements),
            losses: losses.map(|l| l.elements),
        };
        sum.elements[0] = dispatch!(T, forward_block::<T>, part);
    });
    if !single {
        let sum: f64 = sums.iter().sum();
        let sum = match op.reduction {
            Reduction::Mean if targets.total != 0.0 => sum / targets.total,
            _ => sum,
        };
        loss[0] = T::narrow(T::Lane::narrow(sum));
    }
    Ok(())
}

fn sums_len(op: &CrossEntropy, block: usize) -> usize {
    op.batch.div_ceil(block)
}

/// Some entries of the batch, and what is written for them.
struct Part<'a, T> {
    op: &'a CrossEntropy,
    scores: Read<'a, T>,
    targets: Targets<'a, T>,
    entries: std::ops::Range<usize>,
    probabilities: Option<&'a mut [T]>,
    losses: Option<&'a mut [T]>,
}

/// Columns that are worked on at once.
const TILE: usize = 32;

/// The sum of the losses of a block.
#[inline(always)]
fn forward_block<T: Number>(part: Part<'_, T>) -> f64
where
    T::Lane: Float,
{
    let Part {
        op,
        scores,
        targets,
        entries,
        mut probabilities,
        mut losses,
    } = part;
    let (classes, inner) = (op.classes, op.inner);
    let matrix = classes * inner;
    let mut total = 0.0;
    for (number, entry) in entries.enumerate() {
        let output = match &mut probabilities {
            Some(all) => &mut all[number * matrix..(number + 1) * matrix],
            None => &mut [],
        };
        let base = entry * matrix;
        let mut start = 0;
        while start < inner {
            let width = TILE.min(inner - start);
            // Greatest score and logarithm of the sum of powers, by column.
            let mut shifts = [(T::Lane::default(), T::Lane::default()); TILE];
            if op.softmax && inner == 1 {
                let row = scores.range(base..base + classes, output);
                let greatest = T::Lane::narrow(fold::<T, rows::Max>(row));
                let sum = fold_pairs::<T, T, T::Lane, rows::Sum>(row, row, |x, _| {
                    x.lane().sub(greatest).exp()
                });
                shifts[0] = (greatest, T::Lane::narrow(sum.ln()));
            } else if op.softmax {
                let greatest = &mut [T::Lane::LOWEST; TILE];
                let sums = &mut [0.0; TILE];
                for class in 0..classes {
                    let x = column::<T>(scores, output, base, class * inner + start, width);
                    for (greatest, x) in greatest.iter_mut().zip(x) {
                        *greatest = rows::greater(*greatest, x.lane());
                    }
                }
                for class in 0..classes {
                    let x = column::<T>(scores, output, base, class * inner + start, width);
                    for ((sum, &greatest), x) in sums.iter_mut().zip(&*greatest).zip(x) {
                        *sum += x.lane().sub(greatest).exp().wide();
                    }
                }
                for ((shift, &greatest), &sum) in shifts.iter_mut().zip(&*greatest).zip(&*sums) {
                    *shift = (greatest, T::Lane::narrow(sum.ln()));
                }
            }
            for (c, shift) in shifts.iter().enumerate().take(width) {
                let place = entry * inner + start + c;
                let loss = match targets.at(place) {
                    None => 0.0,
                    Some((class, weight)) => {
                        let at = class * inner + start + c;
                        let x = column::<T>(scores, output, base, at, 1)[0].lane();
                        let log = match op.softmax {
                            true => x.sub(shift.0).sub(shift.1),
                            false => x,
                        };
                        -log.wide() * weight
                    }
                };
                total += loss;
                if let Some(losses) = &mut losses {
                    losses[number * inner + start + c] = T::narrow(T::Lane::narrow(loss));
                }
            }
            if !output.is_empty() && inner == 1 {
                let (greatest, log) = shifts[0];
                let range = base..base + classes;
                map2(output, (scores, scores), range, |_, x, _| {
                    x.sub(greatest).sub(log)
                });
            } else if !output.is_empty() {
                for class in 0..classes {
                    let at = class * inner + start;
                    let output = &mut output[at..at + width];
                    let range = base + at..base + at + width;
                    map2(output, (scores, scores), range, |c, x, _| {
                        x.sub(shifts[c].0).sub(shifts[c].1)
                    });
                }
            }
            start += width;
        }
    }
    total
}

/// Scores side by side, from a place in the matrix that starts at `base`.
#[inline(always)]
fn column<'b, 'a: 'b, T: Number>(
    scores: Read<'a, T>,
    output: &'b [T],
    base: usize,
    at: usize,
    width: usize,
) -> &'b [T] {
    let here = output.get(at..at + width).unwrap_or(&[]);
    scores.range(base + at..base + at + width, here)
}

/// Inputs: gradient of the loss, logarithms of the probabilities, labels, weights, ignored label, what
/// is added; output: gradient of the scores, (p - [class = label]) · weight · dY / the sum of weights.
fn grad<T: Number>(op: &CrossEntropy, call: &mut Call<'_>) -> Result<(), String>
where
    T::Lane: Float,
{
    let [dy, probabilities, labels, weights, ignore, added, ..] = &call.inputs;
    let targets = Targets::<T>::new(op, [labels, weights, ignore])?;
    let Some(dy) = dy else {
        return Err("the gradient of the loss is missing".to_owned());
    };
    let read = Read::<T>::of(probabilities)?;
    let slopes = Slopes {
        dy: dy.elements::<T>(),
        targets,
        // Where everything is ignored, so is the sum.
        over: match op.reduction {
            Reduction::Mean if targets.total != 0.0 => targets.total,
            _ => 1.0,
        },
    };
    let added = added.map(|added| added.elements::<T>());
    let Some(output) = &mut call.outputs[0] else {
        return Err("the output is missing".to_owned());
    };
    let matrix = op.classes * op.inner;
    let written = RowsMut::new(output.elements::<T>(), matrix);
    for_blocks(0..op.batch, block(op), written, &|range, d| {
        dispatch!(
            T,
            grad_block::<T>,
            (op, read, &slopes, added, range.start, d.elements),
        );
    });
    Ok(())
}

/// The factor of every label.
struct Slopes<'a, T> {
    dy: &'a [T],
    targets: Targets<'a, T>,
    over: f64,
}

impl<T: Number> Slopes<'_, T>
where
    T::Lane: Float,
{
    /// The class of a label, if any, and the factor of its gradient.
    #[inline(always)]
    fn at(&self, reduction: Reduction, place: usize) -> Option<(usize, T::Lane)> {
        let (class, weight) = self.targets.at(place)?;
        let dy = match reduction {
            Reduction::None => self.dy[place],
            _ => self.dy[0],
        };
        let factor = dy.lane().wide() * weight / self.over;
        Some((class, T::Lane::narrow(factor)))
    }
}

/// Operands of a block of the gradient.
type GradBlock<'a, T> = (
    &'a CrossEntropy,
    Read<'a, T>,
    &'a Slopes<'a, T>,
    Option<&'a [T]>,
    usize,
    &'a mut [T],
);

#[inline(always)]
fn grad_block<T: Number>((op, read, slopes, added, first, d): GradBlock<'_, T>)
where
    T::Lane: Float,
{
    let (classes, inner) = (op.classes, op.inner);
    let matrix = classes * inner;
    if matrix == 0 {
        return;
    }
    for (number, d) in d.chunks_exact_mut(matrix).enumerate() {
        let entry = first + number;
        let base = entry * matrix;
        if inner == 1 {
            let range = base..base + classes;
            match slopes.at(op.reduction, entry) {
                None => d.fill(T::narrow(T::Lane::default())),
                Some((class, factor)) => {
                    let power = read.range(range.clone(), d)[class].lane().exp();
                    map2(d, (read, read), range, |_, log, _| log.exp().mul(factor));
                    d[class] = T::narrow(power.sub(T::Lane::ONE).mul(factor));
                }
            }
        } else {
            let mut start = 0;
            while start < inner {
                let width = TILE.min(inner - start);
                let mut columns = [(usize::MAX, T::Lane::default()); TILE];
                for (c, column) in columns.iter_mut().enumerate().take(width) {
                    if let Some(slope) = slopes.at(op.reduction, entry * inner + start + c) {
                        *column = slope;
                    }
                }
                for class in 0..classes {
                    let at = class * inner + start;
                    let range = base + at..base + at + width;
                    map2(&mut d[at..at + width], (read, read), range, |c, log, _| {
                        let (of, factor) = columns[c];
                        let power = log.exp();
                        match of {
                            usize::MAX => T::Lane::default(),
                            of if of == class => power.sub(T::Lane::ONE).mul(factor),
                            _ => power.mul(factor),
                        }
                    });
                }
                start += width;
            }
        }
        if let Some(added) = added {
            for (d, added) in d.iter_mut().zip(&added[base..base + matrix]) {
                *d = T::narrow(d.lane().add(added.lane()));
            }
        }
    }
}
