//! The gradient of a GRU layer.

use super::{Real, UNIT, begin, column_sums, columns, cut, multiply, rest, rows};
use crate::cuda::division::narrow;
use crate::cuda::encode::{Arguments, BLOCK, Call, Sink, Unsupported, address};
use crate::cuda::lt::Problem;
use crate::ops::recurrent::Sizes;

/// The products: of the states, the input and the weights.
pub(super) struct Problems {
    /// The gradient of the gate h to what its product took.
    gate: Problem,
    /// Linear before reset: the product of the gate h again, and its gradient.
    again: Problem,
    back: Problem,
    two_gates: Problem,
    input: Problem,
    weights: Problem,
    first_two: Problem,
    later_two: Problem,
    first_one: Problem,
    later_one: Problem,
    of_reset: Problem,
}

impl Problems {
    pub(super) fn new(sizes: Sizes, real: Real) -> Self {
        let Sizes {
            steps,
            batch,
            input,
            hidden,
        } = sizes;
        let (all, width) = (steps * batch, 3 * hidden);
        let later = all.saturating_sub(batch);
        let state = |a| real.problem([batch, hidden, hidden], rows(a), rows(hidden));
        let recurrent = |m, k, step| real.problem([m, hidden, k], columns(step), rows(hidden));
        Problems {
            gate: state(width),
            again: real.problem([batch, hidden, hidden], rows(hidden), columns(hidden)),
            back: state(hidden),
            two_gates: real.problem([batch, hidden, 2 * hidden], rows(width), rows(hidden)),
            input: real.problem([all, input, width], rows(width), rows(input)),
            weights: real.problem([width, input, all], columns(width), rows(input)),
            first_two: recurrent(2 * hidden, batch, width),
            later_two: recurrent(2 * hidden, later, width),
            first_one: recurrent(hidden, batch, hidden),
            later_one: recurrent(hidden, later, hidden),
            of_reset: recurrent(hidden, all, width),
        }
    }

    pub(super) fn all(&self) -> [Problem; 11] {
        [
            self.gate,
            self.again,
            self.back,
            self.two_gates,
            self.input,
            self.weights,
            self.first_two,
            self.later_two,
            self.first_one,
            self.later_one,
            self.of_reset,
        ]
    }
}

/// The parts of scratch, in bytes: the gradients of what the gates get in all steps, one more row of states
/// for each, the gradient of a state, and a product of it.
pub(super) struct Parts {
    da: usize,
    extra: usize,
    dh: usize,
    product: usize,
    pub(super) bytes: usize,
}

impl Parts {
    pub(super) fn new(sizes: Sizes, real: Real) -> Self {
        let all = sizes.steps * sizes.batch;
        let state = real.bytes(sizes.batch * sizes.hidden);
        let mut bytes = 0;
        let da = cut(&mut bytes, real.bytes(all.saturating_mul(3 * sizes.hidden)));
        let extra = cut(&mut bytes, real.bytes(all.saturating_mul(sizes.hidden)));
        let dh = cut(&mut bytes, state);
        let product = cut(&mut bytes, state);
        Parts {
            da,
            extra,
            dh,
            product,
            bytes,
        }
    }
}

/// Puts all gradients that are wanted into a sink.
pub(super) fn encode(
    sizes: Sizes,
    linear_before_reset: bool,
    real: Real,
    call: &Call<'_>,
    sink: &mut Sink<'_>,
) -> Result<(), Unsupported> {
    let (x, w, r) = (call.input(0)?, call.input(1)?, call.input(2)?);
    let (bias, h0) = (call.optional_input(3), call.optional_input(4));
    let (all_h, gates) = (call.input(5)?, call.input(6)?);
    let (dy, dy_h) = (call.optional_input(7), call.optional_input(8));
    let Sizes {
        steps,
        batch,
        hidden,
        ..
    } = sizes;
    let (width, state) = (3 * hidden, batch * hidden);
    let problems = Problems::new(sizes, real);
    let parts = Parts::new(sizes, real);
    let scratch = rest(call, parts.bytes);
    let at = |part: usize| call.workspace.address + part as u64;
    let (da, extra) = (at(parts.da), at(parts.extra));
    let (dh, product) = (at(parts.dh), at(parts.product));
    let late_bias = bias.map_or(0, |bias| real.at(bias.address, 5 * hidden));
    let r_h = real.at(r.address, 2 * hidden * hidden);
    begin(dh, dy_h, real.bytes(state), sink);
    let blocks = sink.blocks(narrow(state)? as usize, BLOCK as usize);
    let (narrow_batch, narrow_hidden) = (narrow(batch)?, narrow(hidden)?);
    for t in (0..steps).rev() {
        let gates = real.at(gates.address, t * batch * width);
        let before = match t.checked_sub(1) {
            Some(t) => real.at(all_h.address, t * state),
            None => address(h0),
        };
        let da = real.at(da, t * batch * width);
        let extra = real.at(extra, t * state);
        let arguments = Arguments::new()
            .address(gates)
            .address(before)
            .address(dy.map_or(0, |dy| real.at(dy.address, t * state)))
            .address(dh)
            .address(da)
            .u32(narrow_batch)
            .u32(narrow_hidden);
        let kernel = format!("gru_gradient_{}", real.suffix);
        sink.launch(&UNIT, kernel, blocks, BLOCK, arguments);
        // What the reset gate multiplies, or the gradient of what it made.
        if !linear_before_reset {
            let operands = [real.at(da, 2 * hidden), r_h, product];
            multiply(problems.gate, false, operands, scratch, sink);
        } else if before != 0 {
            multiply(problems.again, false, [before, r_h, product], scratch, sink);
        } else {
            sink.fill(product, 0, real.bytes(state));
        }
        let arguments = Arguments::new()
            .address(gates)
            .address(before)
            .address(product)
            .address(late_bias)
            .address(dh)
            .address(da)
            .address(extra)
            .u32(u32::from(linear_before_reset))
            .u32(narrow_batch)
            .u32(narrow_hidden);
        let kernel = format!("gru_reset_gradient_{}", real.suffix);
        sink.launch(&UNIT, kernel, blocks, BLOCK, arguments);
        multiply(problems.two_gates, true, [da, r.address, dh], scratch, sink);
        if linear_before_reset {
            multiply(problems.back, true, [extra, r_h, dh], scratch, sink);
        }
    }
    if let Some(dh0) = call.optional_output(4) {
        sink.copy(dh0.address, dh, dh0.ty.bytes());
    }
    if let Some(dx) = call.optional_output(0) {
        let operands = [da, w.address, dx.address];
        multiply(problems.input, false, operands, scratch, sink);
    }
    if let Some(dw) = call.optional_output(1) {
        let operands = [da, x.address, dw.address];
        multiply(problems.weights, false, operands, scratch, sink);
    }
    if let Some(dr) = call.optional_output(2) {
        let dr_h = real.at(dr.address, 2 * hidden * hidden);
        let mut adds = false;
        if let Some(h0) = h0 {
            let operands = [da, h0.address, dr.address];
            multiply(problems.first_two, false, operands, scratch, sink);
            if linear_before_reset {
                let operands = [extra, h0.address, dr_h];
                multiply(problems.first_one, false, operands, scratch, sink);
            }
            adds = true;
        }
        if steps > 1 {
            let later = real.at(da, batch * width);
            let operands = [later, all_h.address, dr.address];
            multiply(problems.later_two, adds, operands, scratch, sink);
            if linear_before_reset {
                let operands = [real.at(extra, state), all_h.address, dr_h];
                multiply(problems.later_one, adds, operands, scratch, sink);
            }
        } else if !adds {
            sink.fill(dr.address, 0, dr.ty.bytes());
        }
        if !linear_before_reset {
            let operands = [real.at(da, 2 * hidden), extra, dr_h];
            multiply(problems.of_reset, false, operands, scratch, sink);
        }
    }
    if let Some(db) = call.optional_output(3) {
        column_sums(real, da, db.address, steps * batch, width, sink)?;
        let of_state = real.at(db.address, width);
        sink.copy(of_state, db.address, real.bytes(width));
        if linear_before_reset {
            let last = real.at(of_state, 2 * hidden);
            column_sums(real, extra, last, steps * batch, hidden, sink)?;
        }
    }
    Ok(())
}
