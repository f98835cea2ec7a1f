//! The models by name.

use super::{EncoderSizes, LlamaSizes, Training, VitSizes, llama_of_tokens, roberta, vit};
use crate::tape::{Element, Generated};

/// The names that [`published`] knows.
pub const PUBLISHED: [&str; 6] = [
    "llama-60m",
    "llama-130m",
    "llama-7b",
    "llama-13b",
    "roberta-base",
    "vit-b-16",
];

/// How a graph of a published model is made.
#[derive(Clone, Debug, Default)]
pub struct Recipe {
    /// Tokens of a sample [default: 1024 of LLaMA-7B and 13B, 256 of the small ones, 512 of RoBERTa]; an image
    /// has as many as it has.
    pub sequence: Option<i64>,
    /// Blocks, in place of the model's own number.
    pub blocks: Option<usize>,
    /// What is trained.
    pub training: Training,
    /// The type of numbers.
    pub element: Element,
}

/// The training graph of a model of [`PUBLISHED`], or none.
pub fn published(name: &str, recipe: &Recipe) -> Option<Generated> {
    let Recipe {
        sequence,
        blocks,
        training,
        element,
    } = recipe;
    let llama = |sizes: LlamaSizes, own: usize, tokens: i64| {
        let (blocks, sequence) = (blocks.unwrap_or(own), sequence.unwrap_or(tokens));
        llama_of_tokens(blocks, &sizes, sequence, training, *element)
    };
    let blocks_or = |own| blocks.unwrap_or(own);
    Some(match name {
        "llama-60m" => llama(LlamaSizes::SIXTY_M, 8, 256),
        "llama-130m" => llama(LlamaSizes::HUNDRED_THIRTY_M, 12, 256),
        "llama-7b" => llama(LlamaSizes::SEVEN_B, 32, 1024),
        "llama-13b" => llama(LlamaSizes::THIRTEEN_B, 40, 1024),
        "roberta-base" => {
            let sizes = EncoderSizes::ROBERTA_BASE;
            let tokens = sequence.unwrap_or(512);
            roberta(blocks_or(12), &sizes, tokens, training, *element)
        }
        "vit-b-16" => vit(blocks_or(12), &VitSizes::BASE_16, training, *element),
        _ => return None,
    })
}
