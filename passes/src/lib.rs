//! The rewrites of `velora-opt`: one pass, one file; a manager runs them.

pub mod compress;
pub mod dead_code;
pub mod hoist;
pub mod manager;
mod names;
pub mod ops;
pub mod pin;
pub mod pipeline;
mod proto;
pub mod schedule;
pub mod select;
