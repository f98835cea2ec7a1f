//! The product of two matrices, `C = alpha A B + beta C + bias`.
//!
//! Written after the structure of BLIS (Van Zee and van de Geijn, "BLIS: A Framework for Rapidly
//! Instantiating BLAS Functionality", 2015): both operands are packed into panels in the order in which a
//! micro-kernel reads them, and the kernel keeps a tile of the result in registers.
//!
//! - Nothing is allocated: packing goes into a workspace of [`workspace_len`] accumulators.
//! - The bits of the result depend on the sizes and the machine's instruction set only, not on the number of
//!   threads nor on where the operands lie.
//! - An operand is any matrix whose elements have constant distances, so a transposed one is a view.
//! - Threads are those of the rayon pool that the caller is in.

mod blocking;
mod drive;
mod element;
mod kernel;
mod pack;
mod tile;

#[cfg(test)]
mod tests;

use crate::cpu::rows::fork;
use blocking::Blocking;
use drive::Product;
pub use element::{Accumulator, Element};
pub(crate) use kernel::{Kernels, rows_apart};
use tile::Outputs;
pub(crate) use tile::TileMut;

/// The most dimensions of a batch.
pub const MAX_BATCH_DIMS: usize = 6;

/// Elements by which scratch is aligned: a cache line of `f32`.
const ALIGNMENT: usize = 16;
/// A product of fewer multiplications does not occupy several threads: a batch of such is shared out among
/// them.
const SMALL: usize = 1 << 23;
/// Into how many parts a batch of small products is cut at most.
const MAX_PARTS: usize = 64;

/// The sizes of a product of an `m` by `k` and a `k` by `n` matrix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Rows of the left operand and of the result.
    pub m: usize,
    /// Columns of the right operand and of the result.
    pub n: usize,
    /// The length of the sums.
    pub k: usize,
}

/// An operand: element `(i, j)` is `data[offset + i * row_stride + j * col_stride]`.
#[derive(Clone, Copy, Debug)]
pub struct Matrix<'a, T> {
    /// The elements, and possibly others.
    pub data: &'a [T],
    /// Where the first element lies.
    pub offset: usize,
    /// Elements between two rows.
    pub row_stride: usize,
    /// Elements between two columns.
    pub col_stride: usize,
}

impl<'a, T> Matrix<'a, T> {
    /// A dense row-major matrix with `cols` columns.
    pub fn row_major(data: &'a [T], cols: usize) -> Self {
        Matrix {
            data,
            offset: 0,
            row_stride: cols,
            col_stride: 1,
        }
    }

    /// The transposed matrix.
    pub fn transposed(self) -> Self {
        Matrix {
            row_stride: self.col_stride,
            col_stride: self.row_stride,
            ..self
        }
    }

    /// The place of an element; it exists where the element does, which is checked on entry.
    fn at(&self, row: usize, col: usize) -> usize {
        self.offset + row * self.row_stride + col * self.col_stride
    }
}

/// The result: as [`Matrix`], and its rows or its columns are contiguous.
#[derive(Debug)]
pub struct MatrixMut<'a, T> {
    /// The elements, and possibly others, which are left alone.
    pub data: &'a mut [T],
    /// Where the first element lies.
    pub offset: usize,
    /// Elements between two rows.
    pub row_stride: usize,
    /// Elements between two columns.
    pub col_stride: usize,
}

impl<'a, T> MatrixMut<'a, T> {
    /// A dense row-major matrix with `cols` columns.
    pub fn row_major(data: &'a mut [T], cols: usize) -> Self {
        MatrixMut {
            data,
            offset: 0,
            row_stride: cols,
            col_stride: 1,
        }
    }

    /// The transposed matrix.
    pub fn transposed(self) -> Self {
        MatrixMut {
            row_stride: self.col_stride,
            col_stride: self.row_stride,
            ..self
        }
    }
}

/// One dimension of a batch of products; the offsets of the operands of an index are the sums over the
/// dimensions of index times stride.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BatchDim {
    /// The number of indices.
    pub len: usize,
    /// Elements between the left operands of two indices; zero if they share it.
    pub a: usize,
    /// Elements between the right operands.
    pub b: usize,
    /// Elements between the results.
    pub c: usize,
}

/// What is added to the result after everything else.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub enum Bias<'a, T> {
    /// Nothing.
    #[default]
    None,
    /// One number for each column.
    PerColumn(&'a [T]),
    /// One number for each row.
    PerRow(&'a [T]),
}

impl<T: Accumulator> Bias<'_, T> {
    /// The element of the result at `row` and `col` with its bias; there is one, which is checked on entry.
    fn add(&self, row: usize, col: usize, value: T) -> T {
        match self {
            Bias::None => value,
            Bias::PerColumn(bias) => value.plus(bias[col]),
            Bias::PerRow(bias) => value.plus(bias[row]),
        }
    }

    /// Adds the bias to elements of a row from `col` on.
    fn add_to(&self, row: usize, col: usize, elements: &mut [T]) {
        match self {
            Bias::None => {}
            Bias::PerColumn(bias) => {
                for (to, &bias) in elements.iter_mut().zip(&bias[col..]) {
                    *to = to.plus(bias);
                }
            }
            Bias::PerRow(bias) => {
                for to in elements {
                    *to = to.plus(bias[row]);
                }
            }
        }
    }

    /// The same numbers for the transposed result.
    fn transposed(self) -> Self {
        match self {
            Bias::None => Bias::None,
            Bias::PerColumn(bias) => Bias::PerRow(bias),
            Bias::PerRow(bias) => Bias::PerColumn(bias),
        }
    }
}

/// Why a product was refused; nothing was written.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GemmError {
    /// An operand has too few elements for its sizes and strides.
    #[error(
        "{operand} of a {problem:?} product reaches past its {available} elements; expected sizes and \
         strides within them"
    )]
    OutOfBounds {
        /// Which operand.
        operand: &'static str,
        /// The sizes.
        problem: Problem,
        /// The elements that there are.
        available: usize,
    },
    /// Two elements of the results would share a place.
    #[error("results of a {problem:?} product overlap: strides {row_stride} and {col_stride}")]
    Overlap {
        /// The sizes.
        problem: Problem,
        /// Elements between two rows.
        row_stride: usize,
        /// Elements between two columns.
        col_stride: usize,
    },
    /// Neither rows nor columns of the result are contiguous.
    #[error(
        "a result with strides {row_stride} and {col_stride}; expected contiguous rows or columns"
    )]
    Scattered {
        /// Elements between two rows.
        row_stride: usize,
        /// Elements between two columns.
        col_stride: usize,
    },
    /// Too small a workspace.
    #[error("a workspace of {found} elements; a {problem:?} product needs {needed}")]
    Workspace {
        /// The sizes.
        problem: Problem,
        /// What `workspace_len` says.
        needed: usize,
        /// What was given.
        found: usize,
    },
    /// Too few numbers in the bias.
    #[error("a bias of {found} numbers; expected {expected}")]
    Bias {
        /// Columns or rows of the result.
        expected: usize,
        /// What was given.
        found: usize,
    },
    /// Too many dimensions of a batch.
    #[error("a batch of {0} dimensions; at most {MAX_BATCH_DIMS} are supported")]
    BatchDims(usize),
}

/// The accumulators of workspace that a product needs: a function of the sizes, the element types and the
/// instruction set. `batch` is the number of products, `C` the type of the result.
pub fn workspace_len<C: Element>(problem: Problem, batch: usize) -> usize {
    // The result may be computed transposed.
    let swapped = Problem {
        m: problem.n,
        n: problem.m,
        k: problem.k,
    };
    needed::<C>(problem, batch)
        .1
        .max(needed::<C>(swapped, batch).1)
        + ALIGNMENT
}

/// The parts that a batch is cut into and the accumulators of scratch for all of them.
fn needed<C: Element>(problem: Problem, batch: usize) -> (usize, usize) {
    let blocking = Blocking::new(C::Acc::kernels(), problem, !is_accumulator::<C>());
    let multiplications = problem
        .m
        .saturating_mul(problem.n)
        .saturating_mul(problem.k);
    let parts = if multiplications < SMALL {
        batch.clamp(1, MAX_PARTS)
    } else {
        1
    };
    (
        parts,
        parts * blocking.scratch().next_multiple_of(ALIGNMENT),
    )
}

/// Whether a type is one that products are summed in.
fn is_accumulator<C: Element>() -> bool {
    C::as_accumulators(&[]).is_some()
}

/// The product of two matrices: `c = alpha * a * b + beta * c + bias`. What `c` holds is not read if `beta` is
/// zero.
///
/// # Errors
///
/// Where an operand lies outside its slice, elements of the result overlap or neither its rows nor its
/// columns are contiguous, the bias is too short or the workspace shorter than [`workspace_len`].
#[expect(
    clippy::too_many_arguments,
    reason = "the arguments of the operation that everyone knows"
)]
pub fn gemm<A, B, C>(
    problem: Problem,
    alpha: A::Acc,
    a: Matrix<'_, A>,
    b: Matrix<'_, B>,
    beta: A::Acc,
    c: MatrixMut<'_, C>,
    bias: Bias<'_, A::Acc>,
    workspace: &mut [A::Acc],
) -> Result<(), GemmError>
where
    A: Element,
    B: Element<Acc = A::Acc>,
    C: Element<Acc = A::Acc>,
{
    gemm_batched(problem, &[], alpha, a, b, beta, c, bias, workspace)
}

/// The products of a batch of matrices: as [`gemm`] for every index of the dimensions of `batch`, the last of
/// which is the fastest. Small products are shared out among the threads, large ones are computed one after
/// the other by all of them.
///
/// # Errors
///
/// As [`gemm`], and where the batch has too many dimensions.
#[expect(
    clippy::too_many_arguments,
    reason = "the arguments of the operation that everyone knows"
)]
pub fn gemm_batched<A, B, C>(
    problem: Problem,
    batch: &[BatchDim],
    alpha: A::Acc,
    a: Matrix<'_, A>,
    b: Matrix<'_, B>,
    beta: A::Acc,
    c: MatrixMut<'_, C>,
    bias: Bias<'_, A::Acc>,
    workspace: &mut [A::Acc],
) -> Result<(), GemmError>
where
    A: Element,
    B: Element<Acc = A::Acc>,
    C: Element<Acc = A::Acc>,
{
    // A single row or column has no distance to the next.
    let rows_contiguous = c.col_stride == 1 || problem.n <= 1;
    let cols_contiguous = c.row_stride == 1 || problem.m <= 1;
    if !rows_contiguous && cols_contiguous {
        let mut swapped = [BatchDim {
            len: 0,
            a: 0,
            b: 0,
            c: 0,
        }; MAX_BATCH_DIMS];
        let Some(swapped) = swapped.get_mut(..batch.len()) else {
            return Err(GemmError::BatchDims(batch.len()));
        };
        for (to, from) in swapped.iter_mut().zip(batch) {
            *to = BatchDim {
                a: from.b,
                b: from.a,
                ..*from
            };
        }
        let problem = Problem {
            m: problem.n,
            n: problem.m,
            k: problem.k,
        };
        let (a, b, c) = (b.transposed(), a.transposed(), c.transposed());
        return rows(
            problem,
            swapped,
            alpha,
            a,
            b,
            beta,
            c,
            bias.transposed(),
            workspace,
        );
    }
    if !rows_contiguous {
        return Err(GemmError::Scattered {
            row_stride: c.row_stride,
            col_stride: c.col_stride,
        });
    }
    rows(problem, batch, alpha, a, b, beta, c, bias, workspace)
}

/// A batch of products into results with contiguous rows.
#[expect(clippy::too_many_arguments, reason = "those of `gemm_batched`")]
fn rows<A, B, C>(
    problem: Problem,
    batch: &[BatchDim],
    alpha: A::Acc,
    a: Matrix<'_, A>,
    b: Matrix<'_, B>,
    beta: A::Acc,
    c: MatrixMut<'_, C>,
    bias: Bias<'_, A::Acc>,
    workspace: &mut [A::Acc],
) -> Result<(), GemmError>
where
    A: Element,
    B: Element<Acc = A::Acc>,
    C: Element<Acc = A::Acc>,
{
    let Problem { m, n, k } = problem;
    if batch.len() > MAX_BATCH_DIMS {
        return Err(GemmError::BatchDims(batch.len()));
    }
    if m == 0 || n == 0 || batch.iter().any(|dim| dim.len == 0) {
        return Ok(());
    }
    let within =
        |operand, available, offset, sizes: [(usize, usize); 2], stride: fn(&BatchDim) -> usize| {
            let of_batch = batch.iter().map(|dim| (dim.len, stride(dim)));
            let last = sizes
                .into_iter()
                .chain(of_batch)
                .try_fold(offset, |at: usize, (len, stride)| {
                    at.checked_add(len.checked_sub(1)?.checked_mul(stride)?)
                });
            match last {
                Some(last) if last < available => Ok(()),
                _ => Err(GemmError::OutOfBounds {
                    operand,
                    problem,
                    available,
                }),
            }
        };
    if k > 0 {
        let sizes = [(m, a.row_stride), (k, a.col_stride)];
        within("the left operand", a.data.len(), a.offset, sizes, |dim| {
            dim.a
        })?;
        let sizes = [(k, b.row_stride), (n, b.col_stride)];
        within("the right operand", b.data.len(), b.offset, sizes, |dim| {
            dim.b
        })?;
    }
    let sizes = [(m, c.row_stride), (n, 1)];
    within("the result", c.data.len(), c.offset, sizes, |dim| dim.c)?;
    if !disjoint(problem, c.row_stride, batch) {
        let (row_stride, col_stride) = (c.row_stride, c.col_stride);
        return Err(GemmError::Overlap {
            problem,
            row_stride,
            col_stride,
        });
    }
    let (expected, found) = match bias {
        Bias::None => (0, 0),
        Bias::PerColumn(bias) => (n, bias.len()),
        Bias::PerRow(bias) => (m, bias.len()),
    };
    if found < expected {
        return Err(GemmError::Bias { expected, found });
    }
    // The places of the results are distinct and inside a slice, so this does not overflow.
    let count = batch.iter().map(|dim| dim.len).product();
    let (parts, needed) = needed::<C>(problem, count);
    let found = workspace.len();
    let skipped = workspace
        .as_ptr()
        .align_offset(ALIGNMENT * size_of::<f32>())
        .min(ALIGNMENT);
    let Some(workspace) = workspace
        .get_mut(skipped..)
        .and_then(|rest| rest.get_mut(..needed))
    else {
        return Err(GemmError::Workspace {
            problem,
            needed: needed + ALIGNMENT,
            found,
        });
    };
    let kernels = A::Acc::kernels();
    let blocking = Blocking::new(kernels, problem, !is_accumulator::<C>());
    let product = Product {
        kernels,
        blocking,
        problem,
        a,
        b,
        alpha,
        beta,
        bias,
    };
    // SAFETY: `within` and `disjoint` have shown what it asks for.
    let outputs = unsafe { Outputs::new(c.data, c.offset, batch, count, (m, n, c.row_stride)) };
    share_out(&product, batch, outputs, parts, workspace);
    Ok(())
}

/// Whether the elements of all results lie at different places: with the dimensions ordered by stride, each
/// steps over everything that the ones before it reach.
fn disjoint(problem: Problem, row_stride: usize, batch: &[BatchDim]) -> bool {
    let mut dims = [(0, 1); MAX_BATCH_DIMS + 2];
    dims[0] = (1, problem.n);
    dims[1] = (row_stride, problem.m);
    for (to, dim) in dims[2..].iter_mut().zip(batch) {
        *to = (dim.c, dim.len);
    }
    dims.sort_unstable();
    let mut reach = 0;
    for (stride, len) in dims.into_iter().filter(|&(_, len)| len > 1) {
        if stride <= reach {
            return false;
        }
        // Inside the slice of the result, as has been checked: no overflow.
        reach += stride * (len - 1);
    }
    true
}

/// Computes the products of a batch, in `parts` side by side that have a scratch each.
fn share_out<A, B, C>(
    product: &Product<'_, A, B>,
    batch: &[BatchDim],
    mut outputs: Outputs<'_, C>,
    parts: usize,
    scratch: &mut [A::Acc],
) where
    A: Element,
    B: Element<Acc = A::Acc>,
    C: Element<Acc = A::Acc>,
{
    if parts > 1 {
        let first = parts / 2;
        let count = outputs.len() * first / parts;
        let (left, right) = outputs.split_at(count);
        let (left_scratch, right_scratch) = scratch.split_at_mut(scratch.len() / parts * first);
        fork(
            || share_out(product, batch, left, first, left_scratch),
            || share_out(product, batch, right, parts - first, right_scratch),
        );
        return;
    }
    while let Some((index, tile)) = outputs.take_first() {
        let (a, b, _) = tile::offsets(batch, index);
        let a = Matrix {
            offset: product.a.offset + a,
            ..product.a
        };
        let b = Matrix {
            offset: product.b.offset + b,
            ..product.b
        };
        Product { a, b, ..*product }.run(tile, scratch);
    }
}
