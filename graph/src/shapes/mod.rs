//! Types and shapes of all values of a graph, symbolic where sizes are.

mod types;

pub use types::{DataType, ValueType};

use crate::dim::Dim;
use crate::ir::{Graph, ValueId};
use crate::onnx::schema::{FunctionProto, OperatorSetIdProto};
use std::collections::BTreeMap;
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
}

/// Infers the types of all values of a graph.
pub fn infer(graph: &Graph, context: &Context<'_>) -> Shapes {
    let mut types = vec![ValueType::default(); graph.value_count()];
    let infos = (graph.input_infos().iter()).chain(graph.output_infos());
    for info in infos.chain(graph.value_infos()) {
        if let Some(value) = graph.values().find(|&v| graph.value(v).name == info.name()) {
            types[value.index()] = ValueType::declared(info, context.sizes);
        }
    }
    Shapes { types }
}
