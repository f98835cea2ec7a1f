//! What surrounds the plan in training: initial values, the optimiser, checkpoints.

pub mod bind;
pub mod checkpoint;
pub mod directions;
pub mod evaluation;
pub mod gradient;
pub mod init;
pub mod inputs;
pub mod nonfinite;
pub mod optimizer;
pub mod prepare;
pub mod profile;
pub mod schedule;
pub mod start;
pub mod trainer;
