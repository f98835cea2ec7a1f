//! Matrix products on slices, for kernels that are made of several.

use bytemuck::Pod;
use std::ops::{Add, AddAssign, Mul};

/// An element type that layers compute in: `f32` or `f64`.
pub trait Real:
    Pod + Send + Sync + PartialOrd + Add<Output = Self> + Mul<Output = Self> + AddAssign
{
    /// Zero.
    const ZERO: Self;

    /// The nearest element.
    fn from_f64(number: f64) -> Self;

    /// The element as a wider number.
    fn to_f64(self) -> f64;
}

macro_rules! real {
    ($type:ty) => {
        impl Real for $type {
            const ZERO: $type = 0.0;

            #[inline(always)]
            fn from_f64(number: f64) -> $type {
                number as $type
            }

            #[inline(always)]
            fn to_f64(self) -> f64 {
                f64::from(self)
            }
        }
    };
}

real!(f32);
real!(f64);

/// A matrix whose element `(i, j)` is `data[i · row + j · column]`.
#[derive(Clone, Copy)]
pub struct Matrix<'a, T> {
    /// The elements, and possibly others.
    pub data: &'a [T],
    /// Elements between two rows.
    pub row: usize,
    /// Elements between two columns.
    pub column: usize,
}

impl<'a, T> Matrix<'a, T> {
    /// A matrix whose rows are dense and lie `row` elements apart.
    pub fn rows(data: &'a [T], row: usize) -> Self {
        Matrix {
            data,
            row,
            column: 1,
        }
    }

    /// The same elements with rows and columns exchanged.
    pub fn transposed(self) -> Self {
        Matrix {
            data: self.data,
            row: self.column,
            column: self.row,
        }
    }
}

/// The sizes of a product of an `m` by `k` and a `k` by `n` matrix.
#[derive(Clone, Copy, Debug)]
pub struct Sizes {
    /// Rows of the left operand.
    pub m: usize,
    /// Columns of the right operand.
    pub n: usize,
    /// The length of the sums.
    pub k: usize,
}

/// Elements of scratch that [`multiply`] needs.
pub fn scratch<T: Real>(_sizes: Sizes) -> usize {
    0
}

/// `C = A · B`, or `C += A · B`; the rows of C are dense and lie `row` elements apart.
///
/// # Errors
/// Where an operand is too short for its sizes.
pub fn multiply<T: Real>(
    sizes: Sizes,
    a: Matrix<'_, T>,
    b: Matrix<'_, T>,
    add: bool,
    c: &mut [T],
    row: usize,
    _scratch: &mut [T],
) -> Result<(), String> {
    let Sizes { m, n, k } = sizes;
    for (i, to) in c.chunks_mut(row.max(1)).take(m).enumerate() {
        let to = &mut to[..n];
        if !add {
            to.fill(T::ZERO);
        }
        for l in 0..k {
            let left = a.data[i * a.row + l * a.column];
            for (j, to) in to.iter_mut().enumerate() {
                *to += left * b.data[l * b.row + j * b.column];
            }
        }
    }
    Ok(())
}
