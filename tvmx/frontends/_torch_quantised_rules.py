"""Converters of PT2E's ``quantized_decomposed`` operators to relax.quantize and dequantize.

What depends on no input is computed by torch itself, to the last bit; of a weight the integers
stay, behind ``relax.dequantize``. A range narrower than its type clips the float value first,
which rounds to the same integers. A concatenation that is quantised has every part quantised
alike, which changes no number and lets the layers before it make int8.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from tvmx._tvm import relax
from tvmx.frontends._reason import RuleError
from tvmx.frontends._torch_quantised import RANGES, is_scale

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class _Params:
    """Scale, zero point, range and type of a value that is computed at run time."""

    scale: float
    zero: int
    low: int
    high: int
    dtype: str

    def quantised(self, builder: Any, data: Any) -> Any:
        if (self.low, self.high) != RANGES[self.dtype]:
            least, most = ((bound - self.zero) * self.scale for bound in (self.low, self.high))
            data = builder.emit(relax.op.clip(data, least, most))
        return builder.emit(relax.op.quantize(data, *self._constants(), out_dtype=self.dtype))

    def dequantised(self, builder: Any, data: Any) -> Any:
        return builder.emit(relax.op.dequantize(data, *self._constants()))

    def _constants(self) -> tuple[Any, Any]:
        return relax.const(np.float32(self.scale)), relax.const(np.array(self.zero, self.dtype))


def quantise(importer: Any, node: Any) -> Any:
    """``quantize_per_tensor`` and ``quantize_per_channel``."""
    known = importer.constant(node)
    if known is not None:
        return relax.const(known)
    params, source, builder = _per_tensor(importer, node), node.args[0], importer.block_builder
    data = importer.env[source]
    if _name(source) == "cat.default" and len(source.users) == 1:
        parts = [
            importer.env[part] if _name(part).startswith("dequantize")
            else params.dequantised(builder, params.quantised(builder, importer.env[part]))
            for part in source.args[0]
        ]  # fmt: skip
        axis = source.args[1] if len(source.args) > 1 else 0
        data = builder.emit(relax.op.concat(parts, axis))
    return params.quantised(builder, data)


def dequantise(importer: Any, node: Any) -> Any:
    """``dequantize_per_tensor`` and ``dequantize_per_channel``."""
    values = importer.constant(node.args[0])
    if values is None:
        data = importer.env[node.args[0]]
        return _per_tensor(importer, node).dequantised(importer.block_builder, data)
    scales, zeros = (_params(importer, arg) for arg in node.args[1:3])
    if not all(map(is_scale, scales.tolist())):
        raise RuleError("a scale is no positive finite number")
    limits = RANGES.get(str(values.dtype))
    if limits is None or not ((limits[0] <= zeros) & (zeros <= limits[1])).all():
        # Nothing a layer computes with as integers: a bias of int32, say.
        return relax.const(importer.constant(node))
    axis = int(node.args[3]) % values.ndim if "per_channel" in node.target.__name__ else 0
    params = relax.const(scales.astype(np.float32)), relax.const(zeros.astype(values.dtype))
    if max(scales.size, zeros.size) == 1:
        params = tuple(relax.const(p.value.numpy().reshape(())) for p in params)
    elif {scales.size, zeros.size} != {values.shape[axis]}:
        raise RuleError(f"{scales.size} scales and {zeros.size} zero points for {values.shape}")
    call = relax.op.dequantize(relax.const(values), *params, axis=axis)
    return importer.block_builder.emit(call)


def _per_tensor(importer: Any, node: Any) -> _Params:
    scale, zero = (_params(importer, arg) for arg in node.args[1:3])
    low, high, dtype = node.args[3:6]
    if scale.size * zero.size != 1 or not is_scale(float(scale[0])):
        raise RuleError(f"the scale {scale.tolist()} is no positive finite number")
    if not low <= int(zero[0]) <= high:
        raise RuleError(f"the zero point {zero.tolist()} is outside of {low} to {high}")
    name = str(dtype).removeprefix("torch.")
    return _Params(float(scale[0]), int(zero[0]), low, high, name)


def _name(node: Any) -> str:
    """The operator of a node, "" if it is an input."""
    return str(getattr(node.target, "__name__", ""))


def _params(importer: Any, argument: Any) -> Array:
    """Scales or zero points, given as a number or a constant tensor; none are a 0."""
    if argument is None:
        return np.zeros(1, np.int64)
    if isinstance(argument, int | float):
        return np.array([argument])
    found: Array = importer.constant(argument).reshape(-1)
    return found
