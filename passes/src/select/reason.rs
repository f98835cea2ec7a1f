//! Stable codes of decisions.

/// Why a site is or is not rewritten. The codes are part of the report's contract.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Reason {
    /// It is rewritten.
    Rewritten,
    /// A reader that is not rewritten keeps the tensor.
    KeptAlive,
    /// The user's selection leaves it out.
    NotSelected,
    /// The tensor is an input of the graph.
    GraphInput,
    /// The tensor is an output of the graph.
    GraphOutput,
    /// The tensor is a constant.
    Constant,
    /// The compressed form would not be smaller.
    NoSaving,
    /// The tensor has fewer bytes than asked for.
    TooSmall,
    /// The tensor's element type cannot be compressed.
    DataType,
    /// Layers read the tensor with different numbers of features.
    MixedFeatures,
    /// The tensor's layout or shape cannot be compressed.
    Layout,
    /// The kind of layer does not take the settings.
    Settings,
    /// A function of the model, or a nested graph, computes the gradient.
    Hidden,
    /// The gradient needs no activation.
    NothingSaved,
}

impl Reason {
    /// All of them.
    pub const ALL: [Reason; 14] = [
        Reason::Rewritten,
        Reason::KeptAlive,
        Reason::NotSelected,
        Reason::GraphInput,
        Reason::GraphOutput,
        Reason::Constant,
        Reason::NoSaving,
        Reason::TooSmall,
        Reason::DataType,
        Reason::MixedFeatures,
        Reason::Layout,
        Reason::Settings,
        Reason::Hidden,
        Reason::NothingSaved,
    ];

    /// The code in reports.
    pub fn code(self) -> &'static str {
        match self {
            Reason::Rewritten => "rewritten",
            Reason::KeptAlive => "kept-alive",
            Reason::NotSelected => "not-selected",
            Reason::GraphInput => "graph-input",
            Reason::GraphOutput => "graph-output",
            Reason::Constant => "constant",
            Reason::NoSaving => "no-saving",
            Reason::TooSmall => "too-small",
            Reason::DataType => "data-type",
            Reason::MixedFeatures => "mixed-features",
            Reason::Layout => "layout",
            Reason::Settings => "settings",
            Reason::Hidden => "hidden",
            Reason::NothingSaved => "nothing-saved",
        }
    }

    /// Whether the site was wanted, and at most other readers of its tensor stand against rewriting it.
    pub fn is_wanted(self) -> bool {
        matches!(self, Reason::Rewritten | Reason::KeptAlive)
    }

    /// Whether nothing but other readers or the user's selection stands against rewriting the site.
    pub fn may_be_rewritten(self) -> bool {
        matches!(
            self,
            Reason::Rewritten
                | Reason::KeptAlive
                | Reason::NotSelected
                | Reason::TooSmall
                | Reason::Settings
        )
    }
}
