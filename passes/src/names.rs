//! Names that are not taken yet.

use std::collections::HashSet;
use velora_graph::ir::Graph;

/// The names of a graph's values, and those given out since.
pub struct Names(HashSet<String>);

impl Names {
    /// The names that a graph's values have.
    pub fn new(graph: &Graph) -> Self {
        let names = graph.values().map(|v| graph.value(v).name.clone());
        Names(names.collect())
    }

    /// The wanted name, or the first of `wanted.2`, `wanted.3`, … that is free.
    pub fn fresh(&mut self, wanted: String) -> String {
        let mut name = wanted.clone();
        let mut count = 1;
        while !self.0.insert(name.clone()) {
            count += 1;
            name = format!("{wanted}.{count}");
        }
        name
    }
}
