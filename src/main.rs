//! The `velora-opt` command.

fn main() {}
