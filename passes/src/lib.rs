//! The rewrites of `velora-opt`.
