//! The operators of the `ai.velora` domain, version 1, as functions of standard operators.
//!
//! | op | inputs → output | attributes |
//! |---|---|---|
//! | `Compress` | X [..., D], v `[M]` → z [..., G] | groups |
//! | `MeanDirection` | X [..., D] → v `[M]` | groups |
//! | `Reconstruct` | z [..., G], v `[M]` → X̂ [..., D] | groups, features |
//! | `FactoredWeightGrad` | z [N, G], dY [N, O], v `[M]` → dW [D, O] | groups, features, transposed, scale |
//!
//! The bodies are written once, in the ONNX textual syntax beside this file; a model carries them as
//! local functions, so that any runtime executes the operators, and `--inline` writes their nodes in
//! the place of the calls. Two things are decided when a body is chosen rather than in it: whether
//! the last sub-token is padded (G does not divide D), since padding copies the tensor, and whether
//! dW is transposed. Where the calls of one model differ in that, its function branches with `If`.

mod expand;
mod function;

pub use expand::expand;
pub use function::function;

/// The operators' domain.
pub const DOMAIN: &str = "ai.velora";
/// The version of the domain.
pub const VERSION: i64 = 1;
/// The oldest standard operator set in which the bodies mean what they should: the first where the
/// axes of `ReduceSum` and `Unsqueeze` are inputs.
pub const OLDEST_OPSET: i64 = 13;

/// An operator of the domain.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Op {
    /// z from X and v.
    Compress,
    /// v from X.
    MeanDirection,
    /// X̂ from z and v.
    Reconstruct,
    /// dW from z, dY and v.
    FactoredWeightGrad,
}

/// What is decided about a call before a body is chosen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Variant {
    /// G does not divide D.
    pub padded: bool,
    /// dW is [O, D]; of `FactoredWeightGrad` only.
    pub transposed: bool,
}

impl Op {
    /// The operator's name.
    pub fn name(self) -> &'static str {
        match self {
            Op::Compress => "Compress",
            Op::MeanDirection => "MeanDirection",
            Op::Reconstruct => "Reconstruct",
            Op::FactoredWeightGrad => "FactoredWeightGrad",
        }
    }

    /// The names of its attributes.
    pub fn attributes(self) -> &'static [&'static str] {
        match self {
            Op::Compress | Op::MeanDirection => &["groups"],
            Op::Reconstruct => &["groups", "features"],
            Op::FactoredWeightGrad => &["groups", "features", "transposed", "scale"],
        }
    }

    /// The text of a body.
    fn body(self, variant: Variant) -> &'static str {
        let Variant { padded, transposed } = variant;
        match (self, padded, transposed) {
            (Op::MeanDirection, ..) => include_str!("mean_direction.txt"),
            (Op::Compress, false, _) => include_str!("compress.txt"),
            (Op::Compress, true, _) => include_str!("compress_padded.txt"),
            (Op::Reconstruct, false, _) => include_str!("reconstruct.txt"),
            (Op::Reconstruct, true, _) => include_str!("reconstruct_padded.txt"),
            (Op::FactoredWeightGrad, false, false) => include_str!("weight_grad.txt"),
            (Op::FactoredWeightGrad, true, false) => include_str!("weight_grad_padded.txt"),
            (Op::FactoredWeightGrad, false, true) => include_str!("weight_grad_t.txt"),
            (Op::FactoredWeightGrad, true, true) => include_str!("weight_grad_t_padded.txt"),
        }
    }

    /// The variant, with what this operator's body does not depend on left out.
    fn relevant(self, variant: Variant) -> Variant {
        Variant {
            padded: variant.padded && self != Op::MeanDirection,
            transposed: variant.transposed && self == Op::FactoredWeightGrad,
        }
    }
}
