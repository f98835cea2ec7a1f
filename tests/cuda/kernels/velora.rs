//! Compressed activations and what is computed from them.

use super::{assert_close, both, epsilon, numbers, random_tensor, tensor};
use velora_graph::shapes::DataType;
use velora_runtime::ops::Op;
use velora_runtime::ops::velora::{SubTokens, Velora};
use velora_runtime::tensor::{Tensor, TensorType};

const FLOATS: [DataType; 4] = [
    DataType::FLOAT,
    DataType::DOUBLE,
    DataType::FLOAT16,
    DataType::BFLOAT16,
];

/// Rows, features, groups and places: sub-tokens of every pack, odd ones, padded and empty ones, long ones, of
/// channels, and nothing at all.
const SIZES: [[usize; 4]; 19] = [
    [5, 64, 4, 1],
    [3, 256, 2, 1],
    [7, 12, 6, 1],
    [4, 8, 8, 1],
    [3, 43, 1, 1],
    [9, 10, 4, 1],
    [2, 9, 7, 1],
    [1, 1, 1, 1],
    [40, 3, 1, 1],
    [2, 2600, 1, 1],
    [2, 1030, 2, 1],
    [0, 8, 2, 1],
    [3, 0, 2, 1],
    [70, 48, 3, 1],
    [2, 6, 2, 5],
    [3, 7, 2, 8],
    [1, 8, 4, 0],
    [2, 5, 4, 16],
    [1, 20, 1, 3],
];

fn sizes([rows, features, groups, places]: [usize; 4]) -> SubTokens {
    SubTokens {
        rows,
        features,
        groups,
        places,
    }
}

/// The precision that a type is computed with: that of floats for 16 bits.
fn computed(data_type: DataType) -> f64 {
    epsilon(data_type).min(epsilon(DataType::FLOAT))
}

/// An operation of which each result is the sum of products of two inputs, whose magnitudes are summed by the
/// same operation on magnitudes.
///
/// Both machines add `terms` products with one rounding each at most, in different orders: each is within
/// `terms · ε · Σ|terms|` of the exact sum, and rounding to the type adds half a unit in the last place to both.
/// Beside the sum three products may be rounded.
fn close(op: &Velora, inputs: &[Option<Tensor>], output: &TensorType, terms: usize) {
    let found = both(Op::Velora(op.clone()), inputs, &[Some(output.clone())]);
    let magnitudes: Vec<Option<Tensor>> = inputs
        .iter()
        .map(|input| {
            let input = input.as_ref()?;
            let sizes: Vec<f64> = numbers(input).iter().map(|x| x.abs()).collect();
            Some(tensor(DataType::DOUBLE, &input.shape, &sizes))
        })
        .collect();
    let ty = TensorType::new(DataType::DOUBLE, output.shape.clone());
    let sums = both(Op::Velora(op.clone()), &magnitudes, &[Some(ty)]);
    let sums = numbers(sums.cpu[0].as_ref().unwrap());
    let ty = output.data_type;
    let [Some(cpu), Some(cuda)] = [&found.cpu[0], &found.cuda[0]] else {
        panic!("an output is missing");
    };
    let bound = |place: usize| {
        let sum = f64::abs(sums[place]);
        let tiny = f64::from(f32::MIN_POSITIVE);
        2.0 * (terms as f64 + 3.0) * computed(ty) * sum + 2.0 * epsilon(ty) * sum + tiny
    };
    let tiny_of_half = if ty == DataType::FLOAT16 { 6e-8 } else { 0.0 };
    assert_close(
        cpu,
        cuda,
        |p| bound(p) + tiny_of_half,
        &format!("{op:?} of {ty}"),
    );
}

#[test]
fn compress() {
    for ty in FLOATS {
        for size in SIZES {
            let of = sizes(size);
            let [rows, features, groups, places] = size;
            let inputs = [
                Some(random_tensor(ty, &[rows, features, places], 1)),
                Some(random_tensor(ty, &[of.size()], 2)),
            ];
            let output = TensorType::new(ty, [rows, groups, places]);
            close(&Velora::Compress(of), &inputs, &output, of.size());
        }
    }
}

#[test]
fn spread() {
    for ty in FLOATS {
        for size in SIZES {
            let of = sizes(size);
            let [rows, features, groups, places] = size;
            let inputs = [
                Some(random_tensor(ty, &[rows, groups, places], 3)),
                Some(random_tensor(ty, &[of.size()], 4)),
            ];
            let output = TensorType::new(ty, [rows, features, places]);
            let op = Velora::Spread {
                sizes: of,
                scale: 0.75,
            };
            close(&op, &inputs, &output, 0);
        }
    }
}

#[test]
fn repeat() {
    for ty in FLOATS {
        for [rows, features, groups, places] in SIZES {
            if places != 1 {
                continue;
            }
            let of = sizes([rows, features, groups, 1]);
            let inputs = [
                Some(random_tensor(ty, &[groups, rows], 5)),
                Some(random_tensor(ty, &[of.size()], 6)),
            ];
            let output = TensorType::new(ty, [features, rows]);
            let op = Velora::Repeat {
                sizes: of,
                scale: -1.5,
            };
            close(&op, &inputs, &output, 0);
        }
    }
}

#[test]
fn scale_grad() {
    for ty in FLOATS {
        for [rows, features, groups, places] in SIZES.into_iter().chain([[3000, 8, 2, 1]]) {
            if places != 1 || (ty != DataType::FLOAT && rows > 100) {
                continue;
            }
            let of = sizes([rows, features, groups, 1]);
            let inputs = [
                Some(random_tensor(ty, &[rows, groups], 7)),
                Some(random_tensor(ty, &[rows, features], 8)),
                Some(random_tensor(ty, &[of.size()], 9)),
            ];
            let output = TensorType::new(ty, [features]);
            let op = Velora::ScaleGrad {
                sizes: of,
                scale: 0.5,
            };
            close(&op, &inputs, &output, rows);
        }
    }
}

/// Sums of n numbers of both machines are within n · ε · Σ|x| of the exact ones, 64 for what is not added in
/// doubles; the norm of the sum divides the error, and the result is rounded.
#[test]
fn mean_direction() {
    for ty in FLOATS {
        for size in SIZES.into_iter().chain([[2000, 8, 2, 1]]) {
            let of = sizes(size);
            let [rows, features, _, places] = size;
            if ty != DataType::FLOAT && rows > 100 {
                continue;
            }
            // Not around 0, so that the sum has a direction.
            let mut x = numbers(&random_tensor(ty, &[rows * features * places], 10));
            x.iter_mut().for_each(|x| *x = 0.25 * *x + 1.0);
            let inputs = [Some(tensor(ty, &[rows, features, places], &x))];
            let output = TensorType::new(ty, [of.size()]);
            let found = both(
                Op::Velora(Velora::MeanDirection(of)),
                &inputs,
                &[Some(output)],
            );
            let [Some(cpu), Some(cuda)] = [&found.cpu[0], &found.cuda[0]] else {
                panic!("an output is missing");
            };
            let bound = |place: usize| {
                let entry = numbers(cpu)[place].abs();
                2.0 * 66.0 * computed(ty) * 1.25 / 0.75 * entry + 2.0 * epsilon(ty) * entry
            };
            assert_close(
                cpu,
                cuda,
                bound,
                &format!("the direction of {size:?} of {ty}"),
            );
        }
    }
}

#[test]
fn a_direction_of_nothing_is_even() {
    let of = sizes([2, 8, 2, 1]);
    for x in [0.0, 1e-45] {
        let inputs = [Some(tensor(DataType::FLOAT, &[2, 8], &[x; 16]))];
        let output = TensorType::new(DataType::FLOAT, [4]);
        let found = both(
            Op::Velora(Velora::MeanDirection(of)),
            &inputs,
            &[Some(output)],
        );
        assert_eq!(numbers(found.cuda[0].as_ref().unwrap()), [0.5; 4]);
        assert_eq!(found.cpu, found.cuda);
    }
}

#[test]
fn what_is_no_number_stays_where_it_is() {
    let of = sizes([2, 8, 2, 1]);
    let mut x = vec![1.0; 16];
    (x[1], x[6], x[13]) = (f64::NAN, f64::INFINITY, f64::NEG_INFINITY);
    let inputs = [
        Some(tensor(DataType::FLOAT, &[2, 8, 1], &x)),
        Some(tensor(DataType::FLOAT, &[4], &[1.0, 2.0, 3.0, 4.0])),
    ];
    let output = TensorType::new(DataType::FLOAT, [2, 2, 1]);
    let found = both(Op::Velora(Velora::Compress(of)), &inputs, &[Some(output)]);
    let z = numbers(found.cuda[0].as_ref().unwrap());
    assert!(z[0].is_nan());
    assert_eq!(z[1..], [f64::INFINITY, 10.0, f64::NEG_INFINITY]);
}
