//! The matrix of a convolution's taps: a row for each channel and tap, a column for each output position.

use crate::cpu::product::Real;
use crate::ops::window::Geometry;

/// A run of output positions in one output row, and the input row that a tap reads for it.
struct Segment {
    /// The first output position on the last axis.
    first: usize,
    /// The start of the input row in its plane; `None` where it lies in the padding.
    row: Option<usize>,
    /// Its positions.
    length: usize,
}

/// The position of a tap of an output on an axis, where it is no padding.
fn position(geometry: &Geometry, axis: usize, out: usize, tap: usize) -> Option<usize> {
    let at = out * geometry.stride[axis] + tap * geometry.dilation[axis];
    let at = at.checked_sub(geometry.pad[axis])?;
    (at < geometry.size[axis]).then_some(at)
}

/// The taps of a window on each axis, from their number in the window.
fn split(geometry: &Geometry, tap: usize) -> [usize; 3] {
    let [_, rows, columns] = geometry.kernel;
    [tap / (rows * columns), tap / columns % rows, tap % columns]
}

/// The segments of `count` output positions from `start` on, for a tap.
fn segments(
    geometry: &Geometry,
    tap: [usize; 3],
    start: usize,
    count: usize,
) -> impl Iterator<Item = Segment> {
    let [_, rows, columns] = geometry.out;
    let mut first = start % columns.max(1);
    let mut line = start / columns.max(1);
    let mut rest = count;
    std::iter::from_fn(move || {
        if rest == 0 {
            return None;
        }
        let length = (columns - first).min(rest);
        let depth = position(geometry, 0, line / rows, tap[0]);
        let height = position(geometry, 1, line % rows, tap[1]);
        let row = match (depth, height) {
            (Some(depth), Some(height)) => {
                Some((depth * geometry.size[1] + height) * geometry.size[2])
            }
            _ => None,
        };
        let segment = Segment { first, row, length };
        (first, line, rest) = (0, line + 1, rest - length);
        Some(segment)
    })
}

/// The outputs on the last axis for which a tap lies in the input, cut to `first..first + length`, and
/// where the first of them reads.
pub(super) fn inside(
    geometry: &Geometry,
    tap: usize,
    first: usize,
    length: usize,
) -> (usize, usize, usize) {
    let (stride, size) = (geometry.stride[2], geometry.size[2]);
    let (offset, pad) = (tap * geometry.dilation[2], geometry.pad[2]);
    let from = pad.saturating_sub(offset).div_ceil(stride);
    let to = (size + pad).saturating_sub(offset).div_ceil(stride);
    let from = from.clamp(first, first + length);
    let to = to.clamp(from, first + length);
    // With no output inside, the place is not used.
    let place = (from * stride + offset).saturating_sub(pad);
    (from - first, to - first, place)
}

/// Writes one row of the matrix: what a tap reads for the output positions from `start` on.
pub(super) fn gather<T: Real>(
    geometry: &Geometry,
    tap: usize,
    plane: &[T],
    start: usize,
    to: &mut [T],
) {
    let tap = split(geometry, tap);
    let stride = geometry.stride[2];
    let mut done = 0;
    for segment in segments(geometry, tap, start, to.len()) {
        let out = &mut to[done..done + segment.length];
        done += segment.length;
        let Some(row) = segment.row else {
            out.fill(T::ZERO);
            continue;
        };
        let (from, end, place) = inside(geometry, tap[2], segment.first, segment.length);
        out[..from].fill(T::ZERO);
        out[end..].fill(T::ZERO);
        let out = &mut out[from..end];
        if out.is_empty() {
            continue;
        }
        let read = &plane[row + place..];
        if stride == 1 {
            out.copy_from_slice(&read[..out.len()]);
        } else {
            for (to, from) in out.iter_mut().zip(read.iter().step_by(stride)) {
                *to = *from;
            }
        }
    }
}

/// Adds one row of the matrix to where its tap reads: the transpose of [`gather`].
pub(super) fn scatter<T: Real>(
    geometry: &Geometry,
    tap: usize,
    row_of: &[T],
    start: usize,
    plane: &mut [T],
) {
    let tap = split(geometry, tap);
    let stride = geometry.stride[2];
    let mut done = 0;
    for segment in segments(geometry, tap, start, row_of.len()) {
        let add = &row_of[done..done + segment.length];
        done += segment.length;
        let Some(row) = segment.row else {
            continue;
        };
        let (from, end, place) = inside(geometry, tap[2], segment.first, segment.length);
        let add = &add[from..end];
        if add.is_empty() {
            continue;
        }
        let to = &mut plane[row + place..];
        if stride == 1 {
            for (to, &add) in to.iter_mut().zip(add) {
                *to += add;
            }
        } else {
            for (to, &add) in to.iter_mut().step_by(stride).zip(add) {
                *to += add;
            }
        }
    }
}
