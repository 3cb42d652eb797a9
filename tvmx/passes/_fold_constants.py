"""Evaluate calls whose arguments are all constant, in NumPy.

Relax's ``FoldConstant`` compiles every call with LLVM; NumPy needs seconds less on a large
network. What this table does not know is left to ``FoldConstant``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from tvmx._tvm import relax, tvm
from tvmx.passes._dataflow import (
    Array,
    Dataflow,
    Walk,
    array_of,
    const,
    dtype_of,
    op_name,
    shape_of,
)
from tvmx.passes._fold_quantised import hide_weights, is_quantised_constant, restore_weights

_FUNCTIONS: dict[str, Callable[..., Array]] = {
    "relax.add": np.add, "relax.subtract": np.subtract, "relax.multiply": np.multiply,
    "relax.divide": np.divide, "relax.power": np.power, "relax.maximum": np.maximum,
    "relax.minimum": np.minimum, "relax.sqrt": np.sqrt, "relax.exp": np.exp,
    "relax.log": np.log, "relax.abs": np.abs, "relax.negative": np.negative,
    "relax.where": np.where, "relax.isnan": np.isnan,
}  # fmt: skip
_RESHAPES = ("relax.reshape", "relax.expand_dims", "relax.squeeze", "relax.flatten")
_LIMIT = 1 << 30  # elements a broadcast may grow to


def fold_constants(walk: Walk, value: Any, name: str) -> Any:
    """Rule: a call of constants becomes a constant."""
    op = op_name(value)
    if op == "relax.shape_of" and shape_of(value.args[0]):
        return relax.ShapeExpr(shape_of(value.args[0]))
    if not op or not isinstance(value.ty, relax.TensorType):
        return None
    args = list(value.args)
    if args and isinstance(args[0], relax.Tuple):
        parts = [array_of(field) for field in args[0].fields]
        if op != "relax.concat" or any(part is None for part in parts):
            return None
        return const(np.concatenate([p for p in parts if p is not None], int(value.attrs.axis)))
    if not all(isinstance(a, tvm.ir.GenericConst | relax.ShapeExpr) for a in args):
        return None
    if is_quantised_constant(value):
        return None  # a weight, perhaps: fold_dequantised decides
    result = _evaluate(op, value)
    return None if result is None else const(result.astype(dtype_of(value), copy=False))


def _evaluate(op: str, value: Any) -> Array | None:
    shape = shape_of(value)
    if op in ("relax.zeros", "relax.ones"):
        return np.full(shape, float(op == "relax.ones"))
    arrays = [array_of(arg) for arg in value.args if isinstance(arg, tvm.ir.GenericConst)]
    data = arrays[0] if arrays else None
    if data is None or int(np.prod(shape, dtype=np.int64)) > _LIMIT:
        return None
    if op in _FUNCTIONS:
        with np.errstate(all="ignore"):
            return np.asarray(_FUNCTIONS[op](*arrays))
    if op in _RESHAPES:
        return data.reshape(shape)
    if op in ("relax.broadcast_to", "relax.full"):
        return np.broadcast_to(data, shape)
    if op == "relax.astype":
        return data.astype(dtype_of(value))
    if op == "relax.permute_dims":
        axes = value.attrs.axes
        return np.transpose(data, None if axes is None else [int(a) for a in axes])
    return None


def fold_remaining(flow: Dataflow) -> Dataflow:
    """Let Relax evaluate the calls of constants that NumPy's table does not know."""
    flow, hidden = hide_weights(flow)
    if any(_constant_call(value) for _, value in flow.bindings):
        mod = relax.transform.FoldConstant()(flow.to_module())
        flow = Dataflow.from_module(mod)
    return restore_weights(flow, hidden).without_dead()


def _constant_call(value: Any) -> bool:
    args = list(getattr(value, "args", ()))
    if not args or not isinstance(value.ty, relax.TensorType):
        return False
    return all(isinstance(arg, tvm.ir.GenericConst) for arg in args)
