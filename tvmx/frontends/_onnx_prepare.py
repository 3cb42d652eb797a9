"""What is done to an ONNX graph between reading and importing it."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from tvmx.errors import ModelError
from tvmx.frontends._onnx_check import check_graph, check_operators, name_nodes
from tvmx.frontends._onnx_fold import GraphTooLargeError, fold
from tvmx.frontends._onnx_ops import DEFAULT_DOMAINS
from tvmx.frontends._onnx_qoperator import to_qdq
from tvmx.frontends._onnx_types import element_types, type_name

if TYPE_CHECKING:
    import onnx

    from tvmx.ir import TensorSpec

_TYPES = ("INT8", "UINT8", "INT16", "UINT16", "INT32")


def prepare(proto: onnx.ModelProto, path: Path, inputs: Iterable[TensorSpec] = ()) -> None:
    """Check a model, and rewrite it in place with operators the importer knows.

    What is known once the shapes of ``inputs`` are becomes weights, operators without a converter
    what they consist of, operators on int8 tensors float operators between DequantizeLinear and
    QuantizeLinear.

    Raises:
        UnsupportedOpError: operators that cannot be imported, all of them at once.
        ModelError: training mode, or a quantisation that cannot be imported.
        CorruptModelError: an invalid node or graph.
    """
    try:
        fold(proto, inputs)
    except GraphTooLargeError as err:
        raise ModelError(f"{path} has {err} in place of those it states") from err
    name_nodes(proto.graph)
    check_operators(proto, path)
    to_qdq(proto, path)
    _check_quantisation(proto.graph, path)
    check_graph(proto, path)


def _check_quantisation(graph: onnx.GraphProto, path: Path) -> None:
    """Refuse element types and forms of QuantizeLinear and DequantizeLinear TVM cannot do."""
    types = element_types(graph)
    for node in graph.node:
        standard = node.domain in DEFAULT_DOMAINS
        if not standard or node.op_type not in ("QuantizeLinear", "DequantizeLinear"):
            continue
        ints = {a.name: a.i for a in node.attribute}
        quantised = node.output[:1] if node.op_type == "QuantizeLinear" else node.input[:1]
        reason = _refused(types.get("".join(quantised)), ints)
        if reason:
            raise ModelError(
                f"{path}: node {node.name!r} ({node.op_type}) {reason}",
                hint="quantise to int8 or uint8, per tensor or per channel, or give the float "
                "model",
            )


def _refused(code: int | None, ints: dict[str, int]) -> str | None:
    if ints.get("block_size"):
        return f"is quantised in blocks of {ints['block_size']}; that cannot be imported"
    if ints.get("precision"):
        return "states a precision; that cannot be imported"
    name = type_name(code)
    if code is not None and name not in _TYPES:
        return f"is of element type {name}; of quantised ones, {', '.join(_TYPES)} can be imported"
    return None
