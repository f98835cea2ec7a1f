//! Rows that are read while they are written: operations that may work in place.

use super::memory::{Data, Input};
use super::number::{Float, Number};

/// Where a row that is read lies.
#[derive(Clone, Copy)]
pub(crate) enum Read<'a, T> {
    /// In an operand of its own.
    Apart(&'a [T]),
    /// In the output: the operation works in place.
    Here,
}

impl<'a, T: Number> Read<'a, T> {
    /// Where an input of an operation lies.
    pub(crate) fn of(input: &Option<Input<'a>>) -> Result<Self, String> {
        match input {
            None => Err("an operand is missing".to_owned()),
            Some(input) => Ok(match input.data {
                Data::Shared(_) => Read::Apart(input.elements()),
                Data::InOutput(_) => Read::Here,
            }),
        }
    }

    /// The elements in a range, which `output` holds where the operation works in place.
    #[inline(always)]
    pub(crate) fn range<'b>(&self, range: std::ops::Range<usize>, output: &'b [T]) -> &'b [T]
    where
        'a: 'b,
    {
        match self {
            Read::Apart(all) => &all[range],
            Read::Here => output,
        }
    }
}

/// Writes `f(output, a, b)` to every element of an output, where `a` and `b` may lie in it.
#[inline(always)]
pub(crate) fn map2<T: Number>(
    output: &mut [T],
    (a, b): (Read<'_, T>, Read<'_, T>),
    range: std::ops::Range<usize>,
    f: impl Fn(usize, T::Lane, T::Lane) -> T::Lane,
) where
    T::Lane: Float,
{
    let n = output.len();
    match (a, b) {
        (Read::Apart(a), Read::Apart(b)) => {
            let (a, b) = (&a[range.clone()][..n], &b[range][..n]);
            for i in 0..n {
                output[i] = T::narrow(f(i, a[i].lane(), b[i].lane()));
            }
        }
        (Read::Here, Read::Apart(b)) => {
            let b = &b[range][..n];
            for i in 0..n {
                output[i] = T::narrow(f(i, output[i].lane(), b[i].lane()));
            }
        }
        (Read::Apart(a), Read::Here) => {
            let a = &a[range][..n];
            for i in 0..n {
                output[i] = T::narrow(f(i, a[i].lane(), output[i].lane()));
            }
        }
        (Read::Here, Read::Here) => {
            for (i, y) in output.iter_mut().enumerate() {
                *y = T::narrow(f(i, y.lane(), y.lane()));
            }
        }
    }
}
