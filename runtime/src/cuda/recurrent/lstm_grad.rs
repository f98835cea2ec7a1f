//! The gradient of an LSTM layer.
//!
//! As ONNX Runtime defines it: peepholes are not known, so that the paths through them are left out.

use super::{Real, UNIT, begin, column_sums, columns, cut, multiply, rest, rows};
use crate::cuda::division::narrow;
use crate::cuda::encode::{Arguments, BLOCK, Call, Sink, Unsupported, address};
use crate::cuda::lt::Problem;
use crate::ops::recurrent::Sizes;

/// The products.
pub(super) struct Problems {
    state: Problem,
    input: Problem,
    weights: Problem,
    first_recurrent: Problem,
    recurrent: Problem,
}

impl Problems {
    pub(super) fn new(sizes: Sizes, real: Real) -> Self {
        let Sizes {
            steps,
            batch,
            input,
            hidden,
        } = sizes;
        let (all, width) = (steps * batch, 4 * hidden);
        let later = all.saturating_sub(batch);
        Problems {
            state: real.problem([batch, hidden, width], rows(width), rows(hidden)),
            input: real.problem([all, input, width], rows(width), rows(input)),
            weights: real.problem([width, input, all], columns(width), rows(input)),
            first_recurrent: real.problem([width, hidden, batch], columns(width), rows(hidden)),
            recurrent: real.problem([width, hidden, later], columns(width), rows(hidden)),
        }
    }

    pub(super) fn all(&self) -> [Problem; 5] {
        [
            self.state,
            self.input,
            self.weights,
            self.first_recurrent,
            self.recurrent,
        ]
    }
}

/// The parts of scratch, in bytes: the gradients of what the gates get in all steps, and those of two states.
pub(super) struct Parts {
    da: usize,
    dh: usize,
    dc: usize,
    pub(super) bytes: usize,
}

impl Parts {
    pub(super) fn new(sizes: Sizes, real: Real) -> Self {
        let state = real.bytes(sizes.batch * sizes.hidden);
        let gates = (sizes.steps * sizes.batch).saturating_mul(4 * sizes.hidden);
        let mut bytes = 0;
        let da = cut(&mut bytes, real.bytes(gates));
        let dh = cut(&mut bytes, state);
        let dc = cut(&mut bytes, state);
        Parts { da, dh, dc, bytes }
    }
}

/// Puts all gradients that are wanted into a sink.
pub(super) fn encode(
    sizes: Sizes,
    real: Real,
    call: &Call<'_>,
    sink: &mut Sink<'_>,
) -> Result<(), Unsupported> {
    let (x, w, r) = (call.input(0)?, call.input(1)?, call.input(2)?);
    let (h0, c0) = (call.optional_input(3), call.optional_input(4));
    let (all_h, all_c, gates) = (call.input(5)?, call.input(6)?, call.input(7)?);
    let [dy, dy_h, dy_c] = [8, 9, 10].map(|slot| call.optional_input(slot));
    let Sizes {
        steps,
        batch,
        hidden,
        ..
    } = sizes;
    let (width, state) = (4 * hidden, batch * hidden);
    let problems = Problems::new(sizes, real);
    let parts = Parts::new(sizes, real);
    let scratch = rest(call, parts.bytes);
    let at = |part: usize| call.workspace.address + part as u64;
    let (da, dh, dc) = (at(parts.da), at(parts.dh), at(parts.dc));
    begin(dh, dy_h, real.bytes(state), sink);
    begin(dc, dy_c, real.bytes(state), sink);
    let blocks = sink.blocks(narrow(state)? as usize, BLOCK as usize);
    for t in (0..steps).rev() {
        let before = match t.checked_sub(1) {
            Some(t) => real.at(all_c.address, t * state),
            None => address(c0),
        };
        let da = real.at(da, t * batch * width);
        let arguments = Arguments::new()
            .address(real.at(gates.address, t * batch * width))
            .address(real.at(all_c.address, t * state))
            .address(before)
            .address(dy.map_or(0, |dy| real.at(dy.address, t * state)))
            .address(dh)
            .address(dc)
            .address(da)
            .u32(narrow(batch)?)
            .u32(narrow(hidden)?);
        let kernel = format!("lstm_gradient_{}", real.suffix);
        sink.launch(&UNIT, kernel, blocks, BLOCK, arguments);
        multiply(problems.state, false, [da, r.address, dh], scratch, sink);
    }
    for (slot, from) in [(4, dh), (5, dc)] {
        if let Some(output) = call.optional_output(slot) {
            sink.copy(output.address, from, output.ty.bytes());
        }
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
        let mut adds = false;
        if let Some(h0) = h0 {
            let operands = [da, h0.address, dr.address];
            multiply(problems.first_recurrent, false, operands, scratch, sink);
            adds = true;
        }
        if steps > 1 {
            let later = real.at(da, batch * width);
            let operands = [later, all_h.address, dr.address];
            multiply(problems.recurrent, adds, operands, scratch, sink);
        } else if !adds {
            sink.fill(dr.address, 0, dr.ty.bytes());
        }
    }
    if let Some(db) = call.optional_output(3) {
        column_sums(real, da, db.address, steps * batch, width, sink)?;
        let of_state = real.at(db.address, width);
        sink.copy(of_state, db.address, real.bytes(width));
    }
    Ok(())
}
