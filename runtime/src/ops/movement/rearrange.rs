//! `Transpose`, `Tile`, `DepthToSpace` and `SpaceToDepth`: one box each.

use super::copied;
use super::copy::{Axis, Origin, Part};
use super::scattered::transposed_scatter;
use crate::lower::{Lowering, Refusal};
use crate::tensor::TensorType;
use velora_graph::ir::Node;

pub(super) fn transpose(lowering: &mut Lowering<'_>, node: &Node) -> Result<(), Refusal> {
    if transposed_scatter(lowering, node)? {
        return Ok(());
    }
    let source = lowering.input(node, 0)?;
    let ty = lowering.ty(source);
    let permutation = lowering.permutation(node, source)?;
    let parts = permuted(&ty.shape, &permutation)?;
    let shape: Vec<usize> = permutation.iter().map(|&axis| ty.shape[axis]).collect();
    copied(lowering, node, 0, source, &shape, parts)
}

/// The box of a permutation of axes.
fn permuted(shape: &[usize], permutation: &[usize]) -> Result<Vec<Part>, Refusal> {
    let strides = row_major(shape);
    let sizes: Vec<usize> = permutation.iter().map(|&axis| shape[axis]).collect();
    let to = row_major(&sizes);
    let axes = permutation.iter().zip(to).map(|(&axis, to)| Axis {
        size: shape[axis],
        from: strides[axis] as isize,
        to,
    });
    Ok(Part::new(Origin::Input(0), 0, axes, 0, 0)?
        .into_iter()
        .collect())
}

pub(super) fn tile(lowering: &mut Lowering<'_>, node: &Node) -> Result<(), Refusal> {
    let source = lowering.input(node, 0)?;
    let ty = lowering.ty(source);
    let rank = ty.shape.len();
    let given = |lowering: &mut Lowering<'_>, slot| -> Result<Vec<i64>, Refusal> {
        lowering
            .constant_ints(node, slot)?
            .ok_or_else(|| Refusal(format!("input {slot} is missing")))
    };
    let mut repeats = given(lowering, 1)?;
    if lowering.opset(node.domain()) < 6 {
        // Before version 6: the number of tiles, and the axis.
        let axis = given(lowering, 2)?;
        let axis = axis.first().and_then(|&axis| ty.axis(axis));
        let axis = axis.ok_or_else(|| Refusal(format!("the axis is none of {ty}")))?;
        let tiles = repeats.first().copied().unwrap_or(1);
        repeats = vec![1; rank];
        repeats[axis] = tiles;
    }
    let repeats: Vec<usize> = (repeats.iter())
        .map(|&n| usize::try_from(n).map_err(|_| Refusal(format!("{n} repeats"))))
        .collect::<Result<_, _>>()?;
    if repeats.len() != rank {
        return Err(Refusal(format!(
            "{} repeats for {ty}: expected one per axis",
            repeats.len()
        )));
    }
    let sizes: Option<Vec<usize>> = (ty.shape.iter().zip(&repeats))
        .map(|(&size, &n)| size.checked_mul(n))
        .collect();
    let sizes = sizes.ok_or_else(|| Refusal::new("too many repeats"))?;
    let (from, to) = (row_major(&ty.shape), row_major(&sizes));
    let mut axes = Vec::with_capacity(2 * rank);
    for axis in 0..rank {
        axes.push(Axis {
            size: repeats[axis],
            from: 0,
            to: to[axis].saturating_mul(ty.shape[axis]),
        });
        axes.push(Axis {
            size: ty.shape[axis],
            from: from[axis] as isize,
            to: to[axis],
        });
    }
    let parts = Part::new(Origin::Input(0), 0, axes, 0, 0)?;
    copied(
        lowering,
        node,
        0,
        source,
        &sizes,
        parts.into_iter().collect(),
    )
}

/// Batch, channels, height and width, and the block of a `DepthToSpace` or its inverse.
fn blocks(ty: &TensorType, node: &Node) -> Result<([usize; 4], usize), Refusal> {
    let [n, c, h, w] = ty.shape[..] else {
        return Err(Refusal(format!(
            "the input is {ty}: expected [batch, channels, height, width]"
        )));
    };
    match usize::try_from(node.int("blocksize", 0)) {
        Ok(block @ 1..=0xFFFF) => Ok(([n, c, h, w], block)),
        _ => Err(Refusal::new("'blocksize' must be at least 1")),
    }
}

pub(super) fn depth_to_space(lowering: &mut Lowering<'_>, node: &Node) -> Result<(), Refusal> {
    let source = lowering.input(node, 0)?;
    let ty = lowering.ty(source);
    let ([n, c, h, w], b) = blocks(&ty, node)?;
    if c % (b * b) != 0 {
        return Err(Refusal(format!(
            "{c} channels are no multiple of {}, the square of the block",
            b * b
        )));
    }
    let rest = c / (b * b);
    let crd = (node.attribute("mode")).is_some_and(|mode| mode.s.as_deref() == Some(b"CRD"));
    let parts = if crd {
        permuted(&[n, rest, b, b, h, w], &[0, 1, 4, 2, 5, 3])?
    } else {
        permuted(&[n, b, b, rest, h, w], &[0, 3, 4, 1, 5, 2])?
    };
    copied(lowering, node, 0, source, &[n, rest, h * b, w * b], parts)
}

pub(super) fn space_to_depth(lowering: &mut Lowering<'_>, node: &Node) -> Result<(), Refusal> {
    let source = lowering.input(node, 0)?;
    let ty = lowering.ty(source);
    let ([n, c, h, w], b) = blocks(&ty, node)?;
    if h % b != 0 || w % b != 0 {
        return Err(Refusal(format!(
            "height {h} and width {w} must be multiples of the block, {b}"
        )));
    }
    let (h, w) = (h / b, w / b);
    let parts = permuted(&[n, c, h, b, w, b], &[0, 3, 5, 1, 2, 4])?;
    copied(lowering, node, 0, source, &[n, c * b * b, h, w], parts)
}

/// Row-major strides. They saturate where one size is 0 and others are huge: nothing is copied then.
pub(super) fn row_major(shape: &[usize]) -> Vec<usize> {
    let mut strides = vec![1usize; shape.len()];
    for axis in (1..shape.len()).rev() {
        strides[axis - 1] = strides[axis].saturating_mul(shape[axis]);
    }
    strides
}
