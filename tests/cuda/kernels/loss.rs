//! Losses, with their gradients.

use super::{
    assert_close, both_over, epsilon, numbers, random_numbers, random_tensor, tensor, try_both,
};
use velora_graph::shapes::DataType;
use velora_runtime::ops::Op;
use velora_runtime::ops::loss::{CrossEntropy, Loss, Reduction};
use velora_runtime::tensor::{Tensor, TensorType};

const FLOATS: [DataType; 4] = [
    DataType::FLOAT,
    DataType::DOUBLE,
    DataType::FLOAT16,
    DataType::BFLOAT16,
];

/// Batch, classes, places.
const SHAPES: [[usize; 3]; 9] = [
    [5, 8, 1],
    [9, 37, 1],
    [2, 1030, 1],
    [3, 2052, 1],
    [2, 5, 7],
    [3, 4, 8],
    [40, 3, 1],
    [0, 4, 1],
    [1, 1, 1],
];

fn computed(ty: DataType) -> f64 {
    epsilon(ty).min(epsilon(DataType::FLOAT))
}

fn labels(ty: DataType, [batch, classes, inner]: [usize; 3], ignored: i64) -> Tensor {
    let labels: Vec<f64> = random_numbers(batch * inner, 31)
        .iter()
        .enumerate()
        .map(|(i, x)| match i % 4 {
            3 => ignored as f64,
            _ => ((x.abs() * classes as f64) as usize).min(classes - 1) as f64,
        })
        .collect();
    tensor(ty, &[batch, inner], &labels)
}

/// Weights, the ignored label as an input, and whether it is a class.
const CASES: [(bool, bool, i64); 4] = [
    (false, false, -100),
    (true, false, 0),
    (false, true, -1),
    (true, true, 2),
];

/// A logarithm of a probability up to 10 is within 45 · ε of that, as for softmax; losses are multiplied by
/// weights up to 2 and added in doubles.
#[test]
fn cross_entropy() {
    for ty in FLOATS {
        for shape @ [batch, classes, inner] in SHAPES {
            for reduction in [Reduction::None, Reduction::Sum, Reduction::Mean] {
                for (number, (weighted, input, ignore)) in CASES.into_iter().enumerate() {
                    let of_labels = match number % 2 {
                        0 => DataType::INT64,
                        _ => DataType::INT32,
                    };
                    let weights: Vec<f64> = random_numbers(classes, 32)
                        .iter()
                        .map(|x| 1.0 + x)
                        .collect();
                    let inputs = [
                        Some(random_tensor(ty, &shape, 33)),
                        Some(labels(of_labels, shape, ignore)),
                        weighted.then(|| tensor(ty, &[classes], &weights)),
                        input.then(|| tensor(DataType::INT64, &[], &[ignore as f64])),
                    ];
                    let softmax = number != 1;
                    let op = CrossEntropy {
                        batch,
                        classes,
                        inner,
                        reduction,
                        ignore: (!input).then_some(ignore),
                        softmax,
                    };
                    let losses = match reduction {
                        Reduction::None => TensorType::new(ty, [batch * inner]),
                        _ => TensorType::new(ty, []),
                    };
                    let logs = TensorType::new(ty, shape);
                    for wanted in [false, true] {
                        if wanted && !softmax {
                            continue;
                        }
                        let outputs = [Some(losses.clone()), wanted.then(|| logs.clone())];
                        for fresh in [&[][..], &[0]] {
                            let what =
                                format!("{op:?} of {ty}, {number}, {wanted}, over {fresh:?}");
                            let op = Op::Loss(Loss::CrossEntropy(op.clone()));
                            let found = both_over(op, &inputs, &outputs, fresh);
                            for (which, (cpu, cuda)) in
                                found.cpu.iter().zip(&found.cuda).enumerate()
                            {
                                let (Some(cpu), Some(cuda)) = (cpu, cuda) else {
                                    continue;
                                };
                                let summed = which == 0 && reduction == Reduction::Sum;
                                let count = if summed { (batch * inner) as f64 } else { 1.0 };
                                let values = numbers(cpu);
                                let bound = |place: usize| {
                                    let value: f64 = values[place];
                                    2.0 * 45.0 * computed(ty) * 2.0 * 10.0 * count
                                        + 2.0 * epsilon(ty) * value.abs()
                                };
                                assert_close(cpu, cuda, bound, &what);
                            }
                        }
                    }
                }
            }
        }
    }
}

/// A probability is within 4 · ε, and multiplied by a factor up to 2.
#[test]
fn cross_entropy_grad() {
    for ty in FLOATS {
        for shape @ [batch, classes, inner] in SHAPES {
            for reduction in [Reduction::None, Reduction::Sum, Reduction::Mean] {
                for (number, (weighted, input, ignore)) in CASES.into_iter().enumerate() {
                    let of_labels = match number % 2 {
                        0 => DataType::INT64,
                        _ => DataType::INT32,
                    };
                    let weights: Vec<f64> = random_numbers(classes, 32)
                        .iter()
                        .map(|x| 1.0 + x)
                        .collect();
                    let count = batch * classes * inner;
                    let logs: Vec<f64> =
                        random_numbers(count, 34).iter().map(|x| x - 2.0).collect();
                    let dy = match reduction {
                        Reduction::None => random_tensor(ty, &[batch * inner], 35),
                        _ => random_tensor(ty, &[], 35),
                    };
                    let added = number > 1;
                    let inputs = [
                        Some(dy),
                        Some(tensor(ty, &shape, &logs)),
                        Some(labels(of_labels, shape, ignore)),
                        weighted.then(|| tensor(ty, &[classes], &weights)),
                        input.then(|| tensor(DataType::INT64, &[], &[ignore as f64])),
                        added.then(|| random_tensor(ty, &shape, 36)),
                    ];
                    let op = CrossEntropy {
                        batch,
                        classes,
                        inner,
                        reduction,
                        ignore: (!input).then_some(ignore),
                        softmax: true,
                    };
                    let outputs = [Some(TensorType::new(ty, shape))];
                    for fresh in [&[][..], &[1]] {
                        let what = format!("{op:?} of {ty}, {number}, over {fresh:?}");
                        let op = Op::Loss(Loss::CrossEntropyGrad(op.clone()));
                        let found = both_over(op, &inputs, &outputs, fresh);
                        let [Some(cpu), Some(cuda)] = [&found.cpu[0], &found.cuda[0]] else {
                            panic!("an output is missing");
                        };
                        let values = numbers(cpu);
                        // Where something is added the gradient is rounded before, and is at most 2.
                        let bound = |place: usize| {
                            2.0 * 8.0 * computed(ty) * 2.0
                                + 2.0 * epsilon(ty) * (values[place].abs() + 2.0)
                        };
                        assert_close(cpu, cuda, bound, &what);
                    }
                }
            }
        }
    }
}

#[test]
fn wrong_labels_are_reported() {
    let shape = [3, 4, 1];
    for (bad, ignored, input) in [
        (4.0, None, false),
        (-1.0, Some(-100), false),
        (7.0, Some(2), true),
    ] {
        for ty in [DataType::INT32, DataType::INT64] {
            let op = CrossEntropy {
                batch: 3,
                classes: 4,
                inner: 1,
                reduction: Reduction::Mean,
                ignore: ignored.filter(|_| !input),
                softmax: true,
            };
            let labels = tensor(ty, &[3], &[1.0, bad, 2.0]);
            let ignore = ignored
                .filter(|_| input)
                .map(|i| tensor(DataType::INT64, &[], &[i as f64]));
            let scores = random_tensor(DataType::FLOAT, &shape, 1);
            let inputs = [
                Some(scores.clone()),
                Some(labels.clone()),
                None,
                ignore.clone(),
            ];
            let outputs = [Some(TensorType::new(DataType::FLOAT, [])), None];
            let forward = Op::Loss(Loss::CrossEntropy(op.clone()));
            let (cpu, cuda) = try_both(forward, &inputs, &outputs, &[]);
            let message = cpu.unwrap_err();
            assert!(message.contains("place 1"), "{message}");
            assert_eq!(cuda.unwrap_err(), message);
            let dy = random_tensor(DataType::FLOAT, &[], 2);
            let inputs = [Some(dy), Some(scores), Some(labels), None, ignore, None];
            let outputs = [Some(TensorType::new(DataType::FLOAT, shape))];
            let backward = Op::Loss(Loss::CrossEntropyGrad(op));
            let (cpu, cuda) = try_both(backward, &inputs, &outputs, &[]);
            assert_eq!(cuda.unwrap_err(), cpu.unwrap_err());
        }
    }
}
