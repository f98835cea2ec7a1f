//! Device memory.

use crate::bench::{Bench, code, raw};
use cudarc::driver::{result, sys};

#[test]
fn a_block_is_freed_once_and_by_its_start() {
    let bench = Bench::new();
    let a = bench.floats(8);
    assert_eq!(bench.free(a + 4), 1);
    bench.one_report("inside of the block");
    assert_eq!(bench.free(a), 0);
    bench.no_report();
    assert_eq!(bench.free(a), 1);
    bench.one_report("double free");
    assert_eq!(bench.free(12345), 1);
    bench.one_report("never allocated");
    assert_eq!(bench.free(0), 0);
    bench.no_report();
}

#[test]
fn freed_memory_is_gone() {
    let bench = Bench::new();
    let stream = bench.stream();
    let a = bench.floats(8);
    assert_eq!(bench.free(a), 0);
    let host = [0f32; 8];
    assert_eq!(bench.upload(stream, a, host.as_ptr(), 8), 1);
    bench.one_report("was freed by cuMemFree");
    assert_eq!(bench.fill(stream, a, 1.0, 8), 0);
    assert_eq!(bench.synchronize(stream), 700);
    bench.one_report("out-of-bounds");
}

#[test]
fn memory_is_not_freed_while_it_is_used() {
    let bench = Bench::new();
    let stream = bench.stream();
    let a = bench.floats(8);
    assert_eq!(bench.fill(stream, a, 1.0, 8), 0);
    assert_eq!(bench.free(a), 0);
    bench.one_report("device memory is freed while kernel fill on stream 1 may still use it");
    let b = bench.floats(8);
    assert_eq!(bench.fill(stream, b, 1.0, 8), 0);
    assert_eq!(bench.synchronize(stream), 0);
    assert_eq!(bench.free(b), 0);
    bench.no_report();
}

#[test]
fn copies_stay_inside_and_read_values_only() {
    let bench = Bench::new();
    let stream = bench.stream();
    let (a, b, mut host) = (bench.floats(8), bench.floats(8), [0f32; 16]);
    assert_eq!(bench.upload(stream, a, host.as_ptr(), 9), 1);
    bench.one_report("36 bytes at offset 0 of the block");
    assert_eq!(bench.upload(stream, a, host.as_ptr(), 5), 0);
    assert_eq!(bench.download(stream, host.as_mut_ptr(), a, 8), 0);
    bench.one_report("reads device memory without a value, byte 20");
    // SAFETY: the driver checks addresses.
    let on_device =
        |to, from, len| raw(unsafe { sys::cuMemcpyDtoDAsync_v2(to, from, len, stream) });
    // Values and their absence are copied; nothing is wrong until somebody looks.
    assert_eq!(on_device(b, a, 32), 0);
    assert_eq!(bench.download(stream, host.as_mut_ptr(), b, 5), 0);
    bench.no_report();
    assert_eq!(bench.download(stream, host.as_mut_ptr(), b, 6), 0);
    bench.one_report("reads device memory without a value, byte 20");
    assert_eq!(on_device(a + 8, a, 12), 0);
    bench.one_report("overlap");
    assert_eq!(on_device(a + 8, a, 8), 0);
    bench.no_report();
}

#[test]
fn what_is_undefined_has_no_value_again() {
    let bench = Bench::new();
    let stream = bench.stream();
    let (a, b) = (bench.floats(8), bench.floats(8));
    assert_eq!(bench.fill(stream, a, 1.0, 8), 0);
    assert!(bench.gpu.undefine(a + 16, 4));
    assert_eq!(bench.twice(stream, b, a, 4), 0);
    bench.no_report();
    assert_eq!(bench.twice(stream, b, a, 8), 0);
    bench.one_report("uninitialised global read at offset 16");
    assert!(!bench.gpu.undefine(a + 16, 400));
    bench.one_report("end behind its 32 bytes");
}

#[test]
fn nothing_is_too_much_and_nothing_too_little() {
    let bench = Bench::on(|gpu| gpu.set_memory(1 << 20));
    // SAFETY: the driver checks sizes.
    let allocate = |len| unsafe { result::malloc_sync(len) };
    assert_eq!(code(allocate(0)), 1);
    bench.one_report("0 bytes");
    let half = allocate(1 << 19).expect("memory");
    assert_eq!(result::mem_get_info().expect("sizes"), (1 << 19, 1 << 20));
    assert_eq!(code(allocate((1 << 19) + 1)), 2);
    assert_eq!(code(allocate(1 << 19)), 0);
    assert_eq!(code(allocate(1)), 2);
    assert_eq!(bench.free(half), 0);
    assert_eq!(code(allocate(1 << 19)), 0);
    assert_eq!(code(allocate(usize::MAX)), 2);
    // SAFETY: the driver checks addresses.
    let everything =
        |count| raw(unsafe { sys::cuMemsetD32Async(half, 1, count, std::ptr::null_mut()) });
    assert_eq!(everything(usize::MAX), 1);
    bench.one_report("memset");
    // Copies and memsets of nothing are fine, wherever.
    // SAFETY: nothing is written.
    let set = unsafe { sys::cuMemsetD8Async(0, 1, 0, std::ptr::null_mut()) };
    assert_eq!(raw(set), 0);
    bench.no_report();
}

#[test]
fn memsets_write_whole_values() {
    let bench = Bench::new();
    let (stream, a) = (bench.stream(), bench.floats(4));
    // SAFETY: the driver checks addresses.
    let set = |at, value, count| raw(unsafe { sys::cuMemsetD32Async(at, value, count, stream) });
    assert_eq!(set(a, 1.5f32.to_bits(), 4), 0);
    assert_eq!(bench.synchronize(stream), 0);
    assert_eq!(bench.read(a, 4), [1.5; 4]);
    assert_eq!(set(a + 2, 0, 1), 1);
    bench.one_report("misaligned");
    assert_eq!(set(a, 0, 5), 1);
    bench.one_report("end behind");
}

#[test]
fn allocations_are_listed_with_their_high_water_mark() {
    let bench = Bench::new();
    let stream = bench.stream();
    let (a, b) = (bench.floats(100), bench.floats(10));
    assert_eq!(bench.fill(stream, a, 1.0, 70), 0);
    assert_eq!(bench.fill(stream, a, 1.0, 20), 0);
    let found: Vec<_> = bench
        .gpu
        .allocations()
        .iter()
        .map(|block| (block.at, block.len, block.high_water))
        .collect();
    assert_eq!(found, [(a, 400, 280), (b, 40, 0)]);
    assert_eq!(bench.gpu.counts()["launches"], 2);
    assert_eq!(bench.gpu.calls()["cuLaunchKernel"], 2);
}
