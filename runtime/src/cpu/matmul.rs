//! Matrix products.

use super::Machine;
use super::memory::Call;
use crate::backend::StepContext;
use crate::ops::matmul::MatMul;
use crate::tensor::TensorType;

/// Bytes of scratch.
pub fn workspace(
    _op: &MatMul,
    _machine: &Machine,
    _inputs: &[Option<&TensorType>],
    _outputs: &[Option<&TensorType>],
) -> usize {
    0
}

/// Multiplies.
pub fn execute(op: &MatMul, _context: &StepContext, mut call: Call<'_>) -> Result<(), String> {
    let ([Some(a), Some(b), ..], [Some(c), ..]) = (&call.inputs, &mut call.outputs) else {
        return Err("an operand is missing".to_owned());
    };
    let addend = call.inputs[2].map(|c| c.elements::<f32>());
    let (a, b, c) = (
        a.elements::<f32>(),
        b.elements::<f32>(),
        c.elements::<f32>(),
    );
    let matrices = op.batch.iter().product::<usize>();
    for index in 0..matrices {
        let (mut rest, mut at_a, mut at_b) = (index, 0, 0);
        for axis in (0..op.batch.len()).rev() {
            let position = rest % op.batch[axis];
            rest /= op.batch[axis];
            at_a += position * op.a.batch[axis];
            at_b += position * op.b.batch[axis];
        }
        for i in 0..op.m {
            for j in 0..op.n {
                let mut sum = 0.0;
                for k in 0..op.k {
                    sum += a[at_a + i * op.a.row + k * op.a.column]
                        * b[at_b + k * op.b.row + j * op.b.column];
                }
                let added = match (&op.addend, addend) {
                    (Some(how), Some(c)) => how.beta * c[i * how.row + j * how.column],
                    _ => 0.0,
                };
                c[(index * op.m + i) * op.n + j] = op.alpha * sum + added;
            }
        }
    }
    Ok(())
}
