//! The repeated blocks of a model, found by structure.
//!
//! Gradient checkpointing (Chen et al., 2016, arXiv 1604.06174) saves what goes from one block to the next, and
//! computes the rest of a block again. A border between blocks is a tensor that everything goes through on its
//! way from an input to the loss: a *dominator* of the loss. Of those, the borders of the longest run of equal
//! blocks are taken, a block being what lies between so many of them, with the same matrix products each time (the
//! first block of a model is often spared a normalisation that the others have).

use crate::analysis::partition::{Half, Partition};
use crate::analysis::recompute::cost::{Class, class};
use crate::analysis::roles::Roles;
use crate::analysis::saved::shape_arithmetic;
use crate::ir::{Graph, NodeId, Use, ValueId};
use petgraph::algo::dominators::simple_fast;
use petgraph::graph::{DiGraph, NodeIndex};
use std::collections::BTreeMap;

/// The tensors between the blocks of a model, in order: what enters the first, and what each hands on. Fewer than
/// two where no blocks are found.
pub fn borders(graph: &Graph, roles: &Roles, partition: &Partition) -> Vec<ValueId> {
    let shapes = shape_arithmetic(graph);
    let mut best: Vec<Segment> = Vec::new();
    for &input in graph.inputs() {
        let parameter = roles.gradients.iter().any(|&(p, _)| p == input);
        let chain = match parameter {
            true => Vec::new(),
            false => chain(graph, roles, partition, &shapes, input),
        };
        if chain.len() > best.len() {
            best = chain;
        }
    }
    longest_run(&best)
}

/// A tensor that everything goes through, and what lies between the one before and it.
struct Segment {
    border: ValueId,
    /// How often each operator that multiplies matrices occurs.
    products: BTreeMap<String, usize>,
}

/// The dominators of the loss on the way from an input, with a product between any two.
fn chain(
    graph: &Graph,
    roles: &Roles,
    partition: &Partition,
    shapes: &[bool],
    input: ValueId,
) -> Vec<Segment> {
    let Some(last) = graph.producer(roles.loss) else {
        return Vec::new();
    };
    let mut flow: DiGraph<Option<NodeId>, ()> = DiGraph::new();
    let root = flow.add_node(None);
    let mut places: Vec<Option<NodeIndex>> = vec![None; graph.node_count()];
    let mut pending: Vec<(NodeIndex, ValueId)> = vec![(root, input)];
    while let Some((from, value)) = pending.pop() {
        if shapes[value.index()] {
            continue;
        }
        for &Use { node, .. } in &graph.value(value).users {
            if partition.half(node) != Half::Forward {
                continue;
            }
            let known = places[node.index()];
            let place = known.unwrap_or_else(|| flow.add_node(Some(node)));
            flow.update_edge(from, place, ());
            if known.is_none() {
                places[node.index()] = Some(place);
                let made = graph.node(node).outputs.iter().flatten();
                pending.extend(made.map(|&value| (place, value)));
            }
        }
    }
    let Some(end) = places[last.index()] else {
        return Vec::new();
    };
    let dominators = simple_fast(&flow, root);
    let mut spine: Vec<NodeIndex> = dominators.dominators(end).into_iter().flatten().collect();
    spine.reverse();
    let mut number: Vec<Option<usize>> = vec![None; flow.node_count()];
    for (at, place) in spine.iter().enumerate() {
        number[place.index()] = Some(at);
    }
    // By place on the spine: the products that lie behind it, and in front of the next.
    let mut behind: Vec<BTreeMap<String, usize>> = vec![BTreeMap::new(); spine.len()];
    for place in flow.node_indices() {
        let Some(id) = flow[place] else { continue };
        let mut here = Some(place);
        // A node of the spine belongs to what leads to it.
        let at = loop {
            here = here.and_then(|place| dominators.immediate_dominator(place));
            match here {
                None => break None,
                Some(above) if number[above.index()].is_some() => break number[above.index()],
                Some(_) => {}
            }
        };
        let Some(at) = at else { continue };
        let node = graph.node(id);
        if class(node) == Class::Products {
            *behind[at].entry(node.op().to_owned()).or_default() += 1;
        }
    }
    let mut segments = Vec::new();
    let mut products: BTreeMap<String, usize> = BTreeMap::new();
    for (at, &place) in spine.iter().enumerate() {
        if at > 0 {
            for (op, count) in &behind[at - 1] {
                *products.entry(op.clone()).or_default() += count;
            }
        }
        let border = flow[place].and_then(|id| graph.node(id).outputs.first().copied().flatten());
        let Some(border) = border else { continue };
        // The first one is what the input has become in front of all products.
        if products.is_empty() && segments.len() == 1 {
            segments.clear();
        }
        if !products.is_empty() || segments.is_empty() {
            segments.push(Segment {
                border,
                products: std::mem::take(&mut products),
            });
        }
    }
    segments
}

/// The borders of the longest run of equal blocks; of equal runs, that of the smallest blocks.
fn longest_run(chain: &[Segment]) -> Vec<ValueId> {
    let mut best = (0, Vec::new());
    for period in 1..=chain.len() / 2 {
        let equal = |at: usize| chain[at].products == chain[at + period].products;
        let mut at = 1;
        while at + period < chain.len() {
            let start = at;
            while at + period < chain.len() && equal(at) {
                at += 1;
            }
            // So many segments are followed by their equal: whole blocks only.
            let blocks = (at - start) / period + 1;
            if blocks > 1 && blocks * period > best.0 {
                let border = |block: usize| chain[start - 1 + block * period].border;
                best = (blocks * period, (0..=blocks).map(border).collect());
            }
            at = at.max(start + 1);
        }
    }
    best.1
}
