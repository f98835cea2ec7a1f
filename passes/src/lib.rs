//! The rewrites of `velora-opt`: one pass, one file; a manager runs them.

pub mod adapt;
pub mod compress;
pub mod dead_code;
pub mod formula;
pub mod hoist;
pub mod manager;
mod names;
pub mod ops;
pub mod outer;
pub mod pin;
pub mod pipeline;
pub mod proof;
mod proto;
pub mod schedule;
pub mod select;
