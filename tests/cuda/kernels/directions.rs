//! Several directions, moving directions, and stored projections.

use super::{assert_close, assert_same, both, epsilon, numbers, random_tensor, tensor};
use velora_graph::shapes::DataType;
use velora_runtime::ops::Op;
use velora_runtime::ops::directions::{Directions, Sets};
use velora_runtime::ops::velora::SubTokens;
use velora_runtime::tensor::{Tensor, TensorType};

const FLOATS: [DataType; 4] = [
    DataType::FLOAT,
    DataType::DOUBLE,
    DataType::FLOAT16,
    DataType::BFLOAT16,
];

/// Rows, features, groups, directions.
const SIZES: [[usize; 4]; 10] = [
    [5, 64, 4, 2],
    [3, 256, 2, 3],
    [7, 12, 6, 1],
    [3, 43, 1, 4],
    [9, 10, 4, 2],
    [1, 1, 1, 1],
    [2, 2600, 1, 2],
    [0, 8, 2, 2],
    [3, 0, 2, 2],
    [33, 16, 2, 8],
];

fn all(mut check: impl FnMut(DataType, Sets)) {
    for ty in FLOATS {
        for [rows, features, groups, rank] in SIZES {
            for by_group in [false, true] {
                let sizes = SubTokens {
                    rows,
                    features,
                    groups,
                    places: 1,
                };
                check(
                    ty,
                    Sets {
                        sizes,
                        rank,
                        by_group,
                    },
                );
            }
        }
    }
}

fn directions(ty: DataType, sets: &Sets, seed: u64) -> Tensor {
    let size = sets.sizes.size();
    match sets.by_group {
        false => random_tensor(ty, &[sets.rank, size], seed),
        true => random_tensor(ty, &[sets.sizes.groups, sets.rank, size], seed),
    }
}

/// Each result is a sum of `terms` products; see the tests of one direction. The CPU rounds sums of `Repeat` to
/// the type after each term.
fn close(op: &Directions, inputs: &[Option<Tensor>], output: &TensorType, terms: usize) {
    let found = both(Op::Directions(op.clone()), inputs, &[Some(output.clone())]);
    let magnitudes: Vec<Option<Tensor>> = inputs
        .iter()
        .map(|input| {
            let input = input.as_ref()?;
            let sizes: Vec<f64> = numbers(input).iter().map(|x| x.abs()).collect();
            Some(tensor(DataType::DOUBLE, &input.shape, &sizes))
        })
        .collect();
    let ty = TensorType::new(DataType::DOUBLE, output.shape.clone());
    let sums = both(Op::Directions(op.clone()), &magnitudes, &[Some(ty)]);
    let sums = numbers(sums.cpu[0].as_ref().unwrap());
    let ty = output.data_type;
    let roundings = match op {
        Directions::Repeat { sets, .. } => sets.rank as f64 + 1.0,
        _ => 2.0,
    };
    let computed = epsilon(ty).min(epsilon(DataType::FLOAT));
    let bound = |place: usize| {
        let sum = f64::abs(sums[place]);
        2.0 * (terms as f64 + 3.0) * computed * sum + roundings * epsilon(ty) * sum + 6e-8
    };
    let [Some(cpu), Some(cuda)] = [&found.cpu[0], &found.cuda[0]] else {
        panic!("an output is missing");
    };
    assert_close(cpu, cuda, bound, &format!("{op:?} of {ty}"));
}

#[test]
fn project() {
    all(|ty, sets| {
        let SubTokens { rows, features, .. } = sets.sizes;
        let inputs = [
            Some(random_tensor(ty, &[rows, features], 1)),
            Some(directions(ty, &sets, 2)),
        ];
        let output = TensorType::new(ty, [rows, sets.width()]);
        close(
            &Directions::Project(sets),
            &inputs,
            &output,
            sets.sizes.size(),
        );
    });
}

#[test]
fn spread() {
    all(|ty, sets| {
        let SubTokens { rows, features, .. } = sets.sizes;
        let inputs = [
            Some(random_tensor(ty, &[rows, sets.width()], 3)),
            Some(directions(ty, &sets, 4)),
        ];
        let output = TensorType::new(ty, [rows, features]);
        let op = Directions::Spread { sets, scale: 0.75 };
        close(&op, &inputs, &output, sets.rank);
    });
}

#[test]
fn repeat() {
    all(|ty, sets| {
        let SubTokens { rows, features, .. } = sets.sizes;
        let inputs = [
            Some(random_tensor(ty, &[sets.width(), rows], 5)),
            Some(directions(ty, &sets, 6)),
        ];
        let output = TensorType::new(ty, [features, rows]);
        let op = Directions::Repeat { sets, scale: -1.5 };
        close(&op, &inputs, &output, sets.rank);
    });
}

/// As for one direction.
#[test]
fn means() {
    all(|ty, sets| {
        let of = sets.sizes;
        let mut x = numbers(&random_tensor(ty, &[of.rows * of.features], 7));
        x.iter_mut().for_each(|x| *x = 0.25 * *x + 1.0);
        let inputs = [Some(tensor(ty, &[of.rows, of.features], &x))];
        let output = TensorType::new(ty, [of.groups, 1, of.size()]);
        let op = Directions::Means(of);
        let found = both(Op::Directions(op), &inputs, &[Some(output)]);
        let [Some(cpu), Some(cuda)] = [&found.cpu[0], &found.cuda[0]] else {
            panic!("an output is missing");
        };
        let computed = epsilon(ty).min(epsilon(DataType::FLOAT));
        let bound = |place: usize| {
            let entry = numbers(cpu)[place].abs();
            2.0 * 66.0 * computed * 1.25 / 0.75 * entry + 2.0 * epsilon(ty) * entry
        };
        assert_close(
            cpu,
            cuda,
            bound,
            &format!("the directions of {of:?} of {ty}"),
        );
    });
}

/// Entries are computed in doubles, of which only the sum of squares is added in another order: they differ
/// where they are rounded, by a unit in the last place.
#[test]
fn blend() {
    for ty in FLOATS {
        for (vectors, size) in [(1, 8), (3, 5), (2, 300), (4, 1), (0, 3)] {
            let shape = [vectors, size];
            let v = random_tensor(ty, &shape, 8);
            let opposite: Vec<f64> = numbers(&v).iter().map(|x| -x).collect();
            for mean in [random_tensor(ty, &shape, 9), tensor(ty, &shape, &opposite)] {
                let inputs = [Some(v.clone()), Some(mean)];
                let output = TensorType::new(ty, shape);
                let op = Directions::Blend { size, decay: 0.5 };
                let found = both(Op::Directions(op), &inputs, &[Some(output)]);
                let [Some(cpu), Some(cuda)] = [&found.cpu[0], &found.cuda[0]] else {
                    panic!("an output is missing");
                };
                let bound = |place: usize| {
                    let entry = numbers(cpu)[place].abs();
                    // Of doubles themselves: sums of `size` squares.
                    (2.0 * epsilon(ty) + size as f64 * f64::EPSILON) * entry
                };
                assert_close(cpu, cuda, bound, &format!("{shape:?} of {ty}"));
            }
        }
    }
}

#[test]
fn quantize() {
    for ty in FLOATS {
        for (rows, width) in [(3, 8), (2, 33), (1, 1), (5, 300), (0, 4)] {
            let mut z = numbers(&random_tensor(ty, &[rows * width], 10));
            if rows > 1 {
                z[..width].fill(0.0);
            }
            if rows > 2 {
                (z[width], z[width + 1]) = (f64::NAN, f64::INFINITY);
            }
            let inputs = [Some(tensor(ty, &[rows, width], &z))];
            let outputs = [
                Some(TensorType::new(DataType::INT8, [rows, width])),
                Some(TensorType::new(ty, [rows, 1])),
            ];
            let op = Op::Directions(Directions::Quantize { width });
            let found = both(op, &inputs, &outputs);
            assert_same(&found, &format!("{rows} x {width} of {ty}"));
        }
    }
}

#[test]
fn dequantize() {
    for ty in FLOATS {
        for (rows, width) in [(3, 8), (2, 33), (1, 1), (5, 304), (7, 2), (0, 4)] {
            let inputs = [
                Some(random_tensor(DataType::INT8, &[rows, width], 11)),
                Some(random_tensor(ty, &[rows, 1], 12)),
            ];
            let outputs = [Some(TensorType::new(ty, [rows, width]))];
            let op = Op::Directions(Directions::Dequantize { width });
            let found = both(op, &inputs, &outputs);
            assert_same(&found, &format!("{rows} x {width} of {ty}"));
        }
    }
}
