//! Recurrent layers and their gradients.

use super::{Both, assert_close, both, epsilon, numbers, random_numbers, tensor, try_both};
use velora_graph::shapes::DataType;
use velora_runtime::ops::Op;
use velora_runtime::ops::recurrent::{Activation, Cell, Direction, Layer, Recurrent, Sizes};
use velora_runtime::tensor::{Tensor, TensorType};

const REALS: [DataType; 2] = [DataType::FLOAT, DataType::DOUBLE];
const SIZES: [Sizes; 3] = [
    Sizes {
        steps: 4,
        batch: 3,
        input: 5,
        hidden: 6,
    },
    Sizes {
        steps: 1,
        batch: 2,
        input: 3,
        hidden: 1,
    },
    Sizes {
        steps: 3,
        batch: 1,
        input: 1,
        hidden: 9,
    },
];

/// Numbers between -1/2 and 1/2.
fn small(ty: DataType, shape: &[usize], seed: u64) -> Tensor {
    let count = shape.iter().product();
    let numbers: Vec<f64> = random_numbers(count, seed)
        .into_iter()
        .map(|n| n / 2.0)
        .collect();
    tensor(ty, shape, &numbers)
}

/// How far results may be apart. What a gate gets is a sum of `terms` products of numbers below 1: each side
/// rounds it within `terms` · ε · `terms` / 2, and its functions within some ε. A step hands an error on by a
/// factor below 1 + the terms' sum; gradients go through all steps twice.
fn bound(ty: DataType, sizes: Sizes, passes: usize) -> f64 {
    let terms = (sizes.input + sizes.hidden + 4) as f64;
    let growth = (1.0 + sizes.hidden as f64 / 4.0).powi((passes * sizes.steps) as i32);
    2.0 * (terms * terms / 2.0 + 8.0) * epsilon(ty) * growth
}

fn check(found: &Both, bound: f64, what: &str) {
    for (number, (cpu, cuda)) in found.cpu.iter().zip(&found.cuda).enumerate() {
        let (Some(cpu), Some(cuda)) = (cpu, cuda) else {
            continue;
        };
        let scale = numbers(cpu)
            .iter()
            .fold(1.0, |most: f64, n| most.max(n.abs()));
        assert_close(
            cpu,
            cuda,
            |_| bound * scale,
            &format!("{what}, output {number}"),
        );
    }
}

fn cells() -> [Cell; 5] {
    [
        Cell::Rnn,
        Cell::Gru {
            linear_before_reset: false,
        },
        Cell::Gru {
            linear_before_reset: true,
        },
        Cell::Lstm {
            input_forget: false,
        },
        Cell::Lstm { input_forget: true },
    ]
}

/// The operands of a layer, all of them or only those that must be there.
fn operands(layer: &Layer, ty: DataType, all: bool) -> Vec<Option<Tensor>> {
    let Sizes {
        steps,
        batch,
        input,
        hidden,
    } = layer.sizes;
    let (count, width) = (layer.directions.len(), layer.cell.gates() * hidden);
    let (x, state) = match layer.batch_first {
        true => ([batch, steps, input], [batch, count, hidden]),
        false => ([steps, batch, input], [count, batch, hidden]),
    };
    let lengths: Vec<f64> = (0..batch)
        .map(|b| [steps, 0, steps / 2][b % 3] as f64)
        .collect();
    let lstm = matches!(layer.cell, Cell::Lstm { .. });
    vec![
        Some(small(ty, &x, 1)),
        Some(small(ty, &[count, width, input], 2)),
        Some(small(ty, &[count, width, hidden], 3)),
        all.then(|| small(ty, &[count, 2 * width], 4)),
        all.then(|| tensor(DataType::INT32, &[batch], &lengths)),
        all.then(|| small(ty, &state, 5)),
        (all && lstm).then(|| small(ty, &state, 6)),
        (all && lstm).then(|| small(ty, &[count, 3 * hidden], 7)),
    ]
}

fn outputs(layer: &Layer, ty: DataType) -> Vec<Option<TensorType>> {
    let Sizes {
        steps,
        batch,
        hidden,
        ..
    } = layer.sizes;
    let count = layer.directions.len();
    let (all, last, gates) = match layer.batch_first {
        true => (
            [batch, steps, count, hidden],
            [batch, count, hidden],
            [batch, steps],
        ),
        false => (
            [steps, count, batch, hidden],
            [count, batch, hidden],
            [steps, batch],
        ),
    };
    let one = count == 1;
    let lstm = matches!(layer.cell, Cell::Lstm { .. });
    let width = layer.cell.gates() * hidden;
    vec![
        Some(TensorType::new(ty, all)),
        Some(TensorType::new(ty, last)),
        lstm.then(|| TensorType::new(ty, last)),
        (one && lstm).then(|| TensorType::new(ty, all)),
        one.then(|| TensorType::new(ty, [gates[0], gates[1], width])),
    ]
}

fn direction(cell: Cell, reverse: bool) -> Direction {
    let activations = match cell {
        Cell::Rnn => [Activation::Tanh; 3],
        _ => [Activation::Sigmoid, Activation::Tanh, Activation::Tanh],
    };
    Direction {
        reverse,
        activations,
    }
}

#[test]
fn layers() {
    for cell in cells() {
        for sizes in SIZES {
            for (batch_first, count, all, clip) in [
                (false, 1, false, None),
                (true, 2, true, Some(0.4)),
                (false, 2, true, None),
                (true, 1, true, None),
                (false, 1, true, Some(0.3)),
            ] {
                for ty in REALS {
                    let directions = (0..count)
                        .map(|d| direction(cell, d == 1 || clip == Some(0.3)))
                        .collect();
                    let layer = Layer {
                        cell,
                        sizes,
                        directions,
                        batch_first,
                        clip,
                    };
                    let inputs = operands(&layer, ty, all);
                    let outputs = outputs(&layer, ty);
                    let what = format!("{layer:?} of {}", ty.0);
                    let found = both(
                        Op::Recurrent(Recurrent::Forward(layer.clone())),
                        &inputs,
                        &outputs,
                    );
                    check(&found, bound(ty, sizes, 1), &what);
                    // Only the last state: the gates then lie in scratch.
                    let last = [None, outputs[1].clone(), None, None, None];
                    let found = both(Op::Recurrent(Recurrent::Forward(layer)), &inputs, &last);
                    check(&found, bound(ty, sizes, 1), &what);
                }
            }
        }
    }
}

#[test]
fn functions() {
    let all = [
        Activation::Sigmoid,
        Activation::Tanh,
        Activation::Relu,
        Activation::Affine(0.5, 0.1),
        Activation::LeakyRelu(0.1),
        Activation::ThresholdedRelu(0.2),
        Activation::ScaledTanh(1.5, 0.7),
        Activation::HardSigmoid(0.3, 0.4),
        Activation::Elu(0.8),
        Activation::Softsign,
        Activation::Softplus,
    ];
    for activation in all {
        for ty in REALS {
            let sizes = SIZES[0];
            let directions = vec![Direction {
                reverse: false,
                activations: [activation; 3],
            }];
            let layer = Layer {
                cell: Cell::Rnn,
                sizes,
                directions,
                batch_first: false,
                clip: None,
            };
            let (inputs, outputs) = (operands(&layer, ty, true), outputs(&layer, ty));
            let found = both(Op::Recurrent(Recurrent::Forward(layer)), &inputs, &outputs);
            check(
                &found,
                4.0 * bound(ty, sizes, 1),
                &format!("{activation:?} of {}", ty.0),
            );
        }
    }
}

#[test]
fn lengths_beyond_the_steps_are_reported() {
    let cell = Cell::Lstm {
        input_forget: false,
    };
    let layer = Layer {
        cell,
        sizes: SIZES[0],
        directions: vec![direction(cell, false)],
        batch_first: false,
        clip: None,
    };
    for bad in [-1.0, 5.0] {
        let mut inputs = operands(&layer, DataType::FLOAT, true);
        inputs[4] = Some(tensor(DataType::INT32, &[3], &[4.0, bad, 0.0]));
        let outputs = outputs(&layer, DataType::FLOAT);
        let op = Op::Recurrent(Recurrent::Forward(layer.clone()));
        let (cpu, cuda) = try_both(op, &inputs, &outputs, &[]);
        assert_eq!(cpu.unwrap_err(), cuda.unwrap_err());
    }
}

#[test]
fn gradients() {
    for cell in [cells()[1], cells()[2], cells()[3]] {
        for sizes in SIZES {
            for ty in REALS {
                for all in [true, false] {
                    let layer = Layer {
                        cell,
                        sizes,
                        directions: vec![direction(cell, false)],
                        batch_first: false,
                        clip: None,
                    };
                    let mut inputs = operands(&layer, ty, all);
                    // Gradients know neither lengths nor peepholes.
                    (inputs[4], inputs[7]) = (None, None);
                    let forward = both(
                        Op::Recurrent(Recurrent::Forward(layer.clone())),
                        &inputs,
                        &outputs(&layer, ty),
                    );
                    let made = |number: usize| forward.cpu[number].clone();
                    let Sizes {
                        steps,
                        batch,
                        input,
                        hidden,
                    } = sizes;
                    let width = cell.gates() * hidden;
                    let dy = Some(small(ty, &[steps, 1, batch, hidden], 8))
                        .filter(|_| all || sizes.steps > 1);
                    let of_last = |seed| {
                        Some(small(ty, &[1, batch, hidden], seed))
                            .filter(|_| all || sizes.steps == 1)
                    };
                    let shape = |shape: &[usize]| Some(TensorType::new(ty, shape));
                    let mut wanted = vec![
                        shape(&[steps, batch, input]),
                        shape(&[1, width, input]),
                        shape(&[1, width, hidden]),
                        shape(&[1, 2 * width]),
                        shape(&[1, batch, hidden]),
                    ];
                    let (op, operands) = match cell {
                        Cell::Lstm { .. } => {
                            wanted.push(shape(&[1, batch, hidden]));
                            let operands = vec![
                                inputs[0].clone(),
                                inputs[1].clone(),
                                inputs[2].clone(),
                                inputs[5].clone(),
                                inputs[6].clone(),
                                made(0),
                                made(3),
                                made(4),
                                dy,
                                of_last(9),
                                of_last(10),
                            ];
                            (Recurrent::LstmGrad(sizes), operands)
                        }
                        _ => {
                            let linear_before_reset = cell
                                == Cell::Gru {
                                    linear_before_reset: true,
                                };
                            let operands = vec![
                                inputs[0].clone(),
                                inputs[1].clone(),
                                inputs[2].clone(),
                                inputs[3].clone(),
                                inputs[5].clone(),
                                made(0),
                                made(4),
                                dy,
                                of_last(9),
                            ];
                            (
                                Recurrent::GruGrad {
                                    sizes,
                                    linear_before_reset,
                                },
                                operands,
                            )
                        }
                    };
                    let what = format!("gradient of {cell:?} {sizes:?} of {}", ty.0);
                    let found = both(Op::Recurrent(op), &operands, &wanted);
                    // Sums over steps and sequences besides.
                    let terms = (steps * batch) as f64;
                    check(&found, terms * bound(ty, sizes, 2), &what);
                }
            }
        }
    }
}
