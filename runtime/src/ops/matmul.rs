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

/// `Y[b] = alpha · A[b] · B[b] + beta · C` over all batches `b`; Y is dense and row-major.
///
/// Inputs: A, B, and C where [`MatMul::addend`] says how it is read.
#[derive(Clone, Debug, PartialEq)]
pub struct MatMul {
    /// The sizes of the batch dimensions.
    pub batch: Vec<usize>,
    /// Rows of A and Y.
    pub m: usize,
    /// Columns of B and Y.
    pub n: usize,
    /// Columns of A, rows of B.
    pub k: usize,
    /// How A is read.
    pub a: Access,
    /// How B is read.
    pub b: Access,
    /// The factor of the product.
    pub alpha: f32,
    /// How C is read, where there is one.
    pub addend: Option<Addend>,
}

/// What is added to a product: C, the same for all batches.
#[derive(Clone, Debug, PartialEq)]
pub struct Addend {
    /// The factor.
    pub beta: f32,
    /// The step to the next row in elements; 0 where all rows are the same.
    pub row: usize,
    /// The step to the next column in elements; 0 where all columns are the same.
    pub column: usize,
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
        if let Some((tensor, permutation)) = lowering.transposed_input(node, slot)? {
            let ty = lowering.ty(tensor);
            let strides = ty.strides();
            return Ok(Side {
                tensor,
                shape: permutation.iter().map(|&axis| ty.shape[axis]).collect(),
                strides: permutation.iter().map(|&axis| strides[axis]).collect(),
            });
        }
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
    for (side, batch, last) in [
        (&mut a, "transBatchA", "transA"),
        (&mut b, "transBatchB", "transB"),
    ] {
        let rank = side.shape.len();
        // The first axis moves in front of the last one: what is left of it are the batches.
        if node.int(batch, 0) != 0 && rank > 2 {
            side.shape[..rank - 1].rotate_left(1);
            side.strides[..rank - 1].rotate_left(1);
        }
        if node.int(last, 0) != 0 {
            side.transpose();
        }
    }
    let addend = match node.op() {
        "Gemm" => lowering.optional_input(node, 2)?,
        _ => None,
    };
    let output = lowering.required_output(node, 0)?;
    let addend = match addend {
        Some(tensor) => {
            let rows_and_columns =
                broadcast(lowering.ty(tensor).shape, &lowering.ty(output).shape)?;
            Some((
                tensor,
                Addend {
                    beta: node.float("beta", 1.0),
                    row: rows_and_columns.0,
                    column: rows_and_columns.1,
                },
            ))
        }
        None => None,
    };
    product(lowering, a, b, node.float("alpha", 1.0), addend, output)
}

/// The steps to the next row and column of C in a product of the shape given.
fn broadcast(mut c: Vec<usize>, output: &[usize]) -> Result<(usize, usize), Refusal> {
    while c.len() < 2 {
        c.insert(0, 1);
    }
    let fits = c.len() == 2 && output.len() == 2 && (0..2).all(|i| c[i] == 1 || c[i] == output[i]);
    if !fits {
        return Err(Refusal(format!(
            "C of shape {c:?} does not fit a product of shape {output:?}"
        )));
    }
    let step = |size: usize, step| if size == 1 { 0 } else { step };
    Ok((step(c[0], c[1]), step(c[1], 1)))
}

/// `P = Aᵀ B` of two matrices with the same number of rows.
pub fn transposed_product(lowering: &mut Lowering<'_>, a: TensorId, b: TensorId, output: TensorId) {
    let (rows, columns) = (lowering.ty(a).shape, lowering.ty(b).shape);
    let (n, k, m) = (columns[1], columns[0], rows[1]);
    let op = MatMul {
        batch: Vec::new(),
        m,
        n,
        k,
        a: Access {
            batch: Vec::new(),
            row: 1,
            column: m,
        },
        b: Access {
            batch: Vec::new(),
            row: n,
            column: 1,
        },
        alpha: 1.0,
        addend: None,
    };
    lowering.emit(Op::MatMul(op), vec![Some(a), Some(b)], vec![Some(output)]);
}

/// Adds the operation, with the batches of both sides broadcast.
fn product(
    lowering: &mut Lowering<'_>,
    mut a: Side,
    mut b: Side,
    alpha: f32,
    addend: Option<(TensorId, Addend)>,
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
    let [mut steps_a, mut steps_b] = steps;
    let mut m = m;
    // Matrices that share the right operand and lie behind each other are the rows of one.
    while let (Some(&size), Some(&step_a), Some(0)) = (batch.last(), steps_a.last(), steps_b.last())
    {
        if size != 1 && step_a != m * a.strides[ra - 2] {
            break;
        }
        m *= size;
        batch.pop();
        steps_a.pop();
        steps_b.pop();
    }
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
        addend: addend.as_ref().map(|(_, addend)| addend.clone()),
    };
    let mut inputs = vec![Some(a.tensor), Some(b.tensor)];
    inputs.extend(addend.map(|(tensor, _)| Some(tensor)));
    lowering.emit(Op::MatMul(op), inputs, vec![Some(output)]);
    Ok(())
}
