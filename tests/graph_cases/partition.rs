//! Which half each node belongs to, in the order of the file.

use super::case::{Case, Found, Kind, made, names};
use velora_graph::analysis::partition::Half;

pub struct Partition;

impl Kind for Partition {
    fn name(&self) -> &'static str {
        "partition"
    }

    fn run(&self, case: &Case) -> Result<Found, String> {
        Ok(case.analyses().map(|analyses| {
            let graph = &case.model.graph;
            let mut text = String::new();
            for (half, title) in [
                (Half::Forward, "forward:  "),
                (Half::Backward, "backward: "),
                (Half::Dead, "dead:     "),
            ] {
                let nodes = graph.order().iter();
                let nodes: Vec<&str> = { nodes }
                    .filter(|&&n| analyses.partition.half(n) == half)
                    .map(|&n| made(graph, n))
                    .collect();
                if !nodes.is_empty() {
                    text += &format!("{title}{}\n", names(&nodes));
                }
            }
            text
        }))
    }
}
