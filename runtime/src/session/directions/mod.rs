//! Directions of compressed activations that a batch has yet to fill.
//!
//! A rewrite writes them as constants, and says in the constant's metadata what is to fill it. For a run
//! they become inputs that stay, like parameters, so that checkpoints hold them; nodes that measure the
//! activations are added, and run once, before the first step ([`measuring`]). What they find becomes
//! directions in [`solve`].

mod agreement;
mod solve;

pub use agreement::agreement;
pub(crate) use solve::leading_eigenvectors;
pub use solve::{Moments, NotFinite, solve};

use std::collections::HashSet;
use velora_graph::ir::{GraphError, Model, Patch};
use velora_graph::onnx::make::{int, int_vector, ints, node, tensor_info};
use velora_graph::onnx::schema::{
    AttributeProto, NodeProto, StringStringEntryProto, TensorProto, ValueInfoProto,
};
use velora_graph::shapes::DataType;

/// What fills directions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The normalised mean of the sub-tokens.
    Mean,
    /// The first right singular vectors of the matrix of sub-tokens.
    Singular,
}

/// Directions that nothing has filled yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unfilled {
    /// The constant: v `[M]`, or [R, M], or [G, R, M].
    pub name: String,
    /// Its shape.
    pub shape: Vec<usize>,
    /// What fills it.
    pub kind: Kind,
    /// The activation, [..., D].
    pub input: String,
    /// D.
    pub features: usize,
    /// G.
    pub groups: usize,
}

/// Why directions cannot be filled.
#[derive(Debug, thiserror::Error)]
pub enum DirectionError {
    /// The constant does not say what fills it, or contradicts itself.
    #[error(
        "the constant '{name}' is marked as a direction to be filled, but {problem}; rewrite the \
         original graph again"
    )]
    Mark {
        /// The constant.
        name: String,
        /// What is wrong.
        problem: String,
    },
    /// Measuring would take more memory than it is worth.
    #[error(
        "the direction '{name}' has {size} entries: singular vectors are found for up to {LARGEST}; \
         use more groups, or another init"
    )]
    TooLong {
        /// The constant.
        name: String,
        /// M.
        size: usize,
    },
    /// The graph could not take the nodes.
    #[error(transparent)]
    Graph(#[from] GraphError),
}

/// The sub-tokens of the longest matrix of moments: 128 MiB of 32-bit floats.
const LARGEST: usize = 4096;

impl Unfilled {
    /// M.
    pub fn size(&self) -> usize {
        self.features.div_ceil(self.groups.max(1))
    }

    /// R.
    pub fn rank(&self) -> usize {
        match self.shape.as_slice() {
            [.., rank, _] => *rank,
            _ => 1,
        }
    }

    /// Whether each group has its own.
    pub fn by_group(&self) -> bool {
        self.shape.len() == 3
    }

    /// How many sets of directions there are.
    fn sets(&self) -> usize {
        if self.by_group() { self.groups } else { 1 }
    }
}

/// The directions of a model that nothing has filled yet, in the file's order.
///
/// # Errors
/// [`DirectionError`] where a mark cannot be understood.
pub fn unfilled(model: &Model) -> Result<Vec<Unfilled>, DirectionError> {
    let constants = model.graph.initializers().iter();
    let marked = constants.filter(|t| entry(t, "calibrated") == Some("no"));
    marked.map(read).collect()
}

fn entry<'t>(tensor: &'t TensorProto, key: &str) -> Option<&'t str> {
    let entries = tensor.metadata_props.iter();
    let mut found = entries.filter(|e| e.key().strip_prefix("velora.") == Some(key));
    found.next().map(|e| e.value())
}

fn read(tensor: &TensorProto) -> Result<Unfilled, DirectionError> {
    let wrong = |problem: String| DirectionError::Mark {
        name: tensor.name().to_owned(),
        problem,
    };
    let number = |key: &str| {
        let value = entry(tensor, key).and_then(|text| text.parse::<usize>().ok());
        let positive = value.filter(|&n| n > 0);
        positive.ok_or_else(|| wrong(format!("velora.{key} is not a positive number")))
    };
    let kind = match entry(tensor, "init") {
        Some("first-batch") => Kind::Mean,
        Some("svd") => Kind::Singular,
        other => {
            return Err(wrong(format!(
                "velora.init is {}, expected first-batch or svd",
                other.unwrap_or("missing")
            )));
        }
    };
    let input = entry(tensor, "input").ok_or_else(|| wrong("velora.input is missing".into()))?;
    let sizes = tensor.dims.iter().map(|&d| usize::try_from(d).ok());
    let shape: Option<Vec<usize>> = sizes.collect();
    let unfilled = Unfilled {
        name: tensor.name().to_owned(),
        shape: shape.unwrap_or_default(),
        kind,
        input: input.to_owned(),
        features: number("features")?,
        groups: number("groups")?,
    };
    let size = unfilled.size();
    let fits = match unfilled.shape.as_slice() {
        [m] => *m == size,
        [r, m] => *m == size && *r <= size,
        [g, r, m] => *g == unfilled.groups && *m == size && *r <= size,
        _ => false,
    };
    if !fits || tensor.data_type() != DataType::FLOAT.0 {
        return Err(wrong(format!(
            "its shape is {:?} where {} features in {} groups need directions of {size} 32-bit floats",
            unfilled.shape, unfilled.features, unfilled.groups
        )));
    }
    if kind == Kind::Singular && size > LARGEST {
        let name = unfilled.name;
        return Err(DirectionError::TooLong { name, size });
    }
    Ok(unfilled)
}

/// The model with unfilled directions as inputs, which keep their default, and with outputs that
/// measure the activations, one for each, behind all others. Ids of the old graph are not valid in it.
///
/// Of a mean the sum of all tokens `[D]` is measured; of singular vectors the moments SᵀS [M, M] of the
/// sub-tokens S, or [G, M, M].
///
/// # Errors
/// [`DirectionError`] where the graph cannot take them.
pub fn measuring(model: Model, unfilled: &[Unfilled]) -> Result<Model, DirectionError> {
    let mut add = Add {
        patch: Patch::new("measure", "directions are filled by the first batch"),
        nodes: Vec::new(),
        number: 0,
    };
    let values: HashSet<&str> = { model.graph.values() }
        .map(|value| model.graph.value(value).name.as_str())
        .collect();
    for direction in unfilled {
        if !values.contains(direction.input.as_str()) {
            return Err(DirectionError::Mark {
                name: direction.name.clone(),
                problem: format!("the graph has no value '{}'", direction.input),
            });
        }
        add.direction(direction);
    }
    let Add {
        mut patch, nodes, ..
    } = add;
    match model.graph.order().last() {
        Some(&last) => patch.insert_after(last, nodes),
        None => patch.insert_front(nodes),
    }
    Ok(model.apply(&patch)?)
}

struct Add {
    patch: Patch,
    nodes: Vec<NodeProto>,
    number: usize,
}

impl Add {
    fn direction(&mut self, direction: &Unfilled) {
        let [features, groups, size] =
            [direction.features, direction.groups, direction.size()].map(|n| n as i64);
        self.patch
            .add_input(float_info(&direction.name, &direction.shape));
        let rows = self.reshape(&direction.input, &[-1, features]);
        let measured = match direction.kind {
            Kind::Mean => {
                let axes = self.integers(&[0]);
                let keep = int("keepdims", 0);
                self.node("ReduceSum", &[&rows, &axes], vec![keep])
            }
            Kind::Singular => {
                let padding = groups * size - features;
                let padded = match padding {
                    0 => rows,
                    _ => {
                        let pads = self.integers(&[0, 0, 0, padding]);
                        self.node("Pad", &[&rows, &pads], vec![])
                    }
                };
                if direction.by_group() {
                    let tokens = self.reshape(&padded, &[-1, groups, size]);
                    let perm = ints("perm", vec![1, 2, 0]);
                    let across = self.node("Transpose", &[&tokens], vec![perm]);
                    let perm = ints("perm", vec![1, 0, 2]);
                    let down = self.node("Transpose", &[&tokens], vec![perm]);
                    self.node("MatMul", &[&across, &down], vec![])
                } else {
                    let tokens = self.reshape(&padded, &[-1, size]);
                    let turned = int("transA", 1);
                    self.node("Gemm", &[&tokens, &tokens], vec![turned])
                }
            }
        };
        let [features, size] = [features, size].map(|n| n as usize);
        let shape = match (direction.kind, direction.by_group()) {
            (Kind::Mean, _) => vec![features],
            (Kind::Singular, false) => vec![size, size],
            (Kind::Singular, true) => vec![direction.groups, size, size],
        };
        self.patch.add_output(float_info(&measured, &shape));
    }

    /// A node of ours, and the name of its output.
    fn node(&mut self, op: &str, inputs: &[&str], attribute: Vec<AttributeProto>) -> String {
        let name = self.name();
        self.nodes.push(NodeProto {
            attribute,
            metadata_props: vec![StringStringEntryProto {
                key: Some("velora.op".to_owned()),
                value: Some(MEASURE.to_owned()),
            }],
            ..node(op, inputs, &name)
        });
        name
    }

    fn reshape(&mut self, input: &str, shape: &[i64]) -> String {
        let shape = self.integers(shape);
        self.node("Reshape", &[input, &shape], vec![])
    }

    fn integers(&mut self, entries: &[i64]) -> String {
        let name = self.name();
        self.patch.add_initializer(int_vector(&name, entries));
        name
    }

    /// The colon keeps it apart from what a rewrite calls its values.
    fn name(&mut self) -> String {
        self.number += 1;
        format!("velora:measured.{}", self.number)
    }
}

/// The `velora.op` of nodes that measure.
pub const MEASURE: &str = "Measure";

fn float_info(name: &str, shape: &[usize]) -> ValueInfoProto {
    tensor_info(name, DataType::FLOAT, shape.iter().map(|&size| size as i64))
}

/// Whether directions of a model are still to be filled, for a message.
pub fn names(unfilled: &[Unfilled]) -> String {
    let names: Vec<&str> = unfilled.iter().take(3).map(|u| u.input.as_str()).collect();
    let more = unfilled.len().saturating_sub(names.len());
    match more {
        0 => names.join(", "),
        more => format!("{} and {more} more", names.join(", ")),
    }
}
