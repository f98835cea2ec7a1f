//! The update from a factored gradient beside a copy of the weight's bytes and beside the update from a
//! gradient of the weight's size, alternating: seconds of the fastest run of each.
//!
//! `cargo bench -p velora-runtime --bench factored_optimizer [FEATURES OUTPUTS GROUPS]` prints a line per
//! optimiser, orientation and direction, with one thread and with all. `GB/s` counts the weight twice, once
//! read and once written; the copy reads one buffer and writes another of that size, in as many pieces.
//! Ratios below one: the factored update is faster.
#![allow(clippy::unwrap_used)]

use std::time::Instant;

use rayon::prelude::*;
use velora_runtime::session::optimizer::{Factor, Optimizer, Step};

/// What every case reads and writes.
struct Memory {
    weight: Vec<f32>,
    other: Vec<f32>,
    /// Of the weight's size.
    state: [Vec<f32>; 2],
    small: [Vec<f32>; 2],
    gradient: Vec<f32>,
    direction: Vec<f32>,
}

fn fill(len: usize) -> Vec<f32> {
    (0..len)
        .map(|i| ((i * 7919) % 1009) as f32 / 1009.0 - 0.4995)
        .collect()
}

fn seconds(run: impl FnOnce()) -> f64 {
    let start = Instant::now();
    run();
    start.elapsed().as_secs_f64()
}

/// The fastest copy, factored and full update of some runs.
fn fastest(memory: &mut Memory, optimizer: &Optimizer, factor: [usize; 3], last: bool) -> [f64; 3] {
    let [features, outputs, groups] = factor;
    let states = optimizer.state().len();
    let mut times = [f64::MAX; 3];
    for number in 1..=9 {
        let step = Step {
            number,
            learning_rate: 1e-3,
            gradient_scale: 1.0,
        };
        let factor = Factor {
            direction: &memory.direction,
            groups,
            features,
            outputs,
            features_last: last,
        };
        let copy = seconds(|| {
            let pieces = memory.other.par_chunks_mut(1 << 16);
            pieces
                .zip(memory.weight.par_chunks(1 << 16))
                .for_each(|(to, from)| to.copy_from_slice(from));
        });
        let [first, second] = &mut memory.small;
        let factored = seconds(|| {
            let state = &mut [&mut first[..], &mut second[..]][..states];
            optimizer
                .update_factored(&step, &mut memory.weight, &factor, &memory.gradient, state)
                .unwrap();
        });
        let [first, second] = &mut memory.state;
        let full = seconds(|| {
            let state = &mut [&mut first[..], &mut second[..]][..states];
            optimizer
                .update(&step, &mut memory.weight, &memory.other, state)
                .unwrap();
        });
        for (least, time) in times.iter_mut().zip([copy, factored, full]) {
            *least = least.min(time);
        }
    }
    times
}

fn main() {
    let sizes: Vec<usize> = std::env::args()
        .filter_map(|argument| argument.parse().ok())
        .collect();
    let sizes @ [features, outputs, groups] = sizes.try_into().unwrap_or([4096, 4096, 32]);
    let elements = features * outputs;
    let sgd = |momentum, weight_decay| Optimizer::Sgd {
        momentum,
        nesterov: false,
        weight_decay,
    };
    let adamw = Optimizer::AdamW {
        betas: [0.9, 0.999],
        epsilon: 1e-8,
        weight_decay: 0.1,
    };
    let optimizers = [
        ("sgd", sgd(0.0, 0.0)),
        ("sgd, decay", sgd(0.0, 0.1)),
        ("momentum", sgd(0.9, 0.0)),
        ("adamw", adamw),
    ];
    let mut memory = Memory {
        weight: fill(elements),
        other: vec![0.0; elements],
        state: [vec![0.0; elements], vec![0.0; elements]],
        small: [vec![0.0; groups * outputs], vec![0.0; groups * outputs]],
        gradient: fill(groups * outputs),
        direction: vec![],
    };
    let each = features.div_ceil(groups);
    let all = std::thread::available_parallelism().map_or(1, usize::from);
    println!("{features} features, {outputs} outputs, {groups} groups");
    for threads in if all == 1 { vec![1] } else { vec![1, all] } {
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .build()
            .unwrap();
        println!("{threads} threads");
        for (name, optimizer) in &optimizers {
            for (last, shared) in [(false, true), (false, false), (true, true), (true, false)] {
                memory.direction = fill(if shared { each } else { each * groups });
                let [copy, factored, full] =
                    pool.install(|| fastest(&mut memory, optimizer, sizes, last));
                println!(
                    "{name:10} features {} {:9} {:8.2} ms {:6.1} GB/s  / copy {:.2}  / full {:.3}",
                    if last { "last " } else { "first" },
                    if shared { "shared" } else { "per group" },
                    factored * 1e3,
                    8e-9 * elements as f64 / factored,
                    factored / copy,
                    factored / full,
                );
            }
        }
    }
}
