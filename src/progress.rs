//! A line on a terminal that says how far long work has come.

use std::io::{IsTerminal, Write, stderr};
use std::time::{Duration, Instant};

/// The line, on standard error, if that is a terminal; for work that takes over a second.
#[derive(Debug)]
pub struct Progress {
    start: Instant,
    last: Instant,
    active: bool,
    /// The longest line so far, in characters.
    width: usize,
}

impl Progress {
    /// The work begins now; nothing is shown where the user asked for quiet.
    pub fn new(quiet: bool) -> Self {
        let now = Instant::now();
        Progress {
            start: now,
            last: now,
            active: !quiet && stderr().is_terminal(),
            width: 0,
        }
    }

    /// So much is done, of so much; `what` says it in words, and is asked only when it is shown.
    pub fn show(&mut self, done: u64, all: u64, what: impl FnOnce() -> String) {
        let due = self.last.elapsed() > Duration::from_millis(200);
        if !self.active || !due || self.start.elapsed() < Duration::from_secs(1) {
            return;
        }
        self.last = Instant::now();
        let filled = (u128::from(done) * 20 / u128::from(all.max(1))).min(20) as usize;
        let (full, empty) = ("#".repeat(filled), ".".repeat(20 - filled));
        let line = format!("[{full}{empty}] {}", what());
        let width = self.width;
        // A terminal that is gone is no reason to stop.
        let _ = write!(stderr(), "\r{line:<width$}");
        self.width = width.max(line.chars().count());
    }
}

impl Drop for Progress {
    /// Takes the line away.
    fn drop(&mut self) {
        if self.width > 0 {
            let _ = write!(stderr(), "\r{}\r", " ".repeat(self.width));
        }
    }
}
