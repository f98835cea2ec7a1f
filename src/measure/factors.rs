//! Gradients that leave a graph as factors, at full size again: to be compared with others.

use anyhow::{Context, Result};
use std::collections::BTreeSet;
use velora_graph::analysis::Analyses;
use velora_graph::analysis::roles::{Hints, roles};
use velora_graph::analysis::sites::Form as SiteForm;
use velora_graph::ir::{Graph, Model};
use velora_graph::onnx::schema::GraphProto;
use velora_passes::outer::Outer;
use velora_passes::proof::{Form, Gradient};

use super::fidelity::gradients;

/// The rewritten graph with nodes that make the gradients that it hands out as factors, each under the
/// name that it has in the original: those of contractions, and those of parameters.
///
/// `proven` are the graphs that the gradients were found in, the first with its analyses; `rewritten` is
/// the second, without its functions.
///
/// # Errors
/// Where a mark of the rewrite is missing.
pub fn expanded(
    (original, new): (&Graph, &Graph),
    analyses: &Analyses,
    rewritten: &Model,
    found: &[Gradient],
) -> Result<Model> {
    let factored: Vec<&Gradient> = { found.iter() }
        .filter(|gradient| gradient.form == Form::Factors)
        .collect();
    if factored.is_empty() {
        return Ok(rewritten.clone());
    }
    let roles = roles(new, &Hints::default())?;
    let mut proto = rewritten.to_proto();
    let graph = proto.graph.get_or_insert_default();
    let mut made = BTreeSet::new();
    for gradient in &factored {
        let site = &gradient.site;
        let result = site
            .result(original)
            .context("a contraction without a result")?;
        let name = &original.value(result).name;
        let factor = new.node(gradient.node).outputs.first().copied().flatten();
        let factor = factor.with_context(|| format!("no factor of '{name}'"))?;
        let SiteForm::Weight(weight) = &site.form else {
            continue;
        };
        let outer = Outer {
            factor: &new.value(factor).name,
            direction: &new.value(gradient.factors.v).name,
            groups: gradient.factors.groups,
            features: site.features,
            outputs: site
                .outputs
                .as_const()
                .context("an open number of outputs")?,
            features_last: weight.transposed,
        };
        if made.insert(name.clone()) {
            emit(graph, outer, name);
        }
    }
    // What lies between the last contraction and the output of a parameter works on factors only.
    for whole in gradients(original, analyses) {
        let marked = new
            .order()
            .iter()
            .copied()
            .find(|&id| new.node(id).metadata("velora.factor_of") == Some(whole.name.as_str()));
        let Some(factor) = marked.and_then(|id| new.node(id).outputs.first().copied().flatten())
        else {
            continue;
        };
        let parameter = analyses.roles.gradients.iter().find(|(_, output)| {
            let accumulator = original.producer(*output).map(|id| original.node(id));
            let added = accumulator.and_then(|node| node.inputs.get(1).copied().flatten());
            *output == whole.value || added == Some(whole.value)
        });
        let parameter = parameter.map(|(parameter, _)| &original.value(*parameter).name);
        let role = roles
            .factored
            .iter()
            .find(|role| Some(&new.value(role.parameter).name) == parameter);
        let gradient = factored
            .iter()
            .find(|gradient| Some(&original.value(gradient.site.parameter).name) == parameter);
        let (Some(role), Some(gradient)) = (role, gradient) else {
            continue;
        };
        let site = &gradient.site;
        let outer = Outer {
            factor: &new.value(factor).name,
            direction: &new.value(role.direction).name,
            groups: role.groups,
            features: site.features,
            outputs: site
                .outputs
                .as_const()
                .context("an open number of outputs")?,
            features_last: role.features_last,
        };
        if made.insert(whole.name.clone()) {
            emit(graph, outer, &whole.name);
        }
    }
    Ok(Model::from_proto(proto)?)
}

/// Adds the nodes that make `v ⊗ P` under a name.
fn emit(graph: &mut GraphProto, outer: Outer<'_>, name: &str) {
    let (nodes, constants) = outer.expand(name, |what| format!("velora.expanded.{name}.{what}"));
    graph.node.extend(nodes);
    graph.initializer.extend(constants);
}
