//! The runtime on the graphs of `models/`, and what the rewrite makes of them: bits, bytes, allocations;
//! and on random graphs, against differences in 64 bits.
#![allow(clippy::unwrap_used)]

mod allocations;
mod bits;
mod costs;
#[path = "../../runtime/tests/counting/mod.rs"]
mod counting;
mod differences;
mod factors;
mod footprint;
mod graphs;
mod plans;
mod roofline;
mod scale;
mod variants;
