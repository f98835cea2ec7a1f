//! Projections on several directions, moving directions, and how projections are stored: the rest of
//! `ai.velora`, beside the one direction of [`super::velora`].

use super::Op;
use super::velora::SubTokens;
use crate::lower::{Lowering, Refusal};
use crate::program::TensorId;
use velora_graph::ir::Node;
use velora_graph::shapes::DataType;

/// An operation of the family.
///
/// Directions are v [R, M], or [G, R, M] where each group has its own; z has G·R numbers for a row, those
/// of a group side by side.
#[derive(Clone, Debug, PartialEq)]
pub enum Directions {
    /// The products of every sub-token with its directions. Inputs: X [rows, features], v; output: z
    /// [rows, G·R].
    Project(Sets),
    /// Sums of multiples of directions, one for every sub-token of a row. Inputs: p [rows, G·R], v; output
    /// [rows, features]: `Σ_k scale · v[g, k, m] · p[r, g·R+k]` at g · M + m.
    Spread {
        /// The sizes.
        sets: Sets,
        /// The factor.
        scale: f32,
    },
    /// The same with rows and columns exchanged. Inputs: p [G·R, rows], v; output [features, rows].
    Repeat {
        /// The sizes.
        sets: Sets,
        /// The factor.
        scale: f32,
    },
    /// The mean of the sub-tokens of each group, normalised; even where its norm is below the least
    /// normal number. Input: X [rows, features]; output: v [G, 1, M].
    Means(SubTokens),
    /// A moving average of unit vectors, normalised. Inputs: v and the mean, both [vectors, size]; output:
    /// `decay · v + (1 - decay) · mean`, normalised, or the mean where that cancels.
    Blend {
        /// The entries of a vector.
        size: usize,
        /// How much of v stays.
        decay: f32,
    },
    /// 8-bit integers and a scale for each row. Input: z [rows, width]; outputs: int8 of that shape, and the
    /// scales `[rows]`, the largest magnitude over 127.
    Quantize {
        /// The numbers of a row.
        width: usize,
    },
    /// Back. Inputs: int8 [rows, width], scales `[rows]`; output [rows, width].
    Dequantize {
        /// The numbers of a row.
        width: usize,
    },
}

/// Rows, and the directions of their sub-tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sets {
    /// How rows are cut.
    pub sizes: SubTokens,
    /// The directions of a sub-token (R).
    pub rank: usize,
    /// Whether each group has its own.
    pub by_group: bool,
}

impl Sets {
    /// The numbers that stand for a row (G·R).
    pub fn width(&self) -> usize {
        self.sizes.groups * self.rank
    }

    /// Where direction `k` of a group lies in v.
    pub fn direction(&self, group: usize, k: usize) -> std::ops::Range<usize> {
        let set = if self.by_group { group } else { 0 };
        let start = (set * self.rank + k) * self.sizes.size();
        start..start + self.sizes.size()
    }

    /// The elements of v.
    fn elements(&self) -> usize {
        let sets = if self.by_group { self.sizes.groups } else { 1 };
        sets * self.rank * self.sizes.size()
    }
}

impl Directions {
    /// The word that profiles and listings use.
    pub fn name(&self) -> &'static str {
        match self {
            Directions::Project(_) => "Project",
            Directions::Spread { .. } => "SpreadSets",
            Directions::Repeat { .. } => "RepeatSets",
            Directions::Means(_) => "MeanDirections",
            Directions::Blend { .. } => "RunningDirection",
            Directions::Quantize { .. } => "Quantize",
            Directions::Dequantize { .. } => "Dequantize",
        }
    }

    /// Whether it makes a part of an activation's compressed form.
    pub fn compresses(&self) -> bool {
        matches!(
            self,
            Directions::Project(_)
                | Directions::Means(_)
                | Directions::Blend { .. }
                | Directions::Quantize { .. }
        )
    }

    /// Pairs of output and input: the output may be written over the input.
    pub fn in_place(&self) -> Vec<(usize, usize)> {
        Vec::new()
    }
}

/// The rank and sharing of directions v; `None` where v is one direction.
pub(super) fn sets(
    lowering: &Lowering<'_>,
    v: TensorId,
    sizes: SubTokens,
) -> Result<Option<Sets>, Refusal> {
    let ty = lowering.ty(v);
    let (rank, by_group) = match ty.shape.as_slice() {
        [_] => return Ok(None),
        &[rank, _] => (rank, false),
        &[_, rank, _] => (rank, true),
        _ => {
            return Err(Refusal(format!(
                "the directions are {ty}: expected 1, 2 or 3 axes"
            )));
        }
    };
    let sets = Sets {
        sizes,
        rank,
        by_group,
    };
    if ty.elements() != sets.elements() {
        return Err(Refusal(format!(
            "the directions are {ty}: expected {} elements; groups, features and v belong together",
            sets.elements()
        )));
    }
    Ok(Some(sets))
}

/// Lowers the operators of `ai.velora` that are no projection.
pub(super) fn lower(lowering: &mut Lowering<'_>, node: &Node) -> Result<(), Refusal> {
    let first = lowering.input(node, 0)?;
    let ty = lowering.ty(first);
    let Some(&last) = ty.shape.last() else {
        return Err(Refusal(format!("the operand is a scalar ({ty})")));
    };
    let width = last.max(1);
    let (op, others) = match node.op() {
        "RunningDirection" => {
            let mean = lowering.input(node, 1)?;
            same(&ty.shape, &lowering.ty(mean).shape, "v", "the mean")?;
            let decay = node.float("decay", 0.0);
            (Directions::Blend { size: width, decay }, vec![mean])
        }
        "Quantize" => (Directions::Quantize { width }, vec![]),
        _ => {
            let scales = lowering.input(node, 1)?;
            let mut rows = ty.shape.clone();
            if let Some(last) = rows.last_mut() {
                *last = 1;
            }
            same(&rows, &lowering.ty(scales).shape, "the scales", "they")?;
            if ty.data_type != DataType::INT8 {
                return Err(Refusal(format!("the operand is {ty}: expected int8")));
            }
            (Directions::Dequantize { width }, vec![scales])
        }
    };
    let inputs = std::iter::once(first).chain(others).map(Some).collect();
    let mut outputs = vec![Some(lowering.required_output(node, 0)?)];
    if matches!(op, Directions::Quantize { .. }) {
        outputs.push(Some(lowering.required_output(node, 1)?));
    }
    lowering.emit(Op::Directions(op), inputs, outputs);
    Ok(())
}

fn same(a: &[usize], b: &[usize], what: &str, other: &str) -> Result<(), Refusal> {
    match a == b {
        true => Ok(()),
        false => Err(Refusal(format!(
            "{what} should be {a:?}, and {other} {b:?}: expected the same"
        ))),
    }
}
