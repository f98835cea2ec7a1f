//! What the bounds let through, and what they do not.

use super::*;

fn matrix(rows: usize, columns: usize, element: impl Fn(usize) -> f64) -> Matrix {
    Matrix {
        rows,
        columns,
        elements: (0..rows * columns).map(element).collect(),
    }
}

/// Numbers with many digits, by the golden ratio.
fn number(index: usize) -> f64 {
    (index as f64 * 0.618_033_988_749_895).fract() - 0.4
}

/// z, v and dW as a runtime in 32 bits would make them.
struct Case {
    x: Matrix,
    dy: Matrix,
    v: Directions,
    z: Matrix,
    dw: Matrix,
}

const GROUPS: usize = 3;

/// 7 features in 3 groups of 3, two of padding; `rank` directions.
fn case(rank: usize, own: bool, scale: f32) -> Case {
    let x = matrix(11, 7, |i| f64::from(number(i) as f32));
    let dy = matrix(11, 4, |i| f64::from(number(3 * i + 1) as f32));
    // Unit vectors along axes and one between: orthonormal for both ranks.
    let one = [[0.6f32, 0.8, 0.0], [0.8, -0.6, 0.0]];
    let two = [[0.0f32, 0.6, 0.8], [0.0, 0.8, -0.6]];
    let groups = if own { vec![one, two, one] } else { vec![one] };
    let elements = groups.iter().flat_map(|g| g[..rank].concat());
    let elements: Vec<f64> = elements.map(f64::from).collect();
    let shape = match (own, rank) {
        (false, 1) => vec![3],
        (false, rank) => vec![rank, 3],
        (true, rank) => vec![GROUPS, rank, 3],
    };
    let v = Directions::new(&shape, elements).unwrap_or_else(|| panic!("{shape:?}"));
    let mut z = Matrix::zeros(11, GROUPS * rank);
    for row in 0..11 {
        for place in 0..GROUPS * rank {
            let direction = v.of(place / rank, place % rank);
            let mut sum = 0f32;
            for (m, &d) in direction.iter().enumerate() {
                sum += feature(x.row(row), place / rank, 3, m) as f32 * d as f32;
            }
            z.elements[row * GROUPS * rank + place] = f64::from(sum);
        }
    }
    let mut dw = Matrix::zeros(7, 4);
    for d in 0..7 {
        for o in 0..4 {
            let mut sum = 0f32;
            for k in 0..rank {
                let mut p = 0f32;
                for row in 0..11 {
                    p += z.row(row)[d / 3 * rank + k] as f32 * dy.row(row)[o] as f32;
                }
                sum += v.of(d / 3, k)[d % 3] as f32 * p;
            }
            dw.elements[d * 4 + o] = f64::from(scale * sum);
        }
    }
    Case { x, dy, v, z, dw }
}

/// How far z is from the projections of X.
fn stored(case: &Case, storage: Storage) -> Deviation {
    let rounding = Rounding::default();
    compressed(&case.x, GROUPS, &case.v, &case.z, storage, rounding)
}

fn deviation(case: &Case, scale: f64) -> Deviation {
    let parts = Parts {
        z: &case.z,
        dy: &case.dy,
        v: &case.v,
        groups: GROUPS,
        features: 7,
        scale,
        rounding: Rounding::default(),
    };
    gradient(&parts, &case.dw)
}

#[test]
fn arithmetic_in_32_bits_is_within_the_bounds_and_little_else_is() {
    for rank in [1, 2] {
        for own in [false, true] {
            let right = case(rank, own, 0.3);
            let scale = f64::from(0.3f32);
            let z = stored(&right, Storage::Activation);
            assert!(z.within() && z.error > 0.0, "{z:?}");
            let dw = deviation(&right, scale);
            assert!(dw.within() && dw.error > 0.0, "{dw:?}");
            assert!(right.v.from_orthonormal(Rounding::default()).within());
            // A hundred thousandth more of anything is too much.
            assert!(!deviation(&right, scale * 1.00001).within());
            let mut wrong = case(rank, own, 0.3);
            wrong.z.elements[0] *= 1.00001;
            assert!(!stored(&wrong, Storage::Activation).within());
            wrong.v.elements[1] *= 1.00001;
            assert!(!wrong.v.from_orthonormal(Rounding::default()).within());
            wrong.dw.elements[5] = f64::NAN;
            assert!(!deviation(&wrong, scale).within());
        }
    }
}

#[test]
fn storage_adds_half_a_step() {
    for (storage, step) in [(Storage::Int8, 127.0), (Storage::BFloat16, 128.0)] {
        let mut case = case(1, false, 1.0);
        let row = case.z.row(0);
        let (place, largest) = (row.iter().enumerate())
            .map(|(place, z)| (place, z.abs()))
            .max_by(|a, b| a.1.total_cmp(&b.1))
            .unwrap_or_default();
        case.z.elements[place] += 0.45 * largest / step;
        assert!(stored(&case, storage).within(), "{storage:?}");
        case.z.elements[place] += 0.1 * largest / step;
        assert!(!stored(&case, storage).within(), "{storage:?}");
    }
}

#[test]
fn other_shapes_are_beyond_all_bounds() {
    let mut wrong = case(1, false, 1.0);
    wrong.dw = wrong.dw.transposed();
    assert_eq!(deviation(&wrong, 1.0).error, f64::INFINITY);
    wrong.z = Matrix::zeros(11, 2);
    assert!(!stored(&wrong, Storage::Activation).within());
    assert_eq!(Directions::new(&[2, 2, 2, 2], vec![0.0; 16]), None);
    assert_eq!(Directions::new(&[3], vec![0.0; 4]), None);
}

#[test]
fn the_mean_is_known_to_some_digits() {
    let x = matrix(50, 6, number);
    let (v, bounds) = mean_direction(&x, 2);
    let norm: f64 = v.iter().map(|e| e * e).sum();
    assert!((norm - 1.0).abs() < 1e-12);
    // Summed in 32 bits.
    let mut sum = [0f32; 3];
    for sub in x.elements.chunks(3) {
        sum.iter_mut().zip(sub).for_each(|(s, &e)| *s += e as f32);
    }
    let length = sum.iter().map(|e| e * e).sum::<f32>().sqrt();
    for ((s, v), bound) in sum.iter().zip(&v).zip(&bounds) {
        let error = (f64::from(s / length) - v).abs();
        assert!(error <= *bound && *bound < 1e-4, "{error} {bound}");
    }
    // Numbers that cancel leave no direction.
    let cancelling = matrix(2, 2, |i| if i < 2 { 1.0 } else { -1.0 - 1e-9 });
    assert_eq!(mean_direction(&cancelling, 1).1, [f64::INFINITY; 2]);
    assert_eq!(mean_direction(&Matrix::zeros(2, 4), 1).0, [0.5; 4]);
}
