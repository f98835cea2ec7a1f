//! Counts what the process allocates, for `run` to say what steps allocate outside their plan.

use stats_alloc::{INSTRUMENTED_SYSTEM, StatsAlloc};
use std::alloc::System;

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

/// The number of allocations so far, and their bytes.
pub fn count() -> (u64, u64) {
    let stats = ALLOCATOR.stats();
    let count = stats.allocations + stats.reallocations;
    let grown = usize::try_from(stats.bytes_reallocated).unwrap_or(0);
    (count as u64, (stats.bytes_allocated + grown) as u64)
}

/// The same, since an earlier count.
pub fn since((count_before, bytes_before): (u64, u64)) -> (u64, u64) {
    let (number, bytes) = count();
    (number - count_before, bytes.saturating_sub(bytes_before))
}
