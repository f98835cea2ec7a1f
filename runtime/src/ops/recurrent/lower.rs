//! From the operators of recurrent layers to operations.

use super::activation::activations;
use super::{Activation, Cell, Direction, Layer, Recurrent, Sizes};
use crate::lower::{Lowering, Refusal};
use crate::ops::Op;
use crate::program::TensorId;
use crate::tensor::TensorType;
use velora_graph::ir::Node;
use velora_graph::shapes::DataType;

pub(super) fn lower(lowering: &mut Lowering<'_>, node: &Node) -> Result<(), Refusal> {
    match node.op() {
        "LSTMGrad" => lstm_grad(lowering, node),
        "GRUGrad" => gru_grad(lowering, node),
        _ => forward(lowering, node),
    }
}

fn cell(node: &Node) -> Cell {
    match node.op() {
        "RNN" => Cell::Rnn,
        "GRU" | "GRUTraining" | "GRUGrad" => Cell::Gru {
            linear_before_reset: node.int("linear_before_reset", 0) != 0,
        },
        _ => Cell::Lstm {
            input_forget: node.int("input_forget", 0) != 0,
        },
    }
}

/// The sizes of a layer, from X, W and R; refuses those that contradict each other.
fn sizes(
    lowering: &Lowering<'_>,
    [x, w, r]: [TensorId; 3],
    gates: usize,
    directions: usize,
    batch_first: bool,
) -> Result<Sizes, Refusal> {
    let (x, w, r) = (lowering.ty(x), lowering.ty(w), lowering.ty(r));
    let sizes = match (x.shape.as_slice(), r.shape.as_slice()) {
        (&[steps, batch, input], &[_, _, hidden]) => Some(Sizes {
            steps: if batch_first { batch } else { steps },
            batch: if batch_first { steps } else { batch },
            input,
            hidden,
        }),
        _ => None,
    };
    let sizes = sizes.filter(|s| {
        let rows = gates.checked_mul(s.hidden);
        rows.is_some_and(|rows| {
            w.shape == [directions, rows, s.input] && r.shape == [directions, rows, s.hidden]
        })
    });
    let real = matches!(x.data_type, DataType::FLOAT | DataType::DOUBLE);
    match sizes {
        Some(sizes) if real && w.data_type == x.data_type && r.data_type == x.data_type => {
            Ok(sizes)
        }
        _ => Err(Refusal(format!(
            "X is {x}, W {w}, R {r}: expected float or double, and W and R \
             [{directions}, {gates} × hidden, ...]"
        ))),
    }
}

/// Refuses an operand that is there and has another shape or type.
fn check(
    lowering: &Lowering<'_>,
    what: &str,
    id: Option<TensorId>,
    data_type: DataType,
    shape: &[usize],
) -> Result<(), Refusal> {
    let Some(id) = id else { return Ok(()) };
    let ty = lowering.ty(id);
    if ty.data_type != data_type || ty.shape != shape {
        let expected = TensorType::new(data_type, shape);
        return Err(Refusal(format!("{what} is {ty}: expected {expected}")));
    }
    Ok(())
}

fn forward(lowering: &mut Lowering<'_>, node: &Node) -> Result<(), Refusal> {
    let cell = cell(node);
    let (gates, training) = (cell.gates(), node.op().ends_with("Training"));
    let operands = [0, 1, 2].map(|slot| lowering.input(node, slot));
    let [x, w, r] = operands;
    let (x, w, r) = (x?, w?, r?);
    let direction = node.attribute("direction").and_then(|a| a.s.as_deref());
    let reverse: &[bool] = match direction {
        None | Some(b"forward" | b"") => &[false],
        Some(b"reverse") => &[true],
        Some(b"bidirectional") => &[false, true],
        Some(_) => {
            return Err(Refusal::new(
                "direction: expected forward, reverse or bidirectional",
            ));
        }
    };
    let batch_first = node.int("layout", 0) != 0;
    let count = reverse.len();
    let sizes = sizes(lowering, [x, w, r], gates, count, batch_first)?;
    let activations = activations(node, cell, count)?;
    let is_lstm = matches!(cell, Cell::Lstm { .. });
    let mut optional = |slot: usize, there: bool| match there {
        true => lowering.optional_input(node, slot),
        false => Ok(None),
    };
    let (bias, lengths) = (optional(3, true)?, optional(4, true)?);
    let (h0, c0) = (optional(5, true)?, optional(6, is_lstm)?);
    let peepholes = optional(7, is_lstm)?;
    let mut outputs = [None; 5];
    let slots: &[usize] = match (is_lstm, training) {
        (true, true) => &[0, 1, 2, 3, 4],
        (true, false) => &[0, 1, 2],
        // The gates are the third output of GRUTraining.
        (false, true) => &[0, 1, 4],
        (false, false) => &[0, 1],
    };
    for (slot, &place) in slots.iter().enumerate() {
        outputs[place] = lowering.output(node, slot)?;
    }
    if training && (count != 1 || lengths.is_some() || reverse[0] || batch_first) {
        return Err(Refusal::new(
            "a layer that is trained: expected direction forward, layout 0 and no lengths",
        ));
    }
    let Sizes {
        steps,
        batch,
        hidden,
        ..
    } = sizes;
    let data_type = lowering.ty(x).data_type;
    let state = match batch_first {
        true => [batch, count, hidden],
        false => [count, batch, hidden],
    };
    let all = |wide: usize| match batch_first {
        true => [batch, steps, count, wide * hidden],
        false => [steps, count, batch, wide * hidden],
    };
    let check = |what, id, shape: &[usize]| check(lowering, what, id, data_type, shape);
    check("B", bias, &[count, 2 * gates * hidden])?;
    check("initial_h", h0, &state)?;
    check("initial_c", c0, &state)?;
    check("P", peepholes, &[count, 3 * hidden])?;
    check("Y", outputs[0], &all(1))?;
    check("Y_h", outputs[1], &state)?;
    check("Y_c", outputs[2], &state)?;
    check("the cell states", outputs[3], &all(1))?;
    check("the gates", outputs[4], &all(gates))?;
    self::check(
        lowering,
        "sequence_lens",
        lengths,
        DataType::INT32,
        &[batch],
    )?;
    let layer = Layer {
        cell,
        sizes,
        directions: (reverse.iter().zip(activations))
            .map(|(&reverse, activations)| Direction {
                reverse,
                activations,
            })
            .collect(),
        batch_first,
        clip: node.attribute("clip").and_then(|a| a.f),
    };
    let inputs = vec![Some(x), Some(w), Some(r), bias, lengths, h0, c0, peepholes];
    lowering.emit(
        Op::Recurrent(Recurrent::Forward(layer)),
        inputs,
        outputs.to_vec(),
    );
    Ok(())
}

/// Refuses what the gradients of ONNX Runtime do not take either.
fn check_trained(node: &Node, cell: Cell) -> Result<(), Refusal> {
    let direction = node.attribute("direction").and_then(|a| a.s.as_deref());
    let expected = [Activation::Sigmoid, Activation::Tanh, Activation::Tanh];
    let plain = matches!(direction, None | Some(b"forward" | b""))
        && node.int("input_forget", 0) == 0
        && node.int("layout", 0) == 0
        && node.attribute("clip").is_none()
        && activations(node, cell, 1)? == [expected];
    if !plain {
        return Err(Refusal::new(
            "expected direction forward, layout 0, no clip, no input_forget, and the default activations",
        ));
    }
    Ok(())
}

/// Inputs: X, W, R, lengths, H0, C0, all hidden states, all cell states, gates, dY, dY_h, dY_c.
fn lstm_grad(lowering: &mut Lowering<'_>, node: &Node) -> Result<(), Refusal> {
    check_trained(node, cell(node))?;
    let [x, w, r] = [0, 1, 2].map(|slot| lowering.input(node, slot));
    let (x, w, r) = (x?, w?, r?);
    let sizes = sizes(lowering, [x, w, r], 4, 1, false)?;
    if lowering.optional_input(node, 3)?.is_some() || lowering.wants(node, 6) {
        return Err(Refusal::new(
            "expected no lengths, and no gradient of peepholes",
        ));
    }
    let (h0, c0) = (
        lowering.optional_input(node, 4)?,
        lowering.optional_input(node, 5)?,
    );
    let [hidden, cells, gates] = [6, 7, 8].map(|slot| lowering.input(node, slot));
    let (hidden, cells, gates) = (hidden?, cells?, gates?);
    let [dy, dh, dc] = [9, 10, 11].map(|slot| lowering.optional_input(node, slot));
    let (dy, dh, dc) = (dy?, dh?, dc?);
    let data_type = lowering.ty(x).data_type;
    let state = [1, sizes.batch, sizes.hidden];
    let all = |wide: usize| [sizes.steps, 1, sizes.batch, wide * sizes.hidden];
    for (what, id, shape) in [
        ("the hidden states", Some(hidden), all(1)),
        ("the cell states", Some(cells), all(1)),
        ("the gates", Some(gates), all(4)),
        ("dY", dy, all(1)),
    ] {
        check(lowering, what, id, data_type, &shape)?;
    }
    for (what, id) in [
        ("initial_h", h0),
        ("initial_c", c0),
        ("dY_h", dh),
        ("dY_c", dc),
    ] {
        check(lowering, what, id, data_type, &state)?;
    }
    let outputs = gradients(lowering, node, 6, 4, sizes, data_type)?;
    let inputs = vec![
        Some(x),
        Some(w),
        Some(r),
        h0,
        c0,
        Some(hidden),
        Some(cells),
        Some(gates),
        dy,
        dh,
        dc,
    ];
    lowering.emit(Op::Recurrent(Recurrent::LstmGrad(sizes)), inputs, outputs);
    Ok(())
}

/// The outputs dX, dW, dR, dB, dH0 and dC0, as many as the operator has.
fn gradients(
    lowering: &mut Lowering<'_>,
    node: &Node,
    count: usize,
    gates: usize,
    sizes: Sizes,
    data_type: DataType,
) -> Result<Vec<Option<TensorId>>, Refusal> {
    let (rows, hidden) = (gates * sizes.hidden, sizes.hidden);
    let shapes: [(&str, &[usize]); 6] = [
        ("dX", &[sizes.steps, sizes.batch, sizes.input]),
        ("dW", &[1, rows, sizes.input]),
        ("dR", &[1, rows, hidden]),
        ("dB", &[1, 2 * rows]),
        ("dH0", &[1, sizes.batch, hidden]),
        ("dC0", &[1, sizes.batch, hidden]),
    ];
    let mut outputs = Vec::with_capacity(count);
    for (slot, (what, shape)) in shapes.into_iter().take(count).enumerate() {
        let output = lowering.output(node, slot)?;
        check(lowering, what, output, data_type, shape)?;
        outputs.push(output);
    }
    Ok(outputs)
}

/// Inputs: X, W, R, B, lengths, H0, all hidden states, gates, dY, dY_h.
fn gru_grad(lowering: &mut Lowering<'_>, node: &Node) -> Result<(), Refusal> {
    check_trained(node, cell(node))?;
    let [x, w, r] = [0, 1, 2].map(|slot| lowering.input(node, slot));
    let (x, w, r) = (x?, w?, r?);
    let sizes = sizes(lowering, [x, w, r], 3, 1, false)?;
    if lowering.optional_input(node, 4)?.is_some() {
        return Err(Refusal::new("expected no lengths"));
    }
    let [bias, h0, dy, dh] = [3, 5, 8, 9].map(|slot| lowering.optional_input(node, slot));
    let (bias, h0, dy, dh) = (bias?, h0?, dy?, dh?);
    let (hidden, gates) = (lowering.input(node, 6)?, lowering.input(node, 7)?);
    let data_type = lowering.ty(x).data_type;
    let state = [1, sizes.batch, sizes.hidden];
    let all = |wide: usize| [sizes.steps, 1, sizes.batch, wide * sizes.hidden];
    let check = |what, id, shape: &[usize]| check(lowering, what, id, data_type, shape);
    check("B", bias, &[1, 6 * sizes.hidden])?;
    check("initial_h", h0, &state)?;
    check("the hidden states", Some(hidden), &all(1))?;
    check("the gates", Some(gates), &all(3))?;
    check("dY", dy, &all(1))?;
    check("dY_h", dh, &state)?;
    let outputs = gradients(lowering, node, 5, 3, sizes, data_type)?;
    let op = Recurrent::GruGrad {
        sizes,
        linear_before_reset: node.int("linear_before_reset", 0) != 0,
    };
    let inputs = vec![
        Some(x),
        Some(w),
        Some(r),
        bias,
        h0,
        Some(hidden),
        Some(gates),
        dy,
        dh,
    ];
    lowering.emit(Op::Recurrent(op), inputs, outputs);
    Ok(())
}
