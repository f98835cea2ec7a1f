//! cudarc's safe layer, which orders what it does: all that it does has to be clean.

use crate::bench::Bench;
use cudarc::cublaslt::{CudaBlasLT, Matmul, MatmulConfig};
use cudarc::driver::{LaunchConfig, PushKernelArg};

/// Both must be empty once everything is dropped.
#[track_caller]
fn clean(bench: Bench) {
    let gpu = bench.close();
    assert_eq!(gpu.reports(), [""; 0]);
    assert_eq!(gpu.leaks(), [""; 0]);
}

#[test]
fn slices_that_track_their_events_are_ordered_on_any_stream() {
    for pools in [true, false] {
        let bench = Bench::on(|gpu| gpu.set_pools(pools));
        {
            let (one, two) = (bench.context.new_stream(), bench.context.new_stream());
            let (one, two) = (one.expect("a stream"), two.expect("a stream"));
            let twice = bench.module.load_function("twice").expect("a function");
            let mut from = one.clone_htod(&[1f32; 100]).expect("a block");
            let mut to = two.alloc_zeros::<f32>(100).expect("a block");
            for round in 0..3 {
                let count = 100u32;
                let mut launch = two.launch_builder(&twice);
                launch.arg(&mut to).arg(&from).arg(&count);
                // SAFETY: the arguments are those of the kernel, and both blocks have 100 floats.
                unsafe { launch.launch(LaunchConfig::for_num_elems(100)) }.expect("a launch");
                assert_eq!(
                    one.clone_dtoh(&to).expect("a copy"),
                    [(1 << (round + 1)) as f32; 100]
                );
                one.memcpy_dtod(&to, &mut from).expect("a copy");
            }
        }
        clean(bench);
    }
}

#[test]
fn pinned_slices_wait_for_their_copies() {
    let bench = Bench::new();
    {
        let stream = bench.context.new_stream().expect("a stream");
        // SAFETY: every element is written before it is read.
        let mut host = unsafe { bench.context.alloc_pinned::<f32>(16) }.expect("pinned memory");
        let mut block = stream.alloc_zeros::<f32>(16).expect("a block");
        for value in [1.0, 2.0] {
            host.as_mut_slice().expect("no error").fill(value);
            stream.memcpy_htod(&host, &mut block).expect("a copy");
        }
        stream.memset_zeros(&mut block).expect("a memset");
        stream.memcpy_dtoh(&block, &mut host).expect("a copy");
        assert_eq!(host.as_slice().expect("no error"), [0.0; 16]);
    }
    clean(bench);
}

#[test]
fn products_of_the_safe_layer_are_clean() {
    let bench = Bench::new();
    {
        let stream = bench.context.new_stream().expect("a stream");
        let blas = CudaBlasLT::new(stream.clone()).expect("a handle");
        let a = stream
            .clone_htod(&[1f32, 2.0, 3.0, 4.0, 5.0, 6.0])
            .expect("a block");
        let b = stream
            .clone_htod(&[1f32, 0.0, 0.0, 1.0, 1.0, 1.0])
            .expect("a block");
        let bias = stream.clone_htod(&[10f32, 20.0]).expect("a block");
        let mut c = stream.alloc_zeros::<f32>(4).expect("a block");
        // Columns (1, 2), (3, 4), (5, 6) times columns (1, 0, 0), (1, 1, 1).
        let config = MatmulConfig {
            transa: false,
            transb: false,
            transc: false,
            m: 2,
            n: 2,
            k: 3,
            alpha: 1.0,
            lda: 2,
            ldb: 3,
            beta: 0.0,
            ldc: 2,
            stride_a: None,
            stride_b: None,
            stride_c: None,
            stride_bias: None,
            batch_size: None,
        };
        // SAFETY: the sizes are those of the blocks.
        unsafe { blas.matmul(config, &a, &b, &mut c, Some(&bias), None) }.expect("a product");
        assert_eq!(
            stream.clone_dtoh(&c).expect("a copy"),
            [11.0, 22.0, 19.0, 32.0]
        );
    }
    clean(bench);
}
