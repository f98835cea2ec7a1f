//! The compressed form of an activation: directions, projections, and how those are stored.

use super::Emit;
use super::direction;
use crate::ops::{Op, Variant};
use crate::proto::metadata as entry;
use crate::select::{Directions, Init, LayerSettings, Storage, sub_token_size};
use velora_graph::analysis::sites::{Kind, Site};
use velora_graph::ir::ValueId;
use velora_graph::onnx::make::{float, int, tensor_info};
use velora_graph::onnx::schema::{NodeProto, StringStringEntryProto};
use velora_graph::shapes::DataType;
use velora_graph::text::ParseError;

/// The compressed form of one activation.
pub(super) struct Compressed {
    /// The view of X that z has the leading axes of.
    pub input: ValueId,
    /// z as X is, [..., G·R], where it is stored so.
    pub z: Option<String>,
    /// v `[M]`, or [R, M], or [G, R, M].
    pub v: String,
    /// G.
    pub groups: i64,
    /// What decides which body its operators have.
    pub variant: Variant,
    /// What lives from forward into backward.
    stored: Stored,
}

/// z as rows, [N, G·R], or as X is where the features are channels, in the type in which it is kept.
enum Stored {
    /// In the activation's.
    AsIs(String),
    /// In another floating-point type; with the activation's.
    Cast(String, DataType),
    /// As 8-bit integers, and the scale of each row.
    Quantized(String, String),
}

impl Emit<'_> {
    /// v and z right behind X.
    pub(super) fn compress(
        &mut self,
        site: &Site,
        settings: &LayerSettings,
    ) -> Result<Compressed, ParseError> {
        let groups = settings.grouping.groups(site.features);
        let size = sub_token_size(site.features, groups);
        let variant = Variant {
            padded: groups * size != site.features,
            transposed: false,
            several: !settings.has_one_direction(),
            channels: site.kind == Kind::Conv,
            any_float: self.type_of(site.input) != DataType::FLOAT,
        };
        let tensor = self.name(site.activation).to_owned();
        let x = self.name(site.input).to_owned();
        let producer = self.graph.producer(site.input);
        let origin = producer
            .map(|p| self.graph.node(p).label(self.graph))
            .unwrap_or_default();
        let metadata = self.metadata(&origin, ("tensor", &tensor), settings, groups);
        let (mut nodes, v) = self.direction(site, settings, variant, &metadata)?;
        let z = self.fresh(format!("velora.{tensor}.z"));
        nodes.extend(self.call(
            Op::Compress,
            variant,
            &[&x, &v],
            &[&z],
            &[int("groups", groups)],
            &metadata,
        )?);
        let data_type = self.type_of(site.input);
        let axes = self.axes_of(site.input);
        let width = groups * settings.rank;
        let rows = match axes {
            2 => z.clone(),
            // Channels are no rows; nothing reads them as such.
            _ if variant.channels => z.clone(),
            _ => {
                let rows = self.fresh(format!("velora.{tensor}.z_rows"));
                nodes.push(self.reshape(&z, &rows, width, &metadata));
                rows
            }
        };
        let (storing, stored) = self.store(rows, &tensor, (settings, data_type), &metadata)?;
        nodes.extend(storing);
        match producer {
            Some(producer) => self.patch.insert_after(producer, nodes),
            None => self.patch.insert_front(nodes),
        }
        Ok(Compressed {
            input: site.input,
            z: matches!(stored, Stored::AsIs(_)).then_some(z),
            v,
            groups,
            variant,
            stored,
        })
    }

    /// The nodes that make v of the activation's type, where it is no constant, and its name.
    fn direction(
        &mut self,
        site: &Site,
        settings: &LayerSettings,
        variant: Variant,
        metadata: &[StringStringEntryProto],
    ) -> Result<(Vec<NodeProto>, String), ParseError> {
        let tensor = self.name(site.activation).to_owned();
        let x = self.name(site.input).to_owned();
        // The next value of a state is found by its name.
        let (v, next) = loop {
            let v = self.fresh(format!("velora.{tensor}.v"));
            let wanted = format!("{v}.next");
            let next = self.fresh(wanted.clone());
            if next == wanted {
                break (v, next);
            }
        };
        if !settings.init.is_computed() {
            let features = site.features;
            let constant = direction::constant(&v, (&tensor, &x), features, settings);
            self.patch.add_initializer(constant);
            return Ok(self.as_activation(Vec::new(), v, site, metadata));
        }
        let groups = settings.grouping.groups(site.features);
        let op = match settings.directions {
            Directions::Shared => Op::MeanDirection,
            Directions::Group => Op::MeanDirections,
        };
        let mean_of_x = |emit: &mut Self, to: &str| {
            let attributes = [int("groups", groups)];
            emit.call(op, variant, &[&x], &[to], &attributes, metadata)
        };
        if settings.init != Init::RunningAverage {
            return Ok((mean_of_x(self, &v)?, v));
        }
        // The state starts as zeros, so that the first step takes the mean of its batch.
        let state = direction::zeros(&v, site.features, settings);
        let info = |name: &str| tensor_info(name, DataType::FLOAT, state.dims.iter().copied());
        self.patch.add_input(info(&v));
        self.patch.add_output(info(&next));
        self.patch.add_initializer(state.clone());
        let mut mean = self.fresh(format!("velora.{tensor}.mean"));
        let mut nodes = mean_of_x(self, &mean)?;
        if self.type_of(site.input) != DataType::FLOAT {
            let stored =
                std::mem::replace(&mut mean, self.fresh(format!("velora.{tensor}.mean_f32")));
            nodes.push(self.compressing_cast(&stored, &mean, DataType::FLOAT, metadata));
        }
        nodes.extend(self.call(
            Op::RunningDirection,
            variant,
            &[&v, &mean],
            &[&next],
            &[float("decay", settings.decay as f32)],
            metadata,
        )?);
        Ok(self.as_activation(nodes, next, site, metadata))
    }

    /// Directions of 32-bit floats in the activation's type.
    fn as_activation(
        &mut self,
        mut nodes: Vec<NodeProto>,
        v: String,
        site: &Site,
        metadata: &[StringStringEntryProto],
    ) -> (Vec<NodeProto>, String) {
        let data_type = self.type_of(site.input);
        if data_type == DataType::FLOAT {
            return (nodes, v);
        }
        let cast = self.fresh(format!("{v}_as_X"));
        nodes.push(self.compressing_cast(&v, &cast, data_type, metadata));
        (nodes, cast)
    }

    /// From z as rows to what is kept.
    fn store(
        &mut self,
        rows: String,
        tensor: &str,
        (settings, data_type): (&LayerSettings, DataType),
        metadata: &[StringStringEntryProto],
    ) -> Result<(Vec<NodeProto>, Stored), ParseError> {
        let to = match settings.storage {
            Storage::Float16 => DataType::FLOAT16,
            Storage::BFloat16 => DataType::BFLOAT16,
            Storage::Int8 => {
                let short = self.fresh(format!("velora.{tensor}.z_int8"));
                let scale = self.fresh(format!("velora.{tensor}.z_scale"));
                let variant = Variant::default();
                let outputs = [short.as_str(), &scale];
                let nodes = self.call(Op::Quantize, variant, &[&rows], &outputs, &[], metadata)?;
                return Ok((nodes, Stored::Quantized(short, scale)));
            }
            Storage::Activation => data_type,
        };
        if to == data_type {
            return Ok((Vec::new(), Stored::AsIs(rows)));
        }
        let short = self.fresh(format!("velora.{tensor}.z_{}", settings.storage.name()));
        let node = self.compressing_cast(&rows, &short, to, metadata);
        Ok((vec![node], Stored::Cast(short, data_type)))
    }

    /// A cast that is a part of the compression: it runs in the forward half.
    fn compressing_cast(
        &self,
        from: &str,
        to: &str,
        data_type: DataType,
        metadata: &[StringStringEntryProto],
    ) -> NodeProto {
        let mut node = self.cast(from, to, data_type, metadata);
        node.metadata_props.push(entry("op", Op::Compress.name()));
        node
    }

    /// From what is kept to z as rows (as X is, where the features are channels), for the gradient of one
    /// parameter: a copy for each, so that none lives from one to the next.
    pub(super) fn load(
        &mut self,
        form: &Compressed,
        parameter: &str,
        metadata: &[StringStringEntryProto],
    ) -> Result<(Vec<NodeProto>, String), ParseError> {
        match &form.stored {
            Stored::AsIs(rows) => Ok((Vec::new(), rows.clone())),
            Stored::Cast(short, data_type) => {
                let z = self.fresh(format!("velora.{parameter}.z"));
                Ok((vec![self.cast(short, &z, *data_type, metadata)], z))
            }
            Stored::Quantized(short, scale) => {
                let z = self.fresh(format!("velora.{parameter}.z"));
                let inputs = [short.as_str(), scale];
                let variant = Variant::default();
                let nodes = self.call(Op::Dequantize, variant, &inputs, &[&z], &[], metadata)?;
                Ok((nodes, z))
            }
        }
    }

    pub(super) fn cast(
        &self,
        from: &str,
        to: &str,
        data_type: DataType,
        metadata: &[StringStringEntryProto],
    ) -> NodeProto {
        NodeProto {
            attribute: vec![int("to", i64::from(data_type.0))],
            ..self.plain("Cast", &[from], to, metadata)
        }
    }
}
