"""Converters for operators that TVM's importer lacks, refuses, or gets wrong at the edges.

* CumSum and CumProd add up in a logarithmic number of steps (TVM's operator does not compile);
* ReduceMax and ReduceMin of booleans, and of nothing but infinities (TVM starts from the largest
  finite number);
* Pow takes any pair of types, IsInf its attributes, Mod of floats the sign of the divisor;
* RMSNormalization over all axes, LpNormalization, SpaceToDepth by columns and rows first;
* ConvTranspose with ``output_shape``; AffineGrid;
* Squeeze and Unsqueeze take a scalar for a list of one axis, as ONNX's own functions write it.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from tvmx._tvm import relax
from tvmx.frontends._onnx_attributes import array, axis_of, ints, reduced_axes, text
from tvmx.frontends._reason import RuleError
from tvmx.passes._dataflow import const

op = relax.op
_MOST_PLACES = 1 << 24  # of a grid
_LARGEST = float(np.finfo(np.float32).max)


def _cumulative(step: Any, start: int) -> Any:
    def rule(inputs: list[Any], attrs: dict[str, Any], opset: int) -> Any:
        data, shape = inputs[0], list(ints(inputs[0].ty.shape))
        given = array(inputs[1])
        if given is None or given.size != 1:
            raise RuleError("its axis is computed from the network's inputs")
        axis = axis_of({"axis": int(given.reshape(()))}, len(shape), 0)
        size, dtype = shape[axis], str(data.ty.dtype)
        result = op.flip(data, axis) if attrs.get("reverse", 0) else data

        def shifted(value: Any, by: int) -> Any:
            blank = [*shape[:axis], by, *shape[axis + 1 :]]
            kept = op.strided_slice(value, [axis], [0], [size - by])
            return op.concat([op.full(blank, relax.const(start, dtype), dtype), kept], axis)

        if attrs.get("exclusive", 0):
            result = shifted(result, 1) if size > 1 else op.full_like(
                result, relax.const(start, dtype))  # fmt: skip
        distance = 1
        while distance < size:
            result = step(result, shifted(result, distance))
            distance *= 2
        return op.flip(result, axis) if attrs.get("reverse", 0) else result

    return rule


def _extreme(reduce: Any, from_input: int, sign: int) -> Any:
    def rule(inputs: list[Any], attrs: dict[str, Any], opset: int) -> Any:
        data, dtype = inputs[0], str(inputs[0].ty.dtype)
        axes = reduced_axes(inputs, attrs, len(data.ty.shape), opset >= from_input)
        if axes is None or not data.ty.shape:
            return data
        keep = bool(attrs.get("keepdims", 1))
        if dtype == "bool":
            return op.astype(reduce(op.astype(data, "int8"), axes, keep), "bool")
        if dtype != "float32":
            return reduce(data, axes, keep)
        # Halved, every finite number is nearer to 0 than the number TVM starts from.
        half = reduce(op.multiply(data, relax.const(0.5, dtype)), axes, keep)
        found = relax.const(-sign * 0.75 * _LARGEST, dtype)
        none = op.less(half, found) if sign > 0 else op.greater(half, found)
        twice = op.multiply(half, relax.const(2.0, dtype))
        return op.where(none, relax.const(-sign * math.inf, dtype), twice)

    return rule


def power(inputs: list[Any], attrs: dict[str, Any], opset: int) -> Any:
    """Any types; the result has that of the base."""
    base, exponent = inputs[0], inputs[1]
    kinds = [str(value.ty.dtype) for value in (base, exponent)]
    if kinds == ["float32", "float32"]:
        return None
    wide = "float32" if kinds[0] == "float32" else "float64"
    result = op.power(op.astype(base, wide), op.astype(exponent, wide))
    return op.astype(result, kinds[0])


def modulo(inputs: list[Any], attrs: dict[str, Any], opset: int) -> Any:
    """Of floats with the sign of the divisor; other forms are left to TVM."""
    a, b = inputs[0], inputs[1]
    dtype = str(a.ty.dtype)
    if attrs.get("fmod", 0) or not dtype.startswith("float"):
        return None
    rest, zero = op.mod(a, b), relax.const(0, dtype)
    differ = op.logical_xor(op.less(rest, zero), op.less(b, zero))
    differ = op.logical_and(differ, op.not_equal(rest, zero))
    return op.where(differ, op.add(rest, b), rest)


def is_inf(inputs: list[Any], attrs: dict[str, Any], opset: int) -> Any:
    """Of the signs that are asked for."""
    data, dtype = inputs[0], str(inputs[0].ty.dtype)
    signs = [math.inf] * bool(attrs.get("detect_positive", 1))
    signs += [-math.inf] * bool(attrs.get("detect_negative", 1))
    if not signs:
        return op.zeros(ints(data.ty.shape), "bool")
    found = [op.equal(data, relax.const(value, dtype)) for value in signs]
    return op.logical_or(*found) if len(found) == 2 else found[0]


def rms_normalization(inputs: list[Any], attrs: dict[str, Any], opset: int) -> Any:
    """Over all axes; fewer are left to TVM."""
    data, scale = inputs[0], inputs[1]
    rank = len(data.ty.shape)
    if axis_of(attrs, rank, -1) != 0 or str(data.ty.dtype) != "float32":
        return None
    mean = op.mean(op.multiply(data, data), list(range(rank)), True)
    epsilon = relax.const(attrs.get("epsilon", 1e-5), "float32")
    return op.multiply(op.divide(data, op.sqrt(op.add(mean, epsilon))), scale)


def lp_normalization(inputs: list[Any], attrs: dict[str, Any], opset: int) -> Any:
    """Divided by its norm along an axis; what is 0 stays 0."""
    data, dtype = inputs[0], str(inputs[0].ty.dtype)
    axis, p = axis_of(attrs, len(data.ty.shape), -1), attrs.get("p", 2)
    if p not in (1, 2):
        raise RuleError(f"a norm of order {p}")
    norm = op.sum(op.abs(data) if p == 1 else op.multiply(data, data), [axis], True)
    norm = op.sqrt(norm) if p == 2 else norm
    nothing = op.equal(norm, relax.const(0, dtype))
    return op.divide(data, op.where(nothing, relax.const(1, dtype), norm))


def roi_align(inputs: list[Any], attrs: dict[str, Any], opset: int) -> Any:
    """Averages are left to TVM; its maxima are those of interpolated points, not of ONNX's."""
    if text(attrs, "mode", "avg") != "avg":
        raise RuleError(f"mode {text(attrs, 'mode', 'avg')!r}; only averages can be imported")
    return None


def space_to_depth(inputs: list[Any], attrs: dict[str, Any], opset: int) -> Any:
    """Blocks of pixels to channels, the block's place outermost (DCR) or innermost (CRD)."""
    data, block = inputs[0], attrs["blocksize"]
    n, c, h, w = ints(data.ty.shape)
    if block < 1 or h % block or w % block:
        raise RuleError(f"blocks of {block} in an image of {h} x {w}")
    parts = op.reshape(data, [n, c, h // block, block, w // block, block])
    columns_first = text(attrs, "mode", "DCR") == "CRD"
    parts = op.permute_dims(parts, [0, 1, 3, 5, 2, 4] if columns_first else [0, 3, 5, 1, 2, 4])
    return op.reshape(parts, [n, c * block * block, h // block, w // block])


def conv_transpose(inputs: list[Any], attrs: dict[str, Any], opset: int) -> Any:
    """Turn ``output_shape`` into padding in place; the node itself is left to TVM."""
    wanted = attrs.pop("output_shape", None)
    if wanted is None:
        return None
    mode = text(attrs, "auto_pad", "NOTSET")
    attrs.pop("auto_pad", None)
    sizes, kernel = ints(inputs[0].ty.shape)[2:], ints(inputs[1].ty.shape)[2:]
    rank = len(sizes)
    strides, dilations = (attrs.get(name, (1,) * rank) for name in ("strides", "dilations"))
    more = list(attrs.get("output_padding", (0,) * rank))
    before, after = [], []
    for i, out in enumerate(list(wanted)[-rank:]):
        whole = strides[i] * (sizes[i] - 1) + more[i] + (kernel[i] - 1) * dilations[i] + 1
        total = max(whole - out, 0)
        more[i] += max(out - whole, 0)
        small, large = total // 2, total - total // 2
        before.append(small if mode == "SAME_UPPER" else large)
        after.append(large if mode == "SAME_UPPER" else small)
    attrs["pads"], attrs["output_padding"] = (*before, *after), tuple(more)
    return None


def axes_list(inputs: list[Any], attrs: dict[str, Any], opset: int) -> Any:
    """One axis alone becomes a list of one in place; the node itself is left to TVM."""
    given = array(inputs[1]) if opset >= 13 and len(inputs) > 1 else None
    if given is not None and given.ndim == 0:
        inputs[1] = const(given.reshape(1))
    return None


def affine_grid(inputs: list[Any], attrs: dict[str, Any], opset: int) -> Any:
    """The places of the pixels, which are known, times the matrices."""
    theta, given = inputs[0], array(inputs[1])
    if given is None:
        raise RuleError("its size is computed from the network's inputs")
    sizes = [int(size) for size in given.reshape(-1)]
    rank, matrices = len(sizes) - 2, ints(theta.ty.shape)
    usable = min(sizes, default=0) > 0 and math.prod(sizes) <= _MOST_PLACES
    if rank not in (2, 3) or not usable or matrices != (sizes[0], rank, rank + 1):
        raise RuleError(f"a grid of size {sizes} by matrices of shape {matrices}")
    inner = attrs.get("align_corners", 0) == 0
    axes = [(2 * np.arange(n) + 1) / n - 1 if inner else _from_edge_to_edge(n) for n in sizes[2:]]
    # The last axis is x, which the matrices have first.
    places = [*np.meshgrid(*axes, indexing="ij")[::-1], np.ones(sizes[2:])]
    points = np.stack([place.reshape(-1) for place in places], 1).astype(np.float32)
    moved = op.matmul(const(points), op.permute_dims(theta, [0, 2, 1]))
    return op.reshape(moved, [sizes[0], *sizes[2:], rank])


def _from_edge_to_edge(count: int) -> Any:
    return np.linspace(-1, 1, count) if count > 1 else np.zeros(1)


cum_sum, cum_prod = _cumulative(op.add, 0), _cumulative(op.multiply, 1)
reduce_max, reduce_min = _extreme(op.max, 18, 1), _extreme(op.min, 18, -1)
