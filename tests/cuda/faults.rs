//! Devices that fail: each failure is a clear message, nothing leaks, and checkpoints stay whole.

use super::device::{Device, options};
use super::graphs::Graph;
use softgpu::Fault::{Call, Launch, Lost, Memory};
use softgpu::{Fault, Gpu};
use std::path::Path;
use std::process::Command;
use velora_runtime::backend::{Backend, StepContext};
use velora_runtime::cuda::{Cuda, Unavailable};
use velora_runtime::session::optimizer::{Optimizer, Step};

const OPTIMIZER: Optimizer = Optimizer::Sgd {
    momentum: 0.9,
    nesterov: false,
    weight_decay: 0.0,
};

fn digits() -> Graph {
    let models = Path::new(env!("CARGO_MANIFEST_DIR")).join("models");
    Graph::read(&models.join("aot/digits_mlp.onnx"))
}

/// Two steps on a device with a fault in it: the calls that they made, or the message where they fail.
/// Afterwards nothing is left.
fn attempt(fault: Option<Fault<'_>>) -> Result<u64, String> {
    let device = Device::new();
    if let Some(fault) = fault {
        device.gpu.inject(fault);
    }
    let outcome = steps(&device);
    let leaks = device.gpu.leaks();
    // What a lost or failed device holds cannot be given back.
    let gone = matches!(fault, Some(Launch(_) | Lost(_)));
    assert!(gone || leaks.is_empty(), "{fault:?}: {leaks:?}");
    outcome
}

fn steps(device: &Device) -> Result<u64, String> {
    let cuda = device.open(options()).map_err(|error| error.to_string())?;
    let graph = digits();
    let (plan, _) = graph.plan(&cuda, 2, OPTIMIZER.state().len());
    let mut executable = cuda.prepare(vec![plan]).map_err(|f| f.to_string())?;
    for number in 1..=2 {
        for input in executable.plan().inputs.clone().into_iter().flatten() {
            let zeros = vec![0; input.ty.bytes()];
            (executable.write(input.buffer, &zeros)).map_err(|f| f.to_string())?;
        }
        let ran = executable.run(&StepContext::default(), None);
        ran.map_err(|fault| fault.to_string())?;
        let step = Step {
            number,
            learning_rate: 1e-3,
            gradient_scale: 1.0,
        };
        let norm = executable.gradient_norm();
        assert!(norm.map_err(|fault| fault.to_string())?.is_finite());
        let updated = executable.update(&OPTIMIZER, &step);
        updated.map_err(|fault| fault.to_string())?;
    }
    Ok(device.gpu.calls().values().sum())
}

/// Every allocation may be the one that there is no memory for.
#[test]
fn no_memory() {
    attempt(None).unwrap();
    let mut failures = 0;
    for number in 1.. {
        match attempt(Some(Memory(number))) {
            Ok(_) => break,
            Err(message) => {
                failures += 1;
                let says = message.contains("cannot give") || message.contains("OUT_OF_MEMORY");
                assert!(says, "allocation {number}: {message}");
            }
        }
    }
    assert!(failures >= 5, "{failures}");
}

/// Kernels that fail show at the next wait, and from then on in all.
#[test]
fn a_kernel_fails() {
    for number in [1, 2, 7] {
        let message = attempt(Some(Launch(number))).unwrap_err();
        assert!(message.contains("CUDA_ERROR_LAUNCH_FAILED"), "{message}");
        assert!(message.starts_with("cuda, "), "{message}");
    }
}

/// Any call may be the one after which there is no device.
#[test]
fn the_device_is_lost() {
    let calls = attempt(None).unwrap();
    for number in (1..calls).step_by(37) {
        let message = attempt(Some(Lost(number))).unwrap_err();
        let says = message.contains("CUDA_ERROR_") || message.contains("CUBLAS_STATUS_");
        assert!(says, "call {number}: {message}");
    }
}

/// Each function that is called may fail, and none of its errors is passed over.
#[test]
fn no_error_is_passed_over() {
    let device = Device::new();
    steps(&device).unwrap();
    let calls = device.gpu.calls();
    drop(device);
    assert!(calls.len() > 25, "{calls:?}");
    for name in calls.keys() {
        // What gives back, and texts of errors: failing, they have nobody to tell but standard error.
        let gives_back = ["Destroy", "Free", "Release", "Unload", "GetError"];
        if gives_back.iter().any(|part| name.contains(part)) {
            continue;
        }
        // CUDA_ERROR_UNKNOWN, and CUBLAS_STATUS_INTERNAL_ERROR.
        let code = if name.starts_with("cublas") { 14 } else { 999 };
        let outcome = attempt(Some(Call(name, 1, code)));
        assert!(outcome.is_err(), "an error of {name} is passed over");
    }
}

#[test]
fn no_device() {
    let device = Device::new();
    device.gpu.set_devices(0);
    let refused = device.open(options()).err();
    assert_eq!(refused, Some(Unavailable::NoDevice));
}

/// The command, on a device that fails in the middle of a run.
#[test]
fn a_checkpoint_stays_whole() {
    super::device::load_nvrtc();
    let folder = tempfile::tempdir().unwrap();
    let libraries = folder.path().join("libraries");
    std::fs::create_dir(&libraries).unwrap();
    Gpu::link_into(&libraries).unwrap();
    let models = Path::new(env!("CARGO_MANIFEST_DIR")).join("models");
    let checkpoint = folder.path().join("checkpoint");
    let run = |fault: Option<&str>, more: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_velora-opt"));
        command
            .arg("run")
            .arg(models.join("aot/digits_mlp.onnx"))
            .arg("--data")
            .arg(models.join("data/digits_test.npz"))
            .args(["--batch", "4", "--device", "cuda", "--steps", "6"])
            .args(more)
            .env("LD_LIBRARY_PATH", &libraries)
            .env("XDG_CACHE_HOME", folder.path());
        if let Some(fault) = fault {
            command.env("SOFTGPU_FAULT", fault);
        }
        let output = command.output().unwrap();
        let text = String::from_utf8(output.stderr).unwrap();
        (output.status.code(), text)
    };
    let keep = [
        "--checkpoint",
        checkpoint.to_str().unwrap(),
        "--checkpoint-every",
        "1",
    ];
    let (status, text) = run(None, &[]);
    assert_eq!((status, &text[..]), (Some(0), ""));
    for fault in ["launch:8", "lost:900", "cuGraphLaunch:6:719"] {
        let _ = std::fs::remove_file(&checkpoint);
        let (status, text) = run(Some(fault), &keep);
        assert_eq!(status, Some(1), "{fault}: {text}");
        assert!(text.contains("CUDA_ERROR_"), "{fault}: {text}");
        // What the last whole step left can be gone on from.
        let resume = ["--resume", checkpoint.to_str().unwrap()];
        let (status, text) = run(None, &resume);
        assert_eq!((status, &text[..]), (Some(0), ""), "{fault}");
    }
}

/// The command where libraries are missing: by default it runs on the CPU and says why, and asked for the
/// device it says what to install.
#[test]
fn missing_libraries_are_named() {
    super::device::load_nvrtc();
    let models = Path::new(env!("CARGO_MANIFEST_DIR")).join("models");
    let run = |missing: &str, device: &str, devices: &str| {
        let libraries = tempfile::tempdir().unwrap();
        Gpu::link_into(libraries.path()).unwrap();
        for entry in std::fs::read_dir(libraries.path()).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_str().unwrap();
            if name.starts_with(missing) {
                std::fs::remove_file(&path).unwrap();
            }
        }
        let output = Command::new(env!("CARGO_BIN_EXE_velora-opt"))
            .arg("run")
            .arg(models.join("aot/digits_mlp.onnx"))
            .arg("--data")
            .arg(models.join("data/digits_test.npz"))
            .args(["--batch", "4", "--steps", "1", "--device", device])
            .env("LD_LIBRARY_PATH", libraries.path())
            .env("SOFTGPU_DEVICES", devices)
            .env("XDG_CACHE_HOME", libraries.path())
            .output()
            .unwrap();
        let text = String::from_utf8(output.stderr).unwrap();
        (output.status.code(), text)
    };
    for (missing, devices, says) in [
        ("libcuda", "1", "no CUDA driver found (libcuda.so)"),
        ("libnvrtc", "1", "no libnvrtc.so.12 found"),
        ("libcublasLt", "1", "no libcublasLt.so.12 found"),
        ("none of them", "0", "the CUDA driver has no device"),
    ] {
        let (status, text) = run(missing, "auto", devices);
        assert_eq!(status, Some(0), "{missing}: {text}");
        assert!(
            text.contains(says) && text.ends_with(": running on the CPU\n"),
            "{text}"
        );
        assert_eq!(text.lines().count(), 1, "{text}");
        let (status, text) = run(missing, "cuda", devices);
        assert_eq!(status, Some(1), "{missing}: {text}");
        assert!(text.starts_with("velora-opt: --device cuda: "), "{text}");
        assert!(
            text.contains(says) && text.contains("use --device cpu"),
            "{text}"
        );
    }
}

#[test]
fn opening_says_what_is_missing() {
    let device = Device::new();
    let why = |fault| {
        device.gpu.inject(fault);
        let opened: Result<Cuda, Unavailable> = device.open(options());
        opened.err().map(|why| why.to_string()).unwrap_or_default()
    };
    let text = why(Call("cuDevicePrimaryCtxRetain", 1, 999));
    assert!(
        text.starts_with("the CUDA device cannot be used: cuDevicePrimaryCtxRetain failed"),
        "{text}"
    );
    let text = why(Call("cublasLtCreate", 1, 1));
    assert!(text.contains("cublasLtCreate"), "{text}");
}
