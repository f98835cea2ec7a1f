//! Reductions over axes.

use super::{
    assert_close, assert_same, both, epsilon, numbers, random_numbers, random_tensor, tensor,
};
use velora_graph::shapes::DataType;
use velora_runtime::ops::Op;
use velora_runtime::ops::reduce::{Arg, Fold, Group, Kind, Reduce, Running};
use velora_runtime::tensor::{Tensor, TensorType};

const TYPES: [DataType; 9] = [
    DataType::FLOAT,
    DataType::DOUBLE,
    DataType::FLOAT16,
    DataType::BFLOAT16,
    DataType::INT64,
    DataType::INT32,
    DataType::INT8,
    DataType::UINT8,
    DataType::BOOL,
];

const KINDS: [Kind; 10] = [
    Kind::Sum,
    Kind::Mean,
    Kind::Max,
    Kind::Min,
    Kind::Product,
    Kind::L1,
    Kind::L2,
    Kind::LogSum,
    Kind::LogSumExp,
    Kind::SumSquare,
];

/// Sizes of groups of axes; those that are reduced are negative.
const LAYOUTS: [&[isize]; 18] = [
    &[3, -40],
    &[-33, 9],
    &[-4, 3, -5],
    &[3, -5, 16],
    &[-37],
    &[],
    &[2, -3],
    &[2, -5000],
    &[-300, 4],
    &[9, -33, 3],
    &[2, -3, 4, -5],
    &[-2, 3, -4, 5],
    &[-30, 3, -50],
    &[-20_000],
    &[3, 0],
    &[-17, 130],
    &[10, -2, 1],
    &[5],
];

fn groups(layout: &[isize]) -> Vec<Group> {
    let group = |&size: &isize| Group {
        size: size.unsigned_abs(),
        reduced: size < 0,
    };
    layout.iter().map(group).collect()
}

/// Numbers of which neither sums nor products leave the type's range: around ±1, and positive for logarithms.
fn input(ty: DataType, count: usize, kind: Kind) -> Tensor {
    if ty == DataType::BOOL {
        let bits: Vec<f64> = (0..count)
            .map(|i| f64::from(u8::from(i % 7 != 3)))
            .collect();
        return tensor(ty, &[count], &bits);
    }
    if !ty.is_float() {
        return random_tensor(ty, &[count], 3);
    }
    let mut numbers = random_numbers(count, 3);
    for x in &mut numbers {
        match kind {
            Kind::Product => *x = x.signum() * (1.0 + *x / 64.0),
            Kind::LogSum => *x = x.abs() + 0.1,
            _ => {}
        }
    }
    tensor(ty, &[count], &numbers)
}

/// Both machines add floats in runs of at most 64 terms of which the totals are joined in doubles or pairwise:
/// each is within 70 · ε · Σ|terms| of the exact sum. The logarithm of a sum has that as its absolute error;
/// powers are within 4 · ε of the exact ones. A product of n factors has n roundings.
fn bound(kind: Kind, ty: DataType, count: usize, size: f64, result: f64) -> f64 {
    let computed = epsilon(ty).min(epsilon(DataType::FLOAT));
    let absolute = match kind {
        Kind::Max | Kind::Min => return 0.0,
        Kind::Product => 2.0 * count as f64 * computed * result.abs(),
        Kind::LogSum | Kind::LogSumExp => 2.0 * 78.0 * computed,
        _ => 2.0 * 70.0 * computed * size,
    };
    absolute + 2.0 * epsilon(ty) * result.abs()
}

fn check(ty: DataType, kind: Kind, layout: &[isize]) {
    let groups = groups(layout);
    let product = |reduced: bool| -> usize {
        let of = groups.iter().filter(|group| group.reduced == reduced);
        of.map(|group| group.size).product()
    };
    let (results, count) = (product(false), product(true));
    let x = input(ty, results * count, kind);
    let fold = Fold { kind, groups };
    let op = Op::Reduce(Reduce::Fold(fold.clone()));
    let output = TensorType::new(ty, [results]);
    let what = format!("{kind:?} of {layout:?} of {ty}");
    let found = both(op, &[Some(x.clone())], &[Some(output)]);
    if !ty.is_float() {
        return assert_same(&found, &what);
    }
    // Sums of magnitudes.
    let sizes: Vec<f64> = numbers(&x).iter().map(|x| x.abs()).collect();
    let x = tensor(DataType::DOUBLE, &x.shape, &sizes);
    let output = TensorType::new(DataType::DOUBLE, [results]);
    let sums = both(Op::Reduce(Reduce::Fold(fold)), &[Some(x)], &[Some(output)]);
    let [Some(cpu), Some(cuda), Some(sums)] = [&found.cpu[0], &found.cuda[0], &sums.cpu[0]] else {
        panic!("an output is missing");
    };
    let (sums, values) = (numbers(sums), numbers(cpu));
    let bound = |place: usize| bound(kind, ty, count, sums[place], values[place]);
    assert_close(cpu, cuda, bound, &what);
}

#[test]
fn folds_of_floats_over_any_axes() {
    for kind in KINDS {
        for layout in LAYOUTS {
            check(DataType::FLOAT, kind, layout);
        }
    }
}

#[test]
fn folds_of_any_type() {
    for ty in TYPES {
        for kind in KINDS {
            for layout in &LAYOUTS[..4] {
                check(ty, kind, layout);
            }
        }
    }
}

#[test]
fn folds_of_nothing() {
    for ty in TYPES {
        for kind in KINDS {
            for shape in [[3, 0], [0, 3]] {
                let reduced = [shape[0] == 0, shape[1] == 0];
                let groups = shape
                    .iter()
                    .zip(reduced)
                    .map(|(&size, reduced)| Group { size, reduced });
                let fold = Fold {
                    kind,
                    groups: groups.collect(),
                };
                let inputs = [Some(tensor(ty, &shape, &[]))];
                let outputs = [Some(TensorType::new(ty, [3]))];
                let found = both(Op::Reduce(Reduce::Fold(fold)), &inputs, &outputs);
                let [Some(cpu), Some(cuda)] = [&found.cpu[0], &found.cuda[0]] else {
                    panic!("an output is missing");
                };
                assert_close(cpu, cuda, |_| 0.0, &format!("{kind:?} of no {ty}"));
            }
        }
    }
}

#[test]
fn extremes_keep_what_is_no_number() {
    let x = [
        f64::NAN,
        1.0,
        2.0,
        5.0,
        f64::INFINITY,
        3.0,
        f64::NEG_INFINITY,
        -0.0,
        0.0,
    ];
    for kind in [Kind::Max, Kind::Min, Kind::Sum, Kind::LogSumExp] {
        let groups = groups(&[3, -3]);
        let op = Op::Reduce(Reduce::Fold(Fold { kind, groups }));
        let inputs = [Some(tensor(DataType::FLOAT, &[3, 3], &x))];
        let found = both(op, &inputs, &[Some(TensorType::new(DataType::FLOAT, [3]))]);
        let [Some(cpu), Some(cuda)] = [&found.cpu[0], &found.cuda[0]] else {
            panic!("an output is missing");
        };
        assert_close(cpu, cuda, |_| 1e-6, &format!("{kind:?}"));
    }
}

#[test]
fn places_of_extremes() {
    for ty in TYPES {
        for [outer, size, inner] in [
            [3, 40, 1],
            [2, 7, 5],
            [1, 300, 1],
            [4, 1, 1],
            [0, 3, 2],
            [1, 5, 33],
        ] {
            let count = outer * size * inner;
            // With equal ones.
            let few: Vec<f64> = random_numbers(count, 5)
                .iter()
                .map(|x| (x.abs() * 5.0).round())
                .collect();
            let mut inputs = vec![tensor(ty, &[count], &few)];
            if ty == DataType::FLOAT && count > 0 {
                let mut with = few.clone();
                with[0] = f64::NAN;
                with[count / 2] = f64::NAN;
                inputs.push(tensor(ty, &[count], &with));
            }
            for x in inputs {
                for (greatest, last) in [(true, false), (true, true), (false, false), (false, true)]
                {
                    let op = Reduce::Arg(Arg {
                        outer,
                        size,
                        inner,
                        greatest,
                        last,
                    });
                    let outputs = [Some(TensorType::new(DataType::INT64, [outer, inner]))];
                    let what = format!("{op:?} of {ty}");
                    assert_same(&both(Op::Reduce(op), &[Some(x.clone())], &outputs), &what);
                }
            }
        }
    }
}

/// Sums of doubles and of 64-bit integers, which are rounded once: a unit in the last place apart at most, and
/// of doubles themselves one for every term.
#[test]
fn running_sums() {
    for ty in TYPES {
        for [outer, size, inner] in [
            [3, 40, 1],
            [2, 7, 5],
            [1, 300, 1],
            [4, 1, 1],
            [0, 3, 2],
            [2, 3, 1],
        ] {
            for (exclusive, reverse) in [(false, false), (true, false), (false, true), (true, true)]
            {
                let x = random_tensor(ty, &[outer, size, inner], 6);
                let op = Reduce::Running(Running {
                    outer,
                    size,
                    inner,
                    exclusive,
                    reverse,
                });
                let outputs = [Some(TensorType::new(ty, [outer, size, inner]))];
                let what = format!("{op:?} of {ty}");
                let found = both(Op::Reduce(op), &[Some(x)], &outputs);
                if !ty.is_float() {
                    assert_same(&found, &what);
                    continue;
                }
                let [Some(cpu), Some(cuda)] = [&found.cpu[0], &found.cuda[0]] else {
                    panic!("an output is missing");
                };
                let values = numbers(cpu);
                let bound = |place: usize| {
                    2.0 * epsilon(ty) * values[place].abs() + (size * size) as f64 * f64::EPSILON
                };
                assert_close(cpu, cuda, bound, &what);
            }
        }
    }
}
