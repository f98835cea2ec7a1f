//! Copies of boxes, triangles and sequences: all to the bit.

use super::{assert_same, both, both_over, random_tensor};
use velora_graph::shapes::DataType;
use velora_runtime::ops::Op;
use velora_runtime::ops::movement::copy::{Axis, Copy, Origin, Part};
use velora_runtime::ops::movement::{Movement, Range, Trilu};
use velora_runtime::tensor::TensorType;

/// Types of 1, 2, 4 and 8 bytes.
const WIDTHS: [DataType; 4] = [
    DataType::UINT8,
    DataType::FLOAT16,
    DataType::FLOAT,
    DataType::INT64,
];

fn axis(size: usize, from: isize, to: usize) -> Axis {
    Axis { size, from, to }
}

/// The box that permutes the axes of a dense tensor.
fn transpose(shape: &[usize], order: &[usize]) -> (Part, Vec<usize>) {
    let strides = |shape: &[usize]| TensorType::new(DataType::FLOAT, shape).strides();
    let to_shape: Vec<usize> = order.iter().map(|&axis| shape[axis]).collect();
    let (from, to) = (strides(shape), strides(&to_shape));
    let axes = (0..order.len()).map(|n| axis(to_shape[n], from[order[n]] as isize, to[n]));
    (
        Part::new(Origin::Input(0), 0, axes, 0, 0).unwrap().unwrap(),
        to_shape,
    )
}

fn check(parts: Vec<Part>, inputs: &[&[usize]], output: &[usize], what: &str) {
    for ty in WIDTHS {
        let inputs: Vec<_> = (inputs.iter().enumerate())
            .map(|(n, shape)| Some(random_tensor(ty, shape, n as u64 + 1)))
            .collect();
        let op = Op::Movement(Movement::Copy(Copy {
            parts: parts.clone(),
        }));
        assert_same(
            &both(op, &inputs, &[Some(TensorType::new(ty, output))]),
            what,
        );
    }
}

#[test]
fn transposed_tensors() {
    let cases: [(&[usize], &[usize]); 8] = [
        (&[40, 70], &[1, 0]),
        (&[33, 31], &[1, 0]),
        (&[3, 70], &[1, 0]),
        (&[2, 9, 3, 8], &[0, 2, 1, 3]),
        (&[2, 9, 3, 8], &[0, 2, 3, 1]),
        (&[5, 4, 3, 2], &[3, 1, 2, 0]),
        (&[2, 3, 33, 8], &[1, 0, 3, 2]),
        (&[1, 1], &[1, 0]),
    ];
    for (shape, order) in cases {
        let (part, output) = transpose(shape, order);
        check(
            vec![part],
            &[shape],
            &output,
            &format!("{shape:?} by {order:?}"),
        );
    }
}

#[test]
fn pieces_of_tensors() {
    let part = |origin, axes: &[Axis], from, to| {
        Part::new(origin, 0, axes.iter().copied(), from, to)
            .unwrap()
            .unwrap()
    };
    let element = [1, 2, 3, 4, 5, 6, 7, 8];
    // Two tensors side by side, with runs of 6 and of 3 elements.
    let concat = vec![
        part(Origin::Input(0), &[axis(5, 6, 9), axis(6, 1, 1)], 0, 0),
        part(Origin::Input(1), &[axis(5, 3, 9), axis(3, 1, 1)], 0, 6),
    ];
    check(concat, &[&[5, 6], &[5, 3]], &[5, 9], "rows of two tensors");
    // Backwards, and every second element to every third place, over a fill.
    let reversed = vec![
        Part::fill(element, 60),
        part(Origin::Input(0), &[axis(20, -2, 3)], 39, 1),
    ];
    check(reversed, &[&[40]], &[60], "backwards");
    // A padded matrix: what is around it is set first, in elements that are no repeated byte.
    let padded = vec![
        part(
            Origin::Element(element),
            &[axis(10, 0, 24), axis(8, 0, 1)],
            0,
            0,
        ),
        part(
            Origin::Element([0; 8]),
            &[axis(10, 0, 24), axis(16, 0, 1)],
            0,
            8,
        ),
        part(Origin::Scalar(1), &[axis(4, 0, 24)], 0, 3),
        part(Origin::Input(0), &[axis(6, 8, 24), axis(8, 1, 1)], 0, 56),
    ];
    check(
        padded,
        &[&[6, 8], &[1]],
        &[10, 24],
        "a matrix in a larger one",
    );
    // Repeated along both axes.
    let tiled = vec![part(
        Origin::Input(0),
        &[axis(3, 0, 40), axis(4, 5, 10), axis(2, 0, 5), axis(5, 1, 1)],
        0,
        0,
    )];
    check(tiled, &[&[4, 5]], &[3, 4, 10], "repeated");
    // Nothing, and one element.
    check(vec![], &[&[0]], &[0], "nothing");
    check(
        vec![part(Origin::Input(0), &[], 3, 0)],
        &[&[7]],
        &[1],
        "one element",
    );
}

#[test]
fn triangles() {
    let shapes: [&[usize]; 4] = [&[2, 5, 7], &[3, 40, 33], &[1, 1], &[2, 300]];
    for ty in WIDTHS {
        for shape in shapes {
            let [.., rows, columns] = *shape else {
                panic!()
            };
            let input = random_tensor(ty, shape, 5);
            for (upper, diagonal) in [
                (true, 0),
                (false, 0),
                (true, -2),
                (false, 3),
                (true, i64::MAX),
                (false, i64::MIN),
            ] {
                let op = |known| {
                    let diagonal = Some(diagonal).filter(|_| known);
                    Op::Movement(Movement::Trilu(Trilu {
                        upper,
                        diagonal,
                        rows,
                        columns,
                    }))
                };
                let output = [Some(TensorType::new(ty, shape))];
                let what = format!("{shape:?}, {upper}, {diagonal}");
                assert_same(&both(op(true), &[Some(input.clone())], &output), &what);
                let given = velora_runtime::tensor::Tensor::from_i64(&[], &[diagonal]);
                let inputs = [Some(input.clone()), Some(given)];
                assert_same(&both_over(op(false), &inputs, &output, &[0]), &what);
            }
        }
    }
}

#[test]
fn sequences() {
    for ty in [DataType::INT64, DataType::INT32, DataType(5)] {
        let op = Op::Movement(Movement::Range(Range::Integers {
            start: 40,
            step: -7,
        }));
        for count in [0, 1, 1000] {
            assert_same(
                &both(op.clone(), &[], &[Some(TensorType::new(ty, [count]))]),
                "integers",
            );
        }
    }
    for ty in [
        DataType::FLOAT,
        DataType::DOUBLE,
        DataType::FLOAT16,
        DataType::BFLOAT16,
    ] {
        // Multiples of 1/8 up to 32: each is a number of every type or lies between two of them without a
        // third rounding.
        let op = Op::Movement(Movement::Range(Range::Floats {
            start: -3.5,
            step: 0.125,
        }));
        assert_same(
            &both(op, &[], &[Some(TensorType::new(ty, [280]))]),
            "floats",
        );
    }
}
