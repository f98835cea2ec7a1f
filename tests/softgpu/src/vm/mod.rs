//! Checked interpreter of PTX. Blocks run one after another, and in a block the warps, each until it waits. The
//! lanes of a warp that are at the same instruction execute it together. Whether accesses race is decided by
//! what orders them, not by the order in which they run here.
//!
//! # What it is stricter about than a device
//!
//! - Accesses are ordered by barriers of the block, and between lanes of a warp by `bar.warp.sync`, shuffles
//!   and votes that both take part in. Fences and flags in memory order nothing, so that a kernel that hands
//!   results from block to block within a launch is reported. Two plain stores of the same value race, too.
//! - A warp operation must find all lanes that its mask names; that some have exited, which devices allow for
//!   votes, is reported.
//! - Memory read through the read-only cache must not be written by the same launch, not even afterwards by
//!   the same thread.
//! - Approximate instructions err as far as their documentation lets them ([`Options::worst_approx`]).
//!
//! # What it cannot tell
//!
//! Nothing about speed. One launch runs at a time, so that races between streams go unseen. Between arrays of
//! shared memory lie red zones of 64 bytes; the local arrays of a function lie side by side without any, as the
//! compiler makes one of them. A register or byte counts as initialised as a whole. Tensor cores, asynchronous
//! copies, textures, clusters, recursion and calls through pointers are refused when the text is read.

mod access;
mod alu;
mod approx;
mod atomic;
mod check;
mod collective;
mod convert;
mod float;
mod integer;
mod memory;
mod place;
mod round;
mod schedule;
mod shadow;
mod warp;

pub use check::{Check, Checks, Options, Report};
pub use memory::{Alloc, Mem};

use crate::ptx::Kernel;

use check::Site;
use place::Shared;
use shadow::Conflict;
use warp::{Frame, Warp, thread_index};

/// Marks bytes that belong to no variable, in the validity of shared and local memory.
const INVALID_ZONE: u8 = 2;

/// A launch of a kernel.
#[derive(Clone, Copy, Debug)]
pub struct Launch<'a> {
    /// The kernel.
    pub k: &'a Kernel,
    /// Blocks in x, y and z.
    pub grid: [u32; 3],
    /// Threads of a block in x, y and z.
    pub block: [u32; 3],
    /// The parameters, laid out as [`Kernel::params`] says.
    pub params: &'a [u8],
    /// Bytes of dynamic shared memory.
    pub dyn_shared: usize,
}

/// An instruction: its index, and its line of the PTX text.
#[derive(Clone, Copy)]
struct At {
    pc: usize,
    line: u32,
}

/// What a launch works with.
struct Machine<'a> {
    launch: Launch<'a>,
    kernel: &'a Kernel,
    options: Options,
    report: &'a mut Report,
    /// Allocations, by address.
    regions: Vec<&'a mut Alloc>,
    /// For each instruction the allocation that it accessed last.
    hints: Vec<u32>,
    shared: Shared,
    ctaid: [u32; 3],
    /// The number that records of races carry now. A block takes a new one with each [`shadow::MAX_TIME`].
    run: u32,
    /// The first of this block.
    first_run: u32,
    /// Records below this are of earlier launches.
    first_record: u64,
    /// Counts the synchronisations of the block.
    clock: u32,
    block_time: u32,
    stop: bool,
    /// Counts of this launch, per instruction executed.
    instrs: u64,
}

/// Runs a launch with every check. `seed` is as in [`Options::seed`]. Returns whether it ran to its end; findings
/// go to `report`, also if it did.
pub fn run(
    launch: &Launch,
    mem: &mut Mem,
    report: &mut Report,
    _launch_id: u32,
    seed: u64,
) -> bool {
    run_with(
        launch,
        mem,
        report,
        &Options {
            seed,
            ..Options::default()
        },
    )
}

/// As [`run`], with the given options.
pub fn run_with(launch: &Launch, mem: &mut Mem, report: &mut Report, options: &Options) -> bool {
    if !check_limits(launch, report, options) {
        return false;
    }
    let kernel = launch.k;
    let variables = mem.variables(&kernel.module);
    let blocks: u64 = launch.grid.iter().map(|n| u64::from(*n)).product();
    let threads: u32 = launch.block.iter().product();
    mem.reserve_runs(blocks.saturating_mul(2));
    let first = mem.runs + 1;
    let mut machine = Machine {
        launch: *launch,
        kernel,
        options: *options,
        report,
        regions: mem.allocs.values_mut().collect(),
        hints: vec![0; kernel.code.len()],
        shared: Shared::new(kernel, launch.dyn_shared),
        ctaid: [0; 3],
        run: mem.runs,
        first_run: first,
        first_record: u64::from(first) << 32,
        clock: 1,
        block_time: 1,
        stop: false,
        instrs: 0,
    };
    let frame = Frame {
        block: launch.block,
        grid: launch.grid,
        dynamic: launch.dyn_shared as u32,
    };
    let mut warps: Vec<Warp> = (0..threads.div_ceil(32))
        .map(|index| Warp::new(kernel, index, threads, &variables, &frame))
        .collect();
    for index in 0..blocks {
        let block = if options.seed & 1 == 1 {
            blocks - 1 - index
        } else {
            index
        };
        let [x, y] = [u64::from(launch.grid[0]), u64::from(launch.grid[1])];
        machine.ctaid = [block % x, block / x % y, block / (x * y)].map(|n| n as u32);
        machine.block(&mut warps);
        if machine.stop {
            break;
        }
    }
    machine.report.instrs += machine.instrs;
    let (stopped, runs) = (machine.stop, machine.run);
    mem.runs = runs;
    !stopped
}

fn check_limits(launch: &Launch, report: &mut Report, options: &Options) -> bool {
    let kernel = launch.k;
    let threads: u64 = launch.block.iter().map(|n| u64::from(*n)).product();
    let shared = kernel.shared_bytes + launch.dyn_shared;
    let mut wrong = None;
    if threads == 0 || launch.grid.contains(&0) {
        // Nothing could run, so this is refused also with the check off.
        report.add(kernel, Check::LaunchLimits, START, "an empty block or grid");
        return false;
    }
    if threads > 1024 || launch.block[2] > 64 {
        wrong = Some(format!(
            "a block of {:?} threads; at most 1024, 64 in z",
            launch.block
        ));
    } else if launch.grid[0] > i32::MAX as u32 || launch.grid[1] > 65535 || launch.grid[2] > 65535 {
        wrong = Some(format!(
            "a grid of {:?} blocks; at most 65535 in y and z",
            launch.grid
        ));
    } else if kernel.shared_bytes > 49_152 || shared > options.max_shared {
        wrong = Some(format!(
            "{shared} bytes of shared memory, {} of them static",
            kernel.shared_bytes
        ));
    } else if let Some((promised, exactly)) = kernel.threads
        && (threads > u64::from(promised) || (exactly && threads != u64::from(promised)))
    {
        wrong = Some(format!(
            "a block of {threads} threads where __launch_bounds__ promises {promised}"
        ));
    } else if launch.params.len() < kernel.param_bytes {
        wrong = Some(format!(
            "{} bytes of parameters of {}",
            launch.params.len(),
            kernel.param_bytes
        ));
    }
    let Some(what) = wrong else { return true };
    if threads <= 1024
        && launch.params.len() >= kernel.param_bytes
        && !options.checks.has(Check::LaunchLimits)
    {
        return true;
    }
    report.add(kernel, Check::LaunchLimits, START, &what);
    false
}

const START: Site = Site {
    line: 0,
    block: [0; 3],
    thread: [0; 3],
};

impl Machine<'_> {
    fn on(&self, check: Check) -> bool {
        self.options.checks.has(check)
    }

    /// Notes a finding of `check`, if it is on, in a lane of `warp`.
    #[cold]
    fn find(&mut self, check: Check, line: u32, warp: &Warp, lane: usize, what: &str) {
        if self.on(check) {
            let thread = thread_index(warp.index * 32 + lane as u32, self.launch.block);
            self.report.add(
                self.kernel,
                check,
                Site {
                    line,
                    block: self.ctaid,
                    thread,
                },
                what,
            );
        }
    }

    /// Notes that lanes of `mask` use what `defined` says has no value.
    #[inline(always)]
    fn need(&mut self, warp: &Warp, mask: u32, defined: u32, line: u32, role: &str) {
        if mask & !defined != 0 {
            let lane = (mask & !defined).trailing_zeros() as usize;
            let what = format!("a register without a value decides {role}");
            self.find(Check::UninitRegister, line, warp, lane, &what);
        }
    }

    /// Notes two accesses that nothing orders.
    #[cold]
    fn race(
        &mut self,
        conflict: Conflict,
        shared: bool,
        warp: &Warp,
        lane: usize,
        line: u32,
        offset: usize,
    ) {
        if conflict.read_only {
            let what = "memory that this kernel writes is read through the read-only cache (const __restrict__)";
            return self.find(Check::ReadOnly, line, warp, lane, what);
        }
        let other = shadow::thread_of(conflict.other);
        let other_thread = thread_index(other, self.launch.block);
        let run = shadow::run_number(conflict.other);
        let place = if run >= self.first_run {
            "of the same block"
        } else {
            "of another block"
        };
        let (check, space) = if shared {
            (Check::SharedRace, "shared")
        } else {
            (Check::GlobalRace, "global")
        };
        let what = format!(
            "{space} race, {} by thread {other_thread:?} {place}, byte {offset}",
            conflict.what
        );
        self.find(check, line, warp, lane, &what);
    }

    /// The next time of the block's synchronisations.
    fn tick(&mut self, line: u32, warp: &Warp) -> u32 {
        self.clock += 1;
        if self.clock >= shadow::MAX_TIME {
            let what = "more synchronisation of warps without a barrier than the detector of races can number";
            self.find(Check::EndlessLoop, line, warp, 0, what);
            self.stop = true;
            self.clock = 1;
        }
        self.clock
    }
}
