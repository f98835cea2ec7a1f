//! Sums kept in a buffer from step to step.

use super::Family;
use crate::lower::{Lowering, Refusal};
use velora_graph::ir::Node;

/// The operators, and how they are lowered.
pub const FAMILY: Family = Family {
    operators: &[],
    lower,
};

/// An operation of the family.
#[derive(Clone, Debug, PartialEq)]
pub enum Accumulate {}

impl Accumulate {
    /// The word that profiles and listings use.
    pub fn name(&self) -> &'static str {
        match *self {}
    }

    /// Pairs of output and input: the output may be written over the input.
    pub fn in_place(&self) -> Vec<(usize, usize)> {
        match *self {}
    }
}

fn lower(_lowering: &mut Lowering<'_>, node: &Node) -> Result<(), Refusal> {
    Err(Refusal(format!("{} has no lowering", node.op())))
}
pub fn stub() -> Accumulate {
    unreachable!()
}
