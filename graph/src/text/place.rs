//! Where something stands in the text of a model.

/// A part of a model that has a text of its own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Part {
    /// The model itself: everything in front of the graph.
    #[default]
    Model,
    /// The main graph.
    Graph,
    /// A function, by its position in the model.
    Function(usize),
}

/// One step into a graph that an attribute holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Nested {
    /// The position of the node with the attribute; `None` where the attribute is the default of a
    /// function's attribute.
    pub node: Option<usize>,
    /// The position of the attribute.
    pub attribute: usize,
    /// The position of the graph among those of the attribute.
    pub graph: usize,
}

/// A line of a model's text: a node, or the head of the model, a graph or a function.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Place {
    /// The part of the model.
    pub part: Part,
    /// The way from the part's own graph to a nested one.
    pub nested: Vec<Nested>,
    /// The position of the node in that graph, or `None` for the head.
    pub node: Option<usize>,
}
