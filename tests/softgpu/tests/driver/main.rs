//! The driver's stand-in, through unmodified cudarc: each misuse leads to its report and its error, and the
//! correct use to none.

mod bench;
mod captures;
mod copies;
mod faults;
mod graphs;
mod handles;
mod loading;
mod matmul;
mod memory;
mod modules;
mod safe;
mod streams;
