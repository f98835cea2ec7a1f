//! The CUDA backend on the graphs of `models/`, executed by the software GPU.
#![allow(clippy::unwrap_used)]

#[allow(dead_code)]
#[path = "../runtime/graphs.rs"]
mod graphs;

use velora_runtime::cpu::Cpu;
use velora_runtime::cuda::{Cuda, Options};

#[test]
fn smoke() {
    softgpu::load();
    let cuda = Cuda::open(Options::default()).unwrap();
    let cpu = Cpu::new(0).unwrap();
    for file in graphs::files() {
        let graph = graphs::Graph::read(&file);
        let expected = graph.prepare(&cpu, 3, 2).run();
        let ready = std::panic::catch_unwind(|| graph.prepare(&cuda, 3, 2));
        let Ok(mut ready) = ready else { continue };
        let found = ready.run();
        for (name, bytes) in &expected.gradients {
            let f = |b: &[u8]| -> Vec<f32> {
                b.chunks_exact(4)
                    .map(|c| f32::from_le_bytes(c.try_into().unwrap()))
                    .collect()
            };
            let (a, b) = (f(bytes), f(&found.gradients[name]));
            let most = a.iter().map(|x| x.abs()).fold(0f32, f32::max);
            let error = a
                .iter()
                .zip(&b)
                .map(|(a, b)| (a - b).abs())
                .fold(0f32, f32::max);
            println!("{} {name}: {error:e} of {most:e}", graph.name);
        }
    }
}
