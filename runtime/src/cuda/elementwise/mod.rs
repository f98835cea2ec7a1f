//! Element-wise expressions: a kernel of its own for each of them, made as text and compiled at run time.

mod source;

use super::compile::Unit;
use super::encode::{Arguments, BLOCK, Call, Sink, Unsupported};
use crate::ops::elementwise::{Elementwise, Expression};
use source::{Kernel, VECTOR};
use std::borrow::Cow;

/// The file that generated kernels appear under; [`merged`] makes one unit of those of a plan.
pub const FILE: &str = "elementwise.cu";

/// Puts an operation into a sink.
///
/// # Errors
/// [`Unsupported`] where an operand is missing.
pub fn encode(op: &Elementwise, call: &Call<'_>, sink: &mut Sink<'_>) -> Result<(), Unsupported> {
    let Elementwise::Expression(expression) = op;
    let elements = expression.elements();
    if elements == 0 {
        return Ok(());
    }
    let kernel = Kernel::new(expression);
    let mut arguments = Arguments::new();
    for &input in &kernel.inputs {
        arguments = arguments.address(call.input(input)?.address);
    }
    for output in 0..expression.stores.len() {
        arguments = arguments.address(call.optional_output(output).map_or(0, |o| o.address));
    }
    arguments = arguments.size(elements);
    let blocks = sink.blocks(elements, VECTOR * BLOCK as usize);
    let unit = Unit {
        name: FILE,
        text: Cow::Owned(kernel.text),
    };
    sink.launch(&unit, kernel.name, blocks, BLOCK, arguments);
    Ok(())
}

/// One unit of the texts of several generated kernels.
pub fn merged(mut texts: Vec<&str>) -> Unit {
    texts.sort_unstable();
    texts.dedup();
    Unit {
        name: FILE,
        text: Cow::Owned(format!(
            "#include \"elementwise.cuh\"\n\n{}",
            texts.join("\n")
        )),
    }
}

/// The source of one expression, to be looked at.
pub fn text(expression: &Expression) -> String {
    Kernel::new(expression).text
}
