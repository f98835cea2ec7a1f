//! Sites: weight-gradient contractions that read a saved activation.
//!
//! Found by structure, from the gradients upwards. From each gradient (or updated parameter) the
//! walk goes through operators that keep a tensor of the parameter's shape (views, transpositions,
//! casts, sums of contributions, accumulation, clipping, the arithmetic of an optimiser) to matrix
//! products. A product is a contraction where one operand is a forward value X [..., D], the other
//! a gradient dY [..., O], and the sum runs over all token axes: as `MatMul`, `Gemm` or
//! `FusedMatMul` of two matrices, or batched, followed by a `ReduceSum` over the batch axes.

use super::buffers::{Buffers, is_view};
use super::partition::{Half, Partition};
use super::roles::Roles;
use super::saved::Reader;
use crate::dim::Dim;
use crate::ir::{Graph, Node, NodeId, ValueId};
use crate::shapes::Shapes;
use std::collections::{BTreeMap, HashSet};

/// One weight-gradient contraction of one activation.
#[derive(Clone, Debug, PartialEq)]
pub struct Site {
    /// The parameter whose gradient the contraction contributes to.
    pub parameter: ValueId,
    /// The product node.
    pub product: NodeId,
    /// Which of its inputs is X.
    pub slot: usize,
    /// The node whose first output is the two-dimensional dW: the product, or the sum over batch
    /// axes behind it.
    pub result: NodeId,
    /// The buffer behind X.
    pub activation: ValueId,
    /// The view of it that the backward half reads, [..., D].
    pub input: ValueId,
    /// dY as [..., O], or as [..., O, N] where `gradient_flipped`.
    pub gradient: ValueId,
    /// Whether `gradient` has its token axis last.
    pub gradient_flipped: bool,
    /// D, the number of input features.
    pub features: i64,
    /// O, the number of output features.
    pub outputs: Dim,
    /// N, the number of tokens.
    pub tokens: Dim,
    /// Whether dW is [O, D] rather than [D, O].
    pub transposed: bool,
    /// What the product is multiplied by (`alpha`).
    pub scale: f32,
    /// Whether dW is the product and nothing else, so that it can be computed from z; otherwise the
    /// product needs the reconstructed X̂.
    pub plain: bool,
}

/// A product that contributes to a parameter's gradient and reads a forward value in a way that
/// cannot be rewritten.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unfit {
    /// The parameter.
    pub parameter: ValueId,
    /// The product node.
    pub product: NodeId,
    /// The buffer of the forward value.
    pub activation: ValueId,
    /// Why not, as a clause.
    pub why: &'static str,
}

/// The contractions of a graph.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Sites {
    /// All sites, in the order of their products.
    pub sites: Vec<Site>,
    /// Contractions that are no sites, in the order of their products.
    pub unfit: Vec<Unfit>,
}

impl Sites {
    /// The site whose product a node is.
    pub fn at(&self, product: NodeId) -> Option<&Site> {
        let place = self.sites.binary_search_by_key(&product, |s| s.product);
        self.sites.get(place.ok()?)
    }

    /// The sites of one activation.
    pub fn of(&self, activation: ValueId) -> impl Iterator<Item = &Site> {
        self.sites
            .iter()
            .filter(move |s| s.activation == activation)
    }
}

/// What the walks look up.
struct Walk<'a> {
    graph: &'a Graph,
    shapes: &'a Shapes,
    partition: &'a Partition,
    buffers: &'a Buffers,
}

/// Finds all contractions of a graph.
pub fn sites(
    graph: &Graph,
    roles: &Roles,
    partition: &Partition,
    shapes: &Shapes,
    buffers: &Buffers,
) -> Sites {
    let walk = Walk {
        graph,
        shapes,
        partition,
        buffers,
    };
    let mut by_product: BTreeMap<NodeId, (ValueId, Result<Site, Unfit>)> = BTreeMap::new();
    for &(parameter, output) in &roles.gradients {
        for (product, result) in walk.products(parameter, output) {
            let Some(found) = walk.contraction(parameter, product, result) else {
                continue;
            };
            // The state of an optimiser depends on the gradient as the parameter does; the parameter
            // is the one that the forward half reads.
            let better = (by_product.get(&product))
                .is_none_or(|&(known, _)| !walk.in_forward(known) && walk.in_forward(parameter));
            if better {
                by_product.insert(product, (parameter, found));
            }
        }
    }
    let mut found = Sites::default();
    for (_, site) in by_product.into_values() {
        match site {
            Ok(site) => found.sites.push(site),
            Err(unfit) => found.unfit.push(unfit),
        }
    }
    found
}

/// The sites that a backward read of an activation leads to: one where the reader is the product
/// itself, several behind a transposition; `None` where anything but sites depends on the read.
pub fn sites_behind<'s>(
    graph: &Graph,
    partition: &Partition,
    sites: &'s Sites,
    reader: &Reader,
) -> Option<Vec<&'s Site>> {
    let site = |node, slot| sites.at(node).filter(|s| Some(s.slot) == slot);
    if let Some(site) = site(reader.node, reader.slot) {
        return Some(vec![site]);
    }
    let node = graph.node(reader.node);
    if reader.slot != Some(0) || !swaps_last_two(node) {
        return None;
    }
    let mut behind = Vec::new();
    let mut pending: Vec<ValueId> = node.outputs.iter().flatten().copied().collect();
    while let Some(value) = pending.pop() {
        if graph.value(value).is_output {
            return None;
        }
        for user in &graph.value(value).users {
            let next = graph.node(user.node);
            if partition.half(user.node) == Half::Dead {
                continue;
            }
            if user.slot == Some(0) && (is_view(next) || swaps_last_two(next)) {
                pending.extend(next.outputs.iter().flatten());
                continue;
            }
            behind.push(site(user.node, user.slot)?);
        }
    }
    (!behind.is_empty()).then_some(behind)
}

impl Walk<'_> {
    fn in_forward(&self, parameter: ValueId) -> bool {
        let users = &self.graph.value(parameter).users;
        users
            .iter()
            .any(|u| self.partition.half(u.node) == Half::Forward)
    }

    /// Matrix products that reach a gradient through operators that keep its shape, each with the
    /// node that makes the two-dimensional result.
    fn products(&self, parameter: ValueId, output: ValueId) -> Vec<(NodeId, NodeId)> {
        let Some(&[rows, columns]) = self.constants(parameter).as_deref() else {
            return Vec::new();
        };
        let of_shape = |value: ValueId| match self.constants(value).as_deref() {
            Some(&[a, b]) => (a, b) == (rows, columns) || (a, b) == (columns, rows),
            _ => false,
        };
        let mut found = Vec::new();
        let mut seen = HashSet::from([output]);
        let mut pending = vec![output];
        while let Some(value) = pending.pop() {
            let Some(id) = self.graph.producer(value) else {
                continue;
            };
            let node = self.graph.node(id);
            if self.partition.half(id) != Half::Backward {
                continue;
            }
            if product(node).is_some() {
                found.push((id, id));
                continue;
            }
            if let Some(batched) = self.batched_product(node) {
                found.push((batched, id));
                continue;
            }
            let inputs = node.inputs.iter().enumerate();
            for (slot, input) in inputs.filter_map(|(s, i)| Some((s, (*i)?))) {
                let follows = match (node.domain(), node.op()) {
                    ("com.microsoft", "InPlaceAccumulatorV2") => slot == 1,
                    ("", "Reshape" | "Squeeze" | "Unsqueeze" | "Flatten" | "Transpose") => {
                        slot == 0
                    }
                    _ => keeps_shape(node),
                };
                if follows && of_shape(input) && seen.insert(input) {
                    pending.push(input);
                }
            }
        }
        found
    }

    /// The batched product that a `ReduceSum` over all batch axes sums up.
    fn batched_product(&self, node: &Node) -> Option<NodeId> {
        if node.op() != "ReduceSum" || !node.domain().is_empty() || node.int("keepdims", 1) != 0 {
            return None;
        }
        let input = node.inputs.first().copied().flatten()?;
        let rank = self.shapes.of(input).shape.as_ref()?.len();
        let mut axes: Vec<i64> = match node.inputs.get(1).copied().flatten() {
            Some(axes) => self.graph.constant_ints(axes)?,
            None => node.ints("axes")?.to_vec(),
        };
        axes.iter_mut()
            .filter(|a| **a < 0)
            .for_each(|a| *a += rank as i64);
        axes.sort();
        let batch = rank.checked_sub(2).filter(|&b| b > 0)?;
        let all = axes.len() == batch && axes.iter().enumerate().all(|(i, a)| *a == i as i64);
        let producer = self.graph.producer(input)?;
        let only = self.graph.value(input).users.len() == 1 && !self.graph.value(input).is_output;
        (all && only && product(self.graph.node(producer)).is_some()).then_some(producer)
    }

    /// The contraction that a product is, if it reads a forward value; `None` if it reads none.
    fn contraction(
        &self,
        parameter: ValueId,
        id: NodeId,
        result: NodeId,
    ) -> Option<Result<Site, Unfit>> {
        let node = self.graph.node(id);
        let kind = product(node)?;
        let operands = [
            node.inputs.first().copied().flatten()?,
            node.inputs.get(1).copied().flatten()?,
        ];
        let backward = |value: ValueId| {
            let producer = self.graph.producer(value);
            producer.is_some_and(|n| self.partition.half(n) == Half::Backward)
        };
        let forward = [0, 1].map(|slot| self.forward_value(operands[slot]));
        // A gradient of a weight has exactly one operand that the forward half made.
        let (slot, (input, straight)) = match forward {
            [Some(x), None] if backward(operands[1]) => (0, x),
            [None, Some(x)] if backward(operands[0]) => (1, x),
            _ => return None,
        };
        let activation = self.buffers.root(input);
        let unfit = |why| {
            Some(Err(Unfit {
                parameter,
                product: id,
                activation,
                why,
            }))
        };
        let Some(straight) = straight else {
            return unfit("its layout changes on the way to the product");
        };
        // After its own flag, operand 0 is [.., D, N] and operand 1 [.., N, D].
        let features_last = (slot == 1) != kind.transposes[slot];
        if features_last != straight {
            return unfit("the product does not sum over its leading axes");
        }
        let (Some(x), Some(dy)) = (self.dims(input), self.dims(operands[1 - slot])) else {
            return unfit("its shape is unknown");
        };
        let (Some(features), Some(tokens)) = (x.last().and_then(Dim::as_const), product_of(x))
        else {
            return unfit("its number of features is unknown");
        };
        let Some(tokens) = (features > 0)
            .then(|| tokens.exact_div(&Dim::from(features)))
            .flatten()
        else {
            return unfit("its number of features is unknown");
        };
        let Some(operand) = self.dims(operands[slot]) else {
            return unfit("its shape is unknown");
        };
        let batched = result != id;
        let matrices = [operand, dy].map(<[Dim]>::len) == [2, 2];
        if operand.len() < 2 || dy.len() < 2 || (!batched && !matrices) {
            return None;
        }
        let outputs_last = (slot == 0) != kind.transposes[1 - slot];
        let outputs = dy[if outputs_last {
            dy.len() - 1
        } else {
            dy.len() - 2
        }]
        .clone();
        // [1, B, ..] by [B, 1, ..] has as many tokens on both sides, but pairs each with all.
        let broadcast = batch_axes(operand) != batch_axes(dy);
        if batched && (broadcast || product_of(dy) != Some(&tokens * &outputs)) {
            return unfit("one operand of its product is broadcast over the batch");
        }
        let (gradient, gradient_flipped) =
            match (outputs_last, self.graph.producer(operands[1 - slot])) {
                (true, _) => (operands[1 - slot], false),
                (false, Some(producer)) if swaps_last_two(self.graph.node(producer)) => {
                    let source = self.graph.node(producer).inputs.first().copied().flatten();
                    match source {
                        Some(source) => (source, false),
                        None => return None,
                    }
                }
                (false, _) => (operands[1 - slot], true),
            };
        Some(Ok(Site {
            parameter,
            product: id,
            slot,
            result,
            activation,
            input,
            gradient,
            gradient_flipped,
            features,
            outputs,
            tokens,
            transposed: slot == 1,
            scale: kind.scale,
            plain: kind.plain,
        }))
    }

    /// The first value of the forward half (or input or initialiser) that an operand comes from
    /// through backward views and transpositions, and whether its last axis is still the operand's
    /// last (`Some(true)`) or now the one before (`Some(false)`); `None` inside where a view cuts
    /// across the features.
    fn forward_value(&self, operand: ValueId) -> Option<(ValueId, Option<bool>)> {
        let (mut here, mut last) = (operand, Some(true));
        // Whether a view nearer to the product has cut the axes anew.
        let mut merged = false;
        // Each step goes to a producer, so the walk ends with the acyclic graph.
        loop {
            let producer = self.graph.producer(here);
            let Some(id) = producer.filter(|&n| self.partition.half(n) == Half::Backward) else {
                return Some((here, last));
            };
            let node = self.graph.node(id);
            let source = node.inputs.first().copied().flatten();
            if swaps_last_two(node) {
                // Flattening a transposed [B, S, D] mixes features with tokens; transposing what was
                // flattened does not.
                last = last.filter(|_| !merged).map(|l| !l);
            } else if is_view(node) {
                let [below, above] = [Some(here), source].map(|v| self.dims(v?));
                let end = |dims: Option<&[Dim]>| dims?.last().cloned();
                if end(below).is_none() || end(below) != end(above) {
                    last = None;
                }
                let one = Dim::from(1);
                let long = |dims: Option<&[Dim]>| {
                    let long = dims.into_iter().flatten().filter(|&d| *d != one);
                    long.cloned().collect::<Vec<_>>()
                };
                merged |= long(below) != long(above);
            } else {
                return None;
            }
            here = source?;
        }
    }

    fn dims(&self, value: ValueId) -> Option<&[Dim]> {
        self.shapes.of(value).shape.as_deref()
    }

    fn constants(&self, value: ValueId) -> Option<Vec<i64>> {
        self.dims(value)?.iter().map(Dim::as_const).collect()
    }
}

fn product_of(dims: &[Dim]) -> Option<Dim> {
    let product = dims.iter().fold(Dim::from(1), |p, d| p * d);
    (!product.is_undefined()).then_some(product)
}

/// The axes before the matrices, without leading ones, which broadcasting adds in any case.
fn batch_axes(dims: &[Dim]) -> &[Dim] {
    let one = Dim::from(1);
    let batch = &dims[..dims.len().saturating_sub(2)];
    let ones = batch.iter().take_while(|&d| *d == one).count();
    &batch[ones..]
}

/// What a matrix product does to its operands.
struct Product {
    transposes: [bool; 2],
    scale: f32,
    /// Whether nothing is added.
    plain: bool,
}

fn product(node: &Node) -> Option<Product> {
    let flags = || [node.int("transA", 0) != 0, node.int("transB", 0) != 0];
    match (node.domain(), node.op()) {
        ("", "MatMul") => Some(Product {
            transposes: [false; 2],
            scale: 1.0,
            plain: true,
        }),
        ("", "Gemm") => Some(Product {
            transposes: flags(),
            scale: node.float("alpha", 1.0),
            plain: node.inputs.get(2).copied().flatten().is_none(),
        }),
        ("com.microsoft", "FusedMatMul")
            if node.int("transBatchA", 0) == 0 && node.int("transBatchB", 0) == 0 =>
        {
            Some(Product {
                transposes: flags(),
                scale: node.float("alpha", 1.0),
                plain: true,
            })
        }
        _ => None,
    }
}

/// A `Transpose` that exchanges the last two axes and keeps the others.
pub fn swaps_last_two(node: &Node) -> bool {
    if !node.domain().is_empty() || node.op() != "Transpose" {
        return false;
    }
    let Some(perm) = node.ints("perm") else {
        return false;
    };
    let [batch @ .., a, b] = perm else {
        return false;
    };
    let rank = perm.len() as i64;
    let straight = batch.iter().enumerate().all(|(axis, p)| *p == axis as i64);
    straight && (*a, *b) == (rank - 1, rank - 2)
}

/// Operators whose output has an input's shape, element by element: what may stand between a
/// contraction and the gradient or the updated parameter.
fn keeps_shape(node: &Node) -> bool {
    node.domain().is_empty()
        && matches!(
            node.op(),
            "Identity"
                | "Cast"
                | "CastLike"
                | "Add"
                | "Sub"
                | "Sum"
                | "Mul"
                | "Div"
                | "Neg"
                | "Clip"
                | "Pow"
                | "Sqrt"
                | "Reciprocal"
                | "Where"
                | "Max"
                | "Min"
                | "Mean"
                | "Abs"
                | "Sign"
        )
}
