//! Matrix products: `MatMul`, `Gemm`, and ONNX Runtime's `FusedMatMul`.
//!
//! A transposition in front of a product, by an attribute or by a `Transpose`, is strides of the operand.

use super::{Family, Op};
use crate::lower::{Lowering, Refusal};
use crate::program::TensorId;
use velora_graph::ir::Node;

/// The operators, and how they are lowered.
pub const FAMILY: Family = Family {
    operators: &[
        ("", "MatMul"),
        ("", "Gemm"),
        ("com.microsoft", "FusedMatMul"),
    ],
    lower,
};

/// `C[b] = alpha · A[b] · B[b] (+ bias)` over all batches `b`; C is dense and row-major.
///
/// Inputs: A, B, and optionally a bias of n elements that is added to every row.
#[derive(Clone, Debug, PartialEq)]
pub struct MatMul {
    /// The sizes of the batch dimensions.
    pub batch: Vec<usize>,
    /// Rows of A and C.
    pub m: usize,
    /// Columns of B and C.
    pub n: usize,
    /// Columns of A, rows of B.
    pub k: usize,
    /// How A is read.
    pub a: Access,
    /// How B is read.
    pub b: Access,
    /// The factor.
    pub alpha: f32,
}

/// How the matrices of an operand lie in its buffer, in elements.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Access {
    /// By batch dimension: the step to the next one; 0 where the operand is the same for all.
    pub batch: Vec<usize>,
    /// The step to the next row.
    pub row: usize,
    /// The step to the next column.
    pub column: usize,
}

/// An operand in the making: a tensor and the strides of the axes that the product sees.
struct Side {
    tensor: TensorId,
    shape: Vec<usize>,
    strides: Vec<usize>,
}

impl Side {
    /// Reads an operand, through the `Transpose` that makes it where there is one.
    fn new(lowering: &mut Lowering<'_>, node: &Node, slot: usize) -> Result<Self, Refusal> {
        let tensor = lowering.input(node, slot)?;
        let ty = lowering.ty(tensor);
        Ok(Side {
            strides: ty.strides(),
            shape: ty.shape,
            tensor,
        })
    }

    /// Exchanges the last two axes.
    fn transpose(&mut self) {
        let rank = self.shape.len();
        if rank >= 2 {
            self.shape.swap(rank - 1, rank - 2);
            self.strides.swap(rank - 1, rank - 2);
        }
    }
}

fn lower(lowering: &mut Lowering<'_>, node: &Node) -> Result<(), Refusal> {
    let mut a = Side::new(lowering, node, 0)?;
    let mut b = Side::new(lowering, node, 1)?;
    if node.int("transA", 0) != 0 {
        a.transpose();
    }
    if node.int("transB", 0) != 0 {
        b.transpose();
    }
    if node.op() == "Gemm" && node.inputs.len() > 2 {
        return Err(Refusal::new("Gemm with C is not lowered yet"));
    }
    let output = lowering.required_output(node, 0)?;
    product(lowering, a, b, node.float("alpha", 1.0), None, output)
}

fn product(
    lowering: &mut Lowering<'_>,
    mut a: Side,
    mut b: Side,
    alpha: f32,
    bias: Option<TensorId>,
    output: TensorId,
) -> Result<(), Refusal> {
    // A vector is a row on the left and a column on the right.
    if a.shape.len() == 1 {
        a.shape.insert(0, 1);
        a.strides.insert(0, 0);
    }
    if b.shape.len() == 1 {
        b.shape.push(1);
        b.strides.push(0);
    }
    let (ra, rb) = (a.shape.len(), b.shape.len());
    if ra < 2 || rb < 2 {
        return Err(Refusal::new("a matrix product of a scalar"));
    }
    let (m, k, n) = (a.shape[ra - 2], a.shape[ra - 1], b.shape[rb - 1]);
    if b.shape[rb - 2] != k {
        return Err(Refusal(format!(
            "the left operand has {k} columns and the right one {} rows",
            b.shape[rb - 2]
        )));
    }
    let rank = ra.max(rb) - 2;
    let mut batch = vec![1; rank];
    let mut steps = [vec![0; rank], vec![0; rank]];
    for (side, steps) in [&a, &b].into_iter().zip(&mut steps) {
        let own = side.shape.len() - 2;
        for axis in 0..own {
            let (size, at) = (side.shape[axis], rank - own + axis);
            if size != 1 {
                if batch[at] != 1 && batch[at] != size {
                    return Err(Refusal::new("batch dimensions that do not fit"));
                }
                batch[at] = size;
                steps[at] = side.strides[axis];
            }
        }
    }
    let [steps_a, steps_b] = steps;
    let op = MatMul {
        batch,
        m,
        n,
        k,
        a: Access {
            batch: steps_a,
            row: a.strides[ra - 2],
            column: a.strides[ra - 1],
        },
        b: Access {
            batch: steps_b,
            row: b.strides[rb - 2],
            column: b.strides[rb - 1],
        },
        alpha,
    };
    let inputs = vec![Some(a.tensor), Some(b.tensor), bias];
    lowering.emit(Op::MatMul(op), inputs, vec![Some(output)]);
    Ok(())
}
