//! Softmax and normalisations, with their gradients.

use super::{
    assert_close, assert_same, both_over, epsilon, numbers, random_numbers, random_tensor, tensor,
};
use velora_graph::shapes::DataType;
use velora_runtime::ops::Op;
use velora_runtime::ops::normalize::{Batch, Layer, Normalize, Softmax, SoftmaxKind};
use velora_runtime::tensor::{Tensor, TensorType};

const FLOATS: [DataType; 4] = [
    DataType::FLOAT,
    DataType::DOUBLE,
    DataType::FLOAT16,
    DataType::BFLOAT16,
];

/// The precision that a type is computed with.
fn computed(ty: DataType) -> f64 {
    epsilon(ty).min(epsilon(DataType::FLOAT))
}

/// Executes and compares: a result may be `roundings` units of computation apart, of numbers of magnitude
/// `size` at most, and is rounded to its type by both machines.
fn close(
    op: Normalize,
    inputs: &[Option<Tensor>],
    outputs: &[Option<TensorType>],
    fresh: &[usize],
    sizes: &[f64],
    roundings: f64,
) {
    let what = format!("{op:?} over {fresh:?}");
    let found = both_over(Op::Normalize(op), inputs, outputs, fresh);
    for (number, (cpu, cuda)) in found.cpu.iter().zip(&found.cuda).enumerate() {
        let (Some(cpu), Some(cuda)) = (cpu, cuda) else {
            continue;
        };
        let ty = cpu.data_type;
        let of = inputs[0].as_ref().map_or(ty, |input| input.data_type);
        let values = numbers(cpu);
        let bound = |place: usize| {
            2.0 * roundings * computed(of) * sizes[number]
                + 2.0 * epsilon(ty) * values[place].abs()
                + if ty == DataType::FLOAT16 { 6e-8 } else { 0.0 }
        };
        assert_close(
            cpu,
            cuda,
            bound,
            &format!("output {number} ({ty}) of {what}"),
        );
    }
}

const SHAPES: [[usize; 3]; 12] = [
    [5, 8, 1],
    [9, 40, 1],
    [3, 129, 1],
    [2, 700, 1],
    [2, 2052, 1],
    [1, 9000, 1],
    [4, 1, 1],
    [2, 5, 3],
    [1, 33, 40],
    [0, 4, 1],
    [3, 0, 1],
    [2, 3, 1],
];

/// Probabilities are at most 1: a power is within 4 · ε, a sum of them within 4 + 35 (of terms added in runs),
/// the reciprocal and the product add 2. Logarithms have the relative error of the sum as an absolute one, and
/// two differences of numbers up to 10.
#[test]
fn softmax() {
    for ty in FLOATS {
        for [outer, size, inner] in SHAPES {
            for kind in [SoftmaxKind::Plain, SoftmaxKind::Log, SoftmaxKind::Hard] {
                let x = random_tensor(ty, &[outer, size, inner], 1);
                let op = Softmax {
                    outer,
                    size,
                    inner,
                    kind,
                };
                let outputs = [Some(TensorType::new(ty, [outer, size, inner]))];
                for fresh in [&[][..], &[0]] {
                    let op = Normalize::Softmax(op.clone());
                    let sizes = [if kind == SoftmaxKind::Log { 10.0 } else { 1.0 }];
                    close(op, &[Some(x.clone())], &outputs, fresh, &sizes, 45.0);
                }
            }
        }
    }
}

#[test]
fn softmax_of_what_is_no_number() {
    let infinity = f64::INFINITY;
    let x = [
        1.0,
        -infinity,
        2.0,
        -infinity,
        -infinity,
        -infinity,
        f64::NAN,
        1.0,
        2.0,
        infinity,
        0.0,
        1.0,
    ];
    for kind in [SoftmaxKind::Plain, SoftmaxKind::Log, SoftmaxKind::Hard] {
        let op = Softmax {
            outer: 4,
            size: 3,
            inner: 1,
            kind,
        };
        let inputs = [Some(tensor(DataType::FLOAT, &[4, 3], &x))];
        let outputs = [Some(TensorType::new(DataType::FLOAT, [4, 3]))];
        close(Normalize::Softmax(op), &inputs, &outputs, &[], &[1.0], 45.0);
    }
}

/// dX is (dY - Σ dY Y) Y or dY - e^Y Σ dY of numbers up to 1: within 40 · ε of sums of magnitudes, which are 1
/// or the size.
#[test]
fn softmax_grad() {
    for ty in FLOATS {
        for [outer, size, inner] in SHAPES {
            for kind in [SoftmaxKind::Plain, SoftmaxKind::Log] {
                let shape = [outer, size, inner];
                let dy = random_tensor(ty, &shape, 2);
                let count = outer * size * inner;
                let chance = 1.0 / size.max(1) as f64;
                let y: Vec<f64> = random_numbers(count, 3)
                    .iter()
                    .map(|x| match kind {
                        SoftmaxKind::Log => chance.ln() + x / 4.0,
                        _ => chance * (1.0 + x / 4.0),
                    })
                    .collect();
                let inputs = [Some(dy), Some(tensor(ty, &shape, &y))];
                let op = Softmax {
                    outer,
                    size,
                    inner,
                    kind,
                };
                let outputs = [Some(TensorType::new(ty, shape))];
                for fresh in [&[][..], &[0], &[1]] {
                    let op = Normalize::SoftmaxGrad(op.clone());
                    close(op, &inputs, &outputs, fresh, &[2.0], 45.0);
                }
            }
        }
    }
}

/// Rows and their sizes: kept by warps and blocks, with packs and without, and too long to be kept.
const ROWS: [[usize; 2]; 11] = [
    [5, 8],
    [9, 37],
    [3, 128],
    [11, 130],
    [2, 768],
    [3, 1001],
    [2, 4096],
    [2, 4100],
    [3, 2049],
    [0, 4],
    [150, 12],
];

fn statistic(ty: DataType, own: bool) -> DataType {
    if own { ty } else { DataType::FLOAT }
}

/// Numbers between -1 and 1 vary by 1/2 or more around their mean: a mean that is 35 · ε wrong gives 70 · ε,
/// and so does the deviation, of normalised numbers up to 3.
#[test]
fn layer() {
    for ty in FLOATS {
        for [rows, size] in ROWS {
            for (centred, bias, own) in [
                (true, true, false),
                (true, false, true),
                (false, false, false),
            ] {
                let inputs = [
                    Some(random_tensor(ty, &[rows, size], 4)),
                    Some(random_tensor(ty, &[size], 5)),
                    bias.then(|| random_tensor(ty, &[size], 6)),
                ];
                let of_rows = TensorType::new(statistic(ty, own), [rows]);
                let outputs = [
                    Some(TensorType::new(ty, [rows, size])),
                    centred.then(|| of_rows.clone()),
                    Some(of_rows.clone()),
                ];
                let op = Layer {
                    rows,
                    size,
                    epsilon: 1e-5,
                    centred,
                    from_output: false,
                };
                for fresh in [&[][..], &[0]] {
                    let op = Normalize::Layer(op.clone());
                    close(op, &inputs, &outputs, fresh, &[3.0, 1.0, 3.0], 150.0);
                }
            }
        }
    }
}

/// As for the normalisation; the sums over rows add numbers up to 3 in runs of 64.
#[test]
fn layer_grad() {
    for ty in FLOATS {
        for [rows, size] in ROWS {
            for (centred, from_output, own) in [
                (true, false, false),
                (false, false, true),
                (true, true, false),
            ] {
                let deviation: Vec<f64> = random_numbers(rows, 9)
                    .iter()
                    .map(|x| 1.5 + x / 2.0)
                    .collect();
                let scale: Vec<f64> = random_numbers(size, 10)
                    .iter()
                    .map(|x| 1.0 + x / 2.0)
                    .collect();
                let of_rows = statistic(ty, own);
                let fourth = match (centred, from_output) {
                    (false, _) => None,
                    (true, false) => Some(random_tensor(of_rows, &[rows], 11)),
                    (true, true) => Some(random_tensor(ty, &[size], 12)),
                };
                let inputs = [
                    Some(random_tensor(ty, &[rows, size], 7)),
                    Some(random_tensor(ty, &[rows, size], 8)),
                    Some(tensor(ty, &[size], &scale)),
                    fourth,
                    Some(tensor(of_rows, &[rows], &deviation)),
                ];
                let row = TensorType::new(ty, [size]);
                let matrix = TensorType::new(ty, [rows, size]);
                let op = Layer {
                    rows,
                    size,
                    epsilon: 1e-5,
                    centred,
                    from_output,
                };
                let all = [Some(matrix.clone()), Some(row.clone()), Some(row.clone())];
                let sizes = [20.0, 4.0 * rows as f64, rows as f64];
                for fresh in [&[][..], &[0], &[1]] {
                    let op = Normalize::LayerGrad(op.clone());
                    close(op, &inputs, &all, fresh, &sizes, 80.0);
                }
                for some in [
                    [Some(matrix.clone()), None, None],
                    [None, Some(row.clone()), None],
                    [None, None, Some(row.clone())],
                ] {
                    let op = Normalize::LayerGrad(op.clone());
                    close(op, &inputs, &some, &[], &sizes, 80.0);
                }
            }
        }
    }
}

const PLANES: [[usize; 3]; 8] = [
    [3, 5, 1],
    [40, 33, 1],
    [2, 3, 7],
    [2, 4, 16],
    [3, 2, 3000],
    [1, 1, 4],
    [2, 100, 3],
    [300, 2, 1],
];

/// As for rows, of channels.
#[test]
fn batch() {
    for ty in FLOATS {
        for [batch, channels, spatial] in PLANES {
            for (training, unbiased) in [(true, false), (true, true), (false, false)] {
                let variance: Vec<f64> = random_numbers(channels, 13)
                    .iter()
                    .map(|x| 1.0 + x / 2.0)
                    .collect();
                let inputs = [
                    Some(random_tensor(ty, &[batch, channels, spatial], 14)),
                    Some(random_tensor(ty, &[channels], 15)),
                    Some(random_tensor(ty, &[channels], 16)),
                    Some(random_tensor(ty, &[channels], 17)),
                    Some(tensor(ty, &[channels], &variance)),
                ];
                let of_channels = Some(TensorType::new(ty, [channels])).filter(|_| training);
                let outputs = [
                    Some(TensorType::new(ty, [batch, channels, spatial])),
                    of_channels.clone(),
                    of_channels.clone(),
                    of_channels.clone(),
                    of_channels.clone(),
                ];
                let op = Normalize::Batch(Batch {
                    batch,
                    channels,
                    spatial,
                    epsilon: 1e-2,
                    momentum: 0.9,
                    training,
                    unbiased,
                });
                // A few elements may be near each other: a deviation is at most 1 / √ε = 10.
                close(
                    op,
                    &inputs,
                    &outputs,
                    &[],
                    &[10.0, 1.0, 1.0, 1.0, 10.0],
                    150.0,
                );
            }
        }
    }
}

#[test]
fn batch_grad() {
    for ty in FLOATS {
        for [batch, channels, spatial] in PLANES {
            let deviation: Vec<f64> = random_numbers(channels, 18)
                .iter()
                .map(|x| 1.5 + x / 2.0)
                .collect();
            let shape = [batch, channels, spatial];
            let inputs = [
                Some(random_tensor(ty, &shape, 19)),
                Some(random_tensor(ty, &shape, 20)),
                Some(random_tensor(ty, &[channels], 21)),
                Some(random_tensor(ty, &[channels], 22)),
                Some(tensor(ty, &[channels], &deviation)),
            ];
            let of_channels = Some(TensorType::new(ty, [channels]));
            let outputs = [
                Some(TensorType::new(ty, shape)),
                of_channels.clone(),
                of_channels.clone(),
            ];
            let op = Normalize::BatchGrad(Batch {
                batch,
                channels,
                spatial,
                epsilon: 1e-5,
                momentum: 0.0,
                training: true,
                unbiased: false,
            });
            let count = (batch * spatial) as f64;
            close(
                op,
                &inputs,
                &outputs,
                &[],
                &[40.0, 4.0 * count, count],
                70.0,
            );
        }
    }
}

/// What is written does not depend on what lies beside it: rows in place and apart have the same bits.
#[test]
fn in_place_is_the_same() {
    let op = Normalize::Softmax(Softmax {
        outer: 7,
        size: 130,
        inner: 1,
        kind: SoftmaxKind::Plain,
    });
    let inputs = [Some(random_tensor(DataType::FLOAT, &[7, 130], 23))];
    let outputs = [Some(TensorType::new(DataType::FLOAT, [7, 130]))];
    let apart = both_over(Op::Normalize(op.clone()), &inputs, &outputs, &[]);
    let mut within = both_over(Op::Normalize(op), &inputs, &outputs, &[0]);
    within.cpu = apart.cuda;
    assert_same(&within, "softmax in place");
}
