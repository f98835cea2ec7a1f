//! No training step allocates.

use super::footprint::OPTIMIZER;
use super::graphs::{Graph, files};
use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use velora_passes::select::{Gradients, Grouping, Init, LayerSettings, Preset};
use velora_runtime::backend::{Backend, StepContext};
use velora_runtime::cpu::Cpu;
use velora_runtime::session::optimizer::Step;

struct Counting;

static ALLOCATIONS: AtomicUsize = AtomicUsize::new(0);

thread_local! {
    /// Whether this thread is one of those that are watched: other tests run beside.
    static WATCHED: Cell<bool> = const { Cell::new(false) };
}

fn count() {
    // A thread that ends has no mark any more.
    if WATCHED.try_with(Cell::get).unwrap_or(false) {
        ALLOCATIONS.fetch_add(1, SeqCst);
    }
}

// SAFETY: everything is the system's allocator; counting does not allocate.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: the caller keeps the contract of `alloc`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: the caller keeps the contract of `alloc_zeroed`.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count();
        // SAFETY: the pointer came from `System` by the functions here.
        unsafe { System.realloc(pointer, layout, size) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the pointer came from `System` by the functions here.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Makes each of two threads take work of the other: rayon's queues allocate when a thread does so for
/// the first time, which on a busy machine may be late.
fn both_steal() {
    let (there, back) = (AtomicBool::new(false), AtomicBool::new(false));
    let wait = |flag: &AtomicBool| {
        while !flag.load(SeqCst) {
            std::thread::yield_now();
        }
    };
    rayon::join(
        || wait(&there),
        || {
            there.store(true, SeqCst);
            rayon::join(|| wait(&back), || back.store(true, SeqCst));
        },
    );
}

#[test]
fn steps_allocate_nothing() {
    let cpu = Cpu::new(2).unwrap();
    cpu.enter(&mut || {
        rayon::broadcast(|_| WATCHED.set(true));
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
                        let norm = ready.executable.gradient_norm();
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
                let before = ALLOCATIONS.load(SeqCst);
                train(2..5);
                let during = ALLOCATIONS.load(SeqCst) - before;
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
    let before = ALLOCATIONS.load(SeqCst);
    cpu.enter(&mut || drop(std::hint::black_box(vec![0u8; 100])));
    assert!(ALLOCATIONS.load(SeqCst) > before);
}
