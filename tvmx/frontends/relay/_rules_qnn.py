"""The QNN dialect as exact integer arithmetic, with Relay's fixed-point multipliers.

A quantised value q stands for ``scale * (q - zero_point)``. Convolutions and products subtract
the zero points in int32, so that zeros pad what stands for zero. Rescaling multiplies by
``input scale / output scale`` as a 31-bit integer and a shift, in int64; halves go up
(``UPWARD``, the default) or away from zero (``TONEAREST``).

All of it is plain Relax operators here, exact whoever runs them. Layer extraction recognises the
convolutions and products whose sums become int8 again (``tvmx.passes``), and what is between them.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from tvmx._tvm import relax
from tvmx.frontends._reason import RuleError
from tvmx.frontends.relay._attrs import Attrs
from tvmx.frontends.relay._emit import Emitter, axis_of, rank_of, scalar
from tvmx.frontends.relay._graph import Array
from tvmx.frontends.relay._nhwc import moved, to_nchw
from tvmx.frontends.relay._rules_elementwise import rounded
from tvmx.frontends.relay._rules_nn import (
    Args,
    Rule,
    constant_array,
    convolution,
    dense,
    transposed_convolution,
    transposed_weights,
)
from tvmx.frontends.relay._rules_shape import cast
from tvmx.frontends.relay._rules_transposed import spread, turned
from tvmx.numerics import FIXED_BITS, fixed_point
from tvmx.passes._dataflow import const, dtype_of, shape_of

_INTEGERS = ("int8", "uint8", "int16", "uint16", "int32")


def _scales(value: Any, what: str) -> Array:
    scales: Array = constant_array(value, what).reshape(-1).astype(np.float32)
    if not scales.size or not (np.isfinite(scales) & (scales > 0)).all():
        raise RuleError(f"{what} is not positive")
    return scales


def _zero_points(value: Any, what: str) -> Array:
    points: Array = constant_array(value, what).reshape(-1)
    if not points.size or not np.issubdtype(points.dtype, np.integer):
        raise RuleError(f"{what} is no whole number")
    return points.astype(np.int64)


def _vector(values: Array, axis: int, rank: int) -> Any:
    """A constant that broadcasts along ``axis``; one value is for all."""
    shape = [1] * rank
    if values.size > 1:
        shape[axis] = values.size
    return const(values.reshape(shape))


def _one(values: Array, what: str) -> Any:
    if values.size != 1:
        raise RuleError(f"{what} differs between channels")
    return values.reshape(-1)[0]


def _axis(attrs: Attrs, rank: int) -> int:
    return axis_of(attrs.integer("axis", -1), rank) if rank else 0


def _integer_type(name: str) -> str:
    if name not in _INTEGERS:
        raise RuleError(f"type {name!r} is no quantised type")
    return name


def _clipped(e: Emitter, value: Any, dtype: str) -> Any:
    limits = np.iinfo(dtype)
    if dtype != "int32":
        value = e.emit(relax.op.maximum(value, scalar(limits.min, value)))
        value = e.emit(relax.op.minimum(value, scalar(limits.max, value)))
    return relax.op.astype(value, dtype)


def _shifted(e: Emitter, value: Any, points: Array, axis: int, dtype: str) -> Any:
    """``value - zero point`` in a wider dtype."""
    wide = e.emit(cast(value, dtype))
    if not points.any():
        return wide
    zero = _vector(points.astype(dtype), axis, rank_of(value))
    return e.emit(relax.op.subtract(wide, zero))


def _rescaled(e: Emitter, value: Any, factors: Array, axis: int, rounding: str) -> Any:
    """int64 ``value`` times ``factors``, rounded."""
    if rounding not in ("UPWARD", "TONEAREST"):
        raise RuleError(f"rounding {rounding!r}")
    pairs = [fixed_point(float(factor)) for factor in factors]
    if any(not 0 <= shift <= 2 * FIXED_BITS for _, shift in pairs):
        raise RuleError("a ratio of scales is beyond 2**31")
    rank = rank_of(value)

    def vector(values: list[int]) -> Any:
        return _vector(np.array(values, np.int64), axis, rank)

    left = [max(FIXED_BITS - shift, 0) for _, shift in pairs]
    right = [max(shift, FIXED_BITS) for _, shift in pairs]
    if any(left):
        value = e.emit(relax.op.left_shift(value, vector(left)))
    product = e.emit(relax.op.multiply(value, vector([whole for whole, _ in pairs])))
    half = vector([1 << (shift - 1) for shift in right])
    if rounding == "TONEAREST":
        below = e.emit(relax.op.astype(e.emit(relax.op.less(product, scalar(0, product))), "int64"))
        half = e.emit(relax.op.subtract(half, below))
    total = e.emit(relax.op.add(product, half))
    return e.emit(relax.op.right_shift(total, vector(right)))


def requantized(
    e: Emitter, value: Any, source: tuple[Array, Array], target: tuple[Array, Array],
    dtype: str, axis: int = 0, rounding: str = "UPWARD",
) -> Any:  # fmt: skip
    """``value`` of one scale and zero point in another, clipped to ``dtype``."""
    scales, points = source
    out_scale, out_point = _one(target[0], "output scale"), _one(target[1], "output zero point")
    if scales.size == 1 and scales[0] == out_scale and (points == out_point).all():
        if dtype_of(value) == dtype:
            return value
        return _clipped(e, e.emit(cast(value, "int32")), dtype)
    wide = _shifted(e, value, points, axis, "int64")
    if scales.size > 1 or scales[0] != out_scale:
        factors = scales.astype(np.float64) / np.float64(out_scale)
        wide = _rescaled(e, wide, factors, axis, rounding)
    if out_point:
        wide = e.emit(relax.op.add(wide, scalar(int(out_point), wide)))
    return _clipped(e, wide, dtype)


def _rounding(attrs: Attrs) -> str:
    if attrs.text("compute_dtype", "None") not in ("None", "", "int64", "int32"):
        raise RuleError(f"compute_dtype {attrs.text('compute_dtype')}")
    rounding = attrs.text("rounding", "None")
    return "UPWARD" if rounding in ("None", "") else rounding


def _requantize(e: Emitter, args: Args, attrs: Attrs) -> Any:
    source = _scales(args[1], "input scale"), _zero_points(args[2], "input zero point")
    target = _scales(args[3], "output scale"), _zero_points(args[4], "output zero point")
    dtype = _integer_type(attrs.text("out_dtype", "int8") or "int8")
    axis = _axis(attrs, rank_of(args[0]))
    return requantized(e, args[0], source, target, dtype, axis, _rounding(attrs))


def _quantize(e: Emitter, args: Args, attrs: Attrs) -> Any:
    rank = rank_of(args[0])
    axis, dtype = _axis(attrs, rank), _integer_type(attrs.text("out_dtype", "int8") or "int8")
    scale = _vector(_scales(args[1], "output scale").astype(np.float64), axis, rank)
    points = _zero_points(args[2], "output zero point").astype(np.float32)
    # In float64, and rounded to float32 again this is the quotient in float32, to the bit; a
    # division in float32 would become a multiplication by the inverse.
    wide = e.emit(relax.op.divide(e.emit(cast(args[0], "float64")), scale))
    ratio = e.emit(relax.op.astype(wide, "float32"))
    total = e.emit(relax.op.add(e.emit(rounded(e, ratio)), _vector(points, axis, rank)))
    limits = np.iinfo(dtype)
    low, high = (relax.prim_value(float(v)) for v in (limits.min, limits.max))
    return relax.op.astype(e.emit(relax.op.clip(total, low, high)), dtype)


def _dequantize(e: Emitter, args: Args, attrs: Attrs) -> Any:
    rank = rank_of(args[0])
    axis = _axis(attrs, rank)
    out = attrs.text("out_dtype", "float32") or "float32"
    if out != "float32":
        raise RuleError(f"out_dtype {out}")
    points = _zero_points(args[2], "input zero point")
    real = e.emit(cast(_shifted(e, args[0], points, axis, "int32"), "float32"))
    return relax.op.multiply(real, _vector(_scales(args[1], "input scale"), axis, rank))


def _accumulator(attrs: Attrs) -> None:
    if attrs.text("out_dtype", "int32") not in ("", "int32"):
        raise RuleError(f"out_dtype {attrs.text('out_dtype')}")


def _channel(attrs: Attrs, name: str, default: str, letter: str) -> int:
    return max(attrs.text(name, default).find(letter), 0)


def _data(e: Emitter, args: Args, attrs: Attrs) -> Any:
    """The data of a convolution less its zero point, which is taken off in NCHW."""
    points, layout = _zero_points(args[2], "input zero point"), attrs.text("data_layout", "NCHW")
    if layout == "NHWC" and rank_of(args[0]) == 4:
        return moved(e, _shifted(e, to_nchw(e, args[0]), points, 1, "int32"))
    return _shifted(e, args[0], points, _channel(attrs, "data_layout", "NCHW", "C"), "int32")


def _conv2d(e: Emitter, args: Args, attrs: Attrs) -> Any:
    _accumulator(attrs)
    output = _channel(attrs, "kernel_layout", "OIHW", "O")
    data = _data(e, args, attrs)
    weight = _shifted(e, args[1], _zero_points(args[3], "kernel zero point"), output, "int32")
    return convolution(e, data, weight, attrs, "int32")


def _conv2d_transpose(e: Emitter, args: Args, attrs: Attrs) -> Any:
    _accumulator(attrs)
    points = _one(_zero_points(args[3], "kernel zero point"), "kernel zero point")
    weight = _shifted(e, args[1], np.array([points]), 0, "int32")
    zeros, layout = _zero_points(args[2], "input zero point"), attrs.text("data_layout", "NCHW")
    limits = np.iinfo(_integer_type(dtype_of(args[0])))
    one = zeros.size == 1 and limits.min <= zeros[0] <= limits.max
    if not one or layout not in ("NCHW", "NHWC") or rank_of(args[0]) != 4:
        return transposed_convolution(e, _data(e, args, attrs), weight, attrs, "int32")
    weight = transposed_weights(e, args[0], weight, attrs)
    kernel, groups = shape_of(weight)[2:], attrs.count("groups", 1)
    data = args[0] if layout == "NCHW" else to_nchw(e, args[0])
    data, padding = spread(e, data, int(zeros[0]), attrs, (kernel[0], kernel[1]))
    sums = relax.op.nn.conv2d(
        _shifted(e, data, zeros, 1, "int32"), turned(e, weight, groups), padding=padding,
        dilation=attrs.pair("dilation", 1), groups=groups, out_dtype="int32",
    )  # fmt: skip
    return sums if layout == "NCHW" else moved(e, e.emit(sums))


def _dense(e: Emitter, args: Args, attrs: Attrs) -> Any:
    _accumulator(attrs)
    data = _shifted(e, args[0], _zero_points(args[2], "input zero point"), 1, "int32")
    weight = _shifted(e, args[1], _zero_points(args[3], "kernel zero point"), 0, "int32")
    return dense(e, data, weight, attrs, "int32")


def _operands(args: Args) -> tuple[tuple[Array, Array], tuple[Array, Array], tuple[Array, Array]]:
    names = ("left", "right", "output")
    left, right, output = (
        (_scales(args[i], f"{name} scale"), _zero_points(args[i + 1], f"{name} zero point"))
        for name, i in zip(names, (2, 4, 6), strict=True)
    )
    return left, right, output


def _sum(negative: bool) -> Rule:
    """Both operands at the output's scale and zero point in int32, added, the zero point once."""

    def rule(e: Emitter, args: Args, attrs: Attrs) -> Any:
        left, right, output = _operands(args)
        ranks = rank_of(args[0]), rank_of(args[1])
        axes = [
            axis_of(attrs.integer(f"{side}_axis", -1), rank) if rank else 0
            for side, rank in zip(("lhs", "rhs"), ranks, strict=True)
        ]
        first = e.emit(requantized(e, args[0], left, output, "int32", axes[0]))
        second = e.emit(requantized(e, args[1], right, output, "int32", axes[1]))
        zero = int(_one(output[1], "output zero point"))
        total = e.emit((relax.op.subtract if negative else relax.op.add)(first, second))
        if zero:
            total = e.emit(relax.op.add(total, scalar(zero if negative else -zero, total)))
        return _clipped(e, total, _integer_type(dtype_of(args[0])))

    return rule


def _mul(e: Emitter, args: Args, attrs: Attrs) -> Any:
    left, right, output = _operands(args)
    factors = [
        _shifted(e, args[i], np.array([_one(side[1], "zero point")]), 0, "int32")
        for i, side in enumerate((left, right))
    ]
    product = e.emit(relax.op.multiply(*factors))
    scale = np.array([_one(left[0], "left scale") * _one(right[0], "right scale")], np.float32)
    source = scale, np.zeros(1, np.int64)
    return requantized(e, product, source, output, _integer_type(dtype_of(args[0])))


def _concatenate(e: Emitter, args: Args, attrs: Attrs) -> Any:
    if not all(isinstance(arg, tuple) for arg in args[:3]):
        raise RuleError("it takes tuples")
    data, scales, points = args[:3]
    if not data or not len(data) == len(scales) == len(points):
        raise RuleError("every tensor has a scale and a zero point")
    output = _scales(args[3], "output scale"), _zero_points(args[4], "output zero point")
    parts = []
    for value, scale, point in zip(data, scales, points, strict=True):
        source = _scales(scale, "input scale"), _zero_points(point, "input zero point")
        dtype = _integer_type(dtype_of(value))
        parts.append(e.emit(requantized(e, value, source, output, dtype)))
    return relax.op.concat(parts, axis_of(attrs.integer("axis", 0), rank_of(parts[0])))


RULES: dict[str, Rule] = {
    "qnn.quantize": _quantize,
    "qnn.dequantize": _dequantize,
    "qnn.requantize": _requantize,
    "qnn.conv2d": _conv2d,
    "qnn.conv2d_transpose": _conv2d_transpose,
    "qnn.dense": _dense,
    "qnn.add": _sum(negative=False),
    "qnn.subtract": _sum(negative=True),
    "qnn.mul": _mul,
    "qnn.concatenate": _concatenate,
}
