//! Symbolic dimensions: exact integer expressions over named sizes.
