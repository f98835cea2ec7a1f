//! Rectangles of a row-major matrix that can be split into disjoint rectangles.
//!
//! The safe counterpart of this, `split_at_mut`, splits slices, and two rectangles side by side share the
//! slice of every row. All unsafe code about the disjointness of what threads write is in this file.

use std::marker::PhantomData;

use super::BatchDim;

/// A rectangle of a matrix whose rows are contiguous, with exclusive access to its elements.
pub struct TileMut<'a, T> {
    start: *mut T,
    rows: usize,
    cols: usize,
    stride: usize,
    elements: PhantomData<&'a mut [T]>,
}

// SAFETY: a tile is an exclusive borrow of its elements, as `&mut [T]` is.
unsafe impl<T: Send> Send for TileMut<'_, T> {}

impl<'a, T> TileMut<'a, T> {
    /// A dense tile at the start of `elements`; `None` where these are too few.
    pub fn dense(elements: &'a mut [T], rows: usize, cols: usize) -> Option<Self> {
        (rows.checked_mul(cols)? <= elements.len()).then_some(TileMut {
            start: elements.as_mut_ptr(),
            rows,
            cols,
            stride: cols,
            elements: PhantomData,
        })
    }

    /// The number of rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// The number of columns.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// Elements between the starts of two rows.
    pub fn stride(&self) -> usize {
        self.stride
    }

    /// The first element, for kernels: they may write `rows` rows of `cols` elements, `stride` apart.
    pub fn as_mut_ptr(&mut self) -> *mut T {
        self.start
    }

    /// The same tile for a shorter time.
    pub fn reborrow(&mut self) -> TileMut<'_, T> {
        TileMut {
            elements: PhantomData,
            ..*self
        }
    }

    /// The rows before `at` and those from it on; `at` is cut to the number of rows.
    pub fn split_rows(self, at: usize) -> (Self, Self) {
        let at = at.min(self.rows);
        // An empty second half keeps the start: the place after the last row may lie outside the matrix.
        let skipped = if at < self.rows { at * self.stride } else { 0 };
        // SAFETY: a row below `rows` starts inside the elements of the tile.
        let second = unsafe { self.start.add(skipped) };
        (
            TileMut { rows: at, ..self },
            TileMut {
                start: second,
                rows: self.rows - at,
                ..self
            },
        )
    }

    /// The columns before `at` and those from it on; `at` is cut to the number of columns.
    pub fn split_cols(self, at: usize) -> (Self, Self) {
        let at = at.min(self.cols);
        // SAFETY: the first row has `cols` elements, so `at` is inside it or right behind it; a tile without
        // rows has no elements and its start is not moved.
        let second = unsafe { self.start.add(if self.rows == 0 { 0 } else { at }) };
        (
            TileMut { cols: at, ..self },
            TileMut {
                start: second,
                cols: self.cols - at,
                ..self
            },
        )
    }

    /// The elements of a row; empty where there is no such row.
    pub fn row(&mut self, row: usize) -> &mut [T] {
        if row >= self.rows {
            return &mut [];
        }
        // SAFETY: the row lies inside the tile, whose elements are borrowed exclusively through `self`.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(row * self.stride), self.cols) }
    }
}

/// The outputs of a batch, each a rectangle, which can be split into parts of the batch.
pub struct Outputs<'a, T> {
    start: *mut T,
    dims: &'a [BatchDim],
    first: usize,
    end: usize,
    rows: usize,
    cols: usize,
    stride: usize,
    elements: PhantomData<&'a mut [T]>,
}

// SAFETY: exclusive access to the elements of the outputs, as `TileMut`.
unsafe impl<T: Send> Send for Outputs<'_, T> {}

impl<'a, T> Outputs<'a, T> {
    /// The outputs of a batch in `elements` from `offset` on.
    ///
    /// # Safety
    ///
    /// The outputs of all `count` indices of the batch lie inside `elements`, and no two elements of them
    /// share a place.
    pub unsafe fn new(
        elements: &'a mut [T],
        offset: usize,
        dims: &'a [BatchDim],
        count: usize,
        (rows, cols, stride): (usize, usize, usize),
    ) -> Self {
        // SAFETY: where there is an output, the offset lies inside the elements.
        let start = unsafe { elements.as_mut_ptr().add(offset.min(elements.len())) };
        Outputs {
            start,
            dims,
            first: 0,
            end: count,
            rows,
            cols,
            stride,
            elements: PhantomData,
        }
    }

    /// The number of outputs.
    pub fn len(&self) -> usize {
        self.end - self.first
    }

    /// The first `count` outputs and the others.
    pub fn split_at(self, count: usize) -> (Self, Self) {
        let middle = (self.first + count).min(self.end);
        (
            Outputs {
                end: middle,
                ..self
            },
            Outputs {
                first: middle,
                ..self
            },
        )
    }

    /// Takes the first output: its index in the batch and its tile.
    pub fn take_first(&mut self) -> Option<(usize, TileMut<'a, T>)> {
        if self.first == self.end {
            return None;
        }
        let index = self.first;
        self.first += 1;
        let (_, _, offset) = offsets(self.dims, index);
        let tile = TileMut {
            // SAFETY: `new`'s caller promised that the outputs lie inside the elements; one without
            // elements is not moved.
            start: unsafe {
                self.start.add(if self.rows == 0 || self.cols == 0 {
                    0
                } else {
                    offset
                })
            },
            rows: self.rows,
            cols: self.cols,
            stride: self.stride,
            elements: PhantomData,
        };
        Some((index, tile))
    }
}

/// What the index of a batch adds to the offsets of the three operands; the last dimension is the fastest.
pub fn offsets(dims: &[BatchDim], mut index: usize) -> (usize, usize, usize) {
    let (mut a, mut b, mut c) = (0, 0, 0);
    for dim in dims.iter().rev() {
        let at = index % dim.len.max(1);
        index /= dim.len.max(1);
        a += at * dim.a;
        b += at * dim.b;
        c += at * dim.c;
    }
    (a, b, c)
}
