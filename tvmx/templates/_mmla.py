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
from tvmx.templates._intrinsics import _llvm, _shuffle
from tvmx.templates._packing import pad_axis

DEPTH = 8
"""Products behind one element of a square."""


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
