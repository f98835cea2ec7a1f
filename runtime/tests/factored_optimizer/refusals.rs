//! What is refused, and that nothing is written then.

use super::{ADAMW, OPTIMIZERS, adam, sgd};
use velora_runtime::session::gradient::factored_sum_of_squares;
use velora_runtime::session::optimizer::{Factor, Optimizer, OptimizerError, Step};

const STEP: Step = Step {
    number: 1,
    learning_rate: 0.1,
    gradient_scale: 1.0,
};

/// Seven features in three groups of three, three and one.
fn factor(direction: &[f32], last: bool) -> Factor<'_> {
    Factor {
        direction,
        groups: 3,
        features: 7,
        outputs: 2,
        features_last: last,
    }
}

/// Updates with tensors of these lengths.
fn update(factor: &Factor<'_>, [w, p, m, s]: [usize; 4]) -> Result<(), OptimizerError> {
    let (mut w, p) = (vec![1f32; w], vec![1f32; p]);
    let (mut m, mut s) = (vec![0f32; m], vec![0f32; s]);
    let result = ADAMW.update_factored(&STEP, &mut w, factor, &p, &mut [&mut m, &mut s]);
    let untouched = w.iter().all(|&w| w == 1.0) && m.iter().chain(&s).all(|&x| x == 0.0);
    assert_eq!(untouched, result.is_err());
    result
}

#[test]
fn lengths() {
    for last in [false, true] {
        for direction in [3, 9] {
            let direction = vec![1f32; direction];
            assert_eq!(update(&factor(&direction, last), [14, 6, 6, 6]), Ok(()));
        }
        for direction in [0, 1, 2, 4, 6, 7, 8, 10, 14] {
            let direction = vec![1f32; direction];
            let factor = factor(&direction, last);
            assert!(update(&factor, [14, 6, 6, 6]).is_err(), "{factor:?}");
            assert!(factored_sum_of_squares(&factor, &[1.0; 6]).is_nan());
        }
        let factor = factor(&[1.0; 3], last);
        let names = ["the parameter", "the gradient", "exp_avg", "exp_avg_sq"];
        for (i, what) in names.into_iter().enumerate() {
            let right = [14, 6, 6, 6];
            for found in [0, 1, right[i] - 1, right[i] + 1, 18, 3] {
                let (mut lengths, expected) = (right, right[i]);
                lengths[i] = found;
                let error = OptimizerError::FactoredLength {
                    what,
                    found,
                    expected,
                };
                assert_eq!(update(&factor, lengths), Err(error));
            }
        }
        assert!(factored_sum_of_squares(&factor, &[1.0; 5]).is_nan());
        let error = ADAMW.update_factored(&STEP, &mut [1.0; 14], &factor, &[1.0; 6], &mut []);
        let expected = OptimizerError::States {
            found: 0,
            expected: 2,
        };
        assert_eq!(error, Err(expected));
    }
    let error = update(&factor(&[1.0; 4], true), [14, 6, 6, 6]);
    assert_eq!(
        error.unwrap_err().to_string(),
        "the direction has 4 elements, but its factor says 3"
    );
}

#[test]
fn layouts() {
    let huge = usize::MAX;
    let layouts = [
        (0, 7, 2),
        (8, 7, 2),
        (0, 0, 2),
        (1, 0, 2),
        (1, huge, 2),
        (2, 3, huge),
        (3, huge, 1),
        (huge / 2 + 2, huge, 0),
    ];
    for (groups, features, outputs) in layouts {
        for features_last in [false, true] {
            let factor = Factor {
                direction: &[1.0; 3],
                groups,
                features,
                outputs,
                features_last,
            };
            for lengths in [[0; 4], [14, 6, 6, 6]] {
                assert!(update(&factor, lengths).is_err(), "{factor:?}");
            }
            assert!(factored_sum_of_squares(&factor, &[1.0; 6]).is_nan());
            assert!(factored_sum_of_squares(&factor, &[]).is_nan());
        }
    }
    let none = Factor {
        groups: 8,
        ..factor(&[1.0; 3], false)
    };
    assert_eq!(
        update(&none, [14, 6, 6, 6]).unwrap_err().to_string(),
        "8 groups of 7 features, 2 outputs: expected from 1 group to as many as features"
    );
}

/// No outputs are possible, and nothing is to be done.
#[test]
fn no_outputs() {
    for last in [false, true] {
        let factor = Factor {
            outputs: 0,
            ..factor(&[1.0; 3], last)
        };
        let state: &mut [&mut [f32]] = &mut [&mut [], &mut []];
        let result = ADAMW.update_factored(&STEP, &mut [], &factor, &[], state);
        assert_eq!(result, Ok(()));
        assert_eq!(factored_sum_of_squares(&factor, &[]), 0.0);
    }
}

#[test]
fn decay_that_enters_the_state() {
    let coupled = Optimizer::Adam {
        betas: [0.9, 0.999],
        epsilon: 1e-8,
        weight_decay: 0.5,
    };
    for optimizer in [coupled, sgd(0.9, false, 0.5), sgd(0.9, true, 0.5)] {
        let error = Err(OptimizerError::CoupledDecay { weight_decay: 0.5 });
        assert_eq!(optimizer.check_factored(), error);
        let (mut w, mut state) = ([1f32; 14], [[0f32; 6]; 2]);
        let [m, s] = &mut state;
        let state = &mut [&mut m[..], &mut s[..]][..optimizer.state().len()];
        let factor = factor(&[1.0; 3], false);
        let result = optimizer.update_factored(&STEP, &mut w, &factor, &[1.0; 6], state);
        assert_eq!(result, error);
        assert_eq!(w, [1.0; 14]);
    }
    assert_eq!(
        coupled.check_factored().unwrap_err().to_string(),
        "weight decay 0.5 is added to the gradient, so its mean is not the direction times a smaller mean: \
         use adamw, or no weight decay"
    );
    for optimizer in OPTIMIZERS.into_iter().chain([adam(0.0)]) {
        assert_eq!(optimizer.check_factored(), Ok(()));
    }
}
