//! One evaluation of a graph: inputs in, outputs out.

use crate::backend::{Backend, Fault, StepContext};
use crate::lower::{LowerError, Request, constants, lower};
use crate::plan::{PlanError, build};
use crate::tensor::{Tensor, TensorType};
use std::collections::BTreeMap;
use thiserror::Error;
use velora_graph::ir::Model;

/// Why a graph could not be evaluated.
#[derive(Debug, Error)]
pub enum EvaluateError {
    /// The graph cannot be executed.
    #[error(transparent)]
    Lower(#[from] LowerError),
    /// There is no plan.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// The step failed.
    #[error(transparent)]
    Fault(#[from] Fault),
    /// An input is missing or has another type.
    #[error("input '{name}': expected {expected}, got {}", .found.as_deref().unwrap_or("nothing"))]
    Input {
        /// The input.
        name: String,
        /// Its type in the graph.
        expected: String,
        /// The type given.
        found: Option<String>,
    },
}

/// Evaluates a model on inputs by name, and gives its outputs in the file's order.
///
/// An input that is not given takes the file's default.
///
/// # Errors
/// [`EvaluateError`] where the graph cannot be executed or an input does not fit.
pub fn evaluate(
    model: &Model,
    request: &Request<'_>,
    inputs: &BTreeMap<String, Tensor>,
    backend: &dyn Backend,
) -> Result<Vec<Tensor>, EvaluateError> {
    let graph = &model.graph;
    let mut program = lower(model, request)?;
    let plan = build(&mut program, backend)?;
    let mut executable = backend.prepare(vec![plan])?;
    for (position, &value) in graph.inputs().iter().enumerate() {
        let Some(operand) = executable.plan().inputs[position].clone() else {
            continue;
        };
        let name = &graph.value(value).name;
        let default = || constants::default(graph, name, request.folder)?.ok();
        let tensor = inputs.get(name).cloned().or_else(default);
        let fits = |t: &Tensor| t.data_type == operand.ty.data_type && t.shape == operand.ty.shape;
        match tensor {
            Some(tensor) if fits(&tensor) => executable.write(operand.buffer, &tensor.bytes)?,
            tensor => {
                let found = tensor.map(|t| TensorType::new(t.data_type, t.shape).to_string());
                return Err(EvaluateError::Input {
                    name: name.clone(),
                    expected: operand.ty.to_string(),
                    found,
                });
            }
        }
    }
    executable.run(&StepContext::default(), None)?;
    let outputs = executable.plan().outputs.clone();
    (outputs.into_iter())
        .map(|operand| {
            let mut bytes = vec![0; operand.ty.bytes()];
            executable.read(operand.buffer, &mut bytes)?;
            Ok(Tensor {
                data_type: operand.ty.data_type,
                shape: operand.ty.shape,
                bytes: bytes.into(),
            })
        })
        .collect()
}
