//! Initial values of parameters, where the model's file has none.
//!
//! What a parameter is for, the graph tells better than its name: a scale of a normalisation, a bias, the
//! weight of a product. Names serve where the readers tell nothing. [`distribution`] has the rules.

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use velora_graph::ir::{Graph, Node, ValueId};
use velora_graph::shapes::DataType;

use crate::random;
use crate::tensor::{Tensor, byte_length};

/// How matrices and larger tensors are drawn.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Scheme {
    /// From a normal distribution with deviation 0.02, as GPT-2 and BERT are.
    Normal,
    /// As PyTorch's layers do: uniform within 1/√fan_in for linear layers and convolutions (K. He et al.:
    /// Delving deep into rectifiers, ICCV 2015, with the `a = √5` of `torch.nn.Linear`), standard normal
    /// for embeddings.
    Kaiming,
}

/// What the elements of a parameter are drawn from.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Distribution {
    /// All the same.
    Constant(f64),
    /// Normal around 0.
    Normal {
        /// The standard deviation.
        deviation: f64,
    },
    /// Uniform around 0.
    Uniform {
        /// The largest magnitude.
        bound: f64,
    },
}

/// A parameter that cannot be drawn.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InitError {
    /// Not a floating point type.
    #[error(
        "parameter '{name}' is of type {data_type}; only float, double, float16 and bfloat16 are drawn, \
         so give its values in a file"
    )]
    Type {
        /// The parameter.
        name: String,
        /// Its type.
        data_type: DataType,
    },
    /// More elements than memory can have.
    #[error("parameter '{name}' of shape {shape:?} exceeds any memory")]
    Size {
        /// The parameter.
        name: String,
        /// Its shape.
        shape: Vec<usize>,
    },
}

/// The deviation of [`Scheme::Normal`], and of learned positions in both schemes.
const DEVIATION: f64 = 0.02;

/// What a reader says that a value is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Role {
    /// A factor that changes nothing at first: 1. Scales of normalisations, running variances.
    One,
    /// A summand that changes nothing at first: 0. Biases, running means.
    Zero,
    /// A table of rows that are gathered.
    Table,
    /// The right operand of a product as it lies: its rows are summed over.
    Right,
    /// The weight of a convolution, or of a product that transposes it: all axes but the first are
    /// summed over.
    Weight,
    /// A factor of elements.
    Factor,
    /// A summand of elements.
    Summand,
}

impl Role {
    /// How much a role says; the lowest number counts. Backward nodes multiply and add anything, so
    /// factors and summands say the least.
    fn rank(self) -> u8 {
        match self {
            Role::One | Role::Zero => 0,
            Role::Table => 1,
            Role::Right | Role::Weight => 2,
            Role::Factor => 3,
            Role::Summand => 4,
        }
    }
}

fn role(node: &Node, slot: usize) -> Option<Role> {
    Some(match (node.op(), slot) {
        (
            "LayerNormalization"
            | "SimplifiedLayerNormalization"
            | "RMSNormalization"
            | "GroupNormalization"
            | "InstanceNormalization"
            | "BatchNormalization"
            | "BatchNormInternal",
            1..=4,
        ) => match slot {
            1 | 4 => Role::One,
            _ => Role::Zero,
        },
        ("Conv" | "ConvTranspose" | "Gemm", 2) | ("BiasGelu", 1) => Role::Zero,
        ("Gather" | "GatherElements", 0) => Role::Table,
        ("MatMul" | "FusedMatMul", 1) => match node.int("transB", 0) {
            0 => Role::Right,
            _ => Role::Weight,
        },
        ("Gemm", 1) => match node.int("transB", 0) {
            0 => Role::Right,
            _ => Role::Weight,
        },
        ("Conv", 1) | ("Transpose", 0) => Role::Weight,
        ("Mul", _) => Role::Factor,
        ("Add", _) => Role::Summand,
        _ => return None,
    })
}

/// What a parameter is to be drawn from.
///
/// 1. State of an optimiser inside the graph is 0: a name that begins or ends with the part `momentum`,
///    `momentum_buffer`, `exp_avg` or `exp_avg_sq`, or begins with ONNX Runtime's `Moment_`. The graph
///    reads and updates it as it does parameters, so that only names tell.
/// 2. The second factor of a LoRA pair (`lora_B` in its name) is 0, so that the pair changes nothing at
///    first.
/// 3. Vectors and scalars: 1 for scales and running variances of normalisations and for factors; 0 for
///    biases, running means and summands. Where no reader tells: 1 where the last part of the name holds
///    `weight`, `gamma`, `scale` or `var`, otherwise 0.
/// 4. Larger ones by the scheme. `fan_in` is the number of elements that one output sums over: all axes
///    but the first, as PyTorch lays weights out, or the last but one where a product reads the tensor
///    as it lies. Those that are only added (learned positions) have deviation 0.02.
pub fn distribution(
    scheme: Scheme,
    graph: &Graph,
    value: ValueId,
    shape: &[usize],
) -> Distribution {
    let value = graph.value(value);
    let readers = value.users.iter();
    let role = readers.filter_map(|reader| role(graph.node(reader.node), reader.slot?));
    // The first of equals: the forward product comes before the one that makes the input's gradient, which
    // reads the weight the other way round.
    let role = role.min_by_key(|role| role.rank());
    if is_state(&value.name) || value.name.contains("lora_B") {
        return Distribution::Constant(0.0);
    }
    if shape.len() < 2 {
        let one = match role {
            Some(Role::One | Role::Factor) => true,
            Some(Role::Zero | Role::Summand) => false,
            _ => {
                let last = value.name.rsplit(['.', '/']).next().unwrap_or_default();
                ["weight", "gamma", "scale", "var"]
                    .iter()
                    .any(|word| last.contains(word))
            }
        };
        return Distribution::Constant(if one { 1.0 } else { 0.0 });
    }
    match (scheme, role) {
        (Scheme::Normal, _) | (_, Some(Role::Zero | Role::Summand)) => Distribution::Normal {
            deviation: DEVIATION,
        },
        (Scheme::Kaiming, Some(Role::Table)) => Distribution::Normal { deviation: 1.0 },
        (Scheme::Kaiming, role) => {
            let fan_in = match role {
                Some(Role::Right) => shape.iter().rev().nth(1).copied().unwrap_or(1) as f64,
                _ => shape.iter().skip(1).map(|&size| size as f64).product(),
            };
            Distribution::Uniform {
                bound: 1.0 / fan_in.max(1.0).sqrt(),
            }
        }
    }
}

/// Whether a name is that of an optimiser's state; see [`distribution`].
fn is_state(name: &str) -> bool {
    let state = |part| {
        matches!(
            part,
            "momentum" | "momentum_buffer" | "exp_avg" | "exp_avg_sq"
        )
    };
    let mut parts = name.split(['.', '/']);
    name.starts_with("Moment_")
        || parts.next().is_some_and(state)
        || parts.next_back().is_some_and(state)
}

/// Draws a parameter. The numbers depend on the seed, the name, the distribution and the position of each
/// element only: an original and a rewritten graph begin alike.
pub fn draw(
    distribution: Distribution,
    seed: u64,
    name: &str,
    data_type: DataType,
    shape: &[usize],
) -> Result<Tensor, InitError> {
    let Some(length) = byte_length(data_type, shape) else {
        return Err(InitError::Size {
            name: name.to_owned(),
            shape: shape.to_vec(),
        });
    };
    let put: fn(f64, &mut Vec<u8>) = match data_type {
        DataType::FLOAT => |x, bytes| bytes.extend((x as f32).to_le_bytes()),
        DataType::DOUBLE => |x, bytes| bytes.extend(x.to_le_bytes()),
        DataType::FLOAT16 => |x, bytes| bytes.extend(half::f16::from_f64(x).to_le_bytes()),
        DataType::BFLOAT16 => |x, bytes| bytes.extend(half::bf16::from_f64(x).to_le_bytes()),
        data_type => {
            return Err(InitError::Type {
                name: name.to_owned(),
                data_type,
            });
        }
    };
    let stream = random::stream("initial values", name.as_bytes());
    let mut bytes = Vec::with_capacity(length);
    let mut index = 0;
    while bytes.len() < length {
        let x = match distribution {
            Distribution::Constant(x) => x,
            Distribution::Normal { deviation } => deviation * random::normal(seed, stream, index),
            Distribution::Uniform { bound } => {
                bound * (2.0 * f64::from(random::uniform(seed, stream, index)) - 1.0)
            }
        };
        put(x, &mut bytes);
        index += 1;
    }
    Ok(Tensor {
        data_type,
        shape: shape.to_vec(),
        bytes: Bytes::from(bytes),
    })
}
