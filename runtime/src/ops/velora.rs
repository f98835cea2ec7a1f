//! The operators of `ai.velora`: compressed activations and what is computed from them, with one direction.
//! Those with several become operations of [`super::directions`].

use super::directions::{self, Directions};
use super::matmul::transposed_product;
use super::{Family, Op};
use crate::lower::{Lowering, Refusal};
use crate::tensor::TensorType;
use velora_graph::ir::Node;

/// The operators, and how they are lowered.
pub const FAMILY: Family = Family {
    operators: &[
        ("ai.velora", "Compress"),
        ("ai.velora", "MeanDirection"),
        ("ai.velora", "MeanDirections"),
        ("ai.velora", "RunningDirection"),
        ("ai.velora", "Quantize"),
        ("ai.velora", "Dequantize"),
        ("ai.velora", "Reconstruct"),
        ("ai.velora", "FactoredWeightGrad"),
    ],
    lower,
};

/// An operation of the family.
///
/// Rows of `features` elements are `groups` sub-tokens of M = ceil(features / groups); the last ones are
/// thought to be filled up with zeros, and may be empty.
#[derive(Clone, Debug, PartialEq)]
pub enum Velora {
    /// The product of every sub-token with a direction. Inputs: X [rows, features], v `[M]`; output:
    /// z [rows, groups].
    Compress(SubTokens),
    /// The mean of all sub-tokens, normalised; even where its norm is below the least normal number.
    /// Input: X [rows, features]; output: v `[M]`.
    MeanDirection(SubTokens),
    /// Multiples of a direction, one for every sub-token of a row. Inputs: p [rows, groups], v `[M]`;
    /// output [rows, features]: `scale · v[m] · p[r, g]` at g · M + m.
    Spread {
        /// The sizes.
        sizes: SubTokens,
        /// The factor of v.
        scale: f32,
    },
    /// Multiples of rows, one for every entry of a direction. Inputs: p [groups, rows], v `[M]`; output
    /// [features, rows]: `scale · v[m] · p[g, r]` in row g · M + m.
    Repeat {
        /// The sizes.
        sizes: SubTokens,
        /// The factor of v.
        scale: f32,
    },
}

/// Rows, and how they are cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SubTokens {
    /// The number of rows.
    pub rows: usize,
    /// The elements of a row (D).
    pub features: usize,
    /// The sub-tokens of a row (G).
    pub groups: usize,
}

impl SubTokens {
    /// The elements of a sub-token (M).
    pub fn size(&self) -> usize {
        self.features.div_ceil(self.groups.max(1))
    }

    /// The features of a sub-token in a row; fewer, or none, for the last ones.
    pub fn span(&self, group: usize) -> std::ops::Range<usize> {
        let size = self.size();
        let start = (group * size).min(self.features);
        start..(start + size).min(self.features)
    }
}

impl Velora {
    /// The word that profiles and listings use.
    pub fn name(&self) -> &'static str {
        match self {
            Velora::Compress(_) => "Compress",
            Velora::MeanDirection(_) => "MeanDirection",
            Velora::Spread { .. } => "Spread",
            Velora::Repeat { .. } => "Repeat",
        }
    }

    /// Whether it makes a part of an activation's compressed form.
    pub fn compresses(&self) -> bool {
        matches!(self, Velora::Compress(_) | Velora::MeanDirection(_))
    }

    /// Pairs of output and input: the output may be written over the input.
    pub fn in_place(&self) -> Vec<(usize, usize)> {
        Vec::new()
    }
}

/// A positive attribute.
fn positive(node: &Node, name: &str) -> Result<usize, Refusal> {
    match usize::try_from(node.int(name, 0)) {
        Ok(value) if value > 0 => Ok(value),
        _ => Err(Refusal(format!(
            "the attribute {name} is {}: expected a positive number",
            node.int(name, 0)
        ))),
    }
}

/// The sizes of an operand [..., last].
fn rows_of(ty: &TensorType) -> Result<(usize, usize), Refusal> {
    match ty.shape.split_last() {
        Some((&last, rows)) => Ok((rows.iter().product(), last)),
        None => Err(Refusal(format!("a scalar ({ty}) has no features"))),
    }
}

fn expect(what: &str, ty: &TensorType, elements: usize) -> Result<(), Refusal> {
    if ty.elements() == elements {
        return Ok(());
    }
    Err(Refusal(format!(
        "{what} is {ty}: expected {elements} elements; groups, features and v belong together"
    )))
}

fn lower(lowering: &mut Lowering<'_>, node: &Node) -> Result<(), Refusal> {
    if matches!(node.op(), "RunningDirection" | "Quantize" | "Dequantize") {
        return directions::lower(lowering, node);
    }
    let groups = positive(node, "groups")?;
    let first = lowering.input(node, 0)?;
    let ty = lowering.ty(first);
    let (rows, last) = rows_of(&ty)?;
    let mut sizes = SubTokens {
        rows,
        features: last,
        groups,
    };
    let mut inputs = vec![Some(first)];
    let op = match node.op() {
        "FactoredWeightGrad" => return factored_weight_grad(lowering, node, groups),
        "MeanDirection" => Op::Velora(Velora::MeanDirection(sizes)),
        "MeanDirections" => Op::Directions(Directions::Means(sizes)),
        op => {
            let reconstruct = op == "Reconstruct";
            if reconstruct {
                sizes.features = positive(node, "features")?;
            }
            let v = lowering.input(node, 1)?;
            inputs.push(Some(v));
            let sets = directions::sets(lowering, v, sizes)?;
            match sets {
                None => expect("the direction", &lowering.ty(v), sizes.size())?,
                Some(_) => {}
            }
            let width = sets.map_or(groups, |sets| sets.width());
            if reconstruct {
                expect("the compressed activation", &ty, rows * width)?;
            }
            let scale = 1.0;
            match (reconstruct, sets) {
                (false, None) => Op::Velora(Velora::Compress(sizes)),
                (true, None) => Op::Velora(Velora::Spread { sizes, scale }),
                (false, Some(sets)) => Op::Directions(Directions::Project(sets)),
                (true, Some(sets)) => Op::Directions(Directions::Spread { sets, scale }),
            }
        }
    };
    let output = lowering.required_output(node, 0)?;
    lowering.emit(op, inputs, vec![Some(output)]);
    Ok(())
}

/// A small product, and its expansion: the product is a tensor of its own, since an optimiser may use it.
fn factored_weight_grad(
    lowering: &mut Lowering<'_>,
    node: &Node,
    groups: usize,
) -> Result<(), Refusal> {
    let z = lowering.input(node, 0)?;
    let dy = lowering.input(node, 1)?;
    let v = lowering.input(node, 2)?;
    let features = positive(node, "features")?;
    let (of_z, of_dy) = (lowering.ty(z), lowering.ty(dy));
    let (&[tokens, z_width], &[dy_tokens, outputs]) =
        (of_z.shape.as_slice(), of_dy.shape.as_slice())
    else {
        return Err(Refusal(format!(
            "operands {of_z} and {of_dy}: expected two matrices"
        )));
    };
    let sizes = SubTokens {
        rows: outputs,
        features,
        groups,
    };
    let sets = directions::sets(lowering, v, sizes)?;
    let width = sets.map_or(groups, |sets| sets.width());
    if tokens != dy_tokens || z_width != width {
        return Err(Refusal(format!(
            "operands {of_z} and {of_dy}: expected as many rows, and {width} columns on the left"
        )));
    }
    if sets.is_none() {
        expect("the direction", &lowering.ty(v), sizes.size())?;
    }
    let scale = node.float("scale", 1.0);
    // The layout of P is that of dW, so that the expansion reads and writes in order.
    let transposed = node.int("transposed", 0) != 0;
    let op = match (transposed, sets) {
        (false, None) => Op::Velora(Velora::Repeat { sizes, scale }),
        (true, None) => Op::Velora(Velora::Spread { sizes, scale }),
        (false, Some(sets)) => Op::Directions(Directions::Repeat { sets, scale }),
        (true, Some(sets)) => Op::Directions(Directions::Spread { sets, scale }),
    };
    let (left, right, shape) = match transposed {
        false => (z, dy, [width, outputs]),
        true => (dy, z, [outputs, width]),
    };
    let product = lowering.temporary("P", TensorType::new(of_dy.data_type, shape));
    transposed_product(lowering, left, right, product);
    let output = lowering.required_output(node, 0)?;
    lowering.emit(op, vec![Some(product), Some(v)], vec![Some(output)]);
    Ok(())
}
