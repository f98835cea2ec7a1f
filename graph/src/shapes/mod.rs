//! Types and shapes of all values of a graph, symbolic where sizes are.
//!
//! [`infer`] walks the nodes once, in topological order. A rule per operator says what its outputs
//! are from what its inputs are; the elements of small integer tensors are followed as expressions,
//! so that the target of a Reshape that the graph computes from a Shape is known. What a rule says
//! and what the file declares are then merged:
//!
//! * a number against another number, a rank against another rank, an element type against another
//!   are contradictions, all collected into one [`ShapeErrors`];
//! * otherwise the more informative one stays: a number, then an expression over symbols of the
//!   graph's inputs, then the file's own name for the size, then a symbol made up here
//!   (`tensor#axis`). Of two equally informative ones the rule's stays: exporters name one size
//!   twice (ONNX Runtime calls the labels' axis `rows`, and it is the batch).
//!
//! Two symbolic sizes that are broadcast against each other are equal, or one of them is 1, or the
//! run fails: the result is their maximum in every run that does not fail, and is given as that.

mod call;
mod control;
mod elementwise;
mod error;
mod fact;
mod index;
mod infer;
mod make;
mod matmul;
mod nn;
mod pieces;
mod pool;
mod reduce;
mod rules;
mod shape_ops;
mod training;
mod types;
mod velora;

pub use error::{ShapeError, ShapeErrors};
pub use infer::infer;
pub(crate) use types::Declarations;
pub use types::{DataType, ValueType};

use crate::dim::Dim;
use crate::ir::ValueId;
use crate::onnx::schema::{FunctionProto, OperatorSetIdProto};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// What inference needs beside the graph.
#[derive(Clone, Copy, Debug)]
pub struct Context<'a> {
    /// The model's operator sets: an operator's meaning depends on its version.
    pub opsets: &'a [OperatorSetIdProto],
    /// The model's local functions.
    pub functions: &'a [FunctionProto],
    /// Sizes given to symbols (`--dim`), put in place before anything is inferred.
    pub sizes: &'a BTreeMap<Arc<str>, i64>,
}

/// The type of every value.
#[derive(Clone, Debug)]
pub struct Shapes {
    types: Vec<ValueType>,
    contents: Vec<Option<Arc<[Dim]>>>,
    unknown_ops: BTreeSet<(String, String)>,
}

impl Shapes {
    /// The type of a value; nothing in it is known where inference could not tell.
    pub fn of(&self, value: ValueId) -> &ValueType {
        &self.types[value.index()]
    }

    /// The bytes of a value's buffer, or `None` where its rank or element type is unknown.
    pub fn bytes(&self, value: ValueId) -> Option<Dim> {
        self.of(value).bytes()
    }

    /// The elements of a small tensor that shapes are computed with, in row-major order; an element
    /// that nothing tells is [undefined](Dim::is_undefined). Unlike sizes, elements may be 0 or
    /// negative. The least integer of a constant is given as its neighbour, which dimensions hold.
    pub fn contents(&self, value: ValueId) -> Option<&[Dim]> {
        self.contents[value.index()].as_deref()
    }

    /// Domain and name of every operator that inference has no rule for, nested graphs included.
    /// Of their outputs only what the file declares is known.
    pub fn unknown_ops(&self) -> &BTreeSet<(String, String)> {
        &self.unknown_ops
    }
}
