//! Loops over rows: vector code by run-time dispatch, and blocks of rows on the threads of the pool.

use super::number::{Lane, Number};
use pulp::{Arch, Simd, WithSimd};

/// Elements from which on work is worth a second thread.
pub(crate) const BLOCK: usize = 16 * 1024;

/// Runs a function compiled for the widest vectors of the machine: `dispatch!(T, kernel, arguments)` is
/// `kernel(arguments)`, for elements of type `T`.
///
/// The kernel must be marked `inline(always)`, and so must all that it calls: what is not inlined is
/// compiled for the least of machines.
///
/// Elements of types other than `f32` get the least machine's code: their loops are rarely hot, and code
/// for every machine takes long to compile.
macro_rules! dispatch {
    ($type:ty, $kernel:expr, $arguments:expr $(,)?) => {
        if <$type as $crate::cpu::number::Number>::VECTOR {
            $crate::cpu::rows::vectorize(
                pulp::Arch::new(),
                #[inline(always)]
                |arguments| $kernel(arguments),
                $arguments,
            )
        } else {
            $kernel($arguments)
        }
    };
}

pub(crate) use dispatch;

/// Runs a closure marked `inline(always)` compiled for the vectors of a machine.
///
/// It must capture nothing by unique reference and move nothing: what is written belongs to the
/// arguments. Only a closure that is called as what it is (`Fn`) is inlined for certain. A function, or
/// a closure called through `FnOnce`, is called by a function that the compiler makes, which is not
/// marked, and which is therefore compiled once, for the least of machines, where the kernel is large.
#[inline(always)]
pub(crate) fn vectorize<A, R>(arch: Arch, kernel: impl Fn(A) -> R, arguments: A) -> R {
    struct Run<F, A>(F, A);
    impl<A, R, F: Fn(A) -> R> WithSimd for Run<F, A> {
        type Output = R;
        #[inline(always)]
        fn with_simd<S: Simd>(self, _simd: S) -> R {
            (self.0)(self.1)
        }
    }
    arch.dispatch(Run(kernel, arguments))
}

/// The workspace of a kernel as numbers; one that was not asked for has no alignment.
pub(crate) fn scratch<W: bytemuck::Pod>(bytes: &mut [u8]) -> &mut [W] {
    if bytes.is_empty() {
        &mut []
    } else {
        bytemuck::cast_slice_mut(bytes)
    }
}

/// What rows of operands are written to: it can be cut between two rows.
pub(crate) trait Rows: Send + Sized {
    /// The first rows, and the others.
    fn cut(self, rows: usize) -> (Self, Self);
}

/// Rows of a number of elements each.
pub(crate) struct RowsMut<'a, T> {
    /// The elements of the rows.
    pub elements: &'a mut [T],
    /// Elements of a row.
    pub width: usize,
}

impl<'a, T> RowsMut<'a, T> {
    /// Rows of `width` elements.
    pub(crate) fn new(elements: &'a mut [T], width: usize) -> Self {
        RowsMut { elements, width }
    }
}

impl<T: Send> Rows for RowsMut<'_, T> {
    fn cut(self, rows: usize) -> (Self, Self) {
        let (first, others) = self.elements.split_at_mut(rows * self.width);
        let width = self.width;
        (RowsMut::new(first, width), RowsMut::new(others, width))
    }
}

impl<R: Rows> Rows for Option<R> {
    fn cut(self, rows: usize) -> (Self, Self) {
        match self {
            None => (None, None),
            Some(all) => {
                let (first, others) = all.cut(rows);
                (Some(first), Some(others))
            }
        }
    }
}

impl<A: Rows, B: Rows> Rows for (A, B) {
    fn cut(self, rows: usize) -> (Self, Self) {
        let (a, b) = (self.0.cut(rows), self.1.cut(rows));
        ((a.0, b.0), (a.1, b.1))
    }
}

impl<A: Rows, B: Rows, C: Rows> Rows for (A, B, C) {
    fn cut(self, rows: usize) -> (Self, Self) {
        let (a, b, c) = (self.0.cut(rows), self.1.cut(rows), self.2.cut(rows));
        ((a.0, b.0, c.0), (a.1, b.1, c.1))
    }
}

/// Rows of a block, for rows of a number of elements each: some [`BLOCK`] of elements.
pub(crate) fn rows_per_block(width: usize) -> usize {
    (BLOCK / width.max(1)).max(1)
}

/// Calls `run` on blocks of `block` rows (fewer in the last one), on the threads of the pool. It gets
/// the range of rows, and their part of `written`. The blocks do not depend on the threads.
pub(crate) fn for_blocks<W: Rows>(
    rows: std::ops::Range<usize>,
    block: usize,
    written: W,
    run: &(impl Fn(std::ops::Range<usize>, W) + Sync),
) {
    halve(rows, block, written, run);
}

/// [`for_blocks`] for one type of what is written: the recursion is compiled once for all kernels.
fn halve<W: Rows>(
    rows: std::ops::Range<usize>,
    block: usize,
    written: W,
    run: &(dyn Fn(std::ops::Range<usize>, W) + Sync),
) {
    let blocks = rows.len().div_ceil(block);
    if blocks <= 1 {
        if !rows.is_empty() {
            run(rows, written);
        }
        return;
    }
    let half = blocks / 2 * block;
    let middle = rows.start + half;
    let (first, others) = written.cut(half);
    fork(
        || halve(rows.start..middle, block, first, run),
        || halve(middle..rows.end, block, others, run),
    );
}

/// Calls `run` with the number and the elements of every chunk of `length` elements (fewer in the last
/// one), on the threads of the pool; pieces of work have `grain` elements or more.
pub(crate) fn for_chunks<T: Send>(
    elements: &mut [T],
    length: usize,
    grain: usize,
    run: &(impl Fn(usize, &mut [T]) + Sync),
) {
    let length = length.max(1);
    let chunks = elements.len().div_ceil(length);
    let block = grain.div_ceil(length).max(1);
    let written = RowsMut::new(elements, length);
    for_blocks(0..chunks, block, written, &|range, part| {
        for (number, chunk) in range.zip(part.elements.chunks_mut(length)) {
            run(number, chunk);
        }
    });
}

/// `rayon::join`, the machinery of which is large, compiled once.
pub(crate) fn fork(a: impl FnOnce() + Send, b: impl FnOnce() + Send) {
    let (mut a, mut b) = (Some(a), Some(b));
    join(
        &mut || {
            if let Some(a) = a.take() {
                a();
            }
        },
        &mut || {
            if let Some(b) = b.take() {
                b();
            }
        },
    );
}

fn join(a: &mut (dyn FnMut() + Send), b: &mut (dyn FnMut() + Send)) {
    rayon::join(a, b);
}

/// A reduction step by step.
pub(crate) trait Step<L: Lane> {
    /// The reduction of nothing.
    fn start() -> L;
    /// With one more element.
    fn step(so_far: L, element: L) -> L;
    /// Of two parts.
    fn join(a: L::Wide, b: L::Wide) -> L::Wide;
    /// Of two parts, in the lane's type.
    fn join_lanes(a: L, b: L) -> L;
}

/// Adds.
pub(crate) struct Sum;
/// Adds absolute values.
pub(crate) struct SumAbs;
/// Adds squares.
pub(crate) struct SumSquare;
/// Multiplies.
pub(crate) struct Product;
/// Keeps the greatest; a NaN is the greatest of all.
pub(crate) struct Max;
/// Keeps the least; a NaN is the least of all.
pub(crate) struct Min;

macro_rules! step {
    ($name:ty, $start:expr, |$so_far:ident, $element:ident| $step:expr, |$a:ident, $b:ident| $join:expr) => {
        impl<L: Lane> Step<L> for $name {
            #[inline(always)]
            fn start() -> L {
                $start
            }
            #[inline(always)]
            fn step($so_far: L, $element: L) -> L {
                $step
            }
            #[inline(always)]
            fn join($a: L::Wide, $b: L::Wide) -> L::Wide {
                $join
            }
            #[inline(always)]
            fn join_lanes($a: L, $b: L) -> L {
                $join
            }
        }
    };
}

step!(Sum, L::default(), |s, x| s.add(x), |a, b| a.add(b));
step!(SumAbs, L::default(), |s, x| s.add(x.abs()), |a, b| a.add(b));
step!(SumSquare, L::default(), |s, x| s.add(x.mul(x)), |a, b| a
    .add(b));
step!(Product, L::ONE, |s, x| s.mul(x), |a, b| a.mul(b));
step!(Max, L::LOWEST, |s, x| greater(s, x), |a, b| greater(a, b));
step!(Min, L::HIGHEST, |s, x| less(s, x), |a, b| less(a, b));

/// The greater one; NaN if one is.
#[inline(always)]
pub(crate) fn greater<L: PartialOrd + Copy>(a: L, b: L) -> L {
    // A NaN differs from itself.
    #[allow(clippy::eq_op)]
    if b > a || b != b { b } else { a }
}

/// The lesser one; NaN if one is.
#[inline(always)]
fn less<L: PartialOrd + Copy>(a: L, b: L) -> L {
    #[allow(clippy::eq_op)]
    if b < a || b != b { b } else { a }
}

/// Whether elements have vector code ([`Number::VECTOR`]): for others, loops of many lanes would but
/// take long to compile.
const fn is_vector<A, L>() -> bool {
    size_of::<A>() == 4 && size_of::<L>() == 4
}

/// Elements after which the lanes are folded into the wide total: a lane adds 32 of them.
const FOLD: usize = 2048;

/// Reduces elements that lie side by side.
#[inline(always)]
pub(crate) fn fold<T: Number, S: Step<T::Lane>>(x: &[T]) -> <T::Lane as Lane>::Wide {
    fold_pairs::<T, T, T::Lane, S>(x, x, |x, _| x.lane())
}

/// Reduces `f` of the elements of two rows.
#[inline(always)]
pub(crate) fn fold_pairs<A: Copy, B: Copy, L: Lane, S: Step<L>>(
    a: &[A],
    b: &[B],
    f: impl Fn(A, B) -> L,
) -> L::Wide {
    fold_triples::<A, B, B, L, S>(a, b, b, |a, b, _| f(a, b))
}

/// Reduces `f` of the elements of three rows.
#[inline(always)]
pub(crate) fn fold_triples<A: Copy, B: Copy, C: Copy, L: Lane, S: Step<L>>(
    a: &[A],
    b: &[B],
    c: &[C],
    f: impl Fn(A, B, C) -> L,
) -> L::Wide {
    let mut total = S::start().wide();
    let blocks = a.chunks(FOLD).zip(b.chunks(FOLD)).zip(c.chunks(FOLD));
    for ((a, b), c) in blocks {
        let part = if !is_vector::<A, L>() {
            lanes::<A, B, C, L, S, 8>(a, b, c, &f)
        } else if a.len() < 256 {
            lanes::<A, B, C, L, S, 16>(a, b, c, &f)
        } else {
            lanes::<A, B, C, L, S, 64>(a, b, c, &f)
        };
        total = S::join(total, part.wide());
    }
    total
}

#[inline(always)]
fn lanes<A: Copy, B: Copy, C: Copy, L: Lane, S: Step<L>, const LANES: usize>(
    a: &[A],
    b: &[B],
    c: &[C],
    f: &impl Fn(A, B, C) -> L,
) -> L {
    let mut sums = [S::start(); LANES];
    let (wholes_a, rest_a) = a.as_chunks::<LANES>();
    let (wholes_b, rest_b) = b.as_chunks::<LANES>();
    let (wholes_c, rest_c) = c.as_chunks::<LANES>();
    for ((a, b), c) in wholes_a.iter().zip(wholes_b).zip(wholes_c) {
        for lane in 0..LANES {
            sums[lane] = S::step(sums[lane], f(a[lane], b[lane], c[lane]));
        }
    }
    let rest = rest_a.iter().zip(rest_b).zip(rest_c);
    for (sum, ((&a, &b), &c)) in sums.iter_mut().zip(rest) {
        *sum = S::step(*sum, f(a, b, c));
    }
    let mut width = LANES / 2;
    while width > 0 {
        for lane in 0..width {
            sums[lane] = S::join_lanes(sums[lane], sums[lane + width]);
        }
        width /= 2;
    }
    sums[0]
}

/// Columns that are accumulated at once, on the stack.
const TILE: usize = 256;
/// Rows after which the lanes are folded into the wide totals.
const DEPTH: usize = 64;

/// Reduces columns: to `totals`, one by column, joins `f(row, column, ..)` of all rows.
///
/// `row(r)` gives the elements of two rows; each is as long as `totals`.
#[inline(always)]
pub(crate) fn fold_columns<'a, A, B, L, S>(
    rows: usize,
    row: impl Fn(usize) -> (&'a [A], &'a [B]),
    f: impl Fn(usize, usize, A, B) -> L,
    totals: &mut [L::Wide],
) where
    A: Copy + 'a,
    B: Copy + 'a,
    L: Lane,
    S: Step<L>,
{
    let mut first = 0;
    while first < totals.len() {
        let width = TILE.min(totals.len() - first);
        let tile = &mut totals[first..first + width];
        let mut start = 0;
        while start < rows {
            let end = rows.min(start + DEPTH);
            let mut sums = [S::start(); TILE];
            let mut at = start;
            while is_vector::<A, L>() && at + 4 <= end {
                let ((a0, b0), (a1, b1)) = (row(at), row(at + 1));
                let ((a2, b2), (a3, b3)) = (row(at + 2), row(at + 3));
                let part = first..first + width;
                let (a0, a1) = (&a0[part.clone()], &a1[part.clone()]);
                let (a2, a3) = (&a2[part.clone()], &a3[part.clone()]);
                let (b0, b1) = (&b0[part.clone()], &b1[part.clone()]);
                let (b2, b3) = (&b2[part.clone()], &b3[part]);
                let sums = &mut sums[..width];
                for c in 0..width {
                    let sum = S::step(sums[c], f(at, first + c, a0[c], b0[c]));
                    let sum = S::step(sum, f(at + 1, first + c, a1[c], b1[c]));
                    let sum = S::step(sum, f(at + 2, first + c, a2[c], b2[c]));
                    sums[c] = S::step(sum, f(at + 3, first + c, a3[c], b3[c]));
                }
                at += 4;
            }
            while at < end {
                let (a, b) = row(at);
                let (a, b) = (&a[first..first + width], &b[first..first + width]);
                for (c, ((sum, &a), &b)) in sums.iter_mut().zip(a).zip(b).enumerate() {
                    *sum = S::step(*sum, f(at, first + c, a, b));
                }
                at += 1;
            }
            for (total, sum) in tile.iter_mut().zip(&sums) {
                *total = S::join(*total, sum.wide());
            }
            start = end;
        }
        first += width;
    }
}
