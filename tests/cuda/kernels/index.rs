//! Reads and writes at indices: to the bit, but for sums and products of floating-point numbers.

use super::{
    assert_close, assert_same, both, both_over, epsilon, numbers, random_tensor, tensor, try_both,
};
use velora_graph::shapes::DataType;
use velora_runtime::ops::Op;
use velora_runtime::ops::index::{Elements, Index, OneHot, Reduction, Rows, TopK};
use velora_runtime::tensor::{Tensor, TensorType};

/// All types that are combined.
const TYPES: [i32; 12] = [1, 11, 10, 16, 3, 5, 6, 7, 2, 4, 12, 13];
const REDUCTIONS: [Reduction; 5] = [
    Reduction::Replace,
    Reduction::Add,
    Reduction::Mul,
    Reduction::Max,
    Reduction::Min,
];

fn rows(outer: usize, batch: usize, count: usize, bounds: &[usize], slice: usize) -> Rows {
    Rows {
        outer,
        batch,
        count,
        bounds: bounds.to_vec(),
        slice,
    }
}

/// Indices of all tuples, negative ones among them, of which several mean one row.
fn indices(op: &Rows, wide: bool) -> Tensor {
    let depth = op.bounds.len();
    let all: Vec<f64> = (0..op.batch * op.count * depth)
        .map(|i| {
            let bound = op.bounds[i % depth] as i64;
            let place = (i as i64 * i as i64 * 7 + 3 * i as i64) % bound.max(1);
            (if i % 3 == 0 { place - bound } else { place }) as f64
        })
        .collect();
    let ty = if wide {
        DataType::INT64
    } else {
        DataType::INT32
    };
    tensor(ty, &[op.batch, op.count, depth], &all)
}

fn data_shape(op: &Rows) -> Vec<usize> {
    let mut shape = vec![op.outer, op.batch];
    shape.extend(&op.bounds);
    shape.push(op.slice);
    shape
}

fn cases() -> Vec<Rows> {
    vec![
        rows(1, 1, 60, &[30], 40),
        rows(1, 1, 7, &[5], 3),
        rows(2, 3, 5, &[4, 3], 6),
        rows(3, 1, 9, &[2, 3, 2], 1),
        rows(1, 1, 1, &[1], 1),
        rows(1, 1, 0, &[4], 8),
        rows(1, 2, 3, &[4], 0),
        // Several tiles of keys, and keys of more than one digit.
        rows(1, 1, 2500, &[700], 2),
    ]
}

#[test]
fn gathered_rows() {
    for op in cases() {
        for ty in [2, 10, 1, 7].map(DataType) {
            for wide in [false, true] {
                let inputs = [
                    Some(random_tensor(ty, &data_shape(&op), 1)),
                    Some(indices(&op, wide)),
                ];
                let output = TensorType::new(ty, [op.outer, op.batch, op.count, op.slice]);
                let found = both(
                    Op::Index(Index::Gather(op.clone())),
                    &inputs,
                    &[Some(output)],
                );
                assert_same(&found, &format!("{op:?} of {}", ty.0));
            }
        }
    }
}

/// Refuses scattered elements that differ by more than the roundings of their updates: sums and products
/// round once per update, in the worst order, and products are below `most`.
fn check_scattered(
    op: &Index,
    ty: DataType,
    inputs: &[Option<Tensor>],
    output: &TensorType,
    reduction: Reduction,
    updates: usize,
    what: &str,
) {
    let fresh = if inputs[0].is_some() { &[0][..] } else { &[] };
    let found = both_over(
        Op::Index(op.clone()),
        inputs,
        &[Some(output.clone())],
        fresh,
    );
    let sums = ty.is_float() && reduction == Reduction::Add;
    if !sums {
        return assert_same(&found, what);
    }
    // The sizes of the terms, from the same operation on magnitudes.
    let magnitude = |tensor: &Tensor| {
        let numbers: Vec<f64> = numbers(tensor).into_iter().map(f64::abs).collect();
        super::tensor(tensor.data_type, &tensor.shape, &numbers)
    };
    let sizes = [
        inputs[0].as_ref().map(magnitude),
        inputs[1].clone(),
        inputs[2].as_ref().map(magnitude),
    ];
    let sizes = both(Op::Index(op.clone()), &sizes, &[Some(output.clone())]);
    let sizes = numbers(sizes.cpu[0].as_ref().unwrap());
    let bound = |place: usize| 2.0 * (updates + 1) as f64 * epsilon(ty) * sizes[place];
    assert_close(
        found.cpu[0].as_ref().unwrap(),
        found.cuda[0].as_ref().unwrap(),
        bound,
        what,
    );
}

#[test]
fn scattered_rows() {
    for op in cases() {
        for ty in TYPES.map(DataType) {
            if op.count > 1000 && !matches!(ty.0, 1 | 7) {
                continue;
            }
            for reduction in REDUCTIONS {
                let updates = random_tensor(ty, &[op.outer, op.batch, op.count, op.slice], 2);
                let data = random_tensor(ty, &data_shape(&op), 1);
                let output = TensorType::new(ty, data_shape(&op));
                let absent = reduction == Reduction::Add && op.outer == 1;
                let data = Some(data).filter(|_| !absent);
                let inputs = [data, Some(indices(&op, ty.0 % 2 == 1)), Some(updates)];
                let what = format!("{op:?}, {reduction:?} of {}", ty.0);
                let scatter = Index::Scatter(op.clone(), reduction);
                check_scattered(&scatter, ty, &inputs, &output, reduction, op.count, &what);
            }
        }
    }
}

#[test]
fn elements_along_an_axis() {
    let cases = [
        (vec![3, 5, 4], vec![3, 5, 4], 1),
        (vec![6, 7], vec![4, 9], 1),
        (vec![6, 7], vec![11, 5], 0),
        (vec![2, 3, 4, 5], vec![2, 2, 4, 3], 2),
        (vec![9], vec![2100], 0),
        (vec![4, 4], vec![0, 4], 0),
        (vec![1, 1], vec![1, 1], 1),
    ];
    for (data, shape, axis) in cases {
        let op = Elements {
            data: data.clone(),
            indices: shape.clone(),
            axis,
        };
        let count: usize = shape.iter().product();
        let bound = data[axis] as i64;
        let places: Vec<f64> = (0..count as i64)
            .map(|i| (i * 5 + i * i) % bound - if i % 4 == 1 { bound } else { 0 })
            .map(|place| place as f64)
            .collect();
        for ty in TYPES.map(DataType) {
            if count > 1000 && !matches!(ty.0, 1 | 7) {
                continue;
            }
            let wide = if ty.0 % 2 == 0 {
                DataType::INT64
            } else {
                DataType::INT32
            };
            let indices = tensor(wide, &shape, &places);
            let given = random_tensor(ty, &data, 1);
            let inputs = [Some(given.clone()), Some(indices.clone())];
            let what = format!("{op:?} of {}", ty.0);
            let gather = Op::Index(Index::GatherElements(op.clone()));
            assert_same(
                &both(gather, &inputs, &[Some(TensorType::new(ty, shape.clone()))]),
                &what,
            );
            for reduction in REDUCTIONS {
                let updates = random_tensor(ty, &shape, 2);
                let inputs = [Some(given.clone()), Some(indices.clone()), Some(updates)];
                let output = TensorType::new(ty, data.clone());
                let scatter = Index::ScatterElements(op.clone(), reduction);
                let what = format!("{what}, {reduction:?}");
                check_scattered(&scatter, ty, &inputs, &output, reduction, count, &what);
            }
        }
    }
}

#[test]
fn not_a_number_stays() {
    let op = rows(1, 1, 4, &[3], 2);
    let places = tensor(DataType::INT64, &[1, 4, 1], &[0.0, 0.0, 2.0, 2.0]);
    let nan = f64::NAN;
    for ty in [1, 11, 10, 16].map(DataType) {
        let data = tensor(ty, &[1, 1, 3, 2], &[nan, 1.0, nan, 2.0, 0.0, -0.0]);
        let updates = tensor(
            ty,
            &[1, 1, 4, 2],
            &[1.0, nan, 2.0, 3.0, -0.0, 0.0, f64::INFINITY, -f64::INFINITY],
        );
        for reduction in [Reduction::Max, Reduction::Min] {
            let inputs = [
                Some(data.clone()),
                Some(places.clone()),
                Some(updates.clone()),
            ];
            let output = [Some(TensorType::new(ty, [1, 1, 3, 2]))];
            let found = both(
                Op::Index(Index::Scatter(op.clone(), reduction)),
                &inputs,
                &output,
            );
            let (cpu, cuda) = (
                found.cpu[0].as_ref().unwrap(),
                found.cuda[0].as_ref().unwrap(),
            );
            assert_close(cpu, cuda, |_| 0.0, "extremes");
        }
    }
}

#[test]
fn indices_outside_are_reported() {
    let op = rows(1, 1, 3, &[4, 2], 5);
    let data = Some(random_tensor(DataType::FLOAT, &[1, 1, 4, 2, 5], 1));
    let updates = Some(random_tensor(DataType::FLOAT, &[1, 1, 3, 5], 2));
    for bad in [-3.0, 2.0, 1e12] {
        let places = Some(tensor(
            DataType::INT64,
            &[1, 3, 2],
            &[0.0, 1.0, -4.0, bad, 3.0, -2.0],
        ));
        let gather = Op::Index(Index::Gather(op.clone()));
        let rows_type = [Some(TensorType::new(DataType::FLOAT, [1, 1, 3, 5]))];
        let (cpu, cuda) = try_both(gather, &[data.clone(), places.clone()], &rows_type, &[]);
        assert_eq!(cpu.unwrap_err(), cuda.unwrap_err());
        let scatter = Op::Index(Index::Scatter(op.clone(), Reduction::Add));
        let all = [Some(TensorType::new(DataType::FLOAT, [1, 1, 4, 2, 5]))];
        let inputs = [data.clone(), places, updates.clone()];
        let (cpu, cuda) = try_both(scatter, &inputs, &all, &[]);
        assert_eq!(cpu.unwrap_err(), cuda.unwrap_err());
    }
    let elements = Elements {
        data: vec![4, 3],
        indices: vec![2, 3],
        axis: 0,
    };
    let places = Some(tensor(
        DataType::INT32,
        &[2, 3],
        &[0.0, 1.0, 2.0, 3.0, 4.0, 0.0],
    ));
    let data = Some(random_tensor(DataType::FLOAT, &[4, 3], 1));
    let some = [Some(TensorType::new(DataType::FLOAT, [2, 3]))];
    let gather = Op::Index(Index::GatherElements(elements.clone()));
    let (cpu, cuda) = try_both(gather, &[data.clone(), places.clone()], &some, &[]);
    assert_eq!(cpu.unwrap_err(), cuda.unwrap_err());
    let scatter = Op::Index(Index::ScatterElements(elements, Reduction::Replace));
    let updates = Some(random_tensor(DataType::FLOAT, &[2, 3], 1));
    let all = [Some(TensorType::new(DataType::FLOAT, [4, 3]))];
    let (cpu, cuda) = try_both(scatter, &[data, places, updates], &all, &[]);
    assert_eq!(cpu.unwrap_err(), cuda.unwrap_err());
}

#[test]
fn one_hot_rows() {
    for (outer, depth, inner) in [(3, 5, 4), (7, 3, 1), (1, 1, 1), (2, 0, 3), (0, 4, 2)] {
        let places: Vec<f64> = (0..outer * inner).map(|i| i as f64 * 1.5 - 6.0).collect();
        for index in TYPES.map(DataType) {
            let indices = tensor(index, &[outer, inner], &places);
            for ty in [9, 10, 1, 7].map(DataType) {
                let values = tensor(ty, &[2], &[1.0, 0.0]);
                let op = Op::Index(Index::OneHot(OneHot {
                    outer,
                    depth,
                    inner,
                }));
                let output = TensorType::new(ty, [outer, depth, inner]);
                let inputs = [Some(indices.clone()), Some(values)];
                assert_same(
                    &both(op, &inputs, &[Some(output)]),
                    &format!("{outer} {depth} {inner} {} {}", index.0, ty.0),
                );
            }
        }
    }
}

#[test]
fn greatest_and_least_elements() {
    for (outer, size, inner, k) in [
        (3, 7, 2, 3),
        (1, 1, 1, 1),
        (2, 40, 1, 40),
        (1, 1500, 1, 4),
        (2, 5, 3, 0),
    ] {
        for ty in TYPES.map(DataType) {
            let mut all = numbers(&random_tensor(ty, &[outer * size * inner], 9));
            // Equal ones, and what has an order of its own.
            for (i, number) in all.iter_mut().enumerate() {
                if i % 3 == 0 {
                    *number = 0.0;
                }
                if ty.is_float() && i % 7 == 1 {
                    *number = [f64::NAN, -0.0, f64::INFINITY, f64::NEG_INFINITY][i / 7 % 4];
                }
            }
            let data = tensor(ty, &[outer, size, inner], &all);
            for largest in [true, false] {
                let op = Op::Index(Index::TopK(TopK {
                    outer,
                    size,
                    inner,
                    k,
                    largest,
                }));
                let outputs =
                    [ty, DataType::INT64].map(|ty| Some(TensorType::new(ty, [outer, k, inner])));
                let what = format!("{k} of {size} of {}, {largest}", ty.0);
                assert_same(&both(op, &[Some(data.clone())], &outputs), &what);
            }
        }
    }
}
