//! Which values share one buffer.
//!
//! `Reshape`, `Squeeze`, `Unsqueeze`, `Flatten` and `Identity` hand on their first input's bytes in
//! the same order, so their output needs no bytes of its own. A buffer is named by its *root*, the
//! value that is not such a view.

use crate::ir::{Graph, Node, Origin, ValueId};

/// Whether the operator's output shares its first input's bytes.
pub fn is_view(node: &Node) -> bool {
    node.domain().is_empty()
        && matches!(
            node.op(),
            "Reshape" | "Squeeze" | "Unsqueeze" | "Flatten" | "Identity"
        )
}

/// The roots and views of all buffers of a graph.
#[derive(Clone, Debug)]
pub struct Buffers {
    root: Vec<ValueId>,
    views: Vec<Vec<ValueId>>,
}

impl Buffers {
    /// Merges views.
    pub fn new(graph: &Graph) -> Self {
        let mut known: Vec<Option<ValueId>> = vec![None; graph.value_count()];
        let mut path = Vec::new();
        for value in graph.values() {
            let mut here = value;
            let root = loop {
                if let Some(root) = known[here.index()] {
                    break root;
                }
                path.push(here);
                match viewed(graph, here) {
                    Some(source) => here = source,
                    None => break here,
                }
            };
            for value in path.drain(..) {
                known[value.index()] = Some(root);
            }
        }
        let root: Vec<ValueId> = (graph.values().zip(known))
            .map(|(value, root)| root.unwrap_or(value))
            .collect();
        let mut views = vec![Vec::new(); graph.value_count()];
        for value in graph.values() {
            views[root[value.index()].index()].push(value);
        }
        Buffers { root, views }
    }

    /// The value that owns the bytes of a value.
    pub fn root(&self, value: ValueId) -> ValueId {
        self.root[value.index()]
    }

    /// All values that share the bytes of a root, the root among them, by id; empty for a view.
    pub fn members(&self, root: ValueId) -> &[ValueId] {
        &self.views[root.index()]
    }

    /// The roots that a step allocates: made by a node, and no view.
    pub fn roots<'g>(&'g self, graph: &'g Graph) -> impl Iterator<Item = ValueId> + 'g {
        graph.values().filter(|&value| {
            self.root(value) == value && matches!(graph.value(value).origin, Origin::Node(..))
        })
    }
}

/// The value that a value is a view of.
fn viewed(graph: &Graph, value: ValueId) -> Option<ValueId> {
    let Origin::Node(node, 0) = graph.value(value).origin else {
        return None;
    };
    let node = graph.node(node);
    is_view(node).then(|| node.inputs.first().copied().flatten())?
}
