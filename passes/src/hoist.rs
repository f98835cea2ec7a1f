//! Moves backward work into the forward half where less is saved then.
//!
//! Which work that may be, and how the choice is made, is [analysed](velora_graph::analysis::hoist)
//! beside the graph; here it is decided what the compression would leave of a tensor that nothing but
//! weight gradients still reads, and what is worth moving.
//!
//! A moved node stays the node that it was, input for input, and makes the same values. ONNX has no
//! halves: that it belongs to the forward half is said by `velora.half` in its metadata, for the
//! schedule, which runs it where its inputs are born, for the analyses and for our runtime.
//!
//! **Masks.** `ReluGrad(dY, Y)` hands dY on where Y is above zero, and 0 elsewhere; it keeps Y alive for
//! one bit of each element. The comparison moves, `mask = Greater(Y, 0)`, and the node stays and reads
//! `Cast(mask)`, which is above zero exactly where Y is, so that it makes the same bits in every runtime.
//! (`Where(mask, dY, 0)` would not: ONNX Runtime's turns a dY of -0 into 0.)

use crate::names::Names;
use crate::pipeline::assumed_sizes;
use crate::proto::{metadata, version};
use crate::select::{Decision, PAGE, element_bytes};
use std::collections::{BTreeMap, BTreeSet};
use velora_graph::analysis::Analyses;
use velora_graph::analysis::hoist::cut::{Hoist, hoists};
use velora_graph::analysis::hoist::{Context, Held, MASKED, Move};
use velora_graph::ir::{Graph, GraphError, Model, NodeId, Patch, ValueId};
use velora_graph::onnx::make::{float_tensor, int, node};
use velora_graph::onnx::schema::NodeProto;
use velora_graph::shapes::DataType;

/// The name of the pass.
pub const NAME: &str = "hoist";

/// At least one byte in so many must be freed of what is saved: to save one tensor in the place of
/// another of nearly its size costs time and frees nothing worth it.
const SHARE: i64 = 16;

/// What to move, given what would become of each contraction if nothing moved.
///
/// # Errors
/// [`GraphError::Cycle`] where the graph has no order.
pub fn choose(
    model: &Model,
    analyses: &Analyses,
    decisions: &[Decision],
) -> Result<Vec<Hoist>, GraphError> {
    let sizes = assumed_sizes(model, &analyses.shapes);
    let mut found = hoists(&Context {
        graph: &model.graph,
        partition: &analyses.partition,
        buffers: &analyses.buffers,
        shapes: &analyses.shapes,
        sizes: &sizes,
        sites: &analyses.sites,
        held: &held(analyses, decisions, |activation| sizes.of(activation)),
    })?;
    found.retain(|hoist| {
        let freed = hoist.before - hoist.after;
        freed >= PAGE && freed >= hoist.before / SHARE
    });
    Ok(found)
}

/// What is saved of the tensors that contractions read, where nothing but other readers stands against
/// rewriting all of these.
pub(crate) fn held(
    analyses: &Analyses,
    decisions: &[Decision],
    bytes: impl Fn(ValueId) -> Option<i64>,
) -> BTreeMap<ValueId, Held> {
    let mut by_tensor: BTreeMap<ValueId, Vec<&Decision>> = BTreeMap::new();
    for decision in decisions {
        by_tensor
            .entry(decision.activation)
            .or_default()
            .push(decision);
    }
    let of = |(tensor, decisions): (ValueId, Vec<&Decision>)| {
        let wanted = |d: &&Decision| d.reason.is_wanted();
        let first = decisions.first().filter(|_| decisions.iter().all(wanted))?;
        let (site, whole) = (first.site.as_ref()?, bytes(tensor)?);
        let element = element_bytes(analyses, site);
        let token = site.features.checked_mul(element)?;
        let compressed = first.settings.bytes_per_token(site.features, element)?;
        let direction = match first.settings.init.is_computed() {
            true => first.settings.direction_length(site.features)?,
            false => 0,
        };
        let rows = whole.checked_div(token)?.checked_mul(compressed)?;
        let then = rows.checked_add(direction.checked_mul(element)?)?;
        // Some are compressed although the tensor is kept.
        let already = decisions.iter().any(|d| d.rewritten());
        let now = if already {
            whole.checked_add(then)?
        } else {
            whole
        };
        Some((tensor, Held { now, then }))
    };
    by_tensor.into_iter().filter_map(of).collect()
}

/// What to move, by the first outputs of the nodes, which no rewrite renames.
#[derive(Clone, Debug, Default)]
pub struct Work {
    whole: BTreeSet<String>,
    masks: BTreeSet<String>,
}

impl Work {
    /// The work of all hoists; they are of this graph.
    pub fn new(graph: &Graph, hoists: &[Hoist]) -> Self {
        let mut work = Work::default();
        for &moved in hoists.iter().flat_map(|hoist| &hoist.moves) {
            let (names, node) = match moved {
                Move::Node(node) => (&mut work.whole, node),
                Move::Mask(node) => (&mut work.masks, node),
            };
            names.extend(first(graph, node).map(str::to_owned));
        }
        work
    }
}

/// The patch that moves work.
pub fn hoist(graph: &Graph, work: &Work) -> Patch {
    let reason = format!(
        "{} nodes and {} masks in the forward half",
        work.whole.len(),
        work.masks.len()
    );
    let mut patch = Patch::new(NAME, reason);
    let mut names = Names::new(graph);
    let mut zero = None;
    for &id in graph.order() {
        let Some(name) = first(graph, id) else {
            continue;
        };
        if work.whole.contains(name) {
            let mut moved = graph.node_proto(id);
            moved.metadata_props.push(metadata("half", "forward"));
            moved.metadata_props.push(version());
            patch.replace(id, vec![moved]);
        } else if work.masks.contains(name) {
            let zero = zero.get_or_insert_with(|| {
                let name = names.fresh("velora.zero".to_owned());
                patch.add_initializer(float_tensor(&name, Vec::new(), &[0.0]));
                name
            });
            mask(graph, id, zero, &mut names, &mut patch);
        }
    }
    patch
}

fn first(graph: &Graph, node: NodeId) -> Option<&str> {
    let value = graph.node(node).outputs.first().copied().flatten()?;
    Some(&graph.value(value).name)
}

/// Lets a `ReluGrad` read a mask, which is made right behind what it is of.
fn mask(graph: &Graph, id: NodeId, zero: &str, names: &mut Names, patch: &mut Patch) {
    let value = graph.node(id).inputs.get(MASKED).copied().flatten();
    let producer = value.and_then(|value| graph.producer(value));
    let (Some(value), Some(producer)) = (value, producer) else {
        return;
    };
    let y = &graph.value(value).name;
    let ours = |op, inputs: &[&str], output: &str| NodeProto {
        name: Some(output.to_owned()),
        metadata_props: vec![metadata("origin", &graph.node(id).label(graph)), version()],
        ..node(op, inputs, output)
    };
    let mask = names.fresh(format!("velora.{y}.positive"));
    let mut compare = ours("Greater", &[y, zero], &mask);
    compare.metadata_props.push(metadata("half", "forward"));
    let number = names.fresh(format!("velora.{y}.positive_float"));
    let cast = NodeProto {
        attribute: vec![int("to", i64::from(DataType::FLOAT.0))],
        ..ours("Cast", &[&mask], &number)
    };
    patch.insert_after(producer, vec![compare]);
    patch.insert_before(id, vec![cast]);
    patch.redirect(id, MASKED, number);
}
