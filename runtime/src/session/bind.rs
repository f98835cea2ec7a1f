//! Which inputs of a graph get data, and the sizes that follow.

use crate::data::Dataset;
use crate::training::Signature;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use thiserror::Error;
use velora_graph::dim::Dim;
use velora_graph::ir::Model;
use velora_graph::shapes::{Context, ShapeErrors, Shapes, infer};

/// Samples of a batch where neither the graph nor the user says how many.
pub const DEFAULT_BATCH: usize = 32;

/// Why data does not fit a graph.
#[derive(Debug, Error)]
pub enum BindError {
    /// Shapes contradict each other.
    #[error(transparent)]
    Shapes(#[from] ShapeErrors),
    /// No array is named after an input.
    #[error(
        "{file}: no array is named after an input of the graph; the file has {arrays}, and the graph's \
         inputs without a gradient are {inputs}; rename the arrays"
    )]
    NoInput {
        /// The data file.
        file: String,
        /// Its arrays.
        arrays: String,
        /// The inputs that could be meant.
        inputs: String,
    },
    /// An array and an input have sizes that do not fit.
    #[error(
        "{file}: array '{name}' of shape {found:?} does not fit the input, {expected}: {problem}"
    )]
    Shape {
        /// The data file.
        file: String,
        /// The array and input.
        name: String,
        /// The array's shape.
        found: Vec<usize>,
        /// The input's shape, with the batch size.
        expected: String,
        /// What does not fit.
        problem: String,
    },
}

/// Which inputs get data, and the sizes of a batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bound {
    /// Positions of the inputs that get data, in the file's order.
    pub batch: BTreeSet<usize>,
    /// Samples in a batch.
    pub size: usize,
    /// Sizes of the symbols of the inputs' shapes.
    pub sizes: BTreeMap<Arc<str>, i64>,
}

/// Finds the sizes of a batch.
///
/// The first axis of every array counts samples. An input has the array's other axes, and in front of
/// them one axis of the batch's size; where it has fewer axes, its first one runs over the samples and
/// the array's next axes together (labels of shape `[batch × sequence]`).
///
/// # Errors
/// [`BindError`] where no array is an input's, or sizes contradict each other.
pub fn bind(
    model: &Model,
    signature: &Signature,
    data: &Dataset,
    size: Option<usize>,
    given: &BTreeMap<Arc<str>, i64>,
) -> Result<Bound, BindError> {
    let graph = &model.graph;
    let shapes = infer(
        graph,
        &Context {
            opsets: &model.shell.opset_import,
            functions: &model.shell.functions,
            sizes: given,
        },
    )?;
    let name = |position: usize| graph.value(graph.inputs()[position]).name.as_str();
    let mut batch = BTreeSet::new();
    for &position in &signature.others {
        if data.arrays.contains_key(name(position)) {
            batch.insert(position);
        }
    }
    if batch.is_empty() {
        let quoted = |names: Vec<&str>| match names.len() {
            0 => "none".to_owned(),
            _ => format!("'{}'", names.join("', '")),
        };
        let inputs = signature.others.iter().map(|&position| name(position));
        return Err(BindError::NoInput {
            file: data.file.display().to_string(),
            arrays: quoted(data.arrays.keys().map(String::as_str).collect()),
            inputs: quoted(inputs.collect()),
        });
    }
    let fixed = || fixed_size(model, &shapes, data, &batch);
    let default = || {
        let samples = samples(data, model, &batch);
        DEFAULT_BATCH.min(samples.unwrap_or(DEFAULT_BATCH)).max(1)
    };
    let size = size.or_else(fixed).unwrap_or_else(default);
    let mut bound = Bound {
        batch,
        size,
        sizes: given.clone(),
    };
    for position in bound.batch.clone() {
        let array = &data.arrays[name(position)];
        let Some(dims) = &shapes.of(graph.inputs()[position]).shape else {
            continue;
        };
        let refuse = |problem: String| {
            let dims: Vec<String> = dims.iter().map(Dim::to_string).collect();
            BindError::Shape {
                file: data.file.display().to_string(),
                name: name(position).to_owned(),
                found: array.shape.clone(),
                expected: format!("[{}] with {size} samples in a batch", dims.join(", ")),
                problem,
            }
        };
        let Some(sizes) = sizes_of(&array.shape, dims.len(), size) else {
            return Err(refuse("the input has more axes than the array".to_owned()));
        };
        let joined = array.shape.len() != dims.len();
        for (axis, (dim, wanted)) in dims.iter().zip(sizes).enumerate() {
            // Of an axis that samples are joined along, the batch is only a part.
            let from = match axis == 0 && !joined {
                true => "the batch has",
                false => "the data has",
            };
            fit(dim, wanted, from, &mut bound.sizes).map_err(refuse)?;
        }
    }
    Ok(bound)
}

/// The samples of a data set, by the inputs that get data; `None` where no array has any axis.
pub fn samples(data: &Dataset, model: &Model, batch: &BTreeSet<usize>) -> Option<usize> {
    let graph = &model.graph;
    let names = (batch.iter()).map(|&position| &graph.value(graph.inputs()[position]).name);
    let counts = names.filter_map(|name| data.arrays.get(name)?.shape.first().copied());
    counts.min()
}

/// The sizes of an input with some axes, for a batch of samples of an array.
fn sizes_of(array: &[usize], axes: usize, size: usize) -> Option<Vec<i64>> {
    let joined = array.len().checked_sub(axes)?;
    let (first, rest) = array.get(1..)?.split_at_checked(joined)?;
    let first = first.iter().try_fold(size, |n, &d| n.checked_mul(d))?;
    let sizes = std::iter::once(&first).chain(rest);
    sizes.map(|&size| i64::try_from(size).ok()).collect()
}

/// Makes a dimension have a size.
fn fit(
    dim: &Dim,
    wanted: i64,
    from: &str,
    sizes: &mut BTreeMap<Arc<str>, i64>,
) -> Result<(), String> {
    if let Some(value) = dim.as_const() {
        return match value == wanted {
            true => Ok(()),
            false => Err(format!("the graph has {value} there, and {from} {wanted}")),
        };
    }
    for symbol in dim.symbols() {
        if Dim::symbol(&symbol) == *dim {
            let known = sizes.insert(symbol.clone(), wanted);
            if known.is_some_and(|known| known != wanted) {
                return Err(format!(
                    "'{symbol}' is {} elsewhere, and {wanted} here",
                    known.unwrap_or_default()
                ));
            }
        }
    }
    Ok(())
}

/// The batch size that the graph's inputs fix.
fn fixed_size(
    model: &Model,
    shapes: &Shapes,
    data: &Dataset,
    batch: &BTreeSet<usize>,
) -> Option<usize> {
    let graph = &model.graph;
    batch.iter().find_map(|&position| {
        let value = graph.inputs()[position];
        let dims = shapes.of(value).shape.as_ref()?;
        let array = &data.arrays.get(&graph.value(value).name)?.shape;
        let first = usize::try_from(dims.first()?.as_const()?).ok()?;
        let joined = array.len().checked_sub(dims.len())?;
        let inner: usize = array.get(1..)?.get(..joined)?.iter().product();
        first.checked_div(inner)
    })
}
