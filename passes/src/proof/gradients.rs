//! The rewritten weight gradients: what they read.
//!
//! Each is made from z, v and dY by one of the tool's operators, called or expanded. Which of the
//! operands is which is told by where they come from: z from a `Compress`, v from a direction, dY from a
//! node of the original.

use super::{Difference, at, factors};
use crate::select::Storage;
use velora_graph::analysis::Analyses;
use velora_graph::analysis::buffers::Buffers;
use velora_graph::analysis::saved::needs_shape_only;
use velora_graph::analysis::sites::{self, Site};
use velora_graph::ir::{Graph, NodeId, Origin, ValueId};
use velora_graph::shapes::DataType;

/// How a weight gradient is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// By `FactoredWeightGrad`, in the place of the contraction.
    Factored,
    /// By the contraction itself, which reads X̂.
    Reconstructed,
    /// Not at all: P and v leave the graph in its place.
    Factors,
}

/// What a weight gradient is made from.
#[derive(Clone, Debug, PartialEq)]
pub struct Factors {
    /// z as the gradient reads it, [N, G] or [..., G].
    pub z: ValueId,
    /// v as the gradient reads it; scaled where X̂ is reconstructed.
    pub v: ValueId,
    /// v as the compression reads it.
    pub direction: ValueId,
    /// G.
    pub groups: i64,
    /// The kind of direction.
    pub init: String,
    /// The user's factor on dW; a product may have one of its own.
    pub scale: f64,
    /// How z is stored.
    pub storage: Storage,
    /// X̂, where it is reconstructed.
    pub reconstructed: Option<ValueId>,
}

/// A rewritten weight gradient.
#[derive(Clone, Debug, PartialEq)]
pub struct Gradient {
    /// The contraction in the original.
    pub site: Site,
    /// How it is made now.
    pub form: Form,
    /// The node of the rewritten graph that makes it.
    pub node: NodeId,
    /// What it is made from, in the rewritten graph.
    pub factors: Factors,
}

/// Where an operand comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Source {
    /// A node of a `Compress`.
    Compressed(NodeId),
    /// A computed direction, a floating-point constant or an input of the graph.
    Direction,
    /// A value that a node of the original makes.
    Kept(ValueId),
}

/// The rewritten graph, and which of its nodes are the original's.
pub(super) struct Rewritten<'a> {
    pub graph: &'a Graph,
    pub buffers: Buffers,
    pub matched: &'a [bool],
}

impl Rewritten<'_> {
    fn is_new(&self, node: NodeId) -> bool {
        !self.matched[node.index()]
    }
}

/// Reads how a weight gradient is made, and that it reads the right values.
pub(super) fn read(
    old: &Graph,
    analyses: &Analyses,
    rewritten: &Rewritten<'_>,
    found: &super::Found<'_>,
) -> Result<Gradient, Difference> {
    let (new, buffers) = (rewritten.graph, &rewritten.buffers);
    let site = found.site;
    let wrong = |id: NodeId, tensor: &str, problem: &str| Err(at(new, id, tensor, problem));
    let (maker, wanted) = match found.form {
        Form::Factors => (found.node, factors::OP),
        Form::Factored => (
            factored(rewritten, found.node),
            match site.form {
                sites::Form::Scale(_) => "FactoredScaleGrad",
                _ => "FactoredWeightGrad",
            },
        ),
        Form::Reconstructed => (
            reconstruction(rewritten, found.node, site.slot),
            "Reconstruct",
        ),
    };
    let before = match &site.form {
        sites::Form::Weight(weight) => Some(weight.gradient),
        sites::Form::Scale(scale) => Some(scale.gradient),
        sites::Form::Reconstructed => None,
    };
    let node = new.node(maker);
    if node.velora_op() != Some(wanted) {
        let problem = format!("makes a weight gradient, and is no {wanted}");
        return wrong(maker, "", &problem);
    }
    let (mut z, mut v, mut dy) = (Vec::new(), Vec::new(), Vec::new());
    let mut compress = None;
    for operand in operands(new, maker) {
        let from = sources(rewritten, operand);
        let compressed = from.iter().find_map(|source| match source {
            Source::Compressed(id) => Some(*id),
            _ => None,
        });
        let kept = from.iter().find_map(|source| match source {
            Source::Kept(value) => Some(*value),
            _ => None,
        });
        match (compressed, kept) {
            (Some(id), None) => {
                compress = Some(id);
                z.push(operand);
            }
            (None, Some(value)) => dy.push(value),
            (None, None) if from.contains(&Source::Direction) => v.push(operand),
            (None, None) => {}
            (Some(_), Some(_)) => {
                let problem = "reads a mixture of z and something else";
                return wrong(maker, &new.value(operand).name, problem);
            }
        }
    }
    v.extend(found.direction);
    let (&[z], &[v], Some(compress)) = (z.as_slice(), v.as_slice(), compress) else {
        return wrong(maker, "", "is not made from one z and one v");
    };
    let root = |value: ValueId| new.value(buffers.root(value)).name.as_str();
    let was = |value: ValueId| old.value(analyses.buffers.root(value)).name.as_str();
    let leaves = leaves(rewritten, compress);
    let (&[x], &[direction]) = (leaves.x.as_slice(), leaves.direction.as_slice()) else {
        return wrong(compress, "", "is not made from one X and one v");
    };
    if root(x) != was(site.activation) {
        let problem = format!(
            "is compressed in the place of '{}'",
            old.value(site.activation).name
        );
        return wrong(compress, root(x), &problem);
    }
    if let (Form::Factored | Form::Factors, Some(gradient)) = (found.form, before) {
        let Some(&dy) = dy.first() else {
            return wrong(maker, "", "does not read dY");
        };
        if root(dy) != was(gradient) {
            let problem = format!("is read in the place of dY, '{}'", old.value(gradient).name);
            return wrong(maker, root(dy), &problem);
        }
        // It may have been brought to dY's type.
        let directions = match found.form {
            Form::Factors => factors::source(new, v).into_iter().collect(),
            _ => leaves_of(rewritten, v).direction,
        };
        let same = |&d: &ValueId| {
            root(d) == root(direction)
                || found.form == Form::Factors && factors::same_constant(new, d, direction)
        };
        if !directions.iter().any(same) {
            let problem = "is not the direction that X is compressed with";
            return wrong(maker, root(v), problem);
        }
    }
    let factors = Factors {
        z,
        v,
        direction,
        groups: (node.metadata("velora.groups"))
            .and_then(|groups| groups.parse().ok())
            .unwrap_or(0),
        init: node.metadata("velora.init").unwrap_or_default().to_owned(),
        scale: match node.metadata("velora.scale") {
            None => 1.0,
            Some(scale) => scale.parse().unwrap_or(f64::NAN),
        },
        storage: match node.metadata("velora.storage") {
            None => Storage::Activation,
            Some(name) => match Storage::ALL.into_iter().find(|s| s.name() == name) {
                Some(storage) => storage,
                None => return wrong(maker, "", "does not say how z is stored"),
            },
        },
        reconstructed: match found.form {
            Form::Reconstructed => node.outputs.first().copied().flatten(),
            Form::Factored | Form::Factors => None,
        },
    };
    if found.form == Form::Factors {
        factors::product(new, maker, found.site, z, factors.scale)?;
    }
    settings(new, maker, found, &factors)?;
    if let Some(call) = leaves.call {
        settings(new, call, found, &factors)?;
    }
    Ok(Gradient {
        site: site.clone(),
        form: found.form,
        node: found.node,
        factors,
    })
}

/// Compares the attributes of a call with its marks and with the site.
fn settings(
    new: &Graph,
    id: NodeId,
    found: &super::Found<'_>,
    factors: &Factors,
) -> Result<(), Difference> {
    let node = new.node(id);
    let (site, groups) = (found.site, factors.groups);
    let wrong = |problem: String| Err(at(new, id, "", problem));
    if !(1..=site.features).contains(&groups) || !factors.scale.is_finite() {
        let problem =
            "does not say its groups, or has more than features, or its scale is no number";
        return wrong(problem.to_owned());
    }
    let compared = |name: &str| node.attribute(name).is_some();
    let weight = match &site.form {
        sites::Form::Weight(weight) => Some(weight),
        _ => None,
    };
    let expected = [
        ("groups", groups),
        ("features", site.features),
        ("transposed", weight.is_some_and(|w| w.transposed).into()),
        (
            "axis",
            if site.kind == sites::Kind::Conv {
                1
            } else {
                -1
            },
        ),
    ];
    for (name, expected) in expected {
        let is = node.int(name, expected);
        if compared(name) && is != expected {
            return wrong(format!("has {name} = {is}, expected {expected}"));
        }
    }
    let scale = (factors.scale * f64::from(weight.map_or(1.0, |w| w.scale))) as f32;
    let is = node.float("scale", scale);
    if compared("scale") && is.to_bits() != scale.to_bits() {
        return wrong(format!("has scale = {is}, expected {scale}"));
    }
    Ok(())
}

/// The node of the operator that makes a gradient, through the tool's views and casts of what it makes.
pub(super) fn factored(rewritten: &Rewritten<'_>, node: NodeId) -> NodeId {
    let graph = rewritten.graph;
    let mut here = node;
    while graph.node(here).velora_op().is_none() {
        let read = graph.node(here).inputs.first().copied().flatten();
        let maker = read.and_then(|value| graph.producer(graph.unpinned(value)));
        let Some(maker) = maker.filter(|&id| rewritten.is_new(id)) else {
            return here;
        };
        here = maker;
    }
    here
}

/// The node that makes X̂ for a product, through the views and transpositions between them.
pub(super) fn reconstruction(rewritten: &Rewritten<'_>, product: NodeId, slot: usize) -> NodeId {
    let graph = rewritten.graph;
    let (mut reader, mut slot) = (product, slot);
    loop {
        let read = graph.node(reader).inputs.get(slot).copied().flatten();
        let maker = read.and_then(|value| graph.producer(graph.unpinned(value)));
        let Some(maker) = maker.filter(|&id| rewritten.is_new(id)) else {
            return reader;
        };
        (reader, slot) = (maker, 0);
        if graph.node(reader).velora_op().is_some() {
            return reader;
        }
    }
}

/// What an operator reads: its operands, or where it is expanded, what its nodes read of others.
fn operands(graph: &Graph, id: NodeId) -> Vec<ValueId> {
    let role = graph.node(id).velora_op();
    let expanded = graph.node(id).domain() != crate::ops::DOMAIN;
    let (mut found, mut seen) = (Vec::new(), vec![id]);
    let mut pending = vec![id];
    while let Some(id) = pending.pop() {
        for &value in graph.node(id).inputs.iter().flatten() {
            let value = graph.unpinned(value);
            let maker = graph.producer(value);
            match maker.filter(|&m| expanded && graph.node(m).velora_op() == role) {
                Some(maker) if !seen.contains(&maker) => {
                    seen.push(maker);
                    pending.push(maker);
                }
                None if !found.contains(&value) => found.push(value),
                _ => {}
            }
        }
    }
    found.sort();
    found
}

/// What a compression is made of.
#[derive(Default)]
struct Leaves {
    /// What is compressed.
    x: Vec<ValueId>,
    /// What it is projected on.
    direction: Vec<ValueId>,
    /// The call of the operator, where it is one.
    call: Option<NodeId>,
}

/// Goes up from a node of a compression to what that reads.
fn leaves(rewritten: &Rewritten<'_>, compress: NodeId) -> Leaves {
    let mut leaves = Leaves::default();
    climb(rewritten, vec![compress], &mut leaves);
    leaves
}

/// The same from a value that nodes without an operator of their own may make.
fn leaves_of(rewritten: &Rewritten<'_>, value: ValueId) -> Leaves {
    let graph = rewritten.graph;
    let mut leaves = Leaves::default();
    let value = graph.unpinned(value);
    let plain = graph
        .producer(value)
        .filter(|&maker| rewritten.is_new(maker) && graph.node(maker).velora_op().is_none());
    match plain {
        Some(maker) => climb(rewritten, vec![maker], &mut leaves),
        None => leaves.direction.push(value),
    }
    leaves
}

fn climb(rewritten: &Rewritten<'_>, mut pending: Vec<NodeId>, leaves: &mut Leaves) {
    let graph = rewritten.graph;
    let mut seen = pending.clone();
    while let Some(id) = pending.pop() {
        let node = graph.node(id);
        if node.domain() == crate::ops::DOMAIN && node.op() == "Compress" {
            leaves.call = Some(id);
        }
        for &value in node.inputs.iter().flatten() {
            let value = graph.unpinned(value);
            let from = sources(rewritten, value);
            if from.contains(&Source::Direction) && from.len() == 1 {
                leaves.direction.push(value);
                continue;
            }
            let part = graph.producer(value).filter(|&maker| {
                let role = graph.node(maker).velora_op();
                rewritten.is_new(maker) && matches!(role, None | Some("Compress"))
            });
            match part {
                Some(maker) if !seen.contains(&maker) => {
                    seen.push(maker);
                    pending.push(maker);
                }
                Some(_) => {}
                None => leaves
                    .x
                    .extend(from.iter().filter_map(|source| match source {
                        Source::Kept(x) => Some(*x),
                        _ => None,
                    })),
            }
        }
    }
    for found in [&mut leaves.x, &mut leaves.direction] {
        found.sort();
        found.dedup();
    }
}

/// Where a value comes from, through nodes of the tool that are no operator of their own.
fn sources(rewritten: &Rewritten<'_>, value: ValueId) -> Vec<Source> {
    let graph = rewritten.graph;
    let mut found = Vec::new();
    let mut seen = Vec::new();
    let mut pending = vec![value];
    while let Some(value) = pending.pop() {
        let value = graph.unpinned(value);
        if seen.contains(&value) {
            continue;
        }
        seen.push(value);
        let source = match graph.value(value).origin {
            Origin::Node(id, _) => {
                let node = graph.node(id);
                // A cast of directions to the activation's type runs with the compression.
                let cast = node.domain().is_empty() && node.op() == "Cast";
                match node.velora_op() {
                    Some("Compress") if !cast => Source::Compressed(id),
                    Some("MeanDirection" | "MeanDirections" | "RunningDirection") => {
                        Source::Direction
                    }
                    _ if rewritten.is_new(id) => {
                        let read = node.inputs.iter().enumerate();
                        let read = read.filter(|&(slot, _)| !needs_shape_only(node, Some(slot)));
                        pending.extend(read.filter_map(|(_, value)| *value));
                        continue;
                    }
                    _ => Source::Kept(value),
                }
            }
            Origin::Initializer(number) => {
                let tensor = graph.initializers().get(number);
                match tensor.is_some_and(|t| DataType(t.data_type()).is_float()) {
                    true => Source::Direction,
                    false => continue,
                }
            }
            Origin::Input(_) => Source::Direction,
            _ => continue,
        };
        if !found.contains(&source) {
            found.push(source);
        }
    }
    found
}
