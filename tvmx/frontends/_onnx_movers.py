"""Operators that only move elements, on int8 tensors whose scale is known.

They give the same numbers on dequantised values: dequantising keeps the order, and
quantising with the same scale and zero point undoes it. So written, a whole network is
float operators between quantised values, and the pooling is a candidate for an int8 kernel.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from tvmx.frontends._onnx_ops import DEFAULT_DOMAINS
from tvmx.frontends._onnx_qdq_writer import Params, QdqWriter
from tvmx.frontends._onnx_types import MOVERS

if TYPE_CHECKING:
    import onnx


def move(writer: QdqWriter, node: onnx.NodeProto) -> bool:
    """Write a moving operator on floats; False where it is none or the scale is not known."""
    known = node.op_type in MOVERS and node.domain in DEFAULT_DOMAINS and len(node.input) > 0
    params = writer.params.get(node.input[0]) if known else None
    if params is None or not all(node.output) or (node.op_type != "Split" and len(node.output) > 1):
        return False
    inputs = list(node.input)
    if node.op_type == "Pad":
        fill = _pad_value(writer, node, params)
        if fill is None:
            return False
        inputs[2:3] = [fill]
    inputs[0] = writer.dequantise(inputs[0], params)
    outputs = [writer.fresh(f"{output}_float") for output in node.output]
    writer.emit_like(node, inputs, outputs)
    for value, output in zip(outputs, node.output, strict=True):
        writer.quantise_to(node, output, value, params, like=node.input[0])
    return True


def _pad_value(writer: QdqWriter, node: onnx.NodeProto, params: Params) -> str | None:
    """Weight that holds what a Pad fills in, as a float; None if the network computes it."""
    if len(node.input) < 2 or params.values is None:
        return None
    zero = writer.array(node, params.zero)
    given = writer.array(node, node.input[2]) if len(node.input) > 2 and node.input[2] else 0
    if given is None or zero is None:
        return None
    steps = np.float32(np.asarray(given).reshape(())) - np.float32(zero)
    return writer.constant(f"{node.name}_value", np.asarray(steps * params.values, np.float32))


def note_params(writer: QdqWriter, node: onnx.NodeProto) -> None:
    """Remember what a tensor was quantised with, and which tensor was dequantised already."""
    quantises = node.op_type == "QuantizeLinear"
    if not (quantises or node.op_type == "DequantizeLinear") or len(node.input) < 3:
        return
    data, scale, zero = node.input[:3]
    if writer.shape(scale) == writer.shape(zero) == ():
        params = Params(scale, zero, None, writer.array(node, scale))
        if quantises:
            writer.params[node.output[0]] = params
        else:
            writer.note_dequantised(data, params, node.output[0])
