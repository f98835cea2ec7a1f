//! Gradients that leave the graph as P and v with dW = v ⊗ P.
//!
//! That they stand for the gradients of the original is shown in three steps: on the original's way from
//! contractions to output there is linear work only, which nothing else reads; the rewritten graph does the
//! same work, node for node, on factors; and every contraction's factor is `s·zᵀdY` with the one v that is
//! handed out. Then v ⊗ P is what the way would have made of the gradients v ⊗ zᵀdY.

use super::{Difference, Form, Found, Prover, at, is_marked};
use prost::Message;
use std::collections::HashMap;
use velora_graph::analysis::Analyses;
use velora_graph::analysis::buffers::is_view;
use velora_graph::analysis::partition::was_moved;
use velora_graph::analysis::roles::{Factored, Hints, roles};
use velora_graph::analysis::sites::route::{Route, route};
use velora_graph::analysis::sites::{self, Site};
use velora_graph::ir::{Graph, NodeId, Origin, ValueId};
use velora_graph::onnx::make::tensor_info;
use velora_graph::onnx::schema::tensor_shape_proto::dimension;
use velora_graph::onnx::schema::{NodeProto, TensorProto, ValueInfoProto, type_proto};
use velora_graph::shapes::DataType;

/// The mark of the nodes that make factors.
pub const OP: &str = "FactoredGradient";
/// The mark that names the value of the original in whose place a factor stands.
const FACTOR_OF: &str = "velora.factor_of";

/// A gradient of the original, and its factors in the rewritten graph.
pub struct Way {
    /// The way in the original.
    route: Route,
    /// By value of the original on the way: the node of the rewritten graph that makes its factor.
    makers: HashMap<ValueId, NodeId>,
    /// By value of the original on the way, and the accumulator's buffer: the factor's name.
    names: HashMap<ValueId, String>,
    /// The output that is v.
    v: ValueId,
    /// Its declaration, as it should be.
    declared: ValueInfoProto,
    /// G.
    groups: i64,
}

/// The ways of all gradients that leave as factors, and what speaks against others that seem to.
///
/// `hints` are what the user said of the original's outputs.
pub fn ways(
    old: &Graph,
    analyses: &Analyses,
    new: &Graph,
    hints: &Hints,
) -> (Vec<Way>, Vec<Difference>) {
    // Roles of the rewritten graph, where any gradient of it seems to have factors.
    let told = roles(new, hints);
    let mut makers: HashMap<&str, NodeId> = HashMap::new();
    let mut doubled = Vec::new();
    for &id in new.order() {
        if let Some(of) = new.node(id).metadata(FACTOR_OF)
            && makers.insert(of, id).is_some()
        {
            doubled.push(at(new, id, of, "has two factors"));
        }
    }
    let (mut ways, mut problems) = (Vec::new(), doubled);
    for &(parameter, output) in &analyses.roles.gradients {
        let name = old.value(output).name.as_str();
        let Some(&maker) = makers.get(name) else {
            continue;
        };
        let found = route(old, &analyses.shapes, &analyses.sites, (parameter, output))
            .map_err(|why| format!("leaves as factors, but {why}"))
            .and_then(|route| {
                let roles = told.as_ref().map_err(|error| error.to_string())?;
                way(old, analyses, new, (&makers, &roles.factored), route)
            });
        match found {
            Ok(way) => ways.push(way),
            Err(problem) => problems.push(at(new, maker, name, problem)),
        }
    }
    (ways, problems)
}

/// Finds the factors of one way.
fn way(
    old: &Graph,
    analyses: &Analyses,
    new: &Graph,
    (by_mark, known): (&HashMap<&str, NodeId>, &[Factored]),
    route: Route,
) -> Result<Way, String> {
    let mut makers = HashMap::new();
    let mut names = HashMap::new();
    let made = route
        .nodes
        .iter()
        .flat_map(|&id| old.node(id).outputs.iter().flatten());
    for &value in route.results.iter().chain(made) {
        let name = &old.value(value).name;
        let maker = by_mark.get(name.as_str()).copied();
        let factor = maker.and_then(|id| new.node(id).outputs.first().copied().flatten());
        let (Some(maker), Some(factor)) = (maker, factor) else {
            return Err(format!("has no factor for '{name}', which it is made of"));
        };
        makers.insert(value, maker);
        names.insert(value, new.value(factor).name.clone());
    }
    let last = makers[&route.output];
    if let Some(buffer) = route.buffer {
        let read = new.node(last).inputs.first().copied().flatten();
        let read = read.ok_or("is summed up in no buffer")?;
        let sum = new.value(read);
        let private = new.inputs().contains(&read) && sum.users.len() == 1 && !sum.is_output;
        // The original's starts with what the caller puts into it.
        let mut defaults = new.initializers().iter();
        if !private || defaults.any(|tensor| tensor.name() == sum.name) {
            return Err(format!("is summed up in '{}'", sum.name));
        }
        names.insert(buffer, new.value(read).name.clone());
    }
    let factored = known.iter().find(|factored| {
        new.value(factored.gradient).name == names[&route.output]
            && new.value(factored.parameter).name == old.value(route.parameter).name
    });
    let factored = factored.ok_or("does not say which parameter and direction it belongs to")?;
    if factored.features_last != route.features_last {
        return Err("names the wrong axis of the parameter".to_owned());
    }
    let site = |product: &NodeId| analyses.sites.at(*product);
    let features = route
        .products
        .first()
        .and_then(site)
        .map_or(0, |site| site.features);
    let groups = factored.groups;
    if !(1..=features).contains(&groups) {
        return Err(format!("has {groups} groups of {features} features"));
    }
    let type_of = analyses
        .shapes
        .of(route.buffer.unwrap_or(route.output))
        .data_type;
    let size = crate::select::sub_token_size(features, groups);
    let own = new.output_infos().iter().zip(new.outputs());
    let own = own.filter(|(_, value)| **value == factored.direction);
    let axes = own.map(|(info, _)| axes(info)).next().unwrap_or(1);
    let sizes = match axes {
        2 => vec![groups, size],
        _ => vec![size],
    };
    let v = factored.direction;
    let direction = type_of.unwrap_or(DataType::FLOAT);
    Ok(Way {
        declared: tensor_info(&new.value(v).name, direction, sizes),
        route,
        makers,
        names,
        v,
        groups,
    })
}

fn axes(info: &ValueInfoProto) -> usize {
    let Some(type_proto::Value::TensorType(tensor)) =
        info.r#type.as_ref().and_then(|t| t.value.as_ref())
    else {
        return 0;
    };
    tensor.shape.as_ref().map_or(0, |shape| shape.dim.len())
}

impl Way {
    /// Whether factors stand in the place of an input or output of the original.
    pub fn replaces(&self, value: ValueId) -> bool {
        value == self.route.output || self.route.buffer == Some(value)
    }

    /// The declarations that stand in the place of that of an input or output.
    pub fn declarations(
        &self,
        old: &Graph,
        value: ValueId,
        info: &ValueInfoProto,
    ) -> Vec<ValueInfoProto> {
        let mut factor = info.clone();
        factor.name = Some(self.names.get(&value).cloned().unwrap_or_default());
        if let Some(type_proto::Value::TensorType(tensor)) =
            factor.r#type.as_mut().and_then(|t| t.value.as_mut())
            && DataType(tensor.elem_type()).is_float()
            && let Some(shape) = &mut tensor.shape
            && let Some(dim) = shape.dim.get_mut(usize::from(self.route.features_last))
        {
            dim.value = Some(dimension::Value::DimValue(self.groups));
        }
        match old.outputs().contains(&value) {
            true => vec![factor, self.declared.clone()],
            false => vec![factor],
        }
    }
}

impl<'a> Prover<'a> {
    /// Finds the factors of the original's gradients among the nodes that are not there any more, and
    /// returns the others.
    pub(super) fn factored(&mut self, ways: &[Way], missing: Vec<NodeId>) -> Vec<NodeId> {
        let old = self.original.graph();
        let mut left = missing;
        for way in ways {
            for &result in &way.route.results {
                let before = old.producer(result);
                if let Some(before) = before
                    && let Some(&site) = self.results.get(&before)
                {
                    left.retain(|&id| id != before);
                    self.found.push(Found {
                        site,
                        form: Form::Factors,
                        node_before: before,
                        node: way.makers[&result],
                        direction: Some(way.v),
                    });
                }
            }
            for &id in &way.route.nodes {
                left.retain(|&other| other != id);
                self.proof.removed += 1;
                if let Err(difference) = self.along(way, id) {
                    self.proof.differences.push(difference);
                }
            }
        }
        left
    }

    /// Compares a node of a way with the one that does its work on factors.
    fn along(&self, way: &Way, id: NodeId) -> Result<(), Difference> {
        let (old, new) = (self.original.graph(), self.rewritten.graph());
        let was = old.node(id);
        let Some(&made) = was.outputs.iter().flatten().next() else {
            return Ok(());
        };
        let twin = way.makers[&made];
        let is = new.node(twin);
        let mut wanted = NodeProto {
            input: Vec::new(),
            output: Vec::new(),
            metadata_props: Vec::new(),
            ..was.proto.clone()
        };
        let mut operands = was.inputs.len();
        if is_view(was) {
            wanted.op_type = Some("Identity".to_owned());
            wanted.attribute.clear();
            operands = 1;
        }
        let bare = NodeProto {
            metadata_props: Vec::new(),
            ..is.proto.clone()
        };
        if bare.encode_to_vec() != wanted.encode_to_vec() || is.inputs.len() != operands {
            let problem = format!("does not do to a factor what '{}' did", was.label(old));
            return Err(at(new, twin, "", problem));
        }
        if is.outputs.iter().flatten().count() != 1 {
            return Err(at(new, twin, "", "makes more than a factor"));
        }
        for (was, is) in was.inputs.iter().zip(&is.inputs) {
            let expected = was.map(|value| {
                let own = || old.value(value).name.clone();
                way.names.get(&value).cloned().unwrap_or_else(own)
            });
            let read = is.map(|value| new.value(new.unpinned(value)).name.clone());
            if expected != read {
                let read = read.unwrap_or_default();
                let problem = format!("is read in the place of '{}'", expected.unwrap_or_default());
                return Err(at(new, twin, &read, problem));
            }
        }
        Ok(())
    }
}

/// What a handed out direction is a copy of.
pub fn source(new: &Graph, v: ValueId) -> Option<ValueId> {
    let mut from = v;
    // Directions of groups lose an axis before they are brought to their type.
    for copy in [&["Identity", "Cast"][..], &["Reshape"]] {
        let made = new.producer(from).map(|id| new.node(id));
        let made = made.filter(|n| n.domain().is_empty() && copy.contains(&n.op()) && is_marked(n));
        match made {
            Some(node) => from = new.unpinned(node.inputs.first().copied().flatten()?),
            None if from == v => return None,
            None => break,
        }
    }
    Some(from)
}

/// Whether two values are constants of the same type, shape and data.
pub fn same_constant(new: &Graph, a: ValueId, b: ValueId) -> bool {
    let constant = |value: ValueId| match new.value(value).origin {
        Origin::Initializer(number) => new.initializers().get(number),
        _ => None,
    };
    let same = |a: &TensorProto, b: &TensorProto| {
        a.raw_data.is_some()
            && (a.data_type, &a.dims, &a.raw_data) == (b.data_type, &b.dims, &b.raw_data)
    };
    constant(a)
        .zip(constant(b))
        .is_some_and(|(a, b)| same(a, b))
}

/// Checks that a node is the product of z and dY, in the layout of the contraction.
pub fn product(
    new: &Graph,
    id: NodeId,
    site: &Site,
    z: ValueId,
    scale: f64,
) -> Result<(), Difference> {
    let node = new.node(id);
    let wrong = |problem: &str| Err(at(new, id, "", problem));
    let sites::Form::Weight(weight) = &site.form else {
        return wrong("makes factors of what is no contraction");
    };
    let is_product = node.domain().is_empty() && node.op() == "Gemm";
    let flags = (node.int("transA", 0), node.int("transB", 0));
    if !is_product || flags != (1, 0) || node.inputs.len() != 2 {
        return wrong("is no product of the transpose of one operand and the other");
    }
    let slot = usize::from(weight.transposed);
    let read = node.inputs.get(slot).copied().flatten();
    if read.map(|value| new.unpinned(value)) != Some(z) {
        return wrong("makes the transpose of what it should");
    }
    let other = node.inputs.get(1 - slot).copied().flatten();
    let turned = match other {
        Some(gradient) => turned(new, z)? != turned(new, gradient)?,
        None => return wrong("does not read dY"),
    };
    if turned != weight.gradient_flipped {
        return wrong("reads dY with its rows and columns exchanged");
    }
    let (is, expected) = (
        node.float("alpha", 1.0),
        (scale * f64::from(weight.scale)) as f32,
    );
    if is.to_bits() != expected.to_bits() {
        let problem = format!("has alpha = {is}, expected {expected}");
        return Err(at(new, id, "", problem));
    }
    Ok(())
}

/// Whether the tool's nodes before an operand of a product exchange its last two axes; up to a
/// compression, which is looked at elsewhere, or a node that is not the tool's.
///
/// They may view it, bring it to another type, exchange axes or make it of 8-bit integers. What else
/// stands there would make another product.
fn turned(new: &Graph, operand: ValueId) -> Result<bool, Difference> {
    let mut turned = false;
    let mut here = operand;
    loop {
        here = new.unpinned(here);
        let Some(id) = new.producer(here).filter(|&id| is_marked(new.node(id))) else {
            return Ok(turned);
        };
        let node = new.node(id);
        // A node of the original that was moved has a mark, and no origin.
        if was_moved(node) && node.metadata("velora.origin").is_none() {
            return Ok(turned);
        }
        match (node.domain(), node.op(), node.velora_op()) {
            (_, _, Some("Compress" | "Dequantize")) => return Ok(turned),
            ("", "Cast", None) => {}
            // Rows are made of dY as it should be, or they would hold entries of several.
            ("", _, None) if is_view(node) && !turned => {}
            ("", "Transpose", None) => {
                let rank = node.ints("perm").map_or(0, <[i64]>::len);
                let mut swapped: Vec<i64> = (0..rank as i64).collect();
                if rank >= 2 {
                    swapped.swap(rank - 2, rank - 1);
                }
                if rank < 2 || node.ints("perm") != Some(&swapped[..]) {
                    return Err(at(new, id, "", "exchanges other axes than the last two"));
                }
                turned = !turned;
            }
            _ => return Err(at(new, id, "", "changes an operand of a factor")),
        }
        match node.inputs.first().copied().flatten() {
            Some(read) => here = read,
            None => return Ok(turned),
        }
    }
}
