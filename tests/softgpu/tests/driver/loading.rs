//! Taking the place of the driver's library.

use crate::bench::{Bench, code};
use cudarc::driver::{CudaContext, result};
use softgpu::Gpu;
use std::process::Command;

#[test]
fn cudarc_finds_the_libraries_by_their_names() {
    let bench = Bench::on(|gpu| gpu.set_capability(90));
    // SAFETY: the functions only try to load libraries.
    unsafe {
        assert!(cudarc::driver::sys::is_culib_present());
        assert!(cudarc::cublaslt::sys::is_culib_present());
    }
    assert_eq!(CudaContext::device_count().expect("a count"), 1);
    assert_eq!(bench.context.name().expect("a name"), "softgpu");
    assert_eq!(
        bench.context.compute_capability().expect("a capability"),
        (9, 0)
    );
    let gpu = bench.close();
    assert_eq!(gpu.reports(), [""; 0]);
    assert_eq!(gpu.leaks(), [""; 0]);
}

#[test]
fn a_machine_may_have_the_driver_and_no_device() {
    let gpu = Gpu::exclusive().expect("the software GPU loads");
    gpu.set_devices(0);
    assert_eq!(code(result::init()), 100);
    assert_eq!(gpu.reports(), [""; 0]);
}

#[test]
fn nothing_works_before_it_is_initialised() {
    let gpu = Gpu::exclusive().expect("the software GPU loads");
    assert_eq!(code(result::device::get_count()), 3);
    assert_eq!(gpu.take_reports().len(), 1);
    assert_eq!(code(result::init()), 0);
    assert_eq!(code(result::device::get_count()), 0);
}

#[test]
fn a_thread_needs_a_context() {
    let bench = Bench::new();
    let lonely = std::thread::spawn(|| code(result::ctx::synchronize()))
        .join()
        .expect("no panic");
    assert_eq!(lonely, 201);
    bench.one_report("no current context");
    bench.context.bind_to_thread().expect("a context");
    assert_eq!(code(result::ctx::synchronize()), 0);
    bench.no_report();
}

/// What a process that a test starts does: it opens the libraries by name, as on a machine with a GPU.
#[test]
#[ignore = "run by a_process_finds_the_links in a process of its own"]
fn in_a_process_of_its_own() {
    let context = CudaContext::new(0).expect("a context");
    assert_eq!(context.compute_capability().expect("a capability"), (10, 0));
    let stream = context.default_stream();
    // SAFETY: read before it is written, which is what the log is to show.
    let block = unsafe { stream.alloc::<u8>(100) }.expect("memory");
    stream.clone_dtoh(&block).expect("a copy");
}

#[test]
fn a_process_finds_the_links() {
    let folder = std::env::temp_dir().join(format!("softgpu-{}", std::process::id()));
    std::fs::create_dir(&folder).expect("a folder");
    Gpu::link_into(&folder).expect("the links");
    let log = folder.join("log");
    let run = Command::new(std::env::current_exe().expect("a path"))
        .args(["--ignored", "--exact", "loading::in_a_process_of_its_own"])
        .env("LD_LIBRARY_PATH", &folder)
        .env("SOFTGPU_CAPABILITY", "100")
        .env("SOFTGPU_LOG", &log)
        .output()
        .expect("the process starts");
    let said =
        String::from_utf8_lossy(&run.stdout).into_owned() + &String::from_utf8_lossy(&run.stderr);
    let logged = std::fs::read_to_string(&log).unwrap_or_default();
    std::fs::remove_dir_all(&folder).expect("the folder goes");
    assert!(run.status.success() && said.contains("1 passed"), "{said}");
    assert!(
        logged.contains("device memory without a value") && logged.lines().count() == 1,
        "{logged}"
    );
}

#[test]
fn nvrtc_is_loaded_or_the_error_names_the_variable() {
    match Gpu::load_nvrtc() {
        Ok(()) => {
            // SAFETY: the function only tries to load a library.
            assert!(unsafe { cudarc::nvrtc::sys::is_culib_present() });
            let source = include_str!("../ptx/small.cu");
            let made = cudarc::nvrtc::compile_ptx(source)
                .expect("it compiles")
                .to_src();
            assert!(made.contains(".entry reverse"), "{made}");
        }
        Err(error) => assert!(error.to_string().contains("VELORA_NVRTC"), "{error}"),
    }
}
