"""Which ONNX operators can be imported.

A list of its own, so that a model can be refused without loading TVM. It is TVM's converter
table less what has no place in a static dataflow graph (control flow, sequences, optionals,
outputs whose size depends on values) or belongs to other operator domains; a test keeps it
inside TVM's table.
"""

from __future__ import annotations

from collections.abc import Iterable

OLDEST_OPSET = 7
"""Earlier opsets broadcast by attributes, which TVM's converters do not read."""

SUPPORTED = frozenset(
    """
    Abs Acos Acosh Add AffineGrid And ArgMax ArgMin Asin Asinh Atan Atanh Attention AveragePool
    BatchNormalization BitShift BitwiseAnd BitwiseNot BitwiseOr BitwiseXor Cast CastLike Ceil Clip
    Concat Constant ConstantOfShape Conv ConvTranspose Cos Cosh CumSum DepthToSpace
    DequantizeLinear Div Dropout DynamicQuantizeLinear Einsum Elu Equal Erf Exp Expand EyeLike
    Flatten Floor Gather GatherElements GatherND Gelu Gemm GlobalAveragePool GlobalLpPool
    GlobalMaxPool Greater GreaterOrEqual GridSample GroupNormalization HardSigmoid HardSwish
    Hardmax Identity InstanceNormalization IsInf IsNaN LRN LayerNormalization LeakyRelu Less
    LessOrEqual Log LogSoftmax LpPool MatMul MatMulInteger Max MaxPool MaxRoiPool MaxUnpool Mean
    MeanVarianceNormalization Min Mish Mod Mul Neg Not OneHot Or PRelu Pad Pow QuantizeLinear
    RMSNormalization Range Reciprocal ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax
    ReduceMean ReduceMin ReduceProd ReduceSum ReduceSumSquare Relu Reshape Resize RoiAlign Round
    Scatter ScatterElements ScatterND Selu Shape Shrink Sigmoid Sign Sin Sinh Size Slice Softmax
    Softplus Softsign SpaceToDepth Split Sqrt Squeeze Sub Sum Tan Tanh ThresholdedRelu Tile TopK
    Transpose Trilu Unsqueeze Upsample Where Xor
    """.split()  # noqa: SIM905
)

_QOPERATOR = ("QLinear", "ConvInteger", "QGemm", "com.microsoft::QLinear", "com.microsoft::QGemm")
_CONTROL = ("If", "Loop", "Scan")


def refusal(ops: Iterable[str]) -> str:
    """What to do about unsupported operators."""
    names = list(ops)
    if any(name.startswith(_QOPERATOR) for name in names):
        return "quantised models: export in QDQ format, or give the float model"
    if any(name in _CONTROL for name in names):
        return "control flow: simplify the model for one fixed input shape (onnxsim), or re-export"
    if any("::" in name for name in names):
        return "export with standard ONNX operators, without runtime-specific optimisation"
    return "export with other operators, or cut the model before these nodes"
