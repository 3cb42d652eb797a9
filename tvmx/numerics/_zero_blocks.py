"""Zeros that a weight arrives with: how many, and in which blocks they lie."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from tvmx.ir import BlockSparsity
from tvmx.numerics._prune import matrix_shape

Array = npt.NDArray[Any]

_EXPLAINED = 0.98
"""Share of the zeros that must lie in zero blocks for the blocks to explain them."""
_ROWS = (1, 2, 4, 8, 16, 32, 64)
_COLUMNS = (1, 2, 4, 8, 16, 32)


@dataclass(frozen=True)
class ZeroPattern:
    """``zeros``: share (0 to 1) of a weight's elements that are zero.

    ``rows`` x ``columns`` are the largest blocks that explain them (1 x 1: no larger ones do);
    ``blocks`` is the share of such blocks that hold nothing but zeros.
    """

    zeros: float
    rows: int
    columns: int
    blocks: float


def zero_pattern(weight: Array) -> ZeroPattern:
    """The zeros of a weight, see :class:`ZeroPattern`.

    Of blocks that explain 98 % of the zeros the largest are taken; of equally large ones the
    tallest, which kernels read in one go.
    """
    zeros = int(weight.size - np.count_nonzero(weight))
    share = zeros / weight.size
    if not zeros or zeros == weight.size:
        return ZeroPattern(share, 1, 1, share)
    out, inner = matrix_shape(weight)
    shapes = [(r, c) for r in _ROWS for c in _COLUMNS if r <= out and c <= inner]
    for rows, columns in sorted(shapes, key=lambda s: (-s[0] * s[1], -s[0])):
        empty, explained = _empty(weight, rows, columns)
        if explained >= _EXPLAINED * zeros:
            return ZeroPattern(share, rows, columns, float(empty.mean()))
    raise AssertionError("1x1 blocks explain every zero")


def own_level(weight: Array, rows: int, columns: int) -> int:
    """The highest level (at most 99) that pruning to leaves a weight as it is; 0: none does.

    About the percent of its ``rows`` x ``columns`` blocks that are zero.
    """
    empty, _ = _empty(weight, rows, columns)
    zeros = int(np.count_nonzero(empty))
    # BlockSparsity drops total * level // 100 blocks: the largest level for which those are zero.
    return min(99, -(-100 * (zeros + 1) // empty.size) - 1) if zeros else 0


def _empty(weight: Array, rows: int, columns: int) -> tuple[npt.NDArray[np.bool_], int]:
    """Which blocks hold zeros only, and how many elements (without padding) those have."""
    out, inner = matrix_shape(weight)
    down, across = BlockSparsity(rows, columns, 50).blocks(out, inner)
    used = np.zeros((down * rows, across * columns), np.bool_)
    used[:out, :inner] = weight.reshape(out, inner) != 0
    empty = np.equal(used.reshape(down, rows, across, columns).sum(axis=(1, 3)), 0)
    heights = np.minimum(rows, out - np.arange(down) * rows)
    widths = np.minimum(columns, inner - np.arange(across) * columns)
    return empty, int((empty * np.outer(heights, widths)).sum())
