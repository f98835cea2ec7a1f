//! What inference reports.

use std::fmt;
use thiserror::Error;

/// Two facts about one tensor that cannot both hold.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub struct ShapeError {
    /// The node's label; nodes inside a nested graph or a function are written `outer/inner`. Empty
    /// where the declarations of the graph contradict each other.
    pub node: String,
    /// The node's operator; empty as above.
    pub op: String,
    /// The tensor.
    pub tensor: String,
    /// The one fact.
    pub found: String,
    /// The other fact.
    pub other: String,
    /// What to look at.
    pub hint: &'static str,
}

impl fmt::Display for ShapeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.node.is_empty() {
            write!(f, "node '{}' ({}), ", self.node, self.op)?;
        }
        let ShapeError {
            tensor,
            found,
            other,
            hint,
            ..
        } = self;
        write!(f, "tensor '{tensor}': {found}, but {other}; {hint}")
    }
}

/// Every contradiction in a graph, in the order in which inference met them.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub struct ShapeErrors(pub Vec<ShapeError>);

impl fmt::Display for ShapeErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, error) in self.0.iter().enumerate() {
            write!(f, "{}{error}", if index == 0 { "" } else { "\n" })?;
        }
        Ok(())
    }
}
