//! The gradient of an LSTM layer.
//!
//! As ONNX Runtime defines it: peepholes are not known, so that the paths through them are left out.

use super::shared::{PARALLEL, Row, column_sums, for_rows, optional, required, take};
use crate::cpu::gemm::Problem;
use crate::cpu::memory::Call;
use crate::cpu::product::{self, Real, multiply};
use crate::ops::recurrent::Sizes;

fn products(sizes: Sizes) -> [Problem; 5] {
    let Sizes {
        steps,
        batch,
        input,
        hidden,
    } = sizes;
    let (rows, width) = (steps * batch, 4 * hidden);
    let problem = |m, n, k| Problem { m, n, k };
    [
        problem(batch, hidden, width),
        problem(rows, input, width),
        problem(width, input, rows),
        problem(width, hidden, batch),
        problem(width, hidden, rows.saturating_sub(batch)),
    ]
}

/// Elements of scratch: the gradients of what the gates get in all steps, those of two states, and what
/// products need.
pub(super) fn scratch<T: Real>(sizes: Sizes) -> usize {
    let products = products(sizes).map(product::scratch::<T>);
    let product = products.into_iter().max().unwrap_or(0);
    let gates = (sizes.steps * sizes.batch).saturating_mul(4 * sizes.hidden);
    (gates + 2 * sizes.batch * sizes.hidden).saturating_add(product)
}

/// Computes all gradients that are wanted.
pub(super) fn execute<T: Real>(sizes: Sizes, call: Call<'_>) -> Result<(), String> {
    let Call {
        inputs,
        mut outputs,
        workspace,
    } = call;
    let [x, w, r] = [0, 1, 2].map(|slot| required::<T>(&inputs[slot]));
    let (x, w, r) = (x?, w?, r?);
    let (h0, c0) = (optional::<T>(&inputs[3]), optional::<T>(&inputs[4]));
    let (all_h, all_c) = (required::<T>(&inputs[5])?, required::<T>(&inputs[6])?);
    let gates = required::<T>(&inputs[7])?;
    let [dy, dy_h, dy_c] = [8, 9, 10].map(|slot| optional::<T>(&inputs[slot]));
    let Sizes {
        steps,
        batch,
        input,
        hidden,
    } = sizes;
    let (width, state) = (4 * hidden, batch * hidden);
    let [back, of_x, of_w, of_r0, of_r] = products(sizes);
    let mut scratch: &mut [T] = bytemuck::cast_slice_mut(workspace);
    let da = take(&mut scratch, steps * batch * width);
    let dh = take(&mut scratch, state);
    let dc = take(&mut scratch, state);
    for (to, from) in [(&mut *dh, dy_h), (&mut *dc, dy_c)] {
        match from {
            Some(from) => to.copy_from_slice(from),
            None => to.fill(T::ZERO),
        }
    }
    for t in (0..steps).rev() {
        let gates = &gates[t * batch * width..][..batch * width];
        let cells = &all_c[t * state..][..state];
        let before = match t.checked_sub(1) {
            Some(t) => Some(&all_c[t * state..][..state]),
            None => c0,
        };
        let dy = dy.map(|dy| &dy[t * state..][..state]);
        let row = |(b, ((da, dh), dc)): Row<'_, T>| {
            let at = b * hidden;
            let gates = &gates[b * width..][..width];
            for j in 0..hidden {
                let (i, o) = (gates[j], gates[hidden + j]);
                let (f, g) = (gates[2 * hidden + j], gates[3 * hidden + j]);
                let dh = dh[j] + dy.map_or(T::ZERO, |dy| dy[at + j]);
                let squashed = cells[at + j].tanh();
                let d = dc[j] + dh * o * (T::ONE - squashed * squashed);
                let before = before.map_or(T::ZERO, |c| c[at + j]);
                da[j] = d * g * i * (T::ONE - i);
                da[hidden + j] = dh * squashed * o * (T::ONE - o);
                da[2 * hidden + j] = d * before * f * (T::ONE - f);
                da[3 * hidden + j] = d * i * (T::ONE - g * g);
                dc[j] = d * f;
            }
        };
        let da = &mut da[t * batch * width..][..batch * width];
        let (one, parts) = (hidden.max(1), width.max(1));
        if da.len() >= PARALLEL {
            for_rows((da, parts), (dh, one), (dc, one), &|b, da, dh, dc| {
                row((b, ((da, dh), dc)));
            });
        } else {
            (da.chunks_mut(parts))
                .zip(dh.chunks_mut(one))
                .zip(dc.chunks_mut(one))
                .enumerate()
                .for_each(row);
        }
        let da = product::rows(&*da, width);
        multiply(
            back,
            da,
            product::rows(r, hidden),
            false,
            dh,
            hidden,
            scratch,
        )?;
    }
    let [dx, dw, dr, db, dh0, dc0, ..] = &mut outputs;
    for (output, state) in [(dh0, &*dh), (dc0, &*dc)] {
        if let Some(output) = output {
            output.elements::<T>().copy_from_slice(state);
        }
    }
    let rows = product::rows(&*da, width);
    if let Some(dx) = dx {
        let w = product::rows(w, input);
        multiply(of_x, rows, w, false, dx.elements(), input, scratch)?;
    }
    if let Some(dw) = dw {
        let (dw, x) = (dw.elements(), product::rows(x, input));
        multiply(of_w, rows.transposed(), x, false, dw, input, scratch)?;
    }
    if let Some(dr) = dr {
        let dr = dr.elements();
        dr.fill(T::ZERO);
        if let Some(h0) = h0 {
            let h0 = product::rows(h0, hidden);
            multiply(of_r0, rows.transposed(), h0, false, dr, hidden, scratch)?;
        }
        if steps > 1 {
            let later = product::rows(&da[batch * width..], width).transposed();
            let h = product::rows(all_h, hidden);
            multiply(of_r, later, h, true, dr, hidden, scratch)?;
        }
    }
    if let Some(db) = db {
        let (of_input, of_state) = db.elements().split_at_mut(width);
        column_sums(da, width, of_input);
        of_state.copy_from_slice(of_input);
    }
    Ok(())
}
