"""Which ONNX operators can be imported.

A list of its own, so that a model can be refused without loading TVM. It is TVM's converter
table less what has no place in a static dataflow graph (control flow, sequences, optionals,
outputs whose size depends on values) or belongs to other operator domains; a test keeps it
inside TVM's table.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx

OLDEST_OPSET = 7
"""Earlier opsets broadcast by attributes, which TVM's converters do not read."""

SUPPORTED = frozenset(
    """
    Abs Acos Acosh Add AffineGrid And ArgMax ArgMin Asin Asinh Atan Atanh AveragePool
    BatchNormalization BitShift BitwiseAnd BitwiseNot BitwiseOr BitwiseXor Cast CastLike Ceil Clip
    Concat Constant ConstantOfShape Conv ConvTranspose Cos Cosh CumSum DepthToSpace
    DequantizeLinear Div Dropout DynamicQuantizeLinear Einsum Elu Equal Erf Exp Expand EyeLike
    Flatten Floor Gather GatherElements GatherND Gelu Gemm GlobalAveragePool GlobalLpPool
    GlobalMaxPool Greater GreaterOrEqual GridSample GroupNormalization HardSigmoid HardSwish
    Hardmax Identity InstanceNormalization IsInf IsNaN LRN LayerNormalization LeakyRelu Less
    LessOrEqual Log LogSoftmax LpPool MatMul MatMulInteger Max MaxPool MaxRoiPool Mean
    MeanVarianceNormalization Min Mish Mod Mul Neg Not OneHot Or PRelu Pad Pow QuantizeLinear
    RMSNormalization Range Reciprocal ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax
    ReduceMean ReduceMin ReduceProd ReduceSum ReduceSumSquare Relu Reshape Resize RoiAlign Round
    Scatter ScatterElements ScatterND Selu Shape Shrink Sigmoid Sign Sin Sinh Size Slice Softmax
    Softplus Softsign SpaceToDepth Split Sqrt Squeeze Sub Sum Tan Tanh ThresholdedRelu Tile TopK
    Transpose Trilu Unsqueeze Upsample Where Xor
    """.split()  # noqa: SIM905
)

OWN = frozenset({"ConvInteger", "CumProd", "LpNormalization"})
"""Operators that only converters of tvmx know."""

EXPANDED = frozenset(
    """
    Attention BlackmanWindow CausalConvWithState Celu CenterCropPad HammingWindow HannWindow
    NegativeLogLikelihoodLoss RotaryEmbedding SoftmaxCrossEntropyLoss SwiGLU Swish
    """.split()  # noqa: SIM905
)
"""Operators that are imported as the operators ONNX defines them by."""

QOPERATOR = frozenset(
    """
    QLinearConv QLinearMatMul com.microsoft::DequantizeLinear com.microsoft::DynamicQuantizeMatMul
    com.microsoft::MatMulIntegerToFloat com.microsoft::QGemm com.microsoft::QLinearAdd
    com.microsoft::QLinearAveragePool com.microsoft::QLinearConcat com.microsoft::QLinearConv
    com.microsoft::QLinearGlobalAveragePool com.microsoft::QLinearLeakyRelu
    com.microsoft::QLinearMul com.microsoft::QLinearReduceMean com.microsoft::QLinearSigmoid
    com.microsoft::QLinearSoftmax com.microsoft::QLinearWhere com.microsoft::QuantizeLinear
    """.split()  # noqa: SIM905
)
"""Operators on int8 tensors that are replaced before the import, as :func:`operator_key` says."""

DEFAULT_DOMAINS = ("", "ai.onnx")

_QUANTISED = ("QLinear", "com.microsoft::Q")
_CONTROL = ("If", "Loop", "Scan")


def operator_key(node: onnx.NodeProto) -> str:
    """``Conv`` of the standard domain, ``com.microsoft::QGemm`` of another."""
    standard = node.domain in DEFAULT_DOMAINS
    return node.op_type if standard else f"{node.domain}::{node.op_type}"


def refusal(ops: Iterable[str]) -> str:
    """What to do about unsupported operators."""
    names = list(ops)
    if any(name.startswith(_QUANTISED) for name in names):
        return "quantised models: export in QDQ format, or give the float model"
    if any(name in _CONTROL for name in names):
        return "control flow: simplify the model for one fixed input shape (onnxsim), or re-export"
    if any("::" in name for name in names):
        return "export with standard ONNX operators, without runtime-specific optimisation"
    return "export with other operators, or cut the model before these nodes"
