//! Graphs, replayed.

use crate::bench::{Bench, PTX, code};
use cudarc::driver::sys::{CUgraphExec, CUstream};
use cudarc::driver::{CudaContext, result};
use cudarc::nvrtc::Ptx;

/// What `act` gives to the stream, as a graph.
fn graph(bench: &Bench, stream: CUstream, act: impl FnOnce()) -> CUgraphExec {
    assert_eq!(bench.begin(stream), 0);
    act();
    bench.instantiate(bench.end(stream).expect("a graph"))
}

#[test]
fn a_graph_runs_when_it_is_launched_and_as_often() {
    let bench = Bench::new();
    let stream = bench.stream();
    let (a, host) = (bench.floats(4), bench.pinned(4));
    // SAFETY: the block is live.
    let set = |value| (0..4).for_each(|i| unsafe { host.add(i).write_volatile(value) });
    let b = bench.floats(4);
    set(1.0);
    let exec = graph(&bench, stream, || {
        assert_eq!(bench.upload(stream, a, host, 4), 0);
        assert_eq!(bench.twice(stream, b, a, 4), 0);
    });
    assert_eq!(bench.gpu.counts()["launches"], 0);
    for value in [3.0, 4.0] {
        // The source is read at each launch.
        set(value);
        assert_eq!(bench.replay(exec, stream), 0);
        assert_eq!(bench.synchronize(stream), 0);
        assert_eq!(bench.read(b, 4), [2.0 * value; 4]);
    }
    bench.no_report();
    assert_eq!(bench.replay(exec, stream), 0);
    set(5.0);
    assert_eq!(bench.synchronize(stream), 0);
    bench.one_report(
        "host memory changed while the copy of 16 bytes to the device (node 0 of a graph)",
    );
}

#[test]
fn launches_of_a_graph_are_in_order_on_any_stream() {
    let bench = Bench::new();
    let (one, two) = (bench.stream(), bench.stream());
    let a = bench.floats(4);
    let exec = graph(&bench, one, || assert_eq!(bench.fill(one, a, 1.0, 4), 0));
    let other = graph(&bench, one, || assert_eq!(bench.fill(one, a, 2.0, 4), 0));
    assert_eq!(bench.replay(exec, one), 0);
    assert_eq!(bench.replay(exec, two), 0);
    assert_eq!(bench.replay(exec, one), 0);
    bench.no_report();
    assert_eq!(bench.replay(other, two), 0);
    bench.one_report(
        "stream race: kernel fill (node 0 of a graph) and kernel fill (node 0 of a graph)",
    );
}

#[test]
fn a_graph_is_in_order_with_its_stream() {
    let bench = Bench::new();
    let (stream, other) = (bench.stream(), bench.stream());
    let (a, b) = (bench.floats(4), bench.floats(4));
    let exec = graph(&bench, stream, || {
        assert_eq!(bench.twice(stream, b, a, 4), 0)
    });
    assert_eq!(bench.fill(stream, a, 1.0, 4), 0);
    assert_eq!(bench.replay(exec, stream), 0);
    assert_eq!(bench.fill(stream, a, 2.0, 4), 0);
    bench.no_report();
    assert_eq!(bench.fill(other, b, 2.0, 4), 0);
    bench.one_report("kernel fill on stream 2 and kernel twice (node 0 of a graph)");
}

#[test]
fn branches_of_a_graph_may_run_at_the_same_time() {
    let bench = Bench::new();
    let (stream, side) = (bench.stream(), bench.stream());
    let (forked, joined) = (bench.event(), bench.event());
    let a = bench.floats(8);
    // The side branch writes the upper half, or everything.
    let make = |from: usize| {
        graph(&bench, stream, || {
            assert_eq!(bench.record(forked, stream), 0);
            assert_eq!(bench.wait(side, forked), 0);
            assert_eq!(bench.fill(side, a + 4 * from as u64, 1.0, 8 - from), 0);
            assert_eq!(bench.fill(stream, a, 1.0, 4), 0);
            assert_eq!(bench.record(joined, side), 0);
            assert_eq!(bench.wait(stream, joined), 0);
            assert_eq!(bench.fill(stream, a, 2.0, 8), 0);
        })
    };
    let (halves, all) = (make(4), make(0));
    assert_eq!(bench.replay(halves, stream), 0);
    assert_eq!(bench.synchronize(stream), 0);
    bench.no_report();
    assert_eq!(bench.replay(all, stream), 0);
    bench.one_report(
        "kernel fill (node 1 of a graph) and kernel fill (node 0 of a graph) are in no order",
    );
}

#[test]
fn a_graph_is_stale_when_its_memory_is_freed() {
    let bench = Bench::new();
    let stream = bench.stream();
    let (a, b) = (bench.floats(4), bench.floats(4));
    assert_eq!(bench.fill(stream, a, 1.0, 4), 0);
    let exec = graph(&bench, stream, || {
        assert_eq!(bench.twice(stream, b, a, 4), 0)
    });
    assert_eq!(bench.synchronize(stream), 0);
    assert_eq!(bench.free(a), 0);
    bench.no_report();
    assert_eq!(bench.replay(exec, stream), 0);
    bench.one_report(
        "stale graph: kernel twice (node 0 of a graph) uses memory freed since its capture",
    );
    assert_eq!(bench.synchronize(stream), 700);
}

#[test]
fn a_graph_is_stale_when_its_module_is_unloaded() {
    let bench = Bench::new();
    let stream = bench.stream();
    let mut a = bench.floats(4);
    let module = bench
        .context
        .load_module(Ptx::from_src(PTX))
        .expect("a module");
    let function = module.load_function("fill").expect("a function");
    let (mut value, mut count) = (1f32, 4u32);
    let exec = graph(&bench, stream, || {
        let arguments = &mut [
            std::ptr::from_mut(&mut a).cast(),
            std::ptr::from_mut(&mut value).cast(),
            std::ptr::from_mut(&mut count).cast(),
        ];
        let raw = function.cu_function();
        // SAFETY: the arguments are those of the kernel.
        let launched =
            unsafe { result::launch_kernel(raw, (1, 1, 1), (4, 1, 1), 0, stream, arguments) };
        assert_eq!(code(launched), 0);
    });
    // The parameters were copied: the graph does not see what becomes of the variables.
    value = 7.0;
    assert_eq!(bench.replay(exec, stream), 0);
    assert_eq!(bench.read(a, 4), [1.0; 4]);
    assert!(value > 1.0);
    drop((function, module));
    assert_eq!(bench.replay(exec, stream), 0);
    bench.one_report("the module of kernel fill (node 0 of a graph) was unloaded");
    assert_eq!(bench.synchronize(stream), 719);
}

#[test]
fn pinned_memory_of_a_graph_stays() {
    let bench = Bench::new();
    let stream = bench.stream();
    let (a, host) = (bench.floats(4), bench.pinned(4));
    let exec = graph(&bench, stream, || {
        assert_eq!(bench.upload(stream, a, host, 4), 0)
    });
    // SAFETY: nobody uses the block afterwards, but the graph, and that is the test.
    assert_eq!(code(unsafe { result::free_host(host.cast()) }), 0);
    assert_eq!(bench.replay(exec, stream), 0);
    bench.one_report("stale graph");
    assert_eq!(bench.synchronize(stream), 700);
}

#[test]
fn an_exec_outlives_its_graph_and_not_itself() {
    let bench = Bench::new();
    let stream = bench.stream();
    let a = bench.floats(4);
    assert_eq!(bench.begin(stream), 0);
    assert_eq!(bench.fill(stream, a, 1.0, 4), 0);
    let graph = bench.end(stream).expect("a graph");
    let exec = bench.instantiate(graph);
    // SAFETY: the driver checks handles, here and below.
    assert_eq!(code(unsafe { result::graph::destroy(graph) }), 0);
    assert_eq!(bench.replay(exec, stream), 0);
    // SAFETY: as above.
    assert_eq!(code(unsafe { result::graph::destroy(graph) }), 400);
    bench.one_report("graph was destroyed before");
    // SAFETY: as above.
    assert_eq!(code(unsafe { result::graph::exec_destroy(exec) }), 0);
    assert_eq!(bench.replay(exec, stream), 400);
    bench.one_report("graph exec was destroyed before");
}

/// cudarc's own types, the way a program uses them.
#[test]
fn the_safe_layer_captures_and_replays() {
    let bench = Bench::new();
    let context: &CudaContext = &bench.context;
    // SAFETY: all below is on one stream.
    unsafe { context.disable_event_tracking() };
    let stream = bench.context.new_stream().expect("a stream");
    let mut block = stream.clone_htod(&[1u32; 4]).expect("a block");
    stream.synchronize().expect("no error");
    let mode = cudarc::driver::sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
    stream.begin_capture(mode).expect("a capture");
    stream.memset_zeros(&mut block).expect("a memset");
    let flags = cudarc::driver::sys::CUgraphInstantiate_flags(0);
    let graph = stream
        .end_capture(flags)
        .expect("no error")
        .expect("a graph");
    assert_eq!(stream.clone_dtoh(&block).expect("a copy"), [1; 4]);
    graph.launch().expect("a launch");
    assert_eq!(stream.clone_dtoh(&block).expect("a copy"), [0; 4]);
    drop((graph, block, stream));
    let gpu = bench.close();
    assert_eq!(gpu.reports(), [""; 0]);
    assert_eq!(gpu.leaks(), [""; 0]);
}
