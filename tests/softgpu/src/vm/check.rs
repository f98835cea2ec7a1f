//! What is checked, how findings are told, and what a launch counts.

use crate::ptx::Kernel;
use std::collections::HashSet;

/// The faults that the interpreter looks for. Each can be switched off, so that tests can show that it, and
/// no other, finds a planted one.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Check {
    /// An access outside every allocation, array or parameter.
    OutOfBounds,
    /// An address that is no multiple of the size of the access.
    Misaligned,
    /// A read of device memory that nothing wrote.
    UninitGlobal,
    /// A read of shared memory that the block did not write.
    UninitShared,
    /// A read of a local array that the thread did not write.
    UninitLocal,
    /// A register that was never written (or computed from such) decides a store, an address or a branch.
    UninitRegister,
    /// Two accesses of shared memory with nothing that orders them.
    SharedRace,
    /// Two accesses of device memory with nothing that orders them.
    GlobalRace,
    /// Threads of a block that wait at different barriers.
    BarrierDivergence,
    /// A barrier that threads of the block left out by exiting.
    ExitedAtBarrier,
    /// A warp operation whose mask names lanes that exited, or that never come to it.
    AbsentLane,
    /// A shuffle that reads a lane outside its mask, or one that does not exist.
    ShuffleSource,
    /// A warp operation in a lane that its own mask leaves out, or with a mask that differs between lanes.
    OwnMask,
    /// A read through the read-only cache of memory that the launch writes.
    ReadOnly,
    /// A write of constant memory.
    ConstantWrite,
    /// A thread that does not end.
    EndlessLoop,
    /// A shape of blocks, grid or shared memory that devices refuse.
    LaunchLimits,
}

impl Check {
    /// All checks.
    pub const ALL: [Check; 17] = [
        Check::OutOfBounds,
        Check::Misaligned,
        Check::UninitGlobal,
        Check::UninitShared,
        Check::UninitLocal,
        Check::UninitRegister,
        Check::SharedRace,
        Check::GlobalRace,
        Check::BarrierDivergence,
        Check::ExitedAtBarrier,
        Check::AbsentLane,
        Check::ShuffleSource,
        Check::OwnMask,
        Check::ReadOnly,
        Check::ConstantWrite,
        Check::EndlessLoop,
        Check::LaunchLimits,
    ];
}

/// A set of checks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Checks(u32);

impl Checks {
    /// Every check.
    pub const fn all() -> Checks {
        Checks(u32::MAX)
    }

    /// No check.
    pub const fn none() -> Checks {
        Checks(0)
    }

    /// This set and `check`.
    #[must_use]
    pub const fn with(self, check: Check) -> Checks {
        Checks(self.0 | 1 << check as u32)
    }

    /// This set less `check`.
    #[must_use]
    pub const fn without(self, check: Check) -> Checks {
        Checks(self.0 & !(1 << check as u32))
    }

    /// Whether `check` is in the set.
    pub const fn has(self, check: Check) -> bool {
        self.0 >> check as u32 & 1 == 1
    }
}

/// How to run a launch.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// What to look for.
    pub checks: Checks,
    /// Bit 0 runs the blocks backwards, bit 1 the warps of a block and the lanes of atomic updates. Correct
    /// kernels differ in the order of atomic additions only.
    pub seed: u64,
    /// Whether approximate instructions err as much as their documentation allows.
    pub worst_approx: bool,
    /// Whether warp operations other than `bar.warp.sync` order the memory accesses of their lanes. NVIDIA's
    /// documentation does not promise it; compilers and devices behave so.
    pub shuffles_order: bool,
    /// Instructions that a warp may execute in one block.
    pub max_steps: u64,
    /// Bytes of shared memory that a block may have, static and dynamic.
    pub max_shared: usize,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            checks: Checks::all(),
            seed: 0,
            worst_approx: true,
            shuffles_order: true,
            max_steps: 50_000_000,
            max_shared: 166_912,
        }
    }
}

/// Findings and counts of one launch or more.
#[derive(Default, Debug)]
pub struct Report {
    /// What was found, in words: kernel, fault, block, thread, line of the PTX and of the CUDA source.
    pub errors: Vec<String>,
    /// The check that found each of `errors`.
    pub found: Vec<Check>,
    seen: HashSet<(Check, String, u32)>,
    /// Instructions, counted once per thread that executes them.
    pub instrs: u64,
    /// Loads from device memory, once per thread.
    pub loads: u64,
    /// Stores to device memory, once per thread; atomic updates count here, too.
    pub stores: u64,
    /// Bytes that threads read from device memory; a byte counts as often as it is read.
    pub bytes_read: u64,
    /// Bytes that threads wrote to device memory.
    pub bytes_written: u64,
    /// Which bytes of device memory were touched.
    pub touched: crate::touched::Touched,
}

/// Where something was found.
#[derive(Clone, Copy, Debug)]
pub(super) struct Site {
    pub(super) line: u32,
    pub(super) block: [u32; 3],
    pub(super) thread: [u32; 3],
}

impl Report {
    /// Notes a finding, once per check and line, and at most 32 in all.
    pub(super) fn add(&mut self, kernel: &Kernel, check: Check, site: Site, what: &str) {
        if self.errors.len() >= 32 || !self.seen.insert((check, kernel.name.clone(), site.line)) {
            return;
        }
        let mut message = format!(
            "{}: {what} | block {:?} thread {:?}",
            kernel.name, site.block, site.thread
        );
        if site.line > 0 {
            let index = site.line as usize - 1;
            let text = kernel.module.lines.get(index).map_or("", |l| l.trim());
            message += &format!(" | ptx {}", site.line);
            match kernel.module.source_lines.get(index) {
                Some(0) | None => {}
                Some(line) => message += &format!(" (.cu line {line})"),
            }
            message += &format!(": {text}");
        }
        self.errors.push(message);
        self.found.push(check);
    }
}
