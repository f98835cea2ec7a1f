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

/// An operation that copies a tensor of any type, as the widest elements that its bytes make up.
pub fn copy(ty: &TensorType) -> Elementwise {
    let bytes = ty.bytes();
    let (data_type, size) = match bytes {
        _ if bytes.is_multiple_of(8) => (DataType::INT64, 8),
        _ if bytes.is_multiple_of(4) => (DataType::FLOAT, 4),
        _ => (DataType::BOOL, 1),
    };
    Elementwise::Expression(Expression {
        shape: vec![bytes / size],
        loads: vec![Load {
            input: 0,
            ty: data_type,
            strides: vec![1],
            offset: 0,
        }],
        code: vec![Instruction {
            operator: Operator::Load(0),
            ty: data_type,
            arguments: [0; 3],
        }],
        stores: vec![0],
        slots: vec![0],
    })
}
