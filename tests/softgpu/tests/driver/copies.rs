//! Copies between the host and the device, and what the host may do meanwhile.

use crate::bench::{Bench, raw};
use cudarc::driver::sys;

/// Pinned floats, as the host sees them.
fn get(at: *const f32, index: usize) -> f32 {
    // SAFETY: the tests ask for floats of live blocks only.
    unsafe { at.add(index).read_volatile() }
}

fn set(at: *mut f32, index: usize, value: f32) {
    // SAFETY: as above.
    unsafe { at.add(index).write_volatile(value) }
}

#[test]
fn a_pinned_source_has_to_stay_until_the_copy_is_over() {
    let bench = Bench::new();
    let stream = bench.stream();
    let (a, host) = (bench.floats(8), bench.pinned(8));
    (0..8).for_each(|i| set(host, i, i as f32));
    assert_eq!(bench.upload(stream, a, host, 8), 0);
    set(host, 3, 9.0);
    assert_eq!(bench.synchronize(stream), 0);
    bench.one_report("host memory changed while the copy of 32 bytes to the device on stream 1 from it was in flight");

    assert_eq!(bench.upload(stream, a, host, 8), 0);
    assert_eq!(bench.synchronize(stream), 0);
    set(host, 3, 3.0);
    assert_eq!(bench.synchronize(stream), 0);
    bench.no_report();
    assert_eq!(bench.read(a, 8)[3], 9.0);
}

#[test]
fn a_copy_to_pinned_memory_arrives_when_the_host_has_waited() {
    let bench = Bench::new();
    let (stream, event) = (bench.stream(), bench.event());
    let (a, host) = (bench.floats(8), bench.pinned(8));
    set(host, 0, 5.0);
    assert_eq!(bench.fill(stream, a, 2.0, 8), 0);
    assert_eq!(bench.download(stream, host, a, 8), 0);
    assert_eq!(bench.record(event, stream), 0);
    assert!(
        get(host, 0).is_nan(),
        "neither the old value nor the new one can be relied on"
    );
    // Waiting for something else does not help.
    let other = bench.stream();
    assert_eq!(bench.synchronize(other), 0);
    assert!(get(host, 0).is_nan());
    // SAFETY: the driver checks handles.
    assert_eq!(raw(unsafe { sys::cuEventSynchronize(event) }), 0);
    assert_eq!(get(host, 0), 2.0);
    bench.no_report();
}

#[test]
fn the_host_must_not_write_where_a_copy_is_to_arrive() {
    let bench = Bench::new();
    let stream = bench.stream();
    let (a, host) = (bench.floats(8), bench.pinned(8));
    assert_eq!(bench.fill(stream, a, 2.0, 8), 0);
    assert_eq!(bench.download(stream, host, a, 8), 0);
    set(host, 7, 1.0);
    assert_eq!(bench.synchronize(stream), 0);
    bench.one_report("host memory was written while the copy of 32 bytes to the host on stream 1 to it was in flight");
    assert_eq!(get(host, 7), 2.0);
}

#[test]
fn a_block_may_go_to_the_host_and_back_on_one_stream() {
    let bench = Bench::new();
    let stream = bench.stream();
    let (a, b, host) = (bench.floats(8), bench.floats(8), bench.pinned(8));
    for value in [2.0, 3.0] {
        assert_eq!(bench.fill(stream, a, value, 8), 0);
        assert_eq!(bench.download(stream, host, a, 8), 0);
        assert_eq!(bench.upload(stream, b, host, 8), 0);
    }
    assert_eq!(bench.synchronize(stream), 0);
    assert_eq!(bench.read(b, 8), [3.0; 8]);
    assert_eq!(get(host, 0), 3.0);
    bench.no_report();
}

#[test]
fn copies_to_one_block_arrive_one_after_the_other() {
    let bench = Bench::new();
    let (stream, event) = (bench.stream(), bench.event());
    let (a, b, host) = (bench.floats(8), bench.floats(8), bench.pinned(8));
    assert_eq!(bench.fill(stream, a, 1.0, 8), 0);
    assert_eq!(bench.fill(stream, b, 2.0, 8), 0);
    assert_eq!(bench.download(stream, host, a, 8), 0);
    assert_eq!(bench.record(event, stream), 0);
    assert_eq!(bench.download(stream, host, b, 4), 0);
    // SAFETY: the driver checks handles.
    assert_eq!(raw(unsafe { sys::cuEventSynchronize(event) }), 0);
    assert_eq!(bench.synchronize(stream), 0);
    assert_eq!([get(host, 0), get(host, 7)], [2.0, 1.0]);
    bench.no_report();
}

#[test]
fn the_work_of_a_destroyed_stream_goes_on() {
    let bench = Bench::new();
    let stream = bench.stream();
    let (a, host) = (bench.floats(8), bench.pinned(8));
    assert_eq!(bench.fill(stream, a, 2.0, 8), 0);
    assert_eq!(bench.download(stream, host, a, 8), 0);
    // SAFETY: the driver checks handles.
    assert_eq!(raw(unsafe { sys::cuStreamDestroy_v2(stream) }), 0);
    assert!(get(host, 0).is_nan());
    // SAFETY: it takes nothing.
    assert_eq!(raw(unsafe { sys::cuCtxSynchronize() }), 0);
    assert_eq!(get(host, 0), 2.0);
    assert_eq!(bench.free(a), 0);
    bench.no_report();
}

#[test]
fn copies_of_pinned_memory_on_two_streams_need_an_edge() {
    let bench = Bench::new();
    let (one, two) = (bench.stream(), bench.stream());
    let (a, b, host) = (bench.floats(8), bench.floats(8), bench.pinned(8));
    assert_eq!(bench.fill(one, a, 2.0, 8), 0);
    assert_eq!(bench.download(one, host, a, 8), 0);
    assert_eq!(bench.upload(two, b, host, 8), 0);
    bench.one_report("stream race");
}

#[test]
fn pageable_memory_is_copied_before_the_call_returns() {
    let bench = Bench::new();
    let (stream, other) = (bench.stream(), bench.stream());
    let a = bench.floats(8);
    let mut host = [1f32; 8];
    assert_eq!(bench.upload(stream, a, host.as_ptr(), 8), 0);
    host = [0.0; 8];
    let mut back = host;
    assert_eq!(bench.download(stream, back.as_mut_ptr(), a, 8), 0);
    assert_eq!(back, [1.0; 8]);
    // The copy to pageable memory waited for the stream.
    assert_eq!(bench.fill(other, a, 2.0, 8), 0);
    bench.no_report();
}

#[test]
fn a_synchronous_copy_from_pageable_memory_may_still_be_under_way() {
    let bench = Bench::new();
    let (stream, a, host) = (bench.stream(), bench.floats(8), [1f32; 8]);
    // SAFETY: the array has 8 floats.
    let copy = |from: *const f32| raw(unsafe { sys::cuMemcpyHtoD_v2(a, from.cast(), 32) });
    assert_eq!(copy(host.as_ptr()), 0);
    assert_eq!(bench.fill(stream, a, 2.0, 8), 0);
    bench.one_report("the copy of 32 bytes to the device on the legacy stream");

    assert_eq!(bench.synchronize(stream), 0);
    let pinned = bench.pinned(8);
    assert_eq!(copy(pinned), 0);
    assert_eq!(bench.fill(stream, a, 2.0, 8), 0);
    bench.no_report();
}

#[test]
fn registered_memory_is_pinned() {
    let bench = Bench::new();
    let stream = bench.stream();
    let a = bench.floats(8);
    let mut host = vec![1f32; 8];
    let at = host.as_mut_ptr();
    // SAFETY: the vector outlives its registration.
    let register = || raw(unsafe { sys::cuMemHostRegister_v2(at.cast(), 32, 0) });
    // SAFETY: the driver checks addresses.
    let unregister = || raw(unsafe { sys::cuMemHostUnregister(at.cast()) });
    assert_eq!(register(), 0);
    assert_eq!(bench.upload(stream, a, at, 8), 0);
    set(at, 0, 2.0);
    assert_eq!(bench.synchronize(stream), 0);
    bench.one_report("host memory changed");
    assert_eq!(register(), 712);
    bench.one_report("pinned already");
    assert_eq!(unregister(), 0);
    assert_eq!(unregister(), 713);
    bench.one_report("not the start of registered host memory");
}

#[test]
fn pinned_memory_stays_while_it_is_used() {
    let bench = Bench::new();
    let stream = bench.stream();
    let (a, host) = (bench.floats(8), bench.pinned(8));
    assert_eq!(bench.upload(stream, a, host, 8), 0);
    // SAFETY: the driver checks addresses.
    let free = || raw(unsafe { sys::cuMemFreeHost(host.cast()) });
    assert_eq!(free(), 0);
    bench.one_report("pinned host memory is freed while the copy of 32 bytes to the device on stream 1 may still use it");
    assert_eq!(free(), 1);
    bench.one_report("not the start of a live pinned block");
}

#[test]
fn addresses_of_host_and_device_are_not_interchangeable() {
    let bench = Bench::new();
    let stream = bench.stream();
    let (a, host) = (bench.floats(8), bench.pinned(8));
    assert_eq!(bench.upload(stream, a, a as *const f32, 8), 1);
    bench.one_report("the source of a copy to the device");
    assert_eq!(bench.upload(stream, host as u64, host, 8), 1);
    bench.one_report("is not an address of the device");
    assert_eq!(bench.download(stream, a as *mut f32, a, 8), 1);
    bench.one_report("the destination of a copy to the host");
    assert_eq!(bench.fill(stream, host as u64, 1.0, 8), 0);
    assert_eq!(bench.synchronize(stream), 700);
    bench.one_report("out-of-bounds");
}
