"""Remove operators that do nothing and write the others in one way each."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from tvm_ffi import structural_equal

from tvmx._tvm import relax, tvm
from tvmx.passes._dataflow import Walk, array_of, const, dtype_of, op_name, shape_of

_SMALL = 16  # elements of constants that are compared by value
_RESHAPES = {"relax.reshape", "relax.flatten", "relax.squeeze", "relax.expand_dims",
             "relax.nn.batch_flatten"}  # fmt: skip


def drop_identity(walk: Walk, value: Any, name: str) -> Any:
    """Rule: dropout, casts and broadcasts to the same type, concatenations of one, x + 0, x * 1."""
    if isinstance(value, relax.TupleGetItem):
        if isinstance(value.tuple_value, relax.Tuple):
            return value.tuple_value.fields[value.index]
        dropout = walk.value(value.tuple_value, "relax.nn.dropout")
        return dropout.args[0] if dropout is not None and value.index == 0 else None
    op = op_name(value)
    if op == "relax.concat" and isinstance(value.args[0], relax.Tuple):
        return value.args[0].fields[0] if len(value.args[0].fields) == 1 else None
    if op in ("relax.broadcast_to", "relax.astype"):
        return value.args[0] if _same_type(value, value.args[0]) else None
    neutral = {"relax.add": 0, "relax.multiply": 1}.get(op)
    if neutral is not None and _same_type(value, value.args[0]):
        constant = array_of(value.args[1])
        if constant is not None and (constant == neutral).all():
            return value.args[0]
    if op in ("relax.nn.max_pool2d", "relax.nn.avg_pool2d"):
        ones = [*value.attrs.pool_size, *value.attrs.strides]
        nothing = all(int(k) == 1 for k in ones) and not any(int(p) for p in value.attrs.padding)
        return value.args[0] if nothing else None
    return None


def _same_type(a: Any, b: Any) -> bool:
    return shape_of(a) == shape_of(b) and dtype_of(a) == dtype_of(b)


def constants_right(walk: Walk, value: Any, name: str) -> Any:
    """Rule: ``c + x`` is ``x + c``, ``x - c`` is ``x + (-c)``, ``x / c`` is ``x * (1/c)``."""
    op = op_name(value)
    if op in ("relax.add", "relax.multiply", "relax.maximum", "relax.minimum"):
        left, right = value.args
        swap = isinstance(left, tvm.ir.GenericConst) and not isinstance(right, tvm.ir.GenericConst)
        return relax.Call(value.op, [right, left], value.attrs) if swap else None
    if op not in ("relax.subtract", "relax.divide") or dtype_of(value) != "float32":
        return None
    constant = array_of(value.args[1])
    if constant is None:
        return None
    if op == "relax.subtract":
        return relax.op.add(value.args[0], const(-constant))
    with np.errstate(all="ignore"):
        inverse = (1 / constant.astype(np.float64)).astype(np.float32)
    # Not for divisors so small or large that the inverse leaves the normal range.
    if not (np.isfinite(inverse) & (np.abs(inverse) >= np.finfo(np.float32).tiny)).all():
        return None
    return relax.op.multiply(value.args[0], const(inverse))


def one_clip(walk: Walk, value: Any, name: str) -> Any:
    """Rule: maximum, minimum, relu6 and clip by constants as relu or clip, nested ones merged."""
    bounds = _bounds(value)
    if bounds is None or dtype_of(value) != "float32":
        return None
    low, high = bounds
    if math.isnan(low) or math.isnan(high):
        return None
    data = value.args[0]
    before = walk.value(data)
    inner = _bounds(before)
    merge = inner is not None and dtype_of(data) == "float32" and not any(map(math.isnan, inner))
    if merge and inner is not None:
        low, high = max(inner[0], low), min(inner[1], high)
        if low > high:  # the outer clip decides
            return None
        data = before.args[0]
    if (low, high) == (-math.inf, math.inf):
        return data
    if not merge and _is_canonical(op_name(value), low, high):
        return None
    return _clip(data, low, high)


def _is_canonical(op: str, low: float, high: float) -> bool:
    return op == ("relax.nn.relu" if (low, high) == (0.0, math.inf) else "relax.clip")


def _clip(data: Any, low: float, high: float) -> Any:
    if (low, high) == (0.0, math.inf):
        return relax.op.nn.relu(data)
    return relax.op.clip(data, relax.prim_value(low), relax.prim_value(high))


def _bounds(call: Any) -> tuple[float, float] | None:
    op = op_name(call)
    if op == "relax.nn.relu":
        return (0.0, math.inf)
    if op == "relax.nn.relu6":
        return (0.0, 6.0)
    if op == "relax.clip":
        low, high = (getattr(arg, "value", None) for arg in call.args[1:3])
        return None if low is None or high is None else (float(low), float(high))
    if op in ("relax.maximum", "relax.minimum") and _same_type(call, call.args[0]):
        constant = array_of(call.args[1])
        if constant is not None and constant.size == 1:
            bound = float(constant.reshape(()))
            return (bound, math.inf) if op == "relax.maximum" else (-math.inf, bound)
    return None


def one_reshape(walk: Walk, value: Any, name: str) -> Any:
    """Rule: flatten, squeeze and the like as reshape; of two reshapes the last stays."""
    op = op_name(value)
    if op == "relax.permute_dims":
        return _permute(walk, value)
    if op not in _RESHAPES:
        return None
    data, shape = value.args[0], shape_of(value)
    if shape == shape_of(data):
        return data
    before = walk.value(data, "relax.reshape")
    if before is not None:
        return relax.op.reshape(before.args[0], shape)
    return None if op == "relax.reshape" else relax.op.reshape(data, shape)


def _permute(walk: Walk, value: Any) -> Any:
    shape = shape_of(value.args[0])
    axes = _axes(value)
    before = walk.value(value.args[0], "relax.permute_dims")
    if before is not None:
        inner = _axes(before)
        return relax.op.permute_dims(before.args[0], [inner[a] for a in axes])
    moved = [a for a in axes if shape[a] != 1]
    if axes == sorted(axes):
        return value.args[0]
    return relax.op.reshape(value.args[0], shape_of(value)) if moved == sorted(moved) else None


def _axes(call: Any) -> list[int]:
    rank, axes = len(shape_of(call)), call.attrs.axes
    return list(range(rank))[::-1] if axes is None else [int(a) % rank for a in axes]


def one_global_pool(walk: Walk, value: Any, name: str) -> Any:
    """Rule: global averages as ``mean`` over [2, 3] that keeps them, global maxima as max pool.

    Without kept axes a reshape follows, which blocked layouts pass through.
    """
    op = op_name(value)
    if op not in ("relax.mean", "relax.max") or value.attrs.axis is None:
        return None
    data = value.args[0]
    shape = shape_of(data)
    axes = [int(a) for a in value.attrs.axis]
    if len(shape) != 4 or sorted(a % 4 for a in axes) != [2, 3] or dtype_of(data) != "float32":
        return None
    keeps = bool(value.attrs.keepdims)
    if op == "relax.mean":
        if keeps and axes == [2, 3]:
            return None
        pooled = relax.op.mean(data, axis=[2, 3], keepdims=True)
    else:
        pooled = relax.op.nn.max_pool2d(data, pool_size=shape[2:], strides=shape[2:])
    if keeps:
        return pooled
    return relax.op.reshape(walk.emit(pooled, name), shape[:2])


def one_matmul(walk: Walk, value: Any, name: str) -> Any:
    """Rule: a product of a stack of rows with constant weights as one 2-d product."""
    if op_name(value) != "relax.matmul":
        return None
    weight, shape = array_of(value.args[1]), shape_of(value.args[0])
    if weight is None or weight.ndim != 2 or len(shape) < 3:
        return None
    rows = relax.op.reshape(value.args[0], (-1, shape[-1]))
    product = relax.op.matmul(walk.emit(rows, f"{name}_rows"), value.args[1])
    return relax.op.reshape(walk.emit(product, name), shape_of(value))


class CommonSubexpressions:
    """Rule with memory: equal calls on the same operands are computed once."""

    def __init__(self) -> None:
        self._seen: dict[Any, list[tuple[Any, Any]]] = {}

    def __call__(self, walk: Walk, value: Any, name: str) -> Any:
        """Return the variable of an equal earlier call."""
        if not op_name(value) or op_name(value) == "relax.call_tir":
            return None
        key = (value.op, *map(_key, value.args))
        for call, var in self._seen.setdefault(key, []):
            if structural_equal(call.attrs, value.attrs):
                return var
        var = walk.emit(value, name)
        self._seen[key].append((value, var))
        return var


def _key(arg: Any) -> Any:
    if isinstance(arg, relax.ShapeExpr):
        return tuple(int(v) for v in arg.values)
    if isinstance(arg, relax.Tuple):
        return tuple(map(_key, arg.fields))
    if isinstance(arg, tvm.ir.GenericConst):
        array = array_of(arg) if int(np.prod(shape_of(arg))) <= _SMALL else None
        return arg if array is None else (array.dtype.str, array.shape, array.tobytes())
    return getattr(arg, "value", arg)
