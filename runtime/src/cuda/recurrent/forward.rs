//! A layer over all steps.

use super::{Real, UNIT, columns, cut, multiply, rest, rows};
use crate::cuda::division::narrow;
use crate::cuda::encode::{Arguments, BLOCK, Call, Operand, Sink, Unsupported, address};
use crate::cuda::lt::Problem;
use crate::ops::recurrent::{Activation, Cell, Layer, Sizes};
use bytemuck::{Pod, Zeroable};

/// `Function` of the kernels.
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
struct Function {
    kind: u32,
    alpha: f32,
    beta: f32,
}

impl Function {
    fn new(activation: Activation) -> Self {
        let (kind, alpha, beta) = match activation {
            Activation::Sigmoid => (0, 0.0, 0.0),
            Activation::Tanh => (1, 0.0, 0.0),
            Activation::Relu => (2, 0.0, 0.0),
            Activation::Affine(a, b) => (3, a, b),
            Activation::LeakyRelu(a) => (4, a, 0.0),
            Activation::ThresholdedRelu(a) => (5, a, 0.0),
            Activation::ScaledTanh(a, b) => (6, a, b),
            Activation::HardSigmoid(a, b) => (7, a, b),
            Activation::Elu(a) => (8, a, 0.0),
            Activation::Softsign => (9, 0.0, 0.0),
            Activation::Softplus => (10, 0.0, 0.0),
        };
        Function { kind, alpha, beta }
    }
}

/// `Step` of the kernels.
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
struct Step {
    next_row: u64,
    next_state: u64,
    batch: u32,
    hidden: u32,
    width: u32,
    time: u32,
    keeps_gates: u32,
    variant: u32,
    clips: u32,
    clip: f32,
    functions: [Function; 3],
    /// C's structure ends at a multiple of 8.
    padding: u32,
}

/// Columns of the product of a step's states: all gates, or those of a GRU that is not linear before reset
/// but the last.
fn product_width(layer: &Layer) -> usize {
    let gates = match layer.cell {
        Cell::Gru {
            linear_before_reset: false,
        } => 2,
        cell => cell.gates(),
    };
    gates * layer.sizes.hidden
}

/// The products: of the input, of the states, and of the reset states of a GRU.
fn each_problem(layer: &Layer, real: Real) -> [Problem; 3] {
    let Sizes {
        steps,
        batch,
        input,
        hidden,
    } = layer.sizes;
    let all = [steps * batch, layer.cell.gates() * hidden, input];
    let of_states = [batch, product_width(layer), hidden];
    [
        real.problem(all, rows(input), columns(input)),
        real.problem(of_states, rows(hidden), columns(hidden)),
        real.problem([batch, hidden, hidden], rows(hidden), columns(hidden)),
    ]
}

pub(super) fn problems(layer: &Layer, real: Real) -> Vec<Problem> {
    each_problem(layer, real).to_vec()
}

/// The parts of scratch, in bytes.
pub(super) struct Parts {
    /// The gates of all steps, unless they are an output.
    gates: usize,
    h: usize,
    c: usize,
    product: usize,
    reset: usize,
    late: usize,
    pub(super) bytes: usize,
}

impl Parts {
    pub(super) fn new(layer: &Layer, gates_are_output: bool, real: Real) -> Self {
        let Sizes {
            steps,
            batch,
            hidden,
            ..
        } = layer.sizes;
        let width = layer.cell.gates() * hidden;
        let state = real.bytes(batch * hidden);
        let resets = product_width(layer) < width;
        let mut bytes = 0;
        let all = match gates_are_output {
            true => 0,
            false => real.bytes((steps * batch).saturating_mul(width)),
        };
        let gates = cut(&mut bytes, all);
        let h = cut(&mut bytes, state);
        let c = cut(&mut bytes, state);
        let product = cut(&mut bytes, real.bytes(batch * product_width(layer)));
        let reset = cut(&mut bytes, if resets { state } else { 0 });
        let late = cut(&mut bytes, if resets { state } else { 0 });
        Parts {
            gates,
            h,
            c,
            product,
            reset,
            late,
            bytes,
        }
    }
}

/// Rows of a state, from one layout to another.
struct Rows {
    address: u64,
    step: usize,
}

fn copy_rows(
    real: Real,
    from: Option<Rows>,
    to: Rows,
    batch: usize,
    hidden: usize,
    sink: &mut Sink<'_>,
) -> Result<(), Unsupported> {
    let count = narrow(batch * hidden)?;
    let arguments = Arguments::new()
        .address(from.as_ref().map_or(0, |from| from.address))
        .address(to.address)
        .size(from.as_ref().map_or(0, |from| from.step))
        .size(to.step)
        .u32(narrow(hidden)?)
        .u32(count);
    let blocks = sink.blocks(count as usize, BLOCK as usize);
    let kernel = format!("copy_rows_{}", real.suffix);
    sink.launch(&UNIT, kernel, blocks, BLOCK, arguments);
    Ok(())
}

/// Refuses lengths beyond the steps.
fn check_lengths(
    lengths: Option<Operand<'_>>,
    sizes: Sizes,
    sink: &mut Sink<'_>,
) -> Result<(), Unsupported> {
    let Some(lengths) = lengths else {
        return Ok(());
    };
    let steps = sizes.steps;
    let (report, check) = sink.check(move |_, length| {
        format!("a length in sequence_lens is {length}: expected 0 to {steps}")
    });
    let arguments = Arguments::new()
        .address(lengths.address)
        .u32(narrow(sizes.batch)?)
        .i32(narrow(steps)?.cast_signed())
        .address(report)
        .u32(check);
    let blocks = sink.blocks(sizes.batch, BLOCK as usize);
    sink.launch(&UNIT, "check_lengths", blocks, BLOCK, arguments);
    Ok(())
}

/// Puts the layer into a sink.
pub(super) fn encode(
    layer: &Layer,
    real: Real,
    call: &Call<'_>,
    sink: &mut Sink<'_>,
) -> Result<(), Unsupported> {
    let (x, w, r) = (call.input(0)?, call.input(1)?, call.input(2)?);
    let optional = |slot: usize| call.optional_input(slot);
    let (bias, lengths, peepholes) = (optional(3), optional(4), optional(7));
    let gates_output = call.optional_output(4);
    let Sizes {
        steps,
        batch,
        input,
        hidden,
    } = layer.sizes;
    let count = layer.directions.len();
    let width = layer.cell.gates() * hidden;
    let parts = Parts::new(layer, gates_output.is_some(), real);
    let [of_input, of_states, of_reset] = each_problem(layer, real);
    let scratch = rest(call, parts.bytes);
    let at = |part: usize| call.workspace.address + part as u64;
    let gates = gates_output.map_or(at(parts.gates), |gates| gates.address);
    check_lengths(lengths, layer.sizes, sink)?;
    // The first element of a direction's states, elements between its sequences there, and in the gates and
    // in the states of all steps those between steps.
    let (next_first, of_direction) = match layer.batch_first {
        true => (count * hidden, hidden),
        false => (hidden, batch * hidden),
    };
    let (next_step, next_row) = match layer.batch_first {
        true => (width, steps * width),
        false => (batch * width, width),
    };
    let (state_step, next_state) = match layer.batch_first {
        true => (count * hidden, steps * count * hidden),
        false => (count * batch * hidden, hidden),
    };
    for (d, direction) in layer.directions.iter().enumerate() {
        let w = real.at(w.address, d * width * input);
        multiply(of_input, false, [x.address, w, gates], scratch, sink);
        for (slot, state) in [(5, at(parts.h)), (6, at(parts.c))] {
            let from = optional(slot).map(|first| Rows {
                address: real.at(first.address, d * of_direction),
                step: next_first,
            });
            let to = Rows {
                address: state,
                step: hidden,
            };
            copy_rows(real, from, to, batch, hidden, sink)?;
        }
        let r = real.at(r.address, d * width * hidden);
        for number in 0..steps {
            let t = match direction.reverse {
                true => steps - 1 - number,
                false => number,
            };
            let operands = [at(parts.h), r, at(parts.product)];
            multiply(of_states, false, operands, scratch, sink);
            let all = |output: Option<Operand<'_>>| {
                output.map_or(0, |output| {
                    real.at(output.address, t * state_step + d * of_direction)
                })
            };
            let step = Step {
                next_row: next_row as u64,
                next_state: next_state as u64,
                batch: narrow(batch)?,
                hidden: narrow(hidden)?,
                width: narrow(product_width(layer))?,
                time: narrow(t)?,
                keeps_gates: u32::from(gates_output.is_some()),
                variant: u32::from(matches!(
                    layer.cell,
                    Cell::Lstm { input_forget: true }
                        | Cell::Gru {
                            linear_before_reset: true
                        }
                )),
                clips: u32::from(layer.clip.is_some()),
                clip: layer.clip.unwrap_or(0.0),
                functions: direction.activations.map(Function::new),
                padding: 0,
            };
            let of_direction_of = |operand: Option<Operand<'_>>, elements: usize| match operand {
                Some(operand) => real.at(operand.address, d * elements),
                None => 0,
            };
            let arguments = |c: u64| {
                Arguments::new()
                    .address(real.at(gates, t * next_step))
                    .address(at(parts.product))
                    .address(at(parts.late))
                    .address(of_direction_of(bias, 2 * width))
                    .address(of_direction_of(peepholes, 3 * hidden))
                    .address(address(lengths))
                    .address(at(parts.h))
                    .address(c)
                    .address(all(call.optional_output(0)))
                    .address(all(call.optional_output(3)))
                    .structure(&step)
            };
            let blocks = sink.blocks(narrow(batch * hidden)? as usize, BLOCK as usize);
            let mut launch = |cell: &str, c: u64| {
                let kernel = format!("{cell}_{}", real.suffix);
                sink.launch(&UNIT, kernel, blocks, BLOCK, arguments(c));
            };
            match layer.cell {
                Cell::Rnn => launch("rnn", at(parts.c)),
                Cell::Lstm { .. } => launch("lstm", at(parts.c)),
                Cell::Gru {
                    linear_before_reset,
                } => {
                    if !linear_before_reset {
                        launch("gru_reset", at(parts.reset));
                        let last = real.at(r, 2 * hidden * hidden);
                        let operands = [at(parts.reset), last, at(parts.late)];
                        multiply(of_reset, false, operands, scratch, sink);
                    }
                    let kernel = format!("gru_{}", real.suffix);
                    sink.launch(&UNIT, kernel, blocks, BLOCK, arguments(at(parts.c)));
                }
            }
        }
        for (slot, state) in [(1, at(parts.h)), (2, at(parts.c))] {
            let Some(output) = call.optional_output(slot) else {
                continue;
            };
            let from = Rows {
                address: state,
                step: hidden,
            };
            let to = Rows {
                address: real.at(output.address, d * of_direction),
                step: next_first,
            };
            copy_rows(real, Some(from), to, batch, hidden, sink)?;
        }
    }
    Ok(())
}
