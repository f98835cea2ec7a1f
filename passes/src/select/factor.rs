//! Which gradients leave the graph as factors: those that nothing but compressed activations makes, all
//! along one direction.

use super::{Decision, GradientForm, Gradients, Init};
use std::collections::BTreeMap;
use velora_graph::analysis::Analyses;
use velora_graph::analysis::sites::Kind;
use velora_graph::analysis::sites::route::{Route, route};
use velora_graph::ir::{Graph, NodeId};

/// Decides about the gradients of rewritten sites.
pub(super) fn decide(graph: &Graph, analyses: &Analyses, decisions: &mut [Decision]) {
    let by_node: BTreeMap<NodeId, usize> = (decisions.iter().enumerate())
        .map(|(place, decision)| (decision.node, place))
        .collect();
    let asked = |d: &Decision| d.rewritten() && d.settings.gradients == Gradients::Factored;
    for place in 0..decisions.len() {
        let decision = &decisions[place];
        if !asked(decision) {
            continue;
        }
        let all = analyses.roles.gradients.iter();
        let mut outputs = all.filter(|(parameter, _)| *parameter == decision.parameter);
        let form = match (outputs.next(), outputs.next()) {
            _ if decision.kind != Kind::Linear => {
                Err("only those of matrix products have factors".to_owned())
            }
            (Some(&pair), None) => route(graph, &analyses.shapes, &analyses.sites, pair)
                .and_then(|route| one_direction(graph, decisions, &by_node, route)),
            _ => Err("several outputs belong to the parameter".to_owned()),
        };
        let decision = &mut decisions[place];
        decision.gradient = match form {
            Ok(route) => GradientForm::Factored(route),
            Err(why) => {
                decision.message += &format!("; its gradient leaves at full size: {why}");
                GradientForm::Unfactored(why)
            }
        };
    }
}

/// Lets a route pass whose contractions are all rewritten, with one direction among them.
fn one_direction(
    graph: &Graph,
    decisions: &[Decision],
    by_node: &BTreeMap<NodeId, usize>,
    route: Route,
) -> Result<Route, String> {
    let mut known: Option<&Decision> = None;
    for product in &route.products {
        let label = || graph.node(*product).label(graph);
        let found = by_node.get(product).and_then(|&place| decisions.get(place));
        let Some(decision) = found.filter(|d| d.rewritten()) else {
            return Err(format!(
                "'{}', which is not rewritten, is a part of it",
                label()
            ));
        };
        if decision.settings.gradients != Gradients::Factored {
            return Err(format!("'{}' is to make a full gradient", label()));
        }
        let first = *known.get_or_insert(decision);
        let groups = |d: &Decision| {
            let features = d.site.as_ref().map_or(0, |site| site.features);
            (features, d.settings.grouping.groups(features))
        };
        // Directions of two tensors are the same where they do not depend on the tensor.
        let fixed = |d: &Decision| d.settings.init == Init::None;
        let same = first.activation == decision.activation || fixed(first) && fixed(decision);
        if !same || groups(first) != groups(decision) {
            return Err(format!(
                "it is a sum of gradients with different directions ('{}' and '{}')",
                graph.node(first.node).label(graph),
                label()
            ));
        }
    }
    Ok(route)
}
