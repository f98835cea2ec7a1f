//! Errors that a test asks for, and how errors stay.

use crate::bench::{Bench, code};
use cudarc::driver::result;
use softgpu::Fault;

#[test]
fn the_third_allocation_fails() {
    let bench = Bench::new();
    bench.gpu.inject(Fault::Memory(3));
    // SAFETY: the sizes are not zero.
    let device = || code(unsafe { result::malloc_sync(16) });
    // SAFETY: the sizes are not zero.
    let host = || code(unsafe { result::malloc_host(16, 0) });
    assert_eq!([device(), host(), device(), device()], [0, 0, 2, 0]);
    bench.gpu.inject(Fault::Memory(1));
    assert_eq!([host(), host()], [2, 0]);
    bench.no_report();
}

#[test]
fn a_failed_launch_is_known_at_the_next_wait_and_stays() {
    let bench = Bench::new();
    let stream = bench.stream();
    let (a, host) = (bench.floats(4), bench.pinned(4));
    bench.gpu.inject(Fault::Launch(2));
    assert_eq!(bench.fill(stream, a, 1.0, 4), 0);
    assert_eq!(bench.fill(stream, a, 2.0, 4), 0);
    // Nothing runs any more, but calls that do not wait cannot tell.
    assert_eq!(bench.download(stream, host, a, 4), 0);
    assert_eq!(bench.synchronize(stream), 719);
    // SAFETY: the block is live.
    assert_ne!(unsafe { host.read_volatile() }, 2.0);
    assert_eq!(bench.fill(stream, a, 1.0, 4), 719);
    assert_eq!(code(result::ctx::synchronize()), 719);
    // A release does what it is for, and says the same.
    assert_eq!(bench.gpu.allocations().len(), 1);
    assert_eq!(bench.free(a), 719);
    assert_eq!(bench.gpu.allocations().len(), 0);
    bench.no_report();
}

#[test]
fn a_kernel_outside_of_its_memory_stops_the_device() {
    let bench = Bench::new();
    let stream = bench.stream();
    let a = bench.floats(4);
    assert_eq!(bench.fill(stream, a, 1.0, 5), 0);
    bench.one_report("out-of-bounds global write of 4 bytes");
    assert_eq!(bench.synchronize(stream), 700);
    assert_eq!(bench.synchronize(stream), 700);

    drop(bench.close());
    let bench = Bench::new();
    let stream = bench.stream();
    let a = bench.floats(4);
    assert_eq!(bench.fill(stream, a + 2, 1.0, 1), 0);
    bench.one_report("misaligned");
    assert_eq!(bench.synchronize(stream), 716);
}

#[test]
fn one_call_fails() {
    let bench = Bench::new();
    let stream = bench.stream();
    bench.gpu.inject(Fault::Call("cuStreamSynchronize", 2, 999));
    let sync = || bench.synchronize(stream);
    assert_eq!([sync(), sync(), sync()], [0, 999, 0]);
    bench.no_report();
}

#[test]
fn a_lost_device_is_lost() {
    let bench = Bench::new();
    let stream = bench.stream();
    let a = bench.floats(4);
    bench.gpu.inject(Fault::Lost(2));
    assert_eq!(bench.fill(stream, a, 1.0, 4), 0);
    assert_eq!(bench.fill(stream, a, 1.0, 4), 46);
    assert_eq!(bench.synchronize(stream), 46);
    assert_eq!(code(result::ctx::synchronize()), 46);
    assert_eq!(bench.free(a), 46);
    assert_eq!(bench.gpu.allocations().len(), 0);
    bench.no_report();
}
