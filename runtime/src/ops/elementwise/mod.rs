//! Element-wise operators with broadcasting, casts among them.
//!
//! They all become one operation, the [`Expression`]: a small program that is executed for every
//! element of a shape. So a chain of nodes can be one operation as well, which reads and writes memory
//! once; [`crate::plan::fuse`] makes such chains.

mod draft;
mod expression;
mod gradients;
mod lower;
mod merge;

pub use draft::Draft;
pub use expression::{
    Binary, Class, Comparison, Expression, Instruction, Load, MAX_LOADS, MAX_RANK, MAX_SLOTS,
    Operator, Register, Unary,
};
pub use lower::FAMILY;
pub use merge::{Numbering, Operand};

use crate::tensor::TensorType;
use velora_graph::shapes::DataType;

/// An operation of the family.
#[derive(Clone, Debug, PartialEq)]
pub enum Elementwise {
    /// Instructions for every element of a shape.
    Expression(Expression),
}

/// Hands on the elements of a tensor of a type, unchanged.
pub fn copy(ty: &TensorType) -> Elementwise {
    // Bytes, where it is a type that expressions do not have.
    let (data_type, count) = match Class::of(ty.data_type) {
        Some(_) => (ty.data_type, ty.elements()),
        None => (DataType::BOOL, ty.bytes()),
    };
    let load = Instruction {
        operator: Operator::Load(0),
        ty: data_type,
        arguments: [0; 3],
    };
    Elementwise::Expression(Expression {
        shape: vec![count],
        loads: vec![Load {
            input: 0,
            ty: data_type,
            strides: vec![1],
            offset: 0,
        }],
        code: vec![load],
        stores: vec![0],
        slots: vec![0],
    })
}

impl Elementwise {
    /// The word that profiles and listings use.
    pub fn name(&self) -> &'static str {
        match self {
            Elementwise::Expression(expression) => expression.name(),
        }
    }

    /// Pairs of output and input: the output may be written over the input.
    pub fn in_place(&self) -> Vec<(usize, usize)> {
        match self {
            Elementwise::Expression(expression) => expression.in_place(),
        }
    }
}
