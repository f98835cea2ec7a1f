//! Recurrent layers, with their gradients.
//!
//! The input's part of the gates is one product over all steps. A step multiplies the state, and one kernel
//! does the rest of it: biases, functions, and the new states.

mod forward;
mod gru_grad;
mod lstm_grad;

use super::compile::Unit;
use super::division::narrow;
use super::encode::{Arguments, BLOCK, Call, Operand, Scratch, Sink, Unsupported};
use super::lt::{Element, Lt, Matrix, Problem, Product};
use crate::ops::recurrent::Recurrent;
use crate::tensor::TensorType;
use std::borrow::Cow;
use velora_graph::shapes::DataType;

/// The kernels.
pub const UNIT: Unit = Unit {
    name: "recurrent.cu",
    text: Cow::Borrowed(include_str!("recurrent.cu")),
};

/// Bytes of scratch.
pub fn workspace(
    op: &Recurrent,
    lt: &Lt,
    inputs: &[Option<&TensorType>],
    outputs: &[Option<&TensorType>],
) -> usize {
    let data_type = inputs.first().copied().flatten().map(|ty| ty.data_type);
    // Encoding says what is wrong.
    let Ok(real) = Real::new(data_type.unwrap_or(DataType::FLOAT)) else {
        return 0;
    };
    let (parts, problems) = match op {
        Recurrent::Forward(layer) => {
            let gates_are_output = matches!(outputs.get(4), Some(Some(_)));
            let parts = forward::Parts::new(layer, gates_are_output, real).bytes;
            (parts, forward::problems(layer, real))
        }
        Recurrent::LstmGrad(sizes) => (
            lstm_grad::Parts::new(*sizes, real).bytes,
            lstm_grad::Problems::new(*sizes, real).all().to_vec(),
        ),
        Recurrent::GruGrad { sizes, .. } => (
            gru_grad::Parts::new(*sizes, real).bytes,
            gru_grad::Problems::new(*sizes, real).all().to_vec(),
        ),
    };
    let of_products = problems
        .iter()
        .filter(|problem| problem.m > 0 && problem.n > 0 && problem.k > 0)
        .flat_map(|problem| [false, true].map(|adds| Problem { adds, ..*problem }))
        // Where the library has no algorithm, launching it says so.
        .map(|problem| lt.workspace(&problem).unwrap_or(0));
    parts.saturating_add(of_products.max().unwrap_or(0))
}

/// Puts an operation into a sink.
///
/// # Errors
/// [`Unsupported`] where there is no kernel.
pub fn encode(op: &Recurrent, call: &Call<'_>, sink: &mut Sink<'_>) -> Result<(), Unsupported> {
    let real = Real::new(call.input(0)?.ty.data_type)?;
    match op {
        Recurrent::Forward(layer) => forward::encode(layer, real, call, sink),
        Recurrent::LstmGrad(sizes) => lstm_grad::encode(*sizes, real, call, sink),
        Recurrent::GruGrad {
            sizes,
            linear_before_reset,
        } => gru_grad::encode(*sizes, *linear_before_reset, real, call, sink),
    }
}

/// The elements of a layer.
#[derive(Clone, Copy, Debug)]
struct Real {
    element: Element,
    suffix: &'static str,
}

impl Real {
    fn new(data_type: DataType) -> Result<Self, Unsupported> {
        let (element, suffix) = match data_type {
            DataType::FLOAT => (Element::F32, "f32"),
            DataType::DOUBLE => (Element::F64, "f64"),
            other => {
                let message = format!("a recurrent layer of elements of type {}", other.0);
                return Err(Unsupported(message));
            }
        };
        Ok(Real { element, suffix })
    }

    /// Bytes of elements.
    fn bytes(self, elements: usize) -> usize {
        elements.saturating_mul(self.element.bytes())
    }

    /// The address of an element.
    fn at(self, address: u64, element: usize) -> u64 {
        address + self.bytes(element) as u64
    }

    /// `A · B` of dense row-major matrices, either of which may be read transposed.
    fn problem(self, sizes: [usize; 3], a: Side, b: Side) -> Problem {
        let [m, n, k] = sizes;
        let matrix = |side: Side| Matrix {
            transposed: side.transposed,
            step: side.step,
            batch: 0,
        };
        Problem {
            a: matrix(a),
            b: matrix(b),
            ..Problem::dense(self.element, m, n, k)
        }
    }
}

/// How an operand of a product lies: its rows, or with `transposed` its columns, `step` elements apart.
#[derive(Clone, Copy, Debug)]
struct Side {
    transposed: bool,
    step: usize,
}

fn rows(step: usize) -> Side {
    Side {
        transposed: false,
        step,
    }
}

fn columns(step: usize) -> Side {
    Side {
        transposed: true,
        step,
    }
}

/// Cuts scratch into parts: gives the offset of the next one.
fn cut(bytes: &mut usize, part: usize) -> usize {
    let start = *bytes;
    *bytes = start.saturating_add(part).next_multiple_of(64);
    start
}

/// What is behind the parts, for products.
fn rest(call: &Call<'_>, parts: usize) -> Scratch {
    Scratch {
        address: call.workspace.address + parts as u64,
        bytes: call.workspace.bytes.saturating_sub(parts),
    }
}

/// Multiplies, or adds a product to what is there; products over nothing are 0.
fn multiply(
    problem: Problem,
    adds: bool,
    [a, b, y]: [u64; 3],
    workspace: Scratch,
    sink: &mut Sink<'_>,
) {
    let elements = problem.m * problem.n;
    if elements == 0 {
        return;
    }
    if problem.k == 0 {
        if !adds {
            sink.fill(y, 0, elements * problem.element.bytes());
        }
        return;
    }
    sink.product(Product {
        problem: Problem { adds, ..problem },
        a,
        b,
        y,
        bias: 0,
        alpha: 1.0,
        beta: if adds { 1.0 } else { 0.0 },
        workspace,
    });
}

/// The sums of the columns of a matrix.
fn column_sums(
    real: Real,
    matrix: u64,
    sums: u64,
    rows: usize,
    columns: usize,
    sink: &mut Sink<'_>,
) -> Result<(), Unsupported> {
    let arguments = Arguments::new()
        .address(matrix)
        .address(sums)
        .u32(narrow(rows)?)
        .u32(narrow(columns)?);
    let blocks = sink.blocks(columns, 32);
    let kernel = format!("column_sums_{}", real.suffix);
    sink.launch(&UNIT, kernel, blocks, BLOCK, arguments);
    Ok(())
}

/// Starts a state from an operand, or from 0.
fn begin(state: u64, from: Option<Operand<'_>>, bytes: usize, sink: &mut Sink<'_>) {
    match from {
        Some(from) => sink.copy(state, from.address, bytes),
        None => sink.fill(state, 0, bytes),
    }
}
