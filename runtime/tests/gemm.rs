//! A product allocates nothing.
#![allow(clippy::unwrap_used)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};

use velora_runtime::cpu::gemm::{
    BatchDim, Bias, Matrix, MatrixMut, Problem, gemm_batched, workspace_len,
};

static ALLOCATIONS: AtomicUsize = AtomicUsize::new(0);

/// The allocator of the system, which counts.
struct Counting;

// SAFETY: every call is passed on unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller's promise.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

#[test]
fn nothing_is_allocated_in_a_product() {
    let pool = rayon::ThreadPoolBuilder::new()
        .num_threads(3)
        .build()
        .unwrap();
    // Ordinary, few rows, few tiles with blocks side by side, one row, one column, and a batch of small ones.
    for (m, n, k, count) in [
        (300, 500, 700, 1),
        (24, 768, 2048, 1),
        (29, 31, 5000, 1),
        (1, 3000, 900, 1),
        (3000, 1, 900, 1),
        (128, 64, 128, 24),
    ] {
        let problem = Problem { m, n, k };
        let (a, b) = (vec![1.0f32; count * m * k], vec![1.0f32; count * k * n]);
        let mut c = vec![0.0f32; count * m * n];
        let mut workspace = vec![0.0f32; workspace_len::<f32>(problem, count)];
        let batch = [BatchDim {
            len: count,
            a: m * k,
            b: k * n,
            c: m * n,
        }];
        let mut run = || {
            let (a, b) = (Matrix::row_major(&a, k), Matrix::row_major(&b, n));
            let c = MatrixMut::row_major(&mut c, n);
            gemm_batched(
                problem,
                &batch,
                1.0,
                a,
                b,
                0.0,
                c,
                Bias::None,
                &mut workspace,
            )
            .unwrap();
        };
        pool.install(|| {
            // The threads of a pool allocate as they start.
            run();
            let before = ALLOCATIONS.load(Ordering::Relaxed);
            for _ in 0..10 {
                run();
            }
            let allocations = ALLOCATIONS.load(Ordering::Relaxed) - before;
            assert_eq!(allocations, 0, "{problem:?} allocates");
        });
        assert!(c.iter().all(|&c| c == k as f32));
    }
}
