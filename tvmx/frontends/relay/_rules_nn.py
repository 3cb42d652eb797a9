"""Convolutions, products, normalisations and activations."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from tvmx._tvm import relax
from tvmx.frontends._reason import RuleError
from tvmx.frontends.relay._attrs import Attrs
from tvmx.frontends.relay._emit import Emitter, along, axis_of, rank_of, scalar
from tvmx.passes._dataflow import array_of, const, dtype_of, shape_of

Args = Sequence[Any]
Rule = Callable[[Emitter, Args, Attrs], Any]


def permuted(e: Emitter, value: Any, source: str, target: str) -> Any:
    """``value`` with its dimensions in another order, both given by letters."""
    if sorted(source) != sorted(target) or len(source) != rank_of(value):
        raise RuleError(f"layout {source} of {rank_of(value)} dimensions cannot become {target}")
    if source == target:
        return value
    moved = e.emit(relax.op.permute_dims(value, [source.index(letter) for letter in target]))
    if (source, target) == ("NCHW", "NHWC"):
        e.nchw[moved] = value
    return moved


def in_nchw(e: Emitter, data: Any, attrs: Attrs, run: Callable[[Any], Any], name: str) -> Any:
    """Apply ``run`` to data in NCHW, whatever the layout attribute ``name`` says."""
    layout = attrs.text(name, "NCHW")
    if attrs.text("out_layout") not in ("", layout):
        raise RuleError(f"out_layout {attrs.text('out_layout')} differs from {layout}")
    result = run(permuted(e, data, layout, "NCHW"))
    return permuted(e, e.emit(result), "NCHW", layout) if layout != "NCHW" else result


def convolution(e: Emitter, data: Any, weight: Any, attrs: Attrs, out_dtype: str) -> Any:
    """A 2-d convolution; weights may be in any order of O, I, H and W."""
    groups = attrs.count("groups", 1)
    layout = attrs.text("kernel_layout", "OIHW")
    weight = _depthwise(e, permuted(e, weight, layout, "OIHW"), attrs, groups)
    _as_stated(attrs, shape_of(weight)[0], shape_of(weight)[2:])

    def run(nchw: Any) -> Any:
        return relax.op.nn.conv2d(
            nchw, weight, strides=attrs.pair("strides", 1), padding=attrs.padding(),
            dilation=attrs.pair("dilation", 1), groups=groups, out_dtype=out_dtype or None,
        )  # fmt: skip

    return in_nchw(e, data, attrs, run, "data_layout")


def _as_stated(attrs: Attrs, channels: int, kernel: Sequence[int]) -> None:
    """Raises RuleError where attributes say something else about the weights than their shape."""
    if attrs.integer("channels", channels) != channels:
        raise RuleError(f"channels is {attrs.integer('channels')}, the weights have {channels}")
    if attrs.has("kernel_size") and attrs.pair("kernel_size", 1) != tuple(kernel):
        sizes = attrs.pair("kernel_size", 1)
        raise RuleError(f"kernel_size is {sizes}, the weights have {tuple(kernel)}")


def _depthwise(e: Emitter, weight: Any, attrs: Attrs, groups: int) -> Any:
    """HWOI weights of depthwise convolutions have the channel multiplier where I should be."""
    out, inner, height, width = shape_of(weight)
    channels = attrs.integer("channels", out)
    if groups == out and channels == out * inner and inner > 1:
        return e.emit(relax.op.reshape(weight, (channels, 1, height, width)))
    return weight


def _conv2d(e: Emitter, args: Args, attrs: Attrs) -> Any:
    return convolution(e, args[0], args[1], attrs, attrs.text("out_dtype"))


def transposed_weights(e: Emitter, data: Any, weight: Any, attrs: Attrs) -> Any:
    """Weights as (in, out, height, width), which TVM before 0.9 calls OIHW."""
    layout = attrs.text("kernel_layout", "OIHW")
    channel = attrs.text("data_layout", "NCHW").find("C")
    if layout == "OIHW" and shape_of(weight)[0] == shape_of(data)[channel]:
        layout = "IOHW"
    weight = permuted(e, weight, layout, "IOHW")
    _as_stated(attrs, shape_of(weight)[1] * attrs.count("groups", 1), shape_of(weight)[2:])
    return weight


def transposed_convolution(e: Emitter, data: Any, weight: Any, attrs: Attrs, dtype: str) -> Any:
    """A 2-d transposed convolution."""
    weight = transposed_weights(e, data, weight, attrs)

    def run(nchw: Any) -> Any:
        return relax.op.nn.conv2d_transpose(
            nchw, weight, strides=attrs.pair("strides", 1), padding=attrs.padding(),
            output_padding=attrs.pair("output_padding", 0, least=0),
            dilation=attrs.pair("dilation", 1), groups=attrs.count("groups", 1),
            out_dtype=dtype or None,
        )  # fmt: skip

    return in_nchw(e, data, attrs, run, "data_layout")


def _conv2d_transpose(e: Emitter, args: Args, attrs: Attrs) -> Any:
    return transposed_convolution(e, args[0], args[1], attrs, attrs.text("out_dtype"))


def last_two_swapped(e: Emitter, value: Any) -> Any:
    """A matrix, or a stack of them, transposed."""
    rank = rank_of(value)
    if rank < 2:
        raise RuleError(f"a matrix of {rank} dimensions")
    return e.emit(relax.op.permute_dims(value, [*range(rank - 2), rank - 1, rank - 2]))


def dense(e: Emitter, data: Any, weight: Any, attrs: Attrs, out_dtype: str) -> Any:
    """``data`` times the transposed ``weight`` (out, in)."""
    swapped = last_two_swapped(e, weight)
    units = shape_of(swapped)[-1]
    if attrs.integer("units", units) != units:
        raise RuleError(f"units is {attrs.integer('units')}, the weights have {units}")
    return relax.op.matmul(data, swapped, out_dtype or None)


def _dense(e: Emitter, args: Args, attrs: Attrs) -> Any:
    return dense(e, args[0], args[1], attrs, attrs.text("out_dtype"))


def _matmul(e: Emitter, args: Args, attrs: Attrs) -> Any:
    left = last_two_swapped(e, args[0]) if attrs.flag("transpose_a") else args[0]
    right = last_two_swapped(e, args[1]) if attrs.flag("transpose_b") else args[1]
    return relax.op.matmul(left, right, attrs.text("out_dtype") or None)


def _bias_add(e: Emitter, args: Args, attrs: Attrs) -> Any:
    rank = rank_of(args[0])
    bias = along(args[1], axis_of(attrs.integer("axis", 1), rank), rank, e)
    return relax.op.add(args[0], bias)


def _filled(vector: Any, value: float) -> Any:
    return const(np.full(shape_of(vector), value, dtype_of(vector)))


def _affine(args: Args, attrs: Attrs) -> tuple[Any, Any]:
    """Scale and shift; Relay leaves out what a flag switches off, whatever is passed."""
    gamma = args[1] if attrs.flag("scale", True) else _filled(args[1], 1)
    beta = args[2] if attrs.flag("center", True) else _filled(args[2], 0)
    return gamma, beta


def _batch_norm(e: Emitter, args: Args, attrs: Attrs) -> Any:
    gamma, beta = _affine(args, attrs)
    axis = axis_of(attrs.integer("axis", 1), rank_of(args[0]))
    call = relax.op.nn.batch_norm(
        args[0], gamma, beta, args[3], args[4], axis, attrs.real("epsilon", 1e-5), training=False
    )
    return (*e.items(call, 1), args[3], args[4])


def _layer_norm(e: Emitter, args: Args, attrs: Attrs) -> Any:
    gamma, beta = _affine(args, attrs)
    axis = axis_of(attrs.integer("axis", -1), rank_of(args[0]))
    return relax.op.nn.layer_norm(args[0], gamma, beta, axis, attrs.real("epsilon", 1e-5))


def _instance_norm(e: Emitter, args: Args, attrs: Attrs) -> Any:
    gamma, beta = _affine(args, attrs)
    rank = rank_of(args[0])
    axis = axis_of(attrs.integer("axis", 1), rank)
    axes = [a for a in range(1, rank) if a != axis]
    return relax.op.nn.instance_norm(args[0], gamma, beta, axis, axes, attrs.real("epsilon", 1e-5))


def _group_norm(e: Emitter, args: Args, attrs: Attrs) -> Any:
    gamma, beta = _affine(args, attrs)
    rank = rank_of(args[0])
    axis, groups = axis_of(attrs.integer("axis", 1), rank), attrs.count("num_groups", 1)
    axes = [a for a in range(1, rank) if a != axis]
    epsilon = attrs.real("epsilon", 1e-5)
    return relax.op.nn.group_norm(args[0], gamma, beta, groups, axis, axes, epsilon)


def _lrn(e: Emitter, args: Args, attrs: Attrs) -> Any:
    """As the ONNX importer of TVM writes it, which layer extraction recognises."""
    data, size = args[0], attrs.count("size", 5)
    if rank_of(data) != 4 or size % 2 == 0:
        raise RuleError(f"a window of {size} over {rank_of(data)} dimensions")
    axis = axis_of(attrs.integer("axis", 1), 4)
    order = "NCHW" if axis == 1 else "NHWC" if axis == 3 else ""
    if not order:
        raise RuleError(f"axis {axis} is not the channels")
    nchw = permuted(e, data, order, "NCHW")
    squares = e.emit(relax.op.expand_dims(e.emit(relax.op.multiply(nchw, nchw)), 1))
    pad = size // 2
    means = relax.op.nn.avg_pool3d(
        squares, pool_size=(size, 1, 1), strides=(1, 1, 1), padding=[pad, 0, 0, pad, 0, 0],
        layout="NCDHW", count_include_pad=True,
    )  # fmt: skip
    means = e.emit(relax.op.squeeze(e.emit(means), axis=1))
    scaled = e.emit(relax.op.multiply(means, scalar(attrs.real("alpha", 1e-4), data)))
    base = e.emit(relax.op.add(scaled, scalar(attrs.real("bias", 2), data)))
    power = e.emit(relax.op.power(base, scalar(attrs.real("beta", 0.75), data)))
    result = relax.op.divide(nchw, power)
    return result if order == "NCHW" else permuted(e, e.emit(result), "NCHW", order)


def _l2_normalize(e: Emitter, args: Args, attrs: Attrs) -> Any:
    data = args[0]
    axes = [axis_of(axis, rank_of(data)) for axis in attrs.ints("axis", ())] or None
    total = e.emit(relax.op.sum(e.emit(relax.op.multiply(data, data)), axes, keepdims=True))
    floor = e.emit(relax.op.maximum(total, scalar(attrs.real("eps", 0.0), data)))
    return relax.op.divide(data, e.emit(relax.op.sqrt(floor)))


def _prelu(e: Emitter, args: Args, attrs: Attrs) -> Any:
    rank = rank_of(args[0])
    slope = along(args[1], axis_of(attrs.integer("axis", 1), rank), rank, e)
    below = e.emit(relax.op.minimum(args[0], scalar(0, args[0])))
    above = e.emit(relax.op.maximum(args[0], scalar(0, args[0])))
    return relax.op.add(above, e.emit(relax.op.multiply(below, slope)))


def _leaky_relu(e: Emitter, args: Args, attrs: Attrs) -> Any:
    return relax.op.nn.leakyrelu(args[0], attrs.real("alpha", 0.25))


def _softmax(op: Any) -> Rule:
    def rule(e: Emitter, args: Args, attrs: Attrs) -> Any:
        return op(args[0], axis_of(attrs.integer("axis", -1), rank_of(args[0])))

    return rule


def _dropout(e: Emitter, args: Args, attrs: Attrs) -> Any:
    return (args[0],)


def _clip(e: Emitter, args: Args, attrs: Attrs) -> Any:
    data, dtype = args[0], dtype_of(args[0])
    low, high = attrs.real("a_min", 0), attrs.real("a_max", 0)
    if low > high:
        raise RuleError(f"a_min {low} is above a_max {high}")
    if dtype.startswith("float"):
        return relax.op.clip(data, relax.prim_value(low), relax.prim_value(high))
    if dtype == "bool":
        raise RuleError("truth values cannot be clipped")
    limits = np.iinfo(dtype)
    if low <= limits.min and high >= limits.max:
        return data
    bounds = (int(min(max(b, limits.min), limits.max)) for b in (low, high))
    floor, ceiling = (scalar(bound, data) for bound in bounds)
    return relax.op.minimum(e.emit(relax.op.maximum(data, floor)), ceiling)


def constant_array(value: Any, what: str) -> Any:
    """The array of a constant argument. Raises RuleError where it is computed."""
    array = array_of(value)
    if array is None:
        raise RuleError(f"{what} is computed, not constant")
    return array


RULES: dict[str, Rule] = {
    "nn.conv2d": _conv2d,
    "nn.conv2d_transpose": _conv2d_transpose,
    "nn.dense": _dense,
    "nn.matmul": _matmul,
    "nn.batch_matmul": _matmul,
    "nn.bias_add": _bias_add,
    "nn.batch_norm": _batch_norm,
    "nn.layer_norm": _layer_norm,
    "nn.instance_norm": _instance_norm,
    "nn.group_norm": _group_norm,
    "nn.lrn": _lrn,
    "nn.l2_normalize": _l2_normalize,
    "nn.prelu": _prelu,
    "nn.leaky_relu": _leaky_relu,
    "nn.softmax": _softmax(relax.op.nn.softmax),
    "nn.log_softmax": _softmax(relax.op.nn.log_softmax),
    "nn.dropout": _dropout,
    "clip": _clip,
}
