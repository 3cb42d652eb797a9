"""Element types of an ONNX graph's tensors, as far as quantisation asks for them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tvmx.frontends._onnx_ops import QOPERATOR, operator_key

if TYPE_CHECKING:
    import onnx

MOVERS = frozenset(
    {
        "Flatten", "Gather", "Identity", "MaxPool", "Pad", "Reshape", "Slice", "Split", "Squeeze",
        "Transpose", "Unsqueeze",
    }
)  # fmt: skip
"""Operators whose first output holds elements of their first input, or a padding value."""

_SAME = MOVERS | {"Concat", "DepthToSpace", "Expand", "Resize", "SpaceToDepth", "Tile"}

_OUTPUT_ZERO = {
    "DequantizeLinear": None, "DynamicQuantizeMatMul": None, "MatMulIntegerToFloat": None,
    "QGemm": 8, "QLinearAdd": 7, "QLinearConcat": 1, "QLinearConv": 7, "QLinearMatMul": 7,
    "QLinearMul": 7, "QLinearWhere": 8, "QuantizeLinear": 2,
}  # fmt: skip
"""Input that is the zero point of the output; None: the output is float. Else it is input 4."""

_DATA = {"QLinearConcat": 2, "QLinearWhere": 1}
"""Input whose type the output has where it has no zero point; else the first."""


def element_types(graph: onnx.GraphProto) -> dict[str, int]:
    """TensorProto data type by tensor name; tensors whose type was not found are left out."""
    from onnx import TensorProto

    values = (*graph.input, *graph.value_info, *graph.output)
    types = {v.name: v.type.tensor_type.elem_type for v in values}
    types.update({i.name: i.data_type for i in graph.initializer})
    types = {name: code for name, code in types.items() if code}
    for node in graph.node:
        found = _made(node, types)
        if found:
            types.update({output: found for output in node.output if output})
        if node.op_type == "DynamicQuantizeLinear" and len(node.output) == 3:
            made = (TensorProto.UINT8, TensorProto.FLOAT, TensorProto.UINT8)
            types.update(zip(node.output, made, strict=True))
    return types


def type_name(code: int | None) -> str:
    """``INT8`` and so on, also for codes that a damaged file holds."""
    from onnx import TensorProto

    known = code in TensorProto.DataType.values()
    return str(TensorProto.DataType.Name(code)) if known else f"number {code}"


def _made(node: onnx.NodeProto, types: dict[str, int]) -> int | None:
    """Type of what a node makes; None: not known here."""
    from onnx import TensorProto

    def of(index: int | None) -> int | None:
        inside = index is not None and index < len(node.input)
        return types.get(node.input[index]) if inside else None

    kind, attributes = node.op_type, {a.name: a for a in node.attribute}
    if operator_key(node) in QOPERATOR:
        zero = _OUTPUT_ZERO.get(kind, 4)
        if zero is None:
            return TensorProto.FLOAT
        default = {"QGemm": TensorProto.FLOAT, "QuantizeLinear": TensorProto.UINT8}.get(kind)
        return of(zero) or default or of(_DATA.get(kind, 0))
    if kind == "Constant" and "value" in attributes:
        return int(attributes["value"].t.data_type)
    if kind == "Cast" and "to" in attributes:
        return int(attributes["to"].i)
    if kind == "QuantizeLinear":
        stated = attributes["output_dtype"].i if "output_dtype" in attributes else 0
        return stated or of(2) or TensorProto.UINT8
    return of(0) if (kind in _SAME and len(node.output) == 1) or kind == "Split" else None
