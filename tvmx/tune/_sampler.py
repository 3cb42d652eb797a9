"""Space-filling samples of a space."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from tvmx.ir._config import Space

_POOL = 256


def unit_points(space: Space) -> npt.NDArray[np.float32]:
    """Every point of ``space`` as coordinates in [0, 1], shape (points, knobs).

    A knob's coordinate is the index of its value among the knob's candidates.
    """
    index = {
        name: {value: i / max(1, len(values) - 1) for i, value in enumerate(values)}
        for name, values in space.knobs.items()
    }
    rows = [[index[name][config[name]] for name in index] for config in space.points()]
    return np.array(rows, np.float32).reshape(len(rows), len(index))


def neighbours(points: npt.NDArray[np.float32], point: int) -> list[int]:
    """Points that differ from ``point`` in one knob, those of the nearest values first."""
    gaps = np.abs(points - points[point])
    one = np.flatnonzero((gaps > 0).sum(axis=1) == 1)
    order = np.argsort(gaps[one].sum(axis=1), kind="stable")
    return [int(i) for i in one[order]]


def diverse(
    scores: npt.NDArray[np.float64], points: npt.NDArray[np.float32], count: int, alike: float
) -> list[int]:
    """Up to ``count`` indices of the lowest ``scores``, best first, and not all alike.

    Each one that is chosen adds ``alike`` to the scores of those one knob away (``points``:
    coordinates, shape (scores, knobs)).
    """
    scores = scores.copy()
    chosen: list[int] = []
    for _ in range(min(count, len(scores))):
        best = int(scores.argmin())
        chosen.append(best)
        scores[(points != points[best]).sum(axis=1) == 1] += alike
        scores[best] = np.inf
    return chosen


def spread(
    points: npt.NDArray[np.float32],
    taken: npt.NDArray[np.int64],
    free: npt.NDArray[np.int64],
    count: int,
    rng: np.random.Generator,
) -> list[int]:
    """``count`` indices out of ``free``, each as far as possible from those taken before.

    Greedy maximin design (T. Gonzalez, "Clustering to minimize the maximum intercluster
    distance", 1985) on a random pool, so that equal distances do not favour low indices.
    """
    pool = rng.permutation(free)[:_POOL]
    if not len(pool):
        return []
    gap = np.full(len(pool), np.inf, np.float32)
    for i in taken:
        gap = np.minimum(gap, _distance(points[pool], points[i]))
    chosen: list[int] = []
    for _ in range(min(count, len(pool))):
        best = int(gap.argmax())
        chosen.append(int(pool[best]))
        gap = np.minimum(gap, _distance(points[pool], points[pool[best]]))
        gap[best] = -1.0
    return chosen


def _distance(
    points: npt.NDArray[np.float32], point: npt.NDArray[np.float32]
) -> npt.NDArray[np.float32]:
    distance: npt.NDArray[np.float32] = np.abs(points - point).sum(axis=1)
    return distance
