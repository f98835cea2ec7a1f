//! What surrounds the plan in training: initial values, the optimiser, checkpoints.

pub mod checkpoint;
pub mod gradient;
pub mod init;
pub mod optimizer;
pub mod schedule;
