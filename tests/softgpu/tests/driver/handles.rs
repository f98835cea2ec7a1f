//! Handles, and what is left at the end.

use crate::bench::{Bench, PTX, code, raw};
use cudarc::driver::{CudaContext, result, sys};
use cudarc::nvrtc::Ptx;

#[test]
fn handles_die_once() {
    let bench = Bench::new();
    let (stream, event) = (bench.stream(), bench.event());
    // SAFETY: the driver checks handles.
    let end_stream = || code(unsafe { result::stream::destroy(stream) });
    // SAFETY: the driver checks handles.
    let end_event = || code(unsafe { result::event::destroy(event) });
    assert_eq!((end_stream(), end_event()), (0, 0));
    bench.no_report();
    assert_eq!(end_stream(), 400);
    bench.one_report("stream was destroyed before");
    assert_eq!(end_event(), 400);
    bench.one_report("event was destroyed before");
    assert_eq!(bench.synchronize(stream), 400);
    bench.one_report("stream was destroyed before");
}

#[test]
fn handles_are_of_one_kind_and_cannot_be_guessed() {
    let bench = Bench::new();
    let (stream, event) = (bench.stream(), bench.event());
    assert_eq!(bench.synchronize(event.cast()), 400);
    bench.one_report("this is a event, not a stream");
    assert_eq!(bench.record(stream.cast(), stream), 400);
    bench.one_report("this is a stream, not a event");
    assert_eq!(bench.synchronize(0x7654_3210 as sys::CUstream), 400);
    bench.one_report("no stream has this handle");
    assert_eq!(bench.record(std::ptr::null_mut(), stream), 400);
    bench.one_report("null instead of a event");
}

#[test]
fn what_is_not_given_back_is_a_leak() {
    let bench = Bench::new();
    bench.stream();
    bench.floats(4);
    bench.pinned(4);
    bench.pinned(4);
    let expected = ["1 device allocation", "2 pinned host blocks", "1 stream"];
    let with_module: Vec<&str> = expected.iter().copied().chain(["1 module"]).collect();
    assert_eq!(bench.gpu.leaks(), with_module);
    let gpu = bench.close();
    let reports = gpu.take_reports();
    assert_eq!(reports.len(), 1, "{reports:?}");
    assert!(
        reports[0].ends_with(&format!(
            "leak: the context ends with {}",
            expected.join(", ")
        )),
        "{reports:?}"
    );
    assert_eq!(gpu.leaks(), [""; 0]);
}

#[test]
fn nothing_outlives_its_context() {
    let bench = Bench::new();
    let (stream, current) = (
        bench.stream(),
        result::ctx::get_current()
            .expect("no error")
            .expect("a context"),
    );
    let gpu = bench.close();
    assert_eq!(gpu.take_reports().len(), 1);
    // SAFETY: the driver checks handles.
    assert_eq!(code(unsafe { result::stream::synchronize(stream) }), 709);
    assert!(gpu.take_reports()[0].contains("context was destroyed"));
    // SAFETY: the driver checks handles.
    assert_eq!(code(unsafe { result::ctx::set_current(current) }), 201);
    assert!(gpu.take_reports()[0].contains("context was destroyed before"));

    let again = CudaContext::new(0).expect("a context");
    // SAFETY: the driver checks handles.
    assert_eq!(code(unsafe { result::stream::synchronize(stream) }), 400);
    assert!(gpu.take_reports()[0].contains("stream was destroyed before"));
    drop(again);
}

#[test]
fn functions_go_with_their_module() {
    let bench = Bench::new();
    let module = bench
        .context
        .load_module(Ptx::from_src(PTX))
        .expect("a module");
    let function = module
        .load_function("fill")
        .expect("a function")
        .cu_function();
    drop(module);
    let mut value = 0;
    let attribute = sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_NUM_REGS;
    // SAFETY: the driver checks handles.
    let asked = unsafe { sys::cuFuncGetAttribute(&mut value, attribute, function) };
    assert_eq!(raw(asked), 400);
    bench.one_report("function was destroyed before");
}
