//! Gradients of scales from compressed activations.

use super::Emit;
use super::form::Compressed;
use crate::ops::{Op, Variant};
use crate::select::LayerSettings;
use velora_graph::analysis::sites::{ScaleGrad, Site};
use velora_graph::onnx::make::{float, int, int_vector};
use velora_graph::shapes::DataType;
use velora_graph::text::ParseError;

impl Emit<'_> {
    /// The gradient of a scale from z, dY and v, in the place of the sum.
    pub(super) fn scale_grad(
        &mut self,
        site: &Site,
        of: &ScaleGrad,
        settings: &LayerSettings,
        form: &Compressed,
    ) -> Result<(), ParseError> {
        let parameter = self.name(site.parameter).to_owned();
        let metadata = self.metadata_of(site, settings, form);
        let mut nodes = Vec::new();
        let mut gradient = self.name(of.gradient).to_owned();
        if self.axes_of(of.gradient) != 2 {
            let rows = self.fresh(format!("velora.{parameter}.dY_rows"));
            nodes.push(self.reshape(&gradient, &rows, site.features, &metadata));
            gradient = rows;
        }
        let (loading, [z, v]) = self.load_like(site, of.gradient, form, &metadata)?;
        nodes.extend(loading);
        let result = self.first_output(of.result);
        let summed = self.graph.node(of.result).outputs.first().copied();
        let axes = summed.flatten().map_or(1, |value| self.axes_of(value));
        // A sum that keeps its axes is [1, .., 1, D].
        let vector = match axes {
            1 => result.clone(),
            _ => self.fresh(format!("velora.{parameter}.sum")),
        };
        let variant = Variant {
            any_float: self.type_of(of.gradient) != DataType::FLOAT,
            ..form.variant
        };
        nodes.extend(self.call(
            Op::FactoredScaleGrad,
            variant,
            &[&z, &gradient, &v],
            &[&vector],
            &[
                int("groups", form.groups),
                float("scale", settings.scale as f32),
            ],
            &metadata,
        )?);
        if axes != 1 {
            let mut sizes = vec![1; axes.saturating_sub(1)];
            sizes.push(-1);
            let shape = self.fresh(format!("{vector}_shape"));
            self.patch.add_initializer(int_vector(&shape, &sizes));
            nodes.push(self.plain("Reshape", &[&vector, &shape], &result, &metadata));
        }
        self.patch.replace(of.result, nodes);
        Ok(())
    }
}
