//! Weight-gradient contractions in forms that the exported graphs do not have.
#![allow(clippy::unwrap_used)]

use velora_graph::analysis::sites::Sites;
use velora_graph::analysis::{Analyses, Settings};
use velora_graph::ir::Model;
use velora_graph::text::parse_model;

/// The contractions of a step in which h is [2, 3, 4] and `backward` makes `grad.w` from it and from
/// `dy`, a vector of ones that is to be reshaped.
fn sites(weight: &str, backward: &str) -> Sites {
    step(weight, weight, backward)
}

/// The same with a gradient of another shape than the weight's.
fn step(weight: &str, gradient: &str, backward: &str) -> Sites {
    let text = format!(
        "<ir_version: 10, opset_import: [\"\" : 18]>
         step (float[2,3,4] x, float[{weight}] w) => (float loss, float[{gradient}] \"grad.w\")
         <int64[2] rows_h = {{-1, 4}}, int64[2] rows_dy = {{-1, 5}}, int64[2] mixed = {{8, 3}},
          int64[3] axes = {{0, 1, 2}}, float[15] ones = {{1,1,1,1,1,1,1,1,1,1,1,1,1,1,1}},
          float[30] more = {{1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1}}>
         {{
            h = Tanh (x)
            loss = ReduceSum <keepdims: int = 0> (h, axes)
            {backward}
         }}"
    );
    let model = Model::from_proto(parse_model(&text).unwrap()).unwrap();
    let analyses = Analyses::new(&model, &Settings::default()).unwrap();
    analyses.sites
}

#[test]
fn rows_may_be_transposed() {
    let found = sites(
        "4,5",
        "flat = Reshape (h, rows_h)
         columns = Transpose <perm: ints = [1, 0]> (flat)
         negative = Neg (more)
         dy = Reshape (negative, rows_dy)
         \"grad.w\" = MatMul (columns, dy)",
    );
    assert_eq!(found.sites.len(), 1, "{:?}", found.unfit);
    assert_eq!(found.sites[0].features, 4);
}

/// The weight has a row for each sample and feature: what is compressed must be whole tokens.
#[test]
fn samples_mixed_with_features_are_no_tokens() {
    let found = sites(
        "8,5",
        "turned = Transpose <perm: ints = [0, 2, 1]> (h)
         flat = Reshape (turned, mixed)
         negative = Neg (ones)
         dy = Reshape (negative, rows_dy)
         \"grad.w\" = MatMul (flat, dy)",
    );
    assert!(found.sites.is_empty(), "{:?}", found.sites);
    assert_eq!(
        found.unfit[0].why,
        "its layout changes on the way to the product"
    );
}

/// Each sample of h meets each of dy's: as many tokens on both sides, but the product sums over pairs.
#[test]
fn batches_that_are_broadcast_against_each_other_are_no_site() {
    let by_batch = |batch_of_dy: &str| {
        sites(
            "4,5",
            &format!(
                "turned = Transpose <perm: ints = [0, 2, 1]> (h)
                 sizes_h = Constant <value_ints = [1, 2, 4, 3]> ()
                 columns = Reshape (turned, sizes_h)
                 negative = Neg (more)
                 sizes_dy = Constant <value_ints = [{batch_of_dy}, 3, 5]> ()
                 dy = Reshape (negative, sizes_dy)
                 products = MatMul (columns, dy)
                 batch = Constant <value_ints = [0, 1]> ()
                 \"grad.w\" = ReduceSum <keepdims: int = 0> (products, batch)"
            ),
        )
    };
    assert_eq!(by_batch("1, 2").sites.len(), 1);
    let found = by_batch("2, 1");
    assert!(found.sites.is_empty(), "{:?}", found.sites);
    assert_eq!(
        found.unfit[0].why,
        "one operand of its product is broadcast over the batch"
    );
}

/// A gradient for each sample is no contraction over all tokens.
#[test]
fn a_product_with_a_batch_that_nothing_sums_up_is_no_site() {
    let found = step(
        "4,5",
        "2,4,5",
        "turned = Transpose <perm: ints = [0, 2, 1]> (h)
         negative = Neg (ones)
         dy = Reshape (negative, rows_dy)
         \"grad.w\" = MatMul (turned, dy)",
    );
    assert!(found.sites.is_empty(), "{:?}", found.sites);
}
