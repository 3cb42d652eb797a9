"""A histogram that grows with its data: percentiles of a stream in bounded memory."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

BINS = 8192
"""Over [-reach, reach]; of a range on one side of zero at least a quarter is used."""
_SMALLEST = 2.0**-100


class Histogram:
    """Counts of a stream of finite floats over ``BINS`` equal bins on [-reach, reach).

    ``reach`` is a power of two above every magnitude; when it doubles, pairs of bins become
    one. So the counts do not depend on the order values come in or how they are cut into
    parts. ``low`` and ``high`` are the exact extremes, ``zeros`` counts exact zeros.
    """

    def __init__(self) -> None:
        self.low, self.high = math.inf, -math.inf
        self.count = self.zeros = 0
        self._reach = 0.0
        self._bins: npt.NDArray[np.int64] = np.zeros(BINS, np.int64)

    def add(self, values: Array, step: int = 1) -> None:
        """Count finite float values (rows, ...): of each row every ``step``-th element.

        The extremes are those of all of them.
        """
        if values.size == 0:
            return
        low, high = float(values.min()), float(values.max())
        self.low, self.high = min(self.low, low), max(self.high, high)
        self._grow(max(-low, high))
        for row in values:
            self._count(row.reshape(-1)[::step])

    def _count(self, values: Array) -> None:
        self.count += values.size
        self.zeros += values.size - int(np.count_nonzero(values))
        if self._reach == 0.0:
            self._bins[BINS // 2] += values.size
            return
        # A power of two: scaling is exact, so a value's bin is the same at any reach.
        scaled = np.floor(values * np.float32(BINS / 2 / self._reach))
        index = scaled.astype(np.int64) + BINS // 2
        self._bins += np.bincount(index, minlength=BINS)

    @property
    def width(self) -> float:
        """Width of a bin."""
        return 2 * self._reach / BINS

    def counts(self) -> tuple[npt.NDArray[np.int64], int]:
        """Counts by bin without exact zeros, and the number of the bin that begins at 0."""
        counts = self._bins.copy()
        counts[BINS // 2] -= self.zeros
        return counts, BINS // 2

    def percentile(self, percent: float) -> float:
        """As ``numpy.percentile`` (linear between order statistics), within one bin."""
        rank = percent / 100 * (self.count - 1)
        below = math.floor(rank)
        ends = [self._order(below), self._order(min(below + 1, self.count - 1))]
        value = ends[0] + (ends[1] - ends[0]) * (rank - below)
        return min(max(value, self.low), self.high)

    def _order(self, rank: int) -> float:
        """Middle of the bin that holds the value of this rank, counted from 0."""
        index = int(np.searchsorted(np.cumsum(self._bins), rank, side="right"))
        return (index - BINS // 2 + 0.5) * self.width

    def _grow(self, magnitude: float) -> None:
        """Make the reach exceed ``magnitude``; zeros alone need none."""
        if magnitude < self._reach or magnitude == 0.0:
            return
        wanted = 2.0 ** math.frexp(max(magnitude, _SMALLEST))[1]
        while 0.0 < self._reach < wanted:
            pairs = self._bins.reshape(-1, 2).sum(axis=1)
            self._bins[:] = 0
            self._bins[BINS // 4 : BINS // 4 + BINS // 2] = pairs
            self._reach *= 2
        self._reach = wanted
