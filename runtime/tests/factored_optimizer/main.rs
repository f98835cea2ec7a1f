//! Updates from factored gradients, against the formulas in single and double precision, and against
//! updates from the expanded gradients.
#![allow(clippy::unwrap_used)]

mod formula;
mod number;
mod refusals;

use formula::{Case, Outcome, evaluate};
use number::Bounded;
use rayon::ThreadPoolBuilder;
use velora_runtime::random;
use velora_runtime::session::gradient::{factored_sum_of_squares, sum_of_squares};
use velora_runtime::session::optimizer::{Factor, Optimizer, Step};

const fn sgd(momentum: f64, nesterov: bool, weight_decay: f64) -> Optimizer {
    Optimizer::Sgd {
        momentum,
        nesterov,
        weight_decay,
    }
}

const fn adam(epsilon: f64) -> Optimizer {
    Optimizer::Adam {
        betas: [0.9, 0.999],
        epsilon,
        weight_decay: 0.0,
    }
}

const ADAMW: Optimizer = Optimizer::AdamW {
    betas: [0.9, 0.999],
    epsilon: 1e-8,
    weight_decay: 0.1,
};

const OPTIMIZERS: [Optimizer; 6] = [
    sgd(0.0, false, 0.0),
    sgd(0.0, false, 0.1),
    sgd(0.9, false, 0.0),
    sgd(0.9, true, 0.0),
    adam(1e-8),
    ADAMW,
];

/// Each optimiser, orientation and kind of direction.
fn cases(features: usize, groups: usize, outputs: usize) -> impl Iterator<Item = Case> {
    (0..OPTIMIZERS.len() * 4).map(move |i| Case {
        optimizer: OPTIMIZERS[i / 4],
        features,
        groups,
        outputs,
        features_last: i % 2 == 1,
        shared: i / 2 % 2 == 1,
    })
}

/// A weight and the tensors of its state.
type Trained = (Vec<f32>, Vec<Vec<f32>>);

fn views(state: &mut [Vec<f32>]) -> Vec<&mut [f32]> {
    state.iter_mut().map(|s| &mut s[..]).collect()
}

fn train_factored(case: &Case, steps: u64) -> Trained {
    let (mut w, direction) = (case.start(), case.direction());
    let len = case.groups * case.outputs;
    let mut state = vec![vec![0f32; len]; case.optimizer.state().len()];
    for number in 1..=steps {
        let (step, factor) = (case.step(number), case.factor(&direction));
        let (gradient, mut state) = (case.gradient(number), views(&mut state));
        case.optimizer
            .update_factored(&step, &mut w, &factor, &gradient, &mut state)
            .unwrap();
    }
    (w, state)
}

fn expand(case: &Case, gradient: &[f32]) -> Vec<f32> {
    let direction = case.direction();
    let places = case.places().into_iter();
    places.map(|(v, p)| direction[v] * gradient[p]).collect()
}

fn train_expanded(case: &Case, steps: u64) -> Trained {
    let mut w = case.start();
    let mut state = vec![vec![0f32; w.len()]; case.optimizer.state().len()];
    for number in 1..=steps {
        let gradient = expand(case, &case.gradient(number));
        let (step, mut state) = (case.step(number), views(&mut state));
        case.optimizer
            .update(&step, &mut w, &gradient, &mut state)
            .unwrap();
    }
    (w, state)
}

/// Sizes for long runs: a short last group, empty groups behind it, groups of one feature, one group, and
/// groups with a loop each.
const SIZES: [[usize; 3]; 6] = [
    [11, 4, 5],
    [5, 4, 3],
    [6, 6, 5],
    [16, 1, 6],
    [70, 3, 9],
    [1, 1, 1],
];

const STEPS: u64 = 50;

fn long_cases() -> impl Iterator<Item = Case> {
    SIZES.into_iter().flat_map(|[d, g, o]| cases(d, g, o))
}

/// The bounds are derived, operation by operation: see [`Bounded`]. They hold for each kernel's distance
/// from the formula in double precision, so that the kernels' distance is within the sum of both.
#[test]
fn both_kernels_are_the_formula_within_their_roundings() {
    let mut differ = false;
    for case in long_cases() {
        let (expanded, factored) = (train_expanded(&case, STEPS), train_factored(&case, STEPS));
        let (by_expanded, by_factored) = evaluate::<Bounded>(&case, STEPS);
        for i in 0..expanded.0.len() {
            let (full, small) = (by_expanded.weight[i], by_factored.weight[i]);
            let found = [expanded.0[i], factored.0[i]].map(f64::from);
            for (found, exact) in found.into_iter().zip([full, small]) {
                let distance = (found - exact.value).abs();
                assert!(
                    distance <= exact.error,
                    "{case:?}, {i}: {found} is no {exact:?}"
                );
                // A bound of the size of the numbers would hold for anything.
                let extent = by_expanded.weight_extent[i].max(1.0);
                assert!(exact.error < 1e-3 * extent, "{case:?}, {i}: {exact:?}");
            }
            let distance = (found[0] - found[1]).abs();
            assert!(distance <= full.error + small.error, "{case:?}, {i}");
            differ |= distance > 0.0;
        }
    }
    assert!(differ, "single precision cannot be exact");
}

/// v ⊗ m_P is the mean of v ⊗ P, and v² ⊗ s_P the mean square; within the roundings of both.
#[test]
fn the_state_factors() {
    for case in long_cases() {
        let (_, expanded) = train_expanded(&case, STEPS);
        let (_, factored) = train_factored(&case, STEPS);
        let (by_expanded, by_factored) = evaluate::<Bounded>(&case, STEPS);
        let direction = case.direction();
        for (i, (v, p)) in case.places().into_iter().enumerate() {
            let v = f64::from(direction[v]);
            for (k, (full, small)) in expanded.iter().zip(&factored).enumerate() {
                let v = if k == 0 { v } else { v * v };
                let (full, small) = (f64::from(full[i]), f64::from(small[p]));
                let exact = by_factored.state[p][k];
                assert!((small - exact.value).abs() <= exact.error, "{case:?}, {p}");
                let exact = by_expanded.state[i][k];
                assert!((full - exact.value).abs() <= exact.error, "{case:?}, {i}");
                let bound = exact.error + v.abs() * by_factored.state[p][k].error;
                assert!((full - v * small).abs() <= bound, "{case:?}, {i}");
            }
        }
    }
}

/// In double precision, where a step rounds some ten times and momentum adds up the errors of ten steps:
/// 50 · 10 · 10 roundings of 2⁻⁵³ are 6e-13.
#[test]
fn the_factored_formula_is_the_formula() {
    let close = |x: f64, y: f64, extent: f64| (x - y).abs() <= 1e-12 * extent;
    for case in long_cases() {
        let (expanded, factored): (Outcome<f64>, Outcome<f64>) = evaluate(&case, STEPS);
        let direction = case.direction();
        for (i, (v, p)) in case.places().into_iter().enumerate() {
            let extent = expanded.weight_extent[i].max(1.0);
            let (full, small) = (expanded.weight[i], factored.weight[i]);
            assert!(close(full, small, extent), "{case:?}, {i}: {full} {small}");
            let v = f64::from(direction[v]);
            for (k, v) in [v, v * v].into_iter().enumerate() {
                let (full, small) = (expanded.state[i][k], v * factored.state[p][k]);
                let extent = expanded.state_extent[i][k];
                assert!(close(full, small, extent), "{case:?}, {i}: {full} {small}");
            }
        }
    }
}

/// Layouts, borders of tiles and blocks, and vector code change no bit: the kernels are the formula in
/// single precision, element by element.
#[test]
fn the_kernels_are_the_formula_bit_by_bit() {
    let small = (1..24).flat_map(|d| (1..=d).map(move |g| (d, g)));
    let small = small.flat_map(|(d, g)| [1, 3, 17].map(|o| (d, g, o)));
    let large = [
        // Tiles of outputs, of groups of one and of more than sixteen features, and laid out.
        (10, 3, 4101),
        (1100, 1100, 3),
        (19_000, 1070, 2),
        (2095, 1050, 3),
        // Blocks, which start within a group.
        (300, 7, 500),
        (900, 301, 157),
    ];
    for (d, g, o) in small.chain(large) {
        for case in cases(d, g, o) {
            let (w, state) = train_factored(&case, 2);
            let (_, expected): (_, Outcome<f32>) = evaluate(&case, 2);
            assert_eq!(w, expected.weight, "{case:?}");
            for (k, tensor) in state.iter().enumerate() {
                let expected = expected.state.iter().map(|state| state[k]);
                assert!(tensor.iter().copied().eq(expected), "{case:?}");
            }
        }
    }
}

#[test]
fn the_same_bits_for_any_threads() {
    let pools = [1, 2, 3].map(|threads| {
        ThreadPoolBuilder::new()
            .num_threads(threads)
            .build()
            .unwrap()
    });
    for case in cases(700, 9, 500).chain(cases(1201, 301, 157)) {
        let runs = pools.each_ref().map(|pool| {
            pool.install(|| {
                let (w, state) = train_factored(&case, 2);
                let norm = norm(&case, &case.gradient(1));
                (w, state, norm.to_bits())
            })
        });
        assert!(runs.iter().all(|run| *run == runs[0]), "{case:?}");
    }
}

/// Without epsilon, |v| and √s are all that Adam divides by: a group moves, for each output, by one number,
/// along the signs of the direction.
#[test]
fn without_epsilon_a_group_moves_by_one_number() {
    for last in [false, true] {
        for shared in [false, true] {
            let case = Case {
                optimizer: adam(0.0),
                features: 23,
                groups: 3,
                outputs: 7,
                features_last: last,
                shared,
            };
            let mut direction = case.direction();
            direction.iter_mut().filter(|v| **v == 0.0).for_each(|v| {
                *v = -0.1;
            });
            let factor = case.factor(&direction);
            let mut state = vec![vec![0f32; 21]; 2];
            for number in 1..=5 {
                // From zero, the new weight is the update. Normal numbers only, here.
                let mut w = vec![0f32; 23 * 7];
                let len = |i: u64| random::normal(9, number, i) as f32;
                let gradient: Vec<f32> = (0..21).map(len).collect();
                let (step, mut state) = (case.step(number), views(&mut state));
                case.optimizer
                    .update_factored(&step, &mut w, &factor, &gradient, &mut state)
                    .unwrap();
                let mut numbers = [None; 21];
                for (&(v, p), w) in case.places().iter().zip(&w) {
                    let along = f64::from(w * direction[v].signum());
                    let first: f64 = *numbers[p].get_or_insert(along);
                    // v m, |v| √s, the quotient, and the product with the rate: each update has four
                    // roundings that others do not share, so that two differ by eight, and by less than
                    // one more for their products.
                    let bound = 9.0 * 2f64.powi(-24) * first.abs();
                    assert!((along - first).abs() <= bound, "{along} {first}");
                    assert!(*w != 0.0);
                }
            }
        }
    }
}

#[test]
fn nothing_over_nothing_is_no_update() {
    for case in cases(9, 2, 4) {
        let (mut w, direction) = (case.start(), vec![0f32; 10]);
        let factor = case.factor(&direction[..if case.shared { 5 } else { 10 }]);
        let mut state = vec![vec![0f32; 8]; case.optimizer.state().len()];
        let (step, mut state) = (case.step(1), views(&mut state));
        case.optimizer
            .update_factored(&step, &mut w, &factor, &[0.0; 8], &mut state)
            .unwrap();
        assert!(w.iter().all(|w| w.is_finite()), "{case:?}");
    }
}

/// [`factored_sum_of_squares`] with the case's direction.
fn norm(case: &Case, gradient: &[f32]) -> f64 {
    factored_sum_of_squares(&case.factor(&case.direction()), gradient)
}

#[test]
fn norms() {
    let sizes = [[50, 20, 7], [3000, 5, 90], [40, 37, 3000], [260, 33, 1100]];
    for [d, g, o] in SIZES.into_iter().chain(sizes) {
        for case in cases(d, g, o).take(4) {
            let (gradient, direction) = (case.gradient(1), case.direction());
            let found = norm(&case, &gradient);
            let products = case.places().into_iter().map(|(v, p)| {
                // Exact: two significands of 24 bits.
                f64::from(direction[v]) * f64::from(gradient[p])
            });
            let n = (d * o) as f64;
            let exact: f64 = products.map(|x| x * x).sum();
            // All terms are positive: each order, and each place of the factors, is within n + 4 roundings.
            let tolerance = exact * (n + 4.0) * f64::EPSILON;
            assert!((found - exact).abs() <= tolerance, "{case:?}");
            // In single precision each product is rounded, and then squared. Those below the normal
            // numbers, by 2⁻¹⁵⁰ at most, from less than 2⁻¹²⁶, count for nothing beside that.
            let unit = 2f64.powi(-24);
            let tolerance = tolerance + exact * (2.0 * unit + unit * unit) + n * 2f64.powi(-250);
            let expanded = sum_of_squares(&expand(&case, &gradient));
            assert!((found - expanded).abs() <= tolerance, "{case:?}");
        }
    }
}

/// A short group counts with its first entries, and an empty one not at all.
#[test]
fn what_no_feature_belongs_to_does_not_count() {
    fn factor(direction: &[f32], last: bool) -> Factor<'_> {
        Factor {
            direction,
            groups: 4,
            features: 5,
            outputs: 1,
            features_last: last,
        }
    }
    for last in [false, true] {
        let shared = factor(&[3.0, 4.0], last);
        let gradient = [1.0, 10.0, 100.0, f32::INFINITY];
        let expected = 25.0 + 2500.0 + 9.0e4;
        assert_eq!(factored_sum_of_squares(&shared, &gradient), expected);
        let each = [3.0, 4.0, 3.0, 4.0, 3.0, f32::NAN, f32::NAN, f32::NAN];
        let each = factor(&each, last);
        assert_eq!(factored_sum_of_squares(&each, &gradient), expected);
        let step = Step {
            number: 1,
            learning_rate: 1.0,
            gradient_scale: 1.0,
        };
        for factor in [shared, each] {
            let mut w = [0f32; 5];
            sgd(0.0, false, 0.0)
                .update_factored(&step, &mut w, &factor, &gradient, &mut [])
                .unwrap();
            assert_eq!(w, [-3.0, -4.0, -30.0, -40.0, -300.0]);
        }
    }
}
