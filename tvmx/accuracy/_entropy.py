"""Entropy calibration: the range that loses the least information (Kullback-Leibler divergence).

Migacz, "8-bit inference with TensorRT" (GPU Technology Conference, 2017): a candidate clips the
histogram, adds what lies outside to its end bins (P), merges the bins to as many as there are int8
numbers and spreads these out again over the bins that were not empty (Q); the candidate of the
least KL(P || Q) wins. TensorRT's ranges are symmetric, here both ends are candidates.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from tvmx.accuracy._histogram import Histogram

Array = npt.NDArray[Any]

LEVELS = 256
EMPTY = 1e-4
"""What a bin of Q counts that only clipped elements of P are in: one outlier is not infinity."""
# Candidates of an end, at most: where the other is fixed, on the grid of both, beside its best.
_ONE_END, _GRID, _REFINED = 256, 24, 17


def entropy_range(histogram: Histogram) -> tuple[float, float]:
    """(low, high) within the extremes, 0 between them.

    Zeros are left out: they are exact whatever the range, and after a ReLU they are most.
    """
    low, high = min(histogram.low, 0.0), max(histogram.high, 0.0)
    counts, origin = histogram.counts()
    filled = np.flatnonzero(counts)
    if not filled.size:
        return low, high
    first, last = min(int(filled[0]), origin), max(int(filled[-1]) + 1, origin)
    begin, end = best_slice(counts[first:last], origin - first)
    width = histogram.width
    return (
        low if begin == 0 else (begin + first - origin) * width,
        high if end == last - first else (end + first - origin) * width,
    )


def best_slice(counts: Array, origin: int, levels: int = LEVELS) -> tuple[int, int]:
    """The slice [begin, end) of least divergence around ``origin``, at least ``levels`` wide.

    A grid of both ends is tried first, then each end between its neighbours on the grid, in turn
    until neither moves; of equals the widest is taken.
    """
    counts = counts.astype(np.float64)
    size = len(counts)
    if size <= levels:
        return 0, size
    before = np.concatenate([[0.0], np.cumsum(counts)])
    best = _Best(counts, before, levels)
    one_sided = origin in (0, size)
    points = _ONE_END if one_sided else _GRID
    begins, ends = _steps(0, origin, points), _steps(size, origin, points)
    for begin in begins:
        for end in ends:
            best.attempt(begin, end)
    # Beside the best point of the grid: as far as the next one.
    apart = [-(-reach // max(points - 1, 1)) for reach in (origin, size - origin)]
    moved = True
    while moved:
        begin, end = best.ends
        for tried in _steps(max(begin - apart[0], 0), min(begin + apart[0], origin), _REFINED):
            best.attempt(tried, best.ends[1])
        for tried in _steps(min(end + apart[1], size), max(end - apart[1], origin), _REFINED):
            best.attempt(best.ends[0], tried)
        moved = best.ends != (begin, end)
    return best.ends


class _Best:
    """The best slice so far; the whole at first."""

    def __init__(self, counts: Array, before: Array, levels: int) -> None:
        self._counts, self._before, self._levels = counts, before, levels
        self.ends = (0, len(counts))
        self._least = divergence(counts, before, 0, len(counts), levels)

    def attempt(self, begin: int, end: int) -> None:
        """Take a slice that is better."""
        if end - begin < self._levels:
            return
        found = divergence(self._counts, self._before, begin, end, self._levels)
        if found < self._least - 1e-12:
            self._least, self.ends = found, (begin, end)


def _steps(start: int, stop: int, most: int) -> list[int]:
    """From ``start`` to ``stop``, both among them, evenly and at most ``most``."""
    count = min(abs(stop - start) + 1, most)
    return [round(x) for x in np.linspace(start, stop, count)]


def divergence(counts: Array, before: Array, begin: int, end: int, levels: int) -> float:
    """KL(P || Q) of the slice [begin, end); ``before[i]`` is the sum of ``counts[:i]``."""
    part = counts[begin:end]
    starts = np.arange(levels) * len(part) // levels
    filled = part > 0
    sums, kept = np.add.reduceat(part, starts), np.add.reduceat(filled.astype(np.int64), starts)
    spread = np.repeat(sums / np.maximum(kept, 1), np.diff(np.append(starts, len(part))))
    p = part.copy()
    p[0] += before[begin]
    p[-1] += before[-1] - before[end]
    held = p > 0
    q = np.where(filled, spread, EMPTY)[held]
    p = p[held]
    return float(np.dot(p, np.log(p / q)) / p.sum() + np.log(q.sum() / p.sum()))
