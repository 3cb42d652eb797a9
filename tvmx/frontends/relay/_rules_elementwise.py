"""Operators element by element."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tvmx._tvm import relax
from tvmx.frontends.relay._attrs import Attrs
from tvmx.frontends.relay._emit import Emitter, scalar
from tvmx.frontends.relay._rules_nn import Args, Rule
from tvmx.passes._dataflow import dtype_of

_UNARY: dict[str, Any] = {
    "exp": relax.op.exp, "log": relax.op.log, "sqrt": relax.op.sqrt, "rsqrt": relax.op.rsqrt,
    "abs": relax.op.abs, "negative": relax.op.negative, "floor": relax.op.floor,
    "ceil": relax.op.ceil, "trunc": relax.op.trunc, "sign": relax.op.sign, "sin": relax.op.sin,
    "cos": relax.op.cos, "tan": relax.op.tan, "asin": relax.op.asin, "acos": relax.op.acos,
    "atan": relax.op.atan, "sinh": relax.op.sinh, "cosh": relax.op.cosh, "tanh": relax.op.tanh,
    "asinh": relax.op.asinh, "acosh": relax.op.acosh, "atanh": relax.op.atanh,
    "sigmoid": relax.op.sigmoid, "erf": relax.op.erf, "logical_not": relax.op.logical_not,
    "bitwise_not": relax.op.bitwise_not, "isnan": relax.op.isnan, "isinf": relax.op.isinf,
    "isfinite": relax.op.isfinite,
}  # fmt: skip
_BINARY: dict[str, Any] = {
    "add": relax.op.add, "subtract": relax.op.subtract, "multiply": relax.op.multiply,
    "divide": relax.op.divide, "floor_divide": relax.op.floor_divide, "mod": relax.op.mod,
    "floor_mod": relax.op.floor_mod, "power": relax.op.power, "maximum": relax.op.maximum,
    "minimum": relax.op.minimum, "equal": relax.op.equal, "not_equal": relax.op.not_equal,
    "less": relax.op.less, "less_equal": relax.op.less_equal, "greater": relax.op.greater,
    "greater_equal": relax.op.greater_equal, "logical_and": relax.op.logical_and,
    "logical_or": relax.op.logical_or, "logical_xor": relax.op.logical_xor,
    "bitwise_and": relax.op.bitwise_and, "bitwise_or": relax.op.bitwise_or,
    "bitwise_xor": relax.op.bitwise_xor, "left_shift": relax.op.left_shift,
    "right_shift": relax.op.right_shift,
}  # fmt: skip
_NOTHING = (
    "copy", "annotation.stop_fusion", "annotation.checkpoint", "annotation.cast_hint",
    "device_copy", "on_device", "stop_gradient",
)  # fmt: skip


def _one(op: Callable[[Any], Any]) -> Rule:
    return lambda e, args, attrs: op(args[0])


def _two(op: Callable[[Any, Any], Any]) -> Rule:
    return lambda e, args, attrs: op(args[0], args[1])


def rounded(e: Emitter, value: Any) -> Any:
    """Nearest whole number, halves away from zero as in Relay (Relax takes the even one)."""
    whole = e.emit(relax.op.trunc(value))
    rest = e.emit(relax.op.abs(e.emit(relax.op.subtract(value, whole))))
    far = e.emit(relax.op.greater_equal(rest, scalar(0.5, value)))
    step = e.emit(relax.op.multiply(e.emit(relax.op.astype(far, dtype_of(value))),
                                    e.emit(relax.op.sign(value))))  # fmt: skip
    return relax.op.add(whole, step)


def _round(e: Emitter, args: Args, attrs: Attrs) -> Any:
    return rounded(e, args[0]) if dtype_of(args[0]).startswith("float") else args[0]


def _relu(e: Emitter, args: Args, attrs: Attrs) -> Any:
    if dtype_of(args[0]).startswith("float"):
        return relax.op.nn.relu(args[0])
    return relax.op.maximum(args[0], scalar(0, args[0]))


def _where(e: Emitter, args: Args, attrs: Attrs) -> Any:
    condition = args[0]
    if dtype_of(condition) != "bool":
        condition = e.emit(relax.op.not_equal(condition, scalar(0, condition)))
    return relax.op.where(condition, args[1], args[2])


RULES: dict[str, Rule] = {
    **{name: _one(op) for name, op in _UNARY.items()},
    **{name: _two(op) for name, op in _BINARY.items()},
    **{name: _one(lambda value: value) for name in _NOTHING},
    "round": _round,
    "nn.relu": _relu,
    "where": _where,
}
