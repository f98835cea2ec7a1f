//! Element-wise operators with broadcasting, casts among them.
//!
//! They all become one operation, the [`Expression`]: a small program that is executed for every
//! element of a shape. So a chain of nodes can be one operation as well, which reads and writes memory
//! once; the plan makes such chains.

mod draft;
mod expression;
mod gradients;
mod lower;

pub use draft::Draft;
pub use expression::{
    Binary, Class, Comparison, Expression, Instruction, Load, MAX_LOADS, MAX_RANK, MAX_SLOTS,
    Operator, Register, Unary,
};
pub use lower::FAMILY;

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
