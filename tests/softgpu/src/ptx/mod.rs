//! Reads PTX text, as NVRTC writes it, into kernels that the interpreter executes. What is not supported is
//! refused here, with its line.

mod decode;
mod decode_float;
mod decode_integer;
mod decode_memory;
mod decode_ops;
pub(crate) mod inst;
mod lexer;
mod module;
mod operands;
mod syntax;

use inst::{Inst, Slot32, Slot64, SlotPred};
use std::sync::Arc;

/// A variable of a module, in device memory.
#[derive(Clone, Debug)]
pub struct Variable {
    /// Its name in the text.
    pub name: String,
    /// Its bytes, zero where the text gives no initialiser, as CUDA defines them.
    pub bytes: Vec<u8>,
    /// Whether kernels must not write it.
    pub constant: bool,
    /// Places of 8 bytes that take the address of another variable, by index.
    pub addresses: Vec<(usize, usize)>,
}

/// What the kernels of one text share.
#[derive(Clone, Debug)]
pub struct Module {
    /// Distinguishes loads, also of the same text: each has variables of its own.
    pub id: u64,
    /// Variables in global and constant space.
    pub variables: Vec<Variable>,
    /// The text, by lines.
    pub lines: Vec<String>,
    /// For each line of the text the line of the CUDA source, 0 where unknown.
    pub source_lines: Vec<u32>,
}

/// A decoded kernel.
#[derive(Clone, Debug)]
pub struct Kernel {
    /// Its name, as `cuModuleGetFunction` takes it.
    pub name: String,
    /// Offset and size in bytes of each parameter.
    pub params: Vec<(usize, usize)>,
    /// Size of all parameters in bytes, with padding.
    pub param_bytes: usize,
    /// Bytes of static shared memory, as a device counts them.
    pub shared_bytes: usize,
    /// Threads per block that `__launch_bounds__` promises, and whether exactly these.
    pub threads: Option<(u32, bool)>,
    /// Its instructions, then those of the functions it calls.
    pub(crate) code: Vec<Inst>,
    pub(crate) slots32: Vec<Slot32>,
    pub(crate) slots64: Vec<Slot64>,
    pub(crate) preds: Vec<SlotPred>,
    /// Static shared variables: offset and bytes; between them lie red zones.
    pub(crate) shared: Vec<(usize, usize)>,
    /// Where dynamic shared memory begins.
    pub(crate) dynamic_at: usize,
    /// Whether it names dynamic shared memory.
    pub(crate) uses_dynamic: bool,
    /// Local arrays and parameters of functions: offset and bytes; between them lie red zones.
    pub(crate) local: Vec<(usize, usize)>,
    pub(crate) local_bytes: usize,
    /// Targets of indexed branches.
    pub(crate) tables: Vec<Vec<u32>>,
    pub(crate) module: Arc<Module>,
}

/// The kernels of `text`.
///
/// # Errors
/// Returns what is unsupported or malformed, with its line.
pub fn parse(text: &str) -> Result<Vec<Kernel>, String> {
    let (tokens, source_lines) = lexer::lex(text)?;
    let file = syntax::Parser::new(tokens).file()?;
    module::module(text, source_lines, &file)
}
