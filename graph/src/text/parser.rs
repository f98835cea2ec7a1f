//! Words to protos.
