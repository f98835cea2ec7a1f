//! A layer over all steps.

use super::shared::{PARALLEL, apply_all, for_rows, optional, required, take};
use crate::cpu::gemm::Problem;
use crate::cpu::memory::{Call, Output};
use crate::cpu::product::{self, Real, multiply};
use crate::ops::recurrent::{Activation, Cell, Layer, Sizes};

/// Elements of scratch of the products of a layer.
fn products<T: Real>(cell: Cell, sizes: Sizes) -> usize {
    let Sizes {
        steps,
        batch,
        input,
        hidden,
    } = sizes;
    let width = cell.gates() * hidden;
    let all = product::scratch::<T>(Problem {
        m: steps * batch,
        n: width,
        k: input,
    });
    let step = |n| {
        product::scratch::<T>(Problem {
            m: batch,
            n,
            k: hidden,
        })
    };
    all.max(step(width)).max(step(2 * hidden)).max(step(hidden))
}

/// Elements of scratch: the gates of all steps unless they are an output, two states, two products of a
/// step, the biases, and what products need.
pub(super) fn scratch<T: Real>(layer: &Layer, gates_are_output: bool) -> usize {
    let Sizes {
        steps,
        batch,
        hidden,
        ..
    } = layer.sizes;
    let width = layer.cell.gates() * hidden;
    let gates = if gates_are_output {
        0
    } else {
        (steps * batch).saturating_mul(width)
    };
    let states = batch.saturating_mul(4 * hidden);
    (gates + states + width).saturating_add(products::<T>(layer.cell, layer.sizes))
}

/// What is the same for all steps of a direction.
struct Pass<'p, T> {
    cell: Cell,
    activations: [Activation; 3],
    hidden: usize,
    clip: Option<T>,
    /// The recurrent bias of the gate h of a GRU that is linear before reset.
    late_bias: Option<&'p [T]>,
    peepholes: Option<&'p [T]>,
    lengths: Option<&'p [i32]>,
}

/// Runs the layer.
pub(super) fn execute<T: Real>(layer: &Layer, call: Call<'_>) -> Result<(), String> {
    let Call {
        inputs,
        mut outputs,
        workspace,
    } = call;
    let x = required::<T>(&inputs[0])?;
    let (w, r) = (required::<T>(&inputs[1])?, required::<T>(&inputs[2])?);
    let bias = optional::<T>(&inputs[3]);
    let lengths: Option<&[i32]> = inputs[4].as_ref().map(|lengths| lengths.elements());
    let (h0, c0) = (optional::<T>(&inputs[5]), optional::<T>(&inputs[6]));
    let peepholes = optional::<T>(&inputs[7]);
    let [all_h, last_h, last_c, all_c, gates, ..] = &mut outputs;
    let sizes = layer.sizes;
    let Sizes {
        steps,
        batch,
        input,
        hidden,
    } = sizes;
    let count = layer.directions.len();
    if let Some(lengths) = lengths
        && let Some(&length) = { lengths.iter() }.find(|&&n| n < 0 || n as usize > steps)
    {
        return Err(format!(
            "a length in sequence_lens is {length}: expected 0 to {steps}"
        ));
    }
    let width = layer.cell.gates() * hidden;
    let mut scratch: &mut [T] = bytemuck::cast_slice_mut(workspace);
    let gates: &mut [T] = match gates {
        Some(gates) => gates.elements(),
        None => take(&mut scratch, steps * batch * width),
    };
    let h = take(&mut scratch, batch * hidden);
    let c = take(&mut scratch, batch * hidden);
    let reset = take(&mut scratch, batch * hidden);
    let late = take(&mut scratch, batch * hidden);
    let biases = take(&mut scratch, width);
    let place = |b: usize, d: usize| match layer.batch_first {
        true => (b * count + d) * hidden,
        false => (d * batch + b) * hidden,
    };
    // Elements between two steps, and between two sequences, in the gates.
    let (next_step, next_row) = match layer.batch_first {
        true => (width, steps * width),
        false => (batch * width, width),
    };
    for (d, direction) in layer.directions.iter().enumerate() {
        let late_reset = matches!(
            layer.cell,
            Cell::Gru {
                linear_before_reset: true
            }
        );
        let bias = bias.map(|bias| bias[2 * d * width..][..2 * width].split_at(width));
        for (number, to) in biases.iter_mut().enumerate() {
            *to = match bias {
                None => T::ZERO,
                Some((input, _)) if late_reset && number >= 2 * hidden => input[number],
                Some((input, state)) => input[number] + state[number],
            };
        }
        let pass = Pass {
            cell: layer.cell,
            activations: direction.activations,
            hidden,
            clip: layer.clip.map(|clip| T::from_f64(f64::from(clip))),
            late_bias: bias.map(|(_, state)| &state[width - hidden..]),
            peepholes: peepholes.map(|p| &p[3 * d * hidden..][..3 * hidden]),
            lengths,
        };
        for row in gates.chunks_mut(width.max(1)) {
            row.copy_from_slice(biases);
        }
        let all = Problem {
            m: steps * batch,
            n: width,
            k: input,
        };
        let w = product::rows(&w[d * width * input..][..width * input], input);
        let rows_of_x = product::rows(x, input);
        multiply(all, rows_of_x, w.transposed(), true, gates, width, scratch)?;
        for (state, first) in [(&mut *h, h0), (&mut *c, c0)] {
            for (b, row) in state.chunks_mut(hidden.max(1)).enumerate() {
                match first {
                    Some(first) => row.copy_from_slice(&first[place(b, d)..][..hidden]),
                    None => row.fill(T::ZERO),
                }
            }
        }
        let r = &r[d * width * hidden..][..width * hidden];
        for number in 0..steps {
            let t = if direction.reverse {
                steps - 1 - number
            } else {
                number
            };
            let gates = &mut gates[t * next_step..];
            let state = State {
                h: &mut *h,
                c: &mut *c,
                reset: &mut *reset,
                late: &mut *late,
            };
            step(&pass, t, gates, next_row, r, state, scratch)?;
            let at = |b: usize| match layer.batch_first {
                true => ((b * steps + t) * count + d) * hidden,
                false => ((t * count + d) * batch + b) * hidden,
            };
            for (output, state) in [(&mut *all_h, &*h), (&mut *all_c, &*c)] {
                copy_out(output, state, hidden, at, |b| pass.runs(b, t));
            }
        }
        for (output, state) in [(&mut *last_h, &*h), (&mut *last_c, &*c)] {
            copy_out(output, state, hidden, |b| place(b, d), |_| true);
        }
    }
    Ok(())
}

/// Copies the rows of a state to their places in an output, zeros where a sequence has ended.
fn copy_out<T: Real>(
    output: &mut Option<Output<'_>>,
    state: &[T],
    hidden: usize,
    place: impl Fn(usize) -> usize,
    runs: impl Fn(usize) -> bool,
) {
    let Some(output) = output else { return };
    let output = output.elements::<T>();
    for (b, row) in state.chunks(hidden.max(1)).enumerate() {
        let to = &mut output[place(b)..][..row.len()];
        if runs(b) {
            to.copy_from_slice(row);
        } else {
            to.fill(T::ZERO);
        }
    }
}

/// The states and the scratch of a step, a dense row for each sequence.
struct State<'s, T> {
    h: &'s mut [T],
    c: &'s mut [T],
    /// The reset state of a GRU.
    reset: &'s mut [T],
    /// The recurrent product of the gate h.
    late: &'s mut [T],
}

/// One step: `gates` starts at the step's first row and holds what the input gives.
fn step<T: Real>(
    pass: &Pass<'_, T>,
    t: usize,
    gates: &mut [T],
    next_row: usize,
    r: &[T],
    state: State<'_, T>,
    scratch: &mut [T],
) -> Result<(), String> {
    let State { h, c, reset, late } = state;
    let hidden = pass.hidden;
    let batch = h.len().checked_div(hidden).unwrap_or(0);
    let sizes = |n: usize| Problem {
        m: batch,
        n,
        k: hidden,
    };
    let r = |first: usize, n: usize| {
        product::rows(&r[first * hidden..][..n * hidden], hidden).transposed()
    };
    let states = product::rows(&*h, hidden);
    match pass.cell {
        Cell::Rnn | Cell::Lstm { .. } => {
            let n = pass.cell.gates() * hidden;
            multiply(sizes(n), states, r(0, n), true, gates, next_row, scratch)?;
        }
        Cell::Gru {
            linear_before_reset,
        } => {
            let n = 2 * hidden;
            multiply(sizes(n), states, r(0, n), true, gates, next_row, scratch)?;
            if linear_before_reset {
                let last = r(n, hidden);
                multiply(sizes(hidden), states, last, false, late, hidden, scratch)?;
            } else {
                rows(pass, gates, next_row, h, reset, |_, gates, h, reset| {
                    pass.reset(gates, h, reset);
                });
                let reset = product::rows(&*reset, hidden);
                let last = r(n, hidden);
                multiply(sizes(hidden), reset, last, false, late, hidden, scratch)?;
            }
        }
    }
    match pass.cell {
        Cell::Rnn => rows(pass, gates, next_row, h, c, |b, gates, h, _| {
            if pass.runs(b, t) {
                pass.activate(0, gates);
                h.copy_from_slice(gates);
            }
        }),
        Cell::Lstm { input_forget } => rows(pass, gates, next_row, h, c, |b, gates, h, c| {
            if pass.runs(b, t) {
                pass.lstm(input_forget, gates, h, c);
            }
        }),
        Cell::Gru {
            linear_before_reset,
        } => rows(pass, gates, next_row, h, late, |b, gates, h, late| {
            if pass.runs(b, t) {
                pass.gru(linear_before_reset, gates, h, late);
            }
        }),
    }
    Ok(())
}

/// Calls a function for the rows of a step: its number, its gates, and its rows of two states.
fn rows<T: Real>(
    pass: &Pass<'_, T>,
    gates: &mut [T],
    next_row: usize,
    one: &mut [T],
    other: &mut [T],
    row: impl Fn(usize, &mut [T], &mut [T], &mut [T]) + Sync,
) {
    let hidden = pass.hidden.max(1);
    let width = pass.cell.gates() * pass.hidden;
    let next_row = next_row.max(1);
    if one.len() * pass.cell.gates() >= PARALLEL {
        for_rows(
            (gates, next_row),
            (one, hidden),
            (other, hidden),
            &|b, gates, one, other| {
                row(b, &mut gates[..width], one, other);
            },
        );
    } else {
        (gates.chunks_mut(next_row))
            .zip(one.chunks_mut(hidden))
            .zip(other.chunks_mut(hidden))
            .enumerate()
            .for_each(|(b, ((gates, one), other))| row(b, &mut gates[..width], one, other));
    }
}

impl<T: Real> Pass<'_, T> {
    /// Whether a sequence has a step.
    fn runs(&self, sequence: usize, t: usize) -> bool {
        self.lengths.is_none_or(|n| t < n[sequence] as usize)
    }

    /// Clips what an activation gets, and applies it.
    fn activate(&self, activation: usize, gate: &mut [T]) {
        if let Some(clip) = self.clip {
            for x in &mut *gate {
                *x = (-clip).greater(clip.lesser(*x));
            }
        }
        apply_all(self.activations[activation], gate);
    }

    /// Adds what a gate (0 for i, 1 for o, 2 for f) sees of the cell.
    fn peep(&self, number: usize, gate: &mut [T], cell: &[T]) {
        if let Some(peepholes) = self.peepholes {
            let peepholes = &peepholes[number * self.hidden..];
            for ((gate, &p), &c) in gate.iter_mut().zip(peepholes).zip(cell) {
                *gate += p * c;
            }
        }
    }

    /// The gates i, o, f and c, with their activations written over what they get.
    fn lstm(&self, input_forget: bool, gates: &mut [T], h: &mut [T], c: &mut [T]) {
        let (gate_i, rest) = gates.split_at_mut(self.hidden);
        let (gate_o, rest) = rest.split_at_mut(self.hidden);
        let (gate_f, gate_c) = rest.split_at_mut(self.hidden);
        self.peep(0, gate_i, c);
        self.activate(0, gate_i);
        if input_forget {
            for (f, &i) in gate_f.iter_mut().zip(&*gate_i) {
                *f = T::ONE - i;
            }
        } else {
            self.peep(2, gate_f, c);
            self.activate(0, gate_f);
        }
        self.activate(1, gate_c);
        let gates = gate_i.iter().zip(&*gate_f).zip(&*gate_c);
        for (c, ((&i, &f), &candidate)) in c.iter_mut().zip(gates) {
            *c = f * *c + i * candidate;
        }
        self.peep(1, gate_o, c);
        self.activate(0, gate_o);
        h.copy_from_slice(c);
        apply_all(self.activations[2], h);
        for (h, &o) in h.iter_mut().zip(&*gate_o) {
            *h = o * *h;
        }
    }

    /// The reset state, where the reset gate is applied before the product. The gate stays as it is.
    fn reset(&self, gates: &[T], h: &[T], reset: &mut [T]) {
        reset.copy_from_slice(&gates[self.hidden..2 * self.hidden]);
        self.activate(0, reset);
        for (to, &h) in reset.iter_mut().zip(h) {
            *to = h * *to;
        }
    }

    /// The gates z, r and h; `late` is the recurrent product of the gate h.
    fn gru(&self, linear_before_reset: bool, gates: &mut [T], h: &mut [T], late: &[T]) {
        let (gate_zr, gate_h) = gates.split_at_mut(2 * self.hidden);
        self.activate(0, gate_zr);
        let (gate_z, gate_r) = gate_zr.split_at_mut(self.hidden);
        for (j, (gate, &late)) in gate_h.iter_mut().zip(late).enumerate() {
            *gate += match (linear_before_reset, self.late_bias) {
                (true, Some(bias)) => gate_r[j] * (late + bias[j]),
                (true, None) => gate_r[j] * late,
                (false, _) => late,
            };
        }
        self.activate(1, gate_h);
        for ((h, &z), &candidate) in h.iter_mut().zip(&*gate_z).zip(&*gate_h) {
            *h = (T::ONE - z) * candidate + z * *h;
        }
    }
}
