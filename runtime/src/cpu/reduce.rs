//! Reductions over axes.

use super::Machine;
use super::memory::Call;
use super::number::{Lane, Number, with_type};
use super::rows::{self, RowsMut, Step, dispatch, for_blocks, scratch};
use crate::backend::StepContext;
use crate::ops::reduce::{Arg, Fold, Group, Kind, MAX_GROUPS, Reduce, Running};
use crate::tensor::TensorType;
use velora_graph::shapes::DataType;

/// The most blocks that the rows of column sums are split into, and what a block has at least.
const MAX_BLOCKS: usize = 16;

/// How columns of a matrix [rows, width] are reduced: by tiles of columns, or in blocks of rows, the
/// partial results of which are then joined. It depends on the shape only.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Columns {
    /// The rows of the matrix.
    pub rows: usize,
    /// The columns.
    pub width: usize,
    /// The rows of a block.
    pub block: usize,
}

impl Columns {
    /// The way to reduce the columns of a matrix.
    pub(crate) fn new(rows: usize, width: usize) -> Self {
        let block = rows::rows_per_block(width).max(rows.div_ceil(MAX_BLOCKS));
        // Whole groups of four rows: that many are added at once.
        let block = block.next_multiple_of(4);
        Columns { rows, width, block }
    }

    /// The number of blocks.
    pub(crate) fn blocks(&self) -> usize {
        self.rows.div_ceil(self.block).max(1)
    }

    /// The wide numbers that the partial results take.
    pub(crate) fn partials(&self) -> usize {
        self.blocks() * self.width
    }

    /// Reduces; the result is the first row of `partials`.
    pub(crate) fn fold<'p, T: Number, S: Step<T::Lane>>(
        &self,
        x: &[T],
        partials: &'p mut [<T::Lane as Lane>::Wide],
    ) -> &'p [<T::Lane as Lane>::Wide] {
        let (width, block) = (self.width, self.block);
        let partials = &mut partials[..self.partials()];
        partials.fill(S::start().wide());
        let written = RowsMut::new(&mut *partials, width);
        for_blocks(0..self.blocks(), 1, written, &|blocks, written| {
            let start = blocks.start * block;
            let rows = block.min(self.rows.saturating_sub(start));
            let x = &x[start * width..(start + rows) * width];
            dispatch!(T, columns::<T, S>, (x, rows, width, written.elements));
        });
        self.join::<T::Lane, S>(partials)
    }

    /// Joins the partial results of the blocks; the result is the first row.
    pub(crate) fn join<'p, L: Lane, S: Step<L>>(
        &self,
        partials: &'p mut [L::Wide],
    ) -> &'p [L::Wide] {
        let (first, others) = partials.split_at_mut(self.width);
        if self.width > 0 {
            for other in others.chunks_exact(self.width) {
                for (total, &part) in first.iter_mut().zip(other) {
                    *total = S::join(*total, part);
                }
            }
        }
        first
    }
}

#[inline(always)]
fn columns<T: Number, S: Step<T::Lane>>(
    (x, rows, stride, totals): (&[T], usize, usize, &mut [<T::Lane as Lane>::Wide]),
) {
    let width = totals.len();
    let row = |r: usize| {
        (
            &x[r * stride..r * stride + width],
            &x[r * stride..r * stride + width],
        )
    };
    rows::fold_columns::<T, T, T::Lane, S>(rows, row, |_, _, x, _| x.lane(), totals);
}

/// Bytes of scratch that an operation needs.
pub fn workspace(
    op: &Reduce,
    _machine: &Machine,
    _inputs: &[Option<&TensorType>],
    _outputs: &[Option<&TensorType>],
) -> usize {
    match op {
        Reduce::Fold(fold) => match Form::of(fold) {
            Form::Columns { outer: 1, columns } => columns.partials() * 8,
            _ => 0,
        },
        _ => 0,
    }
}

/// Executes an operation; the error says what is wrong with the data.
pub fn execute(op: &Reduce, _context: &StepContext, call: Call<'_>) -> Result<(), String> {
    let Some(input) = &call.inputs[0] else {
        return Err("the input is missing".to_owned());
    };
    with_type!(input.ty.data_type, T in [
        FLOAT = f32, DOUBLE = f64, FLOAT16 = half::f16, BFLOAT16 = half::bf16, INT64 = i64,
        INT32 = i32, INT8 = i8, UINT8 = u8, BOOL = u8
    ] => typed::<T>(op, call))
}

fn typed<T: Number>(op: &Reduce, mut call: Call<'_>) -> Result<(), String>
where
    <T::Lane as Lane>::Wide: Number<Lane = <T::Lane as Lane>::Wide>,
{
    let ([Some(x), ..], [Some(y), ..]) = (&call.inputs, &mut call.outputs) else {
        return Err("an operand is missing".to_owned());
    };
    let x = x.elements::<T>();
    match op {
        Reduce::Fold(op) => {
            let y_type = y.ty.data_type;
            let y = y.elements::<T>();
            let work = scratch(call.workspace);
            match op.kind {
                Kind::Sum | Kind::Mean | Kind::LogSum => fold::<T, rows::Sum>(op, x, y, work),
                Kind::L1 => fold::<T, rows::SumAbs>(op, x, y, work),
                Kind::L2 | Kind::SumSquare => fold::<T, rows::SumSquare>(op, x, y, work),
                Kind::Product => fold::<T, rows::Product>(op, x, y, work),
                Kind::Max => fold::<T, rows::Max>(op, x, y, work),
                Kind::Min => fold::<T, rows::Min>(op, x, y, work),
                Kind::LogSumExp => log_sum_exp(op, x, y),
            }
            // The least of no truth values is true.
            if y_type == DataType::BOOL {
                for truth in &mut *y {
                    let one = T::narrow(<T::Lane as Lane>::ONE);
                    if truth.lane() > one.lane() {
                        *truth = one;
                    }
                }
            }
        }
        Reduce::Arg(op) => arg(op, x, y.elements::<i64>()),
        Reduce::Running(op) => running(op, x, y.elements::<T>()),
    }
    Ok(())
}

/// The loops of a reduction.
enum Form {
    /// Every output from elements side by side.
    Rows { size: usize },
    /// Columns of matrices.
    Columns { outer: usize, columns: Columns },
    /// Anything else.
    General,
}

impl Form {
    fn of(op: &Fold) -> Form {
        let reduced = |group: &Group| group.reduced;
        match op.groups.as_slice() {
            [] => Form::Rows { size: 1 },
            [only] if !only.reduced => Form::Rows { size: 1 },
            [only] => Form::Rows { size: only.size },
            [_, rows] if reduced(rows) => Form::Rows { size: rows.size },
            [rows, width] => Form::Columns {
                outer: 1,
                columns: Columns::new(rows.size, width.size),
            },
            [outer, rows, width] if reduced(rows) => Form::Columns {
                outer: outer.size,
                columns: Columns::new(rows.size, width.size),
            },
            _ => Form::General,
        }
    }
}

/// What is left to do to a reduced number.
#[inline(always)]
fn finish<T: Number>(kind: Kind, total: <T::Lane as Lane>::Wide, count: usize) -> T {
    type Wide<T> = <<T as Number>::Lane as Lane>::Wide;
    let through = |f: fn(f64) -> f64| <Wide<T> as Lane>::from_f64(f(total.to_f64()));
    let total = match kind {
        Kind::Mean => total.over(count),
        Kind::L2 => through(f64::sqrt),
        Kind::LogSum => through(f64::ln),
        _ => total,
    };
    T::narrow(<T::Lane as Lane>::narrow(total))
}

fn fold<T: Number, S: Step<T::Lane>>(
    op: &Fold,
    x: &[T],
    y: &mut [T],
    work: &mut [<T::Lane as Lane>::Wide],
) {
    let form = Form::of(op);
    if let Form::Columns { outer: 1, columns } = form {
        let totals = columns.fold::<T, S>(x, work);
        for (y, &total) in y.iter_mut().zip(totals) {
            *y = finish::<T>(op.kind, total, columns.rows);
        }
        return;
    }
    // Other types have but the loops for any form, which take long enough to compile.
    if T::VECTOR {
        match form {
            Form::Rows { size } => return fold_all_rows::<T, S>(op.kind, size, x, y),
            Form::Columns { columns, .. } => {
                return fold_matrices::<T, S>(op.kind, columns, x, y);
            }
            Form::General => {}
        }
    }
    let walk = Walk::new(op);
    let block = rows::rows_per_block(walk.count);
    for_blocks(0..y.len(), block, RowsMut::new(y, 1), &|range, y| {
        for (place, y) in range.zip(y.elements) {
            let mut total = S::start().wide();
            walk.runs(place, |start, length, step| {
                let part = if step == 1 {
                    dispatch!(T, rows::fold::<T, S>, &x[start..start + length])
                } else {
                    let elements = (0..length).map(|i| x[start + i * step].lane());
                    elements.fold(S::start(), S::step).wide()
                };
                total = S::join(total, part);
            });
            *y = finish::<T>(op.kind, total, walk.count);
        }
    });
}

fn fold_all_rows<T: Number, S: Step<T::Lane>>(kind: Kind, size: usize, x: &[T], y: &mut [T]) {
    let block = rows::rows_per_block(size);
    for_blocks(0..y.len(), block, RowsMut::new(y, 1), &|rows, y| {
        let x = &x[rows.start * size..rows.end * size];
        dispatch!(T, fold_rows::<T, S>, (kind, size, x, y.elements));
    });
}

fn fold_matrices<T: Number, S: Step<T::Lane>>(
    kind: Kind,
    Columns { rows, width, .. }: Columns,
    x: &[T],
    y: &mut [T],
) {
    let matrices = y.len() / width.max(1);
    let block = rows::rows_per_block(rows * width);
    for_blocks(0..matrices, block, RowsMut::new(y, width), &|range, y| {
        let matrices = range.clone().zip(y.elements.chunks_exact_mut(width));
        for (matrix, y) in matrices {
            let x = &x[matrix * rows * width..(matrix + 1) * rows * width];
            for (tile, y) in y.chunks_mut(STACK_TILE).enumerate() {
                let mut totals = [S::start().wide(); STACK_TILE];
                let totals = &mut totals[..y.len()];
                let x = x.get(tile * STACK_TILE..).unwrap_or(&[]);
                dispatch!(T, columns_of::<T, S>, (x, rows, width, &mut *totals));
                for (y, &total) in y.iter_mut().zip(&*totals) {
                    *y = finish::<T>(kind, total, rows);
                }
            }
        }
    });
}

/// Columns whose totals lie on the stack.
const STACK_TILE: usize = 256;

#[inline(always)]
fn columns_of<T: Number, S: Step<T::Lane>>(
    arguments: (&[T], usize, usize, &mut [<T::Lane as Lane>::Wide]),
) {
    columns::<T, S>(arguments);
}

#[inline(always)]
fn fold_rows<T: Number, S: Step<T::Lane>>((kind, size, x, y): (Kind, usize, &[T], &mut [T])) {
    for (row, y) in y.iter_mut().enumerate() {
        let x = &x[row * size..(row + 1) * size];
        *y = finish::<T>(kind, rows::fold::<T, S>(x), size);
    }
}

/// The places of the elements that go into an output.
struct Walk {
    /// Sizes and strides of the kept groups, from the innermost.
    kept: [(usize, usize); MAX_GROUPS],
    /// The same of the reduced groups.
    reduced: [(usize, usize); MAX_GROUPS],
    /// Elements that go into one output.
    count: usize,
}

impl Walk {
    fn new(op: &Fold) -> Self {
        let mut walk = Walk {
            kept: [(1, 0); MAX_GROUPS],
            reduced: [(1, 0); MAX_GROUPS],
            count: 1,
        };
        let (mut stride, mut kept, mut reduced) = (1, 0, 0);
        for group in op.groups.iter().rev() {
            if group.reduced {
                walk.reduced[reduced] = (group.size, stride);
                walk.count *= group.size;
                reduced += 1;
            } else {
                walk.kept[kept] = (group.size, stride);
                kept += 1;
            }
            stride *= group.size;
        }
        walk
    }

    /// Calls `run` with start, length and step of the runs along the innermost reduced group.
    fn runs(&self, mut place: usize, mut run: impl FnMut(usize, usize, usize)) {
        let mut base = 0;
        for &(size, stride) in &self.kept {
            base += place % size.max(1) * stride;
            place /= size.max(1);
        }
        let (length, step) = self.reduced[0];
        if length == 0 {
            return;
        }
        for outer in 0..self.count / length {
            let (mut rest, mut start) = (outer, base);
            for &(size, stride) in &self.reduced[1..] {
                start += rest % size.max(1) * stride;
                rest /= size.max(1);
            }
            run(start, length, step);
        }
    }
}

fn log_sum_exp<T: Number>(op: &Fold, x: &[T], y: &mut [T]) {
    let walk = Walk::new(op);
    let block = rows::rows_per_block(walk.count);
    for_blocks(0..y.len(), block, RowsMut::new(y, 1), &|range, y| {
        for (place, y) in range.zip(y.elements) {
            let mut greatest = f64::NEG_INFINITY;
            walk.runs(place, |start, length, step| {
                for i in 0..length {
                    greatest = rows::greater(greatest, x[start + i * step].lane().to_f64());
                }
            });
            // Without a finite greatest element the exponentials are 0 or infinite as they are.
            let shift = if greatest.is_finite() { greatest } else { 0.0 };
            let mut sum = 0.0;
            walk.runs(place, |start, length, step| {
                for i in 0..length {
                    sum += (x[start + i * step].lane().to_f64() - shift).exp();
                }
            });
            *y = T::narrow(<T::Lane as Lane>::from_f64(shift + sum.ln()));
        }
    });
}

fn arg<T: Number>(op: &Arg, x: &[T], y: &mut [i64]) {
    let Arg { size, inner, .. } = *op;
    let block = rows::rows_per_block(size);
    for_blocks(0..y.len(), block, RowsMut::new(y, 1), &|range, y| {
        for (place, y) in range.zip(y.elements) {
            let start = place / inner * size * inner + place % inner;
            let (mut best, mut at) = (x[start].lane(), 0);
            for i in 1..size {
                let element = x[start + i * inner].lane();
                let better = if op.greatest {
                    element > best
                } else {
                    element < best
                };
                if better || (op.last && element == best) {
                    (best, at) = (element, i);
                }
            }
            *y = at as i64;
        }
    });
}

fn running<T: Number>(op: &Running, x: &[T], y: &mut [T]) {
    let Running { size, inner, .. } = *op;
    for lane in 0..op.outer * inner {
        let start = lane / inner * size * inner + lane % inner;
        let mut sum = <T::Lane as Lane>::Wide::default();
        for i in 0..size {
            let at = start + inner * if op.reverse { size - 1 - i } else { i };
            let before = sum;
            sum = sum.add(x[at].lane().wide());
            let shown = if op.exclusive { before } else { sum };
            y[at] = T::narrow(<T::Lane as Lane>::narrow(shown));
        }
    }
}
