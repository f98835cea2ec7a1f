//! What each operation touches and computes, counted in elements.

use super::elements;
use crate::ops::Op;
use crate::ops::accumulate::Accumulate;
use crate::ops::dequantize::Dequantize;
use crate::ops::directions::Directions;
use crate::ops::elementwise::{Elementwise, Expression, Load, Operator};
use crate::ops::index::{Elements, Index, Reduction, Rows};
use crate::ops::loss::{CrossEntropy, Loss};
use crate::ops::matmul::{Access, MatMul};
use crate::ops::movement::copy::{Axis, Copy, Origin};
use crate::ops::movement::{Movement, Trilu};
use crate::ops::normalize::{Layer, Normalize, Softmax, SoftmaxKind};
use crate::ops::random::Random;
use crate::ops::recurrent::{Cell, Layer as RecurrentLayer, Recurrent, Sizes};
use crate::ops::reduce::{Kind, Reduce};
use crate::ops::velora::Velora;
use crate::ops::window::{Conv, Reduction as Pooling, Window};
use crate::plan::Operand;

/// What an operation reads and writes.
pub(super) struct Operands<'a> {
    pub inputs: &'a [Option<Operand>],
    pub outputs: &'a [Option<Operand>],
}

/// Elements touched, by operand, and operations.
pub(super) struct Work {
    pub read: Vec<u64>,
    pub written: Vec<u64>,
    pub flops: u64,
}

impl Operands<'_> {
    /// The elements of an input; 0 where it is absent.
    fn input(&self, position: usize) -> u64 {
        of(self.inputs, position)
    }

    /// The elements of an output; 0 where it is absent.
    fn output(&self, position: usize) -> u64 {
        of(self.outputs, position)
    }

    fn has_input(&self, position: usize) -> bool {
        self.inputs.get(position).is_some_and(Option::is_some)
    }

    fn has_output(&self, position: usize) -> bool {
        self.outputs.get(position).is_some_and(Option::is_some)
    }

    /// Whether the first output is written over the first input.
    fn in_place(&self) -> bool {
        match (self.inputs.first(), self.outputs.first()) {
            (Some(Some(input)), Some(Some(output))) => input.buffer == output.buffer,
            _ => false,
        }
    }

    /// The work of an operation that reads and writes all of its operands.
    fn all(&self, flops: u64) -> Work {
        let count = |operands: &[Option<Operand>]| -> Vec<u64> {
            (0..operands.len()).map(|at| of(operands, at)).collect()
        };
        Work {
            read: count(self.inputs),
            written: count(self.outputs),
            flops,
        }
    }

    /// So many operations for each element of the first input.
    fn each_input(&self, flops: u64) -> Work {
        self.all(flops * self.input(0))
    }

    /// So many operations for each element of the first output.
    fn each_output(&self, flops: u64) -> Work {
        self.all(flops * self.output(0))
    }
}

fn of(operands: &[Option<Operand>], position: usize) -> u64 {
    let operand = operands.get(position).and_then(Option::as_ref);
    operand.map_or(0, |operand| elements(&operand.ty))
}

fn product(sizes: &[usize]) -> u64 {
    sizes.iter().map(|&size| size as u64).product()
}

/// The work of an operation. There is no arm for all others: a new operation has to say what it costs.
pub(super) fn work(op: &Op, operands: &Operands<'_>) -> Work {
    match op {
        Op::MatMul(op) => matmul(op, operands),
        Op::Elementwise(Elementwise::Expression(op)) => expression(op, operands),
        Op::Reduce(op) => reduce(op, operands),
        Op::Normalize(op) => normalize(op, operands),
        Op::Loss(op) => loss(op, operands),
        Op::Velora(op) => velora(op, operands),
        Op::Directions(op) => directions(op, operands),
        Op::Movement(op) => movement(op, operands),
        Op::Index(op) => index(op, operands),
        Op::Random(op) => random(op, operands),
        Op::Accumulate(Accumulate::Add | Accumulate::Overwrite | Accumulate::Gated) => {
            operands.each_output(1)
        }
        Op::Window(op) => window(op, operands),
        Op::Recurrent(op) => recurrent(op, operands),
        Op::Dequantize(Dequantize { .. }) => {
            operands.each_output(1 + u64::from(operands.has_input(2)))
        }
    }
}

fn matmul(op: &MatMul, operands: &Operands<'_>) -> Work {
    let (m, n, k) = (op.m as u64, op.n as u64, op.k as u64);
    let batch = product(&op.batch);
    let touched = |access: &Access, rows, columns| {
        let steps = op.batch.iter().zip(&access.batch);
        let batches = steps.map(|(&size, &step)| if step == 0 { 1 } else { size as u64 });
        batches.product::<u64>() * rows * columns
    };
    let mut work = operands.all(2 * m * n * k * batch);
    work.read[0] = touched(&op.a, m, k).min(operands.input(0));
    work.read[1] = touched(&op.b, k, n).min(operands.input(1));
    if op.addend.is_some() {
        work.flops += m * n * batch;
    }
    work
}

fn expression(op: &Expression, operands: &Operands<'_>) -> Work {
    let computing = (op.code.iter())
        .filter(|i| !matches!(i.operator, Operator::Load(_) | Operator::Immediate(_)));
    let mut work = operands.all(op.elements() as u64 * computing.count() as u64);
    for (input, read) in work.read.iter_mut().enumerate() {
        let mut seen: Vec<&Load> = Vec::new();
        for load in op.loads.iter().filter(|load| load.input == input) {
            if !seen.contains(&load) {
                seen.push(load);
            }
        }
        let touched = seen.iter().map(|load| {
            let axes = op.shape.iter().zip(&load.strides);
            axes.map(|(&size, &step)| if step == 0 { size.min(1) } else { size } as u64)
                .product::<u64>()
        });
        *read = touched.sum::<u64>().min(*read);
    }
    work
}

fn reduce(op: &Reduce, operands: &Operands<'_>) -> Work {
    match op {
        Reduce::Fold(fold) => operands.each_input(match fold.kind {
            Kind::Sum | Kind::Mean | Kind::Max | Kind::Min | Kind::Product | Kind::LogSum => 1,
            Kind::L1 | Kind::L2 | Kind::SumSquare => 2,
            // The greatest is found first and subtracted.
            Kind::LogSumExp => 4,
        }),
        Reduce::Arg(_) | Reduce::Running(_) => operands.each_input(1),
    }
}

/// The greatest, its difference to each element, the exponential, the sum, and the quotient (or another
/// difference for logarithms).
const SOFTMAX: u64 = 5;

fn normalize(op: &Normalize, operands: &Operands<'_>) -> Work {
    match op {
        Normalize::Softmax(Softmax { kind, .. }) => operands.each_input(match kind {
            SoftmaxKind::Plain | SoftmaxKind::Log => SOFTMAX,
            SoftmaxKind::Hard => 1,
        }),
        // (dY − Σ dY Y) Y, or dY − eʸ Σ dY.
        Normalize::SoftmaxGrad(_) => operands.each_input(4),
        Normalize::Layer(Layer { centred, .. }) => {
            // Squares, their sum, the root's factor and the scale; the mean and its difference.
            let shift = u64::from(operands.has_input(2));
            operands.each_input(4 + 2 * u64::from(*centred) + shift)
        }
        Normalize::LayerGrad(Layer {
            centred,
            from_output,
            ..
        }) => {
            // With x the normalised input: g = dY scale, Σ g x, dX = r (g − x mean), then where wanted
            // Σ dY x and Σ dY; the mean of g where it is subtracted.
            let normalised = 1 + u64::from(*centred || *from_output);
            let sums = 2 * u64::from(operands.has_output(1)) + u64::from(operands.has_output(2));
            operands.each_input(normalised + 6 + 2 * u64::from(*centred) + sums)
        }
        // A factor and an offset by channel; in training mean and variance before them.
        Normalize::Batch(batch) => operands.each_input(if batch.training { 6 } else { 2 }),
        // The normalised input, both sums, and dX = r (dY scale − mean − x mean).
        Normalize::BatchGrad(_) => operands.each_input(2 + 3 + 5),
    }
}

fn loss(op: &Loss, operands: &Operands<'_>) -> Work {
    // Without a softmax only the scores at the labels count.
    let picked = |op: &CrossEntropy| product(&[op.batch, op.inner]);
    match op {
        Loss::CrossEntropy(op) if op.softmax => operands.each_input(SOFTMAX),
        Loss::CrossEntropy(op) => {
            let mut work = operands.all(2 * picked(op));
            work.read[0] = picked(op).min(work.read[0]);
            work
        }
        Loss::CrossEntropyGrad(op) => {
            let added = u64::from(operands.has_input(5));
            if op.softmax {
                // The exponential, and the factor of the label's row.
                return operands.each_output(2 + added);
            }
            let mut work = operands.each_output(added);
            work.flops += picked(op);
            work.read[1] = 0;
            work
        }
    }
}

fn velora(op: &Velora, operands: &Operands<'_>) -> Work {
    match op {
        Velora::Compress(_) => operands.each_input(2),
        Velora::MeanDirection(_) => operands.each_input(1),
        Velora::Spread { .. } | Velora::Repeat { .. } => operands.each_output(1),
        // z dY, and the sum over rows.
        Velora::ScaleGrad { sizes, .. } => operands.all(2 * product(&[sizes.rows, sizes.features])),
    }
}

fn directions(op: &Directions, operands: &Operands<'_>) -> Work {
    match op {
        Directions::Project(sets) => operands.each_input(2 * sets.rank as u64),
        Directions::Spread { sets, .. } | Directions::Repeat { sets, .. } => {
            operands.each_output((2 * sets.rank as u64).saturating_sub(1))
        }
        Directions::Means(_) => operands.each_input(1),
        // Two products and a sum, the sum of squares, and the factor.
        Directions::Blend { .. } => operands.each_input(6),
        // The magnitude, the greatest, the factor and the conversion.
        Directions::Quantize { .. } => operands.each_input(4),
        // The conversion and the factor.
        Directions::Dequantize { .. } => operands.each_output(2),
    }
}

fn movement(op: &Movement, operands: &Operands<'_>) -> Work {
    match op {
        Movement::Copy(op) => copy(op, operands),
        Movement::Trilu(op) => trilu(op, operands),
        // The product with the step, and the sum with the start.
        Movement::Range(_) => operands.each_output(2),
    }
}

fn copy(op: &Copy, operands: &Operands<'_>) -> Work {
    let all = operands.all(0);
    let mut work = Work {
        read: vec![0; all.read.len()],
        written: vec![0; all.written.len()],
        flops: 0,
    };
    for part in &op.parts {
        let touched = |axis: &Axis| if axis.from == 0 { 1 } else { axis.size as u64 };
        match part.origin {
            Origin::Input(input) => {
                work.read[input] += part.axes.iter().map(touched).product::<u64>();
            }
            Origin::Scalar(input) => work.read[input] += 1,
            Origin::Element(_) => {}
        }
        work.written[part.output] += part.elements() as u64;
    }
    // Boxes may overlap.
    let capped = |touched: &mut [u64], all: &[u64]| {
        for (touched, &all) in touched.iter_mut().zip(all) {
            *touched = all.min(*touched);
        }
    };
    capped(&mut work.read, &all.read);
    capped(&mut work.written, &all.written);
    work
}

/// What stays is read; in place it stays where it is, and only the rest is written.
fn trilu(op: &Trilu, operands: &Operands<'_>) -> Work {
    let mut work = operands.all(0);
    let matrix = product(&[op.rows, op.columns]);
    let (Some(diagonal), true) = (op.diagonal, matrix > 0) else {
        return work;
    };
    let columns = op.columns as i64;
    // Elements in front of the kept ones above, or those up to the diagonal below.
    let split = |row: usize| {
        let at = diagonal.saturating_add(row as i64);
        match op.upper {
            true => columns - at.clamp(0, columns),
            false => at.saturating_add(1).clamp(0, columns),
        }
    };
    let kept: u64 = (0..op.rows).map(|row| split(row) as u64).sum();
    let kept = kept * (work.read[0] / matrix);
    if operands.in_place() {
        work.read[0] = 0;
        work.written[0] -= kept;
    } else {
        work.read[0] = kept;
    }
    work
}

fn index(op: &Index, operands: &Operands<'_>) -> Work {
    match op {
        Index::Gather(rows) => {
            let mut work = operands.all(0);
            work.read[0] = addressed(rows).min(work.read[0]);
            work
        }
        Index::GatherElements(_) => {
            let mut work = operands.all(0);
            work.read[0] = work.written[0].min(work.read[0]);
            work
        }
        Index::Scatter(rows, reduction) => scatter(addressed(rows), *reduction, operands),
        Index::ScatterElements(Elements { indices, .. }, reduction) => {
            scatter(product(indices), *reduction, operands)
        }
        Index::OneHot(_) => operands.all(0),
        // One comparison by element at least.
        Index::TopK(_) => operands.each_input(1),
    }
}

/// The most elements that different indices can address.
fn addressed(rows: &Rows) -> u64 {
    let places = (rows.count as u64).min(product(&rows.bounds));
    product(&[rows.outer, rows.batch, rows.slice]) * places
}

/// Inputs: data, indices, updates. In place, only what is addressed is touched; else all is written, and
/// what was there before is read.
fn scatter(addressed: u64, reduction: Reduction, operands: &Operands<'_>) -> Work {
    let combines = reduction != Reduction::Replace;
    let mut work = operands.all(if combines { operands.input(2) } else { 0 });
    if operands.in_place() {
        let addressed = addressed.min(work.written[0]);
        work.read[0] = if combines { addressed } else { 0 };
        work.written[0] = addressed;
    }
    work
}

fn random(op: &Random, operands: &Operands<'_>) -> Work {
    match op {
        // The draw, its comparison, and the factor.
        Random::Dropout(dropout) => match dropout.training {
            Some(false) => operands.all(0),
            _ => operands.each_input(3),
        },
        // The choice and the factor.
        Random::DropoutGrad(_) => operands.each_input(2),
        // The draw, a factor and an offset.
        Random::Draw(_) => operands.each_output(3),
        Random::Bernoulli { .. } => operands.each_output(2),
    }
}

/// Taps outside the input count as those within.
fn window(op: &Window, operands: &Operands<'_>) -> Work {
    let products = |conv: &Conv| {
        let geometry = &conv.geometry;
        let layer = product(&[conv.batch, conv.groups, conv.filters, conv.channels]);
        2 * layer * product(&[geometry.taps(), geometry.positions()])
    };
    match op {
        Window::Conv(conv) | Window::ConvInput(conv) => {
            let bias = u64::from(operands.has_input(2)) * operands.output(0);
            operands.all(products(conv) + bias)
        }
        Window::ConvWeight(conv) => operands.all(products(conv)),
        Window::ChannelSum { .. } => operands.each_input(1),
        Window::Pool(pool) | Window::AverageGrad(pool) => {
            let each = match pool.reduction {
                Pooling::Max { .. } | Pooling::Average { .. } => 1,
                // The magnitude, the power and the sum.
                Pooling::Norm { .. } => 3,
            };
            let geometry = &pool.geometry;
            operands.all(each * product(&[pool.planes, geometry.taps(), geometry.positions()]))
        }
        Window::MaxGrad { .. } => operands.each_input(1),
    }
}

/// For each number of the state: in every gate two sums and the function, and what makes the state of the
/// gates.
fn cell(cell: Cell) -> u64 {
    let gates = 3 * cell.gates() as u64;
    gates
        + match cell {
            Cell::Rnn => 0,
            Cell::Gru { .. } => 4,
            Cell::Lstm { .. } => 5,
        }
}

fn recurrent(op: &Recurrent, operands: &Operands<'_>) -> Work {
    match op {
        Recurrent::Forward(RecurrentLayer {
            cell: kind,
            sizes,
            directions,
            ..
        }) => {
            let states = product(&[directions.len(), sizes.steps, sizes.batch, sizes.hidden]);
            let inputs = product(&[kind.gates(), sizes.input + sizes.hidden]);
            operands.all(states * (2 * inputs + cell(*kind)))
        }
        Recurrent::LstmGrad(sizes) => {
            let kind = Cell::Lstm {
                input_forget: false,
            };
            recurrent_gradient(kind, sizes, operands)
        }
        Recurrent::GruGrad {
            sizes,
            linear_before_reset,
        } => {
            let kind = Cell::Gru {
                linear_before_reset: *linear_before_reset,
            };
            recurrent_gradient(kind, sizes, operands)
        }
    }
}

/// Of the products, that with R carries the gradient from step to step and is always there; dX, dW and dR are
/// outputs.
fn recurrent_gradient(kind: Cell, sizes: &Sizes, operands: &Operands<'_>) -> Work {
    let states = product(&[sizes.steps, sizes.batch, sizes.hidden]);
    let wanted = |output| u64::from(operands.has_output(output));
    let gates = kind.gates() as u64;
    let inputs = gates * sizes.input as u64 * (wanted(0) + wanted(1));
    let hidden = gates * sizes.hidden as u64 * (1 + wanted(2));
    // Each instruction of the forward half has a factor and a sum in the backward half.
    operands.all(states * (2 * (inputs + hidden) + 2 * cell(kind)))
}
