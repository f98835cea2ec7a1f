//! The rewrites of `velora-opt`: one pass, one file; a manager runs them.

pub mod adapt;
pub mod compress;
pub mod dead_code;
pub mod derive;
pub mod formula;
pub mod hoist;
pub mod manager;
mod names;
pub mod ops;
pub mod outer;
pub mod pin;
pub mod pipeline;
pub mod planner;
pub mod proof;
mod proto;
pub mod recompute;
pub mod schedule;
pub mod select;
