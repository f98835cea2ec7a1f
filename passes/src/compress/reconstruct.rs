//! X̂ for nodes that do more than a contraction.

use super::Emit;
use super::form::Compressed;
use crate::ops::Op;
use crate::select::LayerSettings;
use velora_graph::analysis::sites::Site;
use velora_graph::ir::NodeId;
use velora_graph::onnx::make::{float_tensor, int};
use velora_graph::shapes::DataType;
use velora_graph::text::ParseError;

impl Emit<'_> {
    /// X̂ for a product that stays. What lies between X and the product may have other readers, which
    /// keep the exact values, so the product gets copies of it.
    pub(super) fn reconstructed(
        &mut self,
        site: &Site,
        settings: &LayerSettings,
        form: &Compressed,
    ) -> Result<(), ParseError> {
        let Some(path) = self.path(site) else {
            return Ok(());
        };
        let parameter = self.name(site.parameter).to_owned();
        let metadata = self.metadata_of(site, settings, form);
        let mut nodes = Vec::new();
        let mut v = form.v.clone();
        if settings.scale != 1.0 {
            // dW is linear in X̂, and v is the smallest of its factors.
            let factor = self.fresh(format!("velora.{parameter}.scale"));
            let scale = float_tensor(&factor, vec![1], &[settings.scale as f32]);
            self.patch.add_initializer(scale);
            let data_type = self.type_of(site.input);
            let factor = match data_type {
                DataType::FLOAT => factor,
                _ => {
                    let cast = self.fresh(format!("{factor}_as_X"));
                    nodes.push(self.cast(&factor, &cast, data_type, &metadata));
                    cast
                }
            };
            let scaled = self.fresh(format!("velora.{parameter}.v"));
            nodes.push(self.plain("Mul", &[&v, &factor], &scaled, &metadata));
            v = scaled;
        }
        let mut x = self.fresh(format!("velora.{parameter}.X"));
        let attributes = [int("groups", form.groups), int("features", site.features)];
        // Another view of X than the one that was compressed, or z from another type: from rows, which
        // every view has.
        let whole = form
            .z
            .as_ref()
            .filter(|_| site.input == form.input)
            .cloned();
        let same = whole.is_some();
        let (loading, z) = match whole {
            Some(z) => (Vec::new(), z),
            None => self.load(form, &parameter, &metadata)?,
        };
        nodes.extend(loading);
        nodes.extend(self.call(
            Op::Reconstruct,
            form.variant,
            &[&z, &v],
            &[&x],
            &attributes,
            &metadata,
        )?);
        // From rows X̂ is [N, D]; channels have the shape of the view that was compressed.
        let shaped = match form.variant.channels {
            true => site.input == form.input,
            false => self.axes_of(site.input) == 2,
        };
        if !same && !shaped {
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

    /// The backward views, transpositions and casts between X and a product, from X on.
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
}
