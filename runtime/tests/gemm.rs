//! A product allocates nothing.
#![allow(clippy::unwrap_used)]

mod counting;

use counting::{allocations, watch_pool};
use velora_runtime::cpu::gemm::{
    BatchDim, Bias, Matrix, MatrixMut, Problem, gemm_batched, workspace_len,
};

#[test]
fn nothing_is_allocated_in_a_product() {
    let pool = rayon::ThreadPoolBuilder::new()
        .num_threads(3)
        .build()
        .unwrap();
    pool.install(watch_pool);
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
            let before = allocations();
            for _ in 0..10 {
                run();
            }
            assert_eq!(allocations() - before, 0, "{problem:?} allocates");
        });
        assert!(c.iter().all(|&c| c == k as f32));
    }
    // Allocations on these threads do count.
    let before = allocations();
    pool.install(|| drop(std::hint::black_box(vec![0u8; 100])));
    assert!(allocations() > before);
}
