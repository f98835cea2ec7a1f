//! The loops around the kernels: which part of the product is computed when, and by whom.
//!
//! Only one thing about them shows in the bits of the result: the inner dimension is cut into blocks of
//! `kc`, a number that depends on its length only, and the sums of the blocks are added in their order.
//! Everything else (tiles, threads, blocks computed side by side) only says who computes what.

use crate::cpu::rows::{for_chunks, fork};

use super::blocking::Blocking;
use super::element::{Accumulator, Element};
use super::kernel::{Job, Kernels};
use super::pack::{Part, pack};
use super::tile::TileMut;
use super::{Bias, Matrix, Problem};

/// Below this many multiplications a task is not worth handing to another thread.
const LEAF: usize = 1 << 21;
/// Rows of a leaf: with `KC` they fill a third of a second-level cache of 1 MiB.
const LEAF_ROWS: usize = 168;
/// Below this many elements packing is not worth handing to another thread.
const PACK_LEAF: usize = 1 << 15;
/// Up to this many panels of columns the left operand is read where it lies, if its rows are contiguous.
const UNPACKED_PANELS: usize = 1;
/// Up to this many panels of rows the right operand is read where it lies, if its rows are contiguous.
const UNPACKED_HEIGHTS: usize = 3;
/// Elements between columns up to which the left operand is read where it lies, if these are contiguous.
const NARROW: usize = 64;
/// Panels of the right operand that are packed together where there are few rows.
const PACKED_TOGETHER: usize = 8;

/// A product of two matrices, without its result.
pub struct Product<'a, A: Element, B: Element> {
    /// The kernels.
    pub kernels: &'static Kernels<A::Acc>,
    /// How it is cut.
    pub blocking: Blocking,
    /// The sizes.
    pub problem: Problem,
    /// The left operand.
    pub a: Matrix<'a, A>,
    /// The right operand.
    pub b: Matrix<'a, B>,
    /// The factor of the product.
    pub alpha: A::Acc,
    /// The factor of what the result holds before.
    pub beta: A::Acc,
    /// What is added at the end.
    pub bias: Bias<'a, A::Acc>,
}

/// A rectangle of the result and a block of the inner dimension.
#[derive(Clone, Copy)]
struct Block {
    row: usize,
    col: usize,
    depth: usize,
    kc: usize,
}

/// A block whose operands are packed.
struct Packed<'a, T: Accumulator> {
    kernels: &'static Kernels<T>,
    left: Left<'a, T>,
    height: usize,
    alpha: T,
    beta: T,
    /// The bias, where this block is the last one.
    bias: Bias<'a, T>,
    block: Block,
    /// Multiplications of a leaf.
    leaf: usize,
}

/// The left operand of a block.
#[derive(Clone, Copy)]
enum Left<'a, T> {
    /// In panels.
    Packed(&'a [T]),
    /// Where it lies, with the elements between two of its contiguous rows.
    Rows(&'a [T], usize),
    /// Where it lies, with the elements between two of its contiguous columns.
    Cols(&'a [T], usize),
}

/// The right operand of a block from some column on.
#[derive(Clone, Copy)]
struct Right<'a, T> {
    data: &'a [T],
    /// Elements between the groups of a panel.
    stride: usize,
    /// Elements between two panels.
    panel: usize,
}

impl<'a, T> Right<'a, T> {
    /// One in packed panels.
    fn packed(data: &'a [T], nr: usize, kc: usize) -> Self {
        Right {
            data,
            stride: nr,
            panel: nr * kc,
        }
    }

    /// The same from a later column on, which starts a panel.
    fn from(self, col: usize, nr: usize) -> Self {
        Right {
            data: &self.data[col / nr * self.panel..],
            ..self
        }
    }
}

impl<A, B> Product<'_, A, B>
where
    A: Element,
    B: Element<Acc = A::Acc>,
{
    /// Computes the product into `c`, with at least [`Blocking::scratch`] accumulators of scratch.
    pub fn run<C: Element<Acc = A::Acc>>(&self, c: TileMut<'_, C>, scratch: &mut [A::Acc]) {
        let Blocking {
            mc, nc, converted, ..
        } = self.blocking;
        let Problem { m, n, .. } = self.problem;
        let mut columns = c;
        for col in (0..n).step_by(nc) {
            let (mut rows, rest) = columns.split_cols(nc);
            columns = rest;
            for row in (0..m).step_by(mc) {
                let (tile, rest) = rows.split_rows(mc);
                rows = rest;
                match C::accumulators(tile) {
                    Ok(tile) => self.rectangle(tile, (row, col), self.beta, self.bias, scratch),
                    Err(tile) => {
                        let (sums, scratch) = scratch.split_at_mut(converted);
                        self.converted(tile, (row, col), sums, scratch);
                    }
                }
            }
        }
    }

    /// A rectangle of a result that is not stored as accumulators.
    fn converted<C: Element<Acc = A::Acc>>(
        &self,
        tile: TileMut<'_, C>,
        (row, col): (usize, usize),
        sums: &mut [A::Acc],
        scratch: &mut [A::Acc],
    ) {
        let (m, n) = (tile.rows(), tile.cols());
        // `Blocking` counted as many sums.
        if let Some(sums) = TileMut::dense(sums, m, n) {
            self.rectangle(sums, (row, col), A::Acc::ZERO, Bias::None, scratch);
        }
        each_row(tile, row, &|row_of_c, to: &mut [C]| {
            for (i, (to, &sum)) in to.iter_mut().zip(&sums[(row_of_c - row) * n..]).enumerate() {
                let sum = accumulate(sum, self.beta, || to.to_acc());
                *to = C::from_acc(self.bias.add(row_of_c, col + i, sum));
            }
        });
    }

    /// Computes one rectangle of the result.
    fn rectangle(
        &self,
        mut tile: TileMut<'_, A::Acc>,
        (row, col): (usize, usize),
        beta: A::Acc,
        bias: Bias<'_, A::Acc>,
        scratch: &mut [A::Acc],
    ) {
        let k = self.problem.k;
        if k == 0 {
            return each_row(tile, row, &|row, to: &mut [A::Acc]| {
                for (i, to) in to.iter_mut().enumerate() {
                    *to = bias.add(row, col + i, accumulate(A::Acc::ZERO, beta, || *to));
                }
            });
        }
        if self.blocking.side_by_side > 1 {
            return self.side_by_side(tile, (row, col), beta, bias, scratch);
        }
        for depth in (0..k).step_by(self.blocking.kc) {
            let kc = self.blocking.kc.min(k - depth);
            let beta = if depth == 0 { beta } else { A::Acc::ONE };
            let bias = if depth + kc == k { bias } else { Bias::None };
            self.block(
                tile.reborrow(),
                Block {
                    row,
                    col,
                    depth,
                    kc,
                },
                beta,
                bias,
                scratch,
            );
        }
    }

    /// A result of few tiles: blocks of the inner dimension side by side, each into sums of its own, which are
    /// added in the order of the blocks.
    fn side_by_side(
        &self,
        mut tile: TileMut<'_, A::Acc>,
        (row, col): (usize, usize),
        beta: A::Acc,
        bias: Bias<'_, A::Acc>,
        scratch: &mut [A::Acc],
    ) {
        let Blocking {
            kc,
            side_by_side,
            left,
            right,
            sums,
            ..
        } = self.blocking;
        let (m, n, k) = (tile.rows(), tile.cols(), self.problem.k);
        let per_block = left + right + sums;
        for wave in (0..k).step_by(kc * side_by_side) {
            let here = (k - wave).div_ceil(kc).min(side_by_side);
            let scratch = &mut scratch[..here * per_block];
            for_chunks(scratch, per_block, 1, &|index, scratch| {
                let depth = wave + index * kc;
                let (sums, scratch) = scratch.split_at_mut(sums);
                // `Blocking` counted as many sums.
                if let Some(tile) = TileMut::dense(sums, m, n) {
                    let block = Block {
                        row,
                        col,
                        depth,
                        kc: kc.min(k - depth),
                    };
                    self.block(tile, block, A::Acc::ZERO, Bias::None, scratch);
                }
            });
            for (index, sums) in scratch.chunks(per_block).enumerate() {
                let beta = if wave == 0 && index == 0 {
                    beta
                } else {
                    A::Acc::ONE
                };
                for row in 0..m {
                    for (to, &sum) in tile.row(row).iter_mut().zip(&sums[row * n..]) {
                        *to = accumulate(sum, beta, || *to);
                    }
                }
            }
        }
        for i in 0..m {
            for (j, to) in tile.row(i).iter_mut().enumerate() {
                *to = bias.add(row + i, col + j, *to);
            }
        }
    }

    /// Adds one block of the inner dimension to one rectangle of the result.
    fn block(
        &self,
        tile: TileMut<'_, A::Acc>,
        block: Block,
        beta: A::Acc,
        bias: Bias<'_, A::Acc>,
        scratch: &mut [A::Acc],
    ) {
        let (m, n, kc) = (tile.rows(), tile.cols(), block.kc);
        let Blocking {
            height, nr, left, ..
        } = self.blocking;
        let (left, right) = scratch.split_at_mut(left);
        let left = match A::as_accumulators(self.a.data) {
            // Few columns read the left operand too few times to pay for packing it.
            Some(data) if self.a.col_stride == 1 && n <= UNPACKED_PANELS * nr => {
                let start = self.a.at(block.row, block.depth);
                Left::Rows(&data[start..], self.a.row_stride)
            }
            // The sums walk through such a matrix from cache line to cache line.
            Some(data) if self.a.row_stride == 1 && self.a.col_stride <= NARROW => {
                let start = self.a.at(block.row, block.depth);
                Left::Cols(&data[start..], self.a.col_stride)
            }
            _ => {
                let left = &mut left[..m * kc];
                panels(left, height * kc, &|index, panel: &mut [A::Acc]| {
                    let lanes = panel.len() / kc;
                    let part = Part {
                        start: self.a.at(block.row + index * height, block.depth),
                        lanes,
                        lane_stride: self.a.row_stride,
                        depth: kc,
                        depth_stride: self.a.col_stride,
                    };
                    pack(self.kernels, &self.a, &part, panel, lanes);
                });
                Left::Packed(left)
            }
        };
        let right = &mut right[..n.next_multiple_of(nr) * kc];
        let pack_right = |index: usize, panel: &mut [A::Acc]| {
            let part = Part {
                start: self.b.at(block.depth, block.col + index * nr),
                lanes: nr.min(n - index * nr),
                lane_stride: self.b.col_stride,
                depth: kc,
                depth_stride: self.b.row_stride,
            };
            pack(self.kernels, &self.b, &part, panel, nr);
        };
        let packed = Packed {
            kernels: self.kernels,
            left,
            height,
            alpha: self.alpha,
            beta,
            bias,
            block,
            leaf: LEAF.max(m * n * kc / 256),
        };
        if m <= LEAF_ROWS {
            let unpacked = B::as_accumulators(self.b.data)
                .filter(|_| {
                    self.b.col_stride == 1
                        && (m <= UNPACKED_HEIGHTS * height || self.b.row_stride <= NARROW)
                })
                .map(|data| &data[self.b.at(block.depth, block.col)..]);
            let right_stride = self.b.row_stride;
            packed.columns(
                tile,
                0,
                right,
                &pack_right,
                unpacked.map(|data| (data, right_stride)),
            );
        } else {
            panels(right, nr * kc, &pack_right);
            packed.tiles(tile, Right::packed(right, nr, kc), 0, 0);
        }
    }
}

impl<T: Accumulator> Packed<'_, T> {
    /// Computes the columns from `col` on, of few rows: each panel of the right operand is packed just before
    /// it is used and forgotten then, or read where it lies if `unpacked` has it with contiguous rows.
    fn columns(
        &self,
        mut tile: TileMut<'_, T>,
        col: usize,
        right: &mut [T],
        pack_right: &(impl Fn(usize, &mut [T]) + Sync),
        unpacked: Option<(&[T], usize)>,
    ) {
        let (m, n, nr, kc) = (tile.rows(), tile.cols(), self.kernels.nr, self.block.kc);
        if n > nr && m * n * kc > self.leaf {
            let at = n.div_ceil(nr) / 2 * nr;
            let (first, second) = tile.split_cols(at);
            let (first_right, second_right) = right.split_at_mut(at * kc);
            fork(
                || self.columns(first, col, first_right, pack_right, unpacked),
                || self.columns(second, col + at, second_right, pack_right, unpacked),
            );
            return;
        }
        for j in (0..n).step_by(PACKED_TOGETHER * nr) {
            let (group, rest) = tile.split_cols(PACKED_TOGETHER * nr);
            tile = rest;
            let mut group = group;
            if let Some((data, stride)) = unpacked {
                let whole = group.cols() / nr * nr;
                let (first, rest) = group.split_cols(whole);
                self.leaf(
                    first,
                    Right {
                        data: &data[col + j..],
                        stride,
                        panel: nr,
                    },
                    0,
                    col + j,
                );
                if rest.cols() > 0 {
                    let panel = &mut right[..nr * kc];
                    pack_right((col + j + whole) / nr, panel);
                    self.leaf(rest, Right::packed(panel, nr, kc), 0, col + j + whole);
                }
                continue;
            }
            for (index, panel) in right
                .chunks_mut(nr * kc)
                .enumerate()
                .take(group.cols().div_ceil(nr))
            {
                pack_right((col + j) / nr + index, panel);
            }
            self.leaf(group.reborrow(), Right::packed(right, nr, kc), 0, col + j);
        }
    }

    /// Computes the rectangle that starts at `row` and `col` of the block's one, both at the start of a panel;
    /// `right` is the packed right operand from `col` on.
    fn tiles(&self, tile: TileMut<'_, T>, right: Right<'_, T>, row: usize, col: usize) {
        let (m, n, nr) = (tile.rows(), tile.cols(), self.kernels.nr);
        let half = |length: usize, unit: usize| length.div_ceil(unit) / 2 * unit;
        let small = m * n * self.block.kc <= self.leaf;
        let (first, second) = if m > self.height && (m > LEAF_ROWS || !small && n <= nr) {
            let at = half(m, self.height);
            let (first, second) = tile.split_rows(at);
            ((first, right, row, col), (second, right, row + at, col))
        } else if n > nr && !small {
            let at = half(n, nr);
            let (first, second) = tile.split_cols(at);
            (
                (first, right, row, col),
                (second, right.from(at, nr), row, col + at),
            )
        } else {
            return self.leaf(tile, right, row, col);
        };
        let run = |(tile, right, row, col)| self.tiles(tile, right, row, col);
        if small {
            run(first);
            run(second);
        } else {
            fork(|| run(first), || run(second));
        }
    }

    /// Computes a rectangle on this thread.
    fn leaf(&self, mut tile: TileMut<'_, T>, right: Right<'_, T>, row: usize, col: usize) {
        let (m, n, nr, kc) = (tile.rows(), tile.cols(), self.kernels.nr, self.block.kc);
        let stride = tile.stride();
        let start = tile.as_mut_ptr();
        for j in (0..n).step_by(nr) {
            let (b, b_stride) = (
                &right.from(j, nr).data[..(kc - 1) * right.stride + nr],
                right.stride,
            );
            let cols = nr.min(n - j);
            for i in (0..m).step_by(self.height) {
                let rows = self.height.min(m - i);
                let (kernels, a, a_row_stride, a_depth_stride) = match self.left {
                    Left::Packed(left) => {
                        let panel = &left[(row + i) * kc..][..rows * kc];
                        (self.kernels.packed, panel, 1, rows)
                    }
                    Left::Rows(left, stride) => {
                        let rows = &left[(row + i) * stride..][..(rows - 1) * stride + kc];
                        (self.kernels.unpacked, rows, stride, 1)
                    }
                    Left::Cols(left, stride) => {
                        let cols = &left[row + i..][..(kc - 1) * stride + rows];
                        (self.kernels.packed, cols, 1, stride)
                    }
                };
                // SAFETY: the slices have what the kernel reads, and `rows` by `cols` elements from `i`, `j`
                // on lie in the tile, which is borrowed exclusively. The kernels were chosen for this machine.
                unsafe {
                    kernels[rows - 1](&Job {
                        k: kc,
                        a: a.as_ptr(),
                        a_row_stride,
                        a_depth_stride,
                        b: b.as_ptr(),
                        b_stride,
                        c: start.add(i * stride + j),
                        c_stride: stride,
                        cols,
                        alpha: self.alpha,
                        beta: self.beta,
                    });
                }
            }
        }
        if !matches!(self.bias, Bias::None) {
            let (row, col) = (self.block.row + row, self.block.col + col);
            for i in 0..m {
                self.bias.add_to(row + i, col, tile.row(i));
            }
        }
    }
}

/// `sum + beta * before`, without reading what was before if `beta` is zero.
fn accumulate<T: Accumulator>(sum: T, beta: T, before: impl FnOnce() -> T) -> T {
    if beta == T::ZERO {
        sum
    } else {
        beta.multiply_add(before(), sum)
    }
}

/// Runs `each` on the panels of a packed operand, side by side if there is enough of it.
fn panels<T: Send>(packed: &mut [T], length: usize, each: &(impl Fn(usize, &mut [T]) + Sync)) {
    if packed.len() <= PACK_LEAF {
        packed
            .chunks_mut(length.max(1))
            .enumerate()
            .for_each(|(index, panel)| each(index, panel));
    } else {
        for_chunks(packed, length, PACK_LEAF, each);
    }
}

/// Runs `each` on the rows of a tile, side by side if there is enough of it; the first one has number `first`.
fn each_row<T: Send>(
    mut tile: TileMut<'_, T>,
    first: usize,
    each: &(impl Fn(usize, &mut [T]) + Sync),
) {
    let rows = tile.rows();
    if rows < 2 || rows * tile.cols() <= PACK_LEAF {
        for row in 0..rows {
            each(first + row, tile.row(row));
        }
    } else {
        let (upper, lower) = tile.split_rows(rows / 2);
        fork(
            || each_row(upper, first, each),
            || each_row(lower, first + rows / 2, each),
        );
    }
}
