//! Planted faults: each is found, by its check and by no other, and only while that check is on.
#![allow(clippy::unwrap_used)]

mod common;

use common::{Device, arg, random, texts};
use softgpu::ptx::{Kernel, parse};
use softgpu::vm::{Check, Checks, Report};

/// A kernel of `faults.cu`, and how to launch it.
struct Case {
    kernel: &'static str,
    /// The checks that must find it, all others being on, too; none for a correct kernel.
    checks: &'static [Check],
    grid: u32,
    block: u32,
    dynamic: usize,
    d: u32,
    /// Elements of input and output.
    sizes: [usize; 2],
    /// Whether the output's memory is the input's.
    aliased: bool,
}

const fn case(kernel: &'static str, checks: &'static [Check], block: u32, d: u32) -> Case {
    let n = block as usize;
    Case {
        kernel,
        checks,
        grid: 1,
        block,
        dynamic: 0,
        d,
        sizes: [n, n],
        aliased: false,
    }
}

const fn sized(mut case: Case, grid: u32, sizes: [usize; 2]) -> Case {
    case.grid = grid;
    case.sizes = sizes;
    case
}

const fn aliased(mut case: Case) -> Case {
    case.aliased = true;
    case
}

const fn dynamic(mut case: Case, bytes: usize) -> Case {
    case.dynamic = bytes;
    case
}

const ROWS: [usize; 2] = [8000, 16];

const CASES: &[Case] = &[
    sized(case("moments_clean", &[], 256, 1000), 8, ROWS),
    sized(
        case(
            "moments_missing_sync",
            &[Check::UninitShared, Check::SharedRace],
            256,
            1000,
        ),
        8,
        ROWS,
    ),
    sized(
        case("moments_overwrites_early", &[Check::SharedRace], 256, 1000),
        8,
        ROWS,
    ),
    sized(
        case("moments_reads_unwritten", &[Check::UninitShared], 256, 1000),
        8,
        ROWS,
    ),
    sized(
        case("off_by_one", &[Check::OutOfBounds], 256, 1000),
        4,
        [1000, 1000],
    ),
    sized(case("wrong_stride", &[], 128, 64), 4, [16 * 64, 16]),
    sized(
        case("misaligned_load", &[Check::Misaligned], 32, 5),
        1,
        [200, 32],
    ),
    sized(
        case("misaligned_store", &[Check::Misaligned], 32, 3),
        1,
        [32, 100],
    ),
    // The sum reads lanes that have exited, and its mask names them.
    case(
        "shuffle_after_exit",
        &[Check::AbsentLane, Check::ShuffleSource],
        64,
        64,
    ),
    aliased(sized(
        case("reads_own_writes", &[Check::ReadOnly], 256, 0),
        1,
        [512, 512],
    )),
    aliased(case("in_place", &[Check::ReadOnly], 64, 0)),
    sized(
        case("adds_without_atomics", &[Check::GlobalRace], 64, 0),
        1,
        [64, 32],
    ),
    sized(
        case("adds_without_atomics", &[Check::GlobalRace], 32, 0),
        2,
        [64, 32],
    ),
    sized(case("adds_without_atomics", &[], 32, 0), 1, [32, 32]),
    sized(case("adds_atomically", &[], 64, 0), 4, [256, 32]),
    case("reads_what_others_add", &[Check::GlobalRace], 64, 0),
    case("stores_what_others_add", &[Check::GlobalRace], 64, 0),
    case("neighbour_without_syncwarp", &[Check::SharedRace], 32, 0),
    case("neighbour_with_syncwarp", &[], 32, 0),
    case("neighbour_with_partial_syncwarp", &[], 32, 0),
    case("beyond_partial_syncwarp", &[Check::SharedRace], 32, 0),
    case("same_place_in_one_warp", &[Check::GlobalRace], 32, 0),
    case("bytes_side_by_side", &[], 64, 0),
    case("shared_past_the_end", &[Check::OutOfBounds], 32, 1),
    case("shared_past_the_end", &[], 32, 0),
    dynamic(
        case("dynamic_past_the_end", &[Check::OutOfBounds], 32, 1),
        128,
    ),
    dynamic(case("dynamic_past_the_end", &[], 32, 1), 132),
    case("local_past_the_end", &[Check::OutOfBounds], 8, 1),
    case("local_past_the_end", &[], 8, 0),
    case("reads_unwritten_local", &[Check::UninitLocal], 8, 7),
    case("reads_unwritten_local", &[], 8, 8),
    case("register_without_value", &[Check::UninitRegister], 32, 0),
    case("address_without_value", &[Check::UninitRegister], 32, 0),
    case("branch_without_value", &[Check::UninitRegister], 32, 0),
    case("register_not_chosen", &[], 32, 0),
    case("half_a_warp_votes", &[Check::AbsentLane], 32, 0),
    case("half_a_warp_votes_by_its_mask", &[], 32, 0),
    case("shuffle_from_outside", &[Check::ShuffleSource], 32, 0),
    case("not_in_own_mask", &[Check::OwnMask], 32, 0),
    case("exits_before_barrier", &[Check::ExitedAtBarrier], 64, 40),
    case("exits_before_barrier", &[], 64, 64),
    case("different_barriers", &[Check::BarrierDivergence], 64, 32),
    case("different_barriers", &[Check::BarrierDivergence], 64, 40),
    case("different_barriers", &[], 64, 64),
    case("waits_forever", &[Check::EndlessLoop], 1, 0),
    case("writes_constants", &[Check::ConstantWrite], 32, 0),
    case("bounded", &[Check::LaunchLimits], 96, 0),
    case("bounded", &[], 64, 0),
];

fn run(kernels: &[Kernel], case: &Case, checks: Checks, seed: u64) -> Report {
    let kernel = kernels.iter().find(|k| k.name == case.kernel).unwrap();
    let mut device = Device::with(vec![kernel.clone()]);
    device.options.checks = checks;
    device.options.seed = seed;
    // Enough for every kernel but the one that never ends.
    device.options.max_steps = 100_000;
    let x = device.upload(&random(case.sizes[0], 1));
    let out = if case.aliased {
        x
    } else {
        device.upload(&vec![0f32; case.sizes[1]])
    };
    device.launch(
        case.kernel,
        case.grid,
        case.block,
        case.dynamic,
        &[arg(x), arg(out), arg(case.d)],
    )
}

fn found(report: &Report) -> Vec<Check> {
    let mut found = report.found.clone();
    found.sort_by_key(|c| *c as u32);
    found.dedup();
    found
}

#[test]
fn faults_are_found_by_their_checks_alone() {
    for (arch, text) in texts("faults") {
        let kernels = parse(&text).unwrap();
        for case in CASES {
            for seed in 0..4 {
                let report = run(&kernels, case, Checks::all(), seed);
                assert_eq!(
                    found(&report),
                    case.checks,
                    "{} block {} d {} compute_{arch} seed {seed}: {:#?}",
                    case.kernel,
                    case.block,
                    case.d,
                    report.errors
                );
            }
        }
    }
}

#[test]
fn a_check_that_is_off_finds_nothing_and_alone_it_finds_its_fault() {
    for (arch, text) in texts("faults") {
        let kernels = parse(&text).unwrap();
        for case in CASES {
            let without = case
                .checks
                .iter()
                .fold(Checks::all(), |all, c| all.without(*c));
            let report = run(&kernels, case, without, 0);
            assert!(
                report.errors.is_empty(),
                "{} compute_{arch}: {:#?}",
                case.kernel,
                report.errors
            );
            for check in case.checks {
                let report = run(&kernels, case, Checks::none().with(*check), 0);
                assert_eq!(found(&report), [*check], "{} compute_{arch}", case.kernel);
            }
        }
    }
}

#[test]
fn every_check_has_a_fault() {
    // Reads of device memory that nothing wrote have a test of their own below.
    for check in Check::ALL.into_iter().filter(|c| *c != Check::UninitGlobal) {
        assert!(
            CASES.iter().any(|case| case.checks == [check]),
            "{check:?} has no fault that is its alone"
        );
    }
}

#[test]
fn device_memory_that_nothing_wrote() {
    for (_, text) in texts("faults") {
        let run = |checks: Checks, written: usize| {
            let mut device = Device::new(&text);
            device.options.checks = checks;
            let (x, out) = (device.empty(128), device.empty(128));
            device.mem.find(x, 128).unwrap().0.valid[..written].fill(1);
            found(&device.launch("copies", 1, 32, 0, &[arg(x), arg(out), arg(0u32)]))
        };
        assert_eq!(run(Checks::all(), 127), [Check::UninitGlobal]);
        assert_eq!(run(Checks::all(), 128), []);
        assert_eq!(
            run(Checks::none().with(Check::UninitGlobal), 127),
            [Check::UninitGlobal]
        );
        assert_eq!(run(Checks::all().without(Check::UninitGlobal), 127), []);
    }
}

#[test]
fn messages_say_where() {
    for (_, text) in texts("faults") {
        let kernels = parse(&text).unwrap();
        let case = CASES.iter().find(|c| c.kernel == "off_by_one").unwrap();
        let report = run(&kernels, case, Checks::all(), 0);
        let source = include_str!("../kernels/faults.cu");
        let line = source
            .lines()
            .position(|l| l.contains("if (i <= d)"))
            .unwrap()
            + 1;
        let message = &report.errors[0];
        assert!(
            message.contains("off_by_one: out-of-bounds global"),
            "{message}"
        );
        assert!(
            message.contains("block [3, 0, 0] thread [232, 0, 0]"),
            "{message}"
        );
        assert!(message.contains(&format!("(.cu line {line})")), "{message}");
        assert!(message.contains("has 4000 bytes, offset 4000"), "{message}");
        assert!(message.contains("ld.global.nc.f32"), "{message}");
    }
}

#[test]
fn a_trap_ends_the_launch() {
    for (_, text) in texts("faults") {
        let mut device = Device::new(&text);
        let (x, out) = (device.upload(&[1f32; 32]), device.empty(128));
        let report = device.launch("traps", 1, 32, 0, &[arg(x), arg(out), arg(0u32)]);
        assert!(report.errors[0].contains("trapped"), "{:?}", report.errors);
        device.clean("traps", 1, 32, 0, &[arg(x), arg(out), arg(1u32)]);
    }
}

#[test]
fn counts_of_memory_traffic() {
    for (_, text) in texts("faults") {
        let mut device = Device::new(&text);
        let (x, out) = (device.upload(&random(256, 1)), device.empty(1024));
        let report = device.clean("copies", 1, 256, 0, &[arg(x), arg(out), arg(0u32)]);
        assert_eq!((report.loads, report.stores), (256, 256));
        assert_eq!((report.bytes_read, report.bytes_written), (1024, 1024));
        // A handful of instructions per thread: addresses, the load and the store.
        assert!(
            (256 * 8..256 * 30).contains(&report.instrs),
            "{}",
            report.instrs
        );
    }
}
