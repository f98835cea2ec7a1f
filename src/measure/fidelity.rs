//! How near an approximate gradient is to the exact one: the cosine of the angle between the two, and the
//! ratio of their norms, summed up in 64 bits.

use super::{Bench, bytes_of, chunks};
use anyhow::Result;
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};
use velora_graph::analysis::Analyses;
use velora_graph::analysis::partition::Half;
use velora_graph::ir::{Graph, ValueId};
use velora_graph::shapes::Shapes;
use velora_runtime::tensor::Tensor;
use velora_runtime::training::Signature;

/// The distance of a gradient from the exact one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Fidelity {
    /// The cosine of the angle between them; `None` where one of them is 0, or holds what is no number.
    pub cosine: Option<f64>,
    /// The norm of the approximate one by that of the exact one; `None` where that is 0.
    pub norm_ratio: Option<f64>,
}

/// Sums over elements of both gradients.
#[derive(Clone, Copy, Debug, Default)]
pub struct Sums {
    product: f64,
    approximate: f64,
    exact: f64,
}

impl Sums {
    /// Takes tensors into account.
    pub fn add(&mut self, approximate: &[f64], exact: &[f64]) {
        for (a, e) in approximate.iter().zip(exact) {
            self.product += a * e;
            self.approximate += a * a;
            self.exact += e * e;
        }
    }

    /// What they amount to.
    pub fn fidelity(&self) -> Fidelity {
        let norms = self.approximate.sqrt() * self.exact.sqrt();
        let number = |x: f64| Some(x).filter(|x| x.is_finite());
        Fidelity {
            cosine: number(self.product / norms).map(|c| c.clamp(-1.0, 1.0)),
            norm_ratio: number(self.approximate.sqrt() / self.exact.sqrt()),
        }
    }
}

/// Of one tensor.
pub fn of(approximate: &Tensor, exact: &Tensor) -> Fidelity {
    let mut sums = Sums::default();
    if let (Some(approximate), Some(exact)) = (approximate.to_f64(), exact.to_f64()) {
        sums.add(&approximate, &exact);
    }
    sums.fidelity()
}

/// Of all trained parameters together: the angle and the norms of one long vector.
///
/// Where the graph updates its parameters itself, the steps that it takes stand for the gradients.
///
/// # Errors
/// Where a graph cannot be executed.
pub fn whole(
    original: &Bench<'_>,
    analyses: &Analyses,
    shapes: &Shapes,
    others: &[&Bench<'_>],
) -> Result<Vec<Fidelity>> {
    let mut sums = vec![Sums::default(); others.len()];
    let gradients = gradients(&original.model.graph, analyses);
    for chunk in chunks(gradients, |gradient| bytes_of(shapes, gradient.value)) {
        let names = || chunk.iter().map(|gradient| gradient.name.as_str());
        let exact = original.values(names())?;
        for (other, sums) in others.iter().zip(&mut sums) {
            let approximate = other.values(names())?;
            for gradient in &chunk {
                let both = exact
                    .get(&gradient.name)
                    .zip(approximate.get(&gradient.name));
                if let Some((exact, approximate)) = both {
                    let of = |value| gradient.of(original, value);
                    sums.add(&of(approximate), &of(exact));
                }
            }
        }
    }
    Ok(sums.iter().map(Sums::fidelity).collect())
}

/// A graph rewritten in some way, to be compared with its original.
pub struct Variant<'a> {
    /// With the layers that are selected.
    pub selected: Bench<'a>,
    /// With every layer that can be.
    pub all: Bench<'a>,
    /// The values that rewritten contractions make in the latter, by name.
    pub results: BTreeSet<String>,
}

/// What was found of a variant.
#[derive(Clone, Debug, Default)]
pub struct Survey {
    /// By name of what a contraction makes: of every layer that can be rewritten. What else is rewritten
    /// does not matter to it, because X and dY are exact.
    pub layers: BTreeMap<String, Fidelity>,
    /// Of all trained parameters together, where the selected layers are rewritten.
    pub total: Fidelity,
}

/// Compares variants of a graph with it, in their order.
///
/// # Errors
/// Where a graph cannot be executed.
pub fn survey(
    original: &Bench<'_>,
    analyses: &Analyses,
    shapes: &Shapes,
    variants: &[Variant<'_>],
) -> Result<Vec<Survey>> {
    let graph = &original.model.graph;
    let mut surveys = vec![Survey::default(); variants.len()];
    let sites = analyses.sites.sites.iter();
    let results = sites.filter_map(|site| site.result(graph));
    for chunk in chunks(results.collect(), |&value| bytes_of(shapes, value)) {
        let names = || chunk.iter().map(|&value| graph.value(value).name.as_str());
        let exact = original.values(names())?;
        for (variant, survey) in variants.iter().zip(&mut surveys) {
            let rewritten = names().filter(|name| variant.results.contains(*name));
            for (name, approximate) in variant.all.values(rewritten)? {
                if let Some(exact) = exact.get(&name) {
                    survey.layers.insert(name, of(&approximate, exact));
                }
            }
        }
    }
    let selected: Vec<&Bench<'_>> = variants.iter().map(|variant| &variant.selected).collect();
    let totals = whole(original, analyses, shapes, &selected)?;
    for (survey, total) in surveys.iter_mut().zip(totals) {
        survey.total = total;
    }
    Ok(surveys)
}

/// Where the gradient of a parameter is found.
#[derive(Clone, Debug)]
pub struct Whole {
    /// The value that is computed.
    pub value: ValueId,
    /// Its name.
    pub name: String,
    /// The input with the old value, where it is the new value of a parameter.
    before: Option<String>,
}

/// The gradients of all trained parameters, by the values that hold them.
pub fn gradients(graph: &Graph, analyses: &Analyses) -> Vec<Whole> {
    let signature = Signature::new(graph, &analyses.roles);
    let name = |value| graph.value(value).name.clone();
    let trained = signature.trained.iter().map(|parameter| {
        let output = graph.outputs()[parameter.output];
        // An accumulator keeps a sum: what enters it is the gradient.
        let accumulator = graph
            .producer(output)
            .filter(|_| parameter.buffer.is_some());
        let added = accumulator.and_then(|id| graph.node(id).inputs.get(1).copied().flatten());
        let value = graph.unpinned(added.unwrap_or(output));
        Whole {
            value,
            name: name(value),
            before: None,
        }
    });
    // State of the optimiser is updated as parameters are, and no forward node reads it.
    let read = |&&(input, _): &&(usize, usize)| {
        let mut users = graph.value(graph.inputs()[input]).users.iter();
        users.any(|user| analyses.partition.half(user.node) == Half::Forward)
    };
    let updated = signature
        .updated
        .iter()
        .filter(read)
        .map(|&(input, output)| Whole {
            value: graph.outputs()[output],
            name: name(graph.outputs()[output]),
            before: Some(name(graph.inputs()[input])),
        });
    trained.chain(updated).collect()
}

impl Whole {
    /// The gradient, from the value that is computed.
    fn of(&self, bench: &Bench<'_>, value: &Tensor) -> Vec<f64> {
        let mut numbers = value.to_f64().unwrap_or_default();
        let before = self.before.as_ref();
        let before = before.and_then(|name| bench.inputs.tensors.get(name)?.to_f64());
        for (new, old) in numbers.iter_mut().zip(before.unwrap_or_default()) {
            *new -= old;
        }
        numbers
    }
}
