//! What reads or writes at places given by a tensor.

use super::movement::width;
use super::{Family, Op};
use crate::lower::{Lowering, Refusal};
use crate::program::TensorId;
use crate::tensor::TensorType;
use velora_graph::ir::Node;
use velora_graph::shapes::DataType;

/// The operators, and how they are lowered.
pub const FAMILY: Family = Family {
    operators: &[
        ("", "Gather"),
        ("", "GatherND"),
        ("com.microsoft", "GatherND"),
        ("", "GatherElements"),
        ("com.microsoft", "GatherGrad"),
        ("com.microsoft", "GatherNDGrad"),
        ("com.microsoft", "GatherElementsGrad"),
        ("", "Scatter"),
        ("", "ScatterElements"),
        ("", "ScatterND"),
        ("", "OneHot"),
        ("", "TopK"),
    ],
    lower,
};

/// An operation of the family. Indices are `int32` or `int64`; negative ones count from the end.
#[derive(Clone, Debug, PartialEq)]
pub enum Index {
    /// Reads rows. Inputs: data, indices.
    Gather(Rows),
    /// Writes rows. Inputs: data (absent where all is 0 at first), indices, updates.
    Scatter(Rows, Reduction),
    /// Reads elements. Inputs: data, indices.
    GatherElements(Elements),
    /// Writes elements. Inputs: data (absent where all is 0 at first), indices, updates.
    ScatterElements(Elements, Reduction),
    /// One element differs in every row. Inputs: indices of any number type, and the two values: that of
    /// all others, and that at the index.
    OneHot(OneHot),
    /// The largest or smallest elements along an axis. Input: data. Outputs: values, `int64` indices.
    TopK(TopK),
}

/// How rows of a tensor are addressed.
///
/// The data is `[outer, batch, bounds.., slice]`, the indices `[batch, count, bounds.len()]`, and what is
/// gathered or scattered `[outer, batch, count, slice]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rows {
    /// How often the same indices are used.
    pub outer: usize,
    /// Tuples of indices: batches of them.
    pub batch: usize,
    /// Tuples of indices per batch.
    pub count: usize,
    /// The sizes of the axes that a tuple chooses from.
    pub bounds: Vec<usize>,
    /// The elements of a row.
    pub slice: usize,
}

/// How elements of a tensor are addressed: along one axis by the index, along the others by position.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Elements {
    /// The shape of the data.
    pub data: Vec<usize>,
    /// The shape of the indices, and of what is gathered or scattered.
    pub indices: Vec<usize>,
    /// The axis.
    pub axis: usize,
}

/// What becomes of an element that is written to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reduction {
    /// It is replaced; the last update in row-major order stays.
    Replace,
    /// The sum.
    Add,
    /// The product.
    Mul,
    /// The larger one.
    Max,
    /// The smaller one.
    Min,
}

/// Parameters of [`Index::OneHot`]: the output is `[outer, depth, inner]`, the indices `[outer, inner]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OneHot {
    /// Elements before the new axis.
    pub outer: usize,
    /// The size of the new axis.
    pub depth: usize,
    /// Elements behind it.
    pub inner: usize,
}

/// Parameters of [`Index::TopK`]: the data is `[outer, size, inner]`. Of equal elements the one with the
/// lower index comes first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TopK {
    /// Elements before the axis.
    pub outer: usize,
    /// The size of the axis.
    pub size: usize,
    /// Elements behind it.
    pub inner: usize,
    /// How many are taken.
    pub k: usize,
    /// The largest ones, else the smallest.
    pub largest: bool,
}

impl Index {
    /// The word that profiles and listings use.
    pub fn name(&self) -> &'static str {
        match self {
            Index::Gather(_) => "Gather",
            Index::Scatter(..) => "Scatter",
            Index::GatherElements(_) => "GatherElements",
            Index::ScatterElements(..) => "ScatterElements",
            Index::OneHot(_) => "OneHot",
            Index::TopK(_) => "TopK",
        }
    }

    /// Pairs of output and input: the output may be written over the input.
    pub fn in_place(&self) -> Vec<(usize, usize)> {
        match self {
            Index::Scatter(..) | Index::ScatterElements(..) => vec![(0, 0)],
            _ => Vec::new(),
        }
    }
}

fn lower(lowering: &mut Lowering<'_>, node: &Node) -> Result<(), Refusal> {
    match node.op() {
        "Gather" => {
            let (data, indices) = (lowering.input(node, 0)?, lowering.input(node, 1)?);
            let rows = along(node, &lowering.ty(data), &lowering.ty(indices))?;
            gather(lowering, node, data, indices, rows)
        }
        "GatherND" => {
            let (data, indices) = (lowering.input(node, 0)?, lowering.input(node, 1)?);
            let rows = tuples(node, &lowering.ty(data), &lowering.ty(indices))?;
            gather(lowering, node, data, indices, rows)
        }
        "GatherGrad" => {
            let (indices, updates) = (lowering.input(node, 1)?, lowering.input(node, 2)?);
            let data = gradient(lowering, node, 0, updates)?;
            let rows = along(node, &data, &lowering.ty(indices))?;
            scatter(lowering, node, None, indices, updates, rows, Reduction::Add)
        }
        "GatherNDGrad" => {
            let (indices, updates) = (lowering.input(node, 1)?, lowering.input(node, 2)?);
            let data = gradient(lowering, node, 0, updates)?;
            let rows = tuples(node, &data, &lowering.ty(indices))?;
            scatter(lowering, node, None, indices, updates, rows, Reduction::Add)
        }
        "ScatterND" => {
            let (data, indices) = (lowering.input(node, 0)?, lowering.input(node, 1)?);
            let updates = lowering.input(node, 2)?;
            let rows = tuples(node, &lowering.ty(data), &lowering.ty(indices))?;
            let reduction = reduction(node)?;
            scatter(
                lowering,
                node,
                Some(data),
                indices,
                updates,
                rows,
                reduction,
            )
        }
        "GatherElements" => {
            let (data, indices) = (lowering.input(node, 0)?, lowering.input(node, 1)?);
            let elements = elements(node, &lowering.ty(data), &lowering.ty(indices))?;
            width(&lowering.ty(data))?;
            let output = lowering.required_output(node, 0)?;
            let op = Op::Index(Index::GatherElements(elements));
            lowering.emit(op, vec![Some(data), Some(indices)], vec![Some(output)]);
            Ok(())
        }
        "GatherElementsGrad" => {
            let (updates, indices) = (lowering.input(node, 0)?, lowering.input(node, 2)?);
            let data = gradient(lowering, node, 1, updates)?;
            let elements = elements(node, &data, &lowering.ty(indices))?;
            scatter_elements(
                lowering,
                node,
                None,
                indices,
                updates,
                elements,
                Reduction::Add,
            )
        }
        "Scatter" | "ScatterElements" => {
            let (data, indices) = (lowering.input(node, 0)?, lowering.input(node, 1)?);
            let updates = lowering.input(node, 2)?;
            let elements = elements(node, &lowering.ty(data), &lowering.ty(indices))?;
            let reduction = reduction(node)?;
            scatter_elements(
                lowering,
                node,
                Some(data),
                indices,
                updates,
                elements,
                reduction,
            )
        }
        "OneHot" => one_hot(lowering, node),
        "TopK" => top_k(lowering, node),
        other => Err(Refusal(format!("{other} has no lowering"))),
    }
}

/// The type of a gradient whose shape is an operand.
fn gradient(
    lowering: &mut Lowering<'_>,
    node: &Node,
    slot: usize,
    updates: TensorId,
) -> Result<TensorType, Refusal> {
    let shape = lowering
        .constant_ints(node, slot)?
        .ok_or_else(|| Refusal::new("the shape is missing"))?;
    let shape: Result<Vec<usize>, _> = shape.iter().map(|&n| usize::try_from(n)).collect();
    let shape = shape.map_err(|_| Refusal::new("a negative size"))?;
    let ty = TensorType::new(lowering.ty(updates).data_type, shape);
    match ty.checked_bytes() {
        Some(_) => Ok(ty),
        None => Err(Refusal(format!("the gradient is {ty}, which does not fit"))),
    }
}

fn axis_of(node: &Node, ty: &TensorType) -> Result<usize, Refusal> {
    let axis = node.int("axis", 0);
    ty.axis(axis)
        .ok_or_else(|| Refusal(format!("axis {axis} is none of {ty}")))
}

fn integers(indices: &TensorType) -> Result<(), Refusal> {
    match indices.data_type {
        DataType::INT32 | DataType::INT64 => Ok(()),
        _ => Err(Refusal(format!(
            "the indices are {indices}: expected int32 or int64"
        ))),
    }
}

/// Rows chosen by single indices along an axis.
fn along(node: &Node, data: &TensorType, indices: &TensorType) -> Result<Rows, Refusal> {
    integers(indices)?;
    let axis = axis_of(node, data)?;
    Ok(Rows {
        outer: data.shape[..axis].iter().product(),
        batch: 1,
        count: indices.elements(),
        bounds: vec![data.shape[axis]],
        slice: data.shape[axis + 1..].iter().product(),
    })
}

/// Rows chosen by tuples of indices.
fn tuples(node: &Node, data: &TensorType, indices: &TensorType) -> Result<Rows, Refusal> {
    integers(indices)?;
    let rejected = || Refusal(format!("indices {indices} do not fit data {data}"));
    let (Some((&depth, leading)), Ok(batch)) = (
        indices.shape.split_last(),
        usize::try_from(node.int("batch_dims", 0)),
    ) else {
        return Err(rejected());
    };
    let rank = data.shape.len();
    let fits = batch <= leading.len()
        && batch.checked_add(depth).is_some_and(|axes| axes <= rank)
        && data.shape[..batch] == leading[..batch];
    if !fits {
        return Err(rejected());
    }
    Ok(Rows {
        outer: 1,
        batch: leading[..batch].iter().product(),
        count: leading[batch..].iter().product(),
        bounds: data.shape[batch..batch + depth].to_vec(),
        slice: data.shape[batch + depth..].iter().product(),
    })
}

fn elements(node: &Node, data: &TensorType, indices: &TensorType) -> Result<Elements, Refusal> {
    integers(indices)?;
    let axis = axis_of(node, data)?;
    let fits = data.shape.len() == indices.shape.len()
        && (0..data.shape.len())
            .all(|other| other == axis || indices.shape[other] <= data.shape[other]);
    if !fits {
        return Err(Refusal(format!(
            "indices {indices} do not fit data {data}: expected no larger sizes beside axis {axis}"
        )));
    }
    if data.shape.len() > 8 {
        return Err(Refusal(format!("data {data} has more than 8 axes")));
    }
    Ok(Elements {
        data: data.shape.clone(),
        indices: indices.shape.clone(),
        axis,
    })
}

/// The reduction of a scatter.
pub(super) fn reduction(node: &Node) -> Result<Reduction, Refusal> {
    let name = node.attribute("reduction").and_then(|a| a.s.clone());
    match name.as_deref().unwrap_or(b"none") {
        b"none" => Ok(Reduction::Replace),
        b"add" => Ok(Reduction::Add),
        b"mul" => Ok(Reduction::Mul),
        b"max" => Ok(Reduction::Max),
        b"min" => Ok(Reduction::Min),
        other => Err(Refusal(format!(
            "reduction '{}' is none of none, add, mul, max and min",
            String::from_utf8_lossy(other)
        ))),
    }
}

fn gather(
    lowering: &mut Lowering<'_>,
    node: &Node,
    data: TensorId,
    indices: TensorId,
    rows: Rows,
) -> Result<(), Refusal> {
    width(&lowering.ty(data))?;
    let output = lowering.required_output(node, 0)?;
    let ty = lowering.ty(output);
    let elements = [rows.outer, rows.batch, rows.count, rows.slice];
    if elements.iter().product::<usize>() != ty.elements() {
        return Err(Refusal(format!("the output cannot be {ty}")));
    }
    let op = Op::Index(Index::Gather(rows));
    lowering.emit(op, vec![Some(data), Some(indices)], vec![Some(output)]);
    Ok(())
}

/// Types that can be added, multiplied and compared.
fn numbers(ty: &TensorType, reduction: Reduction) -> Result<(), Refusal> {
    width(ty)?;
    let ordered = matches!(ty.data_type.0, 1..=7 | 9..=13 | 16);
    match reduction {
        Reduction::Replace => Ok(()),
        _ if ordered => Ok(()),
        _ => Err(Refusal(format!("{ty} cannot be reduced"))),
    }
}

fn scatter(
    lowering: &mut Lowering<'_>,
    node: &Node,
    data: Option<TensorId>,
    indices: TensorId,
    updates: TensorId,
    rows: Rows,
    reduction: Reduction,
) -> Result<(), Refusal> {
    let output = lowering.required_output(node, 0)?;
    let (ty, given) = (lowering.ty(output), lowering.ty(updates));
    let elements = [rows.outer, rows.batch, rows.count, rows.slice];
    if elements.iter().product::<usize>() != given.elements() || given.data_type != ty.data_type {
        return Err(Refusal(format!(
            "the updates are {given}: expected {} rows of {} elements, of the data's type",
            rows.outer * rows.batch * rows.count,
            rows.slice
        )));
    }
    numbers(&ty, reduction)?;
    if ty.elements() >= u32::MAX as usize || rows.batch * rows.count >= u32::MAX as usize {
        return Err(Refusal(format!("{ty} has too many elements to scatter to")));
    }
    let op = Op::Index(Index::Scatter(rows, reduction));
    lowering.emit(
        op,
        vec![data, Some(indices), Some(updates)],
        vec![Some(output)],
    );
    Ok(())
}

fn scatter_elements(
    lowering: &mut Lowering<'_>,
    node: &Node,
    data: Option<TensorId>,
    indices: TensorId,
    updates: TensorId,
    elements: Elements,
    reduction: Reduction,
) -> Result<(), Refusal> {
    let output = lowering.required_output(node, 0)?;
    let (ty, given) = (lowering.ty(output), lowering.ty(updates));
    if given.shape != elements.indices || given.data_type != ty.data_type {
        return Err(Refusal(format!(
            "the updates are {given}: expected {}",
            TensorType::new(ty.data_type, elements.indices)
        )));
    }
    if ty.shape != elements.data {
        return Err(Refusal(format!("the output cannot be {ty}")));
    }
    numbers(&ty, reduction)?;
    let op = Op::Index(Index::ScatterElements(elements, reduction));
    lowering.emit(
        op,
        vec![data, Some(indices), Some(updates)],
        vec![Some(output)],
    );
    Ok(())
}

fn one_hot(lowering: &mut Lowering<'_>, node: &Node) -> Result<(), Refusal> {
    let (indices, values) = (lowering.input(node, 0)?, lowering.input(node, 2)?);
    let (index_type, values_type) = (lowering.ty(indices), lowering.ty(values));
    let output = lowering.required_output(node, 0)?;
    let ty = lowering.ty(output);
    let axis = node.int("axis", -1);
    let axis = ty
        .axis(axis)
        .ok_or_else(|| Refusal(format!("axis {axis} is none of {ty}")))?;
    let mut rest = ty.shape.clone();
    let depth = rest.remove(axis);
    if rest != index_type.shape || values_type.elements() != 2 {
        return Err(Refusal(format!(
            "indices {index_type} and values {values_type} do not make {ty}"
        )));
    }
    if !matches!(index_type.data_type.0, 1..=7 | 10..=13 | 16) {
        return Err(Refusal(format!(
            "the indices are {index_type}: expected numbers"
        )));
    }
    width(&ty)?;
    let op = Op::Index(Index::OneHot(OneHot {
        outer: rest[..axis].iter().product(),
        depth,
        inner: rest[axis..].iter().product(),
    }));
    lowering.emit(op, vec![Some(indices), Some(values)], vec![Some(output)]);
    Ok(())
}

fn top_k(lowering: &mut Lowering<'_>, node: &Node) -> Result<(), Refusal> {
    let data = lowering.input(node, 0)?;
    let ty = lowering.ty(data);
    let axis = node.int("axis", -1);
    let axis = ty
        .axis(axis)
        .ok_or_else(|| Refusal(format!("axis {axis} is none of {ty}")))?;
    let k = match lowering.constant_ints(node, 1)? {
        Some(given) => given.first().copied().unwrap_or(0),
        None => node.int("k", 0),
    };
    let size = ty.shape[axis];
    let k = match usize::try_from(k) {
        Ok(k) if k <= size => k,
        _ => return Err(Refusal(format!("{k} elements of {size}"))),
    };
    if !matches!(ty.data_type.0, 1..=7 | 10..=13 | 16) || u32::try_from(size).is_err() {
        return Err(Refusal(format!("{ty} cannot be ordered")));
    }
    let outputs = vec![lowering.output(node, 0)?, lowering.output(node, 1)?];
    let op = Op::Index(Index::TopK(TopK {
        outer: ty.shape[..axis].iter().product(),
        size,
        inner: ty.shape[axis + 1..].iter().product(),
        k,
        largest: node.int("largest", 1) != 0,
    }));
    lowering.emit(op, vec![Some(data)], outputs);
    Ok(())
}
