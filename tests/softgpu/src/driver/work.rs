//! Operations of the device: what they are, whether they make sense, and running them.

use super::Driver;
use super::codes::{Code, Outcome};
use super::memory::is_device;
use super::races::Op;
use crate::matmul::Matmul;
use crate::ptx::Kernel;
use crate::touched::Touch;
use crate::vm;
use std::sync::Arc;

/// An operation.
#[derive(Clone, Debug)]
pub(crate) enum Work {
    Kernel(Box<KernelCall>),
    /// `count` times the first `width` bytes of `value`.
    Set {
        to: u64,
        value: u32,
        width: usize,
        count: usize,
    },
    ToDevice {
        to: u64,
        from: u64,
        len: usize,
    },
    ToHost {
        to: u64,
        from: u64,
        len: usize,
    },
    OnDevice {
        to: u64,
        from: u64,
        len: usize,
    },
    Matmul(Box<Matmul>),
}

/// A launch of a kernel.
#[derive(Clone, Debug)]
pub(crate) struct KernelCall {
    /// The module that the kernel is of.
    pub(crate) module: usize,
    pub(crate) kernel: Arc<Kernel>,
    pub(crate) grid: [u32; 3],
    pub(crate) block: [u32; 3],
    /// Bytes of dynamic shared memory.
    pub(crate) shared: usize,
    pub(crate) parameters: Vec<u8>,
}

impl Work {
    /// What to call it in reports.
    pub(crate) fn describe(&self) -> String {
        match self {
            Work::Kernel(call) => format!("kernel {}", call.kernel.name),
            Work::Set { width, count, .. } => {
                format!("the memset of {} bytes", width.saturating_mul(*count))
            }
            Work::ToDevice { len, .. } => format!("the copy of {len} bytes to the device"),
            Work::ToHost { len, .. } => format!("the copy of {len} bytes to the host"),
            Work::OnDevice { len, .. } => format!("the copy of {len} bytes on the device"),
            Work::Matmul(call) => format!("the product of {} x {}", call.d.rows, call.d.cols),
        }
    }

    /// Numbers among its arguments that may be addresses.
    pub(crate) fn addresses(&self) -> Vec<u64> {
        match self {
            Work::Kernel(call) => call
                .kernel
                .params
                .iter()
                .filter(|(_, size)| *size == 8)
                .filter_map(|(offset, _)| call.parameters.get(*offset..offset + 8)?.try_into().ok())
                .map(u64::from_le_bytes)
                .collect(),
            Work::Set { to, .. } => vec![*to],
            Work::ToDevice { to, from, .. }
            | Work::ToHost { to, from, .. }
            | Work::OnDevice { to, from, .. } => {
                vec![*to, *from]
            }
            Work::Matmul(call) => {
                let mut found = vec![call.a.at, call.b.at, call.c.at, call.d.at, call.bias];
                if call.workspace_len > 0 {
                    found.push(call.workspace);
                }
                found
            }
        }
    }
}

impl Driver {
    /// Checks the arguments that the driver can check before anything runs.
    pub(super) fn validate(&mut self, work: &Work) -> Outcome<()> {
        match *work {
            Work::Kernel(_) => Ok(()),
            Work::Set {
                to, width, count, ..
            } => {
                if to % width as u64 != 0 {
                    self.report(format!(
                        "a memset of {width}-byte values at {to:#x}, which is misaligned"
                    ));
                    return Err(Code::INVALID_VALUE);
                }
                self.range(to, width.saturating_mul(count), "memset")
                    .map(drop)
            }
            Work::ToDevice { to, from, len } => {
                self.host_address(from, "the source of a copy to the device")?;
                self.range(to, len, "the destination of a copy to the device")
                    .map(drop)
            }
            Work::ToHost { to, from, len } => {
                self.host_address(to, "the destination of a copy to the host")?;
                self.range(from, len, "the source of a copy to the host")
                    .map(drop)
            }
            Work::OnDevice { to, from, len } => {
                self.range(from, len, "the source of a copy on the device")?;
                self.range(to, len, "the destination of a copy on the device")?;
                if to < from.saturating_add(len as u64) && from < to.saturating_add(len as u64) {
                    self.report(
                        "the source and the destination of a copy on the device overlap"
                            .to_string(),
                    );
                }
                Ok(())
            }
            Work::Matmul(ref call) => self.validate_matmul(call),
        }
    }

    fn host_address(&mut self, at: u64, role: &str) -> Outcome<()> {
        if at == 0 || is_device(at) {
            self.report(format!("{role}: {at:#x} is not an address of the host"));
            return Err(Code::INVALID_VALUE);
        }
        Ok(())
    }

    /// Runs an operation whose arguments are valid.
    pub(super) fn perform(&mut self, work: &Work, op: &Op) -> Outcome<()> {
        match *work {
            Work::Kernel(ref call) => self.run_kernel(call, op),
            Work::Set {
                to,
                value,
                width,
                count,
            } => {
                let base = self.range(to, width * count, "memset")?;
                let bytes = value.to_le_bytes()[..width].repeat(count);
                self.set_bytes(to, &bytes, None);
                self.touch(op, vec![Touch::write(base, to, bytes.len())]);
            }
            Work::ToDevice { to, from, len } => {
                let base = self.range(to, len, "copy")?;
                let mut touches = vec![Touch::write(base, to, len)];
                touches.extend(
                    self.host
                        .block_of(from, len)
                        .map(|base| Touch::read(base, from, len)),
                );
                self.touch(op, touches);
                let bytes = self.depart(from, len, op);
                self.set_bytes(to, &bytes, None);
                self.counts.copied += len as u64;
            }
            Work::ToHost { to, from, len } => self.copy_to_host(to, from, len, op)?,
            Work::OnDevice { to, from, len } => {
                let (source, target) =
                    (self.range(from, len, "copy")?, self.range(to, len, "copy")?);
                let (bytes, valid) = self.bytes(from, len);
                self.set_bytes(to, &bytes, Some(&valid));
                self.touch(
                    op,
                    vec![
                        Touch::read(source, from, len),
                        Touch::write(target, to, len),
                    ],
                );
                self.counts.copied += len as u64;
            }
            Work::Matmul(ref call) => self.run_matmul(call, op),
        }
        Ok(())
    }

    fn copy_to_host(&mut self, to: u64, from: u64, len: usize, op: &Op) -> Outcome<()> {
        let base = self.range(from, len, "copy")?;
        if let Some(at) = self.undefined(from, len) {
            self.report(format!(
                "{} reads device memory without a value, byte {at}",
                op.what
            ));
        }
        let mut touches = vec![Touch::read(base, from, len)];
        let pinned = self.host.block_of(to, len);
        touches.extend(pinned.map(|base| Touch::write(base, to, len)));
        self.touch(op, touches);
        let (bytes, _) = self.bytes(from, len);
        match pinned {
            Some(_) => self.arrive_later(to, bytes, op),
            None => super::host::write(to, &bytes),
        }
        self.counts.copied += len as u64;
        Ok(())
    }

    fn run_kernel(&mut self, call: &KernelCall, op: &Op) {
        self.counts.launches += 1;
        let launch = vm::Launch {
            k: &call.kernel,
            grid: call.grid,
            block: call.block,
            params: &call.parameters,
            dyn_shared: call.shared,
        };
        let mut found = vm::Report::default();
        let options = vm::Options {
            seed: self.settings.seed,
            max_shared: self.settings.shared_opt_in(),
            ..vm::Options::default()
        };
        let ended = vm::run_with(&launch, &mut self.memory, &mut found, &options);
        self.counts.instructions += found.instrs;
        self.counts.loads += found.loads;
        self.counts.stores += found.stores;
        self.counts.bytes_read += found.bytes_read;
        self.counts.bytes_written += found.bytes_written;
        let fatal = found.errors.last().cloned().unwrap_or_default();
        found.errors.drain(..).for_each(|error| self.report(error));
        self.touch(op, found.touched.take());
        if !ended {
            self.faults.stop(match &fatal {
                text if text.contains("misaligned") => Code::MISALIGNED_ADDRESS,
                text if text.contains("out-of-bounds") || text.contains("out of bounds") => {
                    Code::ILLEGAL_ADDRESS
                }
                _ => Code::LAUNCH_FAILED,
            });
        }
    }
}
