//! What a training graph's parts are for. Each analysis reads the graph and the ones before it.

pub mod partition;
pub mod roles;
pub mod sites;
