//! Training graphs made by rule, and a slow interpreter to judge rewrites by. Never published: tests,
//! benchmarks and fuzz targets of all crates use it, which no folder of one of them could serve.
//!
//! A graph is drawn from bytes ([`Choices`]), so that a property test shrinks it by shrinking bytes
//! and a fuzzer mutates it. Every operator of the forward half has a rule for its gradient; the
//! backward half is built from the rules, as an exporter would, and each weight gradient is noted in a
//! [`Contraction`], so that tests need not ask the code under test where it is. The interpreter
//! ([`interpret`]) and the byte counter ([`ledger`]) share no code with the product but the schema of
//! the files.

#![allow(clippy::unwrap_used)]

pub mod chain;
mod choices;
pub mod interpret;
pub mod layers;
pub mod ledger;
pub mod models;
pub mod random;
pub mod tape;

pub use choices::{Choices, Random};
pub use tape::{Axis, Contraction, Element, Generated, Scale, Tape, V};
