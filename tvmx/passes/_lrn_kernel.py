"""Kernels of local response normalisation, in whatever layout and type their data is in.

For some pixels at a time: the squares of all their channels, zeros around them, then for each
vector of results a sum over shifted reads of those, and the power. In loops::

    parallel for tile of pixels:
        squares[...] = data ** 2            # all channels; in L1
        for vector of results:
            out = data * (bias + scale * sum(squares[k ahead ... k behind])) ** -beta

Vectors are the lanes of a block where channels are blocked, else neighbouring pixels.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tvmx._tvm import IRBuilder, builder, tirx
from tvmx.ir import block_of, ceil_div, physical_shape
from tvmx.numerics import QMAX, QMIN, ROOT_GUESS, ROOT_LIMIT, ROOT_STEPS, ChannelWindow, QuantParams
from tvmx.passes._lrn import Lrn
from tvmx.targets import Target
from tvmx.templates import flat, fused, load, rounded_byte, store

_SQUARES_BYTES = 12 * 1024  # of a tile: they stay in L1
_UNROLLED = 4  # results at a time: the steps of a root wait for each other


def lrn_kernel(
    lrn: Lrn, form: str, target: Target, params: tuple[QuantParams, QuantParams] | None = None
) -> Any:
    """The scheduled PrimFunc (data, output), both in ``form``.

    Where that is int8, ``params`` are those of data and output, and the result is to the bit that
    of :func:`tvmx.numerics.lrn_int8`. Nothing float is kept but the squares of one tile.
    """
    v = block_of(form)
    _, channels, height, width = lrn.shape
    pixels = height * width
    if v is None:
        lanes = min(target.lanes(), 1 << (pixels.bit_length() - 1))
        kernel: _Plain | _Blocked = _Plain(lrn.window, lanes, channels, pixels)
    else:
        kernel = _Blocked(lrn.window, v, channels, pixels)
    if params is not None:
        kernel.arithmetic = _Int8(lrn.window, kernel.lanes, *params)
    shape = physical_shape(lrn.shape, form)
    with IRBuilder() as ir, builder.prim_func(s_tir=True):
        builder.func_name("main")
        builder.func_attr({"tirx.is_scheduled": True, "tirx.noalias": True})
        dtype = kernel.arithmetic.dtype
        data, out = (builder.arg(name, builder.buffer(shape, dtype)) for name in ("data", "out"))
        # Relax looks whether a kernel of two tensors only reshapes, and insists on a block.
        with builder.sblock("root"):
            builder.reads()
            builder.writes()
            kernel.emit(lrn.shape[0], flat(data), flat(out))
    return ir.get()


class _Float:
    """Elements are the numbers themselves; all values are vectors of ``lanes``."""

    dtype = "float32"

    def __init__(self, window: ChannelWindow, lanes: int) -> None:
        self.window, self.lanes = window, lanes

    def real(self, element: Any) -> Any:
        """What is squared, float32."""
        return element

    def normalise(self, value: Any, total: Any) -> Any:
        """The result, of the element's :meth:`real` and the sum of squares around it."""
        window = self.window
        base = total * self.const(window.scale) + self.const(window.bias)
        if window.exact:
            return value * self.power(base)
        return value / tirx.power(base, self.const(window.beta))

    def power(self, base: Any) -> Any:
        """``base ** -beta``: :func:`tvmx.numerics.inverse_power`."""
        quarters = self.window.quarters
        assert quarters is not None
        most = self.const(ROOT_LIMIT)
        # A select, as NaN is not above and passes through.
        x = builder.Bind(tirx.Select(base > most, most, base))
        bits = tirx.reinterpret(self._type("int32"), x) >> self.const(2, "int32")
        guess = self.const(ROOT_GUESS, "int32") - bits
        root = builder.Bind(tirx.reinterpret(self._type("float32"), guess))
        quarter = builder.Bind(x * self.const(-0.25))
        for _ in range(ROOT_STEPS):
            square = builder.Bind(root * root)
            better = fused(quarter, square * square, self.const(1.25), self.lanes)
            root = builder.Bind(root * better)
        result = root
        for _ in range(quarters - 1):
            result = result * root
        return result

    def const(self, value: Any, dtype: str = "float32") -> Any:
        """A number in every lane."""
        scalar = tirx.const(int(value) if dtype == "int32" else float(value), dtype)
        return scalar if self.lanes == 1 else tirx.Broadcast(scalar, self.lanes)

    def _type(self, dtype: str) -> str:
        return dtype if self.lanes == 1 else f"{dtype}x{self.lanes}"


class _Int8(_Float):
    """Elements are s8.

    Steps, their squares and sums of them are whole numbers below 2**24: float32 holds them exactly,
    in whatever order they are added.
    """

    dtype = "int8"

    def __init__(
        self, window: ChannelWindow, lanes: int, params: QuantParams, out: QuantParams
    ) -> None:
        super().__init__(window, lanes)
        self._zero, self._out_zero = params.zero_point, out.zero_point
        self._scale, self._factor = window.factors(params, out)

    def real(self, element: Any) -> Any:
        steps = tirx.Cast(self._type("int32"), element) - self.const(self._zero, "int32")
        return tirx.Cast(self._type("float32"), steps)

    def normalise(self, value: Any, total: Any) -> Any:
        base = fused(total, self.const(self._scale), self.const(self.window.bias), self.lanes)
        scaled = value * self.const(self._factor) * self.power(base)
        low, high = self.const(QMIN - self._out_zero), self.const(QMAX - self._out_zero)
        rounded = rounded_byte(tirx.max(tirx.min(scaled, high), low), self.lanes)
        zero = tirx.const(self._out_zero, "int8")
        return rounded + (zero if self.lanes == 1 else tirx.Broadcast(zero, self.lanes))


class _Blocked:
    """Vectors of ``v`` channels; squares are (pixel, block with zero ones around, lane)."""

    def __init__(self, window: ChannelWindow, v: int, channels: int, pixels: int) -> None:
        self.arithmetic = _Float(window, v)
        self.lanes, self._channels, self._pixels = v, channels, pixels
        self._blocks = ceil_div(channels, v)
        self._ahead = ceil_div(window.before, v)
        self._behind = ceil_div(window.size - 1 - window.before, v)
        self._wide = (self._ahead + self._blocks + self._behind) * v

    def emit(self, batch: int, data: Any, out: Any) -> None:
        """Emit the loops over ``data`` and ``out``, as one axis each."""
        v, window = self.lanes, self.arithmetic.window
        tile = _divisor(self._pixels, max(1, _SQUARES_BYTES // (self._wide * 4)))
        tiles = self._pixels // tile
        with builder.parallel(0, batch * tiles) as task:
            first = builder.Bind(task // tiles * self._blocks * self._pixels + task % tiles * tile)
            squares = builder.alloc_buffer((tile * self._wide,), "float32")
            with builder.serial(0, tile) as x:
                edges = (*range(self._ahead), *range(-self._behind, 0))
                for block in edges:
                    at = x * self._wide + block * v + (self._wide if block < 0 else 0)
                    store(squares, self.arithmetic.const(0), at, lanes=v)
            with self._vectors(tile, first) as (block, x, element):
                value = builder.Bind(self.arithmetic.real(load(data, element, lanes=v)))
                at = x * self._wide + (block + self._ahead) * v
                store(squares, self._inside(block, value * value), at, lanes=v)
            with self._vectors(tile, first) as (block, x, element):
                at = x * self._wide + (block + self._ahead) * v - window.before
                total = load(squares, at, lanes=v)
                for k in range(1, window.size):
                    total = total + load(squares, at + k, lanes=v)
                value = self.arithmetic.real(load(data, element, lanes=v))
                store(out, self.arithmetic.normalise(value, total), element, lanes=v)

    @contextmanager
    def _vectors(self, tile: int, first: Any) -> Iterator[tuple[Any, Any, Any]]:
        """For all vectors of a tile: block, pixel in the tile, first element in memory."""
        some = _divisor(tile, _UNROLLED)
        with (
            builder.serial(0, self._blocks) as block,
            builder.serial(0, tile // some) as group,
            builder.unroll(0, some) as one,
        ):
            x = builder.Bind(group * some + one)
            yield block, x, (first + block * self._pixels + x) * self.lanes

    def _inside(self, block: Any, squares: Any) -> Any:
        """Zero where a lane has no channel: it may hold anything."""
        v = self.lanes
        if self._channels % v == 0:
            return squares
        channel = tirx.Ramp(block * v, tirx.const(1, "int32"), v)
        limit = tirx.Broadcast(tirx.const(self._channels, "int32"), v)
        return tirx.Select(channel < limit, squares, self.arithmetic.const(0))


class _Plain:
    """Vectors of neighbouring pixels; squares are (channel with zeros around, lane).

    The last vector of an image may begin among the pixels of the one before.
    """

    def __init__(self, window: ChannelWindow, lanes: int, channels: int, pixels: int) -> None:
        self.arithmetic = _Float(window, lanes)
        self.lanes, self._channels, self._pixels = lanes, channels, pixels

    def emit(self, batch: int, data: Any, out: Any) -> None:
        """Emit the loops over ``data`` and ``out``, as one axis each."""
        lanes, window, channels = self.lanes, self.arithmetic.window, self._channels
        tiles = ceil_div(self._pixels, lanes)
        after = window.size - 1 - window.before
        with builder.parallel(0, batch * tiles) as task:
            pixel = builder.Bind(tirx.min(task % tiles * lanes, self._pixels - lanes))
            first = builder.Bind(task // tiles * channels * self._pixels + pixel)
            squares = builder.alloc_buffer(((channels + window.size - 1) * lanes,), "float32")
            for row in (*range(window.before), *range(-after, 0)):
                at = row * lanes if row >= 0 else (channels + window.size - 1 + row) * lanes
                store(squares, self.arithmetic.const(0), at, lanes=lanes)
            with builder.serial(0, channels) as c:
                element = first + c * self._pixels
                value = builder.Bind(self.arithmetic.real(load(data, element, lanes=lanes)))
                store(squares, value * value, (c + window.before) * lanes, lanes=lanes)
            with builder.serial(0, channels) as c:
                element = first + c * self._pixels
                total = load(squares, c * lanes, lanes=lanes)
                for k in range(1, window.size):
                    total = total + load(squares, (c + k) * lanes, lanes=lanes)
                value = self.arithmetic.real(load(data, element, lanes=lanes))
                store(out, self.arithmetic.normalise(value, total), element, lanes=lanes)


def _divisor(n: int, most: int) -> int:
    """The largest divisor of ``n`` up to ``most``."""
    return next(d for d in range(min(n, most), 0, -1) if n % d == 0)
