//! How many inputs and outputs the standard operators have.

/// The fewest and the most inputs, and the fewest and the most outputs, over all versions of a
/// standard operator; `None` where there is no such operator.
///
/// Read out of the schemas of onnx 1.22 (`onnx.defs.get_all_schemas_with_history()`): per name, the
/// smallest `min_input` and `min_output` and the largest `max_input` and `max_output`.
#[rustfmt::skip]
pub(super) fn arity(op: &str) -> Option<[usize; 4]> {
    /// Any number.
    const N: usize = usize::MAX;
    Some(match op {
        "Constant" | "RandomNormal" | "RandomUniform" | "SequenceEmpty" => [0, 0, 1, 1],
        "Optional" | "OptionalHasElement" => [0, 1, 1, 1],
        "Abs" | "Acos" | "Acosh" | "ArgMax" | "ArgMin" | "Asin" | "Asinh" | "Atan" | "Atanh"
        | "AveragePool" | "Bernoulli" | "BitCast" | "BitwiseNot" | "BlackmanWindow" | "Cast"
        | "Ceil" | "Celu" | "ConcatFromSequence" | "ConstantOfShape" | "Cos" | "Cosh"
        | "DepthToSpace" | "Det" | "Elu" | "Erf" | "Exp" | "EyeLike" | "Flatten" | "Floor"
        | "Gelu" | "GlobalAveragePool" | "GlobalLpPool" | "GlobalMaxPool" | "HammingWindow"
        | "HannWindow" | "HardSigmoid" | "HardSwish" | "Hardmax" | "Identity" | "ImageDecoder"
        | "IsInf" | "IsNaN" | "LRN" | "LeakyRelu" | "Log" | "LogSoftmax" | "LpNormalization"
        | "LpPool" | "MeanVarianceNormalization" | "Mish" | "Multinomial" | "Neg" | "NonZero"
        | "Not" | "OptionalGetElement" | "RandomNormalLike" | "RandomUniformLike" | "Reciprocal"
        | "RegexFullMatch" | "Relu" | "Round" | "Selu" | "SequenceLength" | "Shape" | "Shrink"
        | "Sigmoid" | "Sign" | "Sin" | "Sinh" | "Size" | "Softmax" | "Softplus" | "Softsign"
        | "SpaceToDepth" | "Sqrt" | "StringNormalizer" | "Swish" | "Tan" | "Tanh"
        | "TfIdfVectorizer" | "ThresholdedRelu" | "Transpose" => [1, 1, 1, 1],
        "MaxPool" => [1, 1, 1, 2],
        "Unique" => [1, 1, 1, 4],
        "If" => [1, 1, 1, N],
        "StringSplit" => [1, 1, 2, 2],
        "DynamicQuantizeLinear" => [1, 1, 3, 3],
        "ReduceL1" | "ReduceL2" | "ReduceLogSum" | "ReduceLogSumExp" | "ReduceMax" | "ReduceMean"
        | "ReduceMin" | "ReduceProd" | "ReduceSum" | "ReduceSumSquare" | "Reshape"
        | "SequenceErase" | "SplitToSequence" | "Squeeze" | "Trilu" | "Unsqueeze" | "Upsample"
        => [1, 2, 1, 1],
        "Split" => [1, 2, 1, N],
        "TopK" => [1, 2, 2, 2],
        "Clip" | "DFT" => [1, 3, 1, 1],
        "Dropout" => [1, 3, 1, 2],
        "Pad" | "Resize" => [1, 4, 1, 1],
        "Slice" => [1, 5, 1, 1],
        "Concat" | "Einsum" | "Max" | "Mean" | "Min" | "SequenceConstruct" | "Sum" => [1, N, 1, 1],
        "Scan" | "SequenceMap" => [1, N, 1, N],
        "Add" | "AffineGrid" | "And" | "BitShift" | "BitwiseAnd" | "BitwiseOr" | "BitwiseXor"
        | "CastLike" | "CenterCropPad" | "Compress" | "CumProd" | "CumSum" | "Div" | "Equal"
        | "Expand" | "Gather" | "GatherElements" | "GatherND" | "Greater" | "GreaterOrEqual"
        | "GridSample" | "Less" | "LessOrEqual" | "MatMul" | "MaxRoiPool" | "Mod" | "Mul" | "Or"
        | "PRelu" | "Pow" | "RMSNormalization" | "ReverseSequence" | "SequenceAt"
        | "StringConcat" | "Sub" | "Xor" => [2, 2, 1, 1],
        "Conv" | "ConvTranspose" | "DequantizeLinear" | "Gemm" | "MaxUnpool"
        | "NegativeLogLikelihoodLoss" | "QuantizeLinear" | "SequenceInsert" | "TensorScatter"
        | "Tile" => [2, 3, 1, 1],
        "SoftmaxCrossEntropyLoss" => [2, 3, 1, 2],
        "LayerNormalization" => [2, 3, 1, 3],
        "ConvInteger" | "MatMulInteger" | "STFT" => [2, 4, 1, 1],
        "CausalConvWithState" => [2, 4, 2, 2],
        "NonMaxSuppression" => [2, 5, 1, 1],
        "Loop" => [2, N, 1, N],
        "Col2Im" | "GroupNormalization" | "InstanceNormalization" | "OneHot" | "Range"
        | "RoiAlign" | "Scatter" | "ScatterElements" | "ScatterND" | "Where" => [3, 3, 1, 1],
        "RotaryEmbedding" => [3, 4, 1, 1],
        "DeformConv" => [3, 5, 1, 1],
        "GRU" | "RNN" => [3, 6, 0, 2],
        "LinearAttention" => [3, 6, 2, 2],
        "Attention" => [3, 7, 1, 4],
        "LSTM" => [3, 8, 0, 3],
        "MelWeightMatrix" => [5, 5, 1, 1],
        "BatchNormalization" => [5, 5, 1, 5],
        "QLinearMatMul" => [8, 8, 1, 1],
        "QLinearConv" => [8, 9, 1, 1],
        _ => return None,
    })
}
