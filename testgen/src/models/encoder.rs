//! The graphs of RoBERTa (Liu et al. 2019, arXiv 1907.11692) and ViT (Dosovitskiy et al. 2021,
//! arXiv 2010.11929) at any size, for classification. No dropout.

use super::Training;
use crate::chain::plain_tail;
use crate::choices::Choices;
use crate::tape::{Element, Generated, Tape, V, batch, fixed};

/// The sizes of an encoder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EncoderSizes {
    /// Features of a token between blocks.
    pub hidden: i64,
    /// Features within the MLP.
    pub intermediate: i64,
    /// Heads of the attention.
    pub heads: i64,
    /// Classes of the last layer.
    pub classes: i64,
    /// Tokens that there are to choose from; none for images.
    pub vocabulary: i64,
}

impl EncoderSizes {
    /// Those of RoBERTa-base with two classes, which has 12 blocks.
    pub const ROBERTA_BASE: EncoderSizes = EncoderSizes {
        hidden: 768,
        intermediate: 3072,
        heads: 12,
        classes: 2,
        vocabulary: 50265,
    };
}

/// The sizes of a ViT.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VitSizes {
    /// Those of its blocks.
    pub encoder: EncoderSizes,
    /// Pixels along an edge of the image.
    pub image: i64,
    /// Pixels along an edge of a patch.
    pub patch: i64,
}

impl VitSizes {
    /// Those of ViT-B/16 for 1000 classes, which has 12 blocks.
    pub const BASE_16: VitSizes = VitSizes {
        encoder: EncoderSizes {
            hidden: 768,
            intermediate: 3072,
            heads: 12,
            classes: 1000,
            vocabulary: 0,
        },
        image: 224,
        patch: 16,
    };
}

/// RoBERTa from `input_ids` (batch, sequence) to `labels` (batch): token, position and type embeddings, blocks
/// with the norm behind each residual sum, and a classifier on the first token. `position_ids` (sequence) and
/// the `mask` (batch, 1, 1, sequence) that is added to the scores are inputs, too.
pub fn roberta(
    blocks: usize,
    sizes: &EncoderSizes,
    sequence: i64,
    training: &Training,
    element: Element,
) -> Generated {
    let mut tape = Tape::new(Choices::default());
    (tape.training, tape.element) = (training.clone(), element);
    // The first two positions are for padding.
    let positions = sequence + 2;
    let tokens = [batch(1), fixed(sequence)];
    let ids = tape.integer_input("input_ids", &tokens, sizes.vocabulary);
    let places = tape.integer_input("position_ids", &[fixed(sequence)], positions);
    let mask = [batch(1), fixed(1), fixed(1), fixed(sequence)];
    let mask = tape.input("mask", &mask);
    let name = |part: &str| format!("embeddings.{part}");
    let hidden = sizes.hidden;
    let words = (sizes.vocabulary, hidden);
    let h = tape.embedding(&name("word_embeddings.weight"), words, &ids);
    let positions = (positions, hidden);
    let places = tape.embedding(&name("position_embeddings.weight"), positions, &places);
    let h = tape.add(&h, &places);
    let kind = tape.weight(&name("token_type_embeddings.weight"), &[fixed(hidden)]);
    let h = tape.add(&h, &kind);
    let mut h = tape.layer_norm(&h, &name("LayerNorm"));
    for index in 0..blocks {
        let name = |part: &str| format!("encoder.layer.{index}.{part}");
        let mixed = tape.attention_of(&h, sizes.heads, Some(&mask), &name("attention"));
        let sum = tape.add(&h, &mixed);
        let even = tape.layer_norm(&sum, &name("attention.LayerNorm"));
        let narrow = tape.mlp_of(&even, sizes.intermediate, &name("mlp"));
        let sum = tape.add(&even, &narrow);
        h = tape.layer_norm(&sum, &name("LayerNorm"));
    }
    let first = tape.first_token(&h);
    let dense = tape.projection(&first, "classifier.dense", (hidden, hidden), true);
    let dense = tape.activation("tanh", &dense, "classifier");
    let logits = (hidden, sizes.classes);
    let logits = tape.projection(&dense, "classifier.out_proj", logits, true);
    let loss = tape.label_loss(&logits, "labels");
    tape.finish(&loss, plain_tail, None)
}

/// ViT from `pixel_values` (batch, 3, image, image) to `labels` (batch): a projection of each patch, a class
/// token, learned positions, blocks with the norm before each layer, and a classifier on the class token.
pub fn vit(blocks: usize, sizes: &VitSizes, training: &Training, element: Element) -> Generated {
    let mut tape = Tape::new(Choices::default());
    (tape.training, tape.element) = (training.clone(), element);
    let VitSizes {
        encoder,
        image,
        patch,
    } = *sizes;
    let (hidden, side) = (encoder.hidden, image / patch);
    let pixels = [batch(1), fixed(3), fixed(image), fixed(image)];
    let pixels = tape.input("pixel_values", &pixels);
    let grid = [batch(1)]
        .into_iter()
        .chain([3, side, patch, side, patch].map(fixed));
    let grid = tape.reshape(&pixels, &grid.collect::<Vec<_>>());
    let grid = tape.permute(&grid, &[0, 2, 4, 1, 3, 5]);
    let size = 3 * patch * patch;
    let patches = tape.reshape(&grid, &[batch(1), fixed(side * side), fixed(size)]);
    let h = tape.projection(&patches, "embeddings.patch", (size, hidden), true);
    let h = tape.prepend_token(&h, "embeddings.cls_token");
    let places = [fixed(side * side + 1), fixed(hidden)];
    let places = tape.weight("embeddings.position_embeddings", &places);
    let mut h = tape.add(&h, &places);
    for index in 0..blocks {
        let name = |part: &str| format!("encoder.layer.{index}.{part}");
        let even = tape.layer_norm(&h, &name("layernorm_before"));
        let mixed = tape.attention_of(&even, encoder.heads, None, &name("attention"));
        h = tape.add(&h, &mixed);
        let even = tape.layer_norm(&h, &name("layernorm_after"));
        let narrow = tape.mlp_of(&even, encoder.intermediate, &name("mlp"));
        h = tape.add(&h, &narrow);
    }
    let even = tape.layer_norm(&h, "layernorm");
    let first = tape.first_token(&even);
    let logits = (hidden, encoder.classes);
    let logits = tape.projection(&first, "classifier", logits, true);
    let loss = tape.label_loss(&logits, "labels");
    tape.finish(&loss, plain_tail, None)
}

impl Tape {
    /// Multi-head attention with biases over [batch, sequence, hidden].
    fn attention_of(&mut self, x: &V, heads: i64, mask: Option<&V>, name: &str) -> V {
        let square = (x.width(), x.width());
        let [q, k, v] = ["query", "key", "value"].map(|part| {
            let all = self.projection(x, &format!("{name}.{part}"), square, true);
            self.split_heads(&all, heads)
        });
        let mixed = self.attend([&q, &k, &v], mask);
        self.projection(&mixed, &format!("{name}.output"), square, true)
    }

    /// down(gelu(up(x))).
    fn mlp_of(&mut self, x: &V, intermediate: i64, name: &str) -> V {
        let (wide, narrow) = ((x.width(), intermediate), (intermediate, x.width()));
        let up = self.projection(x, &format!("{name}.up"), wide, true);
        let up = self.activation("gelu", &up, name);
        self.projection(&up, &format!("{name}.down"), narrow, true)
    }
}
