//! Optimisers, gradients' norms and learning rates, against PyTorch and against formulas in double
//! precision.
// Figures stand as PyTorch prints them.
#![allow(clippy::unwrap_used, clippy::excessive_precision)]

use rayon::ThreadPoolBuilder;
use velora_runtime::random;
use velora_runtime::session::gradient::{clip_coefficient, global_norm, sum_of_squares};
use velora_runtime::session::optimizer::{Optimizer, OptimizerError, Step};
use velora_runtime::session::schedule::{Decay, Schedule};

const SGD: Optimizer = Optimizer::Sgd {
    momentum: 0.0,
    nesterov: false,
    weight_decay: 0.0,
};

fn sgd(momentum: f64, nesterov: bool, weight_decay: f64) -> Optimizer {
    Optimizer::Sgd {
        momentum,
        nesterov,
        weight_decay,
    }
}

fn adam(betas: [f64; 2], weight_decay: f64) -> Optimizer {
    Optimizer::Adam {
        betas,
        epsilon: 1e-8,
        weight_decay,
    }
}

fn adamw(weight_decay: f64) -> Optimizer {
    Optimizer::AdamW {
        betas: [0.9, 0.999],
        epsilon: 1e-8,
        weight_decay,
    }
}

fn step(number: u64) -> Step {
    Step {
        number,
        learning_rate: 0.1,
        gradient_scale: 1.0,
    }
}

/// Runs steps from zero state; `gradient` gives element `i` of step `t`.
fn train(
    optimizer: &Optimizer,
    mut w: Vec<f32>,
    steps: u64,
    gradient: impl Fn(u64, usize) -> f32,
) -> (Vec<f32>, Vec<Vec<f32>>) {
    let mut state = vec![vec![0f32; w.len()]; optimizer.state().len()];
    for t in 1..=steps {
        let g: Vec<f32> = (0..w.len()).map(|i| gradient(t, i)).collect();
        let mut views: Vec<&mut [f32]> = state.iter_mut().map(|s| &mut s[..]).collect();
        optimizer.update(&step(t), &mut w, &g, &mut views).unwrap();
    }
    (w, state)
}

/// The figures are the output of `data/make_optimizer_figures.py` with PyTorch 2.15.0 on a CPU.
#[test]
fn five_steps_of_pytorch() {
    #[rustfmt::skip]
    let figures: [(Optimizer, [f32; 7]); 7] = [
        (SGD, [-0.725000024, -0.5, -0.274999976, 0.0874999985, 0.174999982, 0.537500024, 0.762500048]),
        (sgd(0.0, false, 0.25), [-0.636096537, -0.436333597, -0.243194237, 0.0841773599, 0.146440312, 0.47707969, 0.670388758]),
        (sgd(0.9, false, 0.25), [-0.49058941, -0.46221143, -0.250183612, 0.182005242, 0.0728832409, 0.422411054, 0.596787393]),
        (sgd(0.9, true, 0.0), [-0.696748972, -0.62215811, -0.35499987, 0.263622105, 0.0769629925, 0.605371237, 0.851368248]),
        (adam([0.8, 0.99], 0.0), [-0.649126828, -0.644156575, -0.43804267, 0.238960505, 0.126868784, 0.522050023, 0.91116339]),
        (adam([0.9, 0.999], 0.25), [-0.474918693, -0.53973794, -0.373381078, 0.220828712, 0.0852294862, 0.324524134, 0.754258335]),
        (adamw(0.25), [-0.562266111, -0.591208339, -0.403498173, 0.23118329, 0.102420002, 0.456249177, 0.832579195]),
    ];
    let start: Vec<f32> = (0..7).map(|i| i as f32 * 0.25 - 0.75).collect();
    let gradient = |t: u64, i: usize| ((i * 7 + t as usize * 3) % 11) as f32 / 8.0 - 0.625;
    for (optimizer, expected) in figures {
        let (w, _) = train(&optimizer, start.clone(), 5, gradient);
        for (w, expected) in w.iter().zip(expected) {
            // PyTorch fuses some multiplications with additions. Numbers here are below 1, each of
            // five steps rounds ten times at most, by 2⁻²⁵ at most.
            assert!(
                (w - expected).abs() <= 50.0 * 2f32.powi(-25),
                "{optimizer:?}: {w} {expected}"
            );
        }
    }
}

/// The formulas as the papers have them, in double precision.
fn reference(optimizer: &Optimizer, w: &mut f64, g: f64, state: &mut [f64; 2], t: u64) {
    let rate = 0.1;
    match *optimizer {
        Optimizer::Sgd {
            momentum,
            nesterov,
            weight_decay,
        } => {
            let g = g + weight_decay * *w;
            state[0] = momentum * state[0] + g;
            *w -= rate
                * if nesterov {
                    g + momentum * state[0]
                } else {
                    state[0]
                };
        }
        Optimizer::Adam {
            betas,
            epsilon,
            weight_decay,
        }
        | Optimizer::AdamW {
            betas,
            epsilon,
            weight_decay,
        } => {
            let decoupled = matches!(optimizer, Optimizer::AdamW { .. });
            let g = if decoupled { g } else { g + weight_decay * *w };
            if decoupled {
                *w -= rate * weight_decay * *w;
            }
            state[0] = betas[0] * state[0] + (1.0 - betas[0]) * g;
            state[1] = betas[1] * state[1] + (1.0 - betas[1]) * g * g;
            let corrected = [0, 1].map(|i| state[i] / (1.0 - betas[i].powi(t as i32)));
            *w -= rate * corrected[0] / (corrected[1].sqrt() + epsilon);
        }
        // `compressing_optimizer` has theirs.
        Optimizer::GaLore { .. } | Optimizer::Flora { .. } => panic!("{optimizer:?}"),
    }
}

#[test]
fn formulas_in_double_precision() {
    let n = 1000;
    let steps = 50;
    let start: Vec<f32> = (0..n).map(|i| random::normal(1, 1, i) as f32).collect();
    let gradient = |t: u64, i: usize| random::normal(1, 2, t * n + i as u64) as f32;
    for optimizer in [
        SGD,
        sgd(0.0, false, 0.01),
        sgd(0.9, false, 0.0),
        sgd(0.5, true, 0.1),
        adam([0.9, 0.999], 0.0),
        adam([0.3, 0.9], 0.1),
        adamw(0.0),
        adamw(0.5),
    ] {
        let (w, _) = train(&optimizer, start.clone(), steps, gradient);
        let mut largest = 0f64;
        for (i, &w) in w.iter().enumerate() {
            let (mut exact, mut state, mut extent) = (f64::from(start[i]), [0.0; 2], 1f64);
            for t in 1..=steps {
                reference(&optimizer, &mut exact, gradient(t, i).into(), &mut state, t);
                extent = extent.max(exact.abs()).max(state[0].abs());
            }
            largest = largest.max((f64::from(w) - exact).abs() / extent);
        }
        // A step rounds about ten times. Momentum 0.9 adds up the errors of ten steps.
        let tolerance = (steps * 10) as f64 * 2f64.powi(-24);
        assert!(largest < tolerance, "{optimizer:?}: {largest:e}");
        assert!(
            largest > 0.0,
            "{optimizer:?}: single precision cannot be exact"
        );
    }
}

/// Lengths around the borders of vectors and chunks, any number of threads, and each element alone: the
/// same bits.
#[test]
fn the_same_bits_for_any_threads_and_any_place() {
    let n = (1 << 16) + 21;
    let start: Vec<f32> = (0..n).map(|i| random::normal(3, 1, i) as f32).collect();
    let gradient = |t: u64, i: usize| random::normal(3, 2, t * n + i as u64) as f32;
    let pool = |threads| {
        ThreadPoolBuilder::new()
            .num_threads(threads)
            .build()
            .unwrap()
    };
    let (one, three) = (pool(1), pool(3));
    for optimizer in [
        SGD,
        sgd(0.9, true, 0.1),
        adam([0.9, 0.999], 0.1),
        adamw(0.1),
    ] {
        let run = |range: std::ops::Range<usize>| {
            let first = range.start;
            train(&optimizer, start[range].to_vec(), 2, |t, i| {
                gradient(t, i + first)
            })
        };
        let all = one.install(|| run(0..n as usize));
        assert_eq!(all, three.install(|| run(0..n as usize)));
        for (from, length) in [
            (0, 0),
            (5, 1),
            (16383, 2),
            (7, 15),
            (7, 16),
            (7, 31),
            (1, 16385),
        ] {
            let (w, state) = run(from..from + length);
            assert_eq!(w, all.0[from..from + length]);
            for (part, whole) in state.iter().zip(&all.1) {
                assert_eq!(part[..], whole[from..from + length]);
            }
        }
    }
    let g: Vec<f32> = (0..n).map(|i| gradient(1, i as usize)).collect();
    let sums = [&one, &three].map(|pool| pool.install(|| sum_of_squares(&g)).to_bits());
    assert_eq!(sums[0], sums[1]);
}

#[test]
fn the_gradient_is_scaled_before_all_else() {
    for optimizer in [sgd(0.9, true, 0.1), adam([0.9, 0.999], 0.1), adamw(0.1)] {
        let run = |scale: f32| {
            let mut w = vec![1f32, -2.0, 0.5];
            let g: Vec<f32> = [0.25f32, 3.0, -1.0].iter().map(|g| g / scale).collect();
            let mut state = vec![vec![0f32; 3]; optimizer.state().len()];
            let mut views: Vec<&mut [f32]> = state.iter_mut().map(|s| &mut s[..]).collect();
            let step = Step {
                gradient_scale: scale,
                ..step(1)
            };
            optimizer.update(&step, &mut w, &g, &mut views).unwrap();
            (w, state)
        };
        // A power of two: scaling is exact.
        assert_eq!(run(0.25), run(1.0));
        assert_ne!(run(1.0).0, [1.0, -2.0, 0.5]);
    }
}

#[test]
fn what_is_refused() {
    let error = adamw(0.1).update(&step(1), &mut [0.0; 3], &[0.0; 2], &mut []);
    assert_eq!(
        error.unwrap_err().to_string(),
        "the gradient has 2 elements, but the parameter has 3"
    );
    let error = adamw(0.1).update(&step(1), &mut [0.0; 3], &[0.0; 3], &mut [&mut [0.0; 3]]);
    assert_eq!(
        error,
        Err(OptimizerError::States {
            found: 1,
            expected: 2
        })
    );
    let mut state: [&mut [f32]; 2] = [&mut [0.0; 3], &mut [0.0; 4]];
    let error = adamw(0.1).update(&step(1), &mut [0.0; 3], &[0.0; 3], &mut state);
    assert_eq!(
        error.unwrap_err().to_string(),
        "exp_avg_sq has 4 elements, but the parameter has 3"
    );
    assert_eq!(
        adam([0.9, 1.0], 0.0).check().unwrap_err().to_string(),
        "the second beta is 1, expected at least 0 and below 1"
    );
    for optimizer in [
        sgd(0.0, true, 0.0),
        sgd(-0.1, false, 0.0),
        sgd(0.1, true, f64::NAN),
    ] {
        assert!(optimizer.check().is_err(), "{optimizer:?}");
    }
    assert!(adamw(0.0).check().is_ok() && SGD.check().is_ok());
}

/// The norm and the clipped gradients that PyTorch 2.15.0 computes (`data/make_optimizer_figures.py`).
#[test]
fn clipping() {
    let gradients = [vec![0f32, 1.0, 2.0, 3.0, 4.0], vec![-7f32, -6.0, -5.0]];
    let norm = global_norm(gradients.iter().map(|g| sum_of_squares(g)));
    assert_eq!(norm, 140f64.sqrt());
    let scale = clip_coefficient(norm, 2.5) as f32;
    // One rounding of the coefficient and one of the product, on each side.
    assert!((4.0 * scale - 0.845_154_17).abs() <= 4.0 * 2f32.powi(-25));
    assert!((-7.0 * scale + 1.479_019_8).abs() <= 8.0 * 2f32.powi(-25));
    assert_eq!(clip_coefficient(norm, 12.0), 1.0);
    assert_eq!(clip_coefficient(0.0, 1.0), 1.0);
    assert_eq!(clip_coefficient(f64::INFINITY, 1.0), 0.0);
    assert!(clip_coefficient(f64::NAN, 1.0).is_nan());
}

#[test]
fn sums() {
    for n in [0u64, 1, 15, 16, 17, 16384, 16385, 50_000] {
        let g: Vec<f32> = (0..n).map(|i| random::normal(4, 4, i) as f32).collect();
        let plain: f64 = g.iter().map(|&g| f64::from(g) * f64::from(g)).sum();
        // All terms are positive: each order is within n roundings.
        let tolerance = plain * n as f64 * f64::EPSILON;
        assert!((sum_of_squares(&g) - plain).abs() <= tolerance, "{n}");
    }
    // Squares that single precision cannot hold.
    assert_eq!(global_norm([sum_of_squares(&[3e30f32, 4e30])]) as f32, 5e30);
}

#[test]
fn learning_rates() {
    // CosineAnnealingLR of PyTorch 2.15.0 (`data/make_optimizer_figures.py`).
    #[rustfmt::skip]
    let figures = [0.5, 0.4847759065022573, 0.4414213562373095, 0.37653668647301797, 0.30000000000000004,
        0.22346331352698207, 0.1585786437626905, 0.11522409349774265, 0.1];
    let cosine = |warmup| Schedule {
        peak: 0.5,
        warmup,
        decay: Decay::Cosine {
            total: warmup + 8,
            floor: 0.1,
        },
    };
    for warmup in [0, 4] {
        for (step, expected) in (warmup + 1..).zip(figures) {
            // PyTorch goes from each rate to the next by a quotient.
            assert!((cosine(warmup).learning_rate(step) - expected).abs() < 1e-14);
        }
        assert_eq!(cosine(warmup).learning_rate(1000), 0.1);
    }
    let rates: Vec<f64> = (1..6).map(|step| cosine(4).learning_rate(step)).collect();
    assert_eq!(rates, [0.125, 0.25, 0.375, 0.5, 0.5]);
    assert_eq!(Schedule::constant(0.3).learning_rate(1), 0.3);
    assert_eq!(Schedule::constant(0.3).learning_rate(u64::MAX), 0.3);
    // Nothing is left to fall: no division by zero.
    let none = Schedule {
        peak: 0.5,
        warmup: 9,
        decay: Decay::Cosine {
            total: 0,
            floor: 0.1,
        },
    };
    assert_eq!(none.learning_rate(10), 0.5);
    assert_eq!(none.learning_rate(11), 0.1);
}
