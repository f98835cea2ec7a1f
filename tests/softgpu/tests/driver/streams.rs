//! Order between streams.

use crate::bench::{Bench, code, raw};
use cudarc::driver::{result, sys};
use std::ptr::null_mut;

#[test]
fn a_missing_event_between_a_copy_and_a_kernel_is_a_race() {
    let bench = Bench::new();
    let (copies, kernels) = (bench.stream(), bench.stream());
    let (a, b, host) = (bench.floats(64), bench.floats(64), bench.pinned(64));
    assert_eq!(bench.upload(copies, a, host, 64), 0);
    assert_eq!(bench.twice(kernels, b, a, 64), 0);
    bench.one_report(
        "stream race: kernel twice on stream 2 and the copy of 256 bytes to the device on stream 1",
    );
    assert_eq!(code(result::ctx::synchronize()), 0);

    let copied = bench.event();
    assert_eq!(bench.upload(copies, a, host, 64), 0);
    assert_eq!(bench.record(copied, copies), 0);
    assert_eq!(bench.wait(kernels, copied), 0);
    assert_eq!(bench.twice(kernels, b, a, 64), 0);
    // The next upload overwrites what the kernel reads: it has to wait, too.
    assert_eq!(bench.synchronize(kernels), 0);
    assert_eq!(bench.upload(copies, a, host, 64), 0);
    bench.no_report();
}

#[test]
fn a_write_after_a_read_on_another_stream_needs_an_edge() {
    let bench = Bench::new();
    let (one, two) = (bench.stream(), bench.stream());
    let (a, b) = (bench.floats(64), bench.floats(64));
    assert_eq!(bench.fill(one, a, 1.0, 64), 0);
    assert_eq!(bench.synchronize(one), 0);
    assert_eq!(bench.twice(one, b, a, 64), 0);
    assert_eq!(bench.fill(two, a, 3.0, 64), 0);
    bench.one_report("the first writes, the second reads bytes 0..256");
}

#[test]
fn parts_that_do_not_meet_may_be_written_at_the_same_time() {
    let bench = Bench::new();
    let (one, two) = (bench.stream(), bench.stream());
    let a = bench.floats(128);
    assert_eq!(bench.fill(one, a, 1.0, 63), 0);
    assert_eq!(bench.fill(two, a + 4 * 63, 2.0, 65), 0);
    bench.no_report();
    assert_eq!(bench.fill(two, a + 4 * 62, 2.0, 2), 0);
    bench.one_report("both write bytes 248..252");
}

#[test]
fn all_that_may_still_run_is_remembered() {
    let bench = Bench::new();
    let (one, two) = (bench.stream(), bench.stream());
    let (a, b) = (bench.floats(64), bench.floats(64));
    assert_eq!(bench.fill(one, a, 1.0, 32), 0);
    assert_eq!(bench.fill(one, a + 128, 1.0, 32), 0);
    assert_eq!(bench.fill(two, a, 2.0, 8), 0);
    bench.one_report("stream race");
    assert_eq!(code(result::ctx::synchronize()), 0);
    // A read that is hidden neither by a later read of less nor by a write elsewhere.
    assert_eq!(bench.twice(one, b, a, 64), 0);
    assert_eq!(bench.twice(one, b, a, 4), 0);
    assert_eq!(bench.fill(two, a + 128, 2.0, 1), 0);
    bench.one_report("the first writes, the second reads bytes 128..132");
}

#[test]
fn an_event_orders_only_what_came_before_it() {
    let bench = Bench::new();
    let (one, two, event) = (bench.stream(), bench.stream(), bench.event());
    let a = bench.floats(64);
    // Never recorded: the wait does nothing.
    assert_eq!(bench.wait(two, event), 0);
    assert_eq!(bench.record(event, one), 0);
    assert_eq!(bench.fill(one, a, 1.0, 64), 0);
    assert_eq!(bench.wait(two, event), 0);
    assert_eq!(bench.fill(two, a, 2.0, 64), 0);
    bench.one_report("stream race");
}

#[test]
fn edges_are_transitive() {
    let bench = Bench::new();
    let (one, two, three) = (bench.stream(), bench.stream(), bench.stream());
    let (first, second) = (bench.event(), bench.event());
    let a = bench.floats(64);
    assert_eq!(bench.fill(one, a, 1.0, 64), 0);
    assert_eq!(bench.record(first, one), 0);
    assert_eq!(bench.wait(two, first), 0);
    assert_eq!(bench.record(second, two), 0);
    assert_eq!(bench.wait(three, second), 0);
    assert_eq!(bench.fill(three, a, 2.0, 64), 0);
    bench.no_report();
}

#[test]
fn the_host_orders_what_it_waits_for() {
    let bench = Bench::new();
    let (one, two, event) = (bench.stream(), bench.stream(), bench.event());
    let a = bench.floats(64);
    assert_eq!(bench.fill(one, a, 1.0, 64), 0);
    assert_eq!(bench.record(event, one), 0);
    // SAFETY: the driver checks handles.
    assert_eq!(code(unsafe { result::event::synchronize(event) }), 0);
    assert_eq!(bench.fill(two, a, 2.0, 64), 0);
    bench.no_report();
}

#[test]
fn the_legacy_stream_waits_for_blocking_streams_only() {
    let bench = Bench::new();
    let (blocking, other) = (bench.blocking_stream(), bench.stream());
    let a = bench.floats(64);
    assert_eq!(bench.fill(blocking, a, 1.0, 64), 0);
    assert_eq!(bench.fill(null_mut(), a, 2.0, 64), 0);
    assert_eq!(bench.fill(blocking, a, 3.0, 64), 0);
    bench.no_report();
    assert_eq!(bench.fill(other, a, 4.0, 64), 0);
    bench.one_report("kernel fill on stream 2 and kernel fill on stream 1");
}

#[test]
fn work_that_is_not_waited_for_is_not_ready_at_first() {
    let bench = Bench::new();
    let (stream, event) = (bench.stream(), bench.event());
    let a = bench.floats(64);
    assert_eq!(bench.fill(stream, a, 1.0, 64), 0);
    assert_eq!(bench.record(event, stream), 0);
    // SAFETY: the driver checks handles.
    let query = || raw(unsafe { sys::cuEventQuery(event) });
    assert_eq!([query(), query(), query()], [600, 0, 0]);
    // The second answer told the host that the work is over.
    assert_eq!(bench.fill(bench.stream(), a, 2.0, 64), 0);
    bench.no_report();
}

#[test]
fn memory_of_a_stream_is_not_there_for_others_yet() {
    let bench = Bench::new();
    let (one, two, event) = (bench.stream(), bench.stream(), bench.event());
    // SAFETY: the sizes are not zero.
    let allocate = || unsafe { result::malloc_async(one, 256) }.expect("memory");
    // SAFETY: the driver checks addresses.
    let free = |at, stream| code(unsafe { result::free_async(at, stream) });
    let a = allocate();
    assert_eq!(bench.fill(two, a, 1.0, 64), 0);
    bench.one_report(
        "kernel fill on stream 2 uses memory whose allocation by the allocation on stream 1",
    );

    let b = allocate();
    assert_eq!(bench.record(event, one), 0);
    assert_eq!(bench.wait(two, event), 0);
    assert_eq!(bench.fill(two, b, 1.0, 64), 0);
    bench.no_report();
    assert_eq!(free(b, one), 0);
    bench.one_report("stream race: the free on stream 1 and kernel fill on stream 2");
    assert_eq!(free(a, two), 0);
    bench.no_report();

    let c = allocate();
    assert_eq!(bench.synchronize(one), 0);
    assert_eq!(bench.fill(two, c, 1.0, 64), 0);
    bench.no_report();
}

#[test]
fn events_measure_only_what_is_over() {
    let bench = Bench::new();
    let stream = bench.stream();
    let timed = || result::event::create(sys::CUevent_flags::CU_EVENT_DEFAULT).expect("an event");
    let (start, end) = (timed(), timed());
    let a = bench.floats(64);
    assert_eq!(bench.record(start, stream), 0);
    assert_eq!(bench.fill(stream, a, 1.0, 64), 0);
    assert_eq!(bench.record(end, stream), 0);
    // SAFETY: the driver checks handles.
    let elapsed = |end| unsafe { result::event::elapsed(start, end) };
    assert_eq!(code(elapsed(end)), 600);
    assert_eq!(bench.synchronize(stream), 0);
    assert!(elapsed(end).expect("a time") > 0.0);
    bench.no_report();
    assert_eq!(code(elapsed(bench.event())), 400);
    bench.one_report("without timing");
}
