//! The device that a command runs on.

use crate::cli::{Device, RunArguments};
use anyhow::{Context, Result, bail};
use velora_runtime::backend::Backend;
use velora_runtime::cpu::Cpu;
use velora_runtime::session::optimizer::Optimizer;

/// Whether an optimiser can run where it is asked to; what only the CPU has is refused before any work.
///
/// # Errors
/// Where the optimiser has no kernels on the device.
pub fn check(arguments: &RunArguments, optimizer: &Optimizer) -> Result<()> {
    if arguments.device == Device::Cuda && optimizer.rank().is_some() {
        let name = optimizer.name();
        bail!("--optimizer {name} runs on the CPU only; use --device cpu, or another --optimizer");
    }
    Ok(())
}

/// Opens the device that a run asks for. Where any will do and there is no GPU, or the optimiser runs on the
/// CPU only, says that it is the CPU.
///
/// # Errors
/// Where the device is not there.
pub fn open(arguments: &RunArguments, optimizer: &Optimizer) -> Result<Box<dyn Backend>> {
    match arguments.device {
        Device::Auto if optimizer.rank().is_some() => {
            if !arguments.source.quiet {
                eprintln!(
                    "velora-opt: --optimizer {}: running on the CPU",
                    optimizer.name()
                );
            }
            cpu(arguments)
        }
        Device::Cpu => cpu(arguments),
        Device::Cuda => match cuda(arguments) {
            Ok(device) => Ok(device),
            Err(why) => bail!("--device cuda: {why}; use --device cpu, or leave it out"),
        },
        Device::Auto => match cuda(arguments) {
            Ok(device) => Ok(device),
            Err(why) => {
                if !arguments.source.quiet {
                    eprintln!("velora-opt: {why}: running on the CPU");
                }
                cpu(arguments)
            }
        },
    }
}

fn cpu(arguments: &RunArguments) -> Result<Box<dyn Backend>> {
    let cpu = Cpu::new(arguments.threads).context("cannot start threads")?;
    Ok(Box::new(cpu))
}

/// The GPU, or why there is none.
#[cfg(feature = "cuda")]
fn cuda(arguments: &RunArguments) -> std::result::Result<Box<dyn Backend>, String> {
    use velora_runtime::cuda::{Cuda, Options};
    let options = Options {
        tf32: arguments.tf32,
        ..Options::default()
    };
    match Cuda::open(options) {
        Ok(device) => Ok(Box::new(device)),
        Err(why) => Err(why.to_string()),
    }
}

/// The GPU, or why there is none.
#[cfg(not(feature = "cuda"))]
fn cuda(_: &RunArguments) -> std::result::Result<Box<dyn Backend>, String> {
    Err("this build has no CUDA backend".to_owned())
}
