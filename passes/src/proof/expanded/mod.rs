//! Expanded operators (`--inline`): their nodes are those of the operators' own bodies.
//!
//! An expansion is read from what it makes backwards, beside the body as text: the same operators with the
//! same attributes, reading one another in the same way. Names and order do not matter. What it reads from
//! outside, and the attributes of the call that it stands for, follow from that; they are then compared
//! with the site's, as those of a call are.

mod body;

use super::gradients::{Form, Gradient, Rewritten, factored, reconstruction};
use super::{Difference, at};
use crate::ops::{self, Op, Variant};
use crate::select::sub_token_size;
use body::{Attempt, Members};
use std::collections::{BTreeSet, HashMap, HashSet};
use velora_graph::analysis::Analyses;
use velora_graph::analysis::sites;
use velora_graph::ir::{Graph, NodeId, Origin, ValueId};
use velora_graph::onnx::schema::AttributeProto;

/// Nodes that are the body of an operator.
struct Expansion {
    op: Op,
    variant: Variant,
    /// The node that makes the value that it was found by.
    root: NodeId,
    /// What the body reads, in the order of the operator's inputs; `None` of what that value does not
    /// depend on.
    inputs: Vec<Option<ValueId>>,
    /// What it makes, in the order of the outputs; `None` as with the inputs.
    outputs: Vec<Option<ValueId>>,
    /// The attributes of the call, as far as the body reads them.
    attributes: HashMap<String, AttributeProto>,
}

/// Compares every expansion with its operator's body, and what it reads with the gradients'.
pub(super) fn check(
    (old, analyses): (&Graph, &Analyses),
    rewritten: &Rewritten<'_>,
    gradients: &[Gradient],
    differences: &mut Vec<Difference>,
) {
    let graph = rewritten.graph;
    let mut found = Vec::new();
    for op in Op::ALL {
        let members = members(rewritten, op);
        if members.nodes.is_empty() {
            continue;
        }
        // The texts are ours, and a test reads them: without them no node is part of a body.
        let bodies = ops::bodies(op).unwrap_or_default();
        let mut seen = HashSet::new();
        for (root, value) in roots(&members) {
            let Some(attempt) = members.best(&bodies, value) else {
                continue;
            };
            seen.extend(attempt.seen.iter().copied());
            match attempt.wrong.clone() {
                Some(difference) => differences.push(difference),
                None => found.push(expansion(op, root, attempt)),
            }
        }
        for &id in graph.order() {
            if members.nodes.contains(&id) && !seen.contains(&id) {
                let problem = format!("is marked as part of {}, and is none", op.name());
                differences.push(at(graph, id, "", problem));
            }
        }
    }
    let reader = Reader {
        old,
        analyses,
        rewritten,
        found: &found,
    };
    let of_gradients = gradients.iter().map(|gradient| reader.gradient(gradient));
    let others = found.iter().map(|expansion| reader.stored(expansion));
    differences.extend(of_gradients.chain(others).filter_map(Result::err));
}

fn expansion(op: Op, root: NodeId, attempt: Attempt<'_>) -> Expansion {
    let values = |names: &[String]| -> Vec<Option<ValueId>> {
        let values = names.iter();
        values
            .map(|name| attempt.values.get(name.as_str()).copied())
            .collect()
    };
    Expansion {
        op,
        variant: attempt.variant,
        root,
        inputs: values(&attempt.body.input),
        outputs: values(&attempt.body.output),
        attributes: (attempt.attributes.iter())
            .map(|(&name, value)| (name.to_owned(), value.clone()))
            .collect(),
    }
}

/// The new nodes that are marked as parts of an expanded operator.
fn members<'a>(rewritten: &Rewritten<'a>, op: Op) -> Members<'a> {
    let graph = rewritten.graph;
    let marked = |id: &NodeId| {
        let node = graph.node(*id);
        !rewritten.matched[id.index()]
            && node.domain() != ops::DOMAIN
            && node.velora_op() == Some(op.name())
            && !(op == Op::Compress && beside(graph, *id))
    };
    Members {
        graph,
        op,
        nodes: graph.order().iter().copied().filter(marked).collect(),
    }
}

/// Whether a node is a cast of z or v, which runs with the compression and is marked so. The only casts in
/// the body are of what a comparison makes.
fn beside(graph: &Graph, id: NodeId) -> bool {
    let node = graph.node(id);
    let read = node.inputs.first().copied().flatten();
    let maker = read.and_then(|value| graph.producer(graph.unpinned(value)));
    node.op() == "Cast" && maker.is_none_or(|id| graph.node(id).op() != "Equal")
}

/// The values of an operator's nodes that others read, through pins or not, or that leave the graph.
fn roots(members: &Members<'_>) -> BTreeSet<(NodeId, ValueId)> {
    let graph = members.graph;
    let mut found = BTreeSet::new();
    let mut read = |value: ValueId| {
        let value = graph.unpinned(value);
        let maker = graph.producer(value);
        let maker = maker.filter(|id| members.nodes.contains(id));
        found.extend(maker.map(|id| (id, value)));
    };
    for &id in graph.order() {
        let node = graph.node(id);
        // Pins read values to wait for them.
        if !members.nodes.contains(&id) && node.velora_op() != Some("Pin") {
            let values = node.inputs.iter().flatten().chain(&node.captures);
            values.for_each(|&value| read(value));
        }
    }
    graph.outputs().iter().for_each(|&value| read(value));
    found
}

/// Compares expansions with what they stand for.
struct Reader<'a> {
    old: &'a Graph,
    analyses: &'a Analyses,
    rewritten: &'a Rewritten<'a>,
    found: &'a [Expansion],
}

impl Reader<'_> {
    fn at(&self, expansion: &Expansion, problem: String) -> Result<(), Difference> {
        Err(at(self.rewritten.graph, expansion.root, "", problem))
    }

    /// The expansions that make a value of an operator.
    fn making(&self, node: Option<NodeId>) -> impl Iterator<Item = &Expansion> {
        let found = self.found.iter();
        found.filter(move |expansion| Some(expansion.root) == node)
    }

    /// What a gradient is made by, its compression and its direction, where they are expanded.
    fn gradient(&self, gradient: &Gradient) -> Result<(), Difference> {
        let factors = &gradient.factors;
        let maker = match gradient.form {
            Form::Factored => Some((factored(self.rewritten, gradient.node), 2)),
            Form::Reconstructed => {
                let slot = gradient.site.slot;
                Some((reconstruction(self.rewritten, gradient.node, slot), 1))
            }
            // No operator of the domain makes a factor.
            Form::Factors => None,
        };
        for (expansion, v) in maker.iter().flat_map(|&(maker, v)| {
            let made = self.making(Some(maker));
            made.map(move |expansion| (expansion, v))
        }) {
            for (place, wanted) in [(0, factors.z), (v, factors.v)] {
                self.reads(expansion, place, wanted)?;
            }
            self.settings(expansion, gradient)?;
        }
        let compressions = self.found.iter().filter(|expansion| {
            expansion.op == Op::Compress
                && expansion.inputs.get(1).copied().flatten() == Some(factors.direction)
        });
        for expansion in compressions {
            self.settings(expansion, gradient)?;
        }
        self.direction(gradient, factors.direction)
    }

    /// A direction that is computed is that of the activation.
    fn direction(&self, gradient: &Gradient, direction: ValueId) -> Result<(), Difference> {
        let graph = self.rewritten.graph;
        let mut value = direction;
        // No chain of casts and operators is longer than the graph.
        for _ in 0..=graph.node_count() {
            value = graph.unpinned(value);
            let Some(maker) = graph.producer(value) else {
                return Ok(());
            };
            let expansion = self.making(Some(maker)).next();
            let next = match expansion {
                Some(running) if running.op == Op::RunningDirection => {
                    let state = running.inputs.first().copied().flatten();
                    let origin = state.map(|state| graph.value(state).origin);
                    if !matches!(origin, Some(Origin::Input(_))) {
                        let problem = "moves a direction that is no input of the graph";
                        return self.at(running, problem.to_owned());
                    }
                    running.inputs.get(1).copied().flatten()
                }
                Some(mean) => {
                    self.settings(mean, gradient)?;
                    return self.of_activation(mean, gradient);
                }
                None if graph.node(maker).op() == "Cast" => {
                    graph.node(maker).inputs.first().copied().flatten()
                }
                None => None,
            };
            match next {
                Some(next) => value = next,
                None => return Ok(()),
            }
        }
        Ok(())
    }

    fn of_activation(&self, expansion: &Expansion, gradient: &Gradient) -> Result<(), Difference> {
        let (graph, buffers) = (self.rewritten.graph, &self.rewritten.buffers);
        let Some(x) = expansion.inputs.first().copied().flatten() else {
            return self.at(expansion, "does not read X".to_owned());
        };
        let is = &graph.value(buffers.root(x)).name;
        let activation = self.analyses.buffers.root(gradient.site.activation);
        let wanted = &self.old.value(activation).name;
        match is == wanted {
            true => Ok(()),
            false => self.at(
                expansion,
                format!("reads '{is}' in the place of '{wanted}'"),
            ),
        }
    }

    fn reads(
        &self,
        expansion: &Expansion,
        place: usize,
        wanted: ValueId,
    ) -> Result<(), Difference> {
        let graph = self.rewritten.graph;
        let wanted = graph.unpinned(wanted);
        match expansion.inputs.get(place).copied().flatten() {
            Some(is) if graph.unpinned(is) != wanted => {
                let [is, wanted] = [is, wanted].map(|value| &graph.value(value).name);
                let problem = format!("reads '{is}' in the place of '{wanted}'");
                self.at(expansion, problem)
            }
            _ => Ok(()),
        }
    }

    /// Compares the variant and the attributes of an expansion with the site.
    fn settings(&self, expansion: &Expansion, gradient: &Gradient) -> Result<(), Difference> {
        let (site, factors) = (&gradient.site, &gradient.factors);
        let (op, variant) = (expansion.op, expansion.variant);
        let weight = match &site.form {
            sites::Form::Weight(weight) => Some(weight),
            _ => None,
        };
        let size = sub_token_size(site.features, factors.groups);
        let wanted = op.relevant(Variant {
            padded: size.saturating_mul(factors.groups) != site.features,
            transposed: weight.is_some_and(|weight| weight.transposed),
            channels: site.kind == sites::Kind::Conv,
            ..variant
        });
        for (what, is, wanted) in [
            ("padded sub-tokens", variant.padded, wanted.padded),
            (
                "a transposed gradient",
                variant.transposed,
                wanted.transposed,
            ),
            ("channels", variant.channels, wanted.channels),
        ] {
            if is != wanted {
                let without = if is { "" } else { "out" };
                let problem = format!(
                    "is the body of {} with{without} {what}, and should be the other",
                    op.name()
                );
                return self.at(expansion, problem);
            }
        }
        for (name, wanted) in [("groups", factors.groups), ("features", site.features)] {
            let is = expansion.attributes.get(name);
            let is = is.map(|attribute| attribute.i.unwrap_or_default());
            if let Some(is) = is.filter(|&is| is != wanted) {
                return self.at(expansion, format!("has {name} = {is}, expected {wanted}"));
            }
        }
        let wanted = (factors.scale * f64::from(weight.map_or(1.0, |w| w.scale))) as f32;
        let is = expansion.attributes.get("scale");
        let is = is.map(|attribute| attribute.f.unwrap_or_default());
        match is.filter(|is| is.to_bits() != wanted.to_bits()) {
            Some(is) => self.at(expansion, format!("has scale = {is}, expected {wanted}")),
            None => Ok(()),
        }
    }

    /// What is brought back from 8-bit integers is what one operator made.
    fn stored(&self, expansion: &Expansion) -> Result<(), Difference> {
        let graph = self.rewritten.graph;
        let [Some(short), Some(scale)] = expansion.inputs[..] else {
            return Ok(());
        };
        if expansion.op != Op::Dequantize {
            return Ok(());
        }
        let together = self
            .making(graph.producer(short))
            .any(|made| made.op == Op::Quantize && made.outputs == [Some(short), Some(scale)]);
        match together {
            true => Ok(()),
            false => self.at(
                expansion,
                "reads integers and a scale that no one Quantize made".to_owned(),
            ),
        }
    }
}
