//! Capture: what it forbids, and how it ends.

use crate::bench::{Bench, code, raw};
use cudarc::driver::{result, sys};
use std::ptr::null_mut;

/// Captures on a stream, does something forbidden, and expects its error, its report and a lost capture.
#[track_caller]
fn forbidden(bench: &Bench, act: impl FnOnce(sys::CUstream) -> u32, error: u32, says: &str) {
    let stream = bench.stream();
    assert_eq!(bench.begin(stream), 0);
    assert_eq!(act(stream), error);
    bench.one_report(says);
    assert_eq!(bench.end(stream), Err(901));
    // The stream is as before.
    assert_eq!(bench.synchronize(stream), 0);
    bench.no_report();
}

#[test]
fn waiting_is_forbidden() {
    let bench = Bench::new();
    let event = bench.event();
    forbidden(
        &bench,
        |stream| bench.synchronize(stream),
        900,
        "synchronises a stream that is being captured",
    );
    forbidden(
        &bench,
        |_| code(result::ctx::synchronize()),
        900,
        "synchronises the context",
    );
    // SAFETY: the driver checks handles.
    forbidden(
        &bench,
        |_| raw(unsafe { sys::cuEventQuery(event) }),
        900,
        "asks about an event",
    );
    // SAFETY: the driver checks handles.
    forbidden(
        &bench,
        |_| raw(unsafe { sys::cuEventSynchronize(event) }),
        900,
        "waits for an event",
    );
    // SAFETY: the driver checks handles.
    forbidden(
        &bench,
        |stream| raw(unsafe { sys::cuStreamQuery(stream) }),
        900,
        "asks about a stream",
    );
}

#[test]
fn memory_cannot_come_or_go() {
    let bench = Bench::new();
    let a = bench.floats(4);
    // SAFETY: the driver checks sizes and addresses, here and below.
    forbidden(
        &bench,
        |_| code(unsafe { result::malloc_sync(16) }),
        900,
        "allocates device memory",
    );
    // SAFETY: as above.
    forbidden(
        &bench,
        |stream| code(unsafe { result::malloc_async(stream, 16) }),
        900,
        "allocates on a stream",
    );
    // SAFETY: as above.
    forbidden(
        &bench,
        |stream| code(unsafe { result::free_async(a, stream) }),
        900,
        "frees on a stream",
    );
    forbidden(&bench, |_| bench.free(a), 900, "frees device memory");
    // SAFETY: as above.
    forbidden(
        &bench,
        |_| code(unsafe { result::malloc_host(16, 0) }),
        900,
        "allocates pinned host memory",
    );
    assert_eq!(bench.gpu.allocations().len(), 1);
}

#[test]
fn copies_have_to_be_of_pinned_memory() {
    let bench = Bench::new();
    let (a, mut host) = (bench.floats(4), [0f32; 4]);
    forbidden(
        &bench,
        |stream| bench.upload(stream, a, host.as_ptr(), 4),
        900,
        "pageable",
    );
    let to = host.as_mut_ptr();
    forbidden(
        &bench,
        |stream| bench.download(stream, to, a, 4),
        900,
        "pageable",
    );
    // SAFETY: the array has 4 floats.
    let copy = |_| raw(unsafe { sys::cuMemcpyHtoD_v2(a, host.as_ptr().cast(), 16) });
    forbidden(&bench, copy, 900, "copies synchronously");
}

#[test]
fn the_legacy_stream_is_out_of_reach() {
    let bench = Bench::new();
    let a = bench.floats(4);
    forbidden(
        &bench,
        |_| bench.fill(null_mut(), a, 1.0, 4),
        906,
        "uses the legacy stream",
    );
    assert_eq!(bench.begin(null_mut()), 900);
    bench.one_report("the legacy stream cannot be captured");
    // Another thread may use it, unless the captured stream waits for it.
    let elsewhere = |stream: sys::CUstream| {
        assert_eq!(bench.begin(stream), 0);
        let code = std::thread::scope(|scope| {
            let other = scope.spawn(|| {
                bench.context.bind_to_thread().expect("a context");
                // SAFETY: the driver checks addresses.
                raw(unsafe { sys::cuMemsetD8Async(a, 0, 16, null_mut()) })
            });
            other.join().expect("no panic")
        });
        (code, bench.end(stream).map(drop))
    };
    assert_eq!(elsewhere(bench.stream()), (0, Ok(())));
    bench.no_report();
    assert_eq!(elsewhere(bench.blocking_stream()), (906, Err(901)));
    bench.one_report("uses the legacy stream");
}

#[test]
fn another_thread_may_do_what_it_wants() {
    let bench = Bench::new();
    let stream = bench.stream();
    assert_eq!(bench.begin(stream), 0);
    let context = bench.context.clone();
    let other = std::thread::spawn(move || {
        context.bind_to_thread().expect("a context");
        // SAFETY: the size is not zero.
        code(unsafe { result::malloc_sync(16) })
    });
    assert_eq!(other.join().expect("no panic"), 0);
    assert!(bench.end(stream).is_ok());
    bench.no_report();
}

#[test]
fn a_capture_ends_where_and_by_whom_it_began() {
    let bench = Bench::new();
    let (stream, other, event) = (bench.stream(), bench.stream(), bench.event());
    assert_eq!(bench.end(stream), Err(401));
    bench.one_report("not being captured");
    assert_eq!(bench.begin(stream), 0);
    assert_eq!(bench.begin(stream), 401);
    bench.one_report("captured already");
    assert_eq!(bench.record(event, stream), 0);
    assert_eq!(bench.wait(other, event), 0);
    assert_eq!(bench.end(other), Err(903));
    bench.one_report("did not begin on this stream");
    assert_eq!(bench.end(stream), Err(901));

    assert_eq!(bench.begin(stream), 0);
    let (context, number) = (bench.context.clone(), stream as usize);
    let other = std::thread::spawn(move || {
        context.bind_to_thread().expect("a context");
        // SAFETY: the driver checks handles.
        code(unsafe { result::stream::end_capture(number as sys::CUstream) })
    });
    assert_eq!(other.join().expect("no panic"), 908);
    bench.one_report("another thread");
    assert_eq!(bench.end(stream), Err(901));
    bench.no_report();
}

#[test]
fn what_comes_before_a_capture_is_not_in_it() {
    let bench = Bench::new();
    let (other, event) = (bench.stream(), bench.event());
    assert_eq!(bench.record(event, other), 0);
    forbidden(
        &bench,
        |stream| bench.wait(stream, event),
        905,
        "an event recorded before it",
    );
}

#[test]
fn an_event_of_a_capture_is_of_no_use_outside() {
    let bench = Bench::new();
    let (stream, other, event) = (bench.stream(), bench.stream(), bench.event());
    assert_eq!(bench.begin(stream), 0);
    assert_eq!(bench.record(event, stream), 0);
    assert!(bench.end(stream).is_ok());
    assert_eq!(bench.wait(other, event), 907);
    bench.one_report("a capture that has ended");
    // SAFETY: the driver checks handles.
    assert_eq!(raw(unsafe { sys::cuEventSynchronize(event) }), 907);
    bench.one_report("stands for nodes of a graph");
}

#[test]
fn two_captures_stay_two() {
    let bench = Bench::new();
    let (one, two, event) = (bench.stream(), bench.stream(), bench.event());
    assert_eq!((bench.begin(one), bench.begin(two)), (0, 0));
    assert_eq!(bench.record(event, one), 0);
    assert_eq!(bench.wait(two, event), 902);
    bench.one_report("two captures would become one");
    assert_eq!((bench.end(one), bench.end(two)), (Err(901), Err(901)));
}

#[test]
fn a_fork_is_joined() {
    let bench = Bench::new();
    let (stream, side) = (bench.stream(), bench.stream());
    let (forked, joined) = (bench.event(), bench.event());
    let (a, b) = (bench.floats(4), bench.floats(4));
    let capture = |join: bool| {
        assert_eq!(bench.begin(stream), 0);
        assert_eq!(bench.fill(stream, a, 1.0, 4), 0);
        assert_eq!(bench.record(forked, stream), 0);
        assert_eq!(bench.wait(side, forked), 0);
        assert_eq!(bench.twice(side, b, a, 4), 0);
        if join {
            assert_eq!(bench.record(joined, side), 0);
            assert_eq!(bench.wait(stream, joined), 0);
        }
        bench.end(stream)
    };
    assert_eq!(capture(false), Err(904));
    bench.one_report("without joining kernel twice");
    let exec = bench.instantiate(capture(true).expect("a graph"));
    assert_eq!(bench.replay(exec, stream), 0);
    assert_eq!(bench.read(b, 4), [2.0; 4]);
    bench.no_report();
}

#[test]
fn captures_are_seen() {
    let bench = Bench::new();
    let stream = bench.stream();
    // SAFETY: the driver checks handles.
    let status = || unsafe { result::stream::is_capturing(stream) }.expect("a status") as u32;
    assert_eq!(status(), 0);
    assert_eq!(bench.begin(stream), 0);
    assert_eq!(status(), 1);
    assert_eq!(bench.synchronize(stream), 900);
    bench.one_report("synchronises");
    assert_eq!(status(), 2);
    assert_eq!(bench.fill(stream, 0, 1.0, 4), 901);
    assert_eq!(bench.end(stream), Err(901));
    assert_eq!(status(), 0);
    bench.no_report();
}
