//! No training step allocates.

use super::counting::{allocations, both_steal, watch_pool};
use super::footprint::OPTIMIZER;
use super::graphs::{Graph, files};
use velora_passes::select::{Gradients, Grouping, Init, LayerSettings, Preset};
use velora_runtime::backend::{Backend, StepContext};
use velora_runtime::cpu::Cpu;
use velora_runtime::session::optimizer::Step;

#[test]
fn steps_allocate_nothing() {
    let cpu = Cpu::new(2).unwrap();
    cpu.enter(&mut || {
        watch_pool();
        both_steal();
    });
    for file in files() {
        let original = Graph::read(&file);
        let factored = LayerSettings {
            init: Init::None,
            gradients: Gradients::Factored,
            ..LayerSettings::new(Grouping::Groups(4))
        };
        let factored = original.rewrite_as(Preset::Freeable, false, factored);
        for graph in [
            original.rewrite(Preset::Freeable, false),
            factored,
            original,
        ] {
            let states = match graph.signature.trained.is_empty() {
                true => 0,
                false => OPTIMIZER.state().len(),
            };
            let mut ready = graph.prepare(&cpu, 3, states);
            cpu.enter(&mut || {
                let mut train = |numbers: std::ops::Range<u64>| {
                    for number in numbers {
                        let context = StepContext {
                            seed: 0,
                            step: number,
                        };
                        ready.executable.run(&context, None).unwrap();
                        let norm = ready.executable.gradient_norm().unwrap();
                        assert!(norm.is_finite());
                        let step = Step {
                            number,
                            learning_rate: 1e-4,
                            gradient_scale: 1.0,
                        };
                        ready.executable.update(&OPTIMIZER, &step).unwrap();
                    }
                };
                train(1..2);
                let before = allocations();
                train(2..5);
                let during = allocations() - before;
                assert_eq!(
                    during,
                    0,
                    "{} ({} rewritten)",
                    graph.name,
                    graph.rewritten.len()
                );
            });
        }
    }
    // Allocations on these threads do count.
    let before = allocations();
    cpu.enter(&mut || drop(std::hint::black_box(vec![0u8; 100])));
    assert!(allocations() > before);
}
