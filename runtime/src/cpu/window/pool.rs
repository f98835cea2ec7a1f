//! Pooling over planes, with its gradients.

use super::PARALLEL;
use super::columns::inside;
use crate::cpu::memory::Call;
use crate::cpu::number::Number;
use crate::cpu::product::Real;
use crate::cpu::rows::{RowsMut, dispatch, for_blocks, for_chunks};
use crate::ops::window::{AXES, Geometry, Pool, Reduction};
use half::{bf16, f16};
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use velora_graph::shapes::DataType;

/// An element type that is pooled.
trait Element: Number + PartialOrd {
    /// The least element.
    const LEAST: Self;

    /// Whether the sum of a small window may be kept in this type.
    const SUMS: bool;

    fn plus(self, other: Self) -> Self;

    fn to_f64(self) -> f64;

    fn from_f64(number: f64) -> Self;
}

macro_rules! element {
    ($type:ty, $least:expr, $sums:expr, $to:expr, $from:expr) => {
        impl Element for $type {
            const LEAST: $type = $least;

            const SUMS: bool = $sums;

            #[inline(always)]
            fn plus(self, other: $type) -> $type {
                $from($to(self) + $to(other))
            }

            #[inline(always)]
            fn to_f64(self) -> f64 {
                $to(self)
            }

            #[inline(always)]
            fn from_f64(number: f64) -> $type {
                $from(number)
            }
        }
    };
}

element!(f32, f32::NEG_INFINITY, true, f64::from, |n| n as f32);
element!(f64, f64::NEG_INFINITY, true, |n| n, |n| n);
element!(f16, f16::NEG_INFINITY, false, f16::to_f64, f16::from_f64);
element!(
    bf16,
    bf16::NEG_INFINITY,
    false,
    bf16::to_f64,
    bf16::from_f64
);
element!(u8, 0, false, f64::from, |n| n as u8);
element!(i8, i8::MIN, false, f64::from, |n| n as i8);

/// The taps of a window that lie in the input on one axis.
#[derive(Clone, Copy, Default)]
struct Span {
    /// Where the first of them lies.
    start: usize,
    /// How many.
    count: usize,
    /// How many there are with those in the padding; a window that ends behind it is cut off.
    padded: usize,
}

impl Span {
    fn new(geometry: &Geometry, axis: usize, out: usize) -> Self {
        let (size, kernel) = (geometry.size[axis], geometry.kernel[axis]);
        let (dilation, pad) = (geometry.dilation[axis], geometry.pad[axis]);
        let start = out * geometry.stride[axis];
        let up_to = |end: usize| match dilation {
            1 => end.saturating_sub(start).min(kernel),
            _ => end.saturating_sub(start).div_ceil(dilation).min(kernel),
        };
        let (first, end) = (up_to(pad), up_to(size + pad));
        Span {
            // Of an empty span the start is not used.
            start: (start + first * dilation).saturating_sub(pad),
            count: end - first,
            padded: up_to(size + pad + geometry.pad_after[axis]),
        }
    }
}

/// Calls a function for every output of a plane, with the spans of its window.
fn windows(geometry: &Geometry, mut visit: impl FnMut(usize, [Span; AXES])) {
    let [depth, height, width] = geometry.out;
    let mut position = 0;
    for d in 0..depth {
        let d = Span::new(geometry, 0, d);
        for h in 0..height {
            let h = Span::new(geometry, 1, h);
            for w in 0..width {
                visit(position, [d, h, Span::new(geometry, 2, w)]);
                position += 1;
            }
        }
    }
}

/// Calls a function for the input rows of a window: the start of the row in the plane, in the order in
/// which they lie.
#[inline(always)]
fn rows(geometry: &Geometry, spans: &[Span; AXES], mut visit: impl FnMut(usize)) {
    let [depth, height, width] = spans;
    for d in 0..depth.count {
        let line = (depth.start + d * geometry.dilation[0]) * geometry.size[1];
        for h in 0..height.count {
            let line = line + height.start + h * geometry.dilation[1];
            visit(line * geometry.size[2] + width.start);
        }
    }
}

pub(super) fn execute(pool: &Pool, data_type: DataType, call: Call<'_>) -> Result<(), String> {
    match data_type {
        DataType::FLOAT => pooled::<f32>(pool, call),
        DataType::DOUBLE => pooled::<f64>(pool, call),
        DataType::FLOAT16 => pooled::<f16>(pool, call),
        DataType::BFLOAT16 => pooled::<bf16>(pool, call),
        DataType::UINT8 => pooled::<u8>(pool, call),
        DataType::INT8 => pooled::<i8>(pool, call),
        other => Err(format!("pooling of element type {}", other.0)),
    }
}

fn pooled<T: Element>(pool: &Pool, mut call: Call<'_>) -> Result<(), String> {
    let ([Some(x), ..], [Some(y), indices, ..]) = (&call.inputs, &mut call.outputs) else {
        return Err("an operand is missing".to_owned());
    };
    let (x, y) = (x.elements::<T>(), y.elements::<T>());
    let (size, positions) = (pool.geometry.plane(), pool.geometry.positions());
    if positions == 0 {
        return Ok(());
    }
    let parallel = x.len().max(y.len()) >= PARALLEL;
    let plane = |number: usize| &x[number * size..][..size];
    if let (Reduction::Max { column_major }, Some(indices)) = (pool.reduction, indices) {
        let indices = indices.elements::<i64>();
        let body = |(number, (y, indices)): (usize, (&mut [T], &mut [i64]))| {
            let base = (number * size) as i64;
            if positions == 1 {
                greatest_with_place(&pool.geometry, plane(number), y, indices);
            } else {
                dispatch!(
                    T,
                    greatest_with_places::<T>,
                    (&pool.geometry, plane(number), y, &mut *indices)
                );
            }
            // A window that lies in the padding has no place.
            for place in indices.iter_mut().filter(|place| **place >= 0) {
                if column_major {
                    *place = column_major_place(&pool.geometry, *place as usize) as i64;
                }
                *place += base;
            }
        };
        if parallel {
            let planes = y.len().div_ceil(positions);
            let written = (RowsMut::new(y, positions), RowsMut::new(indices, positions));
            for_blocks(0..planes, 1, written, &|range, (y, indices)| {
                body((range.start, (y.elements, indices.elements)));
            });
        } else {
            (y.chunks_mut(positions))
                .zip(indices.chunks_mut(positions))
                .enumerate()
                .for_each(body);
        }
        return Ok(());
    }
    let body = |(number, y): (usize, &mut [T])| match pool.reduction {
        // One window per plane has no row of outputs to run over.
        Reduction::Max { .. } if positions == 1 => {
            greatest_with_place(&pool.geometry, plane(number), y, &mut [0]);
        }
        Reduction::Max { .. } => {
            dispatch!(T, greatest::<T>, (&pool.geometry, plane(number), y));
        }
        Reduction::Average { count_padding } => {
            average(&pool.geometry, count_padding, plane(number), y);
        }
        Reduction::Norm { p } => norm(&pool.geometry, f64::from(p), plane(number), y),
    };
    if parallel {
        for_chunks(y, positions, 1, &|number, y| body((number, y)));
    } else {
        y.chunks_mut(positions).enumerate().for_each(body);
    }
    Ok(())
}

/// A place in a plane, counted with the first axis fastest.
fn column_major_place(geometry: &Geometry, place: usize) -> usize {
    let [depth, height, width] = geometry.size;
    let (d, h, w) = (
        place / (height * width),
        place / width % height,
        place % width,
    );
    // The axes that the layer lacks have size 1 and do not count.
    d + (h + w * height) * depth
}

/// Whether an element comes in the place of the greatest so far: the negation takes NaN, which nothing
/// compares with, and the first is held on to.
#[inline(always)]
#[expect(
    clippy::neg_cmp_op_on_partial_ord,
    clippy::eq_op,
    reason = "NaN is to be taken, and differs from itself"
)]
fn is_greater<T: Element>(element: T, best: T) -> bool {
    !(element <= best) & (best == best)
}

/// The first greatest element of every window, or its first NaN, and where it lies; -1 where the window
/// has no element.
fn greatest_with_place<T: Element>(
    geometry: &Geometry,
    plane: &[T],
    y: &mut [T],
    places: &mut [i64],
) {
    let step = geometry.dilation[2];
    windows(geometry, |position, spans| {
        let (mut best, mut place) = (T::LEAST, -1);
        rows(geometry, &spans, |start| {
            for tap in 0..spans[2].count {
                let at = start + tap * step;
                if is_greater(plane[at], best) || place < 0 {
                    (best, place) = (plane[at], at as i64);
                }
            }
        });
        (y[position], places[position]) = (best, place);
    });
}

/// The same, tap by tap over whole output rows.
#[inline(always)]
fn greatest_with_places<T: Element>(
    (geometry, plane, y, places): (&Geometry, &[T], &mut [T], &mut [i64]),
) {
    y.fill(T::LEAST);
    places.fill(-1);
    let stride = geometry.stride[2];
    taps(geometry, |to, from| {
        let (y, places) = (&mut y[to.clone()], &mut places[to]);
        let read = &plane[from..][..(y.len() - 1) * stride + 1];
        for i in 0..y.len() {
            let element = read[i * stride];
            let taken = is_greater(element, y[i]) | (places[i] < 0);
            y[i] = if taken { element } else { y[i] };
            places[i] = if taken {
                (from + i * stride) as i64
            } else {
                places[i]
            };
        }
    });
}

/// The longest window of which the sum is kept in the elements' own type.
const SMALL: usize = 64;

/// The greatest element of every window, or a NaN.
#[inline(always)]
fn greatest<T: Element>((geometry, plane, y): (&Geometry, &[T], &mut [T])) {
    #[expect(clippy::eq_op, reason = "NaN is to be taken")]
    fold(geometry, plane, y, T::LEAST, |best, x| {
        if x > best || x != x { x } else { best }
    });
}

/// Calls a function for every tap of the windows of an output row, in the order in which they lie: with the
/// outputs whose tap lies in the input, of which there are some, and where it lies for the first of them.
#[inline(always)]
fn taps(geometry: &Geometry, mut visit: impl FnMut(Range<usize>, usize)) {
    let [depth, height, width] = geometry.out;
    for line in 0..depth * height {
        let d = Span::new(geometry, 0, line / height);
        let h = Span::new(geometry, 1, line % height);
        // The window as if its last axis were one tap at the start of the row.
        let row_start = Span {
            start: 0,
            ..Span::default()
        };
        rows(geometry, &[d, h, row_start], |row| {
            for tap in 0..geometry.kernel[2] {
                let (from, end, place) = inside(geometry, tap, 0, width);
                if from < end {
                    visit(line * width + from..line * width + end, row + place);
                }
            }
        });
    }
}

/// Folds every window tap by tap over whole output rows, so that the inner loop runs over outputs.
#[inline(always)]
fn fold<T: Element>(
    geometry: &Geometry,
    plane: &[T],
    y: &mut [T],
    start: T,
    join: impl Fn(T, T) -> T,
) {
    y.fill(start);
    let stride = geometry.stride[2];
    taps(geometry, |to, from| {
        let to = &mut y[to];
        let read = &plane[from..];
        if stride == 1 {
            for (to, &x) in to.iter_mut().zip(read) {
                *to = join(*to, x);
            }
        } else {
            for (to, &x) in to.iter_mut().zip(read.iter().step_by(stride)) {
                *to = join(*to, x);
            }
        }
    });
}

fn average<T: Element>(geometry: &Geometry, count_padding: bool, plane: &[T], y: &mut [T]) {
    if T::SUMS && geometry.taps() <= SMALL {
        fold(geometry, plane, y, T::from_f64(0.0), T::plus);
        windows(geometry, |position, spans| {
            y[position] = T::from_f64(y[position].to_f64() / count(&spans, count_padding));
        });
        return;
    }
    let step = geometry.dilation[2];
    windows(geometry, |position, spans| {
        let mut sum = 0.0;
        rows(geometry, &spans, |start| {
            for tap in 0..spans[2].count {
                sum += plane[start + tap * step].to_f64();
            }
        });
        y[position] = T::from_f64(sum / count(&spans, count_padding));
    });
}

/// What the sum of a window is divided by.
fn count(spans: &[Span; AXES], count_padding: bool) -> f64 {
    let each = |span: &Span| {
        if count_padding {
            span.padded
        } else {
            span.count
        }
    };
    spans.iter().map(|span| each(span) as f64).product()
}

fn norm<T: Element>(geometry: &Geometry, p: f64, plane: &[T], y: &mut [T]) {
    let step = geometry.dilation[2];
    windows(geometry, |position, spans| {
        let mut sum = 0.0;
        rows(geometry, &spans, |start| {
            for tap in 0..spans[2].count {
                let element = plane[start + tap * step].to_f64().abs();
                sum += if p == 2.0 {
                    element * element
                } else {
                    element.powf(p)
                };
            }
        });
        y[position] = T::from_f64(if p == 2.0 {
            sum.sqrt()
        } else {
            sum.powf(1.0 / p)
        });
    });
}

/// dX of a maximum: every dY is added where its maximum lay.
pub(super) fn max_grad<T: Real>(
    size: usize,
    positions: usize,
    mut call: Call<'_>,
) -> Result<(), String> {
    let ([Some(dy), Some(indices), ..], [Some(dx), ..]) = (&call.inputs, &mut call.outputs) else {
        return Err("an operand is missing".to_owned());
    };
    let (dy, indices) = (dy.elements::<T>(), indices.elements::<i64>());
    let dx = dx.elements::<T>();
    if size == 0 {
        return Ok(());
    }
    let astray = AtomicBool::new(false);
    let body = |(number, dx): (usize, &mut [T])| {
        dx.fill(T::ZERO);
        let base = (number * size) as i64;
        let span = number * positions..(number + 1) * positions;
        for (&dy, &index) in dy[span.clone()].iter().zip(&indices[span]) {
            let place = index
                .checked_sub(base)
                .and_then(|p| usize::try_from(p).ok());
            match place.and_then(|place| dx.get_mut(place)) {
                Some(to) => *to += dy,
                // A window with nothing but padding.
                None if index == -1 => {}
                None => astray.store(true, Ordering::Relaxed),
            }
        }
    };
    if dx.len() >= PARALLEL {
        for_chunks(dx, size, 1, &|number, dx| body((number, dx)));
    } else {
        dx.chunks_mut(size).enumerate().for_each(body);
    }
    if astray.into_inner() {
        return Err(
            "an index lies outside of its plane: expected the indices of MaxPool".to_owned(),
        );
    }
    Ok(())
}

/// dX of a mean: every dY is shared out equally among its window.
pub(super) fn average_grad<T: Real>(pool: &Pool, mut call: Call<'_>) -> Result<(), String> {
    let ([Some(dy), ..], [Some(dx), ..]) = (&call.inputs, &mut call.outputs) else {
        return Err("an operand is missing".to_owned());
    };
    let (dy, dx) = (dy.elements::<T>(), dx.elements::<T>());
    let geometry = &pool.geometry;
    let (size, positions) = (geometry.plane(), geometry.positions());
    let counted = matches!(pool.reduction, Reduction::Average { count_padding } if count_padding);
    if size == 0 {
        return Ok(());
    }
    let body = |(number, dx): (usize, &mut [T])| {
        dx.fill(T::ZERO);
        let dy = &dy[number * positions..][..positions];
        windows(geometry, |position, spans| {
            let share = T::from_f64(dy[position].to_f64() / count(&spans, counted));
            rows(geometry, &spans, |start| {
                for tap in 0..spans[2].count {
                    dx[start + tap * geometry.dilation[2]] += share;
                }
            });
        });
    };
    if dx.len() >= PARALLEL {
        for_chunks(dx, size, 1, &|number, dx| body((number, dx)));
    } else {
        dx.chunks_mut(size).enumerate().for_each(body);
    }
    Ok(())
}
