//! Boxes of elements.

use super::{REQUEST, counting, parse, run, try_run};
use std::collections::BTreeMap;
use velora_runtime::lower::lower;
use velora_runtime::tensor::Tensor;

/// A transposition by its definition.
fn transposed(x: &[f32], shape: &[usize], perm: &[usize]) -> Vec<f32> {
    let sizes: Vec<usize> = perm.iter().map(|&axis| shape[axis]).collect();
    (0..x.len())
        .map(|mut place| {
            let mut at = vec![0; shape.len()];
            for axis in (0..perm.len()).rev() {
                at[perm[axis]] = place % sizes[axis];
                place /= sizes[axis];
            }
            x[at.iter().zip(shape).fold(0, |sum, (i, n)| sum * n + i)]
        })
        .collect()
}

/// Sizes around a tile and above the grain of a thread; runs, tiles and steps.
#[test]
fn transpositions() {
    for (shape, perm) in [
        (vec![3, 5], vec![1, 0]),
        (vec![257, 190], vec![1, 0]),
        (vec![2, 33, 4, 64], vec![0, 2, 1, 3]),
        (vec![3, 17, 5, 31], vec![3, 1, 2, 0]),
        (vec![2, 3, 16, 32], vec![0, 1, 3, 2]),
        (vec![40, 6, 50, 7], vec![0, 2, 3, 1]),
        (vec![2, 3, 4, 5, 6], vec![4, 2, 0, 3, 1]),
        (vec![1, 6, 1, 4], vec![2, 1, 0, 3]),
    ] {
        let x = counting(&shape);
        let sizes: Vec<usize> = perm.iter().map(|&axis| shape[axis]).collect();
        let body = format!(
            "g (float{shape:?} x) => (float{sizes:?} y) {{ y = Transpose <perm = {perm:?}> (x) }}"
        );
        let y = run(&body, &[("x", x.clone())])[0].to_f32().unwrap();
        assert_eq!(
            y,
            transposed(&x.to_f32().unwrap(), &shape, &perm),
            "{perm:?}"
        );
    }
}

/// A slice written along an inner axis, as exporters do it: indices, and how many operations are left.
/// What is not evenly spaced, or reduces, stays what it was.
#[test]
fn transposed_scatters() {
    let shape = [2, 3, 5];
    let x = counting(&shape);
    let base = transposed(&x.to_f32().unwrap(), &shape, &[2, 1, 0]);
    for (indices, reduction, filled, operations) in [
        (vec![1, 2], "none", false, 1),
        (vec![0, 1, 2, 3, 4], "none", false, 1),
        (vec![-1], "none", false, 1),
        (vec![0, 2, 4], "none", false, 1),
        (vec![3, 4], "none", true, 1),
        (vec![1, 4], "none", true, 1),
        (vec![0, 1, 3], "none", false, 4),
        (vec![3, 1], "none", false, 4),
        (vec![2, 2], "add", false, 4),
    ] {
        let count = indices.len();
        let updates = Tensor::from_f32(
            &[2, 3, count],
            &(0..6 * count).map(|i| 100.0 + i as f32).collect::<Vec<_>>(),
        );
        let data = if filled {
            "Expand (seven, shape)"
        } else {
            "Identity (x)"
        };
        let body = format!(
            r#"g (float[2,3,5] x, float[2,3,{count}] u) => (float[2,3,5] y)
            <int64[{count},1] i = {{{}}}, float seven = {{7}}, int64[3] shape = {{2, 3, 5}}> {{
                data = {data}
                t = Transpose <perm = [2, 1, 0]> (data)
                w = Transpose <perm = [2, 1, 0]> (u)
                s = ScatterND <reduction = "{reduction}"> (t, i, w)
                y = Transpose <perm = [2, 1, 0]> (s)
            }}"#,
            indices
                .iter()
                .map(i64::to_string)
                .collect::<Vec<_>>()
                .join(", ")
        );
        let program = lower(&parse(&body), &REQUEST(&BTreeMap::new())).unwrap();
        assert_eq!(program.operations.len(), operations, "{indices:?}");
        let mut rows = if filled { vec![7.0; 30] } else { base.clone() };
        let u = transposed(&updates.to_f32().unwrap(), &[2, 3, count], &[2, 1, 0]);
        for (number, &index) in indices.iter().enumerate() {
            let row = index.rem_euclid(5) as usize;
            for i in 0..6 {
                let before = match reduction {
                    "add" => rows[row * 6 + i],
                    _ => 0.0,
                };
                rows[row * 6 + i] = before + u[number * 6 + i];
            }
        }
        let y = run(&body, &[("x", x.clone()), ("u", updates)]);
        let expected = transposed(&rows, &[5, 3, 2], &[2, 1, 0]);
        assert_eq!(y[0].to_f32().unwrap(), expected, "{indices:?} {reduction}");
    }
}

#[test]
fn slices_and_their_gradients() {
    let body = "g (float[2,5] x) => (float[2,2] y, float[2,5] dx)
        <int64[1] starts = {4}, int64[1] ends = {-6}, int64[1] axes = {1}, int64[1] steps = {-3},
         int64[2] shape = {2, 5}> {
            y = Slice (x, starts, ends, axes, steps)
            dx = com.microsoft.SliceGrad (y, shape, starts, ends, axes, steps)
        }";
    let outputs = run(body, &[("x", counting(&[2, 5]))]);
    assert_eq!(outputs[0].to_f32().unwrap(), [4.0, 1.0, 9.0, 6.0]);
    let expected = [0.0, 1.0, 0.0, 0.0, 4.0, 0.0, 6.0, 0.0, 0.0, 9.0];
    assert_eq!(outputs[1].to_f32().unwrap(), expected);
}

/// More operands than an operation has.
#[test]
fn seventy_pieces_and_back() {
    let names: Vec<String> = (0..70).map(|i| format!("p{i}")).collect();
    let names = names.join(", ");
    let body = format!(
        "g (float[3,70] x) => (float[3,70] y) {{
            {names} = Split <axis = 1, num_outputs = 70> (x)
            y = Concat <axis = 1> ({names})
        }}"
    );
    let x = counting(&[3, 70]);
    assert_eq!(run(&body, &[("x", x.clone())])[0], x);
}

#[test]
fn training_forms_of_concat_and_split() {
    let body =
        "g (float[2,3] a, float[2,1] b) => (float[2,4] y, int64[2] n, float[2,3] c, float[2,1] d)
        <int64[2] sizes = {3, 1}> {
            y, n = com.microsoft.ConcatTraining <axis = 1> (a, b)
            c, d = com.microsoft.SplitTraining <axis = 1> (y, sizes)
        }";
    let (a, b) = (counting(&[2, 3]), Tensor::from_f32(&[2, 1], &[7.0, 8.0]));
    let outputs = run(body, &[("a", a.clone()), ("b", b.clone())]);
    let expected = [0.0, 1.0, 2.0, 7.0, 3.0, 4.0, 5.0, 8.0];
    assert_eq!(outputs[0].to_f32().unwrap(), expected);
    assert_eq!(outputs[1], Tensor::from_i64(&[2], &[3, 1]));
    assert_eq!(outputs[2..], [a, b]);
}

#[test]
fn pads_in_all_modes() {
    let padded = |mode: &str| {
        let body = format!(
            "g (float[1,3] x) => (float[2,7] y) <int64[4] pads = {{1, 2, 0, 2}}> {{
                y = Pad <mode = \"{mode}\"> (x, pads)
            }}"
        );
        let outputs = run(&body, &[("x", counting(&[1, 3]))]);
        outputs[0].to_f32().unwrap()
    };
    let twice = |row: [f32; 7]| [row, row].concat();
    let row = [0.0, 0.0, 0.0, 1.0, 2.0, 0.0, 0.0];
    assert_eq!(padded("constant"), [[0.0; 7], row].concat());
    assert_eq!(padded("edge"), twice([0.0, 0.0, 0.0, 1.0, 2.0, 2.0, 2.0]));
    assert_eq!(
        padded("reflect"),
        twice([2.0, 1.0, 0.0, 1.0, 2.0, 1.0, 0.0])
    );
    assert_eq!(padded("wrap"), twice([1.0, 2.0, 0.0, 1.0, 2.0, 0.0, 1.0]));
}

#[test]
fn what_cannot_be_is_refused() {
    let body = "g (float[4] x) => (y) <int64[1] s = {0}, int64[1] e = {4}, int64[1] a = {0}, int64[1] t = {0}> {
        y = Slice (x, s, e, a, t)
    }";
    assert!(try_run(body, &[("x", counting(&[4]))]).is_err());
}
