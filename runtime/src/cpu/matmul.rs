//! Matrix products: floating-point ones by [`super::gemm`], those of integers by plain loops.

use super::Machine;
use super::gemm::{
    Accumulator, BatchDim, Bias, Element, MAX_BATCH_DIMS, Matrix, MatrixMut, Problem, gemm_batched,
    workspace_len,
};
use super::memory::Call;
use crate::backend::StepContext;
use crate::ops::matmul::{Access, MatMul};
use crate::tensor::TensorType;
use bytemuck::Pod;
use half::{bf16, f16};
use velora_graph::shapes::DataType;

/// Bytes of scratch: the packed panels of the operands.
pub fn workspace(
    op: &MatMul,
    _machine: &Machine,
    _inputs: &[Option<&TensorType>],
    outputs: &[Option<&TensorType>],
) -> usize {
    let (problem, count) = (problem(op), op.batch.iter().product());
    match outputs.first().copied().flatten().map(|ty| ty.data_type) {
        Some(DataType::FLOAT) => 4 * workspace_len::<f32>(problem, count),
        Some(DataType::DOUBLE) => 8 * workspace_len::<f64>(problem, count),
        Some(DataType::FLOAT16) => 4 * workspace_len::<f16>(problem, count),
        Some(DataType::BFLOAT16) => 4 * workspace_len::<bf16>(problem, count),
        _ => 0,
    }
}

fn problem(op: &MatMul) -> Problem {
    Problem {
        m: op.m,
        n: op.n,
        k: op.k,
    }
}

/// Multiplies.
pub fn execute(op: &MatMul, _context: &StepContext, call: Call<'_>) -> Result<(), String> {
    let kind = call.outputs[0].as_ref().map(|output| output.ty.data_type);
    match kind {
        Some(DataType::FLOAT) => floating::<f32>(op, call),
        Some(DataType::DOUBLE) => floating::<f64>(op, call),
        Some(DataType::FLOAT16) => floating::<f16>(op, call),
        Some(DataType::BFLOAT16) => floating::<bf16>(op, call),
        Some(DataType::INT32) => integers::<i32>(op, call, i32::wrapping_mul, i32::wrapping_add),
        Some(DataType::INT64) => integers::<i64>(op, call, i64::wrapping_mul, i64::wrapping_add),
        Some(DataType(12)) => integers::<u32>(op, call, u32::wrapping_mul, u32::wrapping_add),
        Some(DataType(13)) => integers::<u64>(op, call, u64::wrapping_mul, u64::wrapping_add),
        _ => Err("a product of these elements".to_owned()),
    }
}

/// A product of floating-point elements.
fn floating<T>(op: &MatMul, call: Call<'_>) -> Result<(), String>
where
    T: Element + Pod,
    T::Acc: Pod + From<f32>,
{
    let Call {
        inputs,
        mut outputs,
        workspace,
    } = call;
    let ([Some(a), Some(b), c, ..], [Some(output), ..]) = (&inputs, &mut outputs) else {
        return Err("an operand is missing".to_owned());
    };
    let output = output.elements::<T>();
    let matrices = op.batch.iter().product::<usize>();
    let mut beta = T::Acc::ZERO;
    let mut bias = Bias::None;
    if let (Some(how), Some(c)) = (&op.addend, c) {
        let c = c.elements::<T>();
        match T::as_accumulators(c) {
            // Added in the same pass.
            Some(c) if how.beta == 1.0 && how.row == 0 && how.column == 1 => {
                bias = Bias::PerColumn(c);
            }
            _ => {
                for (number, y) in output.iter_mut().enumerate() {
                    let (row, column) = (number / op.n % op.m, number % op.n);
                    let c = c[row * how.row + column * how.column].to_acc();
                    *y = T::from_acc(c.times(T::Acc::from(how.beta)));
                }
                beta = T::Acc::ONE;
            }
        }
    }
    let mut dims = [BatchDim {
        len: 1,
        a: 0,
        b: 0,
        c: 0,
    }; MAX_BATCH_DIMS];
    let Some(dims) = dims.get_mut(..op.batch.len()) else {
        return Err(format!(
            "a product with {} batch dimensions",
            op.batch.len()
        ));
    };
    let mut step = if matrices == 0 { 0 } else { op.m * op.n };
    for axis in (0..op.batch.len()).rev() {
        dims[axis] = BatchDim {
            len: op.batch[axis],
            a: op.a.batch[axis],
            b: op.b.batch[axis],
            c: step,
        };
        step *= op.batch[axis];
    }
    let matrix = |data, access: &Access| Matrix {
        data,
        offset: 0,
        row_stride: access.row,
        col_stride: access.column,
    };
    gemm_batched(
        problem(op),
        dims,
        T::Acc::from(op.alpha),
        matrix(a.elements::<T>(), &op.a),
        matrix(b.elements::<T>(), &op.b),
        beta,
        MatrixMut::row_major(output, op.n),
        bias,
        bytemuck::cast_slice_mut(workspace),
    )
    .map_err(|error| error.to_string())
}

/// A product of integers; numbers wrap around.
fn integers<T: Pod + Send + Sync>(
    op: &MatMul,
    mut call: Call<'_>,
    times: fn(T, T) -> T,
    plus: fn(T, T) -> T,
) -> Result<(), String> {
    let ([Some(a), Some(b), c, ..], [Some(output), ..]) = (&call.inputs, &mut call.outputs) else {
        return Err("an operand is missing".to_owned());
    };
    if op.alpha != 1.0 || op.addend.as_ref().is_some_and(|how| how.beta != 1.0) {
        return Err("factors other than 1 in a product of integers".to_owned());
    }
    let (a, b, output) = (a.elements::<T>(), b.elements::<T>(), output.elements::<T>());
    let addend = op.addend.as_ref().zip(c.as_ref());
    for (number, y) in output.iter_mut().enumerate() {
        let (mut rest, row, column) = (number / op.n / op.m, number / op.n % op.m, number % op.n);
        let (mut at_a, mut at_b) = (row * op.a.row, column * op.b.column);
        for axis in (0..op.batch.len()).rev() {
            let position = rest % op.batch[axis];
            rest /= op.batch[axis];
            at_a += position * op.a.batch[axis];
            at_b += position * op.b.batch[axis];
        }
        *y = T::zeroed();
        if let Some((how, c)) = addend {
            *y = c.elements::<T>()[row * how.row + column * how.column];
        }
        for k in 0..op.k {
            *y = plus(*y, times(a[at_a + k * op.a.column], b[at_b + k * op.b.row]));
        }
    }
    Ok(())
}
