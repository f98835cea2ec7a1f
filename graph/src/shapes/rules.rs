//! The table from operators to rules.

use super::call::Call;
use super::{
    control, elementwise as el, index, make, matmul, nn, pieces, pool, reduce, shape_ops as sh,
    training as tr, velora,
};

/// A contradiction that a rule or a declaration meets; the engine adds the node.
#[derive(Clone, Debug)]
pub(super) struct Fault {
    pub tensor: String,
    pub found: String,
    pub other: String,
    pub hint: &'static str,
}

pub(super) type Outcome = Result<(), Box<Fault>>;

/// Fills in what a node's outputs are from what its inputs are.
pub(super) type Rule = fn(&mut Call<'_>) -> Outcome;

/// The rule of an operator. Operators with nested graphs and model-local functions are not here:
/// the engine walks through their bodies.
pub(super) fn rule(domain: &str, op: &str) -> Option<Rule> {
    match domain {
        "" => standard(op),
        "com.microsoft" => contrib(op).or_else(|| standard(op)),
        "ai.onnx.preview.training" => match op {
            "Adam" | "Adagrad" | "Momentum" => Some(tr::optimiser),
            _ => None,
        },
        "ai.velora" => Some(match op {
            "Compress" => velora::compress,
            "MeanDirection" => velora::mean_direction,
            "MeanDirections" => velora::mean_directions,
            "RunningDirection" => velora::running_direction,
            "Quantize" => velora::quantize,
            "Dequantize" => velora::dequantize,
            "Reconstruct" => velora::reconstruct,
            "FactoredWeightGrad" => velora::factored_weight_grad,
            "FactoredScaleGrad" => velora::factored_scale_grad,
            _ => return None,
        }),
        _ => None,
    }
}

/// Domain `ai.onnx`.
fn standard(op: &str) -> Option<Rule> {
    Some(match op {
        "Identity" | "Abs" | "Neg" | "Floor" | "Ceil" | "Round" | "Sign" => el::followed_unary,
        "Acos"
        | "Acosh"
        | "Asin"
        | "Asinh"
        | "Atan"
        | "Atanh"
        | "Celu"
        | "Cos"
        | "Cosh"
        | "Elu"
        | "Erf"
        | "Exp"
        | "Gelu"
        | "HardSigmoid"
        | "HardSwish"
        | "LeakyRelu"
        | "Log"
        | "Mish"
        | "Reciprocal"
        | "Relu"
        | "Selu"
        | "Shrink"
        | "Sigmoid"
        | "Sin"
        | "Sinh"
        | "Softplus"
        | "Softsign"
        | "Sqrt"
        | "Swish"
        | "Tan"
        | "Tanh"
        | "ThresholdedRelu"
        | "BitwiseNot"
        | "Hardmax"
        | "Softmax"
        | "LogSoftmax"
        | "LpNormalization"
        | "LRN"
        | "MeanVarianceNormalization"
        | "CumSum"
        | "CumProd"
        | "Trilu"
        | "InstanceNormalization"
        | "GroupNormalization"
        | "ReverseSequence"
        | "PRelu" => el::unary,
        "Not" => el::not,
        "IsNaN" | "IsInf" => el::to_bool,
        "Add" | "Sub" | "Mul" | "Div" | "Mod" => el::arithmetic,
        "Pow" | "BitShift" => el::broadcast_first_type,
        "BitwiseAnd" | "BitwiseOr" | "BitwiseXor" => el::variadic,
        "Sum" | "Mean" | "Max" | "Min" => el::variadic,
        "Equal" | "Greater" | "GreaterOrEqual" | "Less" | "LessOrEqual" => el::compare,
        "And" | "Or" | "Xor" => el::logic,
        "Where" => el::select,
        "Clip" => el::clip,
        "Cast" => el::cast,
        "CastLike" => el::cast_like,
        "Shape" => sh::shape,
        "Size" => sh::size,
        "Reshape" => sh::reshape,
        "Flatten" => sh::flatten,
        "Squeeze" => sh::squeeze,
        "Unsqueeze" => sh::unsqueeze,
        "Transpose" => sh::transpose,
        "Expand" => sh::expand,
        "Tile" => sh::tile,
        "DepthToSpace" => sh::depth_to_space,
        "SpaceToDepth" => sh::space_to_depth,
        "Concat" => pieces::concat,
        "Split" => pieces::split,
        "Slice" => pieces::slice,
        "Pad" => pieces::pad,
        "Gather" => index::gather,
        "GatherElements" => index::gather_elements,
        "GatherND" => index::gather_nd,
        "Scatter" | "ScatterElements" | "ScatterND" | "TensorScatter" => index::scatter,
        "OneHot" => index::one_hot,
        "NonZero" => index::non_zero,
        "TopK" => index::top_k,
        "Compress" => index::compress,
        "Unique" => index::unique,
        "Constant" => make::constant,
        "ConstantOfShape" => make::constant_of_shape,
        "Range" => make::range,
        "EyeLike" => make::eye_like,
        "RandomNormal" | "RandomUniform" => make::random,
        "RandomNormalLike" | "RandomUniformLike" | "Bernoulli" => make::random_like,
        "ReduceSum" | "ReduceMean" | "ReduceMax" | "ReduceMin" | "ReduceProd" | "ReduceL1"
        | "ReduceL2" | "ReduceLogSum" | "ReduceLogSumExp" | "ReduceSumSquare" => reduce::reduce,
        "ArgMax" | "ArgMin" => reduce::arg,
        "MatMul" => matmul::matmul,
        "MatMulInteger" => matmul::matmul_integer,
        "Gemm" => matmul::gemm,
        "Einsum" => matmul::einsum,
        "Conv" => pool::conv,
        "ConvTranspose" => pool::conv_transpose,
        "MaxPool" => pool::max_pool,
        "AveragePool" | "LpPool" => pool::pool,
        "GlobalAveragePool" | "GlobalMaxPool" | "GlobalLpPool" => pool::global_pool,
        "LayerNormalization" => nn::layer_norm,
        "RMSNormalization" => el::unary,
        "SimplifiedLayerNormalization" => nn::simplified_layer_norm,
        "BatchNormalization" => nn::batch_norm,
        "Dropout" => nn::dropout,
        "SoftmaxCrossEntropyLoss" => nn::cross_entropy,
        "NegativeLogLikelihoodLoss" => nn::nll,
        "LSTM" => nn::lstm,
        "GRU" => nn::gru,
        "RNN" => nn::rnn,
        "RotaryEmbedding" => el::unary,
        "Attention" => nn::attention,
        "Resize" | "Upsample" => nn::resize,
        "GridSample" => nn::grid_sample,
        "Det" => nn::determinant,
        "DequantizeLinear" => nn::dequantize,
        "QuantizeLinear" => nn::quantize,
        "ConvInteger" => pool::conv_integer,
        "DynamicQuantizeLinear" => nn::dynamic_quantize,
        "Multinomial" => make::multinomial,
        "BlackmanWindow" | "HammingWindow" | "HannWindow" => make::window,
        // ONNX Runtime registers these in the standard domain.
        "SinGrad" => tr::pointwise_grad,
        "SparseSoftmaxCrossEntropy" => nn::cross_entropy,
        "SparseSoftmaxCrossEntropyGrad" => tr::cross_entropy_grad,
        "MaxPoolGrad" => tr::max_pool_grad,
        _ => return None,
    })
}

/// Domain `com.microsoft`: inference and training operators of ONNX Runtime.
fn contrib(op: &str) -> Option<Rule> {
    Some(match op {
        "Gelu" | "FastGelu" | "QuickGelu" | "BiasGelu" | "BiasFastGelu" | "Scale"
        | "RotaryEmbedding" | "Inverse" | "BiasSoftmax" | "BiasAdd" | "ZeroGradient" => el::unary,
        "ReluGrad"
        | "TanhGrad"
        | "SigmoidGrad"
        | "GeluGrad"
        | "FastGeluGrad"
        | "QuickGeluGrad"
        | "BiasGeluGrad_dX"
        | "BiasFastGeluGrad_dX"
        | "SoftmaxGrad"
        | "SoftmaxGrad_13"
        | "LogSoftmaxGrad"
        | "LogSoftmaxGrad_13"
        | "LeakyReluGrad"
        | "EluGrad"
        | "SinGrad"
        | "SoftmaxDropoutGrad"
        | "HardSigmoidGrad" => tr::pointwise_grad,
        "FusedMatMul" | "TransposeMatMul" => matmul::fused_matmul,
        "FusedGemm" => matmul::gemm,
        "SkipLayerNormalization" => nn::skip_layer_norm,
        "SkipSimplifiedLayerNormalization" => nn::skip_simplified_layer_norm,
        "BatchNormInternal" => nn::batch_norm_internal,
        "BitmaskDropout" => nn::bitmask_dropout,
        "BiasDropout" => nn::bias_dropout,
        "BitmaskBiasDropout" => nn::bitmask_bias_dropout,
        "SoftmaxCrossEntropyLossInternal" => nn::cross_entropy,
        "ReduceSumTraining" => reduce::reduce,
        "ReduceAllL2" => reduce::reduce_all,
        "ConcatTraining" => pieces::concat_training,
        "SplitTraining" => pieces::split,
        "LSTMTraining" => nn::lstm_training,
        "GRUTraining" => nn::gru_training,
        "SoftmaxCrossEntropyLossGrad" | "SoftmaxCrossEntropyLossInternalGrad" => {
            tr::cross_entropy_grad
        }
        "LayerNormalizationGrad" => tr::layer_norm_grad,
        "SimplifiedLayerNormalizationGrad" => tr::layer_norm_grad,
        "InvertibleLayerNormalizationGrad" => tr::invertible_layer_norm_grad,
        "BatchNormalizationGrad" => tr::layer_norm_grad,
        "DropoutGrad" | "BitmaskDropoutGrad" | "FakeQuantGrad" => el::unary,
        "GatherGrad" | "GatherNDGrad" => tr::gather_grad,
        "SliceGrad" | "GatherElementsGrad" => tr::slice_grad,
        "ConvGrad" => tr::conv_grad,
        "ConvTransposeGrad" => tr::conv_transpose_grad,
        "LSTMGrad" => tr::lstm_grad,
        "GRUGrad" => tr::gru_grad,
        "InPlaceAccumulatorV2" => tr::accumulate_in_place,
        "InPlaceAccumulator" => el::unary,
        "BroadcastGradientArgs" => tr::broadcast_gradient_args,
        "ResizeGrad" => tr::resize_grad,
        "IsAllFinite" => tr::flag,
        "FusedConv" => pool::conv,
        _ => return None,
    })
}

/// Whether the engine infers through the graphs that the operator's attributes hold.
pub(super) fn has_body(domain: &str, op: &str) -> bool {
    domain.is_empty() && control::KINDS.contains(&op)
}
