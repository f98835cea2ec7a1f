//! Weight gradients from compressed activations.

use super::Emit;
use super::factors::{Direction, Operands};
use super::form::Compressed;
use crate::ops::{Op, Variant};
use crate::select::{Directions, LayerSettings, sub_token_size};
use velora_graph::analysis::sites::route::Route;
use velora_graph::analysis::sites::{Site, WeightGrad};
use velora_graph::ir::ValueId;
use velora_graph::onnx::make::{float, int, ints};
use velora_graph::onnx::schema::{NodeProto, StringStringEntryProto};
use velora_graph::shapes::DataType;
use velora_graph::text::ParseError;

impl Emit<'_> {
    /// dW from z, dY and v, in the place of the contraction; or P from z and dY, where the gradient leaves
    /// the graph along a route of factors.
    pub(super) fn weight_grad(
        &mut self,
        site: &Site,
        of: &WeightGrad,
        settings: &LayerSettings,
        form: &Compressed,
        route: Option<&Route>,
    ) -> Result<(), ParseError> {
        let parameter = self.name(site.parameter).to_owned();
        let metadata = self.metadata_of(site, settings, form);
        let mut nodes = Vec::new();
        let mut gradient = self.name(of.gradient).to_owned();
        let rank = self.axes_of(of.gradient);
        if of.gradient_flipped {
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
        let scale = (settings.scale * f64::from(of.scale)) as f32;
        let (loading, [z, v]) = self.load_like(site, of.gradient, form, &metadata)?;
        nodes.extend(loading);
        if let Some(route) = route {
            let direction = Direction {
                v: form.v.clone(),
                data_type: self.type_of(site.input),
                groups: form.groups,
                size: sub_token_size(site.features, form.groups),
                own: settings.directions == Directions::Group,
            };
            let operands = Operands {
                z: &z,
                gradient: &gradient,
                scale,
            };
            nodes.push(self.factor(of, operands, &metadata));
            self.route(route, site, &direction, nodes);
            return Ok(());
        }
        let variant = Variant {
            transposed: of.transposed,
            any_float: self.type_of(of.gradient) != DataType::FLOAT,
            ..form.variant
        };
        let attributes = [
            int("groups", form.groups),
            int("features", site.features),
            int("transposed", of.transposed.into()),
            float("scale", scale),
        ];
        let result = self.first_output(of.result);
        nodes.extend(self.call(
            Op::FactoredWeightGrad,
            variant,
            &[&z, &gradient, &v],
            &[&result],
            &attributes,
            &metadata,
        )?);
        self.patch.replace(of.result, nodes);
        Ok(())
    }

    /// z as rows and v, of the type of the gradient that they are multiplied by.
    pub(super) fn load_like(
        &mut self,
        site: &Site,
        gradient: ValueId,
        form: &Compressed,
        metadata: &[StringStringEntryProto],
    ) -> Result<(Vec<NodeProto>, [String; 2]), ParseError> {
        let wanted = self.type_of(gradient);
        let parameter = self.name(site.parameter).to_owned();
        let (mut nodes, z) = self.load(form, &parameter, metadata)?;
        if self.type_of(site.input) == wanted {
            return Ok((nodes, [z, form.v.clone()]));
        }
        let cast = [("z", &z), ("v", &form.v)].map(|(what, from)| {
            let to = self.fresh(format!("velora.{parameter}.{what}_as_dY"));
            nodes.push(self.cast(from, &to, wanted, metadata));
            to
        });
        Ok((nodes, cast))
    }
}
