//! The generator and the interpreter, judged by each other: the backward half that the rules make is the
//! derivative of the forward half.
#![allow(clippy::unwrap_used)]

use proptest::prelude::*;
use proptest::test_runner::{Config, RngSeed};
use std::collections::HashMap;
use velora_graph::verify::verify_model;
use velora_testgen::interpret::{Precision, Tensor, run};
use velora_testgen::{Generated, Random, chain, random};

/// The loss, and its derivative along a direction by the graph's own gradients.
fn step(
    made: &Generated,
    inputs: &HashMap<String, Tensor>,
    along: &HashMap<String, Vec<f64>>,
) -> (f64, f64) {
    let values = run(&made.model, inputs, Precision::Double);
    let mut slope = 0.0;
    for (parameter, gradient) in &made.gradients {
        let products = values[gradient].f().iter().zip(&along[parameter]);
        slope += products.map(|(g, u)| g * u).sum::<f64>();
    }
    (values[&made.loss].f()[0], slope)
}

fn check(made: &Generated, seed: u64) {
    let inputs = made.data(seed, 2);
    let mut random = Random::new(seed ^ 1);
    let along: HashMap<String, Vec<f64>> = (made.gradients.keys())
        .map(|p| {
            (
                p.clone(),
                inputs[p].f().iter().map(|_| random.entry()).collect(),
            )
        })
        .collect();
    // Small enough that no kink of a ReLU lies in between, large enough for 64 bits.
    let h = 1e-6;
    let moved = |h: f64| {
        let mut inputs = inputs.clone();
        for (parameter, direction) in &along {
            let old = &inputs[parameter];
            let entries = old.f().iter().zip(direction).map(|(x, u)| x + h * u);
            let new = Tensor::floats(&old.shape.clone(), entries.collect());
            inputs.insert(parameter.clone(), new);
        }
        step(made, &inputs, &along).0
    };
    let (_, slope) = step(made, &inputs, &along);
    let (right, left) = (moved(h), moved(-h));
    let difference = (right - left) / (2.0 * h);
    // Cancellation leaves 2^-52 |loss| / h; constants in 32 bits are off by 2^-24.
    let tolerance = 1e-8 * (right.abs() + 1.0) + 1e-6 * (slope.abs() + difference.abs()) + 1e-7;
    assert!(
        (slope - difference).abs() <= tolerance,
        "slope {slope}, difference {difference}"
    );
}

proptest! {
    #![proptest_config(Config { cases: 300, rng_seed: RngSeed::Fixed(1), failure_persistence: None, ..Config::default() })]
    #[test]
    fn backward_halves_are_derivatives(bytes in prop::collection::vec(any::<u8>(), 0..160), seed: u64) {
        let made = random::graph(&bytes);
        if let Err(found) = verify_model(&made.model) {
            panic!("{}", found.listing(&made.model));
        }
        check(&made, seed);
    }
}

#[test]
fn chains_have_derivatives() {
    check(&chain::mlp(3, 4, "gelu"), 5);
    check(&chain::transformer(2, 4, 3), 6);
}

/// 16 decimals of erf from tables (Abramowitz and Stegun, table 7.1).
#[test]
fn erf_is_that_of_tables() {
    let x = velora_graph::onnx::schema::NodeProto {
        input: vec!["x".into()],
        output: vec!["y".into()],
        op_type: Some("Erf".into()),
        ..Default::default()
    };
    let graph = velora_graph::onnx::schema::GraphProto {
        node: vec![x],
        ..Default::default()
    };
    let model = velora_graph::onnx::schema::ModelProto {
        graph: Some(graph),
        ..Default::default()
    };
    let inputs = HashMap::from([(
        "x".to_owned(),
        Tensor::floats(&[4], vec![0.0, 0.5, 1.0, -2.0]),
    )]);
    let values = run(&model, &inputs, Precision::Double);
    let expected = [0.0, 0.520_499_877_8, 0.842_700_792_9, -0.995_322_265_0];
    for (found, expected) in values["y"].f().iter().zip(expected) {
        assert!((found - expected).abs() < 1e-10, "{found} {expected}");
    }
}
