//! Prints the graph that bytes stand for: `cargo run -p velora-testgen --example show -- 12 0 30`. What a
//! failed property names as its smallest input can be looked at this way.
#![allow(clippy::unwrap_used)]

fn main() {
    let words = std::env::args().skip(1);
    let bytes: Vec<u8> = words
        .map(|w| w.trim_matches(',').parse().unwrap())
        .collect();
    let made = velora_testgen::random::graph(&bytes);
    print!("{}", velora_graph::text::print_model(&made.model));
}
