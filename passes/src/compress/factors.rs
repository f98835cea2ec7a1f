//! Gradients that leave the graph as factors: P in the place of `dW = v ⊗ P`, and v beside it.
//!
//! Every value on the way from the contractions to the output gets a factor in its place, named after it
//! with `.P` behind: linear work does to P what it would do to dW. The output (with ONNX Runtime's
//! accumulators, also the buffer) is called after the old one, with `.P`; right behind it comes v, with `.v`.

use super::Emit;
use crate::proto::metadata as entry;
use velora_graph::analysis::buffers::is_view;
use velora_graph::analysis::sites::route::Route;
use velora_graph::analysis::sites::{Site, WeightGrad};
use velora_graph::ir::{NodeId, ValueId};
use velora_graph::onnx::make::{float, int, int_vector, tensor_info};
use velora_graph::onnx::schema::tensor_shape_proto::dimension;
use velora_graph::onnx::schema::{NodeProto, StringStringEntryProto, ValueInfoProto, type_proto};
use velora_graph::shapes::DataType;

/// What P is made from.
pub(super) struct Operands<'a> {
    /// z as rows.
    pub z: &'a str,
    /// dY as rows.
    pub gradient: &'a str,
    /// What the product is multiplied by.
    pub scale: f32,
}

/// The direction of a factored gradient.
pub(super) struct Direction {
    /// The name of v.
    pub v: String,
    /// Its type.
    pub data_type: DataType,
    /// G.
    pub groups: i64,
    /// M.
    pub size: i64,
    /// Whether each group has its own.
    pub own: bool,
}

impl Emit<'_> {
    /// `P = s·zᵀdY` [G, O], or `s·dYᵀz` [O, G] where dW is transposed.
    pub(super) fn factor(
        &mut self,
        of: &WeightGrad,
        operands: Operands<'_>,
        metadata: &[StringStringEntryProto],
    ) -> NodeProto {
        let (z, gradient) = (operands.z, operands.gradient);
        let inputs = match of.transposed {
            false => [z, gradient],
            true => [gradient, z],
        };
        let result = self
            .graph
            .node(of.result)
            .outputs
            .first()
            .copied()
            .flatten();
        let name = result
            .map(|value| self.factor_name(value))
            .unwrap_or_default();
        let mut node = self.plain("Gemm", &inputs, &name, metadata);
        node.attribute.push(int("transA", 1));
        if operands.scale != 1.0 {
            node.attribute.push(float("alpha", operands.scale));
        }
        node.metadata_props.push(entry("op", "FactoredGradient"));
        if let Some(result) = result {
            node.metadata_props.push(self.stands_for(result));
        }
        node
    }

    /// Puts the nodes that make a contraction's factor in its place, and once all contractions of a route
    /// have theirs, lets the factors go the way of the gradient.
    pub(super) fn route(
        &mut self,
        route: &Route,
        site: &Site,
        direction: &Direction,
        nodes: Vec<NodeProto>,
    ) {
        let result = site.result(self.graph).and_then(|v| self.graph.producer(v));
        if let Some(result) = result {
            self.made.insert(result, nodes);
        }
        let producers: Vec<NodeId> = (route.results.iter())
            .filter_map(|&value| self.graph.producer(value))
            .collect();
        if !producers.iter().all(|node| self.made.contains_key(node)) {
            return;
        }
        let mut places: Vec<(NodeId, Vec<NodeProto>)> = Vec::new();
        for id in producers {
            places.push((id, self.made.remove(&id).unwrap_or_default()));
        }
        for &id in &route.nodes {
            let copy = self.along(id, route);
            places.push((id, vec![copy]));
        }
        // A route has its results, or it would not be one; the last place makes the output.
        if let Some((_, last)) = places.last_mut() {
            self.declare(route, site, direction, last);
        }
        for (id, nodes) in places {
            self.patch.replace(id, nodes);
        }
    }

    /// A node of the way, on factors.
    fn along(&mut self, id: NodeId, route: &Route) -> NodeProto {
        let node = self.graph.node(id);
        let mut copy = self.graph.node_proto(id);
        if is_view(node) {
            // It changes no shape; the sizes that it may be told are those of dW.
            copy.op_type = Some("Identity".to_owned());
            copy.attribute.clear();
            copy.input.truncate(1);
        }
        for (name, value) in copy.input.iter_mut().zip(&node.inputs) {
            match value {
                Some(value) if self.factors.contains_key(value) || route.buffer == Some(*value) => {
                    *name = self.factor_name(*value);
                }
                _ => {}
            }
        }
        for (name, value) in copy.output.iter_mut().zip(&node.outputs) {
            if let Some(value) = value {
                *name = self.factor_name(*value);
                let stands_for = self.stands_for(*value);
                copy.metadata_props.push(stands_for);
            }
        }
        copy.metadata_props.push(entry("op", "FactoredGradient"));
        copy.metadata_props.push(crate::proto::version());
        copy
    }

    /// Exchanges what the graph hands out, behind the node that makes the gradient.
    fn declare(
        &mut self,
        route: &Route,
        site: &Site,
        direction: &Direction,
        nodes: &mut Vec<NodeProto>,
    ) {
        let parameter = self.name(route.parameter).to_owned();
        let axis = usize::from(route.features_last);
        let name = self.factor_name(route.output);
        if let Some(maker) = nodes.last_mut() {
            maker.metadata_props.push(entry("factored", &parameter));
            maker.metadata_props.push(entry("axis", &axis.to_string()));
            if route.nodes.last().is_some() {
                maker
                    .metadata_props
                    .push(entry("groups", &direction.groups.to_string()));
            }
        }
        let wanted = self.type_of(route.buffer.unwrap_or(route.output));
        let v = self.fresh(format!("{}.v", self.name(route.output)));
        let origin = self.graph.node(site.product).label(self.graph);
        let metadata = [
            entry("origin", &origin),
            entry("parameter", &parameter),
            entry("op", "FactoredGradient"),
            crate::proto::version(),
            entry("direction_of", &name),
        ];
        let mut from = direction.v.clone();
        if direction.own {
            // The constant has an axis for several directions, of which there is one.
            let shape = self.fresh(format!("velora.{v}_shape"));
            let sizes = [direction.groups, direction.size];
            self.patch.add_initializer(int_vector(&shape, &sizes));
            let cut = self.fresh(format!("velora.{v}_groups"));
            nodes.push(self.plain("Reshape", &[&from, &shape], &cut, &metadata[..4]));
            from = cut;
        }
        nodes.push(match direction.data_type == wanted {
            true => self.plain("Identity", &[&from], &v, &metadata),
            false => self.cast(&from, &v, wanted, &metadata),
        });
        let mut sizes = vec![direction.size];
        if direction.own {
            sizes.insert(0, direction.groups);
        }
        let declared = |values: &[ValueId], infos: &[ValueInfoProto], value: ValueId| {
            let place = values.iter().position(|&v| v == value)?;
            infos.get(place).cloned()
        };
        let graph = self.graph;
        if let Some(info) = declared(graph.outputs(), graph.output_infos(), route.output) {
            let info = renamed(info, &name, axis, direction.groups);
            let infos = vec![info, tensor_info(&v, wanted, sizes)];
            self.patch.exchange_output(route.output, infos);
        }
        if let Some(buffer) = route.buffer
            && let Some(info) = declared(graph.inputs(), graph.input_infos(), buffer)
        {
            let name = self.factor_name(buffer);
            let info = renamed(info, &name, axis, direction.groups);
            self.patch.exchange_input(buffer, info);
        }
    }

    /// The name of the factor of a value.
    fn factor_name(&mut self, value: ValueId) -> String {
        if let Some(name) = self.factors.get(&value) {
            return name.clone();
        }
        let name = self.fresh(format!("{}.P", self.name(value)));
        self.factors.insert(value, name.clone());
        name
    }

    /// Which value of the graph that came in a factor stands for.
    fn stands_for(&self, value: ValueId) -> StringStringEntryProto {
        entry("factor_of", self.name(value))
    }
}

/// A declaration under another name; of a gradient, with G in the place of D.
fn renamed(mut info: ValueInfoProto, name: &str, axis: usize, groups: i64) -> ValueInfoProto {
    info.name = Some(name.to_owned());
    let Some(type_proto::Value::TensorType(tensor)) =
        info.r#type.as_mut().and_then(|t| t.value.as_mut())
    else {
        return info;
    };
    // The output of an accumulator is a flag.
    let shape = match DataType(tensor.elem_type()).is_float() {
        true => tensor.shape.as_mut(),
        false => None,
    };
    if let Some(dim) = shape.and_then(|shape| shape.dim.get_mut(axis)) {
        dim.value = Some(dimension::Value::DimValue(groups));
    }
    info
}
