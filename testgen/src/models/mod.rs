//! Published models at their real sizes: training graphs in standard operators, and weights that take no room.

mod encoder;
mod layers;
mod llama;
mod published;
mod weights;

pub use encoder::{EncoderSizes, VitSizes, roberta, vit};
pub use llama::{LlamaSizes, llama, llama_of_tokens};
pub use published::{PUBLISHED, Recipe, published};
pub use weights::{WithWeights, with_weights};

/// Which parameters a graph trains; a projection is known by the last part of its name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Training {
    /// All of them.
    #[default]
    All,
    /// Low-rank adapters (Hu et al. 2021, arXiv 2106.09685) beside some projections, and nothing else.
    Adapters {
        /// Features between A and B.
        rank: i64,
        /// The projections that get them.
        targets: Vec<String>,
    },
    /// Hydra's two branches (Kim et al. 2023, arXiv 2309.06922) beside some projections, and nothing else: an
    /// adapter of the projection's input and one of its output.
    Branches {
        /// Features between A and B, and between C and D.
        rank: i64,
        /// The projections that get them.
        targets: Vec<String>,
    },
    /// A scale and a shift (Lian et al. 2022, arXiv 2210.08823) behind every projection and every norm of an
    /// encoder, and nothing else.
    ScaleShift,
    /// The weights of some projections, and nothing else.
    Only(Vec<String>),
}

impl Training {
    fn targets(&self) -> &[String] {
        match self {
            Training::All | Training::ScaleShift => &[],
            Training::Adapters { targets, .. }
            | Training::Branches { targets, .. }
            | Training::Only(targets) => targets,
        }
    }

    /// Whether a projection is among those that were named.
    fn chooses(&self, name: &str) -> bool {
        let part = name.rsplit('.').next().unwrap_or(name);
        self.targets().iter().any(|target| target == part)
    }
}
