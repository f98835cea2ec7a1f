//! The way from the contractions of a weight to the output that hands out its gradient.
//!
//! Where nothing but linear work lies on it, the work can be done on factors of the gradient: with
//! `dW = v ⊗ P` it is `c·dW = v ⊗ (c·P)`, `dWᵀ = (v ⊗ P)ᵀ`, and a sum of such gradients with one v is
//! `v ⊗ ΣP`. Nothing else may read a value on the way, or the full gradient would be needed after all.

use super::{Form, Kind, Sites, is_float};
use crate::analysis::buffers::is_view;
use crate::dim::Dim;
use crate::ir::{Graph, Node, NodeId, Origin, ValueId};
use crate::shapes::Shapes;
use std::collections::{BTreeMap, BTreeSet};

/// The way of one gradient, of a two-dimensional weight.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    /// The weight.
    pub parameter: ValueId,
    /// The output of the graph.
    pub output: ValueId,
    /// The products of the contractions that make it.
    pub products: Vec<NodeId>,
    /// What the contractions make.
    pub results: Vec<ValueId>,
    /// The nodes from there to the output, each behind those that it reads.
    pub nodes: Vec<NodeId>,
    /// The buffer in which ONNX Runtime's accumulator keeps the sum of several steps.
    pub buffer: Option<ValueId>,
    /// Whether the gradient is [O, D] rather than [D, O].
    pub features_last: bool,
}

/// Follows a gradient from its output to its contractions.
///
/// # Errors
/// Why the gradient is not made of contractions alone, as a clause.
pub fn route(
    graph: &Graph,
    shapes: &Shapes,
    sites: &Sites,
    (parameter, output): (ValueId, ValueId),
) -> Result<Route, String> {
    let mut search = Search {
        graph,
        shapes,
        results: (sites.sites.iter())
            .filter(|site| site.kind == Kind::Linear)
            .filter_map(|site| match &site.form {
                Form::Weight(weight) => Some((weight.result, (site.product, weight.transposed))),
                _ => None,
            })
            .collect(),
        route: Route {
            parameter,
            output,
            products: Vec::new(),
            results: Vec::new(),
            nodes: Vec::new(),
            buffer: None,
            features_last: false,
        },
        done: BTreeMap::new(),
        above: 0,
    };
    search.route.features_last = search.visit(output)?;
    search.readers()?;
    Ok(search.route)
}

struct Search<'a> {
    graph: &'a Graph,
    shapes: &'a Shapes,
    /// By the node that makes dW: the product, and whether dW is [O, D].
    results: BTreeMap<NodeId, (NodeId, bool)>,
    route: Route,
    /// By value on the way: whether it has the features last.
    done: BTreeMap<ValueId, bool>,
    /// How many nodes lie between the output and the one looked at.
    above: usize,
}

impl Search<'_> {
    fn name(&self, value: ValueId) -> &str {
        &self.graph.value(value).name
    }

    /// Goes up from a value of the gradient's; gives whether it has the features last.
    ///
    /// The depth of the recursion is that of what lies between a contraction and an output; where it is
    /// more than anything that exporters write, the gradient is not followed.
    fn visit(&mut self, value: ValueId) -> Result<bool, String> {
        const MOST: usize = 64;
        if let Some(&known) = self.done.get(&value) {
            return Ok(known);
        }
        let Some(id) = self.graph.producer(value) else {
            return Err(format!(
                "'{}', which no node makes, is a part of it",
                self.name(value)
            ));
        };
        if let Some(&(product, transposed)) = self.results.get(&id) {
            self.route.products.push(product);
            self.route.results.push(value);
            self.done.insert(value, transposed);
            return Ok(transposed);
        }
        // A node is listed behind what it reads: those above are on no list yet.
        self.above += 1;
        if self.above + self.route.nodes.len() + self.route.results.len() > MOST {
            return Err(format!("more than {MOST} nodes make it"));
        }
        let node = self.graph.node(id);
        let read = |slot: usize| node.inputs.get(slot).copied().flatten();
        let label = || format!("'{}' ({})", node.label(self.graph), node.op());
        let opaque = || Err(format!("{} makes it of more than contractions", label()));
        let first = read(0);
        if node.outputs.iter().flatten().count() != 1 {
            return opaque();
        }
        let features_last = match (node.domain(), node.op()) {
            ("", "Identity") => self.only(first)?,
            ("", "Cast") if self.keeps_float(node) => self.only(first)?,
            ("", "Neg") => self.only(first)?,
            ("", "Transpose") => {
                let swaps = node.ints("perm").is_none_or(|perm| perm == [1, 0]);
                if !swaps || self.sizes(value).is_none_or(|sizes| sizes.len() != 2) {
                    return opaque();
                }
                !self.only(first)?
            }
            _ if is_view(node) => {
                let sizes = self.sizes(value);
                if sizes.is_none() || first.and_then(|first| self.sizes(first)) != sizes {
                    return Err(format!("{} gives it another shape", label()));
                }
                self.only(first)?
            }
            ("", "Mul" | "Div") => {
                let (a, b) = (read(0), read(1));
                match (a, b) {
                    (Some(a), Some(b)) if self.is_number(b) => self.only(Some(a))?,
                    (Some(a), Some(b)) if node.op() == "Mul" && self.is_number(a) => {
                        self.only(Some(b))?
                    }
                    _ => return Err(format!("{} multiplies it by more than a number", label())),
                }
            }
            ("", "Add" | "Sum") => {
                let mut orientation = None;
                let sizes = self.sizes(value);
                for operand in node.inputs.clone() {
                    let last = self.only(operand)?;
                    if *orientation.get_or_insert(last) != last {
                        return Err(format!("{} adds gradients of two layouts", label()));
                    }
                    if sizes.is_none() || operand.and_then(|o| self.sizes(o)) != sizes {
                        return Err(format!("{} adds what is not of its shape", label()));
                    }
                }
                match orientation {
                    Some(orientation) => orientation,
                    None => return opaque(),
                }
            }
            ("com.microsoft", "InPlaceAccumulatorV2") => {
                let buffer = read(0).filter(|_| value == self.route.output);
                let Some(buffer) = buffer.filter(|&buffer| self.is_private(buffer)) else {
                    return Err(format!("{} sums it up with other values", label()));
                };
                self.route.buffer = Some(buffer);
                self.only(read(1))?
            }
            _ => return opaque(),
        };
        self.above -= 1;
        if !self.route.nodes.contains(&id) {
            self.route.nodes.push(id);
        }
        self.done.insert(value, features_last);
        Ok(features_last)
    }

    fn only(&mut self, operand: Option<ValueId>) -> Result<bool, String> {
        match operand {
            Some(operand) => self.visit(operand),
            None => Err("a node lacks an operand of it".to_owned()),
        }
    }

    /// Checks that nobody but the way itself reads its values.
    fn readers(&self) -> Result<(), String> {
        let on_way: BTreeSet<NodeId> = self.route.nodes.iter().copied().collect();
        for &value in self.done.keys() {
            let read = self.graph.value(value);
            if value != self.route.output && read.is_output {
                return Err(format!("'{}', an output, is a part of it", read.name));
            }
            for user in &read.users {
                let reader = self.graph.node(user.node);
                let label = || format!("'{}' ({})", reader.label(self.graph), reader.op());
                if !on_way.contains(&user.node) {
                    return Err(format!("{} reads it at full size", label()));
                }
                // Of a weight with one entry, the gradient itself is a number.
                let other = |operand: &ValueId| self.done.contains_key(operand);
                let operands = reader.inputs.iter().flatten();
                if matches!(reader.op(), "Mul" | "Div")
                    && operands.filter(|&o| other(o)).count() > 1
                {
                    return Err(format!("{} multiplies it by itself", label()));
                }
            }
        }
        let outputs = self.graph.outputs().iter();
        if outputs
            .filter(|&&output| output == self.route.output)
            .count()
            > 1
        {
            return Err("it is an output twice".to_owned());
        }
        Ok(())
    }

    /// Whether a value is a floating-point number that stands for a whole tensor.
    fn is_number(&self, value: ValueId) -> bool {
        let one = |sizes: Vec<i64>| sizes.len() <= 2 && sizes.iter().all(|&size| size == 1);
        is_float(self.shapes.of(value).data_type) && self.sizes(value).is_some_and(one)
    }

    fn keeps_float(&self, node: &Node) -> bool {
        let float = |value: &Option<ValueId>| {
            value.is_some_and(|value| is_float(self.shapes.of(value).data_type))
        };
        node.inputs.first().is_some_and(float) && node.outputs.first().is_some_and(float)
    }

    /// Whether a value is an input without a default that one node reads: a buffer of the caller's.
    fn is_private(&self, value: ValueId) -> bool {
        let value = self.graph.value(value);
        let defaults = self.graph.initializers().iter();
        matches!(value.origin, Origin::Input(_))
            && value.users.len() == 1
            && !value.is_output
            && !defaults
                .into_iter()
                .any(|tensor| tensor.name() == value.name)
    }

    fn sizes(&self, value: ValueId) -> Option<Vec<i64>> {
        let shape = self.shapes.of(value).shape.as_ref()?;
        shape.iter().map(Dim::as_const).collect()
    }
}
