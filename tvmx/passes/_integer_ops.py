"""Operators between integer layers: computed as they are written, on int8 in any layout.

A group of them makes one quantised value of others, element by element, by concatenation or
pooling: Relay's additions, products, rescalings and averages. Its operators are emitted again on
the operands that layers leave behind, and Relax fuses them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from tvmx._tvm import relax
from tvmx.ir import block_of
from tvmx.numerics import avg_pool_whole, max_pool_int8
from tvmx.passes._dataflow import array_of, dtype_of, op_name, shape_of, substitute, variables
from tvmx.passes._integer_chain import BYTES, Readers
from tvmx.passes._layout_rules import pool_blocked
from tvmx.passes._operator import pool_of

Array = npt.NDArray[Any]
_ELEMENTWISE: dict[str, Callable[..., Array]] = {
    "relax.add": np.add, "relax.subtract": np.subtract, "relax.multiply": np.multiply,
    "relax.maximum": np.maximum, "relax.minimum": np.minimum, "relax.less": np.less,
    "relax.left_shift": np.left_shift, "relax.right_shift": np.right_shift,
}  # fmt: skip
_POOLS = ("relax.nn.avg_pool2d", "relax.nn.max_pool2d")
_TYPES = ("int8", "uint8", "int16", "int32", "int64", "bool")
_LONGEST = 64


@dataclass(frozen=True)
class IntegerGroup:
    """Calls that compute ``output`` from the quantised ``sources`` alone, in order."""

    sources: tuple[Any, ...]
    calls: tuple[tuple[Any, Any], ...]

    @property
    def output(self) -> Any:
        """The quantised value it makes."""
        return self.calls[-1][0]

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of its output."""
        return shape_of(self.output)

    @property
    def concatenates(self) -> bool:
        """Whether a concatenation is among its operators."""
        return any(op_name(call) == "relax.concat" for _, call in self.calls)

    def evaluate(self, operands: Sequence[Array]) -> Array:
        """The s8 result of s8 operands (n, ...), in NumPy."""
        known: dict[Any, Array] = {}
        for var, operand in zip(self.sources, operands, strict=True):
            known[var] = (operand.astype(np.int16) + BYTES[dtype_of(var)]).astype(dtype_of(var))
        for var, call in self.calls:
            known[var] = _value(call, known).astype(dtype_of(var))
        result = known[self.output].astype(np.int16) - BYTES[dtype_of(self.output)]
        return result.astype(np.int8)

    def emit(self, bb: Any, operands: Sequence[Any], form: str) -> Any:
        """The same as Relax calls on s8 operands in format ``form``."""
        env = {
            var: _moved(bb, operand, dtype_of(var))
            for var, operand in zip(self.sources, operands, strict=True)
        }
        for var, call in self.calls:
            if op_name(call) in _POOLS and block_of(form):
                env[var] = bb.emit(pool_blocked(bb, call, env[call.args[0]], form))
            else:
                args = [substitute(arg, env) for arg in call.args]
                env[var] = bb.emit(relax.Call(call.op, args, call.attrs, call.ty_args))
        return _moved(bb, env[self.output], "int8")


def _moved(bb: Any, value: Any, dtype: str) -> Any:
    """A quantised value between s8 and another type of a byte, whose numbers differ by 128."""
    source = str(value.ty.dtype)
    by = BYTES[dtype] - BYTES[source]
    if not by:
        return value
    wide = bb.emit(relax.op.astype(value, "int16"))
    return bb.emit(relax.op.astype(bb.emit(relax.op.add(wide, relax.const(by, "int16"))), dtype))


def _value(call: Any, known: Mapping[Any, Array]) -> Array:
    name = op_name(call)
    if name == "relax.concat":
        return np.concatenate([known[part] for part in call.args[0].fields], 1)
    if name == "relax.astype":
        return known[call.args[0]]
    if name == "relax.nn.max_pool2d":
        data = known[call.args[0]]
        by = BYTES[str(data.dtype)]
        return max_pool_int8((data.astype(np.int16) - by).astype(np.int8), pool_of(call)) + by
    if name == "relax.nn.avg_pool2d":
        return avg_pool_whole(known[call.args[0]], pool_of(call))
    operands = [
        known[a] if isinstance(a, relax.Var) else np.asarray(array_of(a)) for a in call.args
    ]
    return _ELEMENTWISE[name](*operands)


def integer_group(index: int, readers: Readers) -> IntegerGroup | None:
    """The operators that make the quantised value of binding ``index``; None if not all are known.

    They reach back to the nearest values of a byte.
    """
    output = readers.bindings[index].var
    if dtype_of(output) not in BYTES or len(shape_of(output)) not in (2, 4):
        return None
    found: dict[int, tuple[Any, Any]] = {}
    sources: dict[Any, None] = {}
    pending = [output]
    while pending:
        var = pending.pop()
        if var is not output and dtype_of(var) in BYTES:
            sources[var] = None
            continue
        at = readers.index.get(var)
        if at is None or len(found) > _LONGEST:
            return None
        call = readers.bindings[at].value
        if not _known(call, var):
            return None
        if at not in found:
            found[at] = (var, call)
            pending += variables(call)
    rank = len(shape_of(output))
    if not sources or any(len(shape_of(var)) != rank for var in sources):
        return None
    calls = tuple(found[at] for at in sorted(found))
    order = {var: None for _, call in calls for var in variables(call) if var in sources}
    return IntegerGroup(tuple(order), calls)


def _known(call: Any, var: Any) -> bool:
    """Whether a call works the same in every layout, and its constants are single numbers."""
    name, shape = op_name(call), shape_of(var)
    if dtype_of(var) not in _TYPES:
        return False
    if name == "relax.astype":
        return dtype_of(call.args[0]) in _TYPES
    if name == "relax.concat":
        inline = isinstance(call.args[0], relax.Tuple)
        parts = inline and all(isinstance(p, relax.Var) for p in call.args[0].fields)
        return parts and int(call.attrs.axis) in (1, 1 - len(shape))
    if name == "relax.nn.max_pool2d":
        return str(call.attrs.layout) == "NCHW" and dtype_of(var) in BYTES
    if name == "relax.nn.avg_pool2d":
        return str(call.attrs.layout) == "NCHW" and dtype_of(var) == "int64"
    if name not in _ELEMENTWISE:
        return False
    wide = [shape, (*shape[:2], *[1] * (len(shape) - 2))]
    constants = [array_of(a) for a in call.args if not isinstance(a, relax.Var)]
    single = all(c is not None and c.size == 1 and c.ndim <= len(shape) for c in constants)
    return single and all(shape_of(a) in wide for a in call.args if isinstance(a, relax.Var))
