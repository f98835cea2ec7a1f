//! What the runtime can do: one operation per kind of loop, whatever the graph calls it.
//!
//! Every family has a file here with the operation's parameters, and with how the graph's operators
//! become such operations; its kernels lie under the same name in each backend. An operation says
//! everything that a backend needs: attributes are resolved, optional inputs given, axes counted from 0.

pub mod accumulate;
pub mod dequantize;
pub mod directions;
pub mod elementwise;
pub mod index;
pub mod loss;
pub mod matmul;
pub mod movement;
pub mod normalize;
pub mod random;
pub mod recurrent;
pub mod reduce;
pub mod velora;
pub mod view;
pub mod window;

use crate::lower::{Lowering, Refusal};
use velora_graph::ir::Node;

/// An operation with its parameters.
#[derive(Clone, Debug, PartialEq)]
pub enum Op {
    /// A matrix product.
    MatMul(matmul::MatMul),
    /// Element-wise operators with broadcasting, casts among them.
    Elementwise(elementwise::Elementwise),
    /// Reductions over axes.
    Reduce(reduce::Reduce),
    /// Softmax and normalisations, with their gradients.
    Normalize(normalize::Normalize),
    /// Losses, with their gradients.
    Loss(loss::Loss),
    /// The operators of `ai.velora` with one direction.
    Velora(velora::Velora),
    /// Those with several, and what directions and projections are made of and stored as.
    Directions(directions::Directions),
    /// What moves, repeats or cuts elements, and makes constant ones.
    Movement(movement::Movement),
    /// What reads or writes at places given by a tensor.
    Index(index::Index),
    /// What draws random numbers.
    Random(random::Random),
    /// Sums kept in a buffer from step to step.
    Accumulate(accumulate::Accumulate),
    /// Convolutions and pooling, with their gradients.
    Window(window::Window),
    /// Recurrent layers, with their gradients.
    Recurrent(recurrent::Recurrent),
    /// Numbers from integers and scales.
    Dequantize(dequantize::Dequantize),
}

/// How the operators of one family are lowered.
#[derive(Clone, Copy)]
pub struct Family {
    /// Domain and name of the operators.
    pub operators: &'static [(&'static str, &'static str)],
    /// Adds the operations of a node to the program.
    pub lower: fn(&mut Lowering<'_>, &Node) -> Result<(), Refusal>,
}

/// All families.
pub const FAMILIES: &[Family] = &[
    matmul::FAMILY,
    view::FAMILY,
    elementwise::FAMILY,
    reduce::FAMILY,
    normalize::FAMILY,
    loss::FAMILY,
    velora::FAMILY,
    movement::FAMILY,
    index::FAMILY,
    random::FAMILY,
    accumulate::FAMILY,
    window::FAMILY,
    recurrent::FAMILY,
    dequantize::FAMILY,
];

/// The family of an operator.
pub fn family(domain: &str, op: &str) -> Option<&'static Family> {
    (FAMILIES.iter()).find(|family| family.operators.contains(&(domain, op)))
}

impl Op {
    /// The word that profiles and listings use.
    pub fn name(&self) -> &'static str {
        match self {
            Op::MatMul(_) => "MatMul",
            Op::Elementwise(op) => op.name(),
            Op::Reduce(op) => op.name(),
            Op::Normalize(op) => op.name(),
            Op::Loss(op) => op.name(),
            Op::Velora(op) => op.name(),
            Op::Directions(op) => op.name(),
            Op::Movement(op) => op.name(),
            Op::Index(op) => op.name(),
            Op::Random(op) => op.name(),
            Op::Accumulate(op) => op.name(),
            Op::Window(op) => op.name(),
            Op::Recurrent(op) => op.name(),
            Op::Dequantize(_) => "DequantizeLinear",
        }
    }

    /// Whether the operation runs as soon as it can: compressions, so that their input can die.
    pub fn is_eager(&self) -> bool {
        match self {
            Op::Velora(op) => op.compresses(),
            Op::Directions(op) => op.compresses(),
            _ => false,
        }
    }

    /// Which input an output may be written over, where that input dies in the operation and has the
    /// same bytes: pairs of output and input positions. The kernel must then read an element before it
    /// writes over it.
    pub fn in_place(&self) -> Vec<(usize, usize)> {
        match self {
            Op::MatMul(_) => Vec::new(),
            Op::Elementwise(op) => op.in_place(),
            Op::Reduce(op) => op.in_place(),
            Op::Normalize(op) => op.in_place(),
            Op::Loss(op) => op.in_place(),
            Op::Velora(op) => op.in_place(),
            Op::Directions(op) => op.in_place(),
            Op::Movement(op) => op.in_place(),
            Op::Index(op) => op.in_place(),
            Op::Random(op) => op.in_place(),
            Op::Accumulate(op) => op.in_place(),
            Op::Window(op) => op.in_place(),
            Op::Recurrent(op) => op.in_place(),
            // The numbers take more bytes than the integers.
            Op::Dequantize(_) => Vec::new(),
        }
    }
}
