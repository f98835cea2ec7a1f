//! Arity and attributes of operators.

use crate::{accept, check};

#[test]
fn standard_operators_have_their_arity() {
    check(
        r#"
g (float x) => (float y) {
   y = Relu (x, x)
   # error: 2 inputs; Relu has 1
   a, b = MatMul (x)
   # error: 1 inputs; MatMul has 2
   # error: 2 outputs; MatMul has 1
   c = Concat ()
   # error: 0 inputs; Concat has 1 or more
   d = Gemm (x, x, x, x)
   # error: 4 inputs; Gemm has 2 to 3
   e = SimplifiedLayerNormalization (x, x, x, x)
   f = local.Relu (x, x)
}"#,
    );
}

#[test]
fn operators_of_the_rewrite_are_as_defined() {
    accept(
        r#"g (float[N,8] x, float[2] v, float[N,3] dy) => (float w) {
   d = ai.velora.MeanDirection <groups = 4> (x)
   z = ai.velora.Compress <groups = 4> (x, d)
   r = ai.velora.Reconstruct <groups = 4, features = 8> (z, v)
   c = ai.velora.Compress <groups = 4, axis = 1> (x, v)
   s = ai.velora.FactoredScaleGrad <groups = 4, scale = 0.5> (z, x, v)
   w = ai.velora.FactoredWeightGrad <groups = 4, features = 8, transposed = 1, scale = 0.5> (z, dy, v)
}"#,
    );
    check(
        r#"
g (float[N,8] x, float[2] v) => (float[N,4] z) {
   z = ai.velora.Compress <groups: int = 0> (x)
   # error: 1 inputs; Compress has 2 inputs
   # error: attribute 'groups' of Compress: expected an int of at least 1
   a = ai.velora.Compress (x, "")
   # error: 1 inputs; Compress has 2 inputs
   # error: Compress lacks the attribute 'groups'
   b, c = ai.velora.MeanDirection <groups: float = 4.0> (x)
   # error: 2 outputs; MeanDirection has 1 output
   # error: attribute 'groups' of MeanDirection: expected an int of at least 1
   d = ai.velora.Reconstruct <groups: int = 4, features: int = 8, extra: int = 1> (z, v)
   # error: Reconstruct has no attribute 'extra'
   e = ai.velora.FactoredWeightGrad <groups: int = 4, features: int = 8, transposed: int = 2, scale: float = nan> (z, z, v)
   # error: attribute 'transposed' of FactoredWeightGrad: expected 0 or 1
   # error: attribute 'scale' of FactoredWeightGrad: expected a finite float
   f = ai.velora.Decompress (z)
   # error: 'Decompress' is no operator of ai.velora; expected Compress, MeanDirection, MeanDirections, RunningDirection, Quantize, Dequantize, Reconstruct, FactoredWeightGrad or FactoredScaleGrad
   h = ai.velora.MeanDirection <groups: int = 4, axis: int = 2> (x)
   # error: attribute 'axis' of MeanDirection: expected -1 or 1
}"#,
    );
}
