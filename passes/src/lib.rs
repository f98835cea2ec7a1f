//! The rewrites of `velora-opt`, each from a graph and its analyses to a new graph message.

pub mod compress;
