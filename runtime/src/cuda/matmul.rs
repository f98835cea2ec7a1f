//! Matrix products: by cuBLASLt wherever it can, and else by a plain kernel.

use super::compile::Unit;
use super::encode::{Arguments, BLOCK, Call, Operand, Sink, Unsupported};
use super::lt::{Element, Lt, Matrix, Problem, Product};
use crate::ops::matmul::{Access, MatMul};
use crate::tensor::TensorType;
use bytemuck::{Pod, Zeroable};
use std::borrow::Cow;
use velora_graph::shapes::DataType;

/// The kernels.
pub const UNIT: Unit = Unit {
    name: "matmul.cu",
    text: Cow::Borrowed(include_str!("matmul.cu")),
};

/// The most axes of a batch that the plain kernel takes.
const MOST_BATCH_AXES: usize = 8;

/// `Shape` of the plain kernel.
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
struct Shape {
    m: u64,
    n: u64,
    k: u64,
    a_row: u64,
    a_column: u64,
    b_row: u64,
    b_column: u64,
    axes: u64,
    sizes: [u64; MOST_BATCH_AXES],
    a_steps: [u64; MOST_BATCH_AXES],
    b_steps: [u64; MOST_BATCH_AXES],
}

/// A batch axis with the steps of A and B along it, in elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Axis {
    size: usize,
    a: usize,
    b: usize,
}

/// Products that the library computes: one problem, for several places of the operands.
#[derive(Clone, Debug, PartialEq)]
struct Batches {
    problem: Problem,
    /// By call: the first elements of A, B and Y.
    starts: Vec<[usize; 3]>,
}

/// Bytes of scratch, as cuBLASLt's algorithm takes them.
pub fn workspace(op: &MatMul, lt: &Lt, outputs: &[Option<&TensorType>]) -> usize {
    let ty = outputs.first().copied().flatten();
    let batches = ty
        .and_then(|ty| element(ty.data_type))
        .and_then(|element| batches(op, element));
    // Where the library has no algorithm, launching it says so.
    batches.map_or(0, |batches| lt.workspace(&batches.problem).unwrap_or(0))
}

/// Puts a product into a sink.
///
/// # Errors
/// [`Unsupported`] for elements that are not multiplied.
pub fn encode(op: &MatMul, call: &Call<'_>, sink: &mut Sink<'_>) -> Result<(), Unsupported> {
    let (a, b, y) = (call.input(0)?, call.input(1)?, call.output(0)?);
    let data_type = y.ty.data_type;
    let suffix = suffix(data_type)
        .ok_or_else(|| Unsupported(format!("a product of elements of type {}", data_type.0)))?;
    let count = y.ty.elements();
    if count == 0 {
        return Ok(());
    }
    let batches = element(data_type).and_then(|element| batches(op, element));
    let mut bias = 0;
    let mut adds = None;
    if let Some(addend) = &op.addend {
        let c = call.input(2)?;
        let takes_bias = matches!(
            data_type,
            DataType::FLOAT | DataType::FLOAT16 | DataType::BFLOAT16
        );
        let per_column = addend.row == 0 && (addend.column == 1 || op.n == 1);
        match &batches {
            // Added where the product is written.
            Some(Batches { problem, .. }) if takes_bias && per_column && addend.beta == 1.0 => {
                debug_assert!(problem.bias);
                bias = c.address;
            }
            _ => {
                let arguments = Arguments::new()
                    .address(c.address)
                    .address(y.address)
                    .size(op.m)
                    .size(op.n)
                    .size(addend.row)
                    .size(addend.column)
                    .size(count);
                let blocks = sink.blocks(count, BLOCK as usize);
                sink.launch(&UNIT, format!("spread_{suffix}"), blocks, BLOCK, arguments);
                adds = Some(addend.beta);
            }
        }
    }
    if op.k == 0 {
        match adds {
            Some(beta) => {
                let arguments = Arguments::new().address(y.address).f32(beta).size(count);
                let blocks = sink.blocks(count, BLOCK as usize);
                sink.launch(&UNIT, format!("scale_{suffix}"), blocks, BLOCK, arguments);
            }
            None => sink.fill(y.address, 0, y.ty.bytes()),
        }
        return Ok(());
    }
    match batches {
        Some(batches) => {
            let bytes = batches.problem.element.bytes();
            let at = |operand: &Operand<'_>, start: usize| operand.address + (start * bytes) as u64;
            for [from_a, from_b, to] in batches.starts {
                sink.product(Product {
                    problem: batches.problem,
                    a: at(&a, from_a),
                    b: at(&b, from_b),
                    y: at(&y, to),
                    bias,
                    alpha: op.alpha,
                    beta: adds.unwrap_or(0.0),
                    workspace: call.workspace,
                });
            }
        }
        None => {
            let arguments = Arguments::new()
                .address(a.address)
                .address(b.address)
                .address(y.address)
                .structure(&shape(op)?)
                .size(count)
                .f32(op.alpha)
                .f32(adds.unwrap_or(0.0))
                .u32(u32::from(adds.is_some()));
            let blocks = sink.blocks(count, BLOCK as usize);
            sink.launch(&UNIT, format!("strided_{suffix}"), blocks, BLOCK, arguments);
        }
    }
    Ok(())
}

/// Elements that the library multiplies.
pub fn element(data_type: DataType) -> Option<Element> {
    Some(match data_type {
        DataType::FLOAT => Element::F32,
        DataType::DOUBLE => Element::F64,
        DataType::FLOAT16 => Element::F16,
        DataType::BFLOAT16 => Element::Bf16,
        _ => return None,
    })
}

fn suffix(data_type: DataType) -> Option<&'static str> {
    Some(match data_type.0 {
        1 => "f32",
        11 => "f64",
        10 => "f16",
        16 => "bf16",
        6 | 12 => "i32",
        7 | 13 => "i64",
        _ => return None,
    })
}

/// A product as the library computes it; `None` where it cannot.
fn batches(op: &MatMul, element: Element) -> Option<Batches> {
    if op.m == 0 || op.n == 0 || op.k == 0 || op.batch.contains(&0) {
        return None;
    }
    let mut axes = axes(op);
    let mut m = op.m;
    // Matrices of A that lie one behind the other, times the same B, are one matrix.
    if let [axis] = axes[..]
        && axis.b == 0
        && op.a.column == 1
        && axis.a == op.a.row * op.m
    {
        m *= axis.size;
        axes.clear();
    }
    // The last axis is the library's, since Y's matrices lie one behind the other along it; a call for each
    // position on the others.
    let own = axes.len().checked_sub(1);
    let counted = own.map_or(
        Axis {
            size: 1,
            a: 0,
            b: 0,
        },
        |own| axes[own],
    );
    let mut starts = vec![[0, 0, 0]];
    let plane = m * op.n;
    let mut step = plane;
    for (number, axis) in axes.iter().enumerate().rev() {
        if Some(number) != own {
            let inner = starts;
            starts = (0..axis.size)
                .flat_map(|position| {
                    inner.iter().map(move |[a, b, y]| {
                        [
                            a + position * axis.a,
                            b + position * axis.b,
                            y + position * step,
                        ]
                    })
                })
                .collect();
        }
        step *= axis.size;
    }
    let a = Access {
        batch: Vec::new(),
        ..op.a
    };
    let takes_bias = element != Element::F64;
    let bias = op.addend.as_ref().is_some_and(|addend| {
        let per_column = addend.row == 0 && (addend.column == 1 || op.n == 1);
        takes_bias && per_column && addend.beta == 1.0
    });
    Some(Batches {
        problem: Problem {
            element,
            m,
            n: op.n,
            k: op.k,
            a: matrix(&a, m, op.k, counted.a)?,
            b: matrix(&op.b, op.k, op.n, counted.b)?,
            count: counted.size,
            bias,
            adds: op.addend.is_some() && !bias,
        },
        starts,
    })
}

/// How a matrix lies for the library; `None` where neither rows nor columns lie side by side.
fn matrix(access: &Access, rows: usize, columns: usize, batch: usize) -> Option<Matrix> {
    // A step along an axis of one element is none.
    let step = |size: usize, step: usize, least: usize| if size == 1 { least } else { step };
    let by_rows = step(rows, access.row, columns);
    let by_columns = step(columns, access.column, rows);
    if (access.column == 1 || columns == 1) && by_rows >= columns {
        return Some(Matrix {
            transposed: false,
            step: by_rows,
            batch,
        });
    }
    ((access.row == 1 || rows == 1) && by_columns >= rows).then_some(Matrix {
        transposed: true,
        step: by_columns,
        batch,
    })
}

/// The axes of the batch, neighbours that are one for both operands merged.
fn axes(op: &MatMul) -> Vec<Axis> {
    let mut axes: Vec<Axis> = Vec::new();
    for (number, &size) in op.batch.iter().enumerate() {
        let axis = Axis {
            size,
            a: op.a.batch[number],
            b: op.b.batch[number],
        };
        if size == 1 {
            continue;
        }
        match axes.last_mut() {
            Some(outer) if outer.a == axis.a * size && outer.b == axis.b * size => {
                *outer = Axis {
                    size: outer.size * size,
                    ..axis
                };
            }
            _ => axes.push(axis),
        }
    }
    axes
}

fn shape(op: &MatMul) -> Result<Shape, Unsupported> {
    let axes = axes(op);
    if axes.len() > MOST_BATCH_AXES {
        return Err(Unsupported(format!(
            "{} axes of a batch move independently",
            axes.len()
        )));
    }
    let mut shape = Shape {
        m: op.m as u64,
        n: op.n as u64,
        k: op.k as u64,
        a_row: op.a.row as u64,
        a_column: op.a.column as u64,
        b_row: op.b.row as u64,
        b_column: op.b.column as u64,
        axes: axes.len() as u64,
        sizes: [1; MOST_BATCH_AXES],
        a_steps: [0; MOST_BATCH_AXES],
        b_steps: [0; MOST_BATCH_AXES],
    };
    for (number, axis) in axes.iter().enumerate() {
        shape.sizes[number] = axis.size as u64;
        shape.a_steps[number] = axis.a as u64;
        shape.b_steps[number] = axis.b as u64;
    }
    Ok(shape)
}
