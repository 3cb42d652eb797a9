"""Operators that move, cut, join and make tensors."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from tvmx._tvm import relax
from tvmx.frontends._reason import RuleError
from tvmx.frontends.relay._attrs import Attrs
from tvmx.frontends.relay._emit import MOST_DIMENSIONS, Emitter, axis_of, rank_of
from tvmx.frontends.relay._rules_nn import Args, Rule, constant_array, permuted
from tvmx.frontends.relay._shape_rules import reshaped, slice_bounds
from tvmx.passes._dataflow import const, dtype_of, shape_of

_MOST_PARTS = 4096
_DTYPES = {
    "float16", "float32", "float64", "bool", "int8", "int16", "int32", "int64", "uint8", "uint16",
    "uint32", "uint64",
}  # fmt: skip


def dtype_named(name: str) -> str:
    """A dtype that can be computed with. Raises RuleError."""
    if name not in _DTYPES:
        raise RuleError(f"type {name!r}")
    return name


def cast(value: Any, dtype: str) -> Any:
    """``value`` in another dtype."""
    return value if dtype_of(value) == dtype else relax.op.astype(value, dtype_named(dtype))


def fields(args: Args) -> list[Any]:
    """The tensors of an operator that takes one tuple."""
    parts = list(args[0]) if isinstance(args[0], tuple) else list(args)
    if not parts or any(isinstance(part, tuple) for part in parts):
        raise RuleError("it takes a tuple of tensors")
    return parts


def _reshape(e: Emitter, args: Args, attrs: Attrs) -> Any:
    if len(args) > 1:
        wanted = tuple(int(v) for v in constant_array(args[1], "the new shape").reshape(-1))
    else:
        wanted = attrs.ints("newshape")
    shape = reshaped(shape_of(args[0]), wanted, attrs.flag("allowzero"))
    return relax.op.reshape(args[0], shape)


def _reshape_like(e: Emitter, args: Args, attrs: Attrs) -> Any:
    partial = attrs.integer("lhs_begin", 0), attrs.integer("rhs_begin", 0)
    if partial != (0, 0) or attrs.has("lhs_end") or attrs.has("rhs_end"):
        raise RuleError("it reshapes a part of the dimensions")
    return relax.op.reshape(args[0], shape_of(args[1]))


def _batch_flatten(e: Emitter, args: Args, attrs: Attrs) -> Any:
    shape = shape_of(args[0])
    return relax.op.reshape(args[0], (shape[0], math.prod(shape[1:])))


def _transpose(e: Emitter, args: Args, attrs: Attrs) -> Any:
    rank = rank_of(args[0])
    axes = [axis_of(a, rank) for a in attrs.ints("axes", ())] or list(range(rank))[::-1]
    if sorted(axes) != list(range(rank)):
        raise RuleError(f"axes {axes} of {rank} dimensions")
    return relax.op.permute_dims(args[0], axes)


def _layout_transform(e: Emitter, args: Args, attrs: Attrs) -> Any:
    return permuted(e, args[0], attrs.text("src_layout"), attrs.text("dst_layout"))


def _expand_dims(e: Emitter, args: Args, attrs: Attrs) -> Any:
    rank, count = rank_of(args[0]), attrs.count("num_newaxis", 1)
    if rank + count > MOST_DIMENSIONS:
        raise RuleError(f"num_newaxis {count}")
    axis = axis_of(attrs.integer("axis"), rank + 1)
    shape = shape_of(args[0])
    return relax.op.reshape(args[0], (*shape[:axis], *[1] * count, *shape[axis:]))


def _squeeze(e: Emitter, args: Args, attrs: Attrs) -> Any:
    shape = shape_of(args[0])
    axes = {axis_of(a, len(shape)) for a in attrs.ints("axis", ())}
    axes = axes or {i for i, size in enumerate(shape) if size == 1}
    if any(shape[axis] != 1 for axis in axes):
        raise RuleError(f"axis {sorted(axes)} of shape {shape} is not 1")
    return relax.op.reshape(args[0], tuple(s for i, s in enumerate(shape) if i not in axes))


def _concatenate(e: Emitter, args: Args, attrs: Attrs) -> Any:
    parts = fields(args)
    return relax.op.concat(parts, axis_of(attrs.integer("axis", 0), rank_of(parts[0])))


def _stack(e: Emitter, args: Args, attrs: Attrs) -> Any:
    parts = fields(args)
    return relax.op.stack(parts, axis_of(attrs.integer("axis", 0), rank_of(parts[0]) + 1))


def _split(e: Emitter, args: Args, attrs: Attrs) -> Any:
    axis = axis_of(attrs.integer("axis", 0), rank_of(args[0]))
    size, raw = shape_of(args[0])[axis], attrs.raw("indices_or_sections")
    if isinstance(raw, tuple):
        cuts = attrs.ints("indices_or_sections")
        if list(cuts) != sorted(set(cuts)) or not all(0 < cut < size for cut in cuts):
            raise RuleError(f"indices_or_sections {cuts} of a dimension of {size}")
        return e.items(relax.op.split(args[0], list(cuts), axis), len(cuts) + 1)
    parts = attrs.count("indices_or_sections", 1)
    if parts > _MOST_PARTS or size % parts:
        raise RuleError(f"a dimension of {size} in {parts} parts")
    return (args[0],) if parts == 1 else e.items(relax.op.split(args[0], parts, axis), parts)


def _strided_slice(e: Emitter, args: Args, attrs: Attrs) -> Any:
    shape = shape_of(args[0])
    if len(args) > 1:
        raise RuleError("its bounds are computed")
    axes = [axis_of(a, len(shape)) for a in attrs.ints("axes", ())]
    begin, end = attrs.ints("begin"), attrs.ints("end")
    bounds = slice_bounds(
        shape, begin, end, attrs.ints("strides", (1,)), axes or list(range(len(begin))),
        attrs.text("slice_mode", "end"),
    )  # fmt: skip
    axes, begins, ends, steps = ([*column] for column in zip(*bounds, strict=True))
    return relax.op.strided_slice(args[0], axes, begins, ends, steps)


def _slice_like(e: Emitter, args: Args, attrs: Attrs) -> Any:
    shape, like = shape_of(args[0]), shape_of(args[1])
    axes = [axis_of(a, len(shape)) for a in attrs.ints("axes", ())] or list(range(len(shape)))
    if any(axis >= len(like) or like[axis] > shape[axis] for axis in axes):
        raise RuleError(f"{shape} cannot be cut to {like}")
    ends = [like[axis] for axis in axes]
    return relax.op.strided_slice(args[0], axes, [0] * len(axes), ends)


def _broadcast_to(e: Emitter, args: Args, attrs: Attrs) -> Any:
    return relax.op.broadcast_to(args[0], attrs.ints("shape"))


def _broadcast_to_like(e: Emitter, args: Args, attrs: Attrs) -> Any:
    return relax.op.broadcast_to(args[0], shape_of(args[1]))


def _made(fill: float) -> Rule:
    def rule(e: Emitter, args: Args, attrs: Attrs) -> Any:
        dtype = dtype_named(attrs.text("dtype", "float32") or "float32")
        return _full(attrs.ints("shape"), fill, dtype, e)

    return rule


def _full(shape: tuple[int, ...], fill: float, dtype: str, e: Emitter) -> Any:
    value = const(np.asarray(fill).astype(dtype).reshape((1,) * len(shape)))
    return relax.op.broadcast_to(value, shape)


def _fill(e: Emitter, args: Args, attrs: Attrs) -> Any:
    dtype = dtype_named(attrs.text("dtype") or dtype_of(args[0]))
    value = e.emit(cast(args[0], dtype))
    return relax.op.broadcast_to(value, attrs.ints("shape"))


def _like(fill: float) -> Rule:
    def rule(e: Emitter, args: Args, attrs: Attrs) -> Any:
        return _full(shape_of(args[0]), fill, dtype_of(args[0]), e)

    return rule


def _full_like(e: Emitter, args: Args, attrs: Attrs) -> Any:
    return relax.op.broadcast_to(e.emit(cast(args[1], dtype_of(args[0]))), shape_of(args[0]))


def _take(e: Emitter, args: Args, attrs: Attrs) -> Any:
    if attrs.integer("batch_dims", 0) != 0:
        raise RuleError(f"batch_dims {attrs.integer('batch_dims')}")
    data, indices, mode = args[0], args[1], attrs.text("mode", "clip")
    if mode not in ("clip", "wrap", "fast"):
        raise RuleError(f"mode {mode!r}")
    # "fast" trusts the indices: a wrong one would read anywhere.
    mode = "clip" if mode == "fast" else mode
    if not attrs.has("axis"):
        data = e.emit(relax.op.reshape(data, (math.prod(shape_of(data)),)))
    axis = axis_of(attrs.integer("axis", 0), rank_of(data))
    if rank_of(indices) == 0:
        one = e.emit(relax.op.reshape(indices, (1,)))
        taken = e.emit(relax.op.take(data, one, axis, mode))
        shape = shape_of(data)
        return relax.op.reshape(taken, (*shape[:axis], *shape[axis + 1 :]))
    return relax.op.take(data, indices, axis, mode)


def _tile(e: Emitter, args: Args, attrs: Attrs) -> Any:
    reps = attrs.ints("reps")
    if min(reps, default=1) < 1:
        raise RuleError(f"reps {reps}")
    return relax.op.tile(args[0], list(reps))


def _repeat(e: Emitter, args: Args, attrs: Attrs) -> Any:
    axis = axis_of(attrs.integer("axis", 0), rank_of(args[0])) if attrs.has("axis") else None
    return relax.op.repeat(args[0], attrs.count("repeats", 1), axis)


def _reverse(e: Emitter, args: Args, attrs: Attrs) -> Any:
    return relax.op.flip(args[0], axis_of(attrs.integer("axis", 0), rank_of(args[0])))


def _blocks(attrs: Attrs, rank: int) -> int:
    if attrs.text("layout", "NCHW") != "NCHW" or rank != 4:
        raise RuleError(f"layout {attrs.text('layout')} of {rank} dimensions")
    return attrs.count("block_size", 1)


def _depth_to_space(e: Emitter, args: Args, attrs: Attrs) -> Any:
    block = _blocks(attrs, rank_of(args[0]))
    n, c, h, w = shape_of(args[0])
    if c % (block * block):
        raise RuleError(f"{c} channels in blocks of {block} x {block}")
    channels = c // (block * block)
    if attrs.text("mode", "DCR") == "DCR":
        split, order = (n, block, block, channels, h, w), [0, 3, 4, 1, 5, 2]
    else:
        split, order = (n, channels, block, block, h, w), [0, 1, 4, 2, 5, 3]
    moved = e.emit(relax.op.permute_dims(e.emit(relax.op.reshape(args[0], split)), order))
    return relax.op.reshape(moved, (n, channels, h * block, w * block))


def _space_to_depth(e: Emitter, args: Args, attrs: Attrs) -> Any:
    block = _blocks(attrs, rank_of(args[0]))
    n, c, h, w = shape_of(args[0])
    if h % block or w % block:
        raise RuleError(f"{h} x {w} in blocks of {block} x {block}")
    split = e.emit(relax.op.reshape(args[0], (n, c, h // block, block, w // block, block)))
    moved = e.emit(relax.op.permute_dims(split, [0, 3, 5, 1, 2, 4]))
    return relax.op.reshape(moved, (n, c * block * block, h // block, w // block))


def _cast(e: Emitter, args: Args, attrs: Attrs) -> Any:
    return cast(args[0], attrs.text("dtype"))


def _cast_like(e: Emitter, args: Args, attrs: Attrs) -> Any:
    return cast(args[0], dtype_of(args[1]))


def _reduction(op: Callable[..., Any], one_axis: bool = False) -> Rule:
    def rule(e: Emitter, args: Args, attrs: Attrs) -> Any:
        rank = rank_of(args[0])
        axes = sorted({axis_of(a, rank) for a in attrs.ints("axis", ())})
        if attrs.flag("exclude"):
            axes = [a for a in range(rank) if a not in axes]
            if not axes:
                return args[0]
        keeps = attrs.flag("keepdims")
        if attrs.flag("unbiased") or attrs.flag("select_last_index"):
            raise RuleError("unbiased or select_last_index")
        if one_axis:
            if len(axes) > 1:
                raise RuleError(f"axis {axes} is more than one")
            found = e.emit(op(args[0], axes[0] if axes else None, keeps))
            return cast(found, "int32")
        return op(args[0], axes or None, keeps)

    return rule


def _variance(e: Emitter, args: Args, attrs: Attrs) -> Any:
    """Relay passes the mean along; it is that of the data."""
    return _reduction(relax.op.variance)(e, args[:1], attrs)


def _truths(op: Callable[..., Any]) -> Rule:
    """``all`` and ``any`` as the least and greatest of 0 and 1."""

    def rule(e: Emitter, args: Args, attrs: Attrs) -> Any:
        numbers = e.emit(cast(args[0], "int32"))
        return cast(e.emit(_reduction(op)(e, [numbers], attrs)), "bool")

    return rule


RULES: dict[str, Rule] = {
    "reshape": _reshape,
    "reshape_like": _reshape_like,
    "nn.batch_flatten": _batch_flatten,
    "transpose": _transpose,
    "layout_transform": _layout_transform,
    "expand_dims": _expand_dims,
    "squeeze": _squeeze,
    "concatenate": _concatenate,
    "stack": _stack,
    "split": _split,
    "strided_slice": _strided_slice,
    "slice_like": _slice_like,
    "broadcast_to": _broadcast_to,
    "broadcast_to_like": _broadcast_to_like,
    "zeros": _made(0),
    "ones": _made(1),
    "full": _fill,
    "zeros_like": _like(0),
    "ones_like": _like(1),
    "full_like": _full_like,
    "take": _take,
    "tile": _tile,
    "repeat": _repeat,
    "reverse": _reverse,
    "nn.depth_to_space": _depth_to_space,
    "nn.space_to_depth": _space_to_depth,
    "cast": _cast,
    "cast_like": _cast_like,
    "sum": _reduction(relax.op.sum),
    "mean": _reduction(relax.op.mean),
    "max": _reduction(relax.op.max),
    "min": _reduction(relax.op.min),
    "prod": _reduction(relax.op.prod),
    "all": _truths(relax.op.min),
    "any": _truths(relax.op.max),
    "argmax": _reduction(relax.op.argmax, one_axis=True),
    "argmin": _reduction(relax.op.argmin, one_axis=True),
    "variance": _variance,
}
