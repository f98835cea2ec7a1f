//! A slow interpreter of models: every operator written down as its definition says.
//!
//! All numbers are kept in 64 bits; in [`Precision::Single`] each sum and product is rounded to 32 bits
//! as it is made, which is what 32-bit arithmetic gives (a sum, product, quotient or root of 32-bit
//! numbers rounded twice, through 64 bits, is the same as rounded once).

mod indexed;
mod ops;

use std::collections::HashMap;
use std::rc::Rc;
use velora_graph::onnx::schema::*;

/// How numbers are rounded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Precision {
    /// 32 bits.
    Single,
    /// 64 bits.
    Double,
}

/// The elements of a tensor; views share them.
#[derive(Clone, Debug)]
pub enum Data {
    /// FLOAT.
    Float(Rc<Vec<f64>>),
    /// INT64.
    Int(Rc<Vec<i64>>),
    /// BOOL.
    Bool(Rc<Vec<bool>>),
}

/// A tensor.
#[derive(Clone, Debug)]
pub struct Tensor {
    /// Sizes of the axes.
    pub shape: Vec<usize>,
    /// The elements, row by row.
    pub data: Data,
    /// Whether the elements depend on those of an input, rather than on shapes and constants alone.
    pub from_data: bool,
}

impl Tensor {
    /// A tensor of floats.
    pub fn floats(shape: &[usize], entries: Vec<f64>) -> Self {
        assert_eq!(shape.iter().product::<usize>(), entries.len());
        Tensor {
            shape: shape.to_vec(),
            data: Data::Float(Rc::new(entries)),
            from_data: false,
        }
    }

    /// A tensor of integers.
    pub fn ints(shape: &[usize], entries: Vec<i64>) -> Self {
        assert_eq!(shape.iter().product::<usize>(), entries.len());
        Tensor {
            shape: shape.to_vec(),
            data: Data::Int(Rc::new(entries)),
            from_data: false,
        }
    }

    fn bools(shape: &[usize], entries: Vec<bool>) -> Self {
        assert_eq!(shape.iter().product::<usize>(), entries.len());
        Tensor {
            shape: shape.to_vec(),
            data: Data::Bool(Rc::new(entries)),
            from_data: false,
        }
    }

    /// The elements of a tensor of floats.
    pub fn f(&self) -> &[f64] {
        match &self.data {
            Data::Float(entries) => entries,
            other => panic!("expected floats, found {other:?}"),
        }
    }

    /// The elements of a tensor of integers.
    pub fn i(&self) -> &[i64] {
        match &self.data {
            Data::Int(entries) => entries,
            other => panic!("expected integers, found {other:?}"),
        }
    }

    fn b(&self) -> &[bool] {
        match &self.data {
            Data::Bool(entries) => entries,
            other => panic!("expected booleans, found {other:?}"),
        }
    }

    /// What stands for the buffer; equal for views of one tensor, while it is kept.
    pub fn buffer(&self) -> usize {
        match &self.data {
            Data::Float(entries) => Rc::as_ptr(entries) as usize,
            Data::Int(entries) => Rc::as_ptr(entries) as usize,
            Data::Bool(entries) => Rc::as_ptr(entries) as usize,
        }
    }

    /// The bytes that the elements have in a file or at run time.
    pub fn bytes(&self) -> i64 {
        let size = match &self.data {
            Data::Float(_) => 4,
            Data::Int(_) => 8,
            Data::Bool(_) => 1,
        };
        size * self.shape.iter().product::<usize>() as i64
    }

    /// The bits of the elements, for exact comparisons.
    pub fn bits(&self) -> Vec<u64> {
        match &self.data {
            Data::Float(entries) => entries.iter().map(|e| e.to_bits()).collect(),
            Data::Int(entries) => entries.iter().map(|&e| e as u64).collect(),
            Data::Bool(entries) => entries.iter().map(|&e| e.into()).collect(),
        }
    }
}

/// The tensor that a message stands for.
pub fn constant(tensor: &TensorProto) -> Tensor {
    let shape: Vec<usize> = tensor.dims.iter().map(|&d| d as usize).collect();
    let raw = tensor.raw_data.as_deref().unwrap_or_default();
    match tensor.data_type() {
        1 if tensor.raw_data.is_some() => {
            let (entries, _) = raw.as_chunks::<4>();
            let entries = entries.iter().map(|e| f32::from_le_bytes(*e).into());
            Tensor::floats(&shape, entries.collect())
        }
        1 => Tensor::floats(
            &shape,
            tensor.float_data.iter().map(|&e| e.into()).collect(),
        ),
        7 if tensor.raw_data.is_some() => {
            let (entries, _) = raw.as_chunks::<8>();
            Tensor::ints(
                &shape,
                entries.iter().map(|e| i64::from_le_bytes(*e)).collect(),
            )
        }
        7 => Tensor::ints(&shape, tensor.int64_data.clone()),
        other => panic!("constant of type {other}"),
    }
}

/// Values by name; a nested graph sees those around it.
struct Scope<'a> {
    outer: Option<&'a Scope<'a>>,
    values: HashMap<String, Tensor>,
}

impl Scope<'_> {
    fn get(&self, name: &str) -> &Tensor {
        match (self.values.get(name), self.outer) {
            (Some(value), _) => value,
            (None, Some(outer)) => outer.get(name),
            (None, None) => panic!("'{name}' is not there"),
        }
    }
}

/// Runs a model's nodes in the order in which they are listed; all values are kept.
pub fn run(
    model: &ModelProto,
    inputs: &HashMap<String, Tensor>,
    precision: Precision,
) -> HashMap<String, Tensor> {
    let graph = model.graph.as_ref().unwrap();
    let order: Vec<usize> = (0..graph.node.len()).collect();
    run_in(model, inputs, precision, &order)
}

/// Runs a model's nodes in an order of places; all values are kept.
pub fn run_in(
    model: &ModelProto,
    inputs: &HashMap<String, Tensor>,
    precision: Precision,
    order: &[usize],
) -> HashMap<String, Tensor> {
    let graph = model.graph.as_ref().unwrap();
    let mut scope = Scope {
        outer: None,
        values: HashMap::new(),
    };
    for tensor in &graph.initializer {
        scope
            .values
            .insert(tensor.name().to_owned(), constant(tensor));
    }
    for (name, value) in inputs {
        let mut value = value.clone();
        value.from_data = true;
        scope.values.insert(name.clone(), value);
    }
    let machine = Machine { model, precision };
    for &place in order {
        machine.node(&graph.node[place], &mut scope);
    }
    scope.values
}

struct Machine<'m> {
    model: &'m ModelProto,
    precision: Precision,
}

impl Machine<'_> {
    fn round(&self, number: f64) -> f64 {
        match self.precision {
            Precision::Single => f64::from(number as f32),
            Precision::Double => number,
        }
    }

    fn node(&self, node: &NodeProto, scope: &mut Scope<'_>) {
        let outputs = if node.op_type() == "If" {
            let which = if scope.get(&node.input[0]).b()[0] {
                "then_branch"
            } else {
                "else_branch"
            };
            let branch = node.attribute.iter().find(|a| a.name() == which).unwrap();
            self.branch(branch.g.as_ref().unwrap(), scope)
        } else {
            let inputs: Vec<Option<&Tensor>> = node
                .input
                .iter()
                .map(|n| (!n.is_empty()).then(|| scope.get(n)))
                .collect();
            let from_data = inputs.iter().flatten().any(|t| t.from_data)
                && !matches!(node.op_type(), "Shape" | "Size");
            let mut outputs = match self.function(node) {
                Some(function) => self.call(function, node, &inputs),
                None => vec![self.operator(node, &inputs)],
            };
            for output in &mut outputs {
                output.from_data = from_data;
            }
            outputs
        };
        for (name, value) in node.output.iter().zip(outputs) {
            scope.values.insert(name.clone(), value);
        }
    }

    fn function(&self, node: &NodeProto) -> Option<&FunctionProto> {
        let same = |f: &&FunctionProto| f.name() == node.op_type() && f.domain() == node.domain();
        self.model.functions.iter().find(same)
    }

    fn branch(&self, graph: &GraphProto, scope: &Scope<'_>) -> Vec<Tensor> {
        let mut inner = Scope {
            outer: Some(scope),
            values: HashMap::new(),
        };
        for node in &graph.node {
            self.node(node, &mut inner);
        }
        graph
            .output
            .iter()
            .map(|o| inner.get(o.name()).clone())
            .collect()
    }

    fn call(
        &self,
        function: &FunctionProto,
        call: &NodeProto,
        inputs: &[Option<&Tensor>],
    ) -> Vec<Tensor> {
        let mut scope = Scope {
            outer: None,
            values: HashMap::new(),
        };
        for (name, value) in function.input.iter().zip(inputs) {
            if let Some(value) = value {
                scope.values.insert(name.clone(), (*value).clone());
            }
        }
        for node in &function.node {
            let mut node = node.clone();
            fill(&mut node, &call.attribute);
            self.node(&node, &mut scope);
        }
        // What a function returns is a tensor of its own, even where its body ends with a view.
        let outputs = function.output.iter().map(|o| scope.get(o));
        outputs.map(owned).collect()
    }
}

fn owned(tensor: &Tensor) -> Tensor {
    let data = match &tensor.data {
        Data::Float(entries) => Data::Float(Rc::new(entries.to_vec())),
        Data::Int(entries) => Data::Int(Rc::new(entries.to_vec())),
        Data::Bool(entries) => Data::Bool(Rc::new(entries.to_vec())),
    };
    Tensor {
        data,
        ..tensor.clone()
    }
}

/// Puts the call's attributes in the place of references, in nested graphs too.
fn fill(node: &mut NodeProto, given: &[AttributeProto]) {
    for attribute in &mut node.attribute {
        if let Some(reference) = attribute.ref_attr_name.take() {
            let value = given.iter().find(|a| a.name() == reference);
            let value = value.unwrap_or_else(|| panic!("the call has no attribute '{reference}'"));
            *attribute = AttributeProto {
                name: attribute.name.clone(),
                ..value.clone()
            };
        }
        for inner in attribute.g.iter_mut().flat_map(|g| &mut g.node) {
            fill(inner, given);
        }
    }
}
