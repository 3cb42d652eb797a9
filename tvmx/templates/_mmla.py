"""Matrix products of bytes on Arm cores with i8mm: ``smmla``, its operands and its sums.

``smmla`` multiplies a 2x8 matrix of s8 by the transpose of another: 32 multiply-adds, twice those
of ``sdot``. Rows of the first are pixels (or rows of a matrix), rows of the second outputs, so a
vector of sums is ``[pixel][output]`` of 2x2, a *square*. A block of 4 outputs has two of them.

Everything here but the packing emits expressions of ``tvmx._tvm.tirx``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from tvmx.ir import ceil_div
from tvmx.targets import Target
from tvmx.templates._int8 import (
    _HIGH,
    _LOW,
    _OUT_ZERO,
    _RESIDUAL_FACTOR,
    _RESIDUAL_OFFSET,
    fused,
)
from tvmx.templates._intrinsics import _llvm, _shuffle
from tvmx.templates._packing import pad_axis

DEPTH = 8
"""Products behind one element of a square."""
_ROUNDER = float(3 << 22)
"""Added to a float of less than 2**22: the low bits are that float, rounded half to even."""


def has_mmla(target: Target) -> bool:
    """Whether the core has ``smmla``."""
    return target.arch == "aarch64" and "+i8mm" in target.features


def pack_mmla_weight(weight: npt.NDArray[Any]) -> npt.NDArray[np.int8]:
    """s8 OIHW -> ``(O / 4, I / 8, H, W, 2, 16)``, zero-padded; the last axis has two outputs."""
    o, i, h, w = weight.shape
    outs, ins = ceil_div(o, 4), ceil_div(i, DEPTH)
    padded = pad_axis(pad_axis(weight, 0, outs * 4), 1, ins * DEPTH)
    split = padded.reshape(outs, 2, 2, ins, DEPTH, h, w)
    packed = split.transpose(0, 3, 5, 6, 1, 2, 4)
    return np.ascontiguousarray(packed.reshape(outs, ins, h, w, 2, 2 * DEPTH))


def smmla(sums: Any, pixels: Any, outputs: Any) -> Any:
    """The square after one step; ``pixels`` and ``outputs`` are s8 vectors of 16, two times 8."""
    return _llvm("int32x4", "llvm.aarch64.neon.smmla.v4i32.v16i8", sums, pixels, outputs)


def half_pairs(values: Any, half: int) -> Any:
    """Of a vector of 4 two neighbours, twice: what a square's outputs have in common."""
    return _shuffle([values], [2 * half, 2 * half + 1] * 2)


def pixel_of(squares: Sequence[Any], row: int) -> Any:
    """The four sums of one pixel, from the two squares of a block."""
    return _shuffle(squares, [2 * row, 2 * row + 1, 2 * row + 4, 2 * row + 5])


def in_squares(pixels: int) -> list[int]:
    """Where each lane of pairs of squares is in ``[pixel][4 outputs]``: a permutation."""
    return [
        (2 * pair + row) * 4 + 2 * half + column
        for pair in range(pixels // 2)
        for half in range(2)
        for row in range(2)
        for column in range(2)
    ]


def permuted(vector: Any, order: Sequence[int]) -> Any:
    """The vector whose lane i is lane ``order[i]`` of ``vector``."""
    return vector if list(order) == list(range(len(order))) else _shuffle([vector], order)


def interleave(left: Any, right: Any, lanes: int) -> Any:
    """``left[0], right[0], left[1], ...`` of two vectors of ``lanes`` elements."""
    return _shuffle([left, right], [i for k in range(lanes) for i in (k, lanes + k)])


def requantised_bytes(
    accumulator: Any, multiplier: Any, params: Any, residual: Any | None, lanes: int
) -> Any:
    """What :func:`requantised_int32` computes, as s8 vectors of ``lanes``, bit for bit.

    Bounds and rounding are what AArch64 does in any vector pipe: conversions of floats occupy one
    pipe of two, for two cycles, on cores such as Cortex-A710. ``residual`` is s8.
    """
    from tvmx._tvm import tirx

    kind = f"float32x{lanes}"

    def splat(index: int) -> Any:
        return tirx.Broadcast(params[index], lanes)

    scaled = tirx.Cast(kind, accumulator)
    if residual is None:
        scaled = scaled * multiplier
    else:
        other = fused(
            tirx.Cast(kind, residual.astype(f"int32x{lanes}")),
            splat(_RESIDUAL_FACTOR), splat(_RESIDUAL_OFFSET), lanes,
        )  # fmt: skip
        scaled = fused(scaled, multiplier, other, lanes)
    bounded = _llvm(kind, "llvm.minnum", scaled, splat(_HIGH))
    bounded = _llvm(kind, "llvm.maxnum", bounded, splat(_LOW))
    rounded = bounded + tirx.Broadcast(tirx.const(_ROUNDER, "float32"), lanes)
    low = tirx.reinterpret(f"int32x{lanes}", rounded).astype(f"int8x{lanes}")
    if residual is not None:
        return low
    zero = params[_OUT_ZERO].astype("int32").astype("int8")
    return low + tirx.Broadcast(zero, lanes)
