"""Operators between NHWC convolutions, computed in NCHW so that layers can take them in.

A convolution in NHWC is one in NCHW between two transposes. The second one's source is remembered;
operators that do not care about the order work on it and are transposed after, and transposes
nobody reads are dropped later.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tvmx._tvm import relax
from tvmx.frontends.relay._attrs import Attrs
from tvmx.frontends.relay._emit import Emitter, rank_of
from tvmx.passes._dataflow import array_of, shape_of

_AXIS = (0, 2, 3, 1)
"""NHWC axis -> NCHW axis."""

_ANY_ORDER = {
    "nn.relu", "nn.leaky_relu", "clip", "sigmoid", "tanh", "exp", "sqrt", "abs", "negative", "cast",
    "copy", "annotation.stop_fusion",
}  # fmt: skip
_PAIRS = {"add", "subtract", "multiply", "divide", "maximum", "minimum"}
_QNN_PAIRS = {"qnn.add", "qnn.subtract", "qnn.mul"}
_WITH_AXIS = {"nn.bias_add": 1, "nn.batch_norm": 1, "nn.prelu": 1, "concatenate": 0,
              "qnn.requantize": -1, "qnn.dequantize": -1, "qnn.concatenate": 0}  # fmt: skip
"""Operator -> its default axis."""


def in_order(
    e: Emitter, op: str, args: Sequence[Any], attrs: Attrs
) -> tuple[list[Any], Attrs] | None:
    """Arguments and attributes for NCHW; None where the operator works as it is written."""
    if op in _PAIRS:
        moved = [_operand(e, arg) for arg in args[:2]]
        found = any(_twin(e, arg) is not None for arg in args[:2])
        return (moved, attrs) if found and all(m is not None for m in moved) else None
    if op in _QNN_PAIRS:
        return _quantised_pair(e, args, attrs)
    if not args:
        return None
    first = _twins(e, args[0])
    if first is None:
        return None
    rest = list(args[1:])
    if op in _ANY_ORDER:
        return [first, *rest], attrs
    if op in _WITH_AXIS:
        axis = attrs.integer("axis", _WITH_AXIS[op])
        return ([first, *rest], attrs.replaced("axis", _AXIS[axis])) if -4 <= axis < 4 else None
    if op == "nn.pad":
        widths = attrs.raw("pad_width")
        if not isinstance(widths, tuple) or len(widths) != 4:
            return None
        n, h, w, c = widths
        return [first, *rest], attrs.replaced("pad_width", (n, c, h, w))
    if op == "mean" and attrs.flag("keepdims") and not attrs.flag("exclude"):
        axes = attrs.ints("axis", ())
        if axes and all(-4 <= axis < 4 for axis in axes):
            return [first, *rest], attrs.replaced("axis", tuple(_AXIS[axis] for axis in axes))
    return None


def _quantised_pair(
    e: Emitter, args: Sequence[Any], attrs: Attrs
) -> tuple[list[Any], Attrs] | None:
    """Two tensors of one shape, and their scales and zero points."""
    twins = [_twin(e, arg) for arg in args[:2]]
    if any(twin is None for twin in twins) or shape_of(args[0]) != shape_of(args[1]):
        return None
    for side in ("lhs_axis", "rhs_axis"):
        axis = attrs.integer(side, -1)
        if not -4 <= axis < 4:
            return None
        attrs = attrs.replaced(side, _AXIS[axis])
    return [*twins, *args[2:]], attrs


def back(e: Emitter, result: Any) -> Any:
    """The result in NHWC again; of several results the first is the tensor."""
    if isinstance(result, tuple):
        return (back(e, result[0]), *result[1:])
    return moved(e, e.finish(result))


def moved(e: Emitter, value: Any) -> Any:
    """A value in NCHW brought to NHWC."""
    nhwc = e.emit(relax.op.permute_dims(value, [0, 2, 3, 1]))
    e.nchw[nhwc] = value
    return nhwc


def to_nchw(e: Emitter, value: Any) -> Any:
    """A value in NHWC brought to NCHW."""
    twin = _twin(e, value)
    return twin if twin is not None else e.emit(relax.op.permute_dims(value, [0, 3, 1, 2]))


def _twin(e: Emitter, value: Any) -> Any:
    return e.nchw.get(value) if isinstance(value, relax.Var) else None


def _twins(e: Emitter, value: Any) -> Any:
    """The value in NCHW; a tuple's values all."""
    if not isinstance(value, tuple):
        return _twin(e, value)
    found = tuple(_twin(e, item) for item in value)
    return found if found and all(item is not None for item in found) else None


def _operand(e: Emitter, value: Any) -> Any:
    """A value or a constant as it broadcasts in NCHW, else None."""
    if isinstance(value, tuple):
        return None
    if array_of(value) is None:
        return _twin(e, value)
    rank = rank_of(value)
    if rank == 0 or rank > 4:
        return value if rank == 0 else None
    four = e.emit(relax.op.reshape(value, (*[1] * (4 - rank), *shape_of(value))))
    return e.emit(relax.op.permute_dims(four, [0, 3, 1, 2]))
