//! The live bytes at each step of the file's order, and what is written over what.

use super::case::{Case, Found, Kind, columns, made, name};
use velora_graph::analysis::lifetimes::Lifetimes as Spans;
use velora_passes::pipeline::assumed_sizes;

pub struct Lifetimes;

impl Kind for Lifetimes {
    fn name(&self) -> &'static str {
        "lifetimes"
    }

    fn run(&self, case: &Case) -> Result<Found, String> {
        Ok(case.analyses().map(|analyses| {
            let graph = &case.model.graph;
            let sizes = assumed_sizes(&case.model, &analyses.shapes);
            let order = graph.order();
            let spans = Spans::new(graph, &analyses.buffers, &sizes, order);
            let mut rows = Vec::new();
            for (step, (live, &node)) in spans.live(&sizes).iter().zip(order).enumerate() {
                let alive: Vec<String> = (spans.live_at(step).into_iter())
                    .map(|root| match spans.takes_over(root) {
                        Some(old) if spans.span(root).is_some_and(|(birth, _)| birth == step) => {
                            format!("{} over {}", name(graph, root), name(graph, old))
                        }
                        _ => name(graph, root).to_owned(),
                    })
                    .collect();
                rows.push(vec![
                    made(graph, node).to_owned(),
                    live.to_string(),
                    alive.join(", "),
                ]);
            }
            let (peak, step) = spans.peak(&sizes);
            let mut text = columns(&rows);
            text += &format!("peak {peak} at {}\n", made(graph, order[step]));
            let symbolic = spans.symbolic_peak(&analyses.shapes);
            let symbolic = symbolic.map_or("unknown".to_owned(), |s| s.to_string());
            text + &format!("symbolic peak {symbolic}\n")
        }))
    }
}
