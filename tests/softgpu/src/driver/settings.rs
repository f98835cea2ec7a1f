//! What the device is, and where reports go besides the process that causes them.

use std::fs::OpenOptions;
use std::io::Write;

/// The properties of the device that tests vary.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    /// Devices: 1, or 0 for a machine that has the driver and no device.
    pub(crate) devices: i32,
    /// Compute capability × 10.
    pub(crate) capability: u32,
    /// Bytes of device memory.
    pub(crate) memory: usize,
    /// Order of blocks and threads in kernels.
    pub(crate) seed: u64,
    /// The newest version of PTX that the driver takes, × 10.
    pub(crate) ptx: u32,
    /// Whether the device has memory pools (`cuMemAllocAsync`).
    pub(crate) pools: bool,
    /// A file that gets a line for each report, for processes that a test starts.
    log: Option<String>,
}

impl Settings {
    /// The defaults, changed by `SOFTGPU_CAPABILITY`, `SOFTGPU_MEMORY`, `SOFTGPU_SEED`, `SOFTGPU_PTX`,
    /// `SOFTGPU_DEVICES`, `SOFTGPU_POOLS` (numbers) and `SOFTGPU_LOG` (a path).
    pub(crate) fn from_environment() -> Self {
        let number = |name: &str| {
            std::env::var(name)
                .ok()
                .and_then(|text| text.parse::<u64>().ok())
        };
        Self {
            devices: number("SOFTGPU_DEVICES").map_or(1, |n| n as i32),
            capability: number("SOFTGPU_CAPABILITY").map_or(80, |n| n as u32),
            memory: number("SOFTGPU_MEMORY").map_or(8 << 30, |n| n as usize),
            seed: number("SOFTGPU_SEED").unwrap_or(0),
            ptx: number("SOFTGPU_PTX").map_or(88, |n| n as u32),
            pools: number("SOFTGPU_POOLS").is_none_or(|n| n != 0),
            log: std::env::var("SOFTGPU_LOG").ok(),
        }
    }

    /// Appends a line to the log, if there is one.
    pub(crate) fn log(&self, line: &str) {
        let Some(path) = &self.log else { return };
        let written = OpenOptions::new()
            .create(true)
            .append(true)
            .open(path)
            .and_then(|mut file| writeln!(file, "{line}"));
        if let Err(error) = written {
            eprintln!("softgpu: cannot write {path}: {error}\nsoftgpu: {line}");
        }
    }

    /// Shared memory that a block may have after opting in, in bytes.
    pub(crate) fn shared_opt_in(&self) -> usize {
        match self.capability {
            80 | 87 => 163 << 10,
            86 | 89 | 120 => 99 << 10,
            90.. => 227 << 10,
            _ => 64 << 10,
        }
    }
}
