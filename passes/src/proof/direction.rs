//! Where the directions of a rewritten graph come from.

use velora_graph::ir::{Graph, Origin, ValueId};

/// What a direction is in the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DirectionState {
    /// The graph computes it from each batch.
    Computed,
    /// The graph moves it from step to step.
    State,
    /// A constant.
    Constant,
    /// A constant that says of itself that a batch has yet to fill it.
    Unfilled,
}

impl DirectionState {
    /// The word in certificates.
    pub fn name(self) -> &'static str {
        match self {
            DirectionState::Computed => "computed",
            DirectionState::State => "state",
            DirectionState::Constant => "constant",
            DirectionState::Unfilled => "unfilled",
        }
    }
}

/// What the direction that an activation is compressed with is; casts to the activation's type are looked
/// through.
pub fn direction_state(graph: &Graph, direction: ValueId) -> DirectionState {
    let mut value = graph.unpinned(direction);
    // No chain of casts is longer than the graph.
    for _ in 0..=graph.node_count() {
        value = match graph.value(value).origin {
            Origin::Node(id, _) => {
                let node = graph.node(id);
                let read = node.inputs.first().copied().flatten();
                match (node.velora_op(), read) {
                    (Some("RunningDirection"), _) => return DirectionState::State,
                    (_, Some(read)) if node.domain().is_empty() && node.op() == "Cast" => {
                        graph.unpinned(read)
                    }
                    _ => return DirectionState::Computed,
                }
            }
            Origin::Input(_) => return DirectionState::State,
            Origin::Initializer(number) => {
                let constant = graph.initializers().get(number);
                let mut marks = constant.iter().flat_map(|tensor| &tensor.metadata_props);
                let open = marks.any(|e| (e.key(), e.value()) == ("velora.calibrated", "no"));
                return match open {
                    true => DirectionState::Unfilled,
                    false => DirectionState::Constant,
                };
            }
            _ => return DirectionState::Constant,
        };
    }
    DirectionState::Computed
}
