//! Replaces saved activations by their compressed form, and the weight gradient by its factored form.
//!
//! For an activation X [..., D] with sub-tokens of M features and a unit direction `v [M]`, right
//! behind X: `z[n, g] = Σ_m X[n, g·M+m]·v[m]`. For each site on it, in the place of the contraction:
//! `P = zᵀdY` [G, O] and `dW[g·M+m, o] = s·v[m]·P[g, o]` (arXiv 2405.17991; DESIGN §3). Where the
//! product does more than the contraction (a `Gemm` that also adds), it stays and reads the
//! reconstructed X̂ instead of X.
//!
//! Everything else keeps its nodes, names and order, so that forward values and input gradients are
//! bit for bit what they were.

use crate::direction::random_direction;
use crate::names::Names;
use crate::ops::{self, Op, Variant};
use crate::proto::{float, float_vector, int, int_vector, ints, metadata, node, version};
use crate::select::{Decision, Init, LayerSettings, sub_token_size};
use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use velora_graph::analysis::Analyses;
use velora_graph::analysis::sites::Site;
use velora_graph::ir::{Graph, Model, NodeId, Patch, ValueId};
use velora_graph::onnx::schema::{AttributeProto, NodeProto, StringStringEntryProto};
use velora_graph::text::ParseError;

/// The name of the pass.
pub const NAME: &str = "compress";

/// The compressed form of one activation.
struct Compressed {
    /// The view of X that z has the leading axes of.
    input: ValueId,
    /// z as rows, [N, G].
    rows: String,
    /// z as X is, [..., G].
    z: String,
    v: String,
    groups: i64,
    variant: Variant,
}

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
        inline,
    };
    let mut compressed: BTreeMap<ValueId, Compressed> = BTreeMap::new();
    for (decision, site) in &chosen {
        let form = match compressed.entry(site.activation) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(new) => new.insert(emit.compress(site, &decision.settings)?),
        };
        match site.plain {
            true => emit.factored(site, &decision.settings, form)?,
            false => emit.reconstructed(site, &decision.settings, form)?,
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
    inline: bool,
}

impl Emit<'_> {
    fn name(&self, value: ValueId) -> &str {
        &self.graph.value(value).name
    }

    fn fresh(&mut self, wanted: String) -> String {
        self.names.fresh(wanted)
    }

    /// v and z right behind X.
    fn compress(
        &mut self,
        site: &Site,
        settings: &LayerSettings,
    ) -> Result<Compressed, ParseError> {
        let groups = settings.grouping.groups(site.features);
        let size = sub_token_size(site.features, groups);
        let variant = Variant {
            padded: groups * size != site.features,
            transposed: false,
        };
        let tensor = self.name(site.activation).to_owned();
        let x = self.name(site.input).to_owned();
        let producer = self.graph.producer(site.input);
        let origin = producer
            .map(|p| self.graph.node(p).label(self.graph))
            .unwrap_or_default();
        let metadata = self.metadata(&origin, ("tensor", &tensor), settings, groups);
        let attributes = [int("groups", groups)];
        let mut nodes = Vec::new();
        let v = self.fresh(format!("velora.{tensor}.v"));
        match settings.init {
            Init::BatchAverage => {
                nodes.extend(self.call(
                    Op::MeanDirection,
                    variant,
                    &[&x],
                    &v,
                    &attributes,
                    &metadata,
                )?);
            }
            Init::None => {
                let entry = (1.0 / (size as f64).sqrt()) as f32;
                self.constant(&v, &vec![entry; size as usize]);
            }
            Init::Random => {
                // Its own stream for each tensor, whatever else is rewritten.
                let direction = random_direction(settings.seed, &tensor, size as usize);
                self.constant(&v, &direction);
            }
        }
        let z = self.fresh(format!("velora.{tensor}.z"));
        nodes.extend(self.call(Op::Compress, variant, &[&x, &v], &z, &attributes, &metadata)?);
        let rank = self
            .analyses
            .shapes
            .of(site.input)
            .shape
            .as_ref()
            .map_or(2, Vec::len);
        let rows = match rank {
            2 => z.clone(),
            _ => {
                let rows = self.fresh(format!("velora.{tensor}.z_rows"));
                nodes.push(self.reshape(&z, &rows, groups, &metadata));
                rows
            }
        };
        match producer {
            Some(producer) => self.patch.insert_after(producer, nodes),
            None => self.patch.insert_front(nodes),
        }
        Ok(Compressed {
            input: site.input,
            rows,
            z,
            v,
            groups,
            variant,
        })
    }

    /// dW from z, dY and v, in the place of the contraction.
    fn factored(
        &mut self,
        site: &Site,
        settings: &LayerSettings,
        form: &Compressed,
    ) -> Result<(), ParseError> {
        let parameter = self.name(site.parameter).to_owned();
        let origin = self.graph.node(site.product).label(self.graph);
        let metadata = self.metadata(&origin, ("parameter", &parameter), settings, form.groups);
        let mut nodes = Vec::new();
        let mut gradient = self.name(site.gradient).to_owned();
        let rank = self
            .analyses
            .shapes
            .of(site.gradient)
            .shape
            .as_ref()
            .map_or(2, Vec::len);
        if site.gradient_flipped {
            let upright = self.fresh(format!("velora.{parameter}.dY"));
            let mut perm: Vec<i64> = (0..rank as i64).collect();
            perm.swap(rank - 2, rank - 1);
            nodes.push(NodeProto {
                attribute: vec![ints("perm", perm)],
                ..self.plain("Transpose", &[&gradient], &upright, &metadata)
            });
            gradient = upright;
        }
        if rank > 2 {
            let rows = self.fresh(format!("velora.{parameter}.dY_rows"));
            // A number of outputs that is not constant is refused before.
            let outputs = site.outputs.as_const().unwrap_or(-1);
            nodes.push(self.reshape(&gradient, &rows, outputs, &metadata));
            gradient = rows;
        }
        let variant = Variant {
            transposed: site.transposed,
            ..form.variant
        };
        let attributes = [
            int("groups", form.groups),
            int("features", site.features),
            int("transposed", site.transposed.into()),
            float("scale", (settings.scale * f64::from(site.scale)) as f32),
        ];
        let result = self
            .graph
            .node(site.result)
            .outputs
            .first()
            .copied()
            .flatten();
        let result = result.map(|v| self.name(v).to_owned()).unwrap_or_default();
        let inputs = [form.rows.as_str(), &gradient, &form.v];
        nodes.extend(self.call(
            Op::FactoredWeightGrad,
            variant,
            &inputs,
            &result,
            &attributes,
            &metadata,
        )?);
        self.patch.replace(site.result, nodes);
        Ok(())
    }

    /// X̂ for a product that stays. What lies between X and the product may have other readers, which
    /// keep the exact values, so the product gets copies of it.
    fn reconstructed(
        &mut self,
        site: &Site,
        settings: &LayerSettings,
        form: &Compressed,
    ) -> Result<(), ParseError> {
        let Some(path) = self.path(site) else {
            return Ok(());
        };
        let parameter = self.name(site.parameter).to_owned();
        let origin = self.graph.node(site.product).label(self.graph);
        let metadata = self.metadata(&origin, ("parameter", &parameter), settings, form.groups);
        let mut nodes = Vec::new();
        let mut v = form.v.clone();
        if settings.scale != 1.0 {
            // dW is linear in X̂, and v is the smallest of its factors.
            let factor = self.fresh(format!("velora.{parameter}.scale"));
            self.constant(&factor, &[settings.scale as f32]);
            let scaled = self.fresh(format!("velora.{parameter}.v"));
            nodes.push(self.plain("Mul", &[&v, &factor], &scaled, &metadata));
            v = scaled;
        }
        let mut x = self.fresh(format!("velora.{parameter}.X"));
        let attributes = [int("groups", form.groups), int("features", site.features)];
        // Another view of X than the one that was compressed: from rows, which every view has.
        let same = site.input == form.input;
        let z = if same { &form.z } else { &form.rows };
        nodes.extend(self.call(
            Op::Reconstruct,
            form.variant,
            &[z, &v],
            &x,
            &attributes,
            &metadata,
        )?);
        let shape = self.analyses.shapes.of(site.input).shape.as_ref();
        if !same && shape.is_some_and(|s| s.len() != 2) {
            let input = self.name(site.input).to_owned();
            let sizes = self.fresh(format!("velora.{parameter}.X_sizes"));
            nodes.push(self.plain("Shape", &[&input], &sizes, &metadata));
            let view = self.fresh(format!("velora.{parameter}.X_view"));
            nodes.push(self.plain("Reshape", &[&x, &sizes], &view, &metadata));
            x = view;
        }
        for id in path {
            let copy = self.fresh(format!("velora.{parameter}.X_{}", nodes.len()));
            let mut node = self.graph.node_proto(id);
            if let Some(first) = node.input.first_mut() {
                first.clone_from(&x);
            }
            node.output = vec![copy.clone()];
            node.name = Some(copy.clone());
            node.metadata_props.extend(metadata.iter().cloned());
            nodes.push(node);
            x = copy;
        }
        self.patch.insert_before(site.product, nodes);
        self.patch.redirect(site.product, site.slot, x);
        Ok(())
    }

    /// The backward views and transpositions between X and a product, from X on.
    fn path(&self, site: &Site) -> Option<Vec<NodeId>> {
        let mut path = Vec::new();
        let (mut reader, mut slot) = (site.product, site.slot);
        loop {
            let inputs = &self.graph.node(reader).inputs;
            let value = inputs.get(slot).copied().flatten()?;
            if value == site.input {
                path.reverse();
                return Some(path);
            }
            (reader, slot) = (self.graph.producer(value)?, 0);
            path.push(reader);
        }
    }

    /// A call of one of our operators: one node, or its body's.
    fn call(
        &mut self,
        op: Op,
        variant: Variant,
        inputs: &[&str],
        output: &str,
        attributes: &[AttributeProto],
        metadata: &[StringStringEntryProto],
    ) -> Result<Vec<NodeProto>, ParseError> {
        let call = NodeProto {
            name: Some(format!("{}:{}", op.name(), output)),
            domain: Some(ops::DOMAIN.to_owned()),
            attribute: attributes.to_vec(),
            metadata_props: metadata.to_vec(),
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

    fn constant(&mut self, name: &str, values: &[f32]) {
        self.patch.add_initializer(float_vector(name, values));
    }

    /// Where a new node comes from, which tensor or parameter it stands for, and how it was made.
    fn metadata(
        &self,
        origin: &str,
        (what, name): (&str, &str),
        settings: &LayerSettings,
        groups: i64,
    ) -> Vec<StringStringEntryProto> {
        vec![
            metadata("origin", origin),
            metadata(what, name),
            metadata("groups", &groups.to_string()),
            metadata("init", settings.init.name()),
            version(),
        ]
    }
}
