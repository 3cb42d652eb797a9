"""Converters of operators with indices: none reads or writes outside a tensor.

Constant indices are checked when the network is imported; those that a network computes are
clipped, where ONNX leaves open what happens. TVM's converters trust both. TopK ranks by comparing
every pair: TVM's sorts by a function that bundles do not have. ScatterElements compares places with
indices: TVM's takes them for as many as the data in the other axes.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from tvmx._tvm import relax
from tvmx.frontends._onnx_attributes import array, axis_of, elements, ints, text
from tvmx.frontends._reason import RuleError

op = relax.op
_MOST_PAIRS = 1 << 28
"""Comparisons of an operator that compares every pair."""


def _bounded(indices: Any, extents: Any) -> Any:
    """Indices from 0 on; ``extents`` broadcasts against them. Raises RuleError."""
    limits, value = np.asarray(extents, np.int64), array(indices)
    if value is not None:
        value = value.astype(np.int64)
        if not ((value >= -limits) & (value < limits)).all():
            raise RuleError(f"an index is outside {limits.reshape(-1).tolist()}")
        return relax.const(np.where(value < 0, value + limits, value), "int64")
    at, limit = op.astype(indices, "int64"), relax.const(limits, "int64")
    at = op.where(op.less(at, _int(0)), op.add(at, limit), at)
    last = relax.const(limits - 1, "int64")
    return op.minimum(op.maximum(at, _int(0)), last)


def _int(value: int) -> Any:
    return relax.const(value, "int64")


def gather(inputs: list[Any], attrs: dict[str, Any], opset: int) -> Any:
    """Rows of an axis."""
    data = inputs[0]
    if not isinstance(data.ty, relax.TensorType):
        return None
    axis = axis_of(attrs, len(data.ty.shape), 0)
    return op.take(data, _bounded(inputs[1], int(data.ty.shape[axis])), axis, mode="clip")


def gather_elements(inputs: list[Any], attrs: dict[str, Any], opset: int) -> Any:
    """One element of an axis for each index."""
    data = inputs[0]
    shape, counts = ints(data.ty.shape), ints(inputs[1].ty.shape)
    axis = axis_of(attrs, len(shape), 0)
    if len(counts) != len(shape) or any(
        c > n for a, (c, n) in enumerate(zip(counts, shape, strict=True)) if a != axis
    ):
        raise RuleError(f"indices {counts} into {shape}")
    return op.gather_elements(data, _bounded(inputs[1], shape[axis]), axis)


def gather_nd(inputs: list[Any], attrs: dict[str, Any], opset: int) -> Any:
    """Slices at coordinates."""
    data, batch = inputs[0], attrs.get("batch_dims", 0)
    extents = _coordinates(ints(data.ty.shape), ints(inputs[1].ty.shape), batch)
    return op.gather_nd(data, _bounded(inputs[1], extents), batch)


def scatter_nd(inputs: list[Any], attrs: dict[str, Any], opset: int) -> Any:
    """Slices put, or added and so on, at coordinates."""
    shape, counts = ints(inputs[0].ty.shape), ints(inputs[1].ty.shape)
    extents = _coordinates(shape, counts, 0)
    if ints(inputs[2].ty.shape) != (*counts[:-1], *shape[counts[-1] :]):
        raise RuleError(f"updates {ints(inputs[2].ty.shape)} at indices {counts} into {shape}")
    reduction = text(attrs, "reduction", "none")
    how = {"none": "update"}.get(reduction, reduction)
    return op.scatter_nd(inputs[0], _bounded(inputs[1], extents), inputs[2], how)


def _coordinates(shape: tuple[int, ...], counts: tuple[int, ...], batch: int) -> tuple[int, ...]:
    """Sizes of the axes that coordinates of this shape stand for."""
    depth = counts[-1] if counts else 0
    if not 0 < depth <= len(shape) - batch or counts[:batch] != shape[:batch] or batch < 0:
        raise RuleError(f"indices {counts} into {shape}")
    return shape[batch : batch + depth]


def slice_attributes(inputs: list[Any], attrs: dict[str, Any], opset: int) -> Any:
    """Attributes of opsets before 10 as inputs, in place; the node itself is left to TVM."""
    if opset < 10:
        starts, ends = (np.array(attrs[name], np.int64) for name in ("starts", "ends"))
        axes = np.array(attrs.get("axes", range(len(starts))), np.int64)
        inputs[1:] = [relax.const(value, "int64") for value in (starts, ends, axes)]


def one_hot(inputs: list[Any], attrs: dict[str, Any], opset: int) -> Any:
    """By comparing: negative indices count from the end, others outside give nothing."""
    indices, depth, values = inputs[0], array(inputs[1]), inputs[2]
    if depth is None or depth.size != 1:
        raise RuleError("its depth is computed from the network's inputs")
    shape, size = ints(indices.ty.shape), int(depth.reshape(()))
    if size < 1 or math.prod(shape) * size > _MOST_PAIRS:
        raise RuleError(f"a depth of {size}")
    axis = axis_of(attrs, len(shape) + 1, -1)
    at = op.expand_dims(op.astype(indices, "int64"), [axis])
    at = op.where(op.less(at, _int(0)), op.add(at, _int(size)), at)
    places = np.arange(size).reshape([-1 if a == axis else 1 for a in range(len(shape) + 1)])
    off, on = (op.take(values, _int(i), 0, mode="clip") for i in (0, 1))
    return op.where(op.equal(at, relax.const(places, "int64")), on, off)


def top_k(inputs: list[Any], attrs: dict[str, Any], opset: int) -> Any:
    """The k largest or smallest in order, and where they were; of equal ones the first."""
    data, shape = inputs[0], ints(inputs[0].ty.shape)
    rank = len(shape)
    axis = axis_of(attrs, rank, -1)
    given = np.array(attrs["k"]) if opset < 10 else array(inputs[1])
    if given is None or given.size != 1:
        raise RuleError("its k is computed from the network's inputs")
    count, size = int(given.reshape(())), shape[axis]
    if not 0 < count <= size or elements(shape) * size > _MOST_PAIRS:
        raise RuleError(f"the first {count} of {size} elements")
    order = [*(a for a in range(rank) if a != axis), axis]
    rows = op.permute_dims(data, order) if axis != rank - 1 else data
    here, other = op.expand_dims(rows, [rank]), op.expand_dims(rows, [rank - 1])
    before = op.greater(other, here) if attrs.get("largest", 1) else op.less(other, here)
    at = np.arange(size, dtype=np.int32)
    earlier = op.less(relax.const(at), relax.const(at[:, None]))
    earlier = op.logical_and(op.equal(other, here), earlier)
    place = op.sum(op.astype(op.logical_or(before, earlier), "int32"), [rank])
    wanted = relax.const(np.arange(count, dtype=np.int32)[:, None])
    chosen = op.equal(op.expand_dims(place, [rank - 1]), wanted)
    indices = op.sum(op.where(chosen, relax.const(at), relax.const(0, "int32")), [rank])
    # Nothing is in order with NaN: places may be taken twice.
    indices = op.astype(op.minimum(indices, relax.const(size - 1, "int32")), "int64")
    values = op.gather_elements(rows, indices, rank - 1)
    if axis != rank - 1:
        back = [*range(axis), rank - 1, *range(axis, rank - 1)]
        values, indices = op.permute_dims(values, back), op.permute_dims(indices, back)
    return relax.Tuple([values, indices])


def scatter_elements(inputs: list[Any], attrs: dict[str, Any], opset: int) -> Any:
    """Of several updates of one element the last one holds, unless they are reduced."""
    data, indices, updates = inputs
    shape, counts = ints(data.ty.shape), list(ints(indices.ty.shape))
    dtype, axis = str(data.ty.dtype), axis_of(attrs, len(shape), 0)
    size, rank = shape[axis], len(shape)
    if len(counts) != rank or math.prod(shape) * counts[axis] > _MOST_PAIRS:
        raise RuleError(f"indices {tuple(counts)} into {shape}")
    at = op.astype(indices, "int64")
    at = op.where(op.less(at, _int(0)), op.add(at, _int(size)), at)
    for other in (a for a in range(rank) if a != axis):
        missing = [*counts[:other], shape[other] - counts[other], *counts[other + 1 :]]
        if missing[other] < 0:
            raise RuleError(f"indices {tuple(counts)} into {shape}")
        if missing[other]:
            at = op.concat([at, op.full(missing, _int(-1), "int64")], other)
            blank = op.full(missing, relax.const(0, dtype), dtype)
            updates = op.concat([updates, blank], other)
            counts[other] = shape[other]
    one = [1] * (rank - axis - 1)
    places = relax.const(np.arange(size).reshape([size, 1, *one]), "int64")
    hit = op.equal(op.expand_dims(at, [axis]), places)
    spread = op.expand_dims(updates, [axis])
    lowest, highest = _limits(dtype)
    match text(attrs, "reduction", "none"):
        case "none":
            order = relax.const(np.arange(counts[axis]).reshape([-1, *one]), "int64")
            last = op.max(op.where(hit, order, _int(-1)), [axis + 1])
            taken = op.gather_elements(updates, op.maximum(last, _int(0)), axis)
            return op.where(op.less(last, _int(0)), data, taken)
        case "add":
            nothing = relax.const(0, dtype)
            return op.add(data, op.sum(op.where(hit, spread, nothing), [axis + 1]))
        case "mul":
            nothing = relax.const(1, dtype)
            return op.multiply(data, op.prod(op.where(hit, spread, nothing), [axis + 1]))
        case "max":
            return op.maximum(data, op.max(op.where(hit, spread, lowest), [axis + 1]))
        case "min":
            return op.minimum(data, op.min(op.where(hit, spread, highest), [axis + 1]))
    raise RuleError(f"reduction {text(attrs, 'reduction', 'none')!r}")


def _limits(dtype: str) -> tuple[Any, Any]:
    """Constants that the largest, and the smallest, of some values can start from."""
    if dtype.startswith("float"):
        return relax.const(-math.inf, dtype), relax.const(math.inf, dtype)
    if dtype == "bool":
        return relax.const(False), relax.const(True)
    info = np.iinfo(dtype)
    return relax.const(info.min, dtype), relax.const(info.max, dtype)
