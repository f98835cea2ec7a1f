//! What becomes of each contraction: its reason, the sentence, and who keeps its tensor alive.

use super::case::{Case, Found, Kind, made, name};
use velora_graph::ir::Graph;
use velora_passes::select::{Decision, role, select};

pub struct Select;

impl Kind for Select {
    fn name(&self) -> &'static str {
        "select"
    }

    fn run(&self, case: &Case) -> Result<Found, String> {
        let graph = &case.model.graph;
        Ok(case.analyses().and_then(|analyses| {
            let decisions = select(graph, &analyses, &case.selection).map_err(|e| e.to_string())?;
            let mut text = String::new();
            for decision in &decisions {
                let role = decision
                    .site
                    .as_ref()
                    .and_then(|site| role(graph, &analyses.partition, site));
                text += &line(graph, decision);
                if let Some(role) = role.filter(|_| case.show.iter().any(|s| s == "role")) {
                    text += &format!(" ({role:?})");
                }
                text.push('\n');
                if case.from_file {
                    continue;
                }
                for keeper in &decision.kept_alive_by {
                    let node = keeper.node.map_or("an output", |n| made(graph, n));
                    text += &format!("   {node} {}\n", keeper.why);
                }
            }
            match decisions.is_empty() {
                true => Ok("no contraction".to_owned()),
                false => Ok(text),
            }
        }))
    }
}

/// `w: rewritten: 4 groups of 2`.
pub fn line(graph: &Graph, decision: &Decision) -> String {
    format!(
        "{}: {}: {}",
        name(graph, decision.parameter),
        decision.reason.code(),
        decision.message
    )
}
