"""Local response normalisation across channels: where it is in a network.

Frontends write it as eight operators: square, reshape, average over a window of channels,
reshape, scale, shift, power, divide. Left alone they are eight passes over memory, the power is
a scalar library call, and the 5-d average forces the plain layout on its surroundings.
:mod:`tvmx.passes._lrn_kernel` makes one kernel of them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tvmx._tvm import relax, tvm
from tvmx.numerics import ChannelWindow

_CHAIN = (
    "relax.power", "relax.add", "relax.multiply",  # by scalars
    "relax.reshape", "relax.nn.avg_pool3d", "relax.reshape", "relax.multiply",
)  # fmt: skip
_MOST_CHANNELS = 32  # of a window: the sum is unrolled


@dataclass(frozen=True)
class Lrn:
    """A normalisation of ``source``, a Relax variable of shape (n, c, h, w), by ``window``.

    ``members`` are the indices of the bindings that compute it; the last one's variable is the
    result.
    """

    source: Any
    members: tuple[int, ...]
    shape: tuple[int, ...]
    window: ChannelWindow


def find_lrns(bindings: Sequence[Any], uses: Counter[Any]) -> dict[int, Lrn]:
    """Every local response normalisation among the bindings, by the index of its last one.

    ``uses`` counts the readers of each variable.
    """
    matcher = _Matcher(bindings, uses)
    found = ((index, matcher.match(index)) for index in range(len(bindings)))
    return {index: lrn for index, lrn in found if lrn is not None}


class _Matcher:
    def __init__(self, bindings: Sequence[Any], uses: Counter[Any]) -> None:
        self._bindings, self._uses = bindings, uses
        self._index = {binding.var: i for i, binding in enumerate(bindings)}

    def match(self, last: int) -> Lrn | None:
        """Follow the chain backwards from its division."""
        divide = self._bindings[last].value
        shape = _shape(divide)
        if _name(divide) != "relax.divide" or len(shape) != 4 or str(divide.ty.dtype) != "float32":
            return None
        chain = self._chain(divide.args[1], _CHAIN)
        if chain is None:
            return None
        members, calls = chain
        beta, bias, scale = (_scalar(call.args[1]) for call in calls[:3])
        window = _window(divide.args[0], *calls[3:])
        if beta is None or bias is None or scale is None or window is None:
            return None
        # A padded lane of a blocked layout must not divide by zero.
        if bias <= 0 or scale < 0:
            return None
        size, before = window
        found = ChannelWindow(size, before, scale / size, bias, beta)
        return Lrn(divide.args[0], (*members, last), shape, found)

    def _chain(self, expr: Any, ops: Sequence[str]) -> tuple[list[int], list[Any]] | None:
        """Calls of ``ops`` that ``expr`` goes through, each the only reader of the next."""
        members: list[int] = []
        calls: list[Any] = []
        for op in ops:
            index = self._index.get(expr) if isinstance(expr, relax.Var) else None
            if index is None or self._uses[expr] != 1:
                return None
            call = self._bindings[index].value
            if _name(call) != op:
                return None
            members.append(index)
            calls.append(call)
            expr = call.args[0]
        return members, calls


def _window(source: Any, squeeze: Any, pool: Any, expand: Any, square: Any) -> (
    tuple[int, int] | None
):  # fmt: skip
    """Size, and channels before the centre, of an average of squares of ``source``."""
    shape = _shape(square)
    if not all(arg.same_as(source) for arg in square.args):
        return None
    if _shape(expand) != (shape[0], 1, *shape[1:]) or _shape(squeeze) != shape:
        return None
    attrs = pool.attrs
    size, *rest = (int(n) for n in attrs.pool_size)
    front, top, left, back, bottom, right = (int(n) for n in attrs.padding)
    plain = (
        str(attrs.layout) == "NCDHW"
        and {*rest, *map(int, attrs.strides), *map(int, attrs.dilation)} == {1}
        and {top, left, bottom, right} == {0}
        and front + back == size - 1
        and bool(attrs.count_include_pad)
        and not bool(attrs.ceil_mode)
    )
    return (size, front) if plain and size <= _MOST_CHANNELS else None


def _name(expr: Any) -> str:
    op = getattr(expr, "op", None)
    return str(op.name) if isinstance(op, tvm.ir.Op) else ""


def _shape(expr: Any) -> tuple[int, ...]:
    values = getattr(getattr(expr.ty, "shape", None), "values", None)
    return tuple(int(v) for v in values) if values is not None else ()


def _scalar(expr: Any) -> float | None:
    if not isinstance(expr, tvm.ir.GenericConst):
        return None
    array = expr.value.numpy()
    return float(array.reshape(())) if array.size == 1 else None
