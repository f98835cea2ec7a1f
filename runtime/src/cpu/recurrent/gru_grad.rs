//! The gradient of a GRU layer.

use super::shared::{PARALLEL, Row, column_sums, for_rows, optional, required, take};
use crate::cpu::gemm::Problem;
use crate::cpu::memory::Call;
use crate::cpu::product::{self, Real, multiply};
use crate::ops::recurrent::Sizes;

/// The products: of the states, the input and the weights.
fn products(sizes: Sizes) -> [Problem; 9] {
    let Sizes {
        steps,
        batch,
        input,
        hidden,
    } = sizes;
    let (rows, width) = (steps * batch, 3 * hidden);
    let later = rows.saturating_sub(batch);
    let problem = |m, n, k| Problem { m, n, k };
    [
        problem(batch, hidden, hidden),
        problem(batch, hidden, 2 * hidden),
        problem(rows, input, width),
        problem(width, input, rows),
        problem(2 * hidden, hidden, batch),
        problem(2 * hidden, hidden, later),
        problem(hidden, hidden, batch),
        problem(hidden, hidden, later),
        problem(hidden, hidden, rows),
    ]
}

/// Elements of scratch: the gradients of what the gates get in all steps, one more row of states for each,
/// the gradient of a state, a product of it, and what products need.
pub(super) fn scratch<T: Real>(sizes: Sizes) -> usize {
    let products = products(sizes).map(product::scratch::<T>);
    let product = products.into_iter().max().unwrap_or(0);
    let gates = (sizes.steps * sizes.batch).saturating_mul(4 * sizes.hidden);
    (gates + 2 * sizes.batch * sizes.hidden).saturating_add(product)
}

/// Computes all gradients that are wanted.
pub(super) fn execute<T: Real>(
    sizes: Sizes,
    linear_before_reset: bool,
    call: Call<'_>,
) -> Result<(), String> {
    let Call {
        inputs,
        mut outputs,
        workspace,
    } = call;
    let [x, w, r] = [0, 1, 2].map(|slot| required::<T>(&inputs[slot]));
    let (x, w, r) = (x?, w?, r?);
    let (bias, h0) = (optional::<T>(&inputs[3]), optional::<T>(&inputs[4]));
    let (all_h, gates) = (required::<T>(&inputs[5])?, required::<T>(&inputs[6])?);
    let (dy, dy_h) = (optional::<T>(&inputs[7]), optional::<T>(&inputs[8]));
    let Sizes {
        steps,
        batch,
        input,
        hidden,
    } = sizes;
    let (width, state) = (3 * hidden, batch * hidden);
    let late_bias = bias.map(|bias| &bias[5 * hidden..]);
    let [
        one_gate,
        two_gates,
        of_x,
        of_w,
        of_r0,
        of_r,
        of_h0,
        of_h,
        of_reset,
    ] = products(sizes);
    let mut scratch: &mut [T] = bytemuck::cast_slice_mut(workspace);
    let da = take(&mut scratch, steps * batch * width);
    // Linear before reset: the gradient of the recurrent product of the gate h. Otherwise: the reset
    // state.
    let extra = take(&mut scratch, steps * state);
    let dh = take(&mut scratch, state);
    let product = take(&mut scratch, state);
    match dy_h {
        Some(dy_h) => dh.copy_from_slice(dy_h),
        None => dh.fill(T::ZERO),
    }
    let (r_zr, r_h) = r.split_at(2 * hidden * hidden);
    let (r_zr, r_h) = (product::rows(r_zr, hidden), product::rows(r_h, hidden));
    let (one, parts) = (hidden.max(1), width.max(1));
    for t in (0..steps).rev() {
        let gates = &gates[t * batch * width..][..batch * width];
        let before = match t.checked_sub(1) {
            Some(t) => Some(&all_h[t * state..][..state]),
            None => h0,
        };
        let dy = dy.map(|dy| &dy[t * state..][..state]);
        let da = &mut da[t * batch * width..][..batch * width];
        let extra = &mut extra[t * state..][..state];
        let first = |(b, (da, dh)): (usize, (&mut [T], &mut [T]))| {
            let at = b * hidden;
            let gates = &gates[b * width..][..width];
            for j in 0..hidden {
                let (z, h) = (gates[j], gates[2 * hidden + j]);
                let d = dh[j] + dy.map_or(T::ZERO, |dy| dy[at + j]);
                let before = before.map_or(T::ZERO, |h| h[at + j]);
                da[j] = d * (before - h) * z * (T::ONE - z);
                da[2 * hidden + j] = d * (T::ONE - z) * (T::ONE - h * h);
                dh[j] = d * z;
            }
        };
        let parallel = da.len() >= PARALLEL;
        if parallel {
            for_rows((da, parts), (dh, one), (&mut [], one), &|b, da, dh, _| {
                first((b, (da, dh)));
            });
        } else {
            (da.chunks_mut(parts))
                .zip(dh.chunks_mut(one))
                .enumerate()
                .for_each(first);
        }
        // What the reset gate multiplies, or the gradient of what it made.
        if !linear_before_reset {
            let gate_h = product::rows(da.get(2 * hidden..).unwrap_or_default(), width);
            multiply(one_gate, gate_h, r_h, false, product, hidden, scratch)?;
        } else {
            match before {
                Some(before) => {
                    let before = product::rows(before, hidden);
                    let r_h = r_h.transposed();
                    multiply(one_gate, before, r_h, false, product, hidden, scratch)?;
                }
                None => product.fill(T::ZERO),
            }
        }
        let product = &*product;
        let second = |(b, ((da, dh), extra)): Row<'_, T>| {
            let at = b * hidden;
            for j in 0..hidden {
                let r = gates[b * width + hidden + j];
                let before = before.map_or(T::ZERO, |h| h[at + j]);
                let dr = if linear_before_reset {
                    let late = product[at + j] + late_bias.map_or(T::ZERO, |bias| bias[j]);
                    extra[j] = da[2 * hidden + j] * r;
                    da[2 * hidden + j] * late
                } else {
                    extra[j] = r * before;
                    dh[j] += product[at + j] * r;
                    product[at + j] * before
                };
                da[hidden + j] = dr * r * (T::ONE - r);
            }
        };
        if parallel {
            for_rows((da, parts), (dh, one), (extra, one), &|b, da, dh, extra| {
                second((b, ((da, dh), extra)));
            });
        } else {
            (da.chunks_mut(parts))
                .zip(dh.chunks_mut(one))
                .zip(extra.chunks_mut(one))
                .enumerate()
                .for_each(second);
        }
        let da = product::rows(&*da, width);
        multiply(two_gates, da, r_zr, true, dh, hidden, scratch)?;
        if linear_before_reset {
            let extra = product::rows(&*extra, hidden);
            multiply(one_gate, extra, r_h, true, dh, hidden, scratch)?;
        }
    }
    let [dx, dw, dr, db, dh0, ..] = &mut outputs;
    if let Some(dh0) = dh0 {
        dh0.elements::<T>().copy_from_slice(dh);
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
        let dr = dr.elements::<T>();
        dr.fill(T::ZERO);
        let (dr_zr, dr_h) = dr.split_at_mut(2 * hidden * hidden);
        let extras = product::rows(&*extra, hidden);
        if let Some(h0) = h0 {
            let h0 = product::rows(h0, hidden);
            multiply(of_r0, rows.transposed(), h0, false, dr_zr, hidden, scratch)?;
            if linear_before_reset {
                multiply(of_h0, extras.transposed(), h0, false, dr_h, hidden, scratch)?;
            }
        }
        if steps > 1 {
            let states = product::rows(all_h, hidden);
            let later = product::rows(&da[batch * width..], width).transposed();
            multiply(of_r, later, states, true, dr_zr, hidden, scratch)?;
            if linear_before_reset {
                let later = product::rows(&extra[state..], hidden).transposed();
                multiply(of_h, later, states, true, dr_h, hidden, scratch)?;
            }
        }
        if !linear_before_reset {
            let gate_h = product::rows(da.get(2 * hidden..).unwrap_or_default(), width);
            multiply(
                of_reset,
                gate_h.transposed(),
                extras,
                false,
                dr_h,
                hidden,
                scratch,
            )?;
        }
    }
    if let Some(db) = db {
        let (of_input, of_state) = db.elements().split_at_mut(width);
        column_sums(da, width, of_input);
        of_state.copy_from_slice(of_input);
        if linear_before_reset {
            column_sums(extra, hidden, &mut of_state[2 * hidden..]);
        }
    }
    Ok(())
}
