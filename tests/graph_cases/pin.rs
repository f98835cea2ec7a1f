//! The dependences that the pass asks for, and the graph with them. The passes before it do not run:
//! the file's order is the schedule. Every pin follows it, and no view waits.

use super::case::{Case, Found, Kind, made};
use velora_graph::analysis::buffers::is_view;
use velora_graph::ir::Model;
use velora_graph::text::print_graph;
use velora_graph::verify::verify;
use velora_passes::pin::{dependences, pin};
use velora_passes::pipeline::{assumed_sizes, shapes};

pub struct Pin;

impl Kind for Pin {
    fn name(&self) -> &'static str {
        "pin"
    }

    fn run(&self, case: &Case) -> Result<Found, String> {
        let graph = &case.model.graph;
        let types = shapes(&case.model, &case.settings).map_err(|e| e.to_string())?;
        let sizes = assumed_sizes(&case.model, &types);
        let mut text = String::new();
        for pin in dependences(graph, &types, &sizes).0 {
            let place = |node| graph.order().iter().position(|&n| n == node);
            if place(pin.awaited) >= place(pin.waiter) || is_view(graph.node(pin.waiter)) {
                return Err(format!("{} cannot wait", made(graph, pin.waiter)));
            }
            text += &format!(
                "{} waits for {}\n",
                made(graph, pin.waiter),
                made(graph, pin.awaited)
            );
        }
        if text.is_empty() {
            return Ok(Ok("no pin".to_owned()));
        }
        let patch = pin(graph, &types, &sizes);
        let pinned: Model = case
            .model
            .clone()
            .apply(&patch)
            .map_err(|e| e.to_string())?;
        verify(&pinned.shell, &pinned.graph).map_err(|e| e.listing(&pinned.to_proto()))?;
        let after = shapes(&pinned, &case.settings).map_err(|e| e.to_string())?;
        for (&old, &new) in graph.outputs().iter().zip(pinned.graph.outputs()) {
            if types.of(old) != after.of(new) {
                return Err(format!("the type of {} changed", graph.value(old).name));
            }
        }
        if case.show.iter().any(|s| s == "graph") {
            text += "\n";
            text += &print_graph(&pinned.graph.to_proto());
        }
        Ok(Ok(text))
    }
}
