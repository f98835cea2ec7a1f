//! Operators that hand on their input's bytes in another shape.

use super::Family;
use crate::lower::{Lowering, Refusal};
use velora_graph::ir::Node;

/// The operators, and how they are lowered: to nothing, since the output is a view.
pub const FAMILY: Family = Family {
    operators: &[
        ("", "Reshape"),
        ("", "Squeeze"),
        ("", "Unsqueeze"),
        ("", "Flatten"),
        ("", "Identity"),
    ],
    lower,
};

fn lower(lowering: &mut Lowering<'_>, node: &Node) -> Result<(), Refusal> {
    // A shape operand was folded into the inferred shape; where it is the operand of a pin, it has no
    // value at all.
    let source = lowering.input(node, 0)?;
    lowering.view(node, 0, source)
}
