//! The operators of `ai.velora`: compressed activations and what is computed from them, with one direction.
//! Those with several become operations of [`super::directions`].

use super::directions::{self, Directions, Sets};
use super::matmul::transposed_product;
use super::{Family, Op};
use crate::lower::{Lowering, Refusal};
use crate::program::TensorId;
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
        ("ai.velora", "FactoredScaleGrad"),
    ],
    lower,
};

/// An operation of the family.
///
/// Rows of `features` elements are `groups` sub-tokens of M = ceil(features / groups); the last ones are
/// thought to be filled up with zeros, and may be empty. Where the features are channels, each of them has
/// an element for every place, side by side, and a sub-token lies across them.
#[derive(Clone, Debug, PartialEq)]
pub enum Velora {
    /// The product of every sub-token with a direction. Inputs: X [rows, features, places], v `[M]`;
    /// output: z [rows, groups, places].
    Compress(SubTokens),
    /// The mean of all sub-tokens, normalised; even where its norm is below the least normal number.
    /// Input: X [rows, features, places]; output: v `[M]`.
    MeanDirection(SubTokens),
    /// Multiples of a direction, one for every sub-token of a row. Inputs: p [rows, groups, places], v
    /// `[M]`; output [rows, features, places]: `scale · v[m] · p[r, g]` at g · M + m.
    Spread {
        /// The sizes.
        sizes: SubTokens,
        /// The factor of v.
        scale: f32,
    },
    /// Multiples of rows, one for every entry of a direction. Inputs: p [groups, rows], v `[M]`; output
    /// [features, rows]: `scale · v[m] · p[g, r]` in row g · M + m.
    Repeat {
        /// The sizes; one place.
        sizes: SubTokens,
        /// The factor of v.
        scale: f32,
    },
    /// The sum over rows of a matrix, each row multiplied by multiples of a direction. Inputs: z [rows,
    /// groups], dY [rows, features], v `[M]`; output `[features]`: `scale · v[m] · Σ_r z[r, g] · dY[r, f]`
    /// at f = g · M + m.
    ScaleGrad {
        /// The sizes; one place.
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
    /// The features of a row (D).
    pub features: usize,
    /// The sub-tokens of a row, at one place (G).
    pub groups: usize,
    /// The elements of a feature: 1, or what lies behind channels.
    pub places: usize,
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
            Velora::ScaleGrad { .. } => "ScaleGrad",
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

/// Rows, features or groups, and places of an operand, by the axis of the features.
fn sizes_of(node: &Node, ty: &TensorType) -> Result<[usize; 3], Refusal> {
    let axis = match (node.int("axis", -1), ty.shape.len()) {
        (-1, rank) if rank > 0 => rank - 1,
        (1, rank) if rank > 1 => 1,
        (axis, _) => {
            return Err(Refusal(format!(
                "{ty} has no features on axis {axis}: expected axis -1 or 1"
            )));
        }
    };
    let product = |sizes: &[usize]| sizes.iter().product();
    let (rows, behind) = (&ty.shape[..axis], &ty.shape[axis + 1..]);
    Ok([product(rows), ty.shape[axis], product(behind)])
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
    match node.op() {
        "FactoredWeightGrad" => return factored_weight_grad(lowering, node, groups),
        "FactoredScaleGrad" => return factored_scale_grad(lowering, node, groups),
        _ => {}
    }
    let first = lowering.input(node, 0)?;
    let ty = lowering.ty(first);
    let [rows, across, places] = sizes_of(node, &ty)?;
    let mut sizes = SubTokens {
        rows,
        features: across,
        groups,
        places,
    };
    let mut inputs = vec![Some(first)];
    let op = match node.op() {
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
                Some(_) if places != 1 => {
                    return Err(Refusal::new("channels have one direction for all groups"));
                }
                Some(_) => {}
            }
            let width = sets.map_or(groups, |sets| sets.width());
            if reconstruct {
                expect("the compressed activation", &ty, rows * width * places)?;
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

/// What a factored gradient is made of: z [tokens, width], dY [tokens, columns], and v.
struct Factored {
    z: TensorId,
    dy: TensorId,
    v: TensorId,
    tokens: usize,
    columns: usize,
}

impl Factored {
    fn read(lowering: &mut Lowering<'_>, node: &Node) -> Result<Self, Refusal> {
        let z = lowering.input(node, 0)?;
        let dy = lowering.input(node, 1)?;
        let v = lowering.input(node, 2)?;
        let (of_z, of_dy) = (lowering.ty(z), lowering.ty(dy));
        match (of_z.shape.as_slice(), of_dy.shape.as_slice()) {
            (&[tokens, _], &[dy_tokens, columns]) if tokens == dy_tokens => Ok(Factored {
                z,
                dy,
                v,
                tokens,
                columns,
            }),
            _ => Err(Refusal(format!(
                "operands {of_z} and {of_dy}: expected two matrices of as many rows"
            ))),
        }
    }

    /// Refuses a z of another width, and where there is one direction, one of another size.
    fn check(
        &self,
        lowering: &Lowering<'_>,
        sizes: SubTokens,
        sets: Option<Sets>,
    ) -> Result<usize, Refusal> {
        let width = sets.map_or(sizes.groups, |sets| sets.width());
        expect(
            "the compressed activation",
            &lowering.ty(self.z),
            self.tokens * width,
        )?;
        if sets.is_none() {
            expect("the direction", &lowering.ty(self.v), sizes.size())?;
        }
        Ok(width)
    }
}

/// The gradient of a scale.
fn factored_scale_grad(
    lowering: &mut Lowering<'_>,
    node: &Node,
    groups: usize,
) -> Result<(), Refusal> {
    let of = Factored::read(lowering, node)?;
    let sizes = SubTokens {
        rows: of.tokens,
        features: of.columns,
        groups,
        places: 1,
    };
    of.check(lowering, sizes, None)?;
    let scale = node.float("scale", 1.0);
    let output = lowering.required_output(node, 0)?;
    lowering.emit(
        Op::Velora(Velora::ScaleGrad { sizes, scale }),
        vec![Some(of.z), Some(of.dy), Some(of.v)],
        vec![Some(output)],
    );
    Ok(())
}

/// A small product, and its expansion: the product is a tensor of its own, since an optimiser may use it.
fn factored_weight_grad(
    lowering: &mut Lowering<'_>,
    node: &Node,
    groups: usize,
) -> Result<(), Refusal> {
    let of = Factored::read(lowering, node)?;
    let features = positive(node, "features")?;
    let sizes = SubTokens {
        rows: of.columns,
        features,
        groups,
        places: 1,
    };
    let sets = directions::sets(lowering, of.v, sizes)?;
    let width = of.check(lowering, sizes, sets)?;
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
        false => (of.z, of.dy, [width, of.columns]),
        true => (of.dy, of.z, [of.columns, width]),
    };
    let data_type = lowering.ty(of.dy).data_type;
    let product = lowering.temporary("P", TensorType::new(data_type, shape));
    transposed_product(lowering, left, right, product);
    let output = lowering.required_output(node, 0)?;
    lowering.emit(op, vec![Some(product), Some(of.v)], vec![Some(output)]);
    Ok(())
}
