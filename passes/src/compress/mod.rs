//! Replaces saved activations by their compressed form, and the weight gradient by its factored form.
//!
//! For an activation X [..., D] with sub-tokens of M features and a unit direction `v [M]`, right
//! behind X: `z[n, g] = Σ_m X[n, g·M+m]·v[m]`. For each site on it, in the place of the contraction:
//! `P = zᵀdY` [G, O] and `dW[g·M+m, o] = s·v[m]·P[g, o]` (arXiv 2405.17991; DESIGN §3), or for a scale
//! `dγ[g·M+m] = s·v[m]·Σ_n z[n, g]·dY[n, g·M+m]`. Where the node does more than the contraction (a `Gemm`
//! that also adds, the gradient of a convolution), it stays and reads the reconstructed X̂ instead of X.
//! With R directions, z is [..., G·R], and the products are sums over
//! them; docs/numerics.md has the formulas. Where gradients are to leave the graph as factors, P stands in
//! the place of dW all the way to the output.
//!
//! Everything else keeps its nodes, names and order, so that forward values and input gradients are
//! bit for bit what they were.

mod direction;
mod factors;
mod form;
mod reconstruct;
mod scale_grad;
mod weight_grad;

use crate::names::Names;
use crate::ops::{self, Op, Variant};
use crate::proto::{metadata, version};
use crate::select::{Decision, Directions, LayerSettings, Storage};
use form::Compressed;
use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use velora_graph::analysis::Analyses;
use velora_graph::analysis::sites::{Form, Kind, Site};
use velora_graph::ir::{Graph, Model, NodeId, Patch, ValueId};
use velora_graph::onnx::make::{int, int_vector, node};
use velora_graph::onnx::schema::{AttributeProto, NodeProto, StringStringEntryProto};
use velora_graph::shapes::DataType;
use velora_graph::text::ParseError;

/// The name of the pass.
pub const NAME: &str = "compress";

/// The patch that rewrites the decided sites.
///
/// # Errors
/// Only where the text of an operator's body is broken, which a test excludes.
pub fn compress(
    model: &Model,
    analyses: &Analyses,
    decisions: &[Decision],
    inline: bool,
) -> Result<Patch, ParseError> {
    let chosen: Vec<(&Decision, &Site)> = (decisions.iter())
        .filter(|d| d.rewritten())
        .filter_map(|d| Some((d, d.site.as_ref()?)))
        .collect();
    let reason = format!(
        "{} weight gradients from compressed activations",
        chosen.len()
    );
    let mut emit = Emit {
        graph: &model.graph,
        analyses,
        names: Names::new(&model.graph),
        patch: Patch::new(NAME, reason),
        used: BTreeMap::new(),
        factors: BTreeMap::new(),
        made: BTreeMap::new(),
        axes: chosen.iter().any(|(_, site)| site.kind == Kind::Conv),
        inline,
    };
    let mut compressed: BTreeMap<ValueId, Compressed> = BTreeMap::new();
    for (decision, site) in &chosen {
        let form = match compressed.entry(site.activation) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(new) => new.insert(emit.compress(site, &decision.settings)?),
        };
        let settings = &decision.settings;
        match &site.form {
            Form::Weight(of) => {
                emit.weight_grad(site, of, settings, form, decision.gradient.route())?;
            }
            Form::Scale(of) => emit.scale_grad(site, of, settings, form)?,
            Form::Reconstructed => emit.reconstructed(site, settings, form)?,
        }
    }
    let Emit {
        mut patch, used, ..
    } = emit;
    if !inline && !used.is_empty() {
        let opset = model.opset("").unwrap_or(ops::OLDEST_OPSET);
        for (op, variants) in used {
            patch.add_function(ops::function(op, &variants, opset)?);
        }
        patch.import(ops::DOMAIN, ops::VERSION);
    }
    Ok(patch)
}

struct Emit<'a> {
    graph: &'a Graph,
    analyses: &'a Analyses,
    names: Names,
    patch: Patch,
    /// Which variants of which operators are called.
    used: BTreeMap<Op, BTreeSet<Variant>>,
    /// By value on the way of a factored gradient: the name of its factor.
    factors: BTreeMap<ValueId, String>,
    /// By node that makes a factored gradient: what stands in its place.
    made: BTreeMap<NodeId, Vec<NodeProto>>,
    /// Whether calls say which axis the features are: where some are channels, since a function has one
    /// list of attributes for all of its calls.
    axes: bool,
    inline: bool,
}

impl Emit<'_> {
    fn name(&self, value: ValueId) -> &str {
        &self.graph.value(value).name
    }

    fn fresh(&mut self, wanted: String) -> String {
        self.names.fresh(wanted)
    }

    /// A call of one of our operators: one node, or its body's.
    fn call(
        &mut self,
        op: Op,
        variant: Variant,
        inputs: &[&str],
        outputs: &[&str],
        attributes: &[AttributeProto],
        metadata: &[StringStringEntryProto],
    ) -> Result<Vec<NodeProto>, ParseError> {
        let output = outputs.first().copied().unwrap_or_default();
        let mut attributes = attributes.to_vec();
        if self.axes && op.has_axis() {
            attributes.push(int("axis", if variant.channels { 1 } else { -1 }));
        }
        let call = NodeProto {
            name: Some(format!("{}:{}", op.name(), output)),
            domain: Some(ops::DOMAIN.to_owned()),
            attribute: attributes,
            metadata_props: metadata.to_vec(),
            output: outputs.iter().map(|&o| o.to_owned()).collect(),
            ..node(op.name(), inputs, output)
        };
        if self.inline {
            let owner = match output.strip_prefix("velora.") {
                Some(owner) => owner.to_owned(),
                None => output.to_owned(),
            };
            return ops::expand(op, variant, &call, |inner| {
                self.fresh(format!("velora.{owner}.{inner}"))
            });
        }
        self.used.entry(op).or_default().insert(variant);
        Ok(vec![call])
    }

    /// A standard node of ours.
    fn plain(
        &self,
        op: &str,
        inputs: &[&str],
        output: &str,
        metadata: &[StringStringEntryProto],
    ) -> NodeProto {
        NodeProto {
            name: Some(output.to_owned()),
            metadata_props: metadata.to_vec(),
            ..node(op, inputs, output)
        }
    }

    /// A view as rows of `width` elements.
    fn reshape(
        &mut self,
        input: &str,
        output: &str,
        width: i64,
        metadata: &[StringStringEntryProto],
    ) -> NodeProto {
        let shape = self.fresh(format!("{output}_shape"));
        self.patch.add_initializer(int_vector(&shape, &[-1, width]));
        self.plain("Reshape", &[input, &shape], output, metadata)
    }

    /// The type of a value; unknown ones are refused before.
    fn type_of(&self, value: ValueId) -> DataType {
        let data_type = self.analyses.shapes.of(value).data_type;
        data_type.unwrap_or(DataType::FLOAT)
    }

    /// The number of axes of a value; unknown ones are refused before.
    fn axes_of(&self, value: ValueId) -> usize {
        let shape = self.analyses.shapes.of(value).shape.as_ref();
        shape.map_or(2, Vec::len)
    }

    /// The name of the first output of a node.
    fn first_output(&self, node: NodeId) -> String {
        let output = self.graph.node(node).outputs.first().copied().flatten();
        output.map(|v| self.name(v).to_owned()).unwrap_or_default()
    }

    /// The metadata of nodes that make a parameter's gradient.
    fn metadata_of(
        &self,
        site: &Site,
        settings: &LayerSettings,
        form: &Compressed,
    ) -> Vec<StringStringEntryProto> {
        let origin = self.graph.node(site.product).label(self.graph);
        let parameter = ("parameter", self.name(site.parameter));
        self.metadata(&origin, parameter, settings, form.groups)
    }

    /// Where a new node comes from, which tensor or parameter it stands for, and how it was made.
    fn metadata(
        &self,
        origin: &str,
        (what, name): (&str, &str),
        settings: &LayerSettings,
        groups: i64,
    ) -> Vec<StringStringEntryProto> {
        let mut entries = vec![
            metadata("origin", origin),
            metadata(what, name),
            metadata("groups", &groups.to_string()),
            metadata("init", settings.init.name()),
        ];
        if settings.rank > 1 {
            entries.push(metadata("rank", &settings.rank.to_string()));
        }
        if settings.directions != Directions::Shared {
            entries.push(metadata("directions", settings.directions.name()));
        }
        if settings.storage != Storage::Activation {
            entries.push(metadata("storage", settings.storage.name()));
        }
        // Layers that share a tensor may scale their gradients differently.
        if what == "parameter" && settings.scale != 1.0 {
            entries.push(metadata("scale", &settings.scale.to_string()));
        }
        entries.push(version());
        entries
    }
}
