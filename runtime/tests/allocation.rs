//! What happens in every step allocates nothing.
#![allow(clippy::unwrap_used)]

mod counting;

use std::sync::Mutex;

use counting::{allocations, both_steal, watch_pool};
use velora_graph::shapes::DataType;
use velora_runtime::data::Dataset;
use velora_runtime::data::batches::{Batches, Input, Last, Settings};
use velora_runtime::session::gradient::{
    clip_coefficient, factored_sum_of_squares, global_norm, sum_of_squares,
};
use velora_runtime::session::optimizer::{Factor, Optimizer, Parameter, Step};
use velora_runtime::tensor::Tensor;

/// All tests of the program count on one counter.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

#[test]
fn a_step_allocates_nothing() {
    let _alone = ONE_AT_A_TIME.lock().unwrap_or_else(|e| e.into_inner());
    const N: usize = 100_000;
    let dataset = Dataset {
        file: "d.npz".into(),
        arrays: [("x".to_owned(), Tensor::from_f32(&[100, 50], &[1.0; 5000]))].into(),
        metadata: Default::default(),
    };
    let input = Input {
        name: "x",
        data_type: DataType::FLOAT,
        shape: &[30, 50],
        axis: 0,
    };
    let settings = Settings {
        size: 30,
        last: Last::Drop,
        shuffle: Some(1),
    };
    let mut batches = Batches::new(&dataset, &[input], settings).unwrap();
    let mut place = vec![0u8; 30 * 50 * 4];
    let optimizer = Optimizer::AdamW {
        betas: [0.9, 0.999],
        epsilon: 1e-8,
        weight_decay: 0.1,
    };
    let (mut w, g) = (vec![1f32; N], vec![1f32; N]);
    let (mut m, mut v) = (vec![0f32; N], vec![0f32; N]);
    // Groups of 40 features, and of 4: both orientations, and both ways to sweep rows of features.
    let direction = [0.5f32; 40];
    let factors = [(40, 25, false), (40, 25, true), (4, 250, true)].map(|(each, groups, last)| {
        let (direction, features) = (&direction[..each], each * groups);
        Factor {
            direction,
            groups,
            features,
            outputs: N / features,
            features_last: last,
        }
    });
    let mut train = |steps: u64| {
        for number in 1..=steps {
            batches.copy(0, &mut place).unwrap();
            batches.advance();
            let step = Step {
                number,
                learning_rate: 0.1,
                gradient_scale: clip_coefficient(global_norm([sum_of_squares(&g)]), 1.0) as f32,
            };
            optimizer
                .update(&step, &mut w, &g, &mut [&mut m, &mut v])
                .unwrap();
            for factor in &factors {
                let small = factor.groups * factor.outputs;
                let norm = factored_sum_of_squares(factor, &g[..small]).sqrt();
                let step = Step {
                    gradient_scale: clip_coefficient(norm, 1.0) as f32,
                    ..step
                };
                let state = &mut [&mut m[..small], &mut v[..small]];
                optimizer
                    .update_factored(&step, &mut w, factor, &g[..small], state)
                    .unwrap();
            }
        }
    };
    let pool = rayon::ThreadPoolBuilder::new()
        .num_threads(2)
        .build()
        .unwrap();
    pool.install(|| {
        // What threads and detection of the processor allocate once.
        watch_pool();
        both_steal();
        train(2);
        let before = allocations();
        // Several epochs: three batches make one.
        train(20);
        assert_eq!(allocations() - before, 0);
    });
    // Allocations on these threads do count.
    let before = allocations();
    pool.install(|| drop(std::hint::black_box(vec![0u8; 100])));
    assert!(allocations() > before);
}

/// FLORA draws its projections into the plan's memory, also where they change; GaLore takes memory for singular
/// vectors, and for nothing else.
#[test]
fn compressing_updates_allocate_for_singular_vectors_only() {
    let _alone = ONE_AT_A_TIME.lock().unwrap_or_else(|e| e.into_inner());
    let galore = Optimizer::GaLore {
        rank: 16,
        update_period: 50,
        scale: 0.25,
        betas: [0.9, 0.999],
        epsilon: 1e-8,
        weight_decay: 0.1,
    };
    let flora = Optimizer::Flora {
        rank: 16,
        update_period: 3,
        beta: 0.9,
        weight_decay: 0.1,
        seed: 1,
    };
    let pool = rayon::ThreadPoolBuilder::new()
        .num_threads(2)
        .build()
        .unwrap();
    for optimizer in [galore, flora] {
        for shape in [&[150, 250][..], &[250, 150], &[40_000]] {
            for projected in [true, false] {
                let parameter = Parameter {
                    name: "w",
                    shape,
                    projected,
                };
                let count = shape.iter().product();
                let mut weight = vec![1f32; count];
                let mut gradient = vec![0f32; count];
                let layout = optimizer.layout(shape, projected);
                let mut state: Vec<Vec<f32>> = (layout.iter())
                    .map(|state| vec![0.0; state.shape.iter().product()])
                    .collect();
                let mut state: Vec<&mut [f32]> = state.iter_mut().map(|s| &mut s[..]).collect();
                let mut scratch = vec![0f32; optimizer.scratch(shape, projected)];
                let mut train = |steps: std::ops::RangeInclusive<u64>| {
                    for number in steps {
                        for (place, g) in gradient.iter_mut().enumerate() {
                            *g = (place % 7) as f32 - 3.0;
                        }
                        let step = Step {
                            number,
                            learning_rate: 1e-3,
                            gradient_scale: 1.0,
                        };
                        optimizer
                            .update_shaped(
                                &step,
                                &parameter,
                                &mut weight,
                                &mut gradient,
                                &mut state,
                                &mut scratch,
                            )
                            .unwrap();
                    }
                };
                pool.install(|| {
                    watch_pool();
                    both_steal();
                    train(1..=2);
                    let before = allocations();
                    train(3..=50);
                    assert_eq!(allocations() - before, 0, "{optimizer:?} {shape:?}");
                    train(51..=51);
                    let vectors = optimizer == galore && projected && shape.len() == 2;
                    assert_eq!(allocations() > before, vectors, "{optimizer:?} {shape:?}");
                });
            }
        }
    }
}
