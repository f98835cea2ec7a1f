//! Reductions over axes.

use super::{Family, Op};
use crate::lower::{Lowering, Refusal};
use velora_graph::ir::Node;

/// The operators, and how they are lowered.
pub const FAMILY: Family = Family {
    operators: &[
        ("", "ReduceSum"),
        ("", "ReduceMean"),
        ("", "ReduceMax"),
        ("", "ReduceMin"),
        ("", "ReduceProd"),
        ("", "ReduceL1"),
        ("", "ReduceL2"),
        ("", "ReduceLogSum"),
        ("", "ReduceLogSumExp"),
        ("", "ReduceSumSquare"),
        ("com.microsoft", "ReduceSumTraining"),
        ("", "ArgMax"),
        ("", "ArgMin"),
        ("", "CumSum"),
    ],
    lower,
};

/// The most groups of axes of a [`Fold`].
pub const MAX_GROUPS: usize = 8;

/// An operation of the family.
#[derive(Clone, Debug, PartialEq)]
pub enum Reduce {
    /// One number for every place of the axes that stay.
    Fold(Fold),
    /// The place of the greatest or least element along an axis.
    Arg(Arg),
    /// Running sums along an axis.
    Running(Running),
}

/// A reduction over some axes of the input.
#[derive(Clone, Debug, PartialEq)]
pub struct Fold {
    /// What is computed.
    pub kind: Kind,
    /// The axes of the input, from the outermost; neighbours that are treated alike are one group, so
    /// kept and reduced groups take turns. At most [`MAX_GROUPS`].
    pub groups: Vec<Group>,
}

/// Neighbouring axes of the input as one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Group {
    /// The product of their sizes.
    pub size: usize,
    /// Whether they are reduced.
    pub reduced: bool,
}

/// What a reduction computes of its elements x.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Σ x
    Sum,
    /// Σ x / count
    Mean,
    /// The greatest.
    Max,
    /// The least.
    Min,
    /// Π x
    Product,
    /// Σ |x|
    L1,
    /// √ Σ x²
    L2,
    /// log Σ x
    LogSum,
    /// log Σ eˣ
    LogSumExp,
    /// Σ x²
    SumSquare,
}

/// Of an input [outer, size, inner]: places along the middle axis, as 64-bit integers.
#[derive(Clone, Debug, PartialEq)]
pub struct Arg {
    /// The product of the sizes of the axes in front.
    pub outer: usize,
    /// The size of the axis.
    pub size: usize,
    /// The product of the sizes of the axes behind.
    pub inner: usize,
    /// The greatest, not the least.
    pub greatest: bool,
    /// Of equal elements the last one.
    pub last: bool,
}

/// Of an input [outer, size, inner]: sums along the middle axis.
#[derive(Clone, Debug, PartialEq)]
pub struct Running {
    /// The product of the sizes of the axes in front.
    pub outer: usize,
    /// The size of the axis.
    pub size: usize,
    /// The product of the sizes of the axes behind.
    pub inner: usize,
    /// Without the element itself.
    pub exclusive: bool,
    /// From the end.
    pub reverse: bool,
}

impl Reduce {
    /// The word that profiles and listings use.
    pub fn name(&self) -> &'static str {
        match self {
            Reduce::Fold(_) => "Reduce",
            Reduce::Arg(_) => "Arg",
            Reduce::Running(_) => "CumSum",
        }
    }

    /// Pairs of output and input: the output may be written over the input.
    pub fn in_place(&self) -> Vec<(usize, usize)> {
        Vec::new()
    }
}

/// The sizes in front of an axis, at it, and behind it.
pub(crate) fn around(shape: &[usize], axis: usize) -> (usize, usize, usize) {
    let size = shape.get(axis).copied().unwrap_or(1);
    let outer = shape.iter().take(axis).product();
    let inner = shape.iter().skip(axis + 1).product();
    (outer, size, inner)
}

fn lower(lowering: &mut Lowering<'_>, node: &Node) -> Result<(), Refusal> {
    let kind = match node.op() {
        "ReduceSum" | "ReduceSumTraining" => Kind::Sum,
        "ReduceMean" => Kind::Mean,
        "ReduceMax" => Kind::Max,
        "ReduceMin" => Kind::Min,
        "ReduceProd" => Kind::Product,
        "ReduceL1" => Kind::L1,
        "ReduceL2" => Kind::L2,
        "ReduceLogSum" => Kind::LogSum,
        "ReduceLogSumExp" => Kind::LogSumExp,
        "ReduceSumSquare" => Kind::SumSquare,
        "CumSum" => return running(lowering, node),
        _ => return arg(lowering, node),
    };
    let input = lowering.input(node, 0)?;
    let ty = lowering.ty(input);
    let rank = ty.shape.len();
    let axes = match node.ints("axes") {
        Some(axes) => Some(axes.to_vec()),
        None => lowering.constant_ints(node, 1)?,
    };
    let axes = axes.filter(|axes| !axes.is_empty());
    let mut reduced = vec![false; rank];
    match axes {
        Some(axes) => {
            for axis in axes {
                let place = ty.axis(axis).ok_or_else(|| {
                    Refusal(format!("axis {axis} of a tensor with {rank} dimensions"))
                })?;
                reduced[place] = true;
            }
        }
        None => reduced.fill(node.int("noop_with_empty_axes", 0) == 0),
    }
    let mut groups: Vec<Group> = Vec::new();
    for (&size, &reduced) in ty.shape.iter().zip(&reduced) {
        match groups.last_mut() {
            _ if size == 1 => {}
            Some(last) if last.reduced == reduced => last.size *= size,
            _ => groups.push(Group { size, reduced }),
        }
    }
    // A sum of one element is that element.
    let plain = !matches!(
        kind,
        Kind::L1 | Kind::L2 | Kind::LogSum | Kind::LogSumExp | Kind::SumSquare
    );
    if plain && groups.iter().all(|group| !group.reduced) {
        return lowering.view(node, 0, input);
    }
    if groups.len() > MAX_GROUPS {
        return Err(Refusal(format!(
            "reduced and kept axes take turns {} times, and the runtime takes {MAX_GROUPS}",
            groups.len()
        )));
    }
    let output = lowering.required_output(node, 0)?;
    let op = Op::Reduce(Reduce::Fold(Fold { kind, groups }));
    lowering.emit(op, vec![Some(input)], vec![Some(output)]);
    Ok(())
}

fn arg(lowering: &mut Lowering<'_>, node: &Node) -> Result<(), Refusal> {
    let input = lowering.input(node, 0)?;
    let ty = lowering.ty(input);
    let axis = node.int("axis", 0);
    let axis = ty
        .axis(axis)
        .ok_or_else(|| Refusal(format!("axis {axis} of {ty}")))?;
    let (outer, size, inner) = around(&ty.shape, axis);
    if size == 0 {
        return Err(Refusal(format!("the axis {axis} of {ty} has no elements")));
    }
    let output = lowering.required_output(node, 0)?;
    let op = Op::Reduce(Reduce::Arg(Arg {
        outer,
        size,
        inner,
        greatest: node.op() == "ArgMax",
        last: node.int("select_last_index", 0) != 0,
    }));
    lowering.emit(op, vec![Some(input)], vec![Some(output)]);
    Ok(())
}

fn running(lowering: &mut Lowering<'_>, node: &Node) -> Result<(), Refusal> {
    let input = lowering.input(node, 0)?;
    let ty = lowering.ty(input);
    let axis = lowering.constant_ints(node, 1)?.unwrap_or_default();
    let axis = match axis.as_slice() {
        &[axis] => axis,
        other => {
            return Err(Refusal(format!(
                "one axis was expected, not {}",
                other.len()
            )));
        }
    };
    let axis = ty
        .axis(axis)
        .ok_or_else(|| Refusal(format!("axis {axis} of {ty}")))?;
    let (outer, size, inner) = around(&ty.shape, axis);
    let output = lowering.required_output(node, 0)?;
    let op = Op::Reduce(Reduce::Running(Running {
        outer,
        size,
        inner,
        exclusive: node.int("exclusive", 0) != 0,
        reverse: node.int("reverse", 0) != 0,
    }));
    lowering.emit(op, vec![Some(input)], vec![Some(output)]);
    Ok(())
}
