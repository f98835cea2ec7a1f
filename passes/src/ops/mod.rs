//! The operators of the `ai.velora` domain, version 1, as functions of standard operators.
//!
//! | op | inputs → output | attributes |
//! |---|---|---|
//! | `Compress` | X [..., D], v → z [..., G·R] | groups, axis |
//! | `MeanDirection` | X [..., D] → v `[M]` | groups, axis |
//! | `MeanDirections` | X [..., D] → v [G, 1, M] | groups |
//! | `RunningDirection` | v, mean → v of the same shape | decay |
//! | `Quantize` | z [N, G·R] → z as int8, scale [N, 1] | |
//! | `Dequantize` | z as int8, scale [N, 1] → z | |
//! | `Reconstruct` | z [..., G·R], v → X̂ [..., D] | groups, features, axis |
//! | `FactoredWeightGrad` | z [N, G·R], dY [N, O], v → dW [D, O] | groups, features, transposed, scale |
//! | `FactoredScaleGrad` | z [N, G], dY [N, D], v `[M]` → dγ `[D]` | groups, scale |
//!
//! v is `[M]`, one direction for all sub-tokens (R = 1); or [R, M], several for all; or [G, R, M], where
//! each group has its own. `axis` is the axis of the features in X and of the groups in z: -1, the default, or
//! 1, for channels.
//!
//! The bodies are written once, in the ONNX textual syntax beside this file; a model carries them as
//! local functions, so that any runtime executes the operators, and `--inline` writes their nodes in
//! the place of the calls. Four things are decided when a body is chosen rather than in it: whether
//! the last sub-token is padded (G does not divide D), since padding copies the tensor, whether dW is
//! transposed, which axis the features are, and whether v is more than one direction: the bodies then multiply by a sparse matrix
//! [D, G·R] of the directions. Where the calls of one model differ in that, its function branches with `If`.

mod expand;
mod function;

pub use expand::expand;
pub(crate) use function::bodies;
pub use function::{function, is_ours};

/// The operators' domain.
pub const DOMAIN: &str = "ai.velora";
/// The version of the domain.
pub const VERSION: i64 = 1;
/// The oldest standard operator set for other types than 32-bit floats: the first with `CastLike`.
pub const OLDEST_OPSET_OF_ANY_FLOAT: i64 = 15;
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
    /// v of each group from X.
    MeanDirections,
    /// v from its last value and the mean.
    RunningDirection,
    /// z as 8-bit integers.
    Quantize,
    /// z from 8-bit integers.
    Dequantize,
    /// X̂ from z and v.
    Reconstruct,
    /// dW from z, dY and v.
    FactoredWeightGrad,
    /// The gradient of a scale from z, dY and v.
    FactoredScaleGrad,
}

/// What is decided about a call before a body is chosen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Variant {
    /// G does not divide D.
    pub padded: bool,
    /// dW is [O, D]; of `FactoredWeightGrad` only.
    pub transposed: bool,
    /// v is [R, M] or [G, R, M].
    pub several: bool,
    /// The features are axis 1 rather than the last; of what has an attribute `axis` only.
    pub channels: bool,
    /// The numbers may be other than 32-bit floats.
    pub any_float: bool,
}

impl Op {
    /// All of them.
    pub const ALL: [Op; 9] = [
        Op::Compress,
        Op::MeanDirection,
        Op::MeanDirections,
        Op::RunningDirection,
        Op::Quantize,
        Op::Dequantize,
        Op::Reconstruct,
        Op::FactoredWeightGrad,
        Op::FactoredScaleGrad,
    ];

    /// The operator's name.
    pub fn name(self) -> &'static str {
        match self {
            Op::Compress => "Compress",
            Op::MeanDirection => "MeanDirection",
            Op::MeanDirections => "MeanDirections",
            Op::RunningDirection => "RunningDirection",
            Op::Quantize => "Quantize",
            Op::Dequantize => "Dequantize",
            Op::Reconstruct => "Reconstruct",
            Op::FactoredWeightGrad => "FactoredWeightGrad",
            Op::FactoredScaleGrad => "FactoredScaleGrad",
        }
    }

    /// The names of the attributes that every call has.
    pub fn attributes(self) -> &'static [&'static str] {
        match self {
            Op::Compress | Op::MeanDirection | Op::MeanDirections => &["groups"],
            Op::RunningDirection => &["decay"],
            Op::Quantize | Op::Dequantize => &[],
            Op::Reconstruct => &["groups", "features"],
            Op::FactoredWeightGrad => &["groups", "features", "transposed", "scale"],
            Op::FactoredScaleGrad => &["groups", "scale"],
        }
    }

    /// Whether a call may say which axis the features are.
    pub fn has_axis(self) -> bool {
        matches!(self, Op::Compress | Op::MeanDirection | Op::Reconstruct)
    }

    /// The input that has the features, where no attribute says how many there are.
    fn featured_input(self) -> &'static str {
        match self {
            Op::FactoredScaleGrad => "dy",
            _ => "x",
        }
    }

    /// The text of a body.
    fn body(self, variant: Variant) -> String {
        let Variant {
            padded,
            transposed,
            several,
            channels,
            any_float,
        } = variant;
        let text = match (self, padded, transposed) {
            (Op::Compress, ..) if several => include_str!("compress_several.txt"),
            (Op::Reconstruct, ..) if several => include_str!("reconstruct_several.txt"),
            (Op::FactoredWeightGrad, _, false) if several => {
                include_str!("weight_grad_several.txt")
            }
            (Op::FactoredWeightGrad, _, true) if several => {
                include_str!("weight_grad_t_several.txt")
            }
            (Op::MeanDirection, ..) if channels => include_str!("mean_direction_channels.txt"),
            (Op::Compress, false, _) if channels => include_str!("compress_channels.txt"),
            (Op::Compress, true, _) if channels => include_str!("compress_channels_padded.txt"),
            (Op::Reconstruct, false, _) if channels => include_str!("reconstruct_channels.txt"),
            (Op::Reconstruct, true, _) if channels => {
                include_str!("reconstruct_channels_padded.txt")
            }
            (Op::MeanDirection, ..) => include_str!("mean_direction.txt"),
            (Op::MeanDirections, ..) => include_str!("mean_directions.txt"),
            (Op::RunningDirection, ..) => include_str!("running_direction.txt"),
            (Op::Quantize, ..) => include_str!("quantize.txt"),
            (Op::Dequantize, ..) => include_str!("dequantize.txt"),
            (Op::Compress, false, _) => include_str!("compress.txt"),
            (Op::Compress, true, _) => include_str!("compress_padded.txt"),
            (Op::Reconstruct, false, _) => include_str!("reconstruct.txt"),
            (Op::Reconstruct, true, _) => include_str!("reconstruct_padded.txt"),
            (Op::FactoredWeightGrad, false, false) => include_str!("weight_grad.txt"),
            (Op::FactoredWeightGrad, true, false) => include_str!("weight_grad_padded.txt"),
            (Op::FactoredWeightGrad, false, true) => include_str!("weight_grad_t.txt"),
            (Op::FactoredWeightGrad, true, true) => include_str!("weight_grad_t_padded.txt"),
            (Op::FactoredScaleGrad, false, _) => include_str!("scale_grad.txt"),
            (Op::FactoredScaleGrad, true, _) => include_str!("scale_grad_padded.txt"),
        };
        let text = text.replace(MATRIX_HERE, include_str!("matrix.txt"));
        match any_float {
            true => (ANY_FLOAT.iter()).fold(text, |text, (line, lines)| text.replace(line, lines)),
            false => text,
        }
    }

    /// The variant, with what this operator's body does not depend on left out.
    pub(crate) fn relevant(self, variant: Variant) -> Variant {
        let reads_v = matches!(
            self,
            Op::Compress | Op::Reconstruct | Op::FactoredWeightGrad | Op::FactoredScaleGrad
        );
        let several = variant.several && reads_v;
        Variant {
            padded: variant.padded && reads_v && !several,
            transposed: variant.transposed && self == Op::FactoredWeightGrad,
            several,
            channels: variant.channels && self.has_axis(),
            any_float: variant.any_float && (reads_v || self == Op::MeanDirection),
        }
    }
}

/// Where the bodies of several directions have the lines that make the matrix.
const MATRIX_HERE: &str = "   # matrix.txt\n";

/// Lines of bodies, and what they are where the numbers may be other than 32-bit floats: constants are brought
/// to the type of what they are multiplied by, and a mean is computed in 32 bits.
const ANY_FLOAT: [(&str, &str); 3] = [
    (
        "   scale = Constant <value_float: float = @scale> ()\n",
        "   scale_f32 = Constant <value_float: float = @scale> ()\n   scale = CastLike (scale_f32, v)\n",
    ),
    (
        "   tokens = Reshape (x, token_shape)\n",
        "   stored = Reshape (x, token_shape)\n   tokens = Cast <to: int = 1> (stored)\n",
    ),
    (
        "   v = Where (degenerate, even, unit)\n",
        "   v_f32 = Where (degenerate, even, unit)\n   v = CastLike (v_f32, x)\n",
    ),
];
