//! Softmax and normalisations, with their gradients.

mod batch;
mod layer;
mod softmax;

use super::Machine;
use super::memory::{Call, Data, Input};
use super::number::{Float, Number, with_float};
use crate::backend::StepContext;
use crate::ops::normalize::Normalize;
use crate::tensor::TensorType;

/// Bytes of scratch that an operation needs.
pub fn workspace(
    op: &Normalize,
    _machine: &Machine,
    _inputs: &[Option<&TensorType>],
    _outputs: &[Option<&TensorType>],
) -> usize {
    match op {
        Normalize::LayerGrad(op) => layer::grad_workspace(op),
        _ => 0,
    }
}

/// Executes an operation; the error says what is wrong with the data.
pub fn execute(op: &Normalize, _context: &StepContext, mut call: Call<'_>) -> Result<(), String> {
    let Some(first) = &call.inputs[0] else {
        return Err("the first input is missing".to_owned());
    };
    with_float!(first.ty.data_type, T => match op {
        Normalize::Softmax(op) => softmax::forward::<T>(op, &mut call),
        Normalize::SoftmaxGrad(op) => softmax::grad::<T>(op, &mut call),
        Normalize::Layer(op) => layer::forward::<T>(op, &mut call),
        Normalize::LayerGrad(op) => layer::grad::<T>(op, &mut call),
        Normalize::Batch(op) => batch::forward::<T>(op, &mut call),
        Normalize::BatchGrad(op) => batch::grad::<T>(op, &mut call),
    })
}

/// Where a row that is read lies.
#[derive(Clone, Copy)]
enum Rows<'a, T> {
    /// In an operand of its own.
    Apart(&'a [T]),
    /// In the output: the operation works in place.
    Here,
}

impl<'a, T: Number> Rows<'a, T> {
    fn of(input: &Option<Input<'a>>) -> Result<Self, String> {
        match input {
            None => Err("an operand is missing".to_owned()),
            Some(input) => Ok(match input.data {
                Data::Shared(_) => Rows::Apart(input.elements()),
                Data::InOutput(_) => Rows::Here,
            }),
        }
    }

    /// The elements in a range, which `output` holds where the operation works in place.
    #[inline(always)]
    fn range<'b>(&self, range: std::ops::Range<usize>, output: &'b [T]) -> &'b [T]
    where
        'a: 'b,
    {
        match self {
            Rows::Apart(all) => &all[range],
            Rows::Here => output,
        }
    }
}

/// Writes `f(output, a, b)` to every element of an output, where `a` and `b` may lie in it.
#[inline(always)]
fn map2<T: Number>(
    output: &mut [T],
    (a, b): (Rows<'_, T>, Rows<'_, T>),
    range: std::ops::Range<usize>,
    f: impl Fn(usize, T::Lane, T::Lane) -> T::Lane,
) where
    T::Lane: Float,
{
    let n = output.len();
    match (a, b) {
        (Rows::Apart(a), Rows::Apart(b)) => {
            let (a, b) = (&a[range.clone()][..n], &b[range][..n]);
            for i in 0..n {
                output[i] = T::narrow(f(i, a[i].lane(), b[i].lane()));
            }
        }
        (Rows::Here, Rows::Apart(b)) => {
            let b = &b[range][..n];
            for i in 0..n {
                output[i] = T::narrow(f(i, output[i].lane(), b[i].lane()));
            }
        }
        (Rows::Apart(a), Rows::Here) => {
            let a = &a[range][..n];
            for i in 0..n {
                output[i] = T::narrow(f(i, a[i].lane(), output[i].lane()));
            }
        }
        (Rows::Here, Rows::Here) => {
            for (i, y) in output.iter_mut().enumerate() {
                *y = T::narrow(f(i, y.lane(), y.lane()));
            }
        }
    }
}
