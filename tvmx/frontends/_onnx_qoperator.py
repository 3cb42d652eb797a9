"""ONNX operators on int8 tensors, written as float operators between (de)quantising ones.

QLinearConv becomes DequantizeLinear -> Conv -> QuantizeLinear with its scales and zero points,
and so on: the form in which ONNX Runtime's quantiser states the same network as QDQ. The
float operator keeps the node's name; a tensor is dequantised once, however many read it.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from tvmx.errors import ModelError
from tvmx.frontends._onnx_check import name_nodes, opset_of, skeleton
from tvmx.frontends._onnx_movers import move, note_params
from tvmx.frontends._onnx_ops import DEFAULT_DOMAINS, QOPERATOR, operator_key
from tvmx.frontends._onnx_qdq_writer import QdqWriter
from tvmx.frontends._onnx_qlinear_rules import RULES, check_conv_integer
from tvmx.frontends._reason import quoted

if TYPE_CHECKING:
    import onnx

_OPSET = 13
"""The first whose (de)quantising is per channel and whose Softmax is over one axis."""
_IR_VERSION = 4
"""The first whose weights need not be graph inputs."""


def to_qdq(proto: onnx.ModelProto, path: Path) -> None:
    """Replace, in place, every operator on int8 tensors; others stay as they are.

    A model of an opset before 13 is converted to 13. MatMulInteger and ConvInteger are left:
    their converters compute in int32.

    Raises:
        ModelError: a form that cannot be imported, such as a channels-last layout.
        CorruptModelError: a node without inputs it needs, or with scales that do not fit.
    """
    keys = {operator_key(node) for node in proto.graph.node}
    if not keys & (QOPERATOR | {"ConvInteger"}):
        return
    if keys & QOPERATOR and opset_of(proto) < _OPSET:
        _raise_opset(proto, path)
    proto.ir_version = max(proto.ir_version, _IR_VERSION)
    writer = QdqWriter(proto, path)
    for node in proto.graph.node:
        key = operator_key(node)
        if key in QOPERATOR:
            RULES[node.op_type](writer, node)
        elif key == "ConvInteger":
            check_conv_integer(writer, node)
            writer.keep(node)
        elif not (keys & QOPERATOR and move(writer, node)):
            writer.keep(node)
            note_params(writer, node)
    writer.finish()


def _raise_opset(proto: onnx.ModelProto, path: Path) -> None:
    """Convert the nodes; large weights are kept from the converter, which would copy them."""
    import onnx
    from onnx import version_converter

    try:
        slim = skeleton(proto)
        if opset_of(proto) == 0:  # com.microsoft only: there is nothing to convert
            converted = slim
            converted.opset_import.append(onnx.helper.make_opsetid("", _OPSET))
        else:
            converted = version_converter.convert_version(slim, _OPSET)
    except Exception as err:  # the converter's C++ exceptions have no common base
        raise ModelError(
            f"{path} uses ONNX opset {opset_of(proto)}, and quantised operators need {_OPSET}; "
            f"it cannot be converted ({quoted(err)})",
            hint=f"export the network with opset {_OPSET} or later and quantise it again",
        ) from err
    graph, held = proto.graph, {i.name for i in proto.graph.initializer}
    del graph.node[:]
    graph.node.extend(converted.graph.node)
    graph.initializer.extend(i for i in converted.graph.initializer if i.name not in held)
    others = [o for o in proto.opset_import if o.domain not in DEFAULT_DOMAINS]
    del proto.opset_import[:]
    proto.opset_import.extend([onnx.helper.make_opsetid("", _OPSET), *others])
    name_nodes(graph)
