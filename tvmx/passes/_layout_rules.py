"""Which operators between layers can work in a blocked layout, and how they are emitted there."""

from __future__ import annotations

from typing import Any

import numpy as np

from tvmx._tvm import relax, topi, tvm
from tvmx.ir import block_of, physical_shape, to_physical
from tvmx.ir._graph import NodeKind

_UNARY = {"relax.nn.relu", "relax.nn.relu6", "relax.clip", "relax.sigmoid", "relax.nn.leakyrelu",
          "relax.tanh", "relax.nn.silu", "relax.hardswish"}  # fmt: skip
# No division: a padded lane would divide by zero and the infinity could spread.
_BINARY = {"relax.add", "relax.subtract", "relax.multiply", "relax.maximum", "relax.minimum"}
_POOLS = {"relax.nn.max_pool2d": "max", "relax.nn.avg_pool2d": "avg"}
_RESHAPES = {"relax.reshape", "relax.flatten", "relax.squeeze"}


def _name(call: Any) -> str:
    op = getattr(call, "op", None)
    return str(op.name) if isinstance(op, tvm.ir.Op) else ""


def _shape(expr: Any) -> tuple[int, ...]:
    ty = getattr(expr, "ty", None)
    if not isinstance(ty, relax.TensorType) or not hasattr(ty.shape, "values"):
        return ()
    return tuple(int(v) for v in ty.shape.values)


def _is_const(expr: Any) -> bool:
    return isinstance(expr, tvm.ir.GenericConst)


def _channel_const(expr: Any, rank4: tuple[int, ...]) -> bool:
    """A constant that broadcasts along channels only (or a scalar)."""
    shape = expr.value.shape
    full = (1,) * (4 - len(shape)) + tuple(int(s) for s in shape)
    return len(full) == 4 and full in ((1, rank4[1], 1, 1), (1, 1, 1, 1))


def global_mean(call: Any) -> bool:
    """Whether a mean is over the image alone, (n, c, h, w) -> (n, c, 1, 1)."""
    axes = sorted(int(a) for a in call.attrs.axis) if call.attrs.axis is not None else []
    return axes == [2, 3] and bool(call.attrs.keepdims)


def classify(binding: Any) -> NodeKind:
    """The layout behaviour of a binding between layers (see ``tvmx.ir.NodeKind``)."""
    call, name, out = binding.value, _name(binding.value), _shape(binding.var)
    if name in _RESHAPES:
        shape = _shape(call.args[0])
        flat = len(shape) == 4 and shape[2:] == (1, 1) and out == shape[:2]
        return "flatten" if flat else "opaque"
    if len(out) != 4 or str(binding.var.ty.dtype) != "float32":
        return "opaque"
    if name == "relax.concat":
        parts = call.args[0]
        inline = isinstance(parts, relax.Tuple) and not any(_is_const(p) for p in parts.fields)
        return "concat" if inline and int(call.attrs.axis) in (1, -3) else "opaque"
    if name in _UNARY and _shape(call.args[0]) == out:
        return "follow"
    if name in _BINARY:
        fits = [_channel_const(a, out) if _is_const(a) else _shape(a) == out for a in call.args]
        return "follow" if all(fits) and not all(map(_is_const, call.args)) else "opaque"
    if name in _POOLS and str(call.attrs.layout) == "NCHW":
        return "follow"
    if name == "relax.mean" and global_mean(call):
        return "follow"
    if name == "relax.nn.adaptive_avg_pool2d" and out[2:] == (1, 1):
        return "follow"
    return "opaque"


def emit_blocked(bb: Any, call: Any, operands: dict[Any, Any], layout: str) -> Any:
    """Emit a ``follow`` or ``concat`` call with its operands already in the blocked ``layout``.

    ``operands`` maps each original variable to its blocked replacement; the result is in
    ``layout`` too.
    """
    name = _name(call)
    if name == "relax.concat":
        return relax.op.concat([operands[p] for p in call.args[0].fields], axis=1)
    if name in _POOLS:
        return pool_blocked(bb, call, operands[call.args[0]], layout)
    if name in ("relax.mean", "relax.nn.adaptive_avg_pool2d"):
        return relax.op.mean(operands[call.args[0]], axis=[2, 3], keepdims=True)
    rank4 = next(_shape(a) for a in call.args if not _is_const(a) and len(_shape(a)) == 4)
    args = [
        _blocked_const(a, rank4, layout) if _is_const(a) else operands.get(a, a) for a in call.args
    ]
    return relax.Call(call.op, args, call.attrs)


def _blocked_const(expr: Any, rank4: tuple[int, ...], layout: str) -> Any:
    array = expr.value.numpy()
    if array.size == 1:
        return relax.const(array.reshape(()))
    shape = (1, rank4[1], 1, 1)
    assert physical_shape(shape, layout)
    return relax.const(to_physical(np.ascontiguousarray(array.reshape(shape)), layout))


def pool_blocked(bb: Any, call: Any, data: Any, layout: str) -> Any:
    """A 2-d pooling call on ``data`` in a blocked layout."""
    attrs = call.attrs

    def compute(x: Any) -> Any:
        return topi.nn.pool2d(
            x,
            kernel=[int(k) for k in attrs.pool_size],
            stride=[int(s) for s in attrs.strides],
            dilation=[int(d) for d in attrs.dilation],
            padding=[int(p) for p in attrs.padding],
            pool_type=_POOLS[_name(call)],
            ceil_mode=bool(attrs.ceil_mode),
            layout=f"NCHW{block_of(layout)}c",
            count_include_pad=bool(attrs.count_include_pad),
        )

    return bb.call_te(compute, data, primfunc_name_hint="pool2d")
