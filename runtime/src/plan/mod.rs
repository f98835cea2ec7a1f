//! From a graph to operations over places in static memory.

pub mod arena;
