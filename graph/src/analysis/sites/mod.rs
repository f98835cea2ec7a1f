//! Sites: weight-gradient contractions that read a saved activation.
//!
//! Found by structure, from the gradients upwards. From each gradient (or updated parameter) the
//! walk goes through operators that keep a tensor of the parameter's shape (views, transpositions,
//! casts, sums of contributions, accumulation, clipping, the arithmetic of an optimiser) or cut and
//! join such tensors, to nodes where a gradient is made of an activation X and a gradient dY:
//!
//! | kind | the node | module |
//! |---|---|---|
//! | linear | a matrix product that sums over all token axes, or a batched one with the sum behind it | `linear` |
//! | scale | a `Mul`, summed over all token axes | `scale` |
//! | conv | `ConvGrad`, or a `Conv` of the two | `conv` |
//! | recurrent | `LSTMGrad`, `GRUGrad` | `recurrent` |
//!
//! The gradient of an embedding needs no activation, and one that a function of the model or a nested graph
//! computes is out of sight: both are said to be so (`embedding`, `hidden`).

mod conv;
mod embedding;
mod hidden;
mod linear;
mod recurrent;
pub mod route;
mod scale;

use super::buffers::{Buffers, is_view};
use super::partition::{Half, Partition};
use super::roles::Roles;
use super::saved::Reader;
use crate::dim::Dim;
use crate::ir::{Graph, Node, NodeId, ValueId};
use crate::shapes::{DataType, Shapes};
use std::collections::{BTreeMap, HashSet};

/// What kind of layer a weight gradient belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// A matrix product with a two-dimensional weight.
    Linear,
    /// A factor for each feature.
    Scale,
    /// A convolution.
    Conv,
    /// A recurrent layer.
    Recurrent,
    /// A table of vectors.
    Embedding,
}

impl Kind {
    /// The word in reports.
    pub fn word(self) -> &'static str {
        match self {
            Kind::Linear => "linear",
            Kind::Scale => "scale",
            Kind::Conv => "conv",
            Kind::Recurrent => "recurrent",
            Kind::Embedding => "embedding",
        }
    }
}

/// One weight-gradient contraction of one activation.
#[derive(Clone, Debug, PartialEq)]
pub struct Site {
    /// The parameter whose gradient the contraction contributes to.
    pub parameter: ValueId,
    /// The kind of layer.
    pub kind: Kind,
    /// The node that multiplies X by dY, alone or among other things.
    pub product: NodeId,
    /// Which of its inputs is X.
    pub slot: usize,
    /// The buffer behind X.
    pub activation: ValueId,
    /// The view of it that the backward half reads.
    pub input: ValueId,
    /// The axis of `input` with the features: the last, or 1 of a convolution.
    pub axis: usize,
    /// D, the number of input features.
    pub features: i64,
    /// O, the number of output features; 1 of a scale, which has one for each of its own.
    pub outputs: Dim,
    /// N, the number of tokens: the product of the other axes of `input`.
    pub tokens: Dim,
    /// The floating-point operations of the contraction, where the sizes are known.
    pub operations: Option<Dim>,
    /// How the gradient can be computed from a compressed X.
    pub form: Form,
}

/// How a weight gradient can be computed from a compressed X.
#[derive(Clone, Debug, PartialEq)]
pub enum Form {
    /// It is `XᵀdY` and nothing else: from z, dY and v.
    Weight(WeightGrad),
    /// It is the sum over tokens of `X ∘ dY` and nothing else: from z, dY and v.
    Scale(ScaleGrad),
    /// The node does more: it stays, and reads the reconstructed X̂.
    Reconstructed,
}

/// `dW = s · XᵀdY`.
#[derive(Clone, Debug, PartialEq)]
pub struct WeightGrad {
    /// The node whose first output is the two-dimensional dW: the product, or the sum over batch
    /// axes behind it.
    pub result: NodeId,
    /// dY as [..., O], or as [..., O, N] where `gradient_flipped`.
    pub gradient: ValueId,
    /// Whether `gradient` has its token axis last.
    pub gradient_flipped: bool,
    /// Whether dW is [O, D] rather than [D, O].
    pub transposed: bool,
    /// What the product is multiplied by (`alpha`).
    pub scale: f32,
}

/// `dγ[d] = Σₙ X[n, d] · dY[n, d]`.
#[derive(Clone, Debug, PartialEq)]
pub struct ScaleGrad {
    /// The node whose first output is the sum, of D elements.
    pub result: NodeId,
    /// dY, of X's shape.
    pub gradient: ValueId,
}

/// Why a node is no site.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Obstacle {
    /// It reads X in a layout or a shape that cannot be compressed.
    Layout,
    /// What it does with X is written in a function or a nested graph.
    Hidden,
    /// It needs no values of an activation.
    NothingSaved,
}

/// A node that contributes to a parameter's gradient and reads a forward value in a way that
/// cannot be rewritten, or need not be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unfit {
    /// The parameter.
    pub parameter: ValueId,
    /// The kind of layer.
    pub kind: Kind,
    /// The node.
    pub product: NodeId,
    /// The buffer of the forward value.
    pub activation: ValueId,
    /// Why not.
    pub obstacle: Obstacle,
    /// The same as a clause.
    pub why: &'static str,
}

impl Site {
    /// The value that the contraction makes: dW, or the sum that is the gradient of a scale.
    pub fn result(&self, graph: &Graph) -> Option<ValueId> {
        let (node, place) = match (&self.form, self.kind) {
            (Form::Weight(WeightGrad { result, .. }), _)
            | (Form::Scale(ScaleGrad { result, .. }), _) => (*result, 0),
            // `ConvGrad`, `LSTMGrad` and `GRUGrad` make dX first, dW second; a `Conv` makes dW alone.
            (Form::Reconstructed, Kind::Conv | Kind::Recurrent) => {
                let several = graph.node(self.product).outputs.len() > 1;
                (self.product, usize::from(several))
            }
            (Form::Reconstructed, _) => (self.product, 0),
        };
        graph.node(node).outputs.get(place).copied().flatten()
    }

    /// The same contraction, that cannot be rewritten.
    fn unfit(&self, why: &'static str) -> Unfit {
        Unfit {
            parameter: self.parameter,
            kind: self.kind,
            product: self.product,
            activation: self.activation,
            obstacle: Obstacle::Layout,
            why,
        }
    }
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
        for (product, found) in walk.contractions(parameter, output) {
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
/// itself, several behind a transposition or a cast; `None` where anything but sites depends on the read.
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
    if reader.slot != Some(0) || !rearranges(node) {
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
            if user.slot == Some(0) && (is_view(next) || rearranges(next)) {
                pending.extend(next.outputs.iter().flatten());
                continue;
            }
            behind.push(site(user.node, user.slot)?);
        }
    }
    (!behind.is_empty()).then_some(behind)
}

/// What a walk found at a node.
enum Source {
    /// A contraction, and the node by which it is called.
    Found(NodeId, Result<Site, Unfit>),
    /// Where a gradient comes from, in a way that holds no contraction.
    End,
    /// Something else: the walk may go on.
    Other,
}

impl Source {
    fn of(found: Result<Site, Unfit>) -> Source {
        let product = match &found {
            Ok(site) => site.product,
            Err(unfit) => unfit.product,
        };
        Source::Found(product, found)
    }
}

impl Walk<'_> {
    fn in_forward(&self, parameter: ValueId) -> bool {
        let users = &self.graph.value(parameter).users;
        users.iter().any(|u| self.forward(u.node))
    }

    fn forward(&self, node: NodeId) -> bool {
        self.partition.half(node) == Half::Forward
    }

    /// Whether the backward half makes a value.
    fn backward(&self, value: ValueId) -> bool {
        let producer = self.graph.producer(value);
        producer.is_some_and(|n| self.partition.half(n) == Half::Backward)
    }

    /// Contractions that reach a gradient through operators that keep its shape, or cut it from or
    /// join it of such tensors.
    fn contractions(
        &self,
        parameter: ValueId,
        output: ValueId,
    ) -> Vec<(NodeId, Result<Site, Unfit>)> {
        let mut found = Vec::new();
        if self.constants(parameter).is_none() {
            return found;
        }
        let mut seen = HashSet::from([output]);
        let mut pending = vec![output];
        while let Some(value) = pending.pop() {
            let Some(id) = self.graph.producer(value).filter(|_| self.backward(value)) else {
                continue;
            };
            match self.source(parameter, value, id) {
                Source::Found(product, site) => found.push((product, site)),
                Source::End => {}
                Source::Other => {
                    let node = self.graph.node(id);
                    let inputs = node.inputs.iter().enumerate();
                    for (slot, input) in inputs.filter_map(|(s, i)| Some((s, (*i)?))) {
                        if self.follows(node, slot, input, value) && seen.insert(input) {
                            pending.push(input);
                        }
                    }
                }
            }
        }
        found
    }

    fn source(&self, parameter: ValueId, value: ValueId, id: NodeId) -> Source {
        let node = self.graph.node(id);
        match (node.domain(), node.op()) {
            ("", "MatMul" | "Gemm") | ("com.microsoft", "FusedMatMul") => {
                linear::source(self, parameter, id)
            }
            ("", "ReduceSum") => match linear::source(self, parameter, id) {
                Source::Other => scale::source(self, parameter, id),
                found => found,
            },
            ("com.microsoft", "ConvGrad") | ("", "Conv") => {
                conv::source(self, parameter, value, id)
            }
            ("com.microsoft", "LSTMGrad" | "GRUGrad") => {
                recurrent::source(self, parameter, value, id)
            }
            ("", "ScatterND" | "ScatterElements") | ("com.microsoft", "GatherGrad") => {
                embedding::source(self, parameter, id)
            }
            _ => hidden::source(self, parameter, id),
        }
    }

    /// Whether the gradient `value`, an output of the node, is the gradient `input` in another form.
    fn follows(&self, node: &Node, slot: usize, input: ValueId, value: ValueId) -> bool {
        match (node.domain(), node.op()) {
            ("com.microsoft", "InPlaceAccumulatorV2") => slot == 1,
            ("", "Transpose") => slot == 0,
            ("", "Split" | "Slice") | ("com.microsoft", "SplitTraining") => slot == 0,
            ("", "Concat") | ("com.microsoft", "ConcatTraining") => true,
            _ if is_view(node) => slot == 0 && self.same_but_ones(input, value),
            _ => keeps_shape(node) && self.same_but_ones(input, value),
        }
    }

    /// Whether two tensors have the same sizes, all known, apart from axes of one element.
    fn same_but_ones(&self, a: ValueId, b: ValueId) -> bool {
        let long = |value| {
            let sizes = self.constants(value)?;
            Some(sizes.into_iter().filter(|&d| d != 1).collect::<Vec<_>>())
        };
        long(a).is_some_and(|sizes| Some(sizes) == long(b))
    }

    /// What a `ReduceSum` sums up, its rank, and the axes, in order and at least one.
    fn summed_axes(&self, node: &Node) -> Option<(ValueId, usize, Vec<i64>)> {
        if node.op() != "ReduceSum" || !node.domain().is_empty() {
            return None;
        }
        let input = node.inputs.first().copied().flatten()?;
        let rank = self.dims(input)?.len();
        let mut axes: Vec<i64> = match node.inputs.get(1).copied().flatten() {
            Some(axes) => self.graph.constant_ints(axes)?,
            None => node.ints("axes")?.to_vec(),
        };
        axes.iter_mut()
            .filter(|a| **a < 0)
            .for_each(|a| *a += rank as i64);
        axes.sort();
        (!axes.is_empty()).then_some((input, rank, axes))
    }

    /// Whether a value is read once, and is no output.
    fn has_one_reader(&self, value: ValueId) -> bool {
        let value = self.graph.value(value);
        value.users.len() == 1 && !value.is_output
    }

    /// The first value of the forward half (or input or initialiser) that an operand comes from
    /// through views, transpositions and casts of the backward half; `None` where something else
    /// makes it. `each` gets the nodes on the way, with the shapes below and above them.
    fn origin(
        &self,
        operand: ValueId,
        mut each: impl FnMut(&Node, Option<&[Dim]>, Option<&[Dim]>),
    ) -> Option<ValueId> {
        let mut here = operand;
        // Each step goes to a producer, so the walk ends with the acyclic graph.
        while let Some(id) = self.graph.producer(here).filter(|_| self.backward(here)) {
            let node = self.graph.node(id);
            let source = node.inputs.first().copied().flatten()?;
            let float = |value| is_float(self.shapes.of(value).data_type);
            let casts = node.op() == "Cast";
            if !is_view(node) && !rearranges(node) || casts && !(float(source) && float(here)) {
                return None;
            }
            each(node, self.dims(here), self.dims(source));
            here = source;
        }
        Some(here)
    }

    /// D and N of an input with its features on an axis, where both are known.
    fn features_tokens(&self, input: ValueId, axis: usize) -> Option<(i64, Dim)> {
        let dims = self.dims(input)?;
        let features = dims.get(axis)?.as_const().filter(|&d| d > 0)?;
        let tokens = product_of(dims)?.exact_div(&Dim::from(features))?;
        Some((features, tokens))
    }

    fn dims(&self, value: ValueId) -> Option<&[Dim]> {
        self.shapes.of(value).shape.as_deref()
    }

    fn constants(&self, value: ValueId) -> Option<Vec<i64>> {
        self.dims(value)?.iter().map(Dim::as_const).collect()
    }
}

fn is_float(data_type: Option<DataType>) -> bool {
    matches!(
        data_type,
        Some(DataType::FLOAT | DataType::FLOAT16 | DataType::BFLOAT16 | DataType::DOUBLE)
    )
}

fn product_of(dims: &[Dim]) -> Option<Dim> {
    let product = dims.iter().fold(Dim::from(1), |p, d| p * d);
    (!product.is_undefined()).then_some(product)
}

/// Whether a node makes another layout or another type of the same elements.
fn rearranges(node: &Node) -> bool {
    node.domain().is_empty() && matches!(node.op(), "Transpose" | "Cast")
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
