//! Copies of boxes: runs where both layouts have them, tiles where each has its own short step.

use super::{GRAIN, missing};
use crate::cpu::memory::{Call, Input};
use crate::cpu::rows::{fork, vectorize};
use crate::ops::movement::copy::{Axis, Copy, MAX_AXES, Origin, Part};
use bytemuck::Pod;

/// Rows and columns of a tile that is transposed at once: a cache line of 32-bit elements.
const TILE: usize = 16;

pub(super) fn copy(op: &Copy, call: &mut Call<'_>) -> Result<(), String> {
    for part in &op.parts {
        let Some(output) = call.outputs.get_mut(part.output).and_then(Option::as_mut) else {
            continue;
        };
        let inputs = &call.inputs[..];
        match output.ty.data_type.bits() {
            Some(8) => copy_part::<u8>(part, inputs, output.elements())?,
            Some(16) => copy_part::<u16>(part, inputs, output.elements())?,
            Some(32) => copy_part::<u32>(part, inputs, output.elements())?,
            _ => copy_part::<u64>(part, inputs, output.elements())?,
        }
    }
    Ok(())
}

fn copy_part<T: Pod + Send + Sync>(
    part: &Part,
    inputs: &[Option<Input<'_>>],
    output: &mut [T],
) -> Result<(), String> {
    let one: [T; 1];
    let operand = |slot: usize| {
        inputs
            .get(slot)
            .and_then(Option::as_ref)
            .ok_or_else(missing)
    };
    let input = match part.origin {
        Origin::Input(slot) => operand(slot)?.elements::<T>(),
        Origin::Scalar(slot) => operand(slot)?.elements::<T>(),
        Origin::Element(bytes) => {
            one = [bytemuck::pod_read_unaligned(&bytes[..size_of::<T>()])];
            &one
        }
    };
    let mut axes = [Axis {
        size: 1,
        from: 0,
        to: 0,
    }; MAX_AXES];
    axes[..part.axes.len()].copy_from_slice(&part.axes);
    let piece = Piece {
        axes,
        rank: part.axes.len(),
        from: part.from,
    };
    share(piece, input, &mut output[part.to..]);
    Ok(())
}

/// A box, from its first element in the output on.
#[derive(Clone, Copy)]
struct Piece {
    axes: [Axis; MAX_AXES],
    rank: usize,
    from: usize,
}

/// Halves a box until the pieces are small, and copies them on all threads.
fn share<T: Pod + Send + Sync>(mut piece: Piece, input: &[T], output: &mut [T]) {
    while piece.rank > 0 && piece.axes[0].size == 1 {
        piece.axes.copy_within(1.., 0);
        piece.rank -= 1;
    }
    let elements: usize = piece.axes[..piece.rank].iter().map(|a| a.size).product();
    if elements <= GRAIN {
        return copy_piece(&piece.axes[..piece.rank], piece.from, input, output);
    }
    let axis = piece.axes[0];
    // Whole tiles stay together.
    let half = match axis.size / 2 {
        half @ 0..TILE => half,
        half => half.next_multiple_of(TILE),
    };
    let (mut left, mut right) = (piece, piece);
    left.axes[0].size = half;
    right.axes[0].size = axis.size - half;
    right.from = forward(piece.from, axis.from, half);
    let (first, second) = output.split_at_mut(half * axis.to);
    fork(|| share(left, input, first), || share(right, input, second));
}

/// The place some steps further on.
#[inline(always)]
fn forward(from: usize, step: isize, count: usize) -> usize {
    // Boxes lie within their tensors, so the sum is a place in one.
    from.wrapping_add_signed(step.wrapping_mul(count as isize))
}

fn copy_piece<T: Pod>(axes: &[Axis], from: usize, input: &[T], output: &mut [T]) {
    let Some((&last, outer)) = axes.split_last() else {
        output[0] = input[from];
        return;
    };
    let n = last.size;
    if (last.from, last.to) == (1, 1) {
        return each(outer, from, 0, &mut |from, to| {
            output[to..to + n].copy_from_slice(&input[from..from + n]);
        });
    }
    if (last.from, last.to) == (0, 1) {
        return each(outer, from, 0, &mut |from, to| {
            output[to..to + n].fill(input[from]);
        });
    }
    let short = outer.iter().position(|axis| axis.from == 1);
    if let (Some(short), 1) = (short, last.to) {
        let rows = outer[short];
        // The tile's own axis is walked within tiles.
        let mut others = [Axis {
            size: 1,
            from: 0,
            to: 0,
        }; MAX_AXES];
        others[..short].copy_from_slice(&outer[..short]);
        others[short..outer.len() - 1].copy_from_slice(&outer[short + 1..]);
        return each(&others[..outer.len() - 1], from, 0, &mut |from, to| {
            // Code for every machine's vectors is for elements of 32 bits only.
            if size_of::<T>() == size_of::<f32>() {
                vectorize(
                    pulp::Arch::new(),
                    #[inline(always)]
                    |(input, output)| transpose(rows, last, from, input, output),
                    (input, &mut output[to..]),
                );
            } else {
                transpose(rows, last, from, input, &mut output[to..]);
            }
        });
    }
    each(outer, from, 0, &mut |from, to| {
        for i in 0..n {
            output[to + i * last.to] = input[forward(from, last.from, i)];
        }
    });
}

/// Calls a function with the places of all elements of some axes.
#[inline]
fn each(axes: &[Axis], from: usize, to: usize, f: &mut impl FnMut(usize, usize)) {
    match axes {
        [] => f(from, to),
        [axis] => {
            for i in 0..axis.size {
                f(forward(from, axis.from, i), to + i * axis.to);
            }
        }
        [axis, rest @ ..] => {
            for i in 0..axis.size {
                each(rest, forward(from, axis.from, i), to + i * axis.to, f);
            }
        }
    }
}

/// Copies a matrix between two layouts: rows have step 1 in the input, columns in the output.
#[inline(always)]
fn transpose<T: Pod>(rows: Axis, columns: Axis, from: usize, input: &[T], output: &mut [T]) {
    for row in (0..rows.size).step_by(TILE) {
        let height = TILE.min(rows.size - row);
        for column in (0..columns.size).step_by(TILE) {
            let width = TILE.min(columns.size - column);
            let from = forward(from, columns.from, column) + row;
            let to = row * rows.to + column;
            let output = &mut output[to..];
            if (height, width) == (TILE, TILE) {
                transpose_tile((columns.from, from, input, rows.to, output));
            } else {
                for i in 0..height {
                    for j in 0..width {
                        output[i * rows.to + j] = input[forward(from, columns.from, j) + i];
                    }
                }
            }
        }
    }
}

/// Copies a whole tile: its columns start at `from` in the input, `step` apart, its rows at the start of
/// the output, `stride` apart.
#[inline(always)]
fn transpose_tile<T: Pod>(
    (step, from, input, stride, output): (isize, usize, &[T], usize, &mut [T]),
) {
    let mut tile = [[T::zeroed(); TILE]; TILE];
    for (i, column) in tile.iter_mut().enumerate() {
        column.copy_from_slice(&input[forward(from, step, i)..][..TILE]);
    }
    for i in 0..TILE {
        let mut row = [T::zeroed(); TILE];
        for j in 0..TILE {
            row[j] = tile[j][i];
        }
        output[i * stride..][..TILE].copy_from_slice(&row);
    }
}
