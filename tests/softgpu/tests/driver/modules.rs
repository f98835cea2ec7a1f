//! Modules, functions, launches.

use crate::bench::{Bench, PTX, code, raw};
use cudarc::driver::sys;
use cudarc::nvrtc::Ptx;

/// The error of loading a text, without what it says.
fn load(bench: &Bench, text: &str) -> u32 {
    code(bench.context.load_module(Ptx::from_src(text)))
}

#[test]
fn code_has_to_fit_the_device_and_the_driver() {
    let bench = Bench::new();
    assert_eq!(
        load(&bench, &PTX.replace(".target sm_80", ".target sm_90")),
        218
    );
    bench.one_report("PTX for sm_90 does not run on this device, sm_80");
    assert_eq!(
        load(&bench, &PTX.replace(".version 8.8", ".version 9.0")),
        222
    );
    bench.one_report("PTX 90 is newer");
    bench.gpu.set_capability(100);
    assert_eq!(load(&bench, PTX), 0);
    assert_eq!(
        load(&bench, &PTX.replace(".target sm_80", ".target sm_90a")),
        218
    );
    bench.one_report("PTX for sm_90 does not run");
    bench.gpu.set_ptx_version(87);
    assert_eq!(load(&bench, PTX), 222);
    bench.one_report("PTX 88 is newer than the driver's, 87");
}

#[test]
fn code_has_to_be_ptx() {
    let bench = Bench::new();
    assert_eq!(load(&bench, "\u{7f}ELF\u{2}\u{1}"), 209);
    bench.no_report();
    assert_eq!(load(&bench, "int main() {}"), 218);
    bench.one_report("no .version");
    assert_eq!(
        load(&bench, &PTX.replace("st.global.f32", "wonder.f32")),
        218
    );
    bench.one_report("cannot load PTX");
    assert_eq!(code(bench.module.load_function("missing")), 500);
}

#[test]
fn large_shared_memory_needs_an_opt_in() {
    let bench = Bench::new();
    let stream = bench.stream();
    let (a, b) = (bench.floats(64), bench.floats(64));
    assert_eq!(bench.fill(stream, a, 1.0, 64), 0);
    // The kernel has 1 KiB of its own.
    assert_eq!(bench.reverse(stream, b, a, 64, 256), 0);
    assert_eq!(bench.reverse(stream, b, a, 64, 47 << 10), 0);
    bench.no_report();
    assert_eq!(bench.reverse(stream, b, a, 64, (47 << 10) + 1), 1);
    bench.one_report("without opting in");
    let function = bench.module.load_function("reverse").expect("a function");
    let attribute = sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
    assert_eq!(code(function.set_attribute(attribute, (162 << 10) + 1)), 1);
    assert_eq!(code(function.set_attribute(attribute, 100 << 10)), 0);
    assert_eq!(
        function.get_attribute(attribute).expect("a number"),
        100 << 10
    );
    assert_eq!(bench.reverse(stream, b, a, 64, 100 << 10), 0);
    bench.no_report();
}

#[test]
fn launches_have_limits() {
    let bench = Bench::new();
    let stream = bench.stream();
    let (a, b) = (bench.floats(64), bench.floats(64));
    assert_eq!(bench.fill(stream, a, 1.0, 64), 0);
    for (threads, says) in [(1025, "more than 1024"), (0, "an empty grid")] {
        assert_eq!(bench.reverse(stream, b, a, threads, 256), 1);
        bench.one_report(says);
    }
    let function = bench
        .module
        .load_function("fill")
        .expect("a function")
        .cu_function();
    let none = std::ptr::null_mut();
    // SAFETY: what it lacks is noticed.
    let launched =
        unsafe { sys::cuLaunchKernel(function, 1, 1, 1, 1, 1, 1, 0, stream, none, none.cast()) };
    assert_eq!(raw(launched), 1);
    bench.one_report("launched without");
}

#[test]
fn kernels_compute() {
    let bench = Bench::new();
    let stream = bench.stream();
    let (a, b) = (bench.floats(100), bench.floats(100));
    let host: Vec<f32> = (0..100).map(|i| i as f32).collect();
    assert_eq!(bench.upload(stream, a, host.as_ptr(), 100), 0);
    assert_eq!(bench.twice(stream, b, a, 100), 0);
    assert_eq!(bench.reverse(stream, a, b, 100, 400), 0);
    assert_eq!(bench.synchronize(stream), 0);
    let expected: Vec<f32> = (0..100).rev().map(|i| 2.0 * i as f32).collect();
    assert_eq!(bench.read(a, 100), expected);
    bench.no_report();
}

#[test]
fn a_configuration_launches_like_arguments() {
    let bench = Bench::new();
    let (stream, mut a) = (bench.stream(), bench.floats(4));
    let (mut value, mut count) = (2f32, 4u32);
    let mut arguments = [
        std::ptr::from_mut(&mut a).cast(),
        std::ptr::from_mut(&mut value).cast(),
        std::ptr::from_mut(&mut count).cast(),
    ];
    let config = sys::CUlaunchConfig {
        gridDimX: 1,
        gridDimY: 1,
        gridDimZ: 1,
        blockDimX: 4,
        blockDimY: 1,
        blockDimZ: 1,
        sharedMemBytes: 0,
        hStream: stream,
        attrs: std::ptr::null_mut(),
        numAttrs: 0,
    };
    let function = bench
        .module
        .load_function("fill")
        .expect("a function")
        .cu_function();
    // SAFETY: the arguments are those of the kernel.
    let launched = unsafe {
        sys::cuLaunchKernelEx(
            &config,
            function,
            arguments.as_mut_ptr(),
            std::ptr::null_mut(),
        )
    };
    assert_eq!(raw(launched), 0);
    assert_eq!(bench.synchronize(stream), 0);
    assert_eq!(bench.read(a, 4), [2.0; 4]);
    bench.no_report();
}
