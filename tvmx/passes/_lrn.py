"""Local response normalisation across channels, as one kernel in whatever layout its data is in.

Frontends write it as eight operators: square, reshape, average over a window of channels,
reshape, scale, shift, power, divide. Left alone they are eight passes over memory, the power is
a scalar library call, and the 5-d average forces the plain layout on its surroundings.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tvmx._tvm import relax, s_tir, te, tirx, tvm
from tvmx.ir import block_of, ceil_div, physical_shape
from tvmx.targets import Target

_CHAIN = (
    "relax.power", "relax.add", "relax.multiply",  # by scalars
    "relax.reshape", "relax.nn.avg_pool3d", "relax.reshape", "relax.multiply",
)  # fmt: skip
_MOST_CHANNELS = 32  # of a window: the sum is unrolled
_MOST_PIXELS = 16  # per tile: its squares stay in L1


@dataclass(frozen=True)
class Lrn:
    """``y[c] = x[c] / (bias + scale * sum(x[c - before : c - before + size] ** 2)) ** beta``.

    ``source`` is the Relax variable of ``x`` (NCHW); ``members`` are the indices of the
    bindings that compute it, the last one's variable is ``y``.
    """

    source: Any
    members: tuple[int, ...]
    shape: tuple[int, ...]
    size: int
    before: int
    scale: float
    bias: float
    beta: float


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
        return Lrn(divide.args[0], (*members, last), shape, size, before, scale / size, bias, beta)

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


def lrn_kernel(lrn: Lrn, layout: str, target: Target) -> Any:
    """The scheduled PrimFunc (data, output), both in ``layout``."""
    return _plain(lrn, target) if block_of(layout) is None else _blocked(lrn, layout)


def _normalise(lrn: Lrn, value: Any, squares: Sequence[Any]) -> Any:
    total = squares[0]
    for square in squares[1:]:
        total = total + square
    base = total * tirx.const(lrn.scale, "float32") + tirx.const(lrn.bias, "float32")
    return value / _power(base, lrn.beta)


def _power(base: Any, exponent: float) -> Any:
    """``base ** exponent``; quarters, 0.75 above all, by square roots, which have vectors."""
    quarters = round(exponent * 4)
    if not 0 < quarters <= 8 or quarters != exponent * 4:
        return tirx.power(base, tirx.const(exponent, "float32"))
    root = tirx.sqrt(base)
    parts = [base] * (quarters // 4)
    parts += [root] if quarters % 4 >= 2 else []
    parts += [tirx.sqrt(root)] if quarters % 2 else []
    result = parts[0]
    for part in parts[1:]:
        result = result * part
    return result


def _plain(lrn: Lrn, target: Target) -> Any:
    channels, zero = lrn.shape[1], tirx.const(0, "float32")
    data = te.placeholder(lrn.shape, name="data")

    def compute(n: Any, c: Any, y: Any, x: Any) -> Any:
        near = [c + (offset - lrn.before) for offset in range(lrn.size)]
        squares = [
            tirx.if_then_else(
                tirx.all(k >= 0, k < channels), data[n, k, y, x] * data[n, k, y, x], zero
            )
            for k in near
        ]
        return _normalise(lrn, data[n, c, y, x], squares)

    out = te.compute(lrn.shape, compute, name="lrn")
    sch = s_tir.Schedule(te.create_prim_func([data, out]))
    n, c, y, x = sch.get_loops(sch.get_sblock("lrn"))
    sch.parallel(sch.fuse(n, c))
    pixel, lanes = sch.fuse(y, x), target.lanes()
    if lrn.shape[2] * lrn.shape[3] % lanes == 0:
        _, inner = sch.split(pixel, [None, lanes])
        sch.vectorize(inner)
    return sch.mod["main"]


def _blocked(lrn: Lrn, layout: str) -> Any:
    """Squares of a few pixels with the blocks around theirs, then shifted reads of those."""
    v = block_of(layout)
    assert v is not None
    _, c, _, w = lrn.shape
    shape = physical_shape(lrn.shape, layout)
    blocks = shape[1]
    ahead = ceil_div(lrn.before, v)
    wide = v * (ahead + 1 + ceil_div(lrn.size - 1 - lrn.before, v))
    data = te.placeholder(shape, name="data")
    zero = tirx.const(0, "float32")

    def square(n: Any, b: Any, y: Any, x: Any, j: Any) -> Any:
        block, lane = b + j // v - ahead, j % v
        value = data[n, block, y, x, lane]
        product = value * value
        if c % v:
            product = tirx.Select(block * v + lane < c, product, zero)
        return tirx.if_then_else(tirx.all(block >= 0, block < blocks), product, zero)

    squares = te.compute((*shape[:4], wide), square, name="squares")
    first = ahead * v - lrn.before

    def compute(n: Any, b: Any, y: Any, x: Any, i: Any) -> Any:
        near = [squares[n, b, y, x, i + (first + k)] for k in range(lrn.size)]
        return _normalise(lrn, data[n, b, y, x, i], near)

    out = te.compute(shape, compute, name="lrn")
    sch = s_tir.Schedule(te.create_prim_func([data, out]))
    block = sch.get_sblock("lrn")
    n, b, y, x, i = sch.get_loops(block)
    pixels = max(d for d in range(1, min(w, _MOST_PIXELS) + 1) if w % d == 0)
    tile, x = sch.split(x, [None, pixels])
    sch.parallel(sch.fuse(n, b, y))
    sch.vectorize(i)
    copy = sch.get_sblock("squares")
    sch.compute_at(copy, tile)
    _, lane = sch.split(sch.get_loops(copy)[-1], [None, v])
    sch.vectorize(lane)
    return sch.mod["main"]
