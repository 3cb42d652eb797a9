"""The range whose int8 numbers have the least mean squared error on a histogram.

Clipping a tail costs its distance, a wider range costs precision everywhere: "Post training 4-bit
quantization of convolutional networks for rapid-deployment" (Banner et al., NeurIPS 2019), section
3, derives the best trade for known distributions; here it is sought on the measured one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from tvmx.accuracy._histogram import Histogram

if TYPE_CHECKING:
    from tvmx.numerics import QuantParams

Array = npt.NDArray[Any]

_POINTS = 33  # candidates to one side of an end in one sweep
_SWEEPS = 2  # over both ends, before the windows shrink
_MOST_SPANS = 1024  # several to a step of the range: finer ones change the result little
_SHRINKS = (1.0, 1 / 8, 1 / 64)


def squared_error_range(histogram: Histogram) -> tuple[float, float]:
    """(low, high) within the extremes, 0 between them.

    The ends are moved in turn: the error is close to convex in both (what is clipped, plus the
    square of the step). It never exceeds that of the extremes.
    """
    ends = [min(histogram.low, 0.0), max(histogram.high, 0.0)]
    limits = tuple(ends)
    counts, starts, stops = _spans(histogram)
    least = _error(counts, starts, stops, ends)
    for shrink in _SHRINKS:
        for end in (0, 1) * _SWEEPS:
            for value in _around(ends[end], limits[end], shrink):
                tried = [value, ends[1]] if end == 0 else [ends[0], value]
                error = _error(counts, starts, stops, tried)
                if error < least:
                    least, ends = error, tried
    return ends[0], ends[1]


def _around(end: float, limit: float, shrink: float) -> list[float]:
    """Candidates of an end between 0 and its limit, ``shrink`` of that to either side of it."""
    offsets = np.linspace(-shrink, shrink, 2 * _POINTS - 1) * abs(limit)
    low, high = min(limit, 0.0), max(limit, 0.0)
    return [float(v) for v in np.unique(end + offsets) if low <= v <= high]


def _spans(histogram: Histogram) -> tuple[Array, Array, Array]:
    """Counts, starts and stops of the bins that hold anything but zeros, which are exact."""
    counts, origin = histogram.counts()
    width = histogram.width
    while np.count_nonzero(counts) > _MOST_SPANS:
        counts, origin, width = counts.reshape(-1, 2).sum(axis=1), origin // 2, 2 * width
    filled = np.flatnonzero(counts)
    edges = [
        np.clip((filled + shift - origin) * width, histogram.low, histogram.high)
        for shift in (0, 1)
    ]
    return counts[filled].astype(np.float64), edges[0], edges[1]


def _error(counts: Array, starts: Array, stops: Array, ends: list[float]) -> float:
    from tvmx.numerics import QuantParams

    return span_error(counts, starts, stops, QuantParams.from_range(*ends))


def span_error(counts: Array, starts: Array, stops: Array, params: QuantParams) -> float:
    """Summed squared error of ``counts`` elements, each lot spread evenly from start to stop."""
    from tvmx.numerics import QMAX, QMIN

    low, high = QMIN - params.zero_point, QMAX - params.zero_point
    a, b = starts / params.scale, stops / params.scale
    width = b - a
    wide = width > 1e-6
    middle = (a + b) / 2
    at = np.square(middle - np.clip(np.rint(middle), low, high))
    area = _integral(b, low, high) - _integral(a, low, high)
    mean = np.where(wide, area / np.where(wide, width, 1.0), at)
    return float(np.dot(counts, mean)) * params.scale**2


def _integral(t: Array, low: int, high: int) -> Array:
    """Integral from 0 to t of the squared distance to the next integer of [low, high]."""
    n = np.clip(np.rint(t), low, high)
    result: Array = n / 12 + (t - n) ** 3 / 3
    return result
