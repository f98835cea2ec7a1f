//! What surrounds the plan in training: initial values, the optimiser, checkpoints.

//pub mod bind;
pub mod checkpoint;
pub mod gradient;
pub mod optimizer;
//pub mod prepare;
pub mod schedule;
