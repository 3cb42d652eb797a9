"""int8 operators between layers, in NumPy: the arithmetic their kernels must reproduce.

All arrays are s8 in logical order: (n, c, h, w) for pools, means and concatenation, any shape
for the element-wise ones. Pools, means and clips keep the scale and zero point of their input,
so that max pooling and clipping are exact; averages can take those of an output as well.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from tvmx.numerics._fma import fma
from tvmx.numerics._quantise import (
    QMAX,
    QMIN,
    Int8,
    QuantParams,
    rescale,
    rescale_add,
    rescale_factor,
)

Array = npt.NDArray[Any]
_MEAN_LIMIT = 512
"""Bound of an average in steps of another scale: saturated wherever the zero point is."""
_SMALLEST_BIAS = 2.0**-20
"""Below it the divisor of a normalisation could vanish."""
ROOT_GUESS, ROOT_STEPS, ROOT_LIMIT = 0x4F584820, 3, 2.0**100
"""How :func:`inverse_power` finds a root: its first guess leaves the least error after a step."""


@dataclass(frozen=True)
class Pool2d:
    """Geometry of 2-d pooling; pairs are (rows, columns), padding (top, left, bottom, right).

    With ``ceil_mode`` a last window that reaches past the padding counts too, if it begins on
    the image or before it. An average divides by the kernel's taps that fall on the image (at
    least 1), or with ``count_include_pad`` on the image and its padding. These are the rules of
    Relax, TOPI and PyTorch.
    """

    kernel: tuple[int, int]
    strides: tuple[int, int] = (1, 1)
    padding: tuple[int, int, int, int] = (0, 0, 0, 0)
    dilation: tuple[int, int] = (1, 1)
    ceil_mode: bool = False
    count_include_pad: bool = False

    @property
    def taps(self) -> int:
        """Elements of the kernel."""
        return self.kernel[0] * self.kernel[1]

    def out_size(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of the output of an image."""
        return self._out(0, height), self._out(1, width)

    def _out(self, axis: int, size: int) -> int:
        span = (self.kernel[axis] - 1) * self.dilation[axis] + 1
        rest = size + self.padding[axis] + self.padding[axis + 2] - span
        stride = self.strides[axis]
        if not self.ceil_mode:
            return rest // stride + 1
        last = (rest + stride - 1) // stride
        return last if last * stride >= size + self.padding[axis] else last + 1


def add_int8(
    a: Array, a_params: QuantParams, b: Array, b_params: QuantParams, out: QuantParams,
    low: int = QMIN, high: int = QMAX,
) -> Int8:  # fmt: skip
    """:func:`tvmx.numerics.rescale_add`, then a clip to the s8 values [low, high]."""
    return clip_int8(rescale_add(a, a_params, b, b_params, out), low, high)


def multiply_int8(
    a: Array, a_params: QuantParams, b: Array, b_params: QuantParams, out: QuantParams
) -> Int8:
    """s8 x s8 -> s8: ``rint(clip(float32((a - za) * (b - zb)) * factor)) + zero point``.

    The product is an exact integer; shapes broadcast. To the bit ONNX Runtime's QLinearMul.
    """
    first, second = (
        np.asarray(x, np.int32) - p.zero_point for x, p in ((a, a_params), (b, b_params))
    )
    zero = out.zero_point
    scaled = (first * second).astype(np.float32) * product_factor(a_params, b_params, out)
    bounded = np.clip(scaled, np.float32(QMIN - zero), np.float32(QMAX - zero))
    result: Int8 = (np.rint(bounded) + zero).astype(np.int8)
    return result


def product_factor(a: QuantParams, b: QuantParams, out: QuantParams) -> np.float32:
    """The float32 factor from a product of steps to steps of the output."""
    return np.float32(np.float32(a.scale) * np.float32(b.scale) / np.float32(out.scale))


def lookup_int8(data: Array, table: Array) -> Int8:
    """``table[q + 128]`` of every s8 value q; ``table`` is s8 (256,)."""
    result: Int8 = np.asarray(table, np.int8)[np.asarray(data, np.int32) - QMIN]
    return result


def concat_int8(parts: Sequence[Array], params: Sequence[QuantParams], out: QuantParams) -> Int8:
    """Channels (axis 1) of all parts, each brought to ``out`` by :func:`tvmx.numerics.rescale`."""
    scaled = [rescale(part, p, out) for part, p in zip(parts, params, strict=True)]
    return np.concatenate(scaled, axis=1)


def clip_int8(values: Array, low: int, high: int) -> Int8:
    """Clip to the s8 values [low, high]."""
    return np.clip(np.asarray(values, np.int8), np.int8(low), np.int8(high))


def max_pool_int8(data: Array, pool: Pool2d) -> Int8:
    """The largest value under each window of (n, c, h, w); padding is -128."""
    out: Int8 = np.maximum.reduce(_taps(np.asarray(data, np.int8), pool, QMIN))
    return out


def avg_pool_int8(
    data: Array, params: QuantParams, pool: Pool2d, out: QuantParams | None = None
) -> Int8:
    """Average over each window of (n, c, h, w); padding is the real number 0.

    ``rint(float32(sum of q - zero point) / float32(count)) + zero point``: the sum is int32,
    the division IEEE float32, rounding half to even; the result saturates. With ``out`` the
    quotient is multiplied by the float32 :func:`tvmx.numerics.rescale_factor` before rounding,
    and the zero point is the output's.
    """
    total, count = _window_sums(np.asarray(data, np.int32) - params.zero_point, pool)
    return _mean(total, count.astype(np.float32), params, out)


def avg_pool_whole(data: Array, pool: Pool2d) -> npt.NDArray[np.int64]:
    """Average over each window of integers (n, c, h, w), rounded towards zero; padding is 0."""
    total, count = _window_sums(np.asarray(data, np.int64), pool)
    result: npt.NDArray[np.int64] = np.sign(total) * (np.abs(total) // count)
    return result


def _window_sums(data: Array, pool: Pool2d) -> tuple[Array, Array]:
    """Sum over each window, and how many values it is averaged over: at least 1."""
    total = np.add.reduce(_taps(data, pool, 0))
    height, width = data.shape[2:]
    counted = np.ones((1, 1, height, width), np.int32)
    if pool.count_include_pad:
        top, left, bottom, right = pool.padding
        counted = np.ones((1, 1, top + height + bottom, left + width + right), np.int32)
        pool = replace(pool, padding=(0, 0, 0, 0))
    rows, columns = total.shape[2:]
    return total, np.maximum(np.add.reduce(_taps(counted, pool, 0, (rows, columns))), 1)


def mean_int8(data: Array, params: QuantParams, out: QuantParams | None = None) -> Int8:
    """Mean over the image, (n, c, h, w) -> (n, c, 1, 1), rounded as :func:`avg_pool_int8` does."""
    shifted = np.asarray(data, np.int32) - params.zero_point
    total = shifted.sum(axis=(2, 3), keepdims=True, dtype=np.int32)
    return _mean(total, np.float32(data.shape[2] * data.shape[3]), params, out)


def _mean(total: Array, count: Any, params: QuantParams, out: QuantParams | None) -> Int8:
    mean = total.astype(np.float32) / count
    if out is not None and out != params:
        mean = mean * rescale_factor(params, out)
        # Scales may be far apart: what saturates anyway must still fit int32.
        mean = np.clip(mean, np.float32(-_MEAN_LIMIT), np.float32(_MEAN_LIMIT))
    zero = (out or params).zero_point
    rounded = np.rint(mean).astype(np.int32)
    result: Int8 = np.clip(rounded + zero, QMIN, QMAX).astype(np.int8)
    return result


@dataclass(frozen=True)
class ChannelWindow:
    """``y[c] = x[c] / (bias + scale * sum(x[c - before : c - before + size] ** 2)) ** beta``."""

    size: int
    before: int
    scale: float
    bias: float
    beta: float

    @property
    def quarters(self) -> int | None:
        """``4 * beta`` where that is a small whole number, None elsewhere."""
        quarters = round(self.beta * 4)
        return quarters if 0 < quarters <= 8 and quarters == self.beta * 4 else None

    @property
    def exact(self) -> bool:
        """Whether :func:`lrn_int8` has it: a power of quarters, and no division by zero."""
        return self.quarters is not None and self.scale >= 0 and self.bias >= _SMALLEST_BIAS

    def factors(self, params: QuantParams, out: QuantParams) -> tuple[np.float32, np.float32]:
        """float32 factors of the sum of squared steps, and of a step brought to ``out``."""
        return np.float32(self.scale * params.scale**2), rescale_factor(params, out)


def lrn_int8(data: Array, params: QuantParams, window: ChannelWindow, out: QuantParams) -> Int8:
    """Local response normalisation over the channels of (n, c, h, w).

    ``rint(clip(float32(q - zero point) * factor * power))``, where ``power`` is
    :func:`inverse_power` of ``fma(float32(sum), scale, bias)``. The sum of squared steps is an
    exact integer and everything else rounded one by one, so that kernels give the same bits.
    ``window`` must be :attr:`ChannelWindow.exact`.
    """
    assert window.quarters is not None
    steps = np.asarray(data, np.int32) - params.zero_point
    reach = (window.before, window.size - 1 - window.before)
    squares = np.pad(np.square(steps), [(0, 0), reach, (0, 0), (0, 0)])
    channels = steps.shape[1]
    total = sum(squares[:, k : k + channels] for k in range(window.size))
    scale, factor = window.factors(params, out)
    with np.errstate(over="ignore"):  # an infinity saturates like any large number
        base = fma(total, scale, np.float32(window.bias))
        scaled = steps.astype(np.float32) * factor * inverse_power(base, window.quarters)
    low, high = np.float32(QMIN - out.zero_point), np.float32(QMAX - out.zero_point)
    result: Int8 = (np.rint(np.clip(scaled, low, high)) + out.zero_point).astype(np.int8)
    return result


def inverse_power(base: Array, quarters: int) -> npt.NDArray[np.float32]:
    """``base ** -(quarters / 4)`` of positive float32, within 2e-6; at most 2**100 is seen.

    Roots and quotients take tens of cycles where products take one. So the fourth root's inverse is
    guessed from the bits (3 % off) and improved by three of Newton's steps, of products and one
    fused multiply-add each: the same bits on every machine.
    """
    x = np.minimum(np.asarray(base, np.float32), np.float32(ROOT_LIMIT))
    root = (np.int32(ROOT_GUESS) - (x.view(np.int32) >> 2)).view(np.float32)
    for _ in range(ROOT_STEPS):
        square = root * root
        root = root * fma(x * np.float32(-0.25), square * square, np.float32(1.25))
    result: npt.NDArray[np.float32] = root
    for _ in range(quarters - 1):
        result = result * root
    return result


def _taps(
    data: Array, pool: Pool2d, padding: int, out_size: tuple[int, int] | None = None
) -> list[Array]:
    """For each tap of the kernel what it meets at every output position."""
    (kh, kw), (sh, sw), (dh, dw) = pool.kernel, pool.strides, pool.dilation
    rows, columns = out_size or pool.out_size(*data.shape[2:])
    top, left = pool.padding[:2]
    need_h = (rows - 1) * sh + (kh - 1) * dh + 1
    need_w = (columns - 1) * sw + (kw - 1) * dw + 1
    image = np.full((*data.shape[:2], max(need_h, top + data.shape[2]),
                     max(need_w, left + data.shape[3])), padding, data.dtype)  # fmt: skip
    image[:, :, top : top + data.shape[2], left : left + data.shape[3]] = data
    return [
        image[:, :, y * dh : y * dh + (rows - 1) * sh + 1 : sh,
              x * dw : x * dw + (columns - 1) * sw + 1 : sw]
        for y in range(kh) for x in range(kw)
    ]  # fmt: skip
