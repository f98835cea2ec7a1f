//! Values that are another value with its axes in another order.
//!
//! A chain of `Transpose`s is one permutation of the value at its end. So two values are the same, element by
//! element, where they start from one value and their permutations are equal, however many nodes each goes
//! through.

use std::collections::HashMap;
use velora_graph::ir::{Graph, Node, NodeId, ValueId};

/// No tensor has as many axes; what claims to is not followed, so that composing stays cheap.
const MOST_AXES: usize = 64;

/// What becomes of the axes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Axes {
    /// Each stays where it is.
    Same,
    /// Their order is reversed, however many there are.
    Reversed,
    /// By axis of the result: that of the base. Neither of the other two.
    Listed(Vec<usize>),
}

impl Axes {
    fn listed(axes: Vec<usize>) -> Axes {
        let count = axes.len();
        let is = |wanted: &dyn Fn(usize) -> usize| {
            axes.iter()
                .enumerate()
                .all(|(at, &axis)| axis == wanted(at))
        };
        if is(&|at| at) {
            return Axes::Same;
        }
        match is(&|at| count - 1 - at) {
            true => Axes::Reversed,
            false => Axes::Listed(axes),
        }
    }

    /// One permutation after another; `None` where they are of different numbers of axes.
    fn then(&self, outer: &Axes) -> Option<Axes> {
        Some(match (self, outer) {
            (Axes::Same, other) | (other, Axes::Same) => other.clone(),
            (Axes::Reversed, Axes::Reversed) => Axes::Same,
            (Axes::Listed(inner), Axes::Reversed) => {
                Axes::listed(inner.iter().rev().copied().collect())
            }
            (Axes::Reversed, Axes::Listed(outer)) => {
                let last = outer.len().checked_sub(1)?;
                Axes::listed(outer.iter().map(|&axis| last - axis).collect())
            }
            (Axes::Listed(inner), Axes::Listed(outer)) if inner.len() == outer.len() => {
                Axes::listed(outer.iter().map(|&axis| inner[axis]).collect())
            }
            (Axes::Listed(_), Axes::Listed(_)) => return None,
        })
    }
}

/// Where a value comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Form {
    /// The value that is transposed.
    pub base: ValueId,
    /// What becomes of its axes.
    pub axes: Axes,
}

/// The forms of all values of a graph that nodes of it transpose.
#[derive(Clone, Debug)]
pub struct Forms(HashMap<ValueId, Form>);

impl Forms {
    /// Follows the `Transpose`s of a graph; `source` says what stands for a value, which is what a pin hands on.
    pub fn new(graph: &Graph, source: impl Fn(ValueId) -> ValueId) -> Forms {
        let mut forms = Forms(HashMap::new());
        // What has been indexed has an order. Each node needs the form of what it reads only.
        for id in graph.topological_order().unwrap_or_default() {
            let Some((read, made, axes)) = transposition(graph, id) else {
                continue;
            };
            let read = source(read);
            let below = forms.of(read);
            let form = match below.axes.then(&axes) {
                Some(axes) => Form { axes, ..below },
                None => Form { base: read, axes },
            };
            forms.0.insert(made, form);
        }
        forms
    }

    /// The form of a value: its own base where no `Transpose` makes it.
    pub fn of(&self, value: ValueId) -> Form {
        let own = Form {
            base: value,
            axes: Axes::Same,
        };
        self.0.get(&value).cloned().unwrap_or(own)
    }
}

/// What a node reads and makes, where it is a `Transpose`, and what it does to the axes.
fn transposition(graph: &Graph, id: NodeId) -> Option<(ValueId, ValueId, Axes)> {
    let node = graph.node(id);
    let (&[Some(read)], &[Some(made)]) = (&node.inputs[..], &node.outputs[..]) else {
        return None;
    };
    is_transpose(node).then_some(())?;
    let axes = match &node.proto.attribute[..] {
        [] => Axes::Reversed,
        [_] => Axes::listed(permutation(node.ints("perm")?)?),
        _ => return None,
    };
    Some((read, made, axes))
}

/// Whether a node is a `Transpose` of the standard operators.
pub fn is_transpose(node: &Node) -> bool {
    node.domain().is_empty() && node.op() == "Transpose" && node.captures.is_empty()
}

/// The axes of an attribute, where it lists each once.
fn permutation(perm: &[i64]) -> Option<Vec<usize>> {
    if perm.is_empty() || perm.len() > MOST_AXES {
        return None;
    }
    let mut seen = vec![false; perm.len()];
    let mut axes = Vec::with_capacity(perm.len());
    for &axis in perm {
        let axis = usize::try_from(axis).ok()?;
        if std::mem::replace(seen.get_mut(axis)?, true) {
            return None;
        }
        axes.push(axis);
    }
    Some(axes)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use velora_graph::ir::Model;
    use velora_graph::text::parse_model;

    /// The base and the axes of the value `u` in a graph with such nodes.
    fn form(nodes: &str) -> (String, Axes) {
        let text = format!(
            "<ir_version: 8, opset_import: [\"\" : 18]>
             g (float[2, 3, 4] W) => (u) {{ {nodes} }}"
        );
        let model = Model::from_proto(parse_model(&text).unwrap()).unwrap();
        let graph = &model.graph;
        let u = graph.outputs()[0];
        let Form { base, axes } = Forms::new(graph, |value| value).of(u);
        (graph.value(base).name.clone(), axes)
    }

    #[test]
    fn permutations_are_composed() {
        let of_w = |axes| ("W".to_owned(), axes);
        let one = form("u = Transpose <perm = [1, 2, 0]> (W)");
        assert_eq!(one, of_w(Axes::Listed(vec![1, 2, 0])));
        let two = "t = Transpose <perm = [1, 2, 0]> (W) u = Transpose <perm = [0, 2, 1]> (t)";
        // Axis 1 of u is axis 2 of t, which is axis 0 of W.
        assert_eq!(form(two), of_w(Axes::Listed(vec![1, 0, 2])));
        let back = "t = Transpose <perm = [1, 2, 0]> (W) u = Transpose <perm = [2, 0, 1]> (t)";
        assert_eq!(form(back), of_w(Axes::Same));
        let turned = "t = Transpose <perm = [1, 2, 0]> (W) u = Transpose (t)";
        assert_eq!(form(turned), of_w(Axes::Listed(vec![0, 2, 1])));
        let turned = "t = Transpose (W) u = Transpose <perm = [1, 2, 0]> (t)";
        assert_eq!(form(turned), of_w(Axes::Listed(vec![1, 0, 2])));
        assert_eq!(
            form("t = Transpose (W) u = Transpose (t)"),
            of_w(Axes::Same)
        );
        let listed = "u = Transpose <perm = [2, 1, 0]> (W)";
        assert_eq!(form(listed), form("u = Transpose (W)"));
    }

    /// What is no permutation, or does not fit the one before, is where a chain ends.
    #[test]
    fn chains_end_at_what_is_no_transposition() {
        for node in [
            "t = Relu (W)",
            "t = Transpose <perm = [0, 0, 1]> (W)",
            "t = Transpose <perm = [0, 1, 3]> (W)",
            "t = Transpose <perm = [0, 1, -1]> (W)",
            "t = Transpose <perm = [2, 0, 3, 1]> (W)",
            "t = Transpose <perm = [1, 2, 0], more = 1> (W)",
            "t = com.microsoft.Transpose (W)",
        ] {
            let found = form(&format!("{node} u = Transpose <perm = [1, 2, 0]> (t)"));
            assert_eq!(
                found,
                ("t".to_owned(), Axes::Listed(vec![1, 2, 0])),
                "{node}"
            );
        }
    }
}
