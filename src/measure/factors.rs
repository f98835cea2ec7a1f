//! Gradients that leave a graph as factors, at full size again: to be compared with others.

use anyhow::{Context, Result};
use std::collections::BTreeSet;
use velora_graph::analysis::Analyses;
use velora_graph::analysis::roles::{Hints, roles};
use velora_graph::analysis::sites::Form as SiteForm;
use velora_graph::ir::{Graph, Model};
use velora_graph::onnx::make::{int_vector, node};
use velora_graph::onnx::schema::GraphProto;
use velora_passes::proof::{Form, Gradient};
use velora_passes::select::sub_token_size;

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
        let expansion = Expansion {
            p: &new.value(factor).name,
            v: &new.value(gradient.factors.v).name,
            groups: gradient.factors.groups,
            features: site.features,
            outputs: site
                .outputs
                .as_const()
                .context("an open number of outputs")?,
            features_last: weight.transposed,
        };
        if made.insert(name.clone()) {
            expansion.emit(graph, name);
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
        let expansion = Expansion {
            p: &new.value(factor).name,
            v: &new.value(role.direction).name,
            groups: role.groups,
            features: site.features,
            outputs: site
                .outputs
                .as_const()
                .context("an open number of outputs")?,
            features_last: role.features_last,
        };
        if made.insert(whole.name.clone()) {
            expansion.emit(graph, &whole.name);
        }
    }
    Ok(Model::from_proto(proto)?)
}

/// `dW = v ⊗ P` in standard operators.
struct Expansion<'a> {
    p: &'a str,
    v: &'a str,
    groups: i64,
    features: i64,
    outputs: i64,
    features_last: bool,
}

impl Expansion<'_> {
    fn emit(&self, graph: &mut GraphProto, name: &str) {
        let (g, o) = (self.groups, self.outputs);
        let size = sub_token_size(self.features, g);
        // P with an axis for the features of a group, v with axes for those that it lacks.
        let (of_p, of_v, padded, axis) = match self.features_last {
            false => ([g, 1, o], [-1, size, 1], [g * size, o], 0),
            true => ([o, g, 1], [1, -1, size], [o, g * size], 1),
        };
        let inner = |what: &str| format!("velora.expanded.{name}.{what}");
        for (what, entries) in [
            ("p_shape", &of_p[..]),
            ("v_shape", &of_v),
            ("shape", &padded),
            ("start", &[0]),
            ("end", &[self.features]),
            ("axis", &[axis]),
        ] {
            graph.initializer.push(int_vector(&inner(what), entries));
        }
        let names = ["p", "v", "outer", "padded"].map(inner);
        let [p, v, outer, whole] = &names;
        graph.node.extend([
            node("Reshape", &[self.p, &inner("p_shape")], p),
            node("Reshape", &[self.v, &inner("v_shape")], v),
            node("Mul", &[p, v], outer),
            node("Reshape", &[outer, &inner("shape")], whole),
            node(
                "Slice",
                &[whole, &inner("start"), &inner("end"), &inner("axis")],
                name,
            ),
        ]);
    }
}
