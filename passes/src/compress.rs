//! Replaces saved activations by their compressed form, and the weight gradient by its factored form.
//!
//! For a site with activation X [N, D], incoming gradient dY [N, O] and unit direction v (M entries):
//! `z[n, g] = Σ_m X[n, g·M+m]·v[m]` is computed right after X, the contraction runs on z instead of
//! X and gives P = zᵀdY [G, O], and `dW[g·M+m, o] = v[m]·P[g, o]` (arXiv 2405.17991; DESIGN §3).
//! Everything else keeps its nodes, names and order, so that forward values and input gradients are
//! bit for bit what they were.
//!
//! A tensor is rewritten only where *every* backward reader of it is one of the sites; it is left
//! alone where it is a graph input or initialiser, where z would not be smaller, or where it is not
//! a 32-bit float.

use std::collections::{BTreeMap, HashSet};
use velora_graph::analysis::sites::{Site, Sites};
use velora_graph::ir::{Graph, NodeId, Origin, ValueId};
use velora_graph::onnx::schema::{
    AttributeProto, AttributeType, GraphProto, NodeProto, StringStringEntryProto, TensorProto,
    type_proto,
};

/// How directions are chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Init {
    /// The normalised mean over the sub-tokens of the current batch, computed in the graph.
    BatchAverage,
    /// A fixed random unit vector.
    Random,
    /// All entries 1/√M.
    None,
}

/// Settings of the rewrite.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// G, the number of groups.
    pub groups: i64,
    /// The kind of direction.
    pub init: Init,
    /// Seed of random directions.
    pub seed: u64,
}

/// What became of one site.
#[derive(Clone, Debug)]
pub struct Decision {
    /// The site.
    pub site: Site,
    /// The number of groups used, where the site was rewritten.
    pub groups: Option<i64>,
    /// A stable code: `rewritten` or why not.
    pub reason: &'static str,
    /// The same as a sentence.
    pub message: String,
}

/// M, the features in one sub-token: ⌈D / G⌉, the last sub-token padded with zeros.
pub fn sub_token_size(features: i64, groups: i64) -> i64 {
    features / groups + i64::from(features % groups != 0)
}

/// Decides about every site, in the order of [`Sites::sites`].
pub fn decide(graph: &Graph, sites: &Sites, options: &Options) -> Vec<Decision> {
    let decide = |site: &Site| {
        let (reason, message) = refusal(graph, sites, site, options).unwrap_or_else(|| {
            let sub_token = sub_token_size(site.features, options.groups);
            let message = format!("{} groups of {sub_token}", options.groups);
            ("rewritten", message)
        });
        Decision {
            site: site.clone(),
            groups: (reason == "rewritten").then_some(options.groups),
            reason,
            message,
        }
    };
    sites.sites.iter().map(decide).collect()
}

/// Why a site stays as it is, or `None` where it can be rewritten.
fn refusal(
    graph: &Graph,
    sites: &Sites,
    site: &Site,
    options: &Options,
) -> Option<(&'static str, String)> {
    let activation = graph.value(site.activation);
    if !matches!(activation.origin, Origin::Node(..)) {
        let message = "its input is a graph input or a constant, alive in any case";
        return Some(("graph-input", message.to_owned()));
    }
    if let Some(keepers) = sites
        .keepers
        .get(&site.activation)
        .filter(|k| !k.is_empty())
    {
        let names: Vec<_> = (keepers.iter())
            .map(|k| match k.node {
                Some(node) => format!(
                    "{} ({})",
                    graph.node(node).label(graph),
                    graph.node(node).op()
                ),
                None => "the graph's outputs".to_owned(),
            })
            .collect();
        let message = format!("kept alive by {}", names.join(", "));
        return Some(("kept-alive", message));
    }
    // Tensors sharing one activation have one D; refuse the whole tensor with its smallest.
    let shared = sites
        .sites
        .iter()
        .filter(|s| s.activation == site.activation);
    if let Some(other) = { shared }.find(|s| s.features != site.features) {
        let message = format!(
            "its input is also read with {} features, here with {}",
            other.features, site.features
        );
        return Some(("mixed-features", message));
    }
    if site.features <= options.groups {
        let message = format!(
            "{} features in {} groups would save nothing",
            site.features, options.groups
        );
        return Some(("no-saving", message));
    }
    if element_type(graph, &activation.name) != Some(1) {
        let message = "its input is not known to be a 32-bit float tensor";
        return Some(("dtype", message.to_owned()));
    }
    None
}

fn element_type(graph: &Graph, name: &str) -> Option<i32> {
    let info = graph.value_infos().iter().find(|i| i.name() == name)?;
    match info.r#type.as_ref()?.value.as_ref()? {
        type_proto::Value::TensorType(tensor) => tensor.elem_type,
        _ => None,
    }
}

/// The graph with the decided sites rewritten; the same message where none is.
pub fn rewrite(graph: &Graph, decisions: &[Decision], options: &Options) -> GraphProto {
    let mut proto = graph.to_proto();
    let mut new = Names::new(graph);
    let mut after: BTreeMap<NodeId, Vec<NodeProto>> = BTreeMap::new();
    let mut instead: BTreeMap<NodeId, Vec<NodeProto>> = BTreeMap::new();
    let mut compressed: BTreeMap<ValueId, (String, String)> = BTreeMap::new();
    let mut initializers = Vec::new();
    let rewritten: Vec<&Site> = (decisions.iter())
        .filter(|d| d.groups.is_some())
        .map(|d| &d.site)
        .collect();

    for site in &rewritten {
        let mut emit = Emit::new(&mut new, graph.value(site.parameter).name.as_str());
        let (z, v) = match compressed.get(&site.activation) {
            Some(names) => names.clone(),
            None => {
                let names = compress(&mut emit, graph, site, options);
                compressed.insert(site.activation, names.clone());
                if let Some(producer) = graph.producer(site.activation) {
                    after.entry(producer).or_default().append(&mut emit.nodes);
                }
                names
            }
        };
        expand(&mut emit, graph, site, &z, &v, options);
        instead.insert(site.node, std::mem::take(&mut emit.nodes));
        initializers.append(&mut emit.initializers);
    }

    let nodes = std::mem::take(&mut proto.node);
    for (&id, node) in graph.order().iter().zip(nodes) {
        match instead.remove(&id) {
            Some(replacement) => proto.node.extend(replacement),
            None => proto.node.push(node),
        }
        proto.node.extend(after.remove(&id).unwrap_or_default());
    }
    proto.initializer.append(&mut initializers);
    remove_dead(graph, &rewritten, &mut proto);
    proto
}

/// z and v, computed right behind X.
fn compress(emit: &mut Emit, graph: &Graph, site: &Site, options: &Options) -> (String, String) {
    let (groups, sub_token) = (
        options.groups,
        sub_token_size(site.features, options.groups),
    );
    let mut tokens = graph.value(site.activation).name.clone();
    let padding = groups * sub_token - site.features;
    if padding > 0 {
        let shape = emit.ints("token_shape", &[-1, site.features]);
        tokens = emit.node("Reshape", &[&tokens, &shape], "tokens", vec![]);
        let pads = emit.ints("pads", &[0, 0, 0, padding]);
        tokens = emit.node("Pad", &[&tokens, &pads], "padded", vec![]);
    }
    let shape = emit.ints("sub_token_shape", &[-1, sub_token]);
    let sub_tokens = emit.node("Reshape", &[&tokens, &shape], "sub_tokens", vec![]);
    let v = match options.init {
        Init::BatchAverage => mean_direction(emit, &sub_tokens, sub_token),
        Init::None => {
            let entry = 1.0 / (sub_token as f64).sqrt();
            emit.floats("v", &vec![entry as f32; sub_token as usize])
        }
        Init::Random => {
            let stream =
                options.seed ^ (site.node.index() as u64).wrapping_mul(0xD1B5_4A32_D192_ED03);
            let direction = random_direction(stream, sub_token as usize);
            emit.floats("v", &direction)
        }
    };
    let products = emit.node("MatMul", &[&sub_tokens, &v], "products", vec![]);
    let shape = emit.ints("z_shape", &[-1, groups]);
    (emit.node("Reshape", &[&products, &shape], "z", vec![]), v)
}

/// The normalised sum over sub-tokens, which has the direction of their mean; ones/√M where its norm
/// is below the smallest normal number.
fn mean_direction(emit: &mut Emit, sub_tokens: &str, sub_token: i64) -> String {
    let keep = |keep| vec![int_attribute("keepdims", keep)];
    let axis = emit.ints("rows", &[0]);
    let sum = emit.node("ReduceSum", &[sub_tokens, &axis], "sum", keep(0));
    let square = emit.node("Mul", &[&sum, &sum], "square", vec![]);
    let square = emit.node("ReduceSum", &[&square, &axis], "square_norm", keep(1));
    let norm = emit.node("Sqrt", &[&square], "norm", vec![]);
    let tiny = emit.floats("tiny", &[f32::MIN_POSITIVE]);
    let degenerate = emit.node("Less", &[&norm, &tiny], "degenerate", vec![]);
    let entry = 1.0 / (sub_token as f64).sqrt();
    let ones = emit.floats("ones", &vec![entry as f32; sub_token as usize]);
    let unit = emit.node("Div", &[&sum, &norm], "unit", vec![]);
    emit.node("Where", &[&degenerate, &ones, &unit], "v", vec![])
}

/// The contraction on z, and dW from P; the last node has the contraction's old output.
fn expand(emit: &mut Emit, graph: &Graph, site: &Site, z: &str, v: &str, options: &Options) {
    let (groups, sub_token) = (
        options.groups,
        sub_token_size(site.features, options.groups),
    );
    let node = graph.node(site.node);
    let gradient = node.outputs[0].map_or(String::new(), |v| graph.value(v).name.clone());
    let z = match site.through_transpose {
        true => emit.node(
            "Transpose",
            &[z],
            "z_t",
            vec![ints_attribute("perm", &[1, 0])],
        ),
        false => z.to_owned(),
    };
    let mut product = node.proto.clone();
    product.input = (node.inputs.iter())
        .map(|input| input.map_or(String::new(), |v| graph.value(v).name.clone()))
        .collect();
    product.input[site.slot] = z;
    let p = emit.name("P");
    product.output = vec![p.clone()];
    product.metadata_props.extend(emit.origin());
    emit.nodes.push(product);

    let (wide, direction, full) = if site.transposed {
        (
            [site.outputs, groups, 1],
            [1, 1, sub_token],
            [site.outputs, groups * sub_token],
        )
    } else {
        (
            [groups, 1, site.outputs],
            [1, sub_token, 1],
            [groups * sub_token, site.outputs],
        )
    };
    let shape = emit.ints("P_shape", &wide);
    let wide = emit.node("Reshape", &[&p, &shape], "P_wide", vec![]);
    let shape = emit.ints("v_shape", &direction);
    let direction = emit.node("Reshape", &[v, &shape], "v_wide", vec![]);
    let outer = emit.node("Mul", &[&wide, &direction], "outer", vec![]);
    let shape = emit.ints("dW_shape", &full);
    if groups * sub_token == site.features {
        emit.node_into("Reshape", &[&outer, &shape], gradient, "dW", vec![]);
        return;
    }
    let padded = emit.node("Reshape", &[&outer, &shape], "dW_padded", vec![]);
    let starts = emit.ints("crop_start", &[0]);
    let ends = emit.ints("crop_end", &[site.features]);
    let axes = emit.ints("crop_axis", &[i64::from(site.transposed)]);
    emit.node_into(
        "Slice",
        &[&padded, &starts, &ends, &axes],
        gradient,
        "dW",
        vec![],
    );
}

/// Drops nodes that only led from X to the old contractions and now reach nothing, with the infos of
/// their outputs.
fn remove_dead(graph: &Graph, rewritten: &[&Site], proto: &mut GraphProto) {
    let mut candidates = HashSet::new();
    for site in rewritten {
        let mut here = graph.node(site.node).inputs[site.slot];
        while let Some(value) = here.filter(|&v| v != site.activation) {
            let Some(producer) = graph.producer(value) else {
                break;
            };
            candidates.insert(graph.value(value).name.clone());
            here = graph.node(producer).inputs.first().copied().flatten();
        }
    }
    let mut read: HashSet<String> = proto.output.iter().map(|o| o.name().to_owned()).collect();
    // What nested graphs capture is read too, and appears in no node's inputs.
    for &id in graph.order() {
        let captures = graph.node(id).captures.iter();
        read.extend(captures.map(|&v| graph.value(v).name.clone()));
    }
    let mut removed = HashSet::new();
    let mut kept = Vec::with_capacity(proto.node.len());
    // Backwards, so that a node is judged after all its readers.
    for node in std::mem::take(&mut proto.node).into_iter().rev() {
        let candidate = node.output.first().is_some_and(|o| candidates.contains(o));
        if candidate && node.output.iter().all(|o| !read.contains(o)) {
            removed.extend(node.output);
            continue;
        }
        read.extend(node.input.iter().cloned());
        kept.push(node);
    }
    kept.reverse();
    proto.node = kept;
    proto
        .value_info
        .retain(|info| !removed.contains(info.name()));
}

/// Names that are not taken yet.
struct Names(HashSet<String>);

impl Names {
    fn new(graph: &Graph) -> Self {
        Names(
            graph
                .values()
                .map(|v| graph.value(v).name.clone())
                .collect(),
        )
    }

    fn fresh(&mut self, wanted: String) -> String {
        let mut name = wanted.clone();
        let mut count = 1;
        while !self.0.insert(name.clone()) {
            count += 1;
            name = format!("{wanted}.{count}");
        }
        name
    }
}

/// Nodes and constants made for one site.
struct Emit<'a> {
    names: &'a mut Names,
    parameter: &'a str,
    nodes: Vec<NodeProto>,
    initializers: Vec<TensorProto>,
}

impl<'a> Emit<'a> {
    fn new(names: &'a mut Names, parameter: &'a str) -> Self {
        Emit {
            names,
            parameter,
            nodes: Vec::new(),
            initializers: Vec::new(),
        }
    }

    fn name(&mut self, role: &str) -> String {
        self.names
            .fresh(format!("velora.{}.{role}", self.parameter))
    }

    fn origin(&self) -> [StringStringEntryProto; 2] {
        let entry = |key: &str, value: &str| StringStringEntryProto {
            key: Some(key.to_owned()),
            value: Some(value.to_owned()),
        };
        [
            entry("velora.origin", self.parameter),
            entry("velora.version", env!("CARGO_PKG_VERSION")),
        ]
    }

    fn node(
        &mut self,
        op: &str,
        inputs: &[&str],
        role: &str,
        attributes: Vec<AttributeProto>,
    ) -> String {
        let output = self.name(role);
        self.node_into(op, inputs, output.clone(), role, attributes);
        output
    }

    fn node_into(
        &mut self,
        op: &str,
        inputs: &[&str],
        output: String,
        role: &str,
        attribute: Vec<AttributeProto>,
    ) {
        self.nodes.push(NodeProto {
            input: inputs.iter().map(|s| s.to_string()).collect(),
            output: vec![output],
            name: Some(format!("velora.{}.{role}", self.parameter)),
            op_type: Some(op.to_owned()),
            attribute,
            metadata_props: self.origin().to_vec(),
            ..Default::default()
        });
    }

    fn ints(&mut self, role: &str, values: &[i64]) -> String {
        let bytes = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        self.constant(role, 7, values.len(), bytes)
    }

    fn floats(&mut self, role: &str, values: &[f32]) -> String {
        let bytes = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        self.constant(role, 1, values.len(), bytes)
    }

    fn constant(&mut self, role: &str, data_type: i32, length: usize, bytes: Vec<u8>) -> String {
        let name = self.name(role);
        self.initializers.push(TensorProto {
            dims: vec![length as i64],
            data_type: Some(data_type),
            name: Some(name.clone()),
            raw_data: Some(bytes.into()),
            ..Default::default()
        });
        name
    }
}

fn int_attribute(name: &str, value: i64) -> AttributeProto {
    AttributeProto {
        name: Some(name.to_owned()),
        i: Some(value),
        r#type: Some(AttributeType::Int as i32),
        ..Default::default()
    }
}

fn ints_attribute(name: &str, values: &[i64]) -> AttributeProto {
    AttributeProto {
        name: Some(name.to_owned()),
        ints: values.to_vec(),
        r#type: Some(AttributeType::Ints as i32),
        ..Default::default()
    }
}

/// A unit vector, uniform on the sphere: normalised Gaussians by Box and Muller from SplitMix64.
fn random_direction(seed: u64, length: usize) -> Vec<f32> {
    let mut state = seed;
    let mut uniform = || {
        state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut bits = state;
        bits = (bits ^ (bits >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        bits = (bits ^ (bits >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        bits ^= bits >> 31;
        ((bits >> 11) as f64 + 0.5) / (1u64 << 53) as f64
    };
    let mut gaussian = || {
        let radius = (-2.0 * uniform().ln()).sqrt();
        radius * (std::f64::consts::TAU * uniform()).cos()
    };
    let entries: Vec<f64> = (0..length).map(|_| gaussian()).collect();
    let norm = entries.iter().map(|e| e * e).sum::<f64>().sqrt();
    entries.iter().map(|e| (e / norm) as f32).collect()
}
