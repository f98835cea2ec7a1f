//! The matrix product beside that of the `gemm` crate, alternating: seconds of the fastest run of each and
//! their ratio (below one: ours is faster).
//!
//! `cargo bench --bench gemm` runs the table below with one thread and with all. With the argument `serve` it
//! reads lines `threads m n k transpose_a transpose_b runs` and answers each with the seconds of both, so that
//! another program's product can be timed between them.
#![allow(clippy::unwrap_used)]

use std::io::Write;
use std::time::Instant;

use gemm::{Parallelism, gemm as reference};
use velora_runtime::cpu::gemm::{Bias, Matrix, MatrixMut, Problem, gemm, workspace_len};

/// `m`, `n`, `k` and whether the left and the right operand are transposed views.
const SHAPES: &[(usize, usize, usize, bool, bool)] = &[
    (2048, 768, 768, false, false),
    (2048, 3072, 768, false, false),
    (2048, 768, 3072, false, false),
    (2048, 768, 768, false, true),
    (2048, 768, 3072, false, true),
    (768, 768, 2048, true, false),
    (3072, 768, 2048, true, false),
    (2048, 8192, 768, false, false),
    (24, 768, 2048, true, false),
    (32, 4096, 2048, true, false),
    (32, 32, 16384, true, false),
    (128, 128, 64, false, true),
    (128, 64, 128, false, false),
    (1, 4096, 4096, false, false),
    (4096, 1, 4096, false, false),
];

/// Time since a moment. With `CPU_TIME` in the environment it is the time that this thread was running, which
/// is what one thread's product takes on a machine that is busy with other things.
struct Clock {
    wall: Instant,
    cpu: Option<u64>,
}

impl Clock {
    fn start() -> Self {
        Clock {
            cpu: Self::cpu(),
            wall: Instant::now(),
        }
    }

    #[cfg(target_os = "linux")]
    fn cpu() -> Option<u64> {
        #[repr(C)]
        struct Time {
            seconds: i64,
            nanoseconds: i64,
        }
        unsafe extern "C" {
            fn clock_gettime(clock: i32, time: *mut Time) -> i32;
        }
        const THREAD_CPU_TIME: i32 = 3;
        std::env::var_os("CPU_TIME")?;
        let mut time = Time {
            seconds: 0,
            nanoseconds: 0,
        };
        // SAFETY: the function of the C library with its signature on 64-bit Linux.
        (unsafe { clock_gettime(THREAD_CPU_TIME, &mut time) } == 0)
            .then_some((time.seconds * 1_000_000_000 + time.nanoseconds) as u64)
    }

    #[cfg(not(target_os = "linux"))]
    fn cpu() -> Option<u64> {
        None
    }

    fn seconds(self) -> f64 {
        match self.cpu.zip(Self::cpu()) {
            Some((before, after)) => 1e-9 * (after - before) as f64,
            None => self.wall.elapsed().as_secs_f64(),
        }
    }
}

struct Case {
    problem: Problem,
    transposed: (bool, bool),
    a: Vec<f32>,
    b: Vec<f32>,
    c: Vec<f32>,
    workspace: Vec<f32>,
}

impl Case {
    fn new(m: usize, n: usize, k: usize, transposed: (bool, bool)) -> Self {
        let fill = |len| {
            (0..len)
                .map(|i| ((i * 7919) % 1009) as f32 / 1009.0 - 0.5)
                .collect()
        };
        let problem = Problem { m, n, k };
        Case {
            problem,
            transposed,
            a: fill(m * k),
            b: fill(k * n),
            c: vec![0.0; m * n],
            workspace: vec![0.0; workspace_len::<f32>(problem, 1)],
        }
    }

    fn operands(&self) -> (Matrix<'_, f32>, Matrix<'_, f32>) {
        let Problem { m, n, k } = self.problem;
        let a = match self.transposed.0 {
            true => Matrix::row_major(&self.a, m).transposed(),
            false => Matrix::row_major(&self.a, k),
        };
        let b = match self.transposed.1 {
            true => Matrix::row_major(&self.b, k).transposed(),
            false => Matrix::row_major(&self.b, n),
        };
        (a, b)
    }

    fn ours(&mut self) -> f64 {
        let (mut c, mut workspace) = (
            std::mem::take(&mut self.c),
            std::mem::take(&mut self.workspace),
        );
        let (a, b) = self.operands();
        let to = MatrixMut::row_major(&mut c, self.problem.n);
        let start = Clock::start();
        gemm(self.problem, 1.0, a, b, 0.0, to, Bias::None, &mut workspace).unwrap();
        let time = start.seconds();
        (self.c, self.workspace) = (c, workspace);
        time
    }

    fn theirs(&mut self, threads: usize) -> f64 {
        let Problem { m, n, k } = self.problem;
        let mut c = std::mem::take(&mut self.c);
        let (a, b) = self.operands();
        let parallelism = if threads == 1 {
            Parallelism::None
        } else {
            Parallelism::Rayon(threads)
        };
        let start = Clock::start();
        // SAFETY: the operands have the elements that the sizes and strides say.
        unsafe {
            reference(
                m,
                n,
                k,
                c.as_mut_ptr(),
                1,
                n as isize,
                false,
                a.data.as_ptr(),
                a.col_stride as isize,
                a.row_stride as isize,
                b.data.as_ptr(),
                b.col_stride as isize,
                b.row_stride as isize,
                0.0,
                1.0,
                false,
                false,
                false,
                parallelism,
            );
        }
        let time = start.seconds();
        self.c = c;
        time
    }

    /// The fastest of some runs of ours and of the other, alternating.
    fn fastest(&mut self, threads: usize, runs: usize) -> (f64, f64) {
        (0..runs).fold((f64::MAX, f64::MAX), |(ours, theirs), _| {
            (ours.min(self.ours()), theirs.min(self.theirs(threads)))
        })
    }
}

fn main() {
    if std::env::args().any(|argument| argument == "serve") {
        return serve();
    }
    let all = std::thread::available_parallelism().map_or(1, usize::from);
    for threads in if all == 1 { vec![1] } else { vec![1, all] } {
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .build()
            .unwrap();
        println!("{threads} threads");
        for &(m, n, k, ta, tb) in SHAPES {
            let mut case = Case::new(m, n, k, (ta, tb));
            let runs = (2_000_000_000 / (m * n * k)).clamp(9, 400);
            let (ours, theirs) = pool.install(|| case.fastest(threads, runs));
            let rate = 2e-9 * (m * n * k) as f64;
            println!(
                "({m:5}, {n:5}, {k:5}) {}{} ours {:9.1} us {:6.1} GF/s  gemm {:9.1} us  ratio {:.3}",
                if ta { 'T' } else { 'N' },
                if tb { 'T' } else { 'N' },
                ours * 1e6,
                rate / ours,
                theirs * 1e6,
                ours / theirs
            );
        }
    }
}

fn serve() {
    let mut pools = std::collections::HashMap::new();
    let mut cases = std::collections::HashMap::new();
    for line in std::io::stdin().lines() {
        let line = line.unwrap();
        let mut numbers = line
            .split_whitespace()
            .map(|word| word.parse::<usize>().unwrap());
        let mut next = || numbers.next().unwrap();
        let (threads, m, n, k) = (next(), next(), next(), next());
        let (transposed, runs) = ((next() == 1, next() == 1), next());
        let pool = pools.entry(threads).or_insert_with(|| {
            rayon::ThreadPoolBuilder::new()
                .num_threads(threads)
                .build()
                .unwrap()
        });
        let case = cases
            .entry((m, n, k, transposed))
            .or_insert_with(|| Case::new(m, n, k, transposed));
        let (ours, theirs) = pool.install(|| case.fastest(threads, runs));
        println!("{ours} {theirs}");
        std::io::stdout().flush().unwrap();
    }
}
