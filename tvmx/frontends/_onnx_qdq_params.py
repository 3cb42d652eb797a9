"""Reading the scales and zero points of a quantised operator."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from tvmx.frontends._onnx_qdq_writer import Array, Params, QdqWriter
from tvmx.frontends._onnx_types import type_name

if TYPE_CHECKING:
    import onnx

_CONSTANT_HINT = "fold constants (onnxsim), or give the float model"


def read_params(
    writer: QdqWriter, node: onnx.NodeProto, data: str, scale: str, zero: str = "",
    *, axis: int | None = None, channels: int | None = None,
) -> Params:  # fmt: skip
    """The constant scale and zero point of the tensor ``data``.

    With ``channels`` given there may be one value per channel, along ``axis``.

    Raises:
        ModelError: computed by the network, or not float32.
        CorruptModelError: of a wrong length or type, or a scale that is not above 0.
    """
    scales = _scales(writer, node, scale)
    zeros = _zeros(writer, node, data, zero)
    wanted = "one value" if channels is None else f"one value or {channels}"
    for name, array in ((scale, scales), (zero, zeros)):
        if array is not None and array.size != 1 and array.shape != (channels,):
            what = f"has a scale or zero point, {name!r}, of shape {array.shape}, not {wanted}"
            raise writer.corrupt(node, what)
    length = max(scales.size, 1 if zeros is None else zeros.size)
    shape = () if length == 1 else (length,)
    scale, scales = _shaped(writer, scale, scales, shape)
    if zeros is not None:
        zero, _ = _shaped(writer, zero, zeros, shape)
    return Params(scale, zero, axis if shape else None, scales)


def _scales(writer: QdqWriter, node: onnx.NodeProto, name: str) -> Array:
    scales = writer.array(node, name)
    if scales is None:
        what = f"has a scale, {name!r}, that the network computes; it must be a constant"
        raise writer.refused(node, what, _CONSTANT_HINT)
    if scales.dtype != np.float32:
        what = f"has a scale, {name!r}, of type {scales.dtype}; it must be float32"
        raise writer.refused(node, what, "quantise the float32 model")
    if not (np.isfinite(scales) & (scales > 0)).all():
        bad = scales[~(np.isfinite(scales) & (scales > 0))].flat[0]
        raise writer.corrupt(node, f"has a scale, {name!r}, of {bad}")
    return scales


def _zeros(writer: QdqWriter, node: onnx.NodeProto, data: str, name: str) -> Array | None:
    if not name:
        return None
    zeros = writer.array(node, name)
    if zeros is None:
        what = f"has a zero point, {name!r}, that the network computes; it must be a constant"
        raise writer.refused(node, what, _CONSTANT_HINT)
    if zeros.dtype not in (np.int8, np.uint8):
        raise writer.corrupt(node, f"has a zero point, {name!r}, of type {zeros.dtype}")
    check_type(writer, node, data, name)
    return zeros


def check_type(writer: QdqWriter, node: onnx.NodeProto, data: str, zero: str) -> None:
    """Refuse a zero point of another type than the tensor's."""
    types = writer.types.get(data), writer.types.get(zero)
    if None not in types and types[0] != types[1]:
        names = [type_name(code) for code in types]
        raise writer.corrupt(
            node, f"reads {data!r}, {names[0]}, with a zero point, {zero!r}, of type {names[1]}"
        )


def _shaped(
    writer: QdqWriter, name: str, array: Array, shape: tuple[int, ...]
) -> tuple[str, Array]:
    """A constant of ``shape``: itself, or a new one with its only value."""
    if array.shape == shape:
        return name, array
    full = np.broadcast_to(array.reshape(-1), shape) if shape else array.reshape(())
    return writer.constant(f"{name}_{'vector' if shape else 'scalar'}", full), full
