//! The tape: forward nodes are emitted as they are asked for, each with the rule of its gradient; the
//! rules run backwards at the end.

use crate::choices::{Choices, Random};
use crate::models::Training;
use half::f16;
use std::collections::{BTreeMap, HashMap, HashSet};
use velora_graph::onnx::schema::*;

/// An axis: `size`, times the batch where it has one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Axis {
    /// Whether the batch is a factor.
    pub batch: bool,
    /// The other factor.
    pub size: i64,
}

/// An axis of constant size.
pub fn fixed(size: i64) -> Axis {
    Axis { batch: false, size }
}

/// An axis of `size` times the batch.
pub fn batch(size: i64) -> Axis {
    Axis { batch: true, size }
}

/// A value: its name and shape.
#[derive(Clone, Debug)]
pub struct V {
    /// The tensor's name.
    pub name: String,
    /// Its axes.
    pub shape: Vec<Axis>,
}

impl V {
    /// How many axes there are.
    pub fn rank(&self) -> usize {
        self.shape.len()
    }

    /// The size of the last axis.
    pub fn width(&self) -> i64 {
        self.shape.last().map_or(1, |a| a.size)
    }
}

/// A weight-gradient contraction: `result = scale · Xᵀ dY` (+ `added`), or its transpose.
#[derive(Clone, Debug)]
pub struct Contraction {
    /// The parameter.
    pub parameter: String,
    /// The output of the product node.
    pub product: String,
    /// The two-dimensional result.
    pub result: String,
    /// X, [..., D].
    pub x: String,
    /// dY, [..., O].
    pub dy: String,
    /// D.
    pub features: i64,
    /// O.
    pub outputs: i64,
    /// Whether the result is [O, D].
    pub transposed: bool,
    /// What the product is multiplied by.
    pub scale: f32,
    /// What is added to it.
    pub added: Option<String>,
}

/// The gradient of a factor for each feature: `result = Σ X ∘ dY` over all leading axes.
#[derive(Clone, Debug)]
pub struct Scale {
    /// The parameter, `[D]`.
    pub parameter: String,
    /// The output of the product node.
    pub product: String,
    /// The sum, `[D]`.
    pub result: String,
    /// X, [..., D].
    pub x: String,
    /// dY, of the same shape.
    pub dy: String,
    /// D.
    pub features: i64,
}

/// A finished graph with what its maker knows of it.
#[derive(Clone, Debug)]
pub struct Generated {
    /// The model.
    pub model: ModelProto,
    /// The inputs, with their shapes.
    pub inputs: Vec<V>,
    /// Those of them that are weights, trained or frozen.
    pub weights: Vec<V>,
    /// Inputs that hold integers, and how many there are to choose from.
    pub integers: BTreeMap<String, i64>,
    /// The loss.
    pub loss: String,
    /// By trained parameter: the gradient of the loss, before clipping and the like.
    pub gradients: BTreeMap<String, String>,
    /// The outputs that gradients leave by.
    pub gradient_outputs: Vec<String>,
    /// All weight-gradient contractions.
    pub contractions: Vec<Contraction>,
    /// All gradients of scales.
    pub scales: Vec<Scale>,
    /// The name of the symbolic batch, or the size where it is fixed.
    pub batch: Result<&'static str, i64>,
}

type Rule = Box<dyn FnOnce(&mut Tape)>;

/// The type of all numbers of a graph that are no integers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Element {
    /// FLOAT, 4 bytes.
    #[default]
    Single,
    /// FLOAT16, 2 bytes.
    Half,
}

impl Element {
    /// As the schema counts types.
    pub fn code(self) -> i32 {
        match self {
            Element::Single => 1,
            Element::Half => 10,
        }
    }

    /// The size of one number.
    pub fn bytes(self) -> i64 {
        match self {
            Element::Single => 4,
            Element::Half => 2,
        }
    }
}

/// See the module.
#[derive(Default)]
pub struct Tape {
    /// Decisions about forms.
    pub choices: Choices,
    /// What layers of [`crate::models`] train.
    pub training: Training,
    /// The type of numbers; graphs that are executed here have 32 bits.
    pub element: Element,
    nodes: Vec<NodeProto>,
    inputs: Vec<V>,
    initializers: Vec<TensorProto>,
    outputs: Vec<V>,
    rules: Vec<Rule>,
    /// Values through which a gradient must flow.
    wanted: HashSet<String>,
    contributions: HashMap<String, Vec<V>>,
    constants: HashMap<String, String>,
    pub(crate) transposed: HashMap<String, V>,
    pub(crate) contractions: Vec<Contraction>,
    pub(crate) scales: Vec<Scale>,
    pub(crate) parameters: Vec<V>,
    weights: Vec<V>,
    integers: BTreeMap<String, i64>,
    count: usize,
    /// Written into every name.
    pub prefix: &'static str,
    /// The batch, where it is no symbol.
    pub fixed_batch: Option<i64>,
}

/// An integer attribute.
pub fn int(name: &str, value: i64) -> AttributeProto {
    AttributeProto {
        name: Some(name.to_owned()),
        i: Some(value),
        r#type: Some(AttributeType::Int as i32),
        ..Default::default()
    }
}

/// A list of integers as an attribute.
pub fn ints(name: &str, values: &[i64]) -> AttributeProto {
    AttributeProto {
        name: Some(name.to_owned()),
        ints: values.to_vec(),
        r#type: Some(AttributeType::Ints as i32),
        ..Default::default()
    }
}

/// A float attribute.
pub fn float(name: &str, value: f32) -> AttributeProto {
    AttributeProto {
        name: Some(name.to_owned()),
        f: Some(value),
        r#type: Some(AttributeType::Float as i32),
        ..Default::default()
    }
}

impl Tape {
    /// An empty tape that decides by `choices`.
    pub fn new(choices: Choices) -> Self {
        Tape {
            choices,
            ..Tape::default()
        }
    }

    fn fresh(&mut self, what: &str) -> String {
        self.count += 1;
        format!("{}{what}_{}", self.prefix, self.count)
    }

    /// How many nodes there are by now.
    pub fn node_count(&self) -> usize {
        self.nodes.len()
    }

    /// Emits a node with one output.
    pub fn node(
        &mut self,
        op: &str,
        inputs: &[&V],
        attributes: &[AttributeProto],
        shape: &[Axis],
    ) -> V {
        let names: Vec<&str> = inputs.iter().map(|v| v.name.as_str()).collect();
        self.raw(op, &names, attributes, shape)
    }

    /// Emits a node by the names of its inputs.
    pub fn raw(
        &mut self,
        op: &str,
        inputs: &[&str],
        attributes: &[AttributeProto],
        shape: &[Axis],
    ) -> V {
        let (domain, op) = op.split_once(':').unwrap_or(("", op));
        let output = self.fresh(&op.to_lowercase());
        self.nodes.push(NodeProto {
            input: inputs.iter().map(|n| (*n).to_owned()).collect(),
            output: vec![output.clone()],
            name: Some(format!("node_{output}")),
            op_type: Some(op.to_owned()),
            domain: (!domain.is_empty()).then(|| domain.to_owned()),
            attribute: attributes.to_vec(),
            ..Default::default()
        });
        V {
            name: output,
            shape: shape.to_vec(),
        }
    }

    /// The latest node, to be changed.
    pub fn last_node(&mut self) -> &mut NodeProto {
        self.nodes.last_mut().unwrap()
    }

    /// A node that hands its input's elements on one by one.
    pub fn like(&mut self, op: &str, inputs: &[&V]) -> V {
        let shape = inputs[0].shape.clone();
        self.node(op, inputs, &[], &shape)
    }

    /// A graph input that no gradient flows to.
    pub fn input(&mut self, name: &str, shape: &[Axis]) -> V {
        let value = V {
            name: format!("{}{name}", self.prefix),
            shape: shape.to_vec(),
        };
        self.inputs.push(value.clone());
        value
    }

    /// A graph input of integers, each at least 0 and below `count`.
    pub fn integer_input(&mut self, name: &str, shape: &[Axis], count: i64) -> V {
        let value = self.input(name, shape);
        self.integers.insert(value.name.clone(), count);
        value
    }

    /// A parameter: an input that wants a gradient, unless it is frozen.
    pub fn parameter(&mut self, name: &str, shape: &[Axis], frozen: bool) -> V {
        let value = self.input(name, shape);
        self.weights.push(value.clone());
        if !frozen {
            self.wanted.insert(value.name.clone());
            self.parameters.push(value.clone());
        }
        value
    }

    /// An output of the graph.
    pub fn output(&mut self, value: &V) {
        self.outputs.push(value.clone());
    }

    fn tensor(&mut self, what: &str, tensor: TensorProto) -> String {
        let key = format!("{what}{:?}{:?}", tensor.dims, tensor.raw_data);
        if let Some(known) = self.constants.get(&key) {
            return known.clone();
        }
        let name = self.fresh(what);
        if self.choices.seldom(4) {
            let attribute = AttributeProto {
                name: Some("value".to_owned()),
                t: Some(Box::new(tensor)),
                r#type: Some(AttributeType::Tensor as i32),
                ..Default::default()
            };
            self.nodes.push(NodeProto {
                output: vec![name.clone()],
                op_type: Some("Constant".to_owned()),
                attribute: vec![attribute],
                ..Default::default()
            });
        } else {
            self.initializers.push(TensorProto {
                name: Some(name.clone()),
                ..tensor
            });
        }
        self.constants.insert(key, name.clone());
        name
    }

    /// A constant vector of integers.
    pub fn integers(&mut self, entries: &[i64]) -> String {
        let raw: Vec<u8> = entries.iter().flat_map(|e| e.to_le_bytes()).collect();
        let tensor = TensorProto {
            dims: vec![entries.len() as i64],
            data_type: Some(7),
            raw_data: Some(raw.into()),
            ..Default::default()
        };
        self.tensor("ints", tensor)
    }

    /// A constant scalar.
    pub fn number(&mut self, value: f32) -> V {
        let bytes = match self.element {
            Element::Single => value.to_le_bytes().to_vec(),
            Element::Half => f16::from_f32(value).to_le_bytes().to_vec(),
        };
        let tensor = TensorProto {
            data_type: Some(self.element.code()),
            raw_data: Some(bytes.into()),
            ..Default::default()
        };
        V {
            name: self.tensor("number", tensor),
            shape: vec![],
        }
    }

    /// Whether a gradient must flow through a value.
    pub fn wants(&self, value: &V) -> bool {
        self.wanted.contains(&value.name)
    }

    /// Notes the rule of what was just made from `inputs`.
    pub fn rule(&mut self, output: &V, inputs: &[&V], rule: impl FnOnce(&mut Tape, V) + 'static) {
        if !inputs.iter().any(|v| self.wants(v)) {
            return;
        }
        self.wanted.insert(output.name.clone());
        let output = output.clone();
        self.rules.push(Box::new(move |tape| {
            if let Some(gradient) = tape.gradient(&output) {
                rule(tape, gradient);
            }
        }));
    }

    /// Adds to the gradient of a value.
    pub fn contribute(&mut self, value: &V, gradient: V) {
        debug_assert_eq!(
            value.shape, gradient.shape,
            "{} and {}",
            value.name, gradient.name
        );
        let all = self.contributions.entry(value.name.clone()).or_default();
        all.push(gradient);
    }

    /// The gradient of a value: the sum of what its readers contributed.
    fn gradient(&mut self, value: &V) -> Option<V> {
        let all = self.contributions.remove(&value.name)?;
        if all.len() > 2 && self.choices.flag() {
            return Some(self.like("Sum", &all.iter().collect::<Vec<_>>()));
        }
        let mut all = all.into_iter();
        let first = all.next()?;
        Some(all.fold(first, |sum, next| self.like("Add", &[&sum, &next])))
    }

    /// Runs the rules backwards, sends the gradients through `tail`, and finishes the model.
    pub fn finish(
        mut self,
        loss: &V,
        mut tail: impl FnMut(&mut Tape, &V, &V) -> V,
        shuffle: Option<u64>,
    ) -> Generated {
        self.outputs.insert(0, loss.clone());
        while let Some(rule) = self.rules.pop() {
            rule(&mut self);
        }
        let mut gradients = BTreeMap::new();
        let mut gradient_outputs = Vec::new();
        for parameter in self.parameters.clone() {
            let Some(gradient) = self.gradient(&parameter) else {
                continue;
            };
            gradients.insert(parameter.name.clone(), gradient.name.clone());
            let out = tail(&mut self, &parameter, &gradient);
            self.output(&out);
            gradient_outputs.push(out.name);
        }
        if let Some(seed) = shuffle {
            self.nodes = shuffled(std::mem::take(&mut self.nodes), seed);
        }
        let batch = self.fixed_batch;
        let info = |value: &V| {
            let integer = self.integers.contains_key(&value.name);
            let element = if integer { 7 } else { self.element.code() };
            declared(value, batch, element)
        };
        let graph = GraphProto {
            name: Some("training".to_owned()),
            input: self.inputs.iter().map(info).collect(),
            output: self.outputs.iter().map(info).collect(),
            initializer: self.initializers,
            node: self.nodes,
            ..Default::default()
        };
        let import = |domain: &str, version| OperatorSetIdProto {
            domain: Some(domain.to_owned()),
            version: Some(version),
        };
        let model = ModelProto {
            ir_version: Some(10),
            producer_name: Some("testgen".to_owned()),
            opset_import: vec![import("", 18), import("com.microsoft", 1)],
            graph: Some(graph),
            ..Default::default()
        };
        Generated {
            model,
            inputs: self.inputs,
            weights: self.weights,
            integers: self.integers,
            loss: loss.name.clone(),
            gradients,
            gradient_outputs,
            contractions: self.contractions,
            scales: self.scales,
            batch: batch.map_or(Ok("batch"), Err),
        }
    }
}

fn declared(value: &V, batch: Option<i64>, element: i32) -> ValueInfoProto {
    use tensor_shape_proto::{Dimension, dimension::Value};
    let dim = |axis: &Axis| {
        let value = match (axis.batch, batch) {
            (false, _) => Some(Value::DimValue(axis.size)),
            (true, Some(batch)) => Some(Value::DimValue(batch * axis.size)),
            (true, None) if axis.size == 1 => Some(Value::DimParam("batch".to_owned())),
            // The format has no products; an axis without a size is one that nothing is said about.
            (true, None) => None,
        };
        Dimension {
            value,
            denotation: None,
        }
    };
    ValueInfoProto {
        name: Some(value.name.clone()),
        r#type: Some(TypeProto {
            value: Some(type_proto::Value::TensorType(type_proto::Tensor {
                elem_type: Some(element),
                shape: Some(TensorShapeProto {
                    dim: value.shape.iter().map(dim).collect(),
                }),
            })),
            ..Default::default()
        }),
        ..Default::default()
    }
}

/// The nodes in a random order in which each comes after what it reads.
pub fn shuffled(nodes: Vec<NodeProto>, seed: u64) -> Vec<NodeProto> {
    let order = random_order(&nodes, seed);
    let mut nodes: Vec<Option<NodeProto>> = nodes.into_iter().map(Some).collect();
    order
        .into_iter()
        .map(|i| nodes[i].take().unwrap())
        .collect()
}

/// Places of the nodes in a random order in which each comes after what it reads.
pub fn random_order(nodes: &[NodeProto], seed: u64) -> Vec<usize> {
    let mut random = Random::new(seed);
    let (mut waiting, readers) = edges(nodes);
    let mut ready: Vec<usize> = (0..nodes.len()).filter(|&n| waiting[n] == 0).collect();
    let mut order = Vec::with_capacity(nodes.len());
    while !ready.is_empty() {
        let next = ready.swap_remove(random.below(ready.len()));
        order.push(next);
        for &reader in &readers[next] {
            waiting[reader] -= 1;
            if waiting[reader] == 0 {
                ready.push(reader);
            }
        }
    }
    assert_eq!(order.len(), nodes.len(), "the nodes form a cycle");
    order
}

/// By node: how many reads it waits for, and who reads it (once for each read).
pub fn edges(nodes: &[NodeProto]) -> (Vec<usize>, Vec<Vec<usize>>) {
    let mut makers = HashMap::new();
    for (place, node) in nodes.iter().enumerate() {
        makers.extend(node.output.iter().map(|name| (name.as_str(), place)));
    }
    let mut waiting = vec![0; nodes.len()];
    let mut readers = vec![Vec::new(); nodes.len()];
    for (place, node) in nodes.iter().enumerate() {
        for maker in node.input.iter().filter_map(|n| makers.get(n.as_str())) {
            waiting[place] += 1;
            readers[*maker].push(place);
        }
    }
    (waiting, readers)
}

impl Generated {
    /// Values for all inputs, numbers in [-1, 1), exact in 32 bits.
    pub fn data(&self, seed: u64, batch: usize) -> HashMap<String, crate::interpret::Tensor> {
        let batch = self.batch.map_or_else(|fixed| fixed as usize, |_| batch);
        let mut random = Random::new(seed);
        let mut data = HashMap::new();
        for input in &self.inputs {
            let size = |a: &Axis| a.size as usize * if a.batch { batch } else { 1 };
            let shape: Vec<usize> = input.shape.iter().map(size).collect();
            let zeros = input.name.contains(".zeros.");
            let count = shape.iter().product();
            if let Some(&choices) = self.integers.get(&input.name) {
                let entries = (0..count).map(|_| random.below(choices as usize) as i64);
                let tensor = crate::interpret::Tensor::ints(&shape, entries.collect());
                data.insert(input.name.clone(), tensor);
                continue;
            }
            let entries = (0..count).map(|_| if zeros { 0.0 } else { random.entry() });
            let tensor = crate::interpret::Tensor::floats(&shape, entries.collect());
            data.insert(input.name.clone(), tensor);
        }
        data
    }
}
