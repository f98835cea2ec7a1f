//! GaLore and FLORA against their formulas in double precision, and what must not change their bits.
#![allow(clippy::unwrap_used)]

mod formula;

use formula::{Expected, flora, galore, gradient, start};
use rayon::ThreadPoolBuilder;
use velora_runtime::session::optimizer::{Optimizer, OptimizerError, Parameter, Step};

/// Settings at which the formulas are well conditioned: Adam's quotient is flat where epsilon is large.
const fn galore_of(rank: u64, update_period: u64) -> Optimizer {
    Optimizer::GaLore {
        rank,
        update_period,
        scale: 0.25,
        betas: [0.9, 0.99],
        epsilon: 0.1,
        weight_decay: 0.1,
    }
}

const fn flora_of(rank: u64, update_period: u64) -> Optimizer {
    Optimizer::Flora {
        rank,
        update_period,
        beta: 0.9,
        weight_decay: 0.1,
        seed: 7,
    }
}

const RATE: f64 = 0.01;
/// As clipping and accumulation make it.
const SCALE: f64 = 0.75;

fn step(number: u64) -> Step {
    Step {
        number,
        learning_rate: RATE,
        gradient_scale: SCALE as f32,
    }
}

/// A weight, the tensors of its state, and the scratch, which holds NaN at first.
struct Trained {
    weight: Vec<f32>,
    state: Vec<Vec<f32>>,
}

fn train(optimizer: &Optimizer, shape: &[usize], projected: bool, steps: u64) -> Trained {
    let parameter = Parameter {
        name: "w",
        shape,
        projected,
    };
    let mut state = zeros(optimizer, shape, projected);
    let mut scratch = vec![f32::NAN; optimizer.scratch(shape, projected)];
    let mut weight = start(shape);
    for number in 1..=steps {
        let mut gradient = gradient(shape, number);
        let mut state: Vec<&mut [f32]> = views(&mut state);
        optimizer
            .update_shaped(
                &step(number),
                &parameter,
                &mut weight,
                &mut gradient,
                &mut state,
                &mut scratch,
            )
            .unwrap();
    }
    Trained { weight, state }
}

/// State before the first step.
fn zeros(optimizer: &Optimizer, shape: &[usize], projected: bool) -> Vec<Vec<f32>> {
    let layout = optimizer.layout(shape, projected).into_iter();
    let zeros = layout.map(|state| vec![0.0; state.shape.iter().product()]);
    zeros.collect()
}

fn views(state: &mut [Vec<f32>]) -> Vec<&mut [f32]> {
    state.iter_mut().map(|s| &mut s[..]).collect()
}

#[track_caller]
fn assert_near(shape: &[usize], found: &Trained, expected: &Expected, what: &str) {
    let (mut moved, mut worst) = (0f64, 0f64);
    let exact = expected.weight.iter().zip(&expected.bound);
    for ((w, start), (exact, bound)) in { found.weight.iter().zip(start(shape)) }.zip(exact) {
        let error = (f64::from(*w) - exact).abs();
        assert!(error <= *bound, "{what}: {w} {exact} ± {bound:e}");
        moved += (exact - f64::from(start)).powi(2);
        worst = worst.max(*bound);
    }
    // A bound that says nothing would be far above what training does.
    let moved = (moved / found.weight.len() as f64).sqrt();
    assert!(
        worst < 0.05 * moved,
        "{what}: ± {worst:e}, and {moved:e} moved"
    );
}

/// Both orientations, a square, one side more than four times the other, and a vector.
const SHAPES: [&[usize]; 5] = [&[24, 40], &[40, 24], &[30, 30], &[100, 17], &[50]];

/// In twelve steps with period 5, singular vectors change in steps 1, 6 and 11, projections after steps 5 and 10.
/// Where they change in each step, errors grow with every transfer of the moment: four steps.
#[test]
fn formulas_in_double_precision() {
    for shape in SHAPES {
        for projected in [true, false] {
            for (period, steps) in [(1, 4), (5, 12), (100, 12)] {
                let what = format!("{shape:?}, projected {projected}, period {period}");
                let optimizer = galore_of(6, period);
                let found = train(&optimizer, shape, projected, steps);
                let expected = galore(&optimizer, shape, projected, steps);
                assert_near(shape, &found, &expected, &format!("GaLore of {what}"));
                let optimizer = flora_of(6, period);
                let found = train(&optimizer, shape, projected, steps);
                let expected = flora(&optimizer, shape, projected, steps);
                assert_near(shape, &found, &expected, &format!("FLORA of {what}"));
            }
        }
    }
}

/// The first step of FLORA's update has a root mean square of 1 − β of the learning rate's, before clipping;
/// with β = 0 it is the learning rate.
#[test]
fn steps_have_the_length_of_the_learning_rate() {
    let optimizer = Optimizer::Flora {
        rank: 6,
        update_period: 10,
        beta: 0.0,
        weight_decay: 0.0,
        seed: 1,
    };
    for shape in SHAPES {
        let (before, after) = (start(shape), train(&optimizer, shape, true, 1).weight);
        let squares = { before.iter().zip(&after) }.map(|(a, b)| f64::from(a - b).powi(2));
        let rms = (squares.sum::<f64>() / before.len() as f64).sqrt();
        // Rows and columns together are not the squares themselves: a tenth is theirs, and clipping's.
        assert!(
            rms <= RATE * (1.0 + 1e-3) && rms > 0.9 * RATE,
            "{shape:?}: {rms}"
        );
    }
}

#[test]
fn threads_do_not_change_bits() {
    let shapes: [&[usize]; 3] = [&[300, 500], &[700, 200], &[70_000]];
    for optimizer in [galore_of(32, 2), flora_of(32, 2)] {
        for shape in shapes {
            for projected in [true, false] {
                let by = |threads| {
                    let pool = ThreadPoolBuilder::new().num_threads(threads).build();
                    let Trained { weight, state } = pool
                        .unwrap()
                        .install(|| train(&optimizer, shape, projected, 3));
                    let all = [vec![weight], state].concat().concat();
                    all.into_iter().map(f32::to_bits).collect::<Vec<u32>>()
                };
                let one = by(1);
                for threads in [2, 5] {
                    assert!(one == by(threads), "{optimizer:?} {shape:?} {threads}");
                }
            }
        }
    }
}

/// What is drawn depends on the seed and on the parameter's name.
#[test]
fn projections_are_those_of_seed_and_name() {
    let shape = [24, 40];
    let moment = |optimizer: Optimizer, name| {
        let parameter = Parameter {
            name,
            shape: &shape,
            projected: true,
        };
        let mut state = zeros(&optimizer, &shape, true);
        let mut views: Vec<&mut [f32]> = views(&mut state);
        let mut scratch = vec![0.0; optimizer.scratch(&shape, true)];
        let (mut w, mut g) = (start(&shape), gradient(&shape, 1));
        optimizer
            .update_shaped(
                &step(1),
                &parameter,
                &mut w,
                &mut g,
                &mut views,
                &mut scratch,
            )
            .unwrap();
        state.swap_remove(0)
    };
    let seeded = |seed| Optimizer::Flora {
        rank: 6,
        update_period: 10,
        beta: 0.9,
        weight_decay: 0.0,
        seed,
    };
    let first = moment(seeded(1), "a");
    assert_eq!(first, moment(seeded(1), "a"));
    assert_ne!(first, moment(seeded(2), "a"));
    assert_ne!(first, moment(seeded(1), "b"));
}

#[test]
fn layouts() {
    let shapes = |optimizer: Optimizer, shape: &[usize], projected| {
        let layout = optimizer.layout(shape, projected);
        let named = layout.into_iter().map(|state| (state.name, state.shape));
        named.collect::<Vec<_>>()
    };
    let galore = galore_of(4, 1);
    let moments = |shape: &[usize]| ["exp_avg", "exp_avg_sq"].map(|name| (name, shape.to_vec()));
    let projected = |side, shape: &[usize]| {
        let [mean, square] = moments(shape);
        vec![("projector", vec![4, side]), mean, square]
    };
    assert_eq!(shapes(galore, &[5, 9], true), projected(5, &[4, 9]));
    assert_eq!(shapes(galore, &[9, 5], true), projected(5, &[9, 4]));
    assert_eq!(shapes(galore, &[9, 5], false), moments(&[9, 5]));
    // A side of the rank saves nothing.
    assert_eq!(shapes(galore, &[9, 4], true), moments(&[9, 4]));
    assert_eq!(shapes(galore, &[3, 5, 9], true), moments(&[3, 5, 9]));
    let flora = flora_of(4, 1);
    let factored = |shape: &[usize], mean: &[usize]| {
        let row = ("exp_avg_sq_row", vec![shape[0]]);
        let column = ("exp_avg_sq_col", vec![shape[1]]);
        vec![("exp_avg", mean.to_vec()), row, column]
    };
    assert_eq!(shapes(flora, &[5, 9], true), factored(&[5, 9], &[4, 9]));
    assert_eq!(shapes(flora, &[9, 5], true), factored(&[9, 5], &[9, 4]));
    assert_eq!(shapes(flora, &[9, 4], true), factored(&[9, 4], &[9, 4]));
    assert_eq!(shapes(flora, &[9, 5], false), factored(&[9, 5], &[9, 5]));
    assert_eq!(shapes(flora, &[9], true), moments(&[9]));
}

#[test]
fn what_does_not_fit_is_refused() {
    for optimizer in [galore_of(4, 1), flora_of(4, 1)] {
        let shape = [8, 9];
        let parameter = Parameter {
            name: "w",
            shape: &shape,
            projected: true,
        };
        let try_with = |weight: usize, gradient: f32, lost: usize, scratch: usize| {
            let mut state = zeros(&optimizer, &shape, true);
            let mut views: Vec<&mut [f32]> = views(&mut state);
            let kept = views.len() - lost;
            let (mut w, mut g) = (vec![1.0; weight], vec![gradient; 72]);
            let mut scratch = vec![0.0; scratch];
            let states = &mut views[..kept];
            let done =
                optimizer.update_shaped(&step(1), &parameter, &mut w, &mut g, states, &mut scratch);
            (done, w, state)
        };
        let enough = optimizer.scratch(&shape, true);
        assert_eq!(try_with(72, 1.0, 0, enough).0, Ok(()));
        let length = |what, found, expected| OptimizerError::Length {
            what,
            found,
            expected,
        };
        let scratch = length("the scratch", enough - 1, enough);
        assert_eq!(try_with(72, 1.0, 0, enough - 1).0, Err(scratch));
        let weight = length("the parameter", 71, 72);
        assert_eq!(try_with(71, 1.0, 0, enough).0, Err(weight));
        let states = OptimizerError::States {
            found: 2,
            expected: 3,
        };
        assert_eq!(try_with(72, 1.0, 1, enough).0, Err(states));
        if let Optimizer::GaLore { .. } = optimizer {
            for nothing in [f32::NAN, f32::INFINITY] {
                let (done, w, state) = try_with(72, nothing, 0, enough);
                assert_eq!(done, Err(OptimizerError::NotFinite));
                assert!(w.iter().all(|&w| w == 1.0));
                assert!(state.concat().iter().all(|&s| s == 0.0));
            }
        }
        let name = optimizer.name();
        let whole = OptimizerError::Whole { optimizer: name };
        assert_eq!(optimizer.check_factored(), Err(whole));
        let shapeless = OptimizerError::Shapeless { optimizer: name };
        let mut state: [&mut [f32]; 0] = [];
        let done = optimizer.update(&step(1), &mut [], &[], &mut state);
        assert!(done == Err(shapeless) || matches!(done, Err(OptimizerError::States { .. })));
    }
    for (optimizer, problem) in [
        (galore_of(0, 1), "the rank is 0, expected at least 1"),
        (
            galore_of(1, 0),
            "the update period is 0, expected at least 1",
        ),
        (flora_of(0, 1), "the rank is 0, expected at least 1"),
        (
            flora_of(1, 0),
            "the update period is 0, expected at least 1",
        ),
    ] {
        assert_eq!(optimizer.check().unwrap_err().to_string(), problem);
    }
}

/// A gradient that is zero everywhere has any singular vectors, and changes nothing.
#[test]
fn gradients_of_zeros_change_nothing() {
    for optimizer in [galore_of(4, 1), flora_of(4, 1)] {
        for shape in [[8, 12], [12, 8]] {
            let parameter = Parameter {
                name: "w",
                shape: &shape,
                projected: true,
            };
            let mut state = zeros(&optimizer, &shape, true);
            let mut views: Vec<&mut [f32]> = views(&mut state);
            let mut scratch = vec![0.0; optimizer.scratch(&shape, true)];
            let (mut w, mut g) = (vec![0.5; 96], vec![0.0; 96]);
            optimizer
                .update_shaped(
                    &step(1),
                    &parameter,
                    &mut w,
                    &mut g,
                    &mut views,
                    &mut scratch,
                )
                .unwrap();
            let kept = 0.5 * (1.0 - RATE * 0.1) as f32;
            assert!(w.iter().all(|&w| w == kept), "{optimizer:?}: {w:?}");
        }
    }
}
