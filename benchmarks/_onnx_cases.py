"""The onnx package's node tests as models with static shapes."""

from __future__ import annotations

import importlib
import pkgutil
import warnings
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    import onnx
    from onnx.backend.test.case.test_case import TestCase

Array = npt.NDArray[Any]

FLOAT_OPERATORS = frozenset(
    """
    Abs Acos Acosh Add And ArgMax ArgMin Asin Asinh Atan Atanh Attention AveragePool
    BatchNormalization Cast CastLike Ceil Celu Clip Concat Constant ConstantOfShape Conv
    ConvTranspose Cos Cosh CumSum DepthToSpace Div Dropout Einsum Elu Equal Erf Exp Expand EyeLike
    Flatten Floor Gather GatherElements GatherND Gelu Gemm GlobalAveragePool GlobalLpPool
    GlobalMaxPool Greater GreaterOrEqual GroupNormalization HardSigmoid HardSwish Hardmax Identity
    InstanceNormalization IsInf IsNaN LRN LayerNormalization LeakyRelu Less LessOrEqual Log
    LogSoftmax LpNormalization LpPool MatMul Max MaxPool Mean MeanVarianceNormalization Min Mish
    Mod Mul Neg NonZero Not OneHot Or PRelu Pad Pow RMSNormalization Range Reciprocal ReduceL1
    ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum
    ReduceSumSquare Relu Reshape Resize RotaryEmbedding Round Scatter ScatterElements ScatterND
    Selu Shape Shrink Sigmoid Sign Sin Sinh Size Slice Softmax Softplus Softsign SpaceToDepth
    Split Sqrt Squeeze Sub Sum SwiGLU Swish Tan Tanh ThresholdedRelu Tile TopK Transpose Trilu
    Unsqueeze Upsample Where Xor
    """.split()  # noqa: SIM905
)
"""What the float networks are made of that tvmx is for: CNNs, MLPs, small transformers."""

_ALL = tuple(range(9))
_STATIC: dict[str, tuple[int, ...]] = {
    "AffineGrid": (1,), "BlackmanWindow": (0,), "CenterCropPad": (1,), "Clip": (1, 2),
    "ConstantOfShape": (0,), "ConvInteger": (1, 2, 3),
    "CumProd": (1,), "CumSum": (1,), "DFT": (1, 2), "DequantizeLinear": (1, 2),
    "Dropout": (1, 2), "Expand": (1,), "HammingWindow": (0,), "HannWindow": (0,),
    "MatMulInteger": (1, 2, 3), "MaxUnpool": (1, 2),
    "NonZero": (0,), "OneHot": (1, 2), "Pad": (1, 2, 3),
    "QLinearConv": (1, 2, 3, 4, 5, 6, 7, 8), "QLinearMatMul": (1, 2, 3, 4, 5, 6, 7),
    "QuantizeLinear": (1, 2), "Range": _ALL, "Reshape": (1,), "Resize": (1, 2, 3),
    "ReverseSequence": (1,), "STFT": (1, 2, 3), "Slice": (1, 2, 3, 4), "Split": (1,),
    "Squeeze": (1,), "Tile": (1,), "TopK": (1,), "Trilu": (1,), "Unsqueeze": (1,),
    "Upsample": (1,),
}  # fmt: skip
_WEIGHTS: dict[str, tuple[int, ...]] = {
    "BatchNormalization": (1, 2, 3, 4), "Conv": (1, 2), "ConvTranspose": (1, 2), "Gemm": (1, 2),
    "GroupNormalization": (1, 2), "InstanceNormalization": (1, 2), "LayerNormalization": (1, 2),
    "MatMul": (1,), "PRelu": (1,), "RMSNormalization": (1,),
}  # fmt: skip
_OF_TYPES = ("BitCast", "Cast", "CastLike", "EyeLike")
"""Operators whose tests on doubles are about doubles."""

_REDUCTIONS = ("L1", "L2", "LogSum", "LogSumExp", "Max", "Mean", "Min", "Prod", "Sum", "SumSquare")
_STATIC.update({f"Reduce{kind}": (1,) for kind in _REDUCTIONS})

_FED = frozenset(
    {"bool", "int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "float32"}
)


@dataclass(frozen=True)
class Case:
    """One node test: ``apart`` says why it is not counted, "" where it is."""

    name: str
    operator: str
    model: bytes
    inputs: dict[str, Array]
    outputs: tuple[Array, ...]
    rtol: float
    atol: float
    apart: str = ""

    @property
    def counted(self) -> bool:
        """Whether of an operator and of types that are aimed at."""
        return self.operator in FLOAT_OPERATORS and not self.apart


def node_cases(modules: Collection[str] = ()) -> Iterator[Case]:
    """The node tests of these modules of ``onnx.backend.test.case.node``; of all by default.

    What tells a shape or an axis, and the scales of quantisation, is a weight in the model, as
    exporters write it. Operators with weights are tested a second time with them as weights
    (``<name>[weights]``); else they are inputs. Tests on doubles are tests on floats
    (``<name>[float32]``). Tests named ``_expanded`` are the operator's
    definition in terms of others, and are counted for the operator.
    """
    tests = _tests(modules)
    whole = {test.name: test for test in tests if "_expanded" not in test.name}
    for test in tests:
        node = whole[test.name.split("_expanded")[0]].model.graph.node[0]
        static = _names(node, _STATIC)
        yield _case(test, node, static, "")
        weights = _names(node, _WEIGHTS)
        if weights and test.name in whole:
            yield _case(test, node, static | weights, "[weights]")


def _tests(modules: Collection[str]) -> list[TestCase]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # NumPy's, about the values the tests are made with
        from onnx.backend.test.case import node

        names = modules or [found.name for found in pkgutil.iter_modules(node.__path__)]
        for name in names:
            importlib.import_module(f"{node.__name__}.{name}")
    return list(node._NodeTestCases)


def _names(node: onnx.NodeProto, positions: dict[str, tuple[int, ...]]) -> frozenset[str]:
    places = positions.get(node.op_type, ())
    return frozenset(n for i, n in enumerate(node.input) if n and i in places)


def _case(test: TestCase, node: onnx.NodeProto, frozen: frozenset[str], form: str) -> Case:
    import onnx

    ((inputs, outputs),) = test.data_sets
    model = onnx.ModelProto()
    model.CopyFrom(test.model)
    if node.op_type not in _OF_TYPES and _narrow(model):
        form += "[float32]"
        inputs, outputs = map(_narrowed, inputs), map(_narrowed, outputs)
    inputs, outputs = list(inputs), list(outputs)
    apart = _apart(model, node)
    if not apart and not all(np.size(_array(value)) for value in (*inputs, *outputs)):
        apart = "empty tensors"
    if _trains(node, inputs):
        apart = "training"
    feeds: dict[str, Array] = {}
    if not apart:
        values = dict(zip([v.name for v in model.graph.input], map(_array, inputs), strict=True))
        _freeze(model, {name: values[name] for name in values if name in frozen})
        feeds = {name: array for name, array in values.items() if name not in frozen}
    expected = () if apart else tuple(map(_array, outputs))
    domain = node.domain and f"{node.domain}::"
    return Case(
        f"{test.name}{form}", f"{domain}{node.op_type}", model.SerializeToString(), feeds, expected,
        test.rtol, test.atol, apart,
    )  # fmt: skip


def _narrow(model: onnx.ModelProto) -> bool:
    """Turn a test on doubles into one on floats; the tolerances are those of floats anyway."""
    from onnx import TensorProto

    values = (*model.graph.input, *model.graph.output)
    doubles = [v.type.tensor_type for v in values if v.type.tensor_type.elem_type == 11]
    for kind in doubles:
        kind.elem_type = TensorProto.FLOAT
    return bool(doubles)


def _narrowed(value: Any) -> Any:
    found = _array(value) if not isinstance(value, list | tuple | dict) else None
    return value if found is None or found.dtype != np.float64 else found.astype(np.float32)


def _array(value: Any) -> Array:
    from onnx import TensorProto, numpy_helper

    return numpy_helper.to_array(value) if isinstance(value, TensorProto) else np.asarray(value)


def _freeze(model: onnx.ModelProto, weights: dict[str, Array]) -> None:
    from onnx import numpy_helper

    inputs = [value for value in model.graph.input if value.name not in weights]
    del model.graph.input[:]
    model.graph.input.extend(inputs)
    model.graph.initializer.extend(numpy_helper.from_array(a, n) for n, a in weights.items())
    model.ir_version = max(model.ir_version, 4)  # before, weights are inputs too


def _trains(node: onnx.NodeProto, inputs: Sequence[Any]) -> bool:
    if node.op_type == "Dropout":
        return len(inputs) > 2 and bool(np.all(_array(inputs[2])))
    return any(a.name == "training_mode" and a.i for a in node.attribute)


def _apart(model: onnx.ModelProto, node: onnx.NodeProto) -> str:
    """Why a test is about something else; "" where it is not."""
    from onnx import helper

    if node.domain:
        return f"the domain {node.domain}"
    for value in (*model.graph.input, *model.graph.output):
        kind = str(value.type.WhichOneof("value"))
        if kind != "tensor_type":
            return f"{kind.removesuffix('_type')}s"
        code = value.type.tensor_type.elem_type
        dtype = "string" if code == 8 else str(helper.tensor_dtype_to_np_dtype(code))
        if dtype not in _FED:
            return f"element type {dtype}"
    return ""
