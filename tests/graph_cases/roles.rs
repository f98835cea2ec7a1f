//! The loss, the gradients with their parameters, and the other outputs.

use super::case::{Case, Found, Kind, name};
use velora_graph::analysis::roles::roles;

pub struct Roles;

impl Kind for Roles {
    fn name(&self) -> &'static str {
        "roles"
    }

    fn run(&self, case: &Case) -> Result<Found, String> {
        let graph = &case.model.graph;
        let found = roles(graph, &case.settings.hints).map_err(|e| e.to_string());
        Ok(found.map(|roles| {
            let mut text = format!("loss: {}\n", name(graph, roles.loss));
            for (parameter, output) in roles.gradients {
                text += &format!("{}: {}\n", name(graph, parameter), name(graph, output));
            }
            for other in roles.others {
                text += &format!("other: {}\n", name(graph, other));
            }
            text
        }))
    }
}
